"""Momentum contrast (MoCo): keys from a slowly moving encoder, negatives from a queue."""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes.contrastive.heads import Embedder
from mlnotes.contrastive.loss import info_nce, normalize
from mlnotes.contrastive.method import Method, Outcome, apply_network, make_embed
from mlnotes.contrastive.queue import Queue, enqueue, init_queue
from mlnotes.optim import update_average

Shuffle = Literal["permutation", "stride", "none"]


class MomentumMemory(NamedTuple):
  """The momentum encoder and its keys of earlier batches."""

  params: chex.ArrayTree
  batch_stats: chex.ArrayTree
  queue: Queue


def make_key_order(shuffle: Shuffle, key: Key[Array, ""], batch_size: int, num_splits: int) -> Int[Array, " B"]:
  """The order in which the key encoder sees the batch, so that its BatchNorm splits are not those of the queries.

  permutation: random, as He et al. 2020 (section 3.3) shuffle over GPUs. stride: of each split of the keys, the
  members come from all splits of the queries in equal numbers; without randomness. none: the splits are the same, and
  a query can recognise its key by the statistics that they share.
  """
  if shuffle == "permutation":
    return jax.random.permutation(key, batch_size)
  order = np.arange(batch_size)
  return jnp.asarray(order.reshape(num_splits, -1).T.reshape(-1) if shuffle == "stride" else order)


def invert_order(order: Int[Array, " B"]) -> Int[Array, " B"]:
  """The permutation that puts `x[order]` back: x[order][invert_order(order)] = x."""
  return jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=order.dtype), unique_indices=True)


def make_moco(
  network: Embedder,
  *,
  queue_size: int,
  momentum: float,
  temperature: float,
  num_splits: int = 8,
  shuffle: Shuffle = "permutation",
  symmetric: bool = False,
) -> Method:
  """He et al. 2020, algorithm 1; with an MLP head, v2 (Chen et al. 2020, arXiv:2003.04297).

    theta_k <- m theta_k + (1 - m) theta_q, then the keys of this batch from theta_k, then the queue

  The negatives are the queue as it stood before this batch, also where the loss is `symmetric` (each view is the
  query once; the loss is the mean of the two, and both batches of keys enter the queue): own keys are never negatives.

  Args:
    network: its BatchNorm layers have `num_splits` splits.
    momentum: m in [0, 1).
  """

  def init(key, images):
    network_key, queue_key = jax.random.split(key)
    variables = network.init(network_key, images, train=False)
    features = jax.eval_shape(lambda v: network.apply(v, images[:1], train=False), variables)[1].shape[-1]
    # Copies: both encoders are updated in place, each its own.
    copied = jax.tree.map(jnp.copy, dict(variables))
    queue = init_queue(queue_key, queue_size, features)
    return variables, MomentumMemory(copied["params"], copied.get("batch_stats", {}), queue)

  def encode(params, batch_stats, images) -> tuple[Float[Array, "B D"], chex.ArrayTree]:
    (_, projection, _), batch_stats = apply_network(network, params, batch_stats, images)
    return normalize(projection), batch_stats

  def loss(params, state, views, batch, key):
    hparams, memory = state.hparams, state.memory
    key_params = update_average(memory.params, jax.lax.stop_gradient(params), hparams["momentum_encoder"])
    queue, batch_stats, key_stats = memory.queue, state.batch_stats, memory.batch_stats
    losses, embeddings = [], []
    for i, direction in enumerate(((0, 1), (1, 0)) if symmetric else ((0, 1),)):
      query_view, key_view = (views[:, view] for view in direction)
      query, batch_stats = encode(params, batch_stats, query_view)
      order = make_key_order(shuffle, jax.random.fold_in(key, i), len(key_view), num_splits)
      shuffled, key_stats = encode(key_params, key_stats, key_view[order])
      keys = jax.lax.stop_gradient(shuffled[invert_order(order)])
      losses.append(info_nce(query, keys, memory.queue.keys, hparams["temperature"]))
      queue = enqueue(queue, keys)
      embeddings = embeddings or [query, keys]
    outcome = Outcome(batch_stats, MomentumMemory(key_params, key_stats, queue), tuple(embeddings), {})
    return jnp.mean(jnp.stack(losses)), outcome

  # Not "momentum": the optimizer has one of that name.
  hparams = {"temperature": temperature, "momentum_encoder": momentum}
  return Method(init, loss, make_embed(network), num_views=2, hparams=hparams)
