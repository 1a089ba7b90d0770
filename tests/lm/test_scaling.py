"""Scaling laws: planted constants, their spread, the best size at a budget."""

import numpy as np
import pytest

from mlnotes.lm.scaling import ScalingLaw, _objective, bootstrap_scaling_law, compute_optimal, fit_scaling_law

PLANTED = ScalingLaw(1.69, 406.4, 410.7, 0.34, 0.28)


def runs(noise=0.0, seed=0):
  n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e5, 1e9, 5), np.geomspace(1e7, 1e11, 5)))
  rng = np.random.default_rng(seed)
  return n, d, PLANTED(n, d) * np.exp(noise * rng.normal(size=n.size))


def test_planted_constants_are_found():
  law, value = fit_scaling_law(*runs())
  np.testing.assert_allclose(law, PLANTED, rtol=2e-2)
  np.testing.assert_allclose((law.e, law.alpha, law.beta), (PLANTED.e, PLANTED.alpha, PLANTED.beta), rtol=5e-3)
  assert value < 1e-8


def test_the_least_is_reached_whatever_the_noise():
  """Where one or the other term is small a fit that stops early gives beta .45: over Hoffmann et al.'s own range."""
  n, d = (x.ravel() for x in np.meshgrid(np.geomspace(7e7, 1.6e10, 6), np.geomspace(5e9, 5e11, 5)))
  loss = PLANTED(n, d) * np.exp(0.001 * np.random.default_rng(0).normal(size=n.size))
  law, value = fit_scaling_law(n, d, loss)
  np.testing.assert_allclose((law.e, law.alpha, law.beta), (PLANTED.e, PLANTED.alpha, PLANTED.beta), rtol=2e-2)
  assert value < 0.5 * np.sum(np.log(loss / PLANTED(n, d)) ** 2)


def test_an_outlier_moves_little():
  n, d, loss = runs()
  loss[7] *= 1.5
  law, _ = fit_scaling_law(n, d, loss)
  np.testing.assert_allclose((law.alpha, law.beta), (PLANTED.alpha, PLANTED.beta), rtol=3e-2)


def test_the_gradient_is_that_of_differences():
  n, d, loss = runs(0.1)
  x, arguments = np.array([5.0, 5.5, 0.4, 0.3, 0.31]), (np.log(n), np.log(d), np.log(loss))
  value, found = _objective(x, *arguments)
  steps = 1e-6 * np.eye(5)
  expected = [(_objective(x + s, *arguments)[0] - _objective(x - s, *arguments)[0]) / 2e-6 for s in steps]
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert value > 0


def test_the_spread_of_draws_holds_what_was_planted():
  laws = bootstrap_scaling_law(*runs(0.005, 3), draws=20)
  low, high = min(x.alpha for x in laws), max(x.alpha for x in laws)
  assert low < PLANTED.alpha < high and 0.002 < high - low < 0.2
  assert len(laws) == 20 and len(set(laws)) == 20


def test_the_best_size_at_a_budget_is_that_of_a_search():
  flops = 1e20
  size, data = compute_optimal(PLANTED, flops)
  assert 6 * size * data == pytest.approx(flops)
  sizes = np.geomspace(size / 100, size * 100, 20001)
  best = sizes[np.argmin(PLANTED(sizes, flops / 6 / sizes))]
  assert size == pytest.approx(best, rel=2e-3)


@pytest.mark.parametrize(("count", "off", "sentence"), [(4, 0, "4 losses"), (25, 9, "loss of 0 or less")])
def test_too_little_to_fit(count, off, sentence):
  n, d, loss = (x[:count] for x in runs())
  with pytest.raises(ValueError, match=sentence):
    fit_scaling_law(n, d, loss - off)
