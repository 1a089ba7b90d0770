"""Many graphs as one: graphs drawn by position fill arrays of one size, inside the compiled step.

Nothing compiles anew for another graph, and nothing is padded to the size of the greatest: a batch has room for so many
nodes and edges as batches of that many graphs need.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mlnotes.engine.errors import InputError
from mlnotes.graph.edges import Edges

Pooling = Literal["sum", "mean", "max"]
_TRIED, _MARGIN = 2000, 1.05


class Budget(NamedTuple):
  """Room of a batch: how many nodes and how many edges."""

  nodes: int
  edges: int


class GraphBatch(NamedTuple):
  """B graphs, their nodes one after the other, then padding.

  graph: the graph of each node, B for padding. kept: 1 for a graph that has room, 0 for one that has not.
  """

  edges: Edges
  features: Float[Array, "N D"]
  graph: Int[Array, " N"]
  kept: Float[Array, " B"]

  @property
  def real(self) -> Float[Array, " N"]:
    """1 for a node, 0 for padding."""
    return (self.graph < len(self.kept)).astype(jnp.float32)


def choose_budget(
  num_nodes: Int[np.ndarray, " G"],
  num_edges: Int[np.ndarray, " G"],
  batch_size: int,
  certain: Sequence[Int[np.ndarray, "..."]] = (),
) -> Budget:
  """Room that of 2,000 batches of so many graphs each, drawn at random, none exceeded, and a twentieth more.

  No more than the greatest graphs together need, no less than the greatest alone and than each of the batches
  `certain`, which are not drawn. Raises InputError for a batch size beyond the number of graphs.
  """
  if not 1 <= batch_size <= len(num_nodes):
    raise InputError(f"batch_size={batch_size} is out of range: expected 1 to {len(num_nodes)} graphs.")
  rng = np.random.default_rng(0)
  rows = np.stack([rng.permutation(len(num_nodes))[:batch_size] for _ in range(_TRIED)])
  most = lambda sizes: int(np.sort(sizes)[-batch_size:].sum())
  least = lambda sizes: max([int(sizes.max()), *(int(sizes[batch].sum()) for batch in certain)])
  room = lambda sizes: min(most(sizes), max(int(_MARGIN * sizes[rows].sum(1).max()) + 1, least(sizes)))
  return Budget(room(np.asarray(num_nodes)), max(room(np.asarray(num_edges)), 1))


def take_graphs(graphs: Mapping[str, Array], index: Int[Array, " B"], budget: Budget) -> GraphBatch:
  """The graphs at `index` of the arrays of a `mlnotes.data.GraphSet`; a negative number is no graph.

  Where the room is used up, the graph that does not fit and all after it are left out: `kept` says which.
  """
  taken = index >= 0
  safe = jnp.maximum(index, 0)
  measure = lambda start: jnp.where(taken, start[safe + 1] - start[safe], 0)
  sizes, counts = measure(graphs["node_start"]), measure(graphs["edge_start"])
  node_ends, edge_ends = jnp.cumsum(sizes), jnp.cumsum(counts)
  fits = (node_ends <= budget.nodes) & (edge_ends <= budget.edges)

  def place(ends, lengths, start, room):
    """For each place the graph that has it, where in all graphs it is, and whether anything is there."""
    graph = jnp.searchsorted(ends, jnp.arange(room), side="right", method="scan_unrolled")
    own = jnp.minimum(graph, len(index) - 1)
    real = (graph < len(index)) & fits[own]
    within = jnp.arange(room) - (ends - lengths)[own]
    return own, jnp.where(real, graphs[start][safe[own]] + within, 0), real

  graph, node, is_node = place(node_ends, sizes, "node_start", budget.nodes)
  of_edge, edge, is_edge = place(edge_ends, counts, "edge_start", budget.edges)
  # From the number among all nodes to that in this batch.
  shift = (node_ends - sizes - graphs["node_start"][safe])[of_edge]
  # Where no graph has an edge there is nothing to look up.
  move = lambda ends: jnp.where(is_edge, ends[edge] + shift, 0) if len(ends) else jnp.zeros_like(edge)
  edges = Edges(move(graphs["senders"]), move(graphs["receivers"]), is_edge.astype(jnp.float32))
  features = jnp.where(is_node[:, None], graphs["features"][node], 0)
  return GraphBatch(edges, features, jnp.where(is_node, graph, len(index)), (taken & fits).astype(jnp.float32))


def pool_nodes(batch: GraphBatch, values: Float[Array, "N F"], how: Pooling = "sum") -> Float[Array, "B F"]:
  """The sum, mean or maximum over the nodes of each graph; 0 for one that is not there."""
  count = len(batch.kept)
  if how == "max":
    found = jax.ops.segment_max(values, batch.graph, count)
    return jnp.where(batch.kept[:, None] > 0, found, 0)
  total = jax.ops.segment_sum(values, batch.graph, count)
  if how == "sum":
    return total
  size = jax.ops.segment_sum(batch.real, batch.graph, count)
  return total / jnp.maximum(size, 1)[:, None]
