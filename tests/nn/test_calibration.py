"""Sums of calibration and confusion against scikit-learn and loops; the sums of parts are those of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix as sklearn_confusion

from mlnotes.nn import calibration_bins, confusion_matrix, expected_calibration_error, maximum_calibration_error

B, K, M = 400, 5, 10


def make():
  rng = np.random.default_rng(0)
  probabilities = rng.dirichlet(np.full(K, 0.5), B).astype(np.float32)
  return probabilities, np.where(rng.random(B) < 0.7, probabilities.argmax(1), rng.integers(0, K, B))


def test_errors_equal_a_loop_and_scikit_learn():
  probabilities, labels = make()
  bins = jax.jit(calibration_bins, static_argnums=2)(probabilities, labels, M)
  confidence, right = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == labels
  gaps, weights = [], []
  for m in range(M):
    inside = (confidence > m / M) & (confidence <= (m + 1) / M)
    if inside.any():
      gaps.append(abs(right[inside].mean() - confidence[inside].mean()))
      weights.append(inside.mean())
  np.testing.assert_allclose(expected_calibration_error(bins), np.dot(gaps, weights), rtol=1e-5)
  np.testing.assert_allclose(maximum_calibration_error(bins), max(gaps), rtol=1e-5)
  accuracy, mean = calibration_curve(right, confidence, n_bins=M)
  held = np.asarray(bins.count) > 0
  np.testing.assert_allclose((bins.correct / bins.count)[held], accuracy, rtol=1e-6)
  np.testing.assert_allclose((bins.confidence / bins.count)[held], mean, rtol=1e-5)


def test_sums_add_over_batches_and_padding_counts_nowhere():
  probabilities, labels = map(jnp.asarray, make())
  whole = calibration_bins(probabilities, labels, M)
  where = jnp.arange(B) < 300
  padded = jnp.where(where[:, None], probabilities, jnp.nan)
  parts = calibration_bins(padded, labels, M, where) + calibration_bins(probabilities[300:], labels[300:], M)
  for a, b in zip(parts, whole):
    np.testing.assert_allclose(a, b, rtol=1e-5)
  predictions = jnp.argmax(probabilities, -1)
  first, rest = (confusion_matrix(labels, predictions, K, w) for w in (where, ~where))
  np.testing.assert_array_equal(first + rest, sklearn_confusion(labels, predictions))


def test_the_ends_of_the_bins():
  certain = jnp.eye(2)[jnp.array([0, 0, 1, 1])]
  perfect = calibration_bins(certain, jnp.array([0, 0, 1, 1]), 4)
  np.testing.assert_array_equal(perfect.count, [0, 0, 0, 4])
  assert expected_calibration_error(perfect) == 0 == maximum_calibration_error(perfect)
  wrong = calibration_bins(certain, jnp.array([1, 1, 0, 0]), 4)
  assert expected_calibration_error(wrong) == 1 == maximum_calibration_error(wrong)
  half = calibration_bins(jnp.full((4, 2), 0.5), jnp.array([0, 0, 1, 1]), 4)
  np.testing.assert_array_equal(half.count, [0, 4, 0, 0])
  assert expected_calibration_error(half) == 0


def test_nothing_and_nan_are_not_zero():
  nothing = calibration_bins(jnp.ones((2, 2)) / 2, jnp.zeros(2, int), 4, jnp.zeros(2, bool))
  assert jnp.isnan(expected_calibration_error(nothing)) and jnp.isnan(maximum_calibration_error(nothing))
  broken = calibration_bins(jnp.array([[jnp.nan, jnp.nan], [0.9, 0.1]]), jnp.zeros(2, int), 4)
  assert jnp.isnan(expected_calibration_error(broken)) and jnp.isnan(maximum_calibration_error(broken))
  with pytest.raises(ValueError, match="num_bins=0"):
    calibration_bins(jnp.ones((2, 2)) / 2, jnp.zeros(2, int), 0)


def test_rows_are_true_classes_and_numbers_that_are_none_count_nowhere():
  labels, predictions = jnp.array([0, 0, 1, 2, -1, 3, 1]), jnp.array([0, 1, 1, 0, 0, 0, 7])
  matrix = confusion_matrix(labels, predictions, 3)
  np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 1, 0], [1, 0, 0]])
  assert matrix.dtype == jnp.int32
