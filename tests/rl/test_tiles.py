"""Tile coding against Sutton's tiles3 as he describes it, and the Fourier basis against what makes it one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.rl import tiles

BOXES = [
  ((-1.2, -0.07), (0.6, 0.07), 8, 8),
  ((0.0,), (10.0,), 5, 3),
  ((-1.0, 0.0, 2.0), (1.0, 4.0, 3.0), 16, (4, 2, 3)),
]


def tiles3(scaled, num_tilings):
  """Active tiles of a point in tile widths: (tiling, coordinates...), as the index hash table of tiles3 gets them."""
  quantized = [math.floor(x * num_tilings) for x in scaled]
  active = []
  for tiling in range(num_tilings):
    coordinates, shift = [tiling], tiling
    for q in quantized:
      coordinates.append((q + shift) // num_tilings)
      shift += 2 * tiling
    active.append(tuple(coordinates))
  return active


def points(tiling, count, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(tiling.low, tiling.high, (count, len(tiling.low))).astype(np.float32)


def indices(tiling, x):
  return np.asarray(jax.jit(jax.vmap(lambda x: tiles.tile_indices(tiling, x)))(jnp.asarray(x, jnp.float32)))


@pytest.mark.parametrize("box", BOXES)
def test_the_partition_of_the_box_is_that_of_tiles3(box):
  """The two numberings are one to one: points share a tile here exactly where they share one there."""
  tiling = tiles.make_tiling(*box)
  x = points(tiling, 3000)
  low, high, per_dim = (np.asarray(a, np.float32) for a in (tiling.low, tiling.high, tiling.tiles_per_dim))
  ours, forward, backward = indices(tiling, x), {}, {}
  for row, scaled in zip(ours, (x - low) / (high - low) * per_dim):
    for mine, theirs in zip(row.tolist(), tiles3(scaled.tolist(), tiling.num_tilings)):
      assert forward.setdefault(mine, theirs) == theirs
      assert backward.setdefault(theirs, mine) == mine
  assert len(forward) > tiling.num_tilings * (np.prod(per_dim) - 1)


@pytest.mark.parametrize("box", BOXES)
def test_one_tile_of_each_tiling_is_active_and_all_tiles_lie_in_range(box):
  tiling = tiles.make_tiling(*box)
  corners = np.array(np.meshgrid(*zip(tiling.low, tiling.high))).reshape(len(tiling.low), -1).T
  active = indices(tiling, np.concatenate([points(tiling, 500), corners]))
  per_tiling = tiling.num_features // tiling.num_tilings
  np.testing.assert_array_equal(active // per_tiling, np.broadcast_to(np.arange(tiling.num_tilings), active.shape))
  assert active.min() >= 0 and active.max() < tiling.num_features


def test_points_outside_count_as_those_on_the_border():
  tiling = tiles.make_tiling(*BOXES[0])
  outside = np.array([[-5.0, 0.0], [9.0, 1.0], [0.0, -1.0]])
  border = np.clip(outside, tiling.low, tiling.high)
  np.testing.assert_array_equal(indices(tiling, outside), indices(tiling, border))


def test_what_is_not_a_number_has_no_value():
  for tiling in (tiles.make_tiling(*BOXES[0]), tiles.make_tiling(*BOXES[0], 64)):
    weights = jnp.arange(2.0 * tiling.num_features).reshape(-1, 2)
    value = lambda x, tiling=tiling, weights=weights: tiles.compute_linear_value(
      weights, tiles.tile_indices(tiling, jnp.array(x))
    )
    assert np.isnan(value([np.nan, 0.0])).all() and np.isfinite(value([np.inf, 0.0])).all()


ACROBOT = (*tiles.OBSERVATION_BOUNDS["Acrobot-v1"], 16, 8)


def test_more_tiles_than_weights_share_them_evenly():
  """Six dimensions, 8.5 million tiles: no more weights than asked for, each about as often used as another."""
  tiling = tiles.make_tiling(*ACROBOT, 2**12)
  assert tiling.num_tiles == 16 * 9**6 and tiling.num_features == 2**12
  x = points(tiling, 20_000)
  active = indices(tiling, x)
  assert active.min() >= 0 and active.max() < 2**12
  count = np.bincount(active.reshape(-1), minlength=2**12)
  # Points fall into tiles of their own here: a multinomial, whose variance is its mean.
  assert 0.9 < count.var() / count.mean() < 1.3
  # Near points share the tiles that they share without hashing, and as good as no others.
  exact = tiles.make_tiling(*ACROBOT, 2**24)
  near = np.clip(x[:500] + np.random.default_rng(1).normal(size=(500, 6)).astype(np.float32) * 0.02, *ACROBOT[:2])
  shares = lambda tiling: indices(tiling, x[:500]) == indices(tiling, near.astype(np.float32))
  hashed, apart = shares(tiling), shares(exact)
  assert np.all(hashed[apart]) and hashed[~apart].mean() < 0.01 and 0.05 < apart.mean() < 0.95


def test_generalization_reaches_one_tile_to_either_side_and_falls_off_evenly():
  """In one dimension a point at distance d (in tiles) shares 1 - d of the tilings, on both sides."""
  tiling = tiles.make_tiling((0.0,), (10.0,), 10, 10)
  offsets = np.arange(-15, 16) / 10
  around = indices(tiling, (5.05 + offsets)[:, None])
  shared = [np.isin(row, around[15]).sum() for row in around]
  np.testing.assert_array_equal(shared, np.maximum(0, 10 - np.abs(np.arange(-15, 16))))


def test_generalization_in_two_dimensions_is_even_on_average():
  """Over all positions within a tile: 8 (1 - |d_0|) (1 - |d_1|) shared tilings at distance d, in tiles."""
  tiling = tiles.make_tiling((0.0, 0.0), (8.0, 8.0), 8, 8)
  within = np.array([(i, j) for i in range(8) for j in range(8)]) / 8 + 1 / 16
  centres = indices(tiling, 4 + within)
  for step in [(0, 0), (0.5, 0), (0, -0.25), (0.25, 0.5), (-0.25, 0.5), (-0.875, -0.125), (1, 0), (-1.5, 0.5)]:
    moved = indices(tiling, 4 + within + np.array(step))
    expected = 8 * max(0, 1 - abs(step[0])) * max(0, 1 - abs(step[1]))
    assert (moved == centres).sum(1).mean() == pytest.approx(expected), step


def test_a_linear_value_is_the_sum_of_the_active_weights():
  weights = jnp.arange(20.0).reshape(10, 2)
  active = jnp.array([1, 4, 9])
  np.testing.assert_allclose(tiles.compute_linear_value(weights, active), [2 + 8 + 18, 3 + 9 + 19])
  np.testing.assert_allclose(tiles.compute_linear_value(weights[:, 0], active), 28)


def test_tile_coding_fits_a_function_of_two_variables():
  """Least squares over the active tiles of sin x + cos y: close between the fitted points, too."""
  tiling = tiles.make_tiling((0.0, 0.0), (6.0, 6.0), 8, 8)
  design = lambda x: np.eye(tiling.num_features)[indices(tiling, x)].sum(1)
  target = lambda x: np.sin(x[:, 0]) + np.cos(x[:, 1])
  fit, test = points(tiling, 4000), points(tiling, 500, seed=1)
  weights = np.linalg.lstsq(design(fit), target(fit), rcond=1e-6)[0]
  assert np.abs(design(test) @ weights - target(test)).max() < 0.15


@pytest.mark.parametrize(
  "make", [lambda a, b: tiles.make_tiling(a, b, 4, 4), lambda a, b: tiles.make_fourier_basis(a, b, 2)]
)
@pytest.mark.parametrize("low, high", [((0.0,), (0.0,)), ((0.0, 0.0), (1.0,)), ((0.0,), (math.inf,))])
def test_bounds_that_are_no_box_are_refused(make, low, high):
  with pytest.raises(ValueError, match="low"):
    make(low, high)


def test_counts_below_one_are_refused():
  for count, per_dim in ((0, 4), (4, 0), (4, (4,))):
    with pytest.raises(ValueError, match="tilings"):
      tiles.make_tiling((0.0, 0.0), (1.0, 1.0), count, per_dim)
  with pytest.raises(ValueError, match="order"):
    tiles.make_fourier_basis((0.0,), (1.0,), -1)


def features_of(basis, x):
  return np.asarray(jax.jit(jax.vmap(lambda x: tiles.fourier_features(basis, x)))(jnp.asarray(x, jnp.float32)))


def test_the_fourier_basis_is_orthogonal_over_an_interval():
  """Integrals of products by the midpoint rule: 0 off the diagonal, 1 for the constant, 1/2 for the others."""
  basis = tiles.make_fourier_basis((-1.0,), (3.0,), 5)
  x = -1 + 4 * (np.arange(200)[:, None] + 0.5) / 200
  features = features_of(basis, x)
  np.testing.assert_allclose(features.T @ features / 200, np.diag([1, 0.5, 0.5, 0.5, 0.5, 0.5]), atol=1e-5)


def test_the_fourier_basis_of_two_variables_is_made_of_those_of_one():
  """cos(a + b) = cos a cos b - sin a sin b, with a and b from the two dimensions alone; points outside are clipped."""
  basis = tiles.make_fourier_basis((-1.0, 0.0), (1.0, 5.0), 3)
  x = np.random.default_rng(0).uniform((-1.5, -1), (1.5, 6), (50, 2))
  unit = (np.clip(x, basis.low, basis.high) - basis.low) / np.subtract(basis.high, basis.low)
  angle = np.pi * np.arange(4)[:, None, None] * unit
  cos, sin = np.cos(angle), np.sin(angle)
  expected = [cos[i, :, 0] * cos[j, :, 1] - sin[i, :, 0] * sin[j, :, 1] for i in range(4) for j in range(4)]
  np.testing.assert_allclose(features_of(basis, x), np.stack(expected, 1), atol=1e-5)
  assert basis.num_features == 16


def test_fourier_step_sizes_fall_with_the_frequency():
  basis = tiles.make_fourier_basis((0.0, 0.0), (1.0, 1.0), 4)
  scale = {tuple(c): s for c, s in zip(basis.coefficients.astype(int).tolist(), basis.step_scale)}
  assert scale[0, 0] == scale[1, 0] == 1 and scale[3, 4] == pytest.approx(0.2)
