"""GraphRNN: a graph as a sequence, node after node in the order of a breadth-first search, edge after edge.

You et al. 2018. In the order of a breadth-first search a node has edges to the last M nodes before it alone, so that a
graph of n nodes is n rows of at most M numbers, and the last row, of zeros, says that it ends.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Num

from mlnotes.engine.experiment import root_key
from mlnotes.sequence import RecurrentStack, make_cell

# -- a graph as a sequence ---------------------------------------------------------------------------------------------


def order_breadth_first(
  adjacency: Num[Array, "N N"], num_nodes: Int[Array, ""], start: Int[Array, ""] | int = 0
) -> Int[Array, " N"]:
  """The nodes in the order in which a breadth-first search from `start` meets them; padding behind them.

  Neighbours of one node are met by their numbers. What `start` does not reach follows, from its first node on.
  """
  size = len(adjacency)
  real = jnp.arange(size) < num_nodes

  def visit(carry, step):
    rank, count = carry
    # The search is through with all that it has met: it goes on from another node, of the graph before padding.
    fresh = jnp.argmax(jnp.where(rank == size, 1 + real, 0))
    ended = step == count
    rank = jnp.where(ended & (jnp.arange(size) == fresh), step, rank)
    count = jnp.where(ended, count + 1, count)
    new = (adjacency[jnp.argmax(rank == step)] > 0) & (rank == size)
    rank = jnp.where(new, count - 1 + jnp.cumsum(new), rank)
    return (rank, count + jnp.sum(new)), None

  rank = jnp.where(jnp.arange(size) == start, 0, size)
  (rank, _), _ = jax.lax.scan(visit, (rank, jnp.ones([], rank.dtype)), jnp.arange(size))
  return jnp.argsort(rank).astype(jnp.int32)


def draw_order(key: Key[Array, ""], adjacency: Num[Array, "N N"], num_nodes: Int[Array, ""]) -> Int[Array, " N"]:
  """A breadth-first order from a random node that meets the neighbours of each node in a random order."""
  size = len(adjacency)
  # Padding behind the nodes, these in any order, the first of them the start.
  shuffled = jnp.argsort(jax.random.uniform(key, (size,)) + (jnp.arange(size) >= num_nodes))
  return shuffled[order_breadth_first(adjacency[shuffled][:, shuffled], num_nodes)].astype(jnp.int32)


def encode_graph(adjacency: Num[Array, "N N"], order: Int[Array, " N"], max_previous: int) -> Float[Array, "N M"]:
  """Row i: whether node i of the `order` has an edge to node i - 1, i - 2, .. i - M; zeros before the first node."""
  edges = (adjacency[order][:, order] > 0).astype(jnp.float32)
  place = jnp.arange(len(order))[:, None] - 1 - jnp.arange(max_previous)[None]
  return jnp.where(place >= 0, jnp.take_along_axis(edges, jnp.maximum(place, 0), axis=1), 0)


def decode_graph(rows: Float[Array, "N M"]) -> Float[Array, "N N"]:
  """The symmetric adjacency of the rows that `encode_graph` gives; edges beyond the last M nodes are not there."""
  size, max_previous = rows.shape
  back = jnp.arange(size)[:, None] - 1 - jnp.arange(size)[None]  # of the row of a node, the column of another
  there = (back >= 0) & (back < max_previous)
  lower = jnp.where(there, jnp.take_along_axis(rows, jnp.clip(back, 0, max_previous - 1), axis=1), 0)
  return lower + lower.T


def measure_max_previous(
  adjacency: Num[np.ndarray, "G N N"], num_nodes: Int[np.ndarray, " G"], orders: int = 100, seed: int = 0
) -> int:
  """The furthest that an edge goes back over `orders` breadth-first orders of each graph: M, as the paper finds it."""

  @jax.jit
  def furthest(key, adjacency, num_nodes):
    def of_order(key):
      order = draw_order(key, adjacency, num_nodes)
      apart = jnp.abs(jnp.arange(len(order))[:, None] - jnp.arange(len(order))[None])
      return jnp.max(jnp.where(adjacency[order][:, order] > 0, apart, 0))

    return jnp.max(jax.vmap(of_order)(jax.random.split(key, orders)))

  keys = jax.random.split(root_key(seed), len(adjacency))
  most = jax.lax.map(lambda inputs: furthest(*inputs), (keys, jnp.asarray(adjacency), jnp.asarray(num_nodes)))
  return max(int(jnp.max(most)), 1)


class Rows(NamedTuple):
  """What the network reads, is to say, and where that counts, for N steps of one graph.

  inputs:  a row of ones, then the rows of nodes 1, 2, ..
  targets: the rows of nodes 1, 2, .. and one of zeros behind the last node.
  mask:    1 in the rows up to that one, for nodes that are there (node i has i before it).
  """

  inputs: Float[Array, "N M"]
  targets: Float[Array, "N M"]
  mask: Float[Array, "N M"]


def make_rows(rows: Float[Array, "N M"], num_nodes: Int[Array, ""]) -> Rows:
  """Of the rows that `encode_graph` gives."""
  size, max_previous = rows.shape
  step, back = jnp.arange(size)[:, None], jnp.arange(max_previous)[None]
  inputs = jnp.concatenate([jnp.ones((1, max_previous)), rows[1:]])
  targets = jnp.concatenate([rows[1:], jnp.zeros((1, max_previous))])
  return Rows(inputs, targets, ((step < num_nodes) & (back <= step)).astype(jnp.float32))


# -- the network -------------------------------------------------------------------------------------------------------


class GraphRNN(nn.Module):
  """A recurrent network over nodes whose state says, in each step, the edges of the next node to those before it.

  edge_level: False: GraphRNN-S, all edges of a node at once and independent given the state, by a network of one
              hidden layer. True: one after the other by a second recurrent network that begins from that state.
  Gated recurrent units, `depth` layers of `width`, and `edge_depth` of `edge_width` for edges.

  Differences from the paper's code: two layers, not four, by default.
  """

  max_previous: int
  edge_level: bool = True
  width: int = 64
  depth: int = 2
  embedding: int = 32
  edge_width: int = 16
  edge_depth: int = 2
  edge_embedding: int = 8

  def setup(self):
    self.embed = nn.Dense(self.embedding)
    self.nodes = RecurrentStack(make_cell("gru", self.width, parent=None), self.depth)
    if self.edge_level:
      self.to_edges = nn.Dense(self.edge_width)
      self.embed_edge = nn.Dense(self.edge_embedding)
      self.edges = RecurrentStack(make_cell("gru", self.edge_width, parent=None), self.edge_depth)
      self.hidden, self.out = nn.Dense(self.edge_embedding), nn.Dense(1)
    else:
      self.hidden, self.out = nn.Dense(self.embedding), nn.Dense(self.max_previous)

  def __call__(self, inputs: Float[Array, "B N M"], targets: Float[Array, "B N M"]) -> Float[Array, "B N M"]:
    """Logits of each edge given all that stands before it in `inputs` and, with `edge_level`, in `targets`."""
    states, _ = self.nodes(nn.relu(self.embed(inputs)))
    if not self.edge_level:
      return self._say(states)
    flat = states.reshape(-1, self.width)
    before = jnp.concatenate([jnp.ones((*targets.shape[:2], 1)), targets[..., :-1]], axis=-1)
    read = nn.relu(self.embed_edge(before.reshape(len(flat), -1, 1)))
    outputs, _ = self.edges(read, carry=self._begin_edges(flat))
    return self._say(outputs).reshape(targets.shape)

  def sample_row(
    self, carry: Any, row: Float[Array, "B M"], allowed: Bool[Array, " M"], key: Key[Array, ""]
  ) -> tuple[Any, Float[Array, "B M"]]:
    """(state, the drawn row of the next node) from the state and the row of the last; 0 where it is not `allowed`."""
    states, carry = self.nodes(nn.relu(self.embed(row[:, None])), carry=carry)
    uniform = jax.random.uniform(key, (self.max_previous, len(row)))
    draw = lambda logits, uniform: (uniform < jax.nn.sigmoid(logits)).astype(jnp.float32)
    if not self.edge_level:
      return carry, draw(self._say(states[:, 0]), uniform.T) * allowed[None]

    def sample_edge(self, inputs, drawn):
      edge_carry, last = inputs
      uniform, allowed = drawn
      output, edge_carry = self.edges(nn.relu(self.embed_edge(last[:, None, None])), carry=edge_carry)
      edge = draw(self._say(output[:, 0])[:, 0], uniform) * allowed
      return (edge_carry, edge), edge

    scan = nn.scan(sample_edge, variable_broadcast="params", split_rngs={"params": False}, out_axes=1)
    _, edges = scan(self, (self._begin_edges(states[:, 0]), jnp.ones(len(row))), (uniform, allowed))
    return carry, edges

  def begin(self, batch: int) -> Any:
    """The state before the first node."""
    return tuple(jnp.zeros((batch, self.width)) for _ in range(self.depth))

  def _begin_edges(self, states: Float[Array, "B W"]) -> tuple[Float[Array, "B V"], ...]:
    """The node's state is in the first layer, the others begin from 0."""
    first = self.to_edges(states)
    return (first, *(jnp.zeros_like(first) for _ in range(self.edge_depth - 1)))

  def _say(self, states: Float[Array, "*B W"]) -> Float[Array, "*B M"]:
    return self.out(nn.relu(self.hidden(states)))


