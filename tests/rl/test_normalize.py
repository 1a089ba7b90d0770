"""Running moments beside NumPy on everything at once; normalisers that stand still within an update."""

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.rl.normalize import discounted_sums, init_moments, normalize, update_moments


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


def test_discounted_sums_start_again_with_each_episode():
  reward = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
  last = np.array([[False, True], [True, False], [False, False]])
  after, sums = discounted_sums(jnp.array([10.0, 20.0]), jnp.asarray(reward), jnp.asarray(last), 0.5)
  # Hand: 5+1, then 3+3, then a new episode; the other column ends at once.
  np.testing.assert_allclose(sums, [[6.0, 12.0], [6.0, 4.0], [5.0, 8.0]])
  np.testing.assert_allclose(after, [5.0, 8.0])
