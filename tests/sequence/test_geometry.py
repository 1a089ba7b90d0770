"""Hulls against SciPy, tours against all permutations, areas and crossings against cases by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import ConvexHull

from mlnotes.sequence import (
  NO_POINT,
  Polygon,
  convex_hull,
  is_simple,
  nearest_neighbor_tour,
  same_polygon,
  sample_points,
  shortest_tour,
  signed_area,
  tour_length,
)

SQUARE = np.float32([[0, 0], [1, 0], [1, 1], [0, 1]])

hull, area, simple = (jax.jit(function) for function in (convex_hull, signed_area, is_simple))


@pytest.fixture(scope="module")
def sets():
  """(points (60, 9, 2), counts (60,)) from 3 to 9."""
  points = jax.jit(jax.vmap(lambda key: sample_points(key, 9)))(jax.random.split(jax.random.key(0), 60))
  return np.asarray(points), np.arange(60) % 7 + 3


def polygon(*indices, size=None):
  size = size or len(indices)
  return Polygon(np.array([*indices, *[NO_POINT] * (size - len(indices))]), np.array(len(indices)))


def test_points_are_on_the_grid_that_makes_turns_exact():
  points = np.asarray(sample_points(jax.random.key(1), 500))
  np.testing.assert_array_equal(points * 4096, np.round(points * 4096))
  assert points.min() >= 0 and points.max() < 1 and abs(points.mean() - 0.5) < 0.03


def test_hulls_are_those_of_scipy_from_the_lowest_index_counter_clockwise(sets):
  found = jax.jit(jax.vmap(convex_hull))(*sets)
  for points, count, indices, size in zip(*sets, *map(np.asarray, found)):
    corners = list(ConvexHull(points[:count].astype(np.float64)).vertices)  # counter-clockwise
    first = corners.index(min(corners))
    assert list(indices[:size]) == corners[first:] + corners[:first]
    assert np.all(indices[size:] == NO_POINT)


@pytest.mark.parametrize(
  ("points", "corners"),
  [
    ([[0, 0], [0.5, 0], [1, 0], [1, 1], [0, 1]], [0, 2, 3, 4]),  # one on a side
    ([[0.5, 0.5], [0, 0], [1, 1], [0.25, 0.25]], [1, 2]),  # all on a line
    ([[0, 0], [1, 0], [1, 0], [0, 1], [0, 0]], [0, 1, 3]),  # two at one place, twice
    ([[0.5, 0.5]] * 3, [0]),
    ([[0.5, 0.5], [0.125, 0.125]], [0, 1]),
  ],
)
def test_points_that_are_no_corners(points, corners):
  room = np.zeros((5, 2), np.float32)  # one program for all; points behind the count are none
  room[: len(points)] = points
  found = hull(room, len(points))
  assert list(np.asarray(found.indices)[: int(found.size)]) == corners


def test_thin_turns_are_told_apart():
  """One step of the grid off a diagonal: the middle point is a corner or is none."""
  step = 1 / 4096
  for off, size in ((step, 3), (-step, 4), (0.0, 3)):
    last = [2000 * step, (2001 if off > 0 else 2000) * step if off else 2000.5 * step]
    points = np.float32([[0, 0], [4000 * step, 4001 * step], [0, 4095 * step], last, [9, 9]])
    assert int(hull(points, 4).size) == size


def test_tours_are_the_shortest_of_all_permutations(sets):
  points, counts = sets[0][:30, :7], np.arange(30) % 7 + 1
  found = jax.jit(jax.vmap(shortest_tour))(points, counts)
  lengths = jax.jit(jax.vmap(tour_length))(points, found)
  for p, count, indices, length in zip(points.astype(np.float64), counts, np.asarray(found.indices), lengths):
    way = lambda order, p=p: sum(np.linalg.norm(p[a] - p[b]) for a, b in zip((0, *order), (*order, 0)))
    np.testing.assert_allclose(length, min(map(way, itertools.permutations(range(1, count)))), rtol=1e-5)
    assert indices[0] == 0 and sorted(indices[:count]) == list(range(count)) and np.all(indices[count:] == NO_POINT)
  areas = np.asarray(jax.jit(jax.vmap(signed_area))(points, found))
  assert np.all(areas[counts >= 3] > 0)  # counter-clockwise


def test_tours_of_too_many_points_are_refused():
  with pytest.raises(ValueError, match="up to 13 points: expected at most 12"):
    shortest_tour(jnp.zeros((13, 2)), 13)


def test_the_nearest_point_that_is_left_is_next(sets):
  points, counts = sets
  found = jax.jit(jax.vmap(nearest_neighbor_tour))(points, counts)
  for p, count, indices in zip(points, counts, np.asarray(found.indices)):
    way = [0]
    while len(way) < count:
      left = [i for i in range(count) if i not in way]
      way.append(min(left, key=lambda i: np.linalg.norm(p[i] - p[way[-1]])))
    assert list(indices) == way + [NO_POINT] * (9 - count)


def test_areas_have_the_sign_of_the_direction_and_lengths_the_way_back():
  for indices, expected in (((0, 1, 2, 3), 1), ((3, 2, 1, 0), -1), ((0, 1, 2), 0.5), ((0, 2), 0)):
    assert float(area(SQUARE, polygon(*indices, size=4))) == expected
  np.testing.assert_allclose(jax.jit(tour_length)(SQUARE, polygon(0, 1, 2, size=4)), 2 + 2**0.5, rtol=1e-6)


def test_polygons_that_cross_themselves_are_not_simple():
  points = np.float32([*SQUARE, [0.5, 0.0], [0.5, 0.5]])
  cases = {(0, 1, 2, 3): True, (0, 2, 1, 3): False, (0, 1, 2): True, (0, 1): False, (0,): False, (0, 1, 5, 2, 3): True,
           (0, 1, 2, 4): False, (0, 1, 2, 4, 3): False, (4, 2, 3): True}  # fmt: skip
  for indices, expected in cases.items():
    assert bool(simple(points, polygon(*indices, size=6))) == expected, indices


def test_a_polygon_is_the_same_from_any_corner_but_not_the_other_way_around():
  one, same = polygon(4, 1, 3, 2, size=6), jax.jit(same_polygon)
  assert same(one, polygon(3, 2, 4, 1, size=6))
  assert not same(one, polygon(2, 3, 1, 4, size=6))
  assert not same(one, polygon(4, 1, 3, size=6))
