"""Scores and distances of generated examples: against closed forms, SciPy, scikit-learn and brute force."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats
from sklearn.datasets import make_moons
from sklearn.metrics.pairwise import polynomial_kernel

from mlnotes import generative


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def test_kernel_distance_is_the_unbiased_estimate_with_scikit_learns_kernel(rng):
  x, y = rng.normal(size=(7, 4)), rng.normal(size=(5, 4)) + 1
  pairs = lambda a: polynomial_kernel(a, degree=3)[~np.eye(len(a), dtype=bool)].mean()
  expected = pairs(x) + pairs(y) - 2 * polynomial_kernel(x, y, degree=3).mean()
  assert generative.kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_0_on_average_and_the_same_for_parts(rng):
  draws = [generative.kernel_distance(*rng.normal(size=(2, 30, 3))) for _ in range(200)]
  assert abs(np.mean(draws)) < 3 * np.std(draws) / math.sqrt(200) and min(draws) < 0
  x, y = rng.normal(size=(2, 200, 3))
  whole = generative.kernel_distance(x, y + 1)
  assert generative.kernel_distance(x, y + 1, size=100, num_subsets=40) == pytest.approx(whole, rel=0.1)
  with pytest.raises(ValueError, match="size must be from 2 to 200"):
    generative.kernel_distance(x, y, size=201)


def test_density_and_coverage_count_balls(rng):
  real, fake, k = rng.normal(size=(9, 2)), rng.normal(size=(6, 2)), 2
  radius = np.sort(scipy.spatial.distance.cdist(real, real), axis=1)[:, k]
  inside = scipy.spatial.distance.cdist(real, fake) <= radius[:, None]
  found = generative.density_coverage(real, fake, k)
  assert found == pytest.approx((inside.sum() / (k * 6), inside.any(axis=1).mean()))
  assert generative.density_coverage(real, real + 100, k) == (0, 0)


def test_density_and_coverage_of_one_distribution_are_those_of_the_paper(rng):
  """Density 1; coverage 1 - (N - 1) .. (N - k) / ((2N - 1) .. (2N - k)), from the ranks of mixed distances."""
  size, k = 150, 5
  found = np.mean([generative.density_coverage(*rng.normal(size=(2, size, 3)), k) for _ in range(20)], axis=0)
  expected = 1 - np.prod([(size - i) / (2 * size - i) for i in range(1, k + 1)])
  assert found[0] == pytest.approx(1, abs=0.05) and found[1] == pytest.approx(expected, abs=0.02)
  same = rng.normal(size=(20, 3))
  assert generative.density_coverage(same, same)[1] == 1 and generative.density_coverage(same, same)[0] > 1


def test_inception_score_is_1_to_the_number_of_classes():
  assert generative.inception_score(np.tile(np.eye(4), (25, 1)), num_splits=1)[0] == pytest.approx(4)
  assert generative.inception_score(np.full((40, 4), 0.25)) == pytest.approx((1, 0))
  ordered = np.repeat(np.eye(5), 40, axis=0)  # a file sorted by class: splits in order would score 1
  assert generative.inception_score(ordered, num_splits=5)[0] > 4.5


def test_inception_score_is_the_mutual_information(rng):
  p = rng.dirichlet(np.ones(3), size=50)
  information = scipy.stats.entropy(p.mean(axis=0)) - scipy.stats.entropy(p, axis=1).mean()
  assert generative.inception_score(p, num_splits=1)[0] == pytest.approx(math.exp(information), rel=1e-9)
  with pytest.raises(ValueError, match=r"pass softmax\(logits\)"):
    generative.inception_score(rng.normal(size=(20, 3)))
  with pytest.raises(ValueError, match="num_splits must be from 1 to 50"):
    generative.inception_score(p, num_splits=51)


# Modes.


@pytest.mark.parametrize("make, modes", [("make_ring", 8), ("make_grid", 25), ("make_moons", 2)])
def test_real_points_lie_on_their_modes_as_often_as_gaussians_do(make, modes):
  mixture = getattr(generative, make)()
  keys = jax.random.split(jax.random.key(0), 4000)
  points, label = jax.jit(jax.vmap(lambda key: generative.draw_point(key, mixture)))(keys)
  found = generative.find_modes(points, mixture)
  on_mode = np.asarray(found >= 0)
  assert mixture.num_modes == modes
  if modes > 2:  # arcs have no ends to fall off at the sides
    assert on_mode.mean() == pytest.approx(1 - math.exp(-4.5), abs=0.005)
  assert np.mean(np.asarray(found)[on_mode] == np.asarray(label)[on_mode]) > 0.995
  counts = generative.count_modes(np.asarray(found), modes)
  assert counts.caught == modes and counts.high_quality == pytest.approx(on_mode.mean())
  assert counts.divergence == pytest.approx((modes - 1) / (2 * on_mode.sum()), rel=1.5)


def test_moons_are_those_of_scikit_learn():
  points, label = make_moons(200, noise=0, random_state=0)
  found = generative.find_modes(jnp.asarray(points, jnp.float32), generative.make_moons(0.01))
  np.testing.assert_array_equal(found, label)


def test_mode_counts_are_histograms_and_their_divergence_scipys():
  mode = np.array([0, 0, 0, 2, -1, -1])
  found = generative.count_modes(mode, 3)
  np.testing.assert_allclose(found.share, [0.5, 0, 1 / 6])
  assert (found.caught, found.high_quality) == (2, pytest.approx(2 / 3))
  assert found.divergence == pytest.approx(scipy.stats.entropy([0.75, 0, 0.25], np.full(3, 1 / 3)))
  assert generative.count_modes(np.zeros(5, int), 8).divergence == pytest.approx(math.log(8))
  assert math.isnan(generative.count_modes(np.full(5, -1), 8).divergence)
  with pytest.raises(ValueError, match="modes up to 3, expected below 3"):
    generative.count_modes(np.array([3]), 3)


def test_stacked_digits_have_a_thousand_modes():
  classes = np.array([[0, 0, 0], [9, 9, 9], [1, 2, 3]])
  np.testing.assert_array_equal(generative.stack_modes(classes), [0, 999, 123])


def test_the_birthday_test_finds_the_support_of_a_uniform_distribution(rng):
  support, size = 400, 25
  examples = rng.integers(0, support, (20_000, 1)).astype(float)
  found = generative.birthday_test(examples, size, distance=0.5, num_batches=600)
  expected = 1 - np.prod(1 - np.arange(size) / support)
  assert found.collisions == pytest.approx(expected, abs=0.06)
  assert found.support == pytest.approx(support, rel=0.25)
  spread = generative.birthday_test(np.arange(100.0)[:, None], 10, distance=0.5, num_batches=20)
  assert spread.collisions == 0 and spread.support == math.inf
  with pytest.raises(ValueError, match="size must be from 2 to 3"):
    generative.birthday_test(np.zeros((3, 1)), 4, 0.1)


# Divergences.


def test_jensen_shannon_is_scipys_and_has_a_gradient_at_0(rng):
  p, q = rng.dirichlet(np.ones(5), size=2)
  found = generative.jensen_shannon(jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32))
  assert float(found) == pytest.approx(scipy.spatial.distance.jensenshannon(p, q) ** 2, rel=1e-4)
  apart = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
  assert float(generative.jensen_shannon(*apart)) == pytest.approx(math.log(2))


def test_wasserstein_on_the_line_is_scipys(rng):
  x, y = rng.normal(size=(2, 40)).astype(np.float32)
  found = generative.wasserstein_1d(jnp.asarray(x), jnp.asarray(2 * y + 1))
  assert float(found) == pytest.approx(scipy.stats.wasserstein_distance(x, 2 * y + 1), rel=1e-5)


def test_parallel_lines_are_those_of_the_paper():
  theta = jnp.array([-0.5, 0.0, 2.0])
  lines = generative.parallel_lines(theta)
  np.testing.assert_allclose(lines.jensen_shannon, [math.log(2), 0, math.log(2)], rtol=1e-6)
  np.testing.assert_array_equal(lines.wasserstein, [0.5, 0, 2])
  np.testing.assert_array_equal(lines.kullback_leibler, [np.inf, 0, np.inf])
  np.testing.assert_array_equal(lines.wasserstein_gradient, [-1, 0, 1])
  # Optimal transport between points of the two lines, by assignment.
  height = np.random.default_rng(0).uniform(size=30)
  real, fake = (np.stack([np.full(30, x), height], axis=1) for x in (0.0, 2.0))
  cost = scipy.spatial.distance.cdist(real, fake)
  rows, columns = scipy.optimize.linear_sum_assignment(cost)
  assert cost[rows, columns].mean() == pytest.approx(2)
