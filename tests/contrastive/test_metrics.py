"""Metrics of an embedding against SciPy, NumPy and constructions with known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.neighbors import KNeighborsClassifier

from mlnotes.contrastive.knn import choose_k, compute_knn_accuracy, knn_votes
from mlnotes.contrastive.loss import require_same_shape
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


def test_what_is_not_finite_stays_so(features):
  """A metric that is a number where its features are none would be compared, ranked and kept as the best."""
  labels = np.arange(120) % 3
  bank = np.random.default_rng(1).normal(size=(120, 6)).astype(np.float32)
  broken = bank.copy()
  broken[5, 2] = np.nan
  own = np.arange(40) % 3
  for queries, searched in ((np.full((40, 6), np.nan, np.float32), bank), (np.asarray(features), broken)):
    assert np.isnan(compute_knn_accuracy(queries, own, searched, labels, 3, k=5, chunk=16))
  for metric in (uniformity, embedding_spread, participation_ratio, effective_rank):
    assert np.isnan(metric(jnp.asarray(broken))) and np.isfinite(metric(jnp.asarray(bank))), metric
  masked = (jnp.arange(120) != 5).astype(jnp.float32)
  for metric in (embedding_spread, participation_ratio):
    assert np.isfinite(metric(jnp.asarray(broken), masked)), metric


def test_arrays_that_would_be_broadcast_are_refused(features):
  """Also where nothing checks the annotations: behind `__wrapped__` is what a user calls."""
  labels = jnp.arange(40) % 3
  with pytest.raises(ValueError, match=r"alignment got arrays of shape \(40, 6\) and \(1, 6\): expected one shape"):
    require_same_shape("alignment", features, features[:1])
  with pytest.raises(ValueError, match=r"labels of shape \(20,\): expected \(40,\), one for each of bank"):
    knn_votes.__wrapped__(features, features, labels[:20], 3)
  with pytest.raises(ValueError, match=r"labels of shape \(20,\): expected \(40,\)"):
    compute_knn_accuracy.__wrapped__(np.asarray(features), np.arange(20), np.asarray(features), np.asarray(labels), 3)


def test_the_number_of_neighbours_follows_the_data_that_is_there():
  assert [choose_k(200, size) for size in (50_000, 1437, 64, 5)] == [200, 143, 6, 1]
