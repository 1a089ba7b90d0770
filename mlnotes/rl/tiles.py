"""Features of a bounded box that make a linear function enough: tile coding and the Fourier basis.

    tiling = make_tiling(low=(-1.2, -0.07), high=(0.6, 0.07), num_tilings=8, tiles_per_dim=8)
    value = compute_linear_value(weights, tile_indices(tiling, observation))

One observation at a time; `jax.vmap` makes it many.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mlnotes.engine.errors import InputError


def _check_box(low: Sequence[float], high: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
  low, high = tuple(map(float, low)), tuple(map(float, high))
  if len(low) != len(high) or not all(a < b and math.isfinite(b - a) for a, b in zip(low, high)):
    raise ValueError(f"low = {low}, high = {high}: expected two equally long bounds, finite, low below high.")
  return low, high


class Tiling(NamedTuple):
  """Several grids over one box, each shifted against the others. Plain numbers: no part of a state.

  Attributes:
    max_features: the most weights per action; tiles beyond that number are hashed and share them.
  """

  low: tuple[float, ...]
  high: tuple[float, ...]
  num_tilings: int
  tiles_per_dim: tuple[int, ...]
  max_features: int = 2**17

  @property
  def num_tiles(self) -> int:
    """All tiles of all tilings. A shifted grid needs one more tile per dimension to cover the box."""
    return self.num_tilings * math.prod(tiles + 1 for tiles in self.tiles_per_dim)

  @property
  def num_features(self) -> int:
    """Weights per action."""
    return min(self.num_tiles, self.max_features)


def make_tiling(
  low: Sequence[float],
  high: Sequence[float],
  num_tilings: int,
  tiles_per_dim: int | Sequence[int],
  max_features: int = 2**17,
) -> Tiling:
  """`num_tilings` grids with `tiles_per_dim` tiles (one number for all dimensions, or one each) from `low` to `high`.

  Sutton advises a power of two, and at least four times the number of dimensions, for `num_tilings`. The number of
  tiles grows with the power of the dimensions: in six of them 16 tilings of 8 have 8.5 million, of which an agent sees
  few. Raises ValueError for bounds that are no box and for counts below 1.
  """
  low, high = _check_box(low, high)
  tiles = (tiles_per_dim,) * len(low) if isinstance(tiles_per_dim, int) else tuple(tiles_per_dim)
  if len(tiles) != len(low) or min(tiles) < 1 or num_tilings < 1:
    raise ValueError(f"{num_tilings} tilings of {tiles} tiles over {len(low)} dimensions: expected 1 or more of each.")
  if max_features < num_tilings:
    raise ValueError(f"max_features = {max_features}: expected {num_tilings}, one per tiling, or more.")
  return Tiling(low, high, num_tilings, tiles, max_features)


def tile_indices(tiling: Tiling, x: Float[Array, " D"]) -> Int[Array, " K"]:
  """The one active tile in each of the K tilings, as numbers in [0, num_features).

  In tile widths u = tiles_per_dim (x - low) / (high - low), tiling k is shifted by k (1, 3, 5, ...) / K:

      tile_d(k) = floor(u_d + k (2 d + 1) / K)        d = 0, 1, ...

  Sutton & Barto, section 9.5.4 (displacement vectors of the first odd integers, Miller & Glanz 1996). Points outside
  the box count as those on its border; a coordinate that is not a number gives tile -1, whose value is not one either.

  Differences from Sutton's tiles3: up to `max_features` every tile has a weight of its own, beyond it the hash keeps no
  account of collisions; whole tiles of the shift, which only renumber the tiles, are dropped.
  """
  low, high = (np.asarray(bound, np.float32) for bound in (tiling.low, tiling.high))
  tiles, count = np.asarray(tiling.tiles_per_dim, np.int32), tiling.num_tilings
  # The rest in whole K-ths of a tile, as tiles3 does it: exact, so that a point never falls between two tiles.
  parts = jnp.floor((jnp.clip(x, low, high) - low) / (high - low) * (tiles * count)).astype(jnp.int32)
  number = np.arange(count)[:, None]
  shift = (number * (2 * np.arange(len(tiles)) + 1)) % count
  coordinates = (parts[None, :] + shift.astype(np.int32)) // count
  known = ~jnp.any(jnp.isnan(x))
  if tiling.num_tiles > tiling.max_features:
    return jnp.where(known, _hash_tiles(coordinates, tiling.max_features), -1)
  sizes = (*(int(n) + 1 for n in tiles), 1)
  strides = np.array([math.prod(sizes[d + 1 :]) for d in range(len(tiles))], np.int32)
  inside = jnp.sum(coordinates * strides[None, :], axis=1)
  return jnp.where(known, inside + (number[:, 0] * math.prod(sizes)).astype(np.int32), -1)


def _hash_tiles(coordinates: Int[Array, "K D"], size: int) -> Int[Array, " K"]:
  """Numbers in [0, size) that depend on the tiling and on every coordinate (the finalizer of MurmurHash3 on each)."""
  mixed = jnp.arange(len(coordinates), dtype=jnp.uint32) + 1
  for column in coordinates.T.astype(jnp.uint32):
    mixed = (mixed * np.uint32(0x9E3779B1)) ^ column
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    mixed = mixed ^ (mixed >> 16)
  return (mixed % np.uint32(size)).astype(jnp.int32)


def compute_linear_value(weights: Float[Array, "F *A"], active: Int[Array, " K"]) -> Float[Array, "*A"]:
  """The linear function of binary features: the sum of the weights of the active ones.

  v(s) = sum_{i in active} w_i        q(s, .) = sum_{i in active} w_{i, .}

  Not a number where the observation was none, which `tile_indices` tells by tile -1.
  """
  value = jnp.sum(weights[active], axis=0)
  return jnp.where(active[0] < 0, jnp.nan, value)


class FourierBasis(NamedTuple):
  """Cosines over a box. Plain numbers: no part of a state.

  Attributes:
    coefficients: (F, D), the whole numbers c.
  """

  low: tuple[float, ...]
  high: tuple[float, ...]
  coefficients: np.ndarray

  @property
  def num_features(self) -> int:
    return len(self.coefficients)

  @property
  def step_scale(self) -> np.ndarray:
    """1 / |c|, and 1 for the constant: the step size of each feature relative to the common one (section 4.1)."""
    norm = np.linalg.norm(self.coefficients, axis=1)
    return (1 / np.where(norm == 0, 1, norm)).astype(np.float32)


def make_fourier_basis(low: Sequence[float], high: Sequence[float], order: int) -> FourierBasis:
  """All (order + 1)^D products of frequencies 0 .. order over the box. Konidaris et al. 2011, definition 3.

  Raises ValueError for bounds that are no box and for an order below 0.
  """
  low, high = _check_box(low, high)
  if order < 0:
    raise ValueError(f"order = {order}: expected 0 or more.")
  coefficients = np.array(list(itertools.product(range(order + 1), repeat=len(low))), np.float32)
  return FourierBasis(low, high, coefficients)


def fourier_features(basis: FourierBasis, x: Float[Array, " D"]) -> Float[Array, " F"]:
  """phi_i(x) = cos(pi c_i . u), u = (x - low) / (high - low) in [0, 1]^D. Points outside count as on the border.

  Konidaris et al. 2011, eq. 4. Feature 0 is the constant 1.
  """
  low, high = (np.asarray(bound, np.float32) for bound in (basis.low, basis.high))
  unit = (jnp.clip(x, low, high) - low) / (high - low)
  return jnp.cos(jnp.pi * (basis.coefficients @ unit))


# The box that features cover, where it is not the space of observations: velocities of a pole, say, have no bound.
OBSERVATION_BOUNDS = {
  "MountainCar-v0": ((-1.2, -0.07), (0.6, 0.07)),
  "CartPole-v1": ((-2.4, -3.0, -0.2095, -3.0), (2.4, 3.0, 0.2095, 3.0)),
  "Acrobot-v1": ((-1.0, -1.0, -1.0, -1.0, -4 * math.pi, -9 * math.pi), (1.0, 1.0, 1.0, 1.0, 4 * math.pi, 9 * math.pi)),
}


def observation_bounds(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """(low, high) of the observations of environment `name`. Raises InputError where it is not one of a few."""
  if name not in OBSERVATION_BOUNDS:
    known = ", ".join(OBSERVATION_BOUNDS)
    raise InputError(f"--env={name} has no bounds for linear features: expected one of {known}.")
  return OBSERVATION_BOUNDS[name]
