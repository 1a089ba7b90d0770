"""Winograd's algorithm for 3x3 convolutions of many channels: Lavin & Gray 2016 (arXiv:1509.09308), section 4.1."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from mlnotes.nn.geometry import Geometry

# From this many channels in and out, and this many tiles, on, Winograd's algorithm is faster (see `in_tiles`).
_TILED_CHANNELS, _TILES = 128, 128

# Winograd's F(2x2, 3x3): the weights of four inputs, of three taps and of two outputs in each of four products, along
# one axis. A product takes two inputs only: the first, and the second with the sign.
_INPUTS = ((0, 2, -1), (1, 2, 1), (2, 1, -1), (1, 3, -1))
_TAPS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_OUTPUTS = np.array([[1, 0], [1, 1], [1, -1], [0, -1]], np.float32)


def in_tiles(geometry: Geometry, x: tuple[int, ...], y: tuple[int, ...], dtype: Any) -> bool:
  """Whether Winograd's algorithm computes the array `y` from `x`, or the kernel from both, given their shapes.

  It does 4/9 of the multiplications in 16 matrix products, which run on all threads. The sums before and after grow
  with the channels, the products with their square: with 128 channels it takes 0.75 of the time of XLA's convolution,
  with 256 0.6, with 64 more. Rounding errors are up to twice as large, so it is not for those who ask for a precision.
  """
  _, window, strides, padding, dilation, precision, _ = geometry
  return (
    (window, strides, dilation) == ((3, 3), (1, 1), (1, 1))
    and (precision, dtype) == (None, jnp.float32)
    and all(0 <= width <= 2 for pair in padding for width in pair)
    and all(size % 2 == 0 for size in y[1:-1])
    and min(x[-1], y[-1]) >= _TILED_CHANNELS
    and math.prod(y[:-1]) >= 4 * _TILES
  )


def _weighted(weights, arrays):
  return sum(weight * array for weight, array in zip(weights.tolist(), arrays) if weight)


def _rows_of_input(x, padding):
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  flat = x.reshape(*x.shape[:2], -1)  # LLVM would unroll loops over few columns, for long
  parts = [flat[:, i : i + x.shape[1] - 3 : 2] for i in range(4)]
  rows = jnp.stack([parts[i] + sign * parts[j] for i, j, sign in _INPUTS])
  return rows.reshape(*rows.shape[:3], *x.shape[2:])


def _columns_of_input(rows):
  parts = [rows[:, :, i : i + rows.shape[2] - 3 : 2] for i in range(4)]
  return [parts[i] + sign * parts[j] for i, j, sign in _INPUTS]


def tiled_forward(x, kernel, padding, axis):
  """The convolution by a 3x3 kernel whose `axis`, without those of the window, belongs to the channels of `x`."""

  def compute(rows):
    of_input, of_kernel = rows
    of_products = (_weighted(weights, of_kernel) for weights in _TAPS)
    product = lambda a, b: lax.dot_general(a, b, (((3,), (axis,)), ((), ())))
    products = list(map(product, _columns_of_input(of_input), of_products))
    return [_weighted(weights, products) for weights in _OUTPUTS.T]

  # One row of the 4 x 4 products after the other: all at once would be a tenth faster, and compile twice as long.
  of_kernel = jnp.stack([_weighted(weights, kernel) for weights in _TAPS])
  columns = lax.map(compute, (_rows_of_input(x, padding), of_kernel))
  y = jnp.stack([jnp.stack([_weighted(weights, column) for column in columns], 3) for weights in _OUTPUTS.T], 2)
  return y.reshape(y.shape[0], 2 * y.shape[1], 2 * y.shape[3], -1)


def tiled_gradient_by_kernel(x, y, padding):
  def compute(rows):
    of_input, of_output = rows
    of_products = (_weighted(weights, (of_output[:, :, ::2], of_output[:, :, 1::2])) for weights in _OUTPUTS)
    product = lambda a, b: a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])
    products = list(map(product, _columns_of_input(of_input), of_products))
    return jnp.stack([_weighted(weights, products) for weights in _TAPS.T])

  of_output = jnp.stack([_weighted(weights, (y[:, ::2], y[:, 1::2])) for weights in _OUTPUTS])
  rows = lax.map(compute, (_rows_of_input(x, padding), of_output))
  return jnp.stack([_weighted(weights, rows) for weights in _TAPS.T])
