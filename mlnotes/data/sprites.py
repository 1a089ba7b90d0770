"""Small binary pictures of one shape each, drawn from five causes: what disentangling is measured on.

After dSprites (Matthey et al. 2017), with shapes that no turn maps to themselves, so that each picture has one set of
causes, and drawn by this module: nothing is read.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from mlnotes.data.dataset import DataSet, make_array_split

SHAPES = ("triangle", "ell", "heart")
# The causes of a sprite, in the order of `SpriteFactors`, and how many values each has: 24,576 sprites.
FACTORS = ("shape", "scale", "angle", "x", "y")
FACTOR_SIZES = (len(SHAPES), 4, 8, 16, 16)
_SIDE = 32
_SUBPIXELS = 3  # along each axis of a pixel; one is white where most of them are
_MARGIN = 8  # pixels from the edge to the outermost centre
_TEST_EVERY = 10


class SpriteFactors(NamedTuple):
  """The causes (N, 5) of the sprites of the two splits, as numbers from 0 in the order of `FACTORS`."""

  train: Int[np.ndarray, "N 5"]
  test: Int[np.ndarray, "M 5"]


def render_sprites(factors: Int[np.ndarray, "N 5"]) -> UInt8[np.ndarray, "N 32 32 1"]:
  """The sprites of these causes, 0 and 1.

  Scales are 4 to 7 pixels from the centre to the outermost point, angles eighths of a turn, x and y pixels. Raises
  ValueError where a cause is none of its values.
  """
  if len(factors) and (np.min(factors) < 0 or np.any(np.max(factors, axis=0) >= FACTOR_SIZES)):
    raise ValueError(f"factors must be 0 to {', '.join(str(n - 1) for n in FACTOR_SIZES)}, found others.")
  x, y = factors[:, 3], factors[:, 4]
  # A stamp for each shape, scale and angle, put at whole pixels.
  images = np.zeros((len(factors), _SIDE, _SIDE, 1), np.uint8)
  which = np.ravel_multi_index(factors[:, :3].T, FACTOR_SIZES[:3])
  for kind in np.unique(which):
    stamp = _render_stamp(*map(int, np.unravel_index(kind, FACTOR_SIZES[:3])))
    for i in np.flatnonzero(which == kind):
      images[i, y[i] : y[i] + 2 * _MARGIN, x[i] : x[i] + 2 * _MARGIN, 0] = stamp
  return images


def _render_stamp(shape: int, scale: int, angle: int) -> UInt8[np.ndarray, "16 16"]:
  """The shape around its centre, which is in the middle of a pixel."""
  size = 2 * _MARGIN
  offsets = ((np.arange(size * _SUBPIXELS) + 0.5) / _SUBPIXELS - _MARGIN - 0.5) / (4 + scale)
  across, down = offsets[None, :], offsets[:, None]
  turn = 2 * np.pi * angle / FACTOR_SIZES[2]
  u, v = np.cos(turn) * across + np.sin(turn) * down, np.cos(turn) * down - np.sin(turn) * across
  inside = _inside(SHAPES[shape], u, v).reshape(size, _SUBPIXELS, size, _SUBPIXELS)
  return (inside.mean((1, 3)) > 0.5).astype(np.uint8)


def load_sprites() -> DataSet:
  """All sprites, labelled by their shape; a fixed pseudo-random tenth to test on. See `load_sprite_factors`."""
  splits = [make_array_split("sprites", render_sprites(f), f[:, 0], 2, len(SHAPES)) for f in load_sprite_factors()]
  return DataSet("sprites", *splits, len(SHAPES), SHAPES, 2, splits[0].image_shape)


def load_sprite_factors() -> SpriteFactors:
  """The causes of each sprite of `load_sprites`, in its order."""
  every = np.stack(np.unravel_index(np.arange(np.prod(FACTOR_SIZES)), FACTOR_SIZES), axis=1)
  order = np.random.default_rng(0).permutation(len(every))
  test = len(every) // _TEST_EVERY
  return SpriteFactors(every[order[test:]], every[order[:test]])


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
  """Whether points within the unit circle are in the shape; v runs downwards."""
  if shape == "triangle":
    return (v < 0.6) & (2.2 * np.abs(u) < v + 1)
  if shape == "ell":
    return (np.abs(v) < 0.75) & (np.abs(u) < 0.6) & ((u < -0.1) | (v > 0.2))
  u, v = 1.25 * u, -1.25 * v + 0.15
  return (u**2 + v**2 - 1) ** 3 < u**2 * v**3
