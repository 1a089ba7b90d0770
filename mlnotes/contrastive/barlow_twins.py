"""Barlow Twins: the features of two views correlate each with itself and with no other; no negatives."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.contrastive.heads import Embedder
from mlnotes.contrastive.loss import Scalar, require_same_shape
from mlnotes.contrastive.method import Method, Outcome, apply_network, flatten_views, make_embed


def standardize_features(z: Float[Array, "B D"]) -> Float[Array, "B D"]:
  """Each feature to mean 0 and standard deviation 1 over the batch, in float32: BatchNorm without scale, shift."""
  over_batch = lambda statistic, z: statistic(z, axis=0, keepdims=True)
  z = z.astype(jnp.float32)
  return (z - over_batch(jnp.mean, z)) / jnp.sqrt(over_batch(jnp.var, z) + 1e-5)


def cross_correlation(z_a: Float[Array, "B D"], z_b: Float[Array, "B D"]) -> Float[Array, "D D"]:
  """The correlation over the batch of each feature of one view with each of the other, in [-1, 1]; constant ones: 0.

  Zbontar et al. 2021, eq. 2, of features less their means (algorithm 1).
  """
  require_same_shape("cross_correlation", z_a, z_b)
  return standardize_features(z_a).T @ standardize_features(z_b) / len(z_a)


def redundancy_reduction(correlation: Float[Array, "D D"], redundancy_weight: Scalar) -> Float[Array, ""]:
  """sum_i (1 - C_ii)^2 + weight sum_{i != j} C_ij^2       Zbontar et al. 2021, eq. 1; 0 for the identity."""
  diagonal = jnp.diagonal(correlation)
  others = jnp.sum(jnp.square(correlation)) - jnp.sum(jnp.square(diagonal))
  return jnp.sum(jnp.square(1 - diagonal)) + redundancy_weight * others


def make_barlow_twins(network: Embedder, redundancy_weight: float) -> Method:
  """Zbontar et al. 2021, algorithm 1. The statistics of the correlation are those of the whole batch, over all devices.

  `network` ends with a BatchNorm without scale and shift (`MLPHead(norm_last=True)`), so that what is embedded is what
  the loss sees. The paper's weight, 0.005, is for 8192 features: with D of them each has D - 1 others.

  Differences from the paper: both views pass the network as one batch, whose statistics they share there; those of the
  correlation are each view's own.
  """

  def init(key, images):
    return network.init(key, images, train=False), ()

  def loss(params, state, views, batch, key):
    (_, projection, _), batch_stats = apply_network(network, params, state.batch_stats, flatten_views(views))
    z = projection.reshape(*views.shape[:2], -1)
    correlation = cross_correlation(z[:, 0], z[:, 1])
    metrics = {"correlation": jnp.mean(jnp.diagonal(correlation))}
    value = redundancy_reduction(correlation, state.hparams["redundancy_weight"])
    return value, Outcome(batch_stats, (), (z[:, 0], z[:, 1]), metrics)

  return Method(init, loss, make_embed(network), num_views=2, hparams={"redundancy_weight": redundancy_weight})
