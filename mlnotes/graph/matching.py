"""Which node of a graph is which of another: soft by max-pooling matching, then one to one. All on the device."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Num

from mlnotes.generative import bernoulli_log_prob


def max_pooling_matching(
  adjacency: Num[Array, "N N"],
  num_nodes: Int[Array, ""],
  edges: Float[Array, "K K"],
  nodes: Float[Array, " K"],
  iterations: int = 30,
) -> Float[Array, "N K"]:
  """How well node i of a graph fits node a of one known by probabilities of `edges` and `nodes`; 0 for padding.

    x_ia <- ( x_ia S_ia,ia + sum_j max_b x_jb S_ia,jb ) / |x|_2                        Cho et al. 2014
    S_ia,jb = A_ij A~_ab A~_aa A~_bb  (i != j, a != b)                   Simonovsky & Komodakis 2018
    S_ia,ia = A~_aa / (1 + |d_i - d~_a|),   d~_a the expected degree of a

  S is a product of what is between i, j and between a, b, so that it is never written out: N K^2 + N^2 K numbers at a
  time, not N^2 K^2. Differences from the paper: no types of nodes and edges, in whose place its GraphRNN authors'
  version puts the degrees, without which two nodes with any neighbours fit alike; 30 iterations, not 75.
  """
  real = (jnp.arange(len(adjacency)) < num_nodes).astype(jnp.float32)
  joined = (adjacency > 0).astype(jnp.float32) * (1 - jnp.eye(len(adjacency)))
  pairs = edges * nodes[None] * nodes[:, None] * (1 - jnp.eye(len(nodes)))
  apart = jnp.abs(jnp.sum(joined, 1)[:, None] - jnp.sum(edges * nodes[None] * (1 - jnp.eye(len(nodes))), 1)[None])
  own = nodes[None] / (1 + apart)

  def iterate(x, _):
    best = jnp.max(x[:, None, :] * pairs[None], axis=2)  # of j's fits at a: the b that suits it best
    x = (x * own + joined @ best) * real[:, None]
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12), None

  start = jnp.ones((len(adjacency), len(nodes))) * real[:, None] / jnp.maximum(num_nodes, 1)
  return jax.lax.scan(iterate, start, length=iterations)[0]


def assign_nodes(fit: Float[Array, "N N"]) -> Int[Array, " N"]:
  """For each row a column of its own, such that the sum of what `fit` has there is the greatest: Kuhn 1955.

  By the Hungarian algorithm of `optax.assignment`, without a callback to the host.
  """
  rows, columns = optax.assignment.hungarian_algorithm(-fit)
  return jnp.zeros(len(fit), jnp.int32).at[rows].set(columns.astype(jnp.int32))


def place_nodes(adjacency: Num[Array, "N N"], place: Int[Array, " N"]) -> Num[Array, "N N"]:
  """The same graph with node i at place[i]."""
  order = jnp.argsort(place)
  return adjacency[order][:, order]


def graph_log_likelihood(
  adjacency: Num[Array, "N N"],
  there: Float[Array, " N"],
  edge_logits: Float[Array, "N N"],
  node_logits: Float[Array, " N"],
) -> Float[Array, ""]:
  """log p of a graph whose nodes are each there, and whose pairs of nodes that are there are joined, independently.

  In nats; `there` is 1 for a node and 0 for none, `edge_logits` is symmetric.
  """
  pairs = there[:, None] * there[None] * (1 - jnp.eye(len(there)))
  edges = jnp.sum(pairs * bernoulli_log_prob((adjacency > 0).astype(jnp.float32), edge_logits)) / 2
  return jnp.sum(bernoulli_log_prob(there, node_logits)) + edges


def improve_places(
  place: Int[Array, " N"],
  adjacency: Num[Array, "N N"],
  num_nodes: Int[Array, ""],
  edge_logits: Float[Array, "N N"],
  node_logits: Float[Array, " N"],
  rounds: int = 4,
) -> Int[Array, " N"]:
  """`place`, or other places under which `graph_log_likelihood` is higher.

  Each round assigns the nodes anew by the gradient of the log-likelihood with respect to the matrix of the last
  places (Vogelstein et al. 2015 begin as much), and keeps what is better.
  """
  real = (jnp.arange(len(place)) < num_nodes).astype(jnp.float32)
  joined = (adjacency > 0).astype(jnp.float32) * (1 - jnp.eye(len(place)))
  others = real[:, None] * real[None] * (1 - jnp.eye(len(place)))
  score = lambda place: graph_log_likelihood(
    place_nodes(adjacency, place), real[jnp.argsort(place)], edge_logits, node_logits
  )

  def improve(inputs, _):
    place, best = inputs
    at = jax.nn.one_hot(place, len(place))
    gain = joined @ at @ edge_logits - others @ at @ jax.nn.softplus(edge_logits) + real[:, None] * node_logits[None]
    other = assign_nodes(gain)
    found = score(other)
    return (jnp.where(found > best, other, place), jnp.maximum(found, best)), None

  return jax.lax.scan(improve, (place, score(place)), length=rounds)[0][0]
