"""Neighbours as tables with static shapes: made from edges, and drawn from inside a compiled step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.engine.errors import InputError
from mlnotes.graph.edges import Edges


class NeighborTable(NamedTuple):
  """Node i is reached from senders[starts[i]] to senders[starts[i + 1] - 1]: the rows of a sparse adjacency."""

  starts: Int[Array, " N1"]
  senders: Int[Array, " E"]

  @property
  def num_nodes(self) -> int:
    return self.starts.shape[0] - 1


def make_neighbor_table(
  senders: Int[np.ndarray, " E"], receivers: Int[np.ndarray, " E"], num_nodes: int
) -> NeighborTable:
  """The table of a graph, on the host. Raises InputError for an edge to a node that is not there, or no edge at all."""
  if not len(senders):
    raise InputError("the graph has no edge, expected one or more.")
  worst = max(int(senders.max()), int(receivers.max()))
  if worst >= num_nodes or min(senders.min(), receivers.min()) < 0:
    raise InputError(f"an edge has node {worst}, expected 0 to {num_nodes - 1}.")
  order = np.argsort(receivers, kind="stable")
  starts = np.concatenate([[0], np.cumsum(np.bincount(receivers, minlength=num_nodes))])
  return NeighborTable(jnp.asarray(starts, jnp.int32), jnp.asarray(senders[order], jnp.int32))


def tabulate_edges(
  edges: Edges, num_nodes: int, width: int, key: Key[Array, ""] | None = None
) -> tuple[Int[Array, "R W"], Int[Array, " R"]]:
  """(the senders of the edges that arrive at each node, how many of them the row has), 0 behind them.

  In a random order where there is a key, otherwise in that of the edges; what exceeds `width` is left out.
  """
  count = edges.mask.shape[0]
  rank = jnp.arange(count) if key is None else jax.random.permutation(key, count)
  receivers = jnp.where(edges.mask > 0, edges.receivers, num_nodes)
  order = jnp.lexsort((rank, receivers))
  receivers = receivers[order]
  place = jnp.arange(count) - jnp.searchsorted(receivers, receivers)
  table = jnp.zeros((num_nodes, width), edges.senders.dtype)
  table = table.at[receivers, place].set(edges.senders[order], mode="drop")
  found = jax.ops.segment_sum((edges.mask > 0).astype(jnp.int32), edges.receivers, num_nodes)
  return table, jnp.minimum(found, width)


def sample_neighbors(
  key: Key[Array, ""], table: NeighborTable, nodes: Int[Array, " R"], count: int, replace: bool = False
) -> tuple[Int[Array, "R C"], Float[Array, "R C"]]:
  """(neighbours of each node, mask): `count` of them drawn uniformly, in the compiled step.

  With replacement all `count` are there unless a node has no neighbour; without it a node of fewer has each once.
  Without replacement this is Floyd's algorithm, `count` draws and comparisons a node whatever its degree.
  """
  first = table.starts[nodes]
  degree = table.starts[nodes + 1] - first
  drawn = jax.random.uniform(key, (*nodes.shape, count))
  if replace:
    place = jnp.minimum((drawn * degree[:, None]).astype(jnp.int32), degree[:, None] - 1)
    mask = jnp.broadcast_to(degree[:, None] > 0, place.shape)
  else:
    place, mask = _sample_floyd(drawn, degree)
  found = table.senders[jnp.clip(first[:, None] + place, 0, table.senders.shape[0] - 1)]
  return jnp.where(mask, found, 0), mask.astype(jnp.float32)


def _sample_floyd(drawn: Float[Array, "R C"], degree: Int[Array, " R"]) -> tuple[Int[Array, "R C"], Bool[Array, "R C"]]:
  """(distinct numbers below each degree, which of them count). Floyd's algorithm; Bentley & Floyd 1987."""
  count = drawn.shape[1]

  def draw(i, chosen):
    # The i-th number is below top + 1; one that was chosen before gives way to top itself, which was not.
    top = jnp.maximum(degree - count, 0) + i
    number = jnp.minimum((drawn[:, i] * (top + 1)).astype(jnp.int32), top)
    taken = jnp.any((chosen == number[:, None]) & (jnp.arange(count)[None] < i), axis=1)
    number = jnp.where(degree <= count, i, jnp.where(taken, top, number))
    return chosen.at[:, i].set(number)

  chosen = jax.lax.fori_loop(0, count, draw, jnp.zeros(drawn.shape, jnp.int32))
  return chosen, jnp.arange(count)[None] < degree[:, None]
