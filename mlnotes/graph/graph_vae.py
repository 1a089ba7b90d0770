"""GraphVAE: a whole small graph at once from one latent vector, as the probabilities of its nodes and its edges.

Simonovsky & Komodakis 2018. What is decoded has its nodes in some order, the graph in another: the likelihood is that
of the graph with its nodes put where they fit, by matching, or in an order of its own (`Order`).
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from mlnotes.generative import GaussianPosterior, split_posterior
from mlnotes.graph.graph_rnn import order_breadth_first
from mlnotes.graph.matching import (
  assign_nodes,
  graph_log_likelihood,
  improve_places,
  max_pooling_matching,
  place_nodes,
)

# matching: by max-pooling matching and the Hungarian algorithm, then improved. breadth_first: in the order of a search
# from the node of the greatest degree. degree: from the greatest to the least. Ties by the nodes' numbers in the data.
Order = Literal["matching", "breadth_first", "degree"]


class GraphEncoder(nn.Module):
  """2 `latents` numbers of a graph, whatever the order of its nodes: sums over neighbours, then a gated sum of nodes.

    h_i <- relu( W h_i + V sum_j A_ij h_j / mean degree ),   sum_i sigmoid(g(h_i)) * tanh(f(h_i))

  Differences from the paper: no types, so no filters made from them; the degree is what a node begins from.
  """

  latents: int
  width: int = 32
  depth: int = 2

  @nn.compact
  def __call__(self, adjacency: Num[Array, "N N"], num_nodes: Int[Array, ""]) -> Float[Array, " D2"]:
    edges = (adjacency > 0).astype(jnp.float32)
    real = (jnp.arange(len(edges)) < num_nodes).astype(jnp.float32)[:, None]
    degree = jnp.sum(edges, 1, keepdims=True)
    mean = jnp.maximum(jnp.sum(degree) / jnp.maximum(num_nodes, 1), 1)
    h = jnp.concatenate([degree / mean, jnp.ones_like(degree)], 1) * real
    for _ in range(self.depth):
      h = nn.relu(nn.Dense(self.width)(h) + nn.Dense(self.width, use_bias=False)(edges @ h / mean)) * real
    gate = nn.sigmoid(nn.Dense(2 * self.width)(h))
    pooled = jnp.sum(real * gate * jnp.tanh(nn.Dense(2 * self.width)(h)), 0)
    whole = jnp.stack([num_nodes.astype(jnp.float32) / len(edges), mean / len(edges)])
    h = nn.relu(nn.Dense(2 * self.width)(jnp.concatenate([pooled, whole])))
    return nn.Dense(2 * self.latents)(h)


class GraphVAE(nn.Module):
  """Encoder and decoder of graphs of at most `most_nodes` nodes; the decoder has dense layers of `hidden` units."""

  most_nodes: int
  latents: int = 16
  width: int = 32
  hidden: tuple[int, ...] = (128, 256)

  def setup(self):
    self.encoder = GraphEncoder(self.latents, self.width)
    self.layers = [nn.Dense(width) for width in self.hidden]
    self.nodes = nn.Dense(self.most_nodes)
    self.edges = nn.Dense(self.most_nodes * (self.most_nodes - 1) // 2)

  def encode(self, adjacency: Num[Array, "B N N"], num_nodes: Int[Array, " B"]) -> GaussianPosterior:
    """q(z|G)."""
    return split_posterior(
      nn.vmap(lambda encoder, *graph: encoder(*graph), variable_axes={"params": None}, split_rngs={"params": False})(
        self.encoder, adjacency, num_nodes
      )
    )

  def decode(self, z: Float[Array, "B D"]) -> tuple[Float[Array, "B N N"], Float[Array, "B N"]]:
    """(logits of edges, symmetric with a diagonal of 0, logits of nodes)."""
    for layer in self.layers:
      z = nn.relu(layer(z))
    upper = jnp.triu_indices(self.most_nodes, 1)
    edges = jnp.zeros((len(z), self.most_nodes, self.most_nodes)).at[:, upper[0], upper[1]].set(self.edges(z))
    return edges + edges.swapaxes(1, 2), self.nodes(z)

  def __call__(self, adjacency: Num[Array, "B N N"], num_nodes: Int[Array, " B"]) -> Any:
    return self.decode(self.encode(adjacency, num_nodes).mean)


def choose_places(
  order: Order,
  adjacency: Num[Array, "N N"],
  num_nodes: Int[Array, ""],
  edge_logits: Float[Array, "N N"],
  node_logits: Float[Array, " N"],
  iterations: int = 30,
  rounds: int = 4,
) -> Int[Array, " N"]:
  """Where each node of a graph stands in what is decoded. No gradient passes.

  `iterations` of max-pooling matching and `rounds` of improvement; rounds of 0 are the paper's.
  """
  adjacency, edge_logits, node_logits = jax.lax.stop_gradient((adjacency, edge_logits, node_logits))
  if order == "matching":
    fit = max_pooling_matching(
      adjacency, num_nodes, jax.nn.sigmoid(edge_logits), jax.nn.sigmoid(node_logits), iterations
    )
    return improve_places(assign_nodes(fit), adjacency, num_nodes, edge_logits, node_logits, rounds)
  degree = jnp.sum(adjacency > 0, 1) - (jnp.arange(len(adjacency)) >= num_nodes)
  falling = jnp.argsort(-degree)
  if order == "breadth_first":
    falling = falling[order_breadth_first(adjacency[falling][:, falling], num_nodes)]
  return jnp.argsort(falling).astype(jnp.int32)


def placed_log_likelihood(
  adjacency: Num[Array, "N N"],
  num_nodes: Int[Array, ""],
  place: Int[Array, " N"],
  edge_logits: Float[Array, "N N"],
  node_logits: Float[Array, " N"],
) -> Float[Array, ""]:
  """log p(G|z) of the graph with node i at place[i], in nats.

  Differences from the paper: sums, not means, over nodes and pairs, so that with the KL it is a bound; pairs with a
  node that is not there cost nothing.
  """
  there = (jnp.arange(len(adjacency)) < num_nodes).astype(jnp.float32)[jnp.argsort(place)]
  return graph_log_likelihood(place_nodes(adjacency, place), there, edge_logits, node_logits)


def draw_graphs(
  key: Key[Array, ""], edge_logits: Float[Array, "B N N"], node_logits: Float[Array, "B N"]
) -> tuple[Float[Array, "B N N"], Int[Array, " B"]]:
  """(adjacency, number of nodes): each node and each pair of nodes that are there drawn by itself; nodes first."""
  of_nodes, of_edges = jax.random.split(key)
  there = jax.random.bernoulli(of_nodes, jax.nn.sigmoid(node_logits))
  edges = jnp.triu(jax.random.bernoulli(of_edges, jax.nn.sigmoid(edge_logits)), 1)
  edges = (edges | edges.swapaxes(1, 2)) & there[:, :, None] & there[:, None]
  order = jnp.argsort(~there, axis=1)
  edges = jax.vmap(lambda edges, order: edges[order][:, order])(edges, order)
  return edges.astype(jnp.float32), jnp.sum(there, 1, dtype=jnp.int32)
