"""Metrics of an embedding against SciPy, NumPy and constructions with known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.neighbors import KNeighborsClassifier

from mlnotes.contrastive.knn import compute_knn_accuracy, knn_votes
from mlnotes.contrastive.metrics import alignment, effective_rank, embedding_spread, participation_ratio, uniformity


@pytest.fixture
def features():
  return jnp.float32(np.random.default_rng(0).normal(size=(40, 6)))


def test_uniformity_is_that_of_scipys_pairwise_distances(features):
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  expected = np.log(np.mean(np.exp(-2 * pdist(unit, "sqeuclidean"))))
  np.testing.assert_allclose(uniformity(features), expected, rtol=1e-4)
  np.testing.assert_allclose(uniformity(jnp.ones((8, 3))), 0, atol=1e-5)


def test_alignment_of_equal_and_opposite_views(features):
  np.testing.assert_allclose(alignment(features, 3 * features), 0, atol=1e-6)
  np.testing.assert_allclose(alignment(features, -features), 4, rtol=1e-5)


def test_spread_is_one_on_the_sphere_and_zero_when_collapsed(key):
  even = jax.random.normal(key, (5000, 16))
  np.testing.assert_allclose(embedding_spread(even), 1, atol=0.02)
  np.testing.assert_allclose(embedding_spread(jnp.ones((10, 4))), 0, atol=1e-6)


def test_padding_is_left_out(features):
  padded = jnp.concatenate([features, jnp.repeat(features[-1:], 25, axis=0)])
  mask = jnp.arange(65) < 40
  for metric in (embedding_spread, participation_ratio):
    np.testing.assert_allclose(metric(padded, mask.astype(jnp.float32)), metric(features), rtol=1e-5)


@pytest.mark.parametrize("size", [4, 40])
def test_participation_ratio_is_that_of_the_covariances_eigenvalues(features, size):
  eigenvalues = np.linalg.eigvalsh(np.cov(np.asarray(features[:size]).T))
  np.testing.assert_allclose(
    participation_ratio(features[:size]), eigenvalues.sum() ** 2 / np.sum(eigenvalues**2), rtol=1e-4
  )


def test_effective_rank_of_orthogonal_and_of_parallel_rows(features):
  np.testing.assert_allclose(effective_rank(jnp.eye(6)), 6, rtol=1e-4)
  np.testing.assert_allclose(effective_rank(jnp.outer(jnp.arange(1.0, 9.0), jnp.ones(6))), 1, rtol=1e-3)


def test_knn_votes_are_those_of_scikit_learn(features):
  labels = np.random.default_rng(1).integers(0, 3, 40)
  queries = np.random.default_rng(2).normal(size=(25, 6)).astype(np.float32)
  weigh = lambda distance: np.exp((1 - distance) / 0.1)
  reference = KNeighborsClassifier(7, metric="cosine", weights=weigh).fit(features, labels)
  votes = knn_votes(jnp.asarray(queries), features, jnp.asarray(labels), 3, k=7, temperature=0.1)
  np.testing.assert_allclose(
    votes / votes.sum(1, keepdims=True), reference.predict_proba(queries), rtol=1e-3, atol=1e-5
  )
  truth = np.random.default_rng(3).integers(0, 3, 25)
  accuracy = compute_knn_accuracy(queries, truth, np.asarray(features), labels, 3, k=7, temperature=0.1, chunk=10)
  assert accuracy == reference.score(queries, truth)


def test_knn_ignores_padding(features):
  labels = jnp.arange(40) % 3
  padded = jnp.concatenate([features, features[:5]])
  mask = jnp.concatenate([jnp.ones(40), jnp.zeros(5)])
  more = jnp.concatenate([labels, jnp.full(5, 2)])
  expected = knn_votes(features, features, labels, 3, k=5)
  np.testing.assert_allclose(knn_votes(features, padded, more, 3, k=5, mask=mask), expected, rtol=1e-5)


def test_knn_needs_a_neighbour(features):
  with pytest.raises(ValueError, match="k=0 is out of range"):
    knn_votes(features, features, jnp.arange(40) % 3, 3, k=0)
