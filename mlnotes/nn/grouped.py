"""Grouped and depthwise convolution on the CPU, where XLA's own takes up to hundreds of times as long.

A depthwise convolution and its gradient with respect to the input are sums of shifted images, each times one number per
channel; its gradient with respect to the kernel is one sum of products per tap. Other groups become a few
convolutions: narrow groups stand together in one, with zeros between them in its kernel.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mlnotes.nn.geometry import Geometry, equally_varying

# Up to this many taps a depthwise convolution is a sum of shifted images: their loop has a term for each.
_TAPS = 128
# Terms at least that a turn of the depthwise kernel's gradient adds: from 16 uses on XLA computes a slice by itself,
# below it fuses the slice into each of them, where it takes several times as long.
_TERMS = 16
# Up to this many taps have their sums in one loop; larger windows have a loop for each row of taps, and compile faster.
_TAPS_TOGETHER = 9
# Groups of fewer channels than this stand together in one convolution.
_GROUP_CHANNELS = 32
# Up to this many convolutions are written one after the other, more of them are a loop.
_UNROLLED = 8


def is_depthwise(arrays: Mapping[str, jax.Array], geometry: Geometry) -> bool:
  """Whether each group has one input channel, and the window few enough taps."""
  inputs = arrays["x"].shape[-1] // geometry.groups if "x" in arrays else arrays["kernel"].shape[-2]
  return inputs == 1 and math.prod(geometry.window) <= _TAPS


def _accumulated(dtype):
  """The type of sums: at least float32."""
  return jnp.promote_types(dtype, jnp.float32)


def shifted_sum(x, kernel, strides, padding, dilation, precision=None):
  """Depthwise convolution by a kernel of the shape (*window, 1, O), the o-th filter for channel o // (O / C).

  y[p, o] = sum_q x[p * stride + q * dilation - low, o // (O / C)] kernel[q, o]
  """
  del precision  # sums are in float32 in any case
  dtype = _accumulated(x.dtype)
  x, kernel = _repeat(_pad(x, [(0, 0)], padding), kernel.shape[-1]), kernel.astype(dtype)
  window = kernel.shape[:-2]
  counts = [
    (size - (taps - 1) * step - 1) // stride + 1
    for size, taps, stride, step in zip(x.shape[1:-1], window, strides, dilation)
  ]
  y = 0
  for tap in itertools.product(*map(range, window)):
    starts = [at * step for at, step in zip(tap, dilation)]
    stops = [start + (count - 1) * stride + 1 for start, count, stride in zip(starts, counts, strides)]
    image = lax.slice(x, (0, *starts, 0), (x.shape[0], *stops, x.shape[-1]), (1, *strides, 1))
    y += image.astype(dtype) * jnp.expand_dims(kernel[tap], range(x.ndim - 2))
  return y.astype(x.dtype)


def _repeat(x, channels):
  """Each channel of `x` as often as it takes for `channels` of them."""
  return jnp.repeat(x, channels // x.shape[-1], axis=-1) if channels != x.shape[-1] else x


def depthwise_value(x, kernel, geometry: Geometry):
  return shifted_sum(x, kernel, geometry.strides, geometry.padding, geometry.dilation)


def depthwise_gradient_by_kernel(x, y, geometry: Geometry):
  """For each tap the sum over images and positions of `y` times `x`, shifted.

  A loop goes over blocks of images and of their rows. Along a row nothing is summed before the end: each tap has one
  sum for each place in it, to which a turn adds a term for each row of its block. The batch is shared out in as many
  parts as there are devices, so that where it lies on several each goes over its own images.
  """
  _, window, strides, padding, dilation, _, _ = geometry
  parts = math.gcd(x.shape[0], jax.device_count("cpu"))
  x, y = (array.reshape(parts, -1, *array.shape[1:]) for array in (x, y))
  if len(window) == 1:  # the images of a part are the rows of one
    window, strides, padding, dilation = (1, *window), (1, *strides), ((0, 0), *padding), (1, *dilation)
    x, y = x[:, None], y[:, None]
  dtype, channels, rank = _accumulated(x.dtype), y.shape[-1], len(window)
  batch, rows, *columns = y.shape[1:-1]
  blocks = max(1, rows // _TERMS)
  rows = -(-rows // blocks)
  images = min(batch, -(-_TERMS // rows))
  turns = -(-batch // images) * blocks

  counts = (blocks * rows, *columns)
  needed = [
    (count - 1) * stride + (taps - 1) * step + 1 for count, stride, taps, step in zip(counts, strides, window, dilation)
  ]
  of_batch = ((0, 0), (0, -batch % images))
  x = _repeat(x, channels)
  x = _pad(x, of_batch, [(low, n - size - low) for n, size, (low, _) in zip(needed, x.shape[2:-1], padding)])
  # Rows are one longer, as those whose lengths are powers of two would meet in the same lines of the cache.
  y = _pad(y, of_batch, [(0, counts[0] - y.shape[2]), *((0, 0),) * (rank - 2), (0, 1)])

  def add(turn, sums, tap_rows):
    image, row = turn // blocks * images, turn % blocks * rows
    height = (rows - 1) * strides[0] + (len(tap_rows) - 1) * dilation[0] + 1
    start = (0, image, row * strides[0] + tap_rows[0] * dilation[0], *(0,) * rank)
    of_input = lax.dynamic_slice(x, start, (parts, images, height, *x.shape[3:]))
    of_output = lax.dynamic_slice(y, (0, image, row, *(0,) * rank), (parts, images, rows, *y.shape[3:]))
    of_output = lax.slice_in_dim(of_output, 0, columns[-1], axis=-2)
    result = []
    for total, (a, *tap) in zip(sums, itertools.product(range(len(tap_rows)), *map(range, window[1:]))):
      starts = [at * step for at, step in zip(tap, dilation[1:])]
      stops = [first + (count - 1) * stride + 1 for first, count, stride in zip(starts, columns, strides[1:])]
      for b, p in itertools.product(range(images), range(rows)):
        at = p * strides[0] + a * dilation[0]
        part = lax.slice(
          of_input,
          (0, b, at, *starts, 0),
          (parts, b + 1, at + 1, *stops, channels),
          (1, 1, 1, *strides[1:], 1),
        )
        total += part[:, 0, 0].astype(dtype) * of_output[:, b, p].astype(dtype)
      result.append(total)
    return tuple(result)

  def by_tap_rows(tap_rows):
    zeros, _ = equally_varying(jnp.zeros((parts, *columns, channels), dtype), y)
    sums = (zeros,) * (len(tap_rows) * math.prod(window[1:]))
    turn = partial(add, tap_rows=tap_rows)
    sums = turn(0, sums) if turns == 1 else lax.fori_loop(0, turns, turn, sums)
    return jnp.sum(jnp.stack(sums).reshape(len(sums), -1, channels), axis=1)

  if math.prod(window) <= _TAPS_TOGETHER:
    kernel = by_tap_rows(range(window[0]))
  else:
    kernel = lax.map(lambda row: by_tap_rows([row]), jnp.arange(window[0]))
  return kernel.reshape(*geometry.window, 1, channels).astype(x.dtype)


def _pad(x, of_batch, of_space):
  return lax.pad(x, jnp.zeros((), x.dtype), tuple((*pair, 0) for pair in (*of_batch, *of_space, (0, 0))))


def _groups_together(groups: int, inputs: int, outputs: int) -> int:
  """How many groups of `inputs` and `outputs` channels stand in one convolution: a divisor of `groups`.

  Within 3x3 convolutions of 32 images of 16 x 16, 128 channels: 32 groups take 8 ms four or eight at a time and
  22 ms one at a time; 8 groups 7 ms one at a time and 14 to 18 ms four at a time.
  """
  most = max(1, _GROUP_CHANNELS // max(inputs, outputs))
  return max(count for count in range(1, min(groups, most) + 1) if groups % count == 0)


def _block_diagonal(kernel, groups: int, together: int):
  """(*window, I, groups * O) to (*window, together * I, groups * O), zero between different groups."""
  window, (inputs, outputs) = kernel.shape[:-2], kernel.shape[-2:]
  kernel = kernel.reshape(*window, 1, inputs, groups // together, together, outputs // groups)
  same = jnp.eye(together, dtype=bool)[:, None, None, :, None]
  kernel = jnp.where(jnp.broadcast_to(same, (*(1,) * len(window), *same.shape)), kernel, 0)
  return kernel.reshape(*window, together * inputs, outputs)


def _diagonal_blocks(kernel, groups: int, together: int):
  """The transpose of `_block_diagonal`."""
  window, (inputs, outputs) = kernel.shape[:-2], kernel.shape[-2:]
  kernel = kernel.reshape(*window, together, inputs // together, groups // together, together, outputs // groups)
  blocks = [kernel[..., group, :, :, group, :] for group in range(together)]
  return jnp.stack(blocks, axis=-2).reshape(*window, inputs // together, outputs)


def compute_by_group(compute: Callable[..., jax.Array], arrays: Mapping[str, jax.Array], out: str, geometry: Geometry):
  """The array `out` by several calls of `compute(first, second, out, geometry)`, each of one or several groups."""
  groups = geometry.groups
  inputs = arrays["x"].shape[-1] // groups if "x" in arrays else arrays["kernel"].shape[-2]
  outputs = next(arrays[name] for name in ("y", "kernel") if name in arrays).shape[-1] // groups
  together = _groups_together(groups, inputs, outputs)
  calls = groups // together
  if "kernel" in arrays:
    arrays = {**arrays, "kernel": _block_diagonal(arrays["kernel"], groups, together)}
  one = lambda pair: compute(*pair, out=out, geometry=geometry._replace(groups=1))
  if calls <= _UNROLLED:
    parts = zip(*(jnp.split(array, calls, axis=-1) for array in arrays.values()))
    result = jnp.concatenate(list(map(one, parts)), axis=-1)
  else:
    split = lambda array: jnp.moveaxis(array.reshape(*array.shape[:-1], calls, -1), -2, 0)
    result = jnp.moveaxis(lax.map(one, tuple(map(split, arrays.values()))), 0, -2)
    result = result.reshape(*result.shape[:-2], -1)
  return _diagonal_blocks(result, groups, together) if out == "kernel" else result
