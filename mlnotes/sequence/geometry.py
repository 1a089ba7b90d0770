"""Points in the plane: convex hulls and shortest tours by exact algorithms on the device, and what judges an answer.

An array of points has N rows, of which the first `count` are there. A polygon is the indices of points in their order.
Where coordinates are multiples of 2^-12 in [0, 1], as `sample_points` draws them, float32 tells every left turn from a
right one: differences have 13 bits, their products 24.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

NO_POINT = -1
_GRID = 2**12
_FAR = 1e9
_MOST_CITIES = 12


class Polygon(NamedTuple):
  """Indices of points in their order, `NO_POINT` behind the last one, and how many there are."""

  indices: Int[Array, "*B N"]
  size: Int[Array, "*B"]


def sample_points(key: Key[Array, ""], count: int) -> Float[Array, "N 2"]:
  """Points evenly from the unit square, on a grid of 4096 x 4096."""
  return jax.random.randint(key, (count, 2), 0, _GRID).astype(jnp.float32) / _GRID


def convex_hull(points: Float[Array, "N 2"], count: Int[Array, ""] | int) -> Polygon:
  """The corners of the convex hull, counter-clockwise from the one of the lowest index. Vinyals et al. 2015, sec. 4.1.

  Points on a side are no corners; of points at one place the lowest index counts. Of points on a line the corners are
  its two ends. A side goes from i to j where every other point is to the left, or between them: N^3 turns, all at once.
  """
  index = jnp.arange(len(points))
  same = jnp.all(points[:, None] == points[None], -1)
  there = index < count
  there &= ~jnp.any(same & there[None] & (index[None] < index[:, None]), 1)
  start, end, other = points[:, None, None], points[None, :, None], points[None, None]
  turn = _turn(start, end, other)
  between = (turn == 0) & (jnp.sum((other - start) * (other - end), -1) <= 0)
  side = jnp.all((turn > 0) | between | ~there[None, None], -1) & there[:, None] & there[None]
  side &= index[:, None] != index[None]
  following = jnp.where(jnp.any(side, 1), jnp.argmax(side, 1), index)
  corner = jnp.any(side, 1)
  first = jnp.argmax(jnp.where(jnp.any(corner), corner, there))

  def walk(carry, _):
    at, done = carry
    after = following[at]
    return (after, done | (after == first)), jnp.where(done, NO_POINT, at)

  _, indices = jax.lax.scan(walk, (first, jnp.asarray(count) == 0), index)
  return Polygon(indices, jnp.sum(indices != NO_POINT))


def shortest_tour(points: Float[Array, "N 2"], count: Int[Array, ""] | int) -> Polygon:
  """The shortest round trip, counter-clockwise from point 0, by dynamic programming over sets (Held & Karp 1962).

    D(S, j) = min over i in S - {j} of D(S - {j}, i) + |i - j|

  is the way from 0 through all of S that ends at j. 2^N N^2 sums: raises ValueError for more than 12 points.
  """
  cities = len(points) - 1
  if len(points) > _MOST_CITIES:
    raise ValueError(f"shortest tour of up to {len(points)} points: expected at most {_MOST_CITIES}")
  if not cities:
    return Polygon(jnp.zeros(1, jnp.int32), jnp.ones((), jnp.int32))
  distance = jnp.sqrt(jnp.sum((points[:, None] - points[None]) ** 2, -1))
  row, layers = _sets(cities)
  between = distance[1:, 1:]
  best = jnp.concatenate(
    [jnp.full((1, cities), _FAR), jnp.where(jnp.eye(cities, dtype=bool), distance[0, 1:, None], _FAR)]
  )
  came = jnp.zeros((1 + cities, cities), jnp.int32)
  for sets, without in layers:  # sets of two cities, of three, ..
    ways = best[without] + between[None]  # of a set, the city that ends it, the one before
    ends = (sets[:, None] >> np.arange(cities)) & 1 == 1
    best = jnp.concatenate([best, jnp.where(ends, jnp.min(ways, -1), _FAR)])
    came = jnp.concatenate([came, jnp.argmin(ways, -1).astype(jnp.int32)])
  row = jnp.asarray(row)
  whole = (1 << (jnp.asarray(count, jnp.int32) - 1)) - 1
  last = jnp.argmin(best[row[whole]] + distance[1:, 0])

  def back(carry, _):
    left, at = carry
    some = left > 0
    return (left & ~(1 << at), came[row[left], at]), jnp.where(some, at + 1, NO_POINT)

  _, way = jax.lax.scan(back, (whole, last), length=cities)
  tour = Polygon(jnp.concatenate([jnp.zeros(1, jnp.int32), way]), jnp.asarray(count, jnp.int32))
  place = jnp.arange(1, len(points))
  turned = jnp.where(place < count, way[(count - 1 - place) % cities], NO_POINT)
  clockwise = signed_area(points, tour) < 0
  return tour._replace(indices=tour.indices.at[1:].set(jnp.where(clockwise, turned, way)))


@functools.cache
def _sets(cities: int) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
  """(the row of each set of cities, a set being the bits of a number; by size from two on, the sets and where they

  lead without each of their cities). Rows are by the number of cities.
  """
  sets = np.arange(2**cities)
  sizes = np.array([int(s).bit_count() for s in sets])
  by_size = sets[np.argsort(sizes, kind="stable")]
  row = np.empty_like(sets)
  row[by_size] = sets
  layers = []
  for size in range(2, cities + 1):
    of_size = by_size[sizes[by_size] == size]
    layers.append((of_size, row[of_size[:, None] & ~(1 << np.arange(cities))]))
  return row, layers


def nearest_neighbor_tour(points: Float[Array, "N 2"], count: Int[Array, ""] | int) -> Polygon:
  """From point 0 always to the nearest point that is left: what a simple rule reaches."""
  index = jnp.arange(len(points))

  def go(carry, step):
    at, left = carry
    left &= index != at
    after = jnp.argmin(jnp.where(left, jnp.sum((points - points[at][None]) ** 2, -1), _FAR))
    return (after, left), jnp.where(step < count, at, NO_POINT)

  _, indices = jax.lax.scan(go, (jnp.zeros((), index.dtype), index < count), index)
  return Polygon(indices, jnp.asarray(count, jnp.int32))


def _turn(o: Float[Array, "*#B 2"], a: Float[Array, "*#B 2"], b: Float[Array, "*#B 2"]) -> Float[Array, "*B"]:
  """(a - o) x (b - o): above 0 where o, a, b turn to the left, 0 on a line."""
  u, v = a - o, b - o
  return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def _sides(points: Float[Array, "N 2"], polygon: Polygon) -> tuple[Array, Array, Bool[Array, " N"]]:
  """(start (N, 2), end (N, 2), whether it is there) of each side, the last one back to the first point."""
  place = jnp.arange(polygon.indices.shape[0])
  corners = points[jnp.maximum(polygon.indices, 0)]
  return corners, corners[(place + 1) % jnp.maximum(polygon.size, 1)], place < polygon.size


def signed_area(points: Float[Array, "N 2"], polygon: Polygon) -> Float[Array, ""]:
  """Its area, below 0 where it goes clockwise."""
  start, end, there = _sides(points, polygon)
  return jnp.sum(jnp.where(there, start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0], 0)) / 2


def tour_length(points: Float[Array, "N 2"], polygon: Polygon) -> Float[Array, ""]:
  """Of all its sides, the way back to the first point among them."""
  start, end, there = _sides(points, polygon)
  return jnp.sum(jnp.where(there, jnp.sqrt(jnp.sum((end - start) ** 2, -1)), 0))


def is_simple(points: Float[Array, "N 2"], polygon: Polygon) -> Bool[Array, ""]:
  """Whether it has three corners or more and no two sides meet.

  Sides that follow each other are exempt, as they share a corner: one that lies on the one before is not found.
  """
  start, end, there = _sides(points, polygon)
  a, b, c, d = start[:, None], end[:, None], start[None], end[None]
  apart = jnp.sign(_turn(a, b, c)) * jnp.sign(_turn(a, b, d)) > 0
  apart |= jnp.sign(_turn(c, d, a)) * jnp.sign(_turn(c, d, b)) > 0
  low, high = jnp.minimum(start, end), jnp.maximum(start, end)
  apart |= jnp.any((high[:, None] < low[None]) | (high[None] < low[:, None]), -1)
  place = jnp.arange(len(points))
  steps = (place[None] - place[:, None]) % jnp.maximum(polygon.size, 1)
  neighbors = (steps <= 1) | (steps == polygon.size - 1)
  return (polygon.size >= 3) & jnp.all(apart | neighbors | ~there[:, None] | ~there[None])


def same_polygon(one: Polygon, other: Polygon) -> Bool[Array, ""]:
  """Whether they are the same corners in the same direction around, from whichever they start."""
  return (one.size == other.size) & jnp.all(_from_lowest(one) == _from_lowest(other))


def _from_lowest(polygon: Polygon) -> Int[Array, " N"]:
  place = jnp.arange(polygon.indices.shape[0])
  there = place < polygon.size
  first = jnp.argmin(jnp.where(there, polygon.indices, len(place)))
  return jnp.where(there, polygon.indices[(place + first) % jnp.maximum(polygon.size, 1)], NO_POINT)
