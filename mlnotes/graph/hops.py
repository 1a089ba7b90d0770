"""What the layers of a network compute: all nodes, those that a loss hangs on, or a sample of their neighbours.

A network of L layers sees L hops. The nodes that a layer computes come first among those of its input, so that
`layer(edges, x, num_nodes=...)` finds a node itself in x as well as its neighbours; the last hop's are the ones whose
output is wanted. Three ways lead there: `whole_hops` computes every node in every layer; `prune_hops` leaves out, on
the host and once, what the wanted nodes do not hang on, and changes no number; `sample_hops` draws neighbours anew
inside the compiled step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes.graph.edges import Edges, count_edges
from mlnotes.graph.neighbors import NeighborRows, sample_neighbors


class Hop(NamedTuple):
  """Edges from the nodes of a layer's input to those that it computes, `nodes`, the first of them.

  `degree` is of the input's nodes in the whole graph.
  """

  edges: Edges
  degree: Float[Array, " M"]
  nodes: Int[Array, " R"]

  @property
  def num_nodes(self) -> int:
    return self.nodes.shape[0]


class Hops(NamedTuple):
  """`inputs` are the nodes that the first hop starts from, `hops` one for each layer."""

  inputs: Int[Array, " M"]
  hops: tuple[Hop, ...]


def symmetric_weights(hop: Hop) -> Float[Array, " E"]:
  """D^-1/2 A D^-1/2 by the degrees of the whole graph."""
  root = jnp.where(hop.degree > 0, 1 / jnp.sqrt(jnp.maximum(hop.degree, 1e-12)), 0)
  return hop.edges.mask * root[hop.edges.senders] * root[hop.edges.receivers]


def whole_hops(edges: Edges, num_nodes: int, layers: int) -> Hops:
  """Every layer computes every node."""
  nodes = jnp.arange(num_nodes)
  return Hops(nodes, (Hop(edges, count_edges(edges, num_nodes), nodes),) * layers)


def prune_hops(edges: Edges, num_nodes: int, layers: int, wanted: Int[np.ndarray, " R"]) -> Hops:
  """What the `wanted` nodes hang on, in each layer, and nothing else. On the host."""
  real = np.asarray(edges.mask) > 0
  senders, receivers = np.asarray(edges.senders)[real], np.asarray(edges.receivers)[real]
  mask = np.asarray(edges.mask)[real]
  degree = np.zeros(num_nodes, np.float32)
  np.add.at(degree, receivers, mask)
  nodes, found = np.asarray(wanted), []
  for _ in range(layers):
    place = np.full(num_nodes, -1)
    place[nodes] = np.arange(len(nodes))
    kept = place[receivers] >= 0
    more = np.unique(senders[kept])
    inputs = np.concatenate([nodes, more[place[more] < 0]])
    place[inputs] = np.arange(len(inputs))
    ends = (place[senders[kept]].astype(np.int32), place[receivers[kept]].astype(np.int32))
    hop = Hop(Edges(*ends, mask[kept]), degree[inputs], nodes.astype(np.int32))
    found.insert(0, jax.tree.map(jnp.asarray, hop))
    nodes = inputs
  return Hops(jnp.asarray(nodes, jnp.int32), tuple(found))


def sample_hops(
  key: Key[Array, ""],
  rows: NeighborRows,
  wanted: Int[Array, " R"],
  fanout: Sequence[int],
  replace: bool = False,
) -> Hops:
  """At most fanout[i] neighbours of each node that layer i computes, drawn uniformly inside the compiled step.

  A node that is met twice stands twice in an input, with neighbours of its own: shapes stay static. The paper draws
  with replacement and 25, then 10 neighbours: fanout = (25, 10), the first layer's first. `rows` are those of the
  receivers: `make_neighbor_rows(receivers, senders, num_nodes)`.
  """
  nodes, found = wanted, []
  degree = rows.degree.astype(jnp.float32)
  for layer in reversed(range(len(fanout))):
    size, count = nodes.shape[0], fanout[layer]
    drawn, mask = sample_neighbors(jax.random.fold_in(key, layer), rows, nodes, count, replace)
    inputs = jnp.concatenate([nodes, drawn.reshape(-1)])
    receivers = jnp.repeat(jnp.arange(size), count, total_repeat_length=size * count)
    edges = Edges(size + jnp.arange(size * count), receivers, mask.reshape(-1))
    found.insert(0, Hop(edges, degree[inputs], nodes))
    nodes = inputs
  return Hops(nodes, tuple(found))
