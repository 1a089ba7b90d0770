"""Filters of a graph's spectrum: free ones on eigenvectors (Bruna et al. 2014), polynomials without any (ChebNet)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mlnotes.engine.errors import InputError
from mlnotes.graph.convolution import Linear, Nodes, count_rows, propagate
from mlnotes.graph.edges import Edges, normalize_edges
from mlnotes.nn.initializers import glorot


def dense_laplacian(edges: Edges, num_nodes: int) -> Float[np.ndarray, "N N"]:
  """I - D^-1/2 A D^-1/2 in float64, on the host; 1 on the diagonal also of a node without neighbours."""
  weights = np.asarray(normalize_edges(edges, num_nodes), np.float64)
  matrix = np.eye(num_nodes)
  np.subtract.at(matrix, (np.asarray(edges.receivers), np.asarray(edges.senders)), weights)
  return matrix


def laplacian_basis(
  edges: Edges, num_nodes: int, count: int | None = None
) -> tuple[Float[Array, " M"], Float[Array, "N M"]]:
  """(eigenvalues, eigenvectors) of the normalised Laplacian, the smoothest `count` (all without it), on the host.

  Of *this* graph alone: signs, and rotations within an eigenvalue, are free. Costs N^3.
  """
  values, vectors = np.linalg.eigh(dense_laplacian(edges, num_nodes))
  return jnp.asarray(values[:count], jnp.float32), jnp.asarray(vectors[:, :count], jnp.float32)


def spectral_filter(
  vectors: Float[Array, "N M"], response: Float[Array, " M"], x: Float[Array, "N D"]
) -> Float[Array, "N D"]:
  """U g(Lambda) U^T x, with response = g(Lambda)."""
  return vectors @ (response[:, None] * (vectors.T @ x))


class SpectralConvolution(nn.Module):
  """U (sum_i g_ij(Lambda) U^T x_i): Bruna et al. 2014, sec. 3, a filter for each pair of features in and out.

  Each g is linear between `knots` places that are spread evenly over [0, 2], so that it is smooth, and its number of
  weights does not hang on the graph's size (their sec. 3.2: smooth filters are local). What is not in the basis is
  lost. Differences from the paper: no coarsening, piecewise linear in the place of cubic splines.
  """

  features: int
  knots: int = 8

  @nn.compact
  def __call__(
    self, values: Float[Array, " M"], vectors: Float[Array, "N M"], x: Float[Array, "N D"]
  ) -> Float[Array, "N F"]:
    if self.knots < 2:
      raise InputError(f"SpectralConvolution: knots={self.knots}, expected 2 or more.")
    weights = self.param("kernel", glorot(), (self.knots, x.shape[1], self.features))
    response = interpolate_response(values, weights)
    return vectors @ jnp.einsum("mi,mio->mo", vectors.T @ x, response)


def interpolate_response(values: Float[Array, " M"], weights: Float[Array, "K *rest"]) -> Float[Array, "M *rest"]:
  """The response at eigenvalues `values` in [0, 2] of a filter that is `weights` at places spread evenly over it."""
  at = jnp.clip(values, 0, 2) * (weights.shape[0] - 1) / 2
  hat = jax.nn.relu(1 - jnp.abs(at[:, None] - jnp.arange(weights.shape[0])[None]))
  return jnp.tensordot(hat, weights, 1)


def chebyshev_sum(edges: Edges, weights: Float[Array, " E"], terms: Float[Array, "K N ..."]) -> Float[Array, "N ..."]:
  """sum_k T_k(L~) terms_k with K - 1 products, by Clenshaw's recurrence; L~ is the matrix of the `weights`.

  b_k = terms_k + 2 L~ b_(k+1) - b_(k+2),   the sum is terms_0 + L~ b_1 - b_2
  """
  after, latest = jnp.zeros_like(terms[0]), jnp.zeros_like(terms[0])
  for term in terms[:0:-1]:
    after, latest = latest, term + 2 * propagate(edges, weights, latest) - after
  return terms[0] + propagate(edges, weights, latest) - after if terms.shape[0] > 1 else terms[0]


class ChebyshevConvolution(nn.Module):
  """sum_{k < K} T_k(L~) X W_k, L~ = 2 L / lambda_max - I: ChebNet, Defferrard et al. 2016, eq. 4-5.

  `terms` is K, which reaches neighbours K - 1 steps away. lambda_max = 2 bounds the spectrum of the normalised
  Laplacian, so that L~ is -D^-1/2 A D^-1/2 with a diagonal of 0; `weights` are the entries of another L~, its diagonal
  those of loops.
  """

  features: int
  terms: int = 3
  use_bias: bool = True

  @nn.compact
  def __call__(self, edges: Edges, x: Nodes, weights: Float[Array, " E"] | None = None) -> Float[Array, "N F"]:
    size = count_rows(x)
    if weights is None:
      edges = edges._replace(mask=edges.mask * (edges.senders != edges.receivers))
      weights = -normalize_edges(edges, size)
    h = Linear(self.terms * self.features, use_bias=False, name="linear")(x)
    h = jnp.moveaxis(h.reshape(size, self.terms, self.features), 1, 0)
    y = chebyshev_sum(edges, weights, h)
    return y + self.param("bias", nn.initializers.zeros, (self.features,))[None] if self.use_bias else y
