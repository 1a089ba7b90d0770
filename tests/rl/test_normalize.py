"""Running moments beside NumPy on everything at once; normalisers that stand still within an update."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.engine.errors import InputError
from mlnotes.rl.normalize import compute_scale, discounted_sums, init_moments, normalize, update_moments


def test_moments_of_batches_are_those_of_all_samples():
  rng = np.random.default_rng(0)
  batches = [rng.normal(100, 5, (size, 3)) * [1, 10, 0.1] for size in (7, 1, 40, 13)]
  moments, update = init_moments((3,)), jax.jit(update_moments)
  for batch in batches:
    moments = update(moments, jnp.asarray(batch, jnp.float32))
  everything = np.concatenate(batches)
  np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-5)
  np.testing.assert_allclose(moments.variance, everything.var(0), rtol=1e-4)
  assert moments.count == len(everything)
  scaled = normalize(moments, jnp.asarray(everything, jnp.float32))
  np.testing.assert_allclose(np.mean(scaled, 0), 0, atol=1e-4)
  np.testing.assert_allclose(np.std(scaled, 0), 1, rtol=1e-3)


def test_before_the_first_batch_nothing_is_scaled_and_far_values_are_cut():
  x = jnp.array([[0.5, -3.0], [1e6, -1e6]])
  np.testing.assert_allclose(normalize(init_moments((2,)), x), [[0.5, -3.0], [10.0, -10.0]], rtol=1e-6)


def test_what_has_not_varied_is_not_scaled():
  """First batches and constant ones, of any size: another value afterwards is left as far from the mean as it is."""
  constant = np.float32([0.0, 0.1, -3e4, 1e-3])
  moments, update = init_moments((4,)), jax.jit(update_moments)
  for size in (1, 512, 77):
    moments = update(moments, jnp.broadcast_to(jnp.asarray(constant), (size, 4)))
    np.testing.assert_array_equal(compute_scale(moments), 1)
  # A float32 mean of equal numbers is off by their rounding.
  np.testing.assert_allclose(normalize(moments, jnp.asarray(constant + 0.5)), 0.5, atol=4e-3)
  np.testing.assert_array_equal(compute_scale(init_moments((3,))), 1)
  # One other value, and the scale is the standard deviation.
  moments = update(moments, jnp.asarray(constant + 1)[None])
  varied = np.append(np.zeros(590), 1).std()
  np.testing.assert_allclose(compute_scale(moments), varied, rtol=0.02)


def test_samples_that_are_not_finite_are_left_out():
  rng = np.random.default_rng(1)
  samples = rng.normal(3, 2, (40, 2)).astype(np.float32)
  samples[3, 0], samples[9, 1], samples[20] = np.nan, np.inf, -np.inf
  moments = init_moments((2,))
  for batch in (samples[:10], samples[10:], np.full((5, 2), np.nan, np.float32)):
    moments = update_moments(moments, jnp.asarray(batch))
  kept = samples[np.isfinite(samples).all(1)]
  np.testing.assert_allclose(moments.mean, kept.mean(0), rtol=1e-5)
  np.testing.assert_allclose(moments.variance, kept.var(0), rtol=1e-4)
  assert moments.count == len(kept) == 37


def test_discounted_sums_start_again_with_each_episode():
  reward = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
  last = np.array([[False, True], [True, False], [False, False]])
  after, sums = discounted_sums(jnp.array([10.0, 20.0]), jnp.asarray(reward), jnp.asarray(last), 0.5)
  # Hand: 5+1, then 3+3, then a new episode; the other column ends at once.
  np.testing.assert_allclose(sums, [[6.0, 12.0], [6.0, 4.0], [5.0, 8.0]])
  np.testing.assert_allclose(after, [5.0, 8.0])
  with pytest.raises(InputError, match=r"start \(2,\), reward \(2, 3\), last \(2, 3\): expected start \(N,\)"):
    inspect.unwrap(discounted_sums)(jnp.zeros(2), jnp.asarray(reward.T), jnp.asarray(last.T), 0.5)
