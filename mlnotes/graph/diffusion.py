"""Layers on random walks, DCNN and the diffusion convolution of DCRNN, and the first of all: NN4G."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.graph.convolution import Linear, Nodes, count_rows, propagate
from mlnotes.graph.edges import Edges, normalize_edges, reverse_edges


def diffuse(
  edges: Edges, x: Float[Array, "N D"], steps: int, weights: Float[Array, " E"] | None = None
) -> Float[Array, "N H D"]:
  """x, P x, .., P^steps x side by side, P = D^-1 A: what a walker of each length meets on average."""
  weights = normalize_edges(edges, x.shape[0], "row") if weights is None else weights
  _, found = jax.lax.scan(lambda h, _: (h := propagate(edges, weights, h), h), x, length=steps)
  return jnp.moveaxis(jnp.concatenate([x[None], found]), 0, 1)


class DiffusionConvolution(nn.Module):
  """tanh(W * P^j X), j = 0 .. H - 1, an elementwise weight for each power and feature: DCNN, Atwood & Towsley 2016.

  `powers` is H. The features are the raw ones, so that what
  `diffuse` gives is computed once.
  """

  powers: int = 3

  @nn.compact
  def __call__(self, diffused: Float[Array, "N H D"]) -> Float[Array, "N HD"]:
    shape = (self.powers, diffused.shape[2])
    weights = self.param("weights", nn.initializers.normal(1.0), shape)
    return jnp.tanh(weights[None] * diffused).reshape(diffused.shape[0], -1)


class DualDiffusion(nn.Module):
  """sum_k (P_out^k X W_k + P_in^k X W'_k), k = 0 .. K: diffusion convolution (DGC), Li et al. 2018 (DCRNN), eq. 2.

  P_out = D_out^-1 A walks along the edges, P_in = D_in^-1 A^T against them; of an undirected graph the two are one, and
  `both` = False leaves the second out. `steps` is K. A sum over steps, each with its weights, and the step 0 is one.
  """

  features: int
  steps: int = 2
  both: bool = True
  use_bias: bool = True

  @nn.compact
  def __call__(self, edges: Edges, x: Nodes) -> Float[Array, "N F"]:
    size = count_rows(x)
    # A walker that stands at i goes on to the receivers of i's edges: it takes the mean of what these have.
    ways = (reverse_edges(edges), edges)[: 1 + self.both]
    y = 0.0
    for way, name in zip(ways, ("forward", "backward")):
      h = Linear((self.steps + 1) * self.features, use_bias=False, name=name)(x)
      h = jnp.moveaxis(h.reshape(size, self.steps + 1, self.features), 1, 0)
      y = y + walk_sum(way, normalize_edges(way, size, "row"), h)
    return y + self.param("bias", nn.initializers.zeros, (self.features,))[None] if self.use_bias else y


def walk_sum(edges: Edges, weights: Float[Array, " E"], terms: Float[Array, "K N ..."]) -> Float[Array, "N ..."]:
  """sum_k P^k terms_k with K - 1 products, by Horner's rule; P is the matrix of the `weights`."""
  total = terms[-1]
  for term in terms[-2::-1]:
    total = term + propagate(edges, weights, total)
  return total


class NeuralNetworkForGraphs(nn.Module):
  """h_i = f(W_i x + sum_{j < i} V_ij sum of the neighbours' h_j): NN4G, Micheli 2009, sec. III.

  Every layer sees the node's input label and the neighbour sums of all layers before it; the first sees the label
  alone. Gives all layers side by side, as its readout takes them. Differences from the paper: here the layers may learn
  together, the paper adds one at a time and freezes it.
  """

  features: int
  layers: int = 3

  @nn.compact
  def __call__(self, edges: Edges, x: Nodes) -> Float[Array, "N LF"]:
    size, found, sums = count_rows(x), [], []
    labels = Linear(self.layers * self.features, name="label")(x).reshape(size, self.layers, self.features)
    for i in range(self.layers):
      h = labels[:, i]
      if sums:
        h = h + Linear(self.features, use_bias=False, name=f"context_{i}")(jnp.concatenate(sums, axis=1))
      found.append(jnp.tanh(h))
      if i + 1 < self.layers:
        sums.append(propagate(edges, edges.mask, found[-1]))
    return jnp.concatenate(found, axis=1)
