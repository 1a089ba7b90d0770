"""Filters of the spectrum: polynomials against the eigen-decomposition, and what a free filter can and cannot do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes import graph
from mlnotes.engine.errors import InputError

N, D = 8, 3
RNG = np.random.default_rng(0)
WEIGHTS = np.triu(RNG.uniform(0.2, 2.0, (N, N)) * (RNG.uniform(size=(N, N)) < 0.5), 1)
WEIGHTS = WEIGHTS + WEIGHTS.T
X = jnp.asarray(RNG.normal(size=(N, D)), jnp.float32)


def edges_of(matrix):
  receivers, senders = np.nonzero(matrix)
  return graph.make_edges(
    jnp.asarray(senders), jnp.asarray(receivers), jnp.asarray(matrix[receivers, senders], jnp.float32)
  )


def laplacian(matrix):
  root = np.diag(matrix.sum(1) ** -0.5)
  return np.eye(len(matrix)) - root @ matrix @ root


@pytest.mark.parametrize("k", range(7))
def test_polynomials_are_filters_of_the_spectrum(k):
  """T_k(L~) x on a graph with weights: cos(k arccos(lambda - 1)) on the eigenvectors."""
  edges = edges_of(WEIGHTS)
  terms = jnp.zeros((k + 1, N, D)).at[k].set(X)
  found = graph.chebyshev_sum(edges, -graph.normalize_edges(edges, N), terms)
  values, vectors = np.linalg.eigh(laplacian(WEIGHTS))
  response = np.cos(k * np.arccos(np.clip(values - 1, -1, 1)))
  np.testing.assert_allclose(found, vectors @ (response[:, None] * (vectors.T @ np.asarray(X))), atol=1e-5)


def test_the_spectrum_is_in_zero_to_two():
  bipartite = np.kron(np.array([[0, 1], [1, 0]]), np.ones((3, 3)))
  values, vectors = graph.laplacian_basis(edges_of(bipartite), 6)
  np.testing.assert_allclose(values[jnp.array([0, -1])], [0, 2], atol=1e-6)
  np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), atol=1e-6)
  np.testing.assert_allclose(graph.dense_laplacian(edges_of(WEIGHTS), N), laplacian(WEIGHTS), atol=1e-6)


def test_graphs_side_by_side_are_filtered_each_alone():
  both = np.zeros((2 * N, 2 * N))
  other = np.roll(np.eye(N), 1, 1) + np.roll(np.eye(N), -1, 1)
  both[:N, :N], both[N:, N:] = WEIGHTS > 0, other
  layer = graph.ChebyshevConvolution(4, terms=4)
  x = jnp.concatenate([X, 2 * X])
  params = layer.init(jax.random.key(0), edges_of(both), x)
  found = layer.apply(params, edges_of(both), x)
  for place, matrix in ((slice(0, N), WEIGHTS > 0), (slice(N, None), other)):
    np.testing.assert_allclose(found[place], layer.apply(params, edges_of(matrix * 1.0), x[place]), atol=1e-5)


def test_a_constant_filter_is_a_dense_layer_and_signs_are_free():
  values, vectors = graph.laplacian_basis(edges_of(WEIGHTS), N)
  layer = graph.SpectralConvolution(2, knots=5)
  kernel = jax.random.normal(jax.random.key(1), (D, 2))
  flat = {"params": {"kernel": jnp.broadcast_to(kernel, (5, D, 2))}}
  np.testing.assert_allclose(layer.apply(flat, values, vectors, X), X @ kernel, atol=1e-5)
  params = layer.init(jax.random.key(2), values, vectors, X)
  signs = jnp.where(jnp.arange(N) % 2 == 0, 1.0, -1.0)
  np.testing.assert_allclose(
    layer.apply(params, values, signs[None] * vectors, X), layer.apply(params, values, vectors, X), atol=1e-5
  )


def test_a_filter_that_is_the_eigenvalue_is_the_laplacian():
  values, vectors = graph.laplacian_basis(edges_of(WEIGHTS), N)
  layer = graph.SpectralConvolution(D, knots=9)
  line = jnp.linspace(0, 2, 9)[:, None, None] * jnp.eye(D)[None]
  found = layer.apply({"params": {"kernel": line}}, values, vectors, X)
  np.testing.assert_allclose(found, laplacian(WEIGHTS) @ np.asarray(X), atol=1e-5)
  np.testing.assert_allclose(graph.spectral_filter(vectors, values, X), laplacian(WEIGHTS) @ np.asarray(X), atol=1e-5)


def test_few_eigenvectors_lose_what_is_rough():
  _, vectors = graph.laplacian_basis(edges_of(WEIGHTS), N, 3)
  assert vectors.shape == (N, 3)
  kept = graph.spectral_filter(vectors, jnp.ones(3), X)
  np.testing.assert_allclose(graph.spectral_filter(vectors, jnp.ones(3), kept), kept, atol=1e-5)
  assert np.linalg.norm(kept) < 0.95 * np.linalg.norm(X)


def test_a_filter_by_place_in_the_spectrum_does_not_move_to_another_graph():
  """Responses that are learned for this graph's eigenvectors mean something else on another's."""
  ring = np.roll(np.eye(N), 1, 1) + np.roll(np.eye(N), -1, 1)
  response = jnp.asarray(RNG.normal(size=N), jnp.float32)
  operators = []
  for matrix in (WEIGHTS, ring):
    _, vectors = graph.laplacian_basis(edges_of(matrix), N)
    operators.append(graph.spectral_filter(vectors, response, jnp.eye(N)))
  assert np.abs(operators[0] - operators[1]).max() > 0.3


def test_knots_are_two_or_more():
  values, vectors = graph.laplacian_basis(edges_of(WEIGHTS), N)
  with pytest.raises(InputError, match="knots=1, expected 2 or more"):
    graph.SpectralConvolution(2, knots=1).init(jax.random.key(0), values, vectors, X)
