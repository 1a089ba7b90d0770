"""SimSiam: a predictor and a stopped gradient, no negatives."""

import jax
import jax.numpy as jnp

from mlnotes.contrastive.heads import Embedder
from mlnotes.contrastive.loss import negative_cosine
from mlnotes.contrastive.method import Method, Outcome, apply_network, flatten_views, make_embed


def make_simsiam(network: Embedder, stop_gradient: bool = True) -> Method:
  """Chen & He 2021, algorithm 1: L = D(p_1, z_2) / 2 + D(p_2, z_1) / 2, from -1 to 1; z gets no gradient.

  Without `stop_gradient` the constant embedding is the easy minimum, -1, and training finds it (figure 2 there).

  Differences from the paper: the predictor's learning rate follows the schedule like all others (there it is constant,
  +0.4 % on ImageNet), and both views share one batch's statistics.
  """

  def init(key, images):
    return network.init(key, images, train=False), ()

  def loss(params, state, views, batch, key):
    outputs, batch_stats = apply_network(network, params, state.batch_stats, flatten_views(views))
    _, z, p = (x.reshape(*views.shape[:2], -1) for x in outputs)
    target = jax.lax.stop_gradient(z) if stop_gradient else z
    losses = (negative_cosine(p[:, 0], target[:, 1]) + negative_cosine(p[:, 1], target[:, 0])) / 2
    return jnp.mean(losses), Outcome(batch_stats, (), (z[:, 0], z[:, 1]), {})

  return Method(init, loss, make_embed(network), num_views=2)
