"""Piecewise linear curves as sums of hard sigmoids and of ReLUs, and folded ones that depth makes of few units.

A curve through n + 1 points is a constant and n hard sigmoids, or 2 n ReLUs, exactly: one hidden layer can fit any
curve, if it is wide. A curve that is folded k times has 2^k pieces, for which one hidden layer needs 2^k units and k
layers need 2 each (Montufar et al. 2014, section 3; Telgarsky 2016, theorem 1.1).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class HardSigmoids(NamedTuple):
  """y(x) = constant + sum_i height_i clip((x - start_i) / length_i, 0, 1)."""

  constant: Float[Array, ""]
  height: Float[Array, " n"]
  start: Float[Array, " n"]
  length: Float[Array, " n"]

  def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    height, start, length = (jnp.expand_dims(v, range(x.ndim)) for v in self[1:])
    return self.constant + jnp.sum(height * jnp.clip((x[..., None] - start) / length, 0, 1), axis=-1)


class Relus(NamedTuple):
  """y(x) = constant + sum_i slope_i max(0, x - start_i)."""

  constant: Float[Array, ""]
  slope: Float[Array, " n"]
  start: Float[Array, " n"]

  def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    slope, start = (jnp.expand_dims(v, range(x.ndim)) for v in self[1:])
    return self.constant + jnp.sum(slope * jnp.maximum(x[..., None] - start, 0), axis=-1)


def through_points(x: Float[Array, " m"], y: Float[Array, " m"]) -> HardSigmoids:
  """The curve through (x, y) that is straight between them and level outside: m - 1 hard sigmoids.

  Raises ValueError unless x grows and has two places or more.
  """
  if len(x) < 2 or not np.all(np.diff(np.asarray(x)) > 0):
    raise ValueError(f"x has {len(x)} places, expected two or more that grow")
  return HardSigmoids(y[0], jnp.diff(y), x[:-1], jnp.diff(x))


def as_relus(curve: HardSigmoids) -> Relus:
  """The same curve: each hard sigmoid is the difference of two ReLUs, of the slope that it rises with."""
  slope = curve.height / curve.length
  starts = jnp.concatenate([curve.start, curve.start + curve.length])
  return Relus(curve.constant, jnp.concatenate([slope, -slope]), starts)


def fold(x: Float[Array, "*shape"], times: int) -> Float[Array, "*shape"]:
  """[0, 1] folded in the middle, `times` times: f(f(..f(x))) with f(x) = 1 - |2 x - 1|, which has 2^times pieces.

  Each fold is a layer of two ReLUs, f(x) = 2 max(0, x) - 4 max(0, x - 1/2) on [0, 1].
  """
  for _ in range(times):
    x = 2 * jnp.maximum(x, 0) - 4 * jnp.maximum(x - 0.5, 0)
  return x


def unfold(times: int) -> Relus:
  """`fold(x, times)` on [0, 1] as one layer: 2^times ReLUs, and none of them to spare."""
  pieces = 2**times
  signs = jnp.where(jnp.arange(pieces) % 2 == 0, 1.0, -1.0)
  slope = pieces * jnp.concatenate([signs[:1], jnp.diff(signs)])
  return Relus(jnp.zeros(()), slope, jnp.arange(pieces) / pieces)


def count_pieces(x: Float[np.ndarray, " m"], y: Float[np.ndarray, " m"], tolerance: float = 1e-3) -> int:
  """Straight pieces of a curve by its values on a grid: one more than the places where its slope changes.

  A kink between two places of the grid changes the slope at both, and counts once. `tolerance` is of the slope, as a
  share of the largest.
  """
  slope = np.diff(np.asarray(y, np.float64)) / np.diff(np.asarray(x, np.float64))
  kinks = np.abs(np.diff(slope)) > tolerance * max(np.abs(slope).max(), 1e-12)
  starts = kinks & ~np.concatenate([[False], kinks[:-1]])
  return 1 + int(starts.sum())
