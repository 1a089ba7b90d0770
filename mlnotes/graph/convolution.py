"""Layers that sum or average what neighbours say: GCN, SGC, APPNP, GCNII, GIN, GraphSAGE.

Every layer of the chapter is called as `layer(edges, x)`. Three arguments more are for those who prepare a graph once:
`weights` of the edges, which are then taken as they are, loops included; `num_nodes`, how many nodes are computed, the
first of those in x (all without it), so that a layer may know neighbours of which it computes nothing; and x may be a
`SparseMatrix`, whose first product then costs what is there alone.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from mlnotes.graph.edges import (
  Edges,
  add_self_loops,
  max_edges,
  mean_edges,
  normalize_edges,
)
from mlnotes.graph.neighbors import tabulate_edges
from mlnotes.graph.sparse import SparseMatrix, sparse_dot, to_dense
from mlnotes.nn.initializers import glorot

Nodes = Float[Array, "N D"] | SparseMatrix
Aggregator = Literal["mean", "max", "lstm"]


def count_rows(x: Nodes) -> int:
  return x.height if isinstance(x, SparseMatrix) else x.shape[0]


def count_columns(x: Nodes) -> int:
  return x.width if isinstance(x, SparseMatrix) else x.shape[1]


class Linear(nn.Module):
  """x @ kernel + bias, of a dense or a sparse x."""

  features: int
  use_bias: bool = True
  kernel_init: Initializer = glorot()

  @nn.compact
  def __call__(self, x: Nodes) -> Float[Array, "N F"]:
    kernel = self.param("kernel", self.kernel_init, (count_columns(x), self.features))
    y = sparse_dot(x, kernel) if isinstance(x, SparseMatrix) else jnp.asarray(x) @ kernel
    return y + self.param("bias", nn.initializers.zeros, (self.features,))[None] if self.use_bias else y


def propagate(
  edges: Edges, weights: Float[Array, " E"], x: Float[Array, "N ..."], num_nodes: int | None = None
) -> Float[Array, "R ..."]:
  """The weighted sum of x over the neighbours of each node: the adjacency of these weights times x."""
  sent = x[edges.senders]
  kept, weights = (a.reshape(a.shape + (1,) * (sent.ndim - 1)) for a in (edges.mask > 0, weights))
  return jax.ops.segment_sum(
    jnp.where(kept, weights * sent, 0), edges.receivers, x.shape[0] if num_nodes is None else num_nodes
  )


def renormalize(edges: Edges, num_nodes: int) -> tuple[Edges, Float[Array, " F"]]:
  """(edges with a loop at each node, weights D~^-1/2 A~ D~^-1/2). Kipf & Welling 2017: the renormalisation."""
  looped = add_self_loops(edges, num_nodes)
  return looped, normalize_edges(looped, num_nodes, "symmetric")


def _prepared(edges: Edges, weights: Float[Array, " E"] | None, size: int) -> tuple[Edges, Float[Array, " F"]]:
  return renormalize(edges, size) if weights is None else (edges, weights)


class GraphConvolution(nn.Module):
  """A^ X W, A^ = D~^-1/2 (A + I) D~^-1/2: GCN, Kipf & Welling 2017, eq. 2.

  Without a bias, as in the authors' code. `edges` with their `weights` are taken as they are; without weights loops are
  added, once, and the renormalised weights are computed.
  """

  features: int
  use_bias: bool = False

  @nn.compact
  def __call__(
    self, edges: Edges, x: Nodes, weights: Float[Array, " E"] | None = None, num_nodes: int | None = None
  ) -> Float[Array, "R F"]:
    edges, weights = _prepared(edges, weights, count_rows(x))
    y = propagate(edges, weights, Linear(self.features, use_bias=False, name="linear")(x), num_nodes)
    return y + self.param("bias", nn.initializers.zeros, (self.features,))[None] if self.use_bias else y


class InitialResidual(nn.Module):
  """((1 - a) A^ h + a h_0) ((1 - b) I + b W), b = log(lambda / depth + 1): GCNII, Chen et al. 2020.

  `first` is what the first layer was given, projected to the width of h, for the nodes of x or more; `depth` counts the
  layers from 1.
  """

  depth: Float[Array, ""] | int
  alpha: float = 0.1
  decay: float = 0.5

  @nn.compact
  def __call__(
    self,
    edges: Edges,
    x: Float[Array, "N D"],
    first: Float[Array, "M D"],
    weights: Float[Array, " E"] | None = None,
    num_nodes: int | None = None,
  ) -> Float[Array, "R D"]:
    size = x.shape[0] if num_nodes is None else num_nodes
    edges, weights = _prepared(edges, weights, x.shape[0])
    mixed = (1 - self.alpha) * propagate(edges, weights, x, size) + self.alpha * first[:size]
    beta = jnp.log(self.decay / self.depth + 1)
    return (1 - beta) * mixed + beta * Linear(x.shape[1], use_bias=False, name="linear")(mixed)


def propagate_powers(
  edges: Edges, x: Float[Array, "N D"], steps: int, weights: Float[Array, " E"] | None = None
) -> Float[Array, "N D"]:
  """A^^steps x: SGC's features, Wu et al. 2019, which a logistic regression then tells apart."""
  edges, weights = _prepared(edges, weights, x.shape[0])
  return jax.lax.fori_loop(0, steps, lambda _, h: propagate(edges, weights, h), x)


