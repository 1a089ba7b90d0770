"""Piecewise linear curves against NumPy's interpolation."""

import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn import piecewise


@pytest.mark.parametrize("count", [2, 3, 9])
def test_hard_sigmoids_and_relus_through_points_are_the_interpolation(count):
  rng = np.random.default_rng(count)
  x, y = np.cumsum(rng.uniform(0.1, 1, count)).astype(np.float32), rng.normal(size=count).astype(np.float32)
  places = np.linspace(x[0] - 1, x[-1] + 1, 200, dtype=np.float32)
  curve = piecewise.through_points(jnp.asarray(x), jnp.asarray(y))
  assert curve.height.shape == (count - 1,)
  places = jnp.asarray(places)
  np.testing.assert_allclose(curve(places[:, None])[:, 0], np.interp(places, x, y), atol=1e-5)
  relus = piecewise.as_relus(curve)
  assert relus.slope.shape == (2 * (count - 1),)
  np.testing.assert_allclose(relus(places), np.interp(places, x, y), atol=1e-4)


@pytest.mark.parametrize("times", [0, 1, 2, 5])
def test_folds_are_a_triangle_wave_with_as_many_pieces_as_units_of_one_layer(times):
  x = np.linspace(0, 1, 2**times * 8 + 1, dtype=np.float32)
  corners = np.arange(2**times + 1)
  wave = np.interp(x * 2**times, corners, corners % 2) if times else x
  np.testing.assert_allclose(piecewise.fold(jnp.asarray(x), times), wave, atol=1e-5)
  flat = piecewise.unfold(times)
  assert flat.slope.shape == (2**times,)
  np.testing.assert_allclose(flat(jnp.asarray(x)), wave, atol=1e-5)
  assert piecewise.count_pieces(x, wave) == 2**times


def test_a_kink_between_places_of_the_grid_counts_once():
  x = np.linspace(0, 1, 101)
  assert piecewise.count_pieces(x, np.abs(x - 0.503)) == 2
  assert piecewise.count_pieces(x, np.zeros(101)) == 1
  # Where the slope only changes a little, it is a rounding.
  assert piecewise.count_pieces(x, x + 1e-7 * np.abs(x - 0.5)) == 1


@pytest.mark.parametrize("x", [[0.0], [0.0, 0.0], [1.0, 0.0]])
def test_points_must_stand_in_order(x):
  with pytest.raises(ValueError, match="that grow"):
    piecewise.through_points(jnp.asarray(x), jnp.asarray(x))
