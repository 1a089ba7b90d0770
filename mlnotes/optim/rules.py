"""Rules that are optax's under another convention, put together from its parts, or that it has in a form that fails."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mlnotes.optim.precision import accumulate_in_float32, init_moment

Scalar = Float[Array, ""] | float


class ScaleByAmsgradState(NamedTuple):
  """`mu`, `nu`: Adam's moments without bias correction; `nu_max`: the largest `nu` so far."""

  count: Int[Array, ""]
  mu: chex.ArrayTree
  nu: chex.ArrayTree
  nu_max: chex.ArrayTree


def scale_by_amsgrad(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8) -> optax.GradientTransformationExtraArgs:
  """Adam divided by the root of the largest second moment so far (Reddi et al. 2018, algorithm 2).

    u_t = mu_t / (1 - b1^t) / (sqrt(max_s<=t nu_s / (1 - b2^t)) + eps)

  With Adam's bias corrections, which the paper leaves out, applied after the maximum and before eps is added, as torch
  does; `optax.amsgrad` corrects before the maximum, so that its first, noisiest estimates count in full and for ever.
  """

  def init(params):
    return ScaleByAmsgradState(jnp.zeros([], jnp.int32), init_moment(params), init_moment(params), init_moment(params))

  def update(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment(updates, state.nu, b2, 2)
    nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
    root = jnp.sqrt(1 - b2**count)
    scaled = lambda m, v: m / (jnp.sqrt(v) / root.astype(v.dtype) + eps)
    updates = jax.tree.map(scaled, optax.tree.bias_correction(mu, b1, count), nu_max)
    return updates, ScaleByAmsgradState(count, mu, nu, nu_max)

  return accumulate_in_float32(optax.GradientTransformation(init, update))


def amsgrad(
  learning_rate: optax.ScalarOrSchedule, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8
) -> optax.GradientTransformationExtraArgs:
  """`scale_by_amsgrad` as an optimizer."""
  return accumulate_in_float32(optax.chain(scale_by_amsgrad(b1, b2, eps), optax.scale_by_learning_rate(learning_rate)))


class ScaleByCentredRmsState(NamedTuple):
  """Running mean and variance of the gradient."""

  mean: chex.ArrayTree
  variance: chex.ArrayTree


def scale_by_centred_rms(decay: Scalar = 0.99, eps: Scalar = 1e-8) -> optax.GradientTransformationExtraArgs:
  """Divides by the running standard deviation of the gradient (Graves 2013, section 2.1 and equations 38 to 40).

    u_t = g_t / (sqrt(variance_t) + eps);  variance = E[g^2] - E[g]^2, both from 0 with the same decay > 0

  eps outside the root, as in torch; no bias correction. The variance is updated by deviations: as the difference of two
  moments it is negative by rounding where gradients hardly change, and `optax.rmsprop(centered=True)` gives NaN there.
  """

  def init(params):
    return ScaleByCentredRmsState(init_moment(params), init_moment(params))

  def update(updates, state, params=None):
    del params
    mean = optax.tree.update_moment(updates, state.mean, decay, 1)
    # From the new mean, so that both moments are updated in place: (g - new mean) = decay (g - old mean).
    spread = lambda g, m, v: decay * v + (1 - decay) / decay * (g - m) ** 2
    variance = jax.tree.map(spread, updates, mean, state.variance)
    updates = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + eps), updates, variance)
    return updates, ScaleByCentredRmsState(mean, variance)

  return accumulate_in_float32(optax.GradientTransformation(init, update))


def sgdw(
  learning_rate: optax.ScalarOrSchedule,
  momentum: Scalar = 0.9,
  weight_decay: Scalar = 1e-2,
  mask: chex.ArrayTree = None,
) -> optax.GradientTransformationExtraArgs:
  """SGD with momentum and decoupled weight decay: p <- p - learning_rate (v + weight_decay p), v free of the decay.

  Loshchilov & Hutter 2019, algorithm 1, with the decay times the learning rate, as torch and optax have it for AdamW;
  in the paper the schedule alone scales it. `optax.add_decayed_weights` before `optax.sgd` is L2 in the gradient.
  """
  rule = optax.chain(
    optax.trace(momentum),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )
  return accumulate_in_float32(rule)