def personalized_pagerank(
  edges: Edges,
  x: Float[Array, "N D"],
  steps: int = 10,
  teleport: Float[Array, ""] | float = 0.1,
  weights: Float[Array, " E"] | None = None,
) -> Float[Array, "N D"]:
  """z <- (1 - a) A^ z + a x from z = x, `steps` times: APPNP, Gasteiger et al. 2019; a is the chance to go back."""
  edges, weights = _prepared(edges, weights, x.shape[0])
  step = lambda _, z: (1 - teleport) * propagate(edges, weights, z) + teleport * x
  return jax.lax.fori_loop(0, steps, step, x)


class GraphIsomorphism(nn.Module):
  """network((1 + eps) x + sum of the neighbours' x): GIN, Xu et al. 2019, eq. 4.1.

  The network is two layers with ReLU between, `hidden` (as many as `features` without it) and `features` wide, or
  `network`, called with the sum. Where it is the layer's own, the sum is taken behind its first product, which is the
  same and costs less. eps starts at 0 and is learned where `learned` says so; the paper finds 0 as good.
  """

  features: int
  hidden: int | None = None
  learned: bool = False
  network: nn.Module | None = None

  @nn.compact
  def __call__(self, edges: Edges, x: Nodes, num_nodes: int | None = None) -> Float[Array, "R F"]:
    size = count_rows(x) if num_nodes is None else num_nodes
    eps = self.param("eps", nn.initializers.zeros, ()) if self.learned else 0.0
    add = lambda h: (1 + eps) * h[:size] + propagate(edges, edges.mask, h, size)
    if self.network is not None:
      return self.network(add(x))
    width = self.hidden or self.features
    h = add(Linear(width, use_bias=False, name="linear_0")(x))
    h = nn.relu(h + self.param("bias", nn.initializers.zeros, (width,))[None])
    return Linear(self.features, name="linear_1")(h)


class GraphSage(nn.Module):
  """W [x, aggregate of the neighbours] + b, then rows of length 1: GraphSAGE, Hamilton et al. 2017, alg. 1.

  mean: of the neighbours. max: of relu(W' x + b') over them, `pool_features` wide (as x without it), eq. 3. lstm: the
  last state of an LSTM that reads the neighbours in a random order, another one each time, from the stream "order"
  (in the order of the edges where there is no such stream), at most `most_neighbors` of them, drawn at random where
  there are more. A node without neighbours has the aggregate 0.
  """

  features: int
  aggregator: Aggregator = "mean"
  normalize: bool = True
  pool_features: int | None = None
  most_neighbors: int = 25

  @nn.compact
  def __call__(self, edges: Edges, x: Nodes, num_nodes: int | None = None) -> Float[Array, "R F"]:
    size = count_rows(x) if num_nodes is None else num_nodes
    own = Linear(self.features, name="self")(x)[:size]
    of_neighbors = Linear(self.features, use_bias=False, name="neighbors")
    if self.aggregator == "mean":  # the mean of products is the product of the mean
      h = own + mean_edges(edges, of_neighbors(x)[edges.senders], size)
    else:
      h = own + of_neighbors(self._pool(edges, x, size) if self.aggregator == "max" else self._read(edges, x, size))
    return h / jnp.maximum(jnp.sqrt(jnp.sum(h**2, -1, keepdims=True) + 1e-24), 1e-12) if self.normalize else h

  def _pool(self, edges: Edges, x: Nodes, size: int) -> Float[Array, "R P"]:
    h = nn.relu(Linear(self.pool_features or count_columns(x), name="pool")(x))
    return max_edges(edges, h[edges.senders], size)

  def _read(self, edges: Edges, x: Nodes, size: int) -> Float[Array, "R P"]:
    x = to_dense(x)
    key = self.make_rng("order") if self.has_rng("order") else None
    table, count = tabulate_edges(edges, size, self.most_neighbors, key)
    cell = nn.OptimizedLSTMCell(x.shape[1])
    read = nn.RNN(cell, return_carry=True, name="lstm")
    (_, last), _ = read(x[table], seq_lengths=jnp.maximum(count, 1))
    return jnp.where(count[:, None] > 0, last, 0)
