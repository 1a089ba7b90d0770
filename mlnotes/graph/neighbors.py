"""The neighbours of every node side by side in one array: what walks, similarities and samples look nodes up in."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num

from mlnotes.engine.errors import InputError
from mlnotes.graph.edges import Edges


class NeighborRows(NamedTuple):
  """The neighbours of node v are neighbors[starts[v] : starts[v + 1]], each once and rising (compressed rows).

  `weights` are those of these edges and `cumulative` their sums from the first of the row on; None: all are 1.
  """

  starts: Int[Array, " N+1"]
  neighbors: Int[Array, " E"]
  weights: Float[Array, " E"] | None = None
  cumulative: Float[Array, " E"] | None = None

  @property
  def num_nodes(self) -> int:
    return self.starts.shape[0] - 1

  @property
  def degree(self) -> Int[Array, " N"]:
    return self.starts[1:] - self.starts[:-1]


def make_neighbor_rows(
  senders: Int[np.ndarray | Array, "..."],
  receivers: Int[np.ndarray | Array, "..."],
  num_nodes: int,
  weights: Num[np.ndarray, "..."] | None = None,
) -> NeighborRows:
  """The rows of a graph; edge i leads from senders[i] to receivers[i]. On the host.

  Edges that are there several times are one, of the sum of their weights. Raises InputError for an edge to a node that
  is not there, a weight that is not above 0, and a graph without edges.
  """
  senders, receivers = np.asarray(senders, np.int64), np.asarray(receivers, np.int64)
  if senders.shape != receivers.shape or senders.size == 0:
    found = f"{senders.shape} and {receivers.shape}"
    raise InputError(f"senders and receivers have the shapes {found}, expected as many of both, one or more.")
  ends = np.concatenate([senders, receivers])
  if (wrong := ends[(ends < 0) | (ends >= num_nodes)]).size:
    raise InputError(f"an edge has node {wrong[0]} at an end, expected nodes 0 to {num_nodes - 1}.")
  pairs, place = np.unique(senders * num_nodes + receivers, return_inverse=True)
  starts = np.searchsorted(pairs, np.arange(num_nodes + 1) * num_nodes)
  rows = NeighborRows(jnp.asarray(starts, jnp.int32), jnp.asarray(pairs % num_nodes, jnp.int32))
  if weights is None:
    return rows
  weights = np.asarray(weights, np.float64)
  if weights.shape != senders.shape or not np.all((weights > 0) & np.isfinite(weights)):
    raise InputError(f"weights have shape {weights.shape}, expected {senders.size} finite numbers above 0.")
  summed = np.bincount(place.reshape(-1), weights)
  # A row at a time: sums over the whole graph would leave float32 no digits for its last rows.
  cumulative = [np.cumsum(row) for row in np.split(summed, starts[1:-1])]
  as_array = lambda values: jnp.asarray(values, jnp.float32)
  return rows._replace(weights=as_array(summed), cumulative=as_array(np.concatenate(cumulative)))


def find_in_rows(rows: NeighborRows, node: Int[Array, " B"], other: Int[Array, " B"]) -> Int[Array, " B"]:
  """Where the edge from `node` to `other` stands in `rows.neighbors`, -1 where there is none. Binary search."""

  def halve(_, ends):
    low, high = ends
    middle = (low + high) // 2
    less = rows.neighbors[middle] < other
    open_ = low < high
    return jnp.where(open_ & less, middle + 1, low), jnp.where(open_ & ~less, middle, high)

  first, last = rows.starts[node], rows.starts[node + 1]
  place, _ = jax.lax.fori_loop(0, _count_halvings(rows), halve, (first, last))
  place = jnp.minimum(place, rows.neighbors.shape[0] - 1)
  found = (place < last) & (rows.neighbors[place] == other)
  return jnp.where(found, place, -1)


def are_neighbors(rows: NeighborRows, node: Int[Array, " B"], other: Int[Array, " B"]) -> Bool[Array, " B"]:
  """Whether an edge leads from `node` to `other`."""
  return find_in_rows(rows, node, other) >= 0


def find_in_cumulative(rows: NeighborRows, node: Int[Array, " B"], height: Float[Array, " B"]) -> Int[Array, " B"]:
  """The first neighbour of `node`, as a position in the rows, whose cumulative weight exceeds `height`."""

  def halve(_, ends):
    low, high = ends
    middle = (low + high) // 2
    less = rows.cumulative[middle] <= height
    open_ = low < high
    return jnp.where(open_ & less, middle + 1, low), jnp.where(open_ & ~less, middle, high)

  first, last = rows.starts[node], rows.starts[node + 1] - 1
  place, _ = jax.lax.fori_loop(0, _count_halvings(rows), halve, (first, last))
  return place


def _count_halvings(rows: NeighborRows) -> Int[Array, ""]:
  """Halvings that leave one place of the longest row."""
  longest = jnp.max(rows.degree)
  return 32 - jax.lax.clz(longest)


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
  key: Key[Array, ""], rows: NeighborRows, nodes: Int[Array, " R"], count: int, replace: bool = False
) -> tuple[Int[Array, "R C"], Float[Array, "R C"]]:
  """(neighbours of each node, mask): `count` of them drawn uniformly, in the compiled step. Weights are not looked at.

  With replacement all `count` are there unless a node has no neighbour; without it a node of fewer has each once.
  Without replacement this is Floyd's algorithm, `count` draws and comparisons a node whatever its degree.
  """
  first = rows.starts[nodes]
  degree = rows.starts[nodes + 1] - first
  drawn = jax.random.uniform(key, (*nodes.shape, count))
  if replace:
    place = jnp.minimum((drawn * degree[:, None]).astype(jnp.int32), degree[:, None] - 1)
    mask = jnp.broadcast_to(degree[:, None] > 0, place.shape)
  else:
    place, mask = _sample_floyd(drawn, degree)
  found = rows.neighbors[jnp.clip(first[:, None] + place, 0, rows.neighbors.shape[0] - 1)]
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