def sequence_loss(logits: Float[Array, "N M"], rows: Rows) -> Float[Array, ""]:
  """Minus the logarithm of the probability of a graph in its order, in nats: You et al. 2018."""
  return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, rows.targets) * rows.mask)


def sample_graphs(
  model: GraphRNN, variables: Any, key: Key[Array, ""], count: int, most_nodes: int
) -> tuple[Float[Array, "B N N"], Int[Array, " B"]]:
  """(adjacency, number of nodes) of `count` graphs of 1 to `most_nodes` nodes, as the paper samples them.

  A graph ends before the first node that has no edge to an earlier one.
  """

  def add_node(carry, inputs):
    state, row, alive = carry
    step, key = inputs
    allowed = jnp.arange(model.max_previous) <= step
    state, row = model.apply(variables, state, row, allowed, key, method=GraphRNN.sample_row)
    alive &= jnp.any(row > 0, axis=1)
    return (state, row, alive), (row * alive[:, None], alive)

  steps = most_nodes - 1
  first = model.begin(count), jnp.ones((count, model.max_previous)), jnp.ones(count, bool)
  _, (rows, alive) = jax.lax.scan(add_node, first, (jnp.arange(steps), jax.random.split(key, steps)))
  rows = jnp.concatenate([jnp.zeros((1, count, model.max_previous)), rows]).swapaxes(0, 1)
  return jax.vmap(decode_graph)(rows), 1 + jnp.sum(alive, axis=0, dtype=jnp.int32)
