"""SimCLR: two views of each image attract, all other views in the batch repel."""

import jax.numpy as jnp

from mlnotes.contrastive.heads import Embedder
from mlnotes.contrastive.loss import normalize, nt_xent
from mlnotes.contrastive.method import Method, Outcome, apply_network, flatten_views, make_embed


def make_simclr(network: Embedder, temperature: float) -> Method:
  """Chen et al. 2020, algorithm 1. Both views pass the network as one batch, whose statistics they share.

  The number of negatives is 2B - 2 over all devices.
  """

  def init(key, images):
    return network.init(key, images, train=False), ()

  def loss(params, state, views, batch, key):
    (_, projection, _), batch_stats = apply_network(network, params, state.batch_stats, flatten_views(views))
    z = normalize(projection).reshape(*views.shape[:2], -1)
    losses = nt_xent(z[:, 0], z[:, 1], state.hparams["temperature"])
    return jnp.mean(losses), Outcome(batch_stats, (), (z[:, 0], z[:, 1]), {})

  return Method(init, loss, make_embed(network), num_views=2, hparams={"temperature": temperature})
