"""Edges with static shapes: what is computed at edges, and taken from them back to nodes.

Every layer of this chapter is made of a few moves: look at the nodes at both ends of each edge (`x[edges.senders]`,
`x[edges.receivers]`), compute something there, and sum, average, maximise or normalise it over the edges that arrive at
each node. Padding, whose mask is 0, counts for nothing in any of them, so that graphs of many sizes fill one shape and
nothing compiles anew.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from mlnotes.engine.errors import InputError

Normalization = Literal["symmetric", "row", "none"]


class Edges(NamedTuple):
  """Edge i goes from node senders[i] to node receivers[i] and counts where mask[i] is 1; padding has 0.

  Of an undirected graph both directions are there.
  """

  senders: Int[Array, " E"]
  receivers: Int[Array, " E"]
  mask: Float[Array, " E"]


def make_edges(
  senders: Int[Array, "..."], receivers: Int[Array, "..."], mask: Float[Array, " E"] | None = None
) -> Edges:
  """Edges in any order; all count without a `mask`. Raises InputError where the ends are not as many."""
  if senders.shape != receivers.shape or senders.ndim != 1:
    raise InputError(f"senders have shape {senders.shape} and receivers {receivers.shape}, expected one (E,) for both.")
  return Edges(senders, receivers, jnp.ones(senders.shape) if mask is None else mask)


# -- from edges to nodes -----------------------------------------------------------------------------------------------


def _spread(weights: Num[Array, " E"], values: Num[Array, "E ..."]) -> Num[Array, "E ..."]:
  """`weights` with as many axes as `values`."""
  return weights.reshape(weights.shape + (1,) * (values.ndim - 1)).astype(values.dtype)


def sum_edges(edges: Edges, values: Num[Array, "E ..."], num_nodes: int) -> Num[Array, "N ..."]:
  """The sum of `values` over the edges that arrive at each node, 0 where none does."""
  kept = jnp.where(_spread(edges.mask, values) > 0, values * _spread(edges.mask, values), 0)
  return jax.ops.segment_sum(kept, edges.receivers, num_nodes)


def count_edges(edges: Edges, num_nodes: int) -> Float[Array, " N"]:
  """How many edges arrive at each node: its degree."""
  return jax.ops.segment_sum(edges.mask, edges.receivers, num_nodes)


def mean_edges(edges: Edges, values: Float[Array, "E ..."], num_nodes: int) -> Float[Array, "N ..."]:
  """The mean of `values` over the edges that arrive at each node, weighed by the mask, 0 where none does."""
  count = count_edges(edges, num_nodes)
  total = sum_edges(edges, values, num_nodes)
  return total / _spread(jnp.where(count > 0, count, 1), total)


def max_edges(edges: Edges, values: Float[Array, "E ..."], num_nodes: int, empty: float = 0.0) -> Float[Array, "N ..."]:
  """The greatest of `values` over the edges that arrive at each node, `empty` where none does."""
  lowest = jnp.finfo(values.dtype).min
  kept = jnp.where(_spread(edges.mask, values) > 0, values, lowest)
  found = jax.ops.segment_max(kept, edges.receivers, num_nodes)
  return jnp.where(_spread(count_edges(edges, num_nodes), found) > 0, found, empty)


def softmax_edges(edges: Edges, logits: Float[Array, "E ..."], num_nodes: int) -> Float[Array, "E ..."]:
  """Weights of the edges, 0 of padding, that add up to 1 over those that arrive at a node."""
  greatest = jax.lax.stop_gradient(max_edges(edges, logits, num_nodes))
  real = _spread(edges.mask, logits) > 0
  weights = jnp.where(real, jnp.exp(jnp.where(real, logits - greatest[edges.receivers], 0)), 0)
  total = sum_edges(edges, weights, num_nodes)
  return weights / jnp.maximum(total, jnp.finfo(logits.dtype).tiny)[edges.receivers]


# -- what is done to edges ---------------------------------------------------------------------------------------------


def add_self_loops(edges: Edges, num_nodes: int) -> Edges:
  """An edge from each node to itself, once: loops that are there count no more."""
  own = jnp.arange(num_nodes, dtype=edges.senders.dtype)
  kept = edges.mask * (edges.senders != edges.receivers)
  join = lambda first, second: jnp.concatenate([first, second])
  return Edges(join(edges.senders, own), join(edges.receivers, own), join(kept, jnp.ones(num_nodes, edges.mask.dtype)))


def reverse_edges(edges: Edges) -> Edges:
  """Each edge in its other direction."""
  return edges._replace(senders=edges.receivers, receivers=edges.senders)


def normalize_edges(edges: Edges, num_nodes: int, kind: Normalization = "symmetric") -> Float[Array, " E"]:
  """The weight of each edge, 0 of padding.

  symmetric: D^-1/2 A D^-1/2, Kipf & Welling 2017 (after `add_self_loops`: theirs, the renormalised one).
  row:       D^-1 A, the mean over neighbours and the step of a random walk.
  none:      A.
  A has the mask, which may be a weight in the place of 1. D is of what arrives; for `symmetric` what leaves a node
  counts as much, so the graph is to be undirected.
  """
  if kind == "none":
    return edges.mask
  degree = count_edges(edges, num_nodes)
  inverse = jnp.where(degree > 0, 1 / jnp.where(degree > 0, degree, 1), 0)
  if kind == "row":
    return edges.mask * inverse[edges.receivers]
  root = jnp.sqrt(inverse)
  return edges.mask * root[edges.senders] * root[edges.receivers]


def drop_edges(
  key: Key[Array, ""], edges: Edges, rate: Float[Array, ""] | float, pair: Int[Array, " E"] | None = None
) -> Edges:
  """Leaves out each edge with probability `rate` (DropEdge, Rong et al. 2020); weights are to be normalised after it.

  `pair` numbers the undirected edges from 0, so that both directions of one go together (`pair_edges`).
  """
  kept = jax.random.bernoulli(key, 1 - rate, edges.mask.shape)
  return edges._replace(mask=edges.mask * (kept if pair is None else kept[pair]))


def pair_edges(edges: Edges) -> Int[Array, " E"]:
  """A number below E for each edge that its reverse has too. Sorts; call it once, not in every update."""
  low = jnp.minimum(edges.senders, edges.receivers)
  high = jnp.maximum(edges.senders, edges.receivers)
  order = jnp.lexsort((high, low))
  changed = (jnp.diff(low[order], prepend=-1) != 0) | (jnp.diff(high[order], prepend=-1) != 0)
  number = jnp.cumsum(changed) - 1
  return jnp.zeros_like(edges.senders).at[order].set(number.astype(edges.senders.dtype))
