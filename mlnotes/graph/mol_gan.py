"""MolGAN-like: a small graph with types of nodes and edges at once from noise, against a critic of whole graphs.

De Cao & Kipf 2018: a Wasserstein game with a gradient penalty, a relational graph convolution for the critic, discrete
types by a straight-through Gumbel softmax. Their reward for chemical properties is not here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Key

from mlnotes.generative import LOSSES, interpolate

_TINY = 1e-12


class TypedGraphs(NamedTuple):
  """Shares of the types of each pair of nodes and of each node, type 0: nothing there. One-hot where they are drawn."""

  edges: Float[Array, "*B N N R"]
  nodes: Float[Array, "*B N T"]


def make_typed(
  adjacency: Integer[Array, "*B N N"], node_type: Integer[Array, "*B N"], edge_kinds: int, node_kinds: int
) -> TypedGraphs:
  """One-hot, of graphs whose adjacency holds the types of edges; both counts are with type 0."""
  return TypedGraphs(jax.nn.one_hot(adjacency, edge_kinds), jax.nn.one_hot(node_type, node_kinds))


def read_types(graphs: TypedGraphs) -> tuple[Int[Array, "*B N N"], Int[Array, "*B N"]]:
  """(adjacency, node_type): the greatest share of each."""
  return jnp.argmax(graphs.edges, -1), jnp.argmax(graphs.nodes, -1)


def straight_through_gumbel(
  logits: Float[Array, "... K"], noise: Float[Array, "... K"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "... K"]:
  """One-hot of a drawn type, with the gradient of the softmax of (logits + noise) / temperature.

  `noise` is of the standard Gumbel distribution. Jang et al. 2017.
  """
  soft = jax.nn.softmax((logits + noise) / temperature)
  hard = jax.nn.one_hot(jnp.argmax(soft, -1), logits.shape[-1])
  return soft + jax.lax.stop_gradient(hard - soft)


def symmetrize(x: Float[Array, "*B N N R"]) -> Float[Array, "*B N N R"]:
  """The mean of both directions of each pair."""
  return (x + jnp.swapaxes(x, -2, -3)) / 2


def draw_types(
  key: Key[Array, ""],
  edge_logits: Float[Array, "B N N R"],
  node_logits: Float[Array, "B N T"],
  temperature: float | Float[Array, ""] = 1.0,
) -> TypedGraphs:
  """Types of all nodes and pairs, each pair drawn once for both directions, none of a node with itself.

  Differences from the paper: where a node is not there its edges are none, rather than an invalid molecule.
  """
  of_edges, of_nodes = jax.random.split(key)
  noise = jax.random.gumbel(of_edges, edge_logits.shape)
  upper = jnp.triu(jnp.ones(edge_logits.shape[1:3]), 1)[None, :, :, None]
  noise = noise * upper + jnp.swapaxes(noise * upper, 1, 2)
  nodes = straight_through_gumbel(node_logits, jax.random.gumbel(of_nodes, node_logits.shape), temperature)
  there = 1 - nodes[..., :1]
  pairs = (there * jnp.swapaxes(there, 1, 2))[..., None] * (upper + jnp.swapaxes(upper, 1, 2))
  some = straight_through_gumbel(edge_logits, noise, temperature)[..., 1:] * pairs
  return TypedGraphs(jnp.concatenate([1 - jnp.sum(some, -1, keepdims=True), some], -1), nodes)


class MolGenerator(nn.Module):
  """Logits of the types of all pairs and nodes from noise z, (B, Z): dense layers of `hidden` units with tanh."""

  most_nodes: int
  edge_kinds: int
  node_kinds: int
  hidden: tuple[int, ...] = (64, 128)

  @nn.compact
  def __call__(self, z: Float[Array, "B Z"]) -> tuple[Float[Array, "B N N R"], Float[Array, "B N T"]]:
    for width in self.hidden:
      z = jnp.tanh(nn.Dense(width)(z))
    size = self.most_nodes
    edges = nn.Dense(size * size * self.edge_kinds, name="edges")(z).reshape(-1, size, size, self.edge_kinds)
    nodes = nn.Dense(size * self.node_kinds, name="nodes")(z).reshape(-1, size, self.node_kinds)
    return symmetrize(edges), nodes


class RelationalConvolution(nn.Module):
  """tanh( W_0 [h_i, x_i] + sum_j sum_y A_ijy / |N_i| W_y [h_j, x_j] ): a matrix for each type y of edge.

  De Cao & Kipf 2018 (of Schlichtkrull et al. 2018). |N_i| is 1 for a node without neighbours.
  """

  features: int

  @nn.compact
  def __call__(self, edges: Float[Array, "B N N R"], h: Float[Array, "B N D"]) -> Float[Array, "B N F"]:
    some = edges[..., 1:]
    count = jnp.maximum(jnp.sum(some, (2, 3)), 1)[..., None]
    sent = nn.Dense(self.features * some.shape[-1], use_bias=False)(h).reshape(*h.shape[:2], some.shape[-1], -1)
    heard = jnp.einsum("bijy,bjyf->bif", some, sent) / count
    return jnp.tanh(nn.Dense(self.features)(h) + heard)


class MolCritic(nn.Module):
  """A score of each graph, whatever the order of its nodes; `features` of each node and layer, then of the graph.

  With `batch_features` > 0 a score also depends on the mean over the batch of so many learned features, so that a batch
  of graphs that are all alike can be told (as the authors' code discriminates batches).
  """

  features: tuple[int, ...] = (32, 32)
  graph_features: int = 64
  batch_features: int = 16

  def setup(self):
    self.convolutions = [RelationalConvolution(width) for width in self.features]
    self.gate, self.value = nn.Dense(self.graph_features), nn.Dense(self.graph_features)
    self.hidden, self.out = nn.Dense(self.graph_features), nn.Dense(1)
    if self.batch_features:
      self.of_one, self.of_all = nn.Dense(self.batch_features), nn.Dense(self.batch_features)

  def pool(self, graphs: TypedGraphs) -> Float[Array, "B G"]:
    """tanh( sum_i sigmoid(gate_i) * tanh(value_i) ): Li et al. 2016."""
    h = graphs.nodes
    for convolution in self.convolutions:
      h = jnp.concatenate([convolution(graphs.edges, h), graphs.nodes], -1)
    return jnp.tanh(jnp.sum(nn.sigmoid(self.gate(h)) * jnp.tanh(self.value(h)), 1))

  def summarize(self, graphs: TypedGraphs) -> Float[Array, "B S"]:
    """What a batch has in common, the same for each of its graphs; no column without `batch_features`."""
    pooled = self.pool(graphs)
    if not self.batch_features:
      return pooled[:, :0]
    mean = jnp.mean(jnp.tanh(self.of_one(pooled)), 0, keepdims=True)
    return jnp.broadcast_to(jnp.tanh(self.of_all(mean)), (len(pooled), self.batch_features))

  def score(self, graphs: TypedGraphs, summary: Float[Array, "B S"]) -> Float[Array, " B"]:
    h = jnp.concatenate([self.pool(graphs), summary], -1)
    return self.out(jnp.tanh(self.hidden(h)))[:, 0]

  def __call__(self, graphs: TypedGraphs) -> Float[Array, " B"]:
    return self.score(graphs, self.summarize(graphs))


def _flatten(graphs: TypedGraphs) -> Float[Array, "B V"]:
  return jnp.concatenate([part.reshape(len(part), -1) for part in graphs], 1)


def critic_loss(
  critic: MolCritic,
  params: chex.ArrayTree,
  real: TypedGraphs,
  fake: TypedGraphs,
  share: Float[Array, " B"],
  penalty_weight: float | Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """(what the critic pays, metrics): Wasserstein with a penalty on its gradient with respect to all that a graph is.

  Real and generated graphs are batches of their own. The penalty is on the gradient of the sum of the scores at points
  between them, each graph with a share of its own: what a graph does to the others' scores, by what the batch has in
  common, is held as well, or the critic could tell batches apart without a bound.
  """
  apply: Callable[..., Any] = lambda *inputs, method: critic.apply({"params": params}, *inputs, method=method)
  shapes = [part.shape[1:] for part in real]
  split = shapes[0][0] * shapes[0][1] * shapes[0][2]
  unflatten = lambda flat: TypedGraphs(flat[:, :split].reshape(-1, *shapes[0]), flat[:, split:].reshape(-1, *shapes[1]))
  scores = [apply(graphs, method="__call__") for graphs in (real, fake)]
  flat = _flatten(real), _flatten(fake)
  gradients = jax.grad(lambda between: jnp.sum(apply(unflatten(between), method="__call__")))(interpolate(*flat, share))
  norms = jnp.sqrt(jnp.sum(jnp.square(gradients), 1) + _TINY)  # with a gradient of its own at 0
  penalty = jnp.mean(jnp.square(norms - 1))
  adversarial = jnp.mean(LOSSES["wasserstein"].discriminator(*scores))
  metrics = {
    "critic_loss": adversarial,
    "penalty": penalty,
    "real_score": jnp.mean(scores[0]),
    "fake_score": jnp.mean(scores[1]),
  }
  return adversarial + penalty_weight * penalty, metrics


def generator_loss(critic: MolCritic, params: chex.ArrayTree, fake: TypedGraphs) -> Float[Array, ""]:
  """What the generator pays for graphs with this critic: minus their mean score."""
  return jnp.mean(LOSSES["wasserstein"].generator(critic.apply({"params": params}, fake)))
