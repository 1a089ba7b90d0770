"""Grouped and depthwise convolution on the CPU, where XLA's own takes up to hundreds of times as long.

A depthwise convolution and its gradient with respect to the input are sums of shifted images, each times one number per
channel; its gradient with respect to the kernel is one sum of products per tap. Other groups become a few
convolutions: narrow groups stand together in one, with zeros between them in its kernel.
"""

import itertools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from mlnotes.nn.geometry import Geometry, equally_varying

# Up to this many taps a depthwise convolution is a sum of shifted images: their loop has a term for each.
_TAPS = 128
# Numbers that each sum of the depthwise kernel's gradient has in progress: with the others' within a core's cache.
_IN_PROGRESS = 8192
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
  x, kernel = _repeat(lax.pad(x, jnp.zeros((), x.dtype), _pads(padding)), kernel.shape[-1]), kernel.astype(dtype)
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


def _pads(padding):
  return ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))


def _repeat(x, channels):
  """Each channel of `x` as often as it takes for `channels` of them."""
  return jnp.repeat(x, channels // x.shape[-1], axis=-1) if channels != x.shape[-1] else x


def depthwise_value(x, kernel, geometry: Geometry):
  return shifted_sum(x, kernel, geometry.strides, geometry.padding, geometry.dilation)


def depthwise_gradient_by_kernel(x, y, geometry: Geometry):
  """For each tap the sum over images and positions of `y` times `x`, shifted.

  The positions of each phase of the strides lie in one row, and `y` on the same grid with zeros where it has none, so
  that a shift in all axes is one number. A loop goes along the row and adds to one sum for each place in a chunk.
  """
  _, window, strides, padding, dilation, _, _ = geometry
  dtype, rank, channels, outputs = x.dtype, len(window), x.shape[-1], y.shape[-1]
  counts = [-(-(size + sum(pair)) // stride) for size, pair, stride in zip(x.shape[1:-1], padding, strides)]
  whole = [
    (low, count * stride - size - low) for size, (low, _), count, stride in zip(x.shape[1:-1], padding, counts, strides)
  ]
  x = _repeat(lax.pad(x, jnp.zeros((), dtype), _pads(whole)), outputs)
  batch, channels = x.shape[0], x.shape[-1]
  x = x.reshape(batch, *(n for pair in zip(counts, strides) for n in pair), channels)
  x = x.transpose(*range(2, 2 * rank + 1, 2), 0, *range(1, 2 * rank + 1, 2), 2 * rank + 1)
  x = x.reshape(*strides, batch, -1)
  y = lax.pad(y, jnp.zeros((), dtype), _pads([(0, count - size) for count, size in zip(counts, y.shape[1:-1])]))
  y = y.reshape(batch, -1)

  taps = []
  for tap in itertools.product(*map(range, window)):
    at = [q * step for q, step in zip(tap, dilation)]
    places = [divmod(a, stride) for a, stride in zip(at, strides)]
    row = math.prod(counts)
    shift = 0
    for (steps, _), count in zip(places, counts):
      row //= count
      shift += steps * row * channels
    taps.append((tuple(phase for _, phase in places), shift))

  chunk = min(channels * max(1, _IN_PROGRESS // (batch * channels)), y.shape[1])
  turns = -(-y.shape[1] // chunk)
  surplus = turns * chunk - y.shape[1]
  y = jnp.pad(y, ((0, 0), (0, surplus)))
  x = jnp.pad(x, (*((0, 0),) * (rank + 1), (0, surplus + max(shift for _, shift in taps))))
  phases = {phase: x[phase] for phase, _ in taps}

  def add(turn, sums):
    cut = lambda array, start: lax.dynamic_slice_in_dim(array, start, chunk, 1).astype(_accumulated(dtype))
    of_output = cut(y, turn * chunk)
    return tuple(
      total + cut(phases[phase], turn * chunk + shift) * of_output for total, (phase, shift) in zip(sums, taps)
    )

  zeros, _ = equally_varying(jnp.zeros((batch, chunk), _accumulated(dtype)), y)
  sums = add(0, (zeros,) * len(taps)) if turns == 1 else lax.fori_loop(0, turns, add, (zeros,) * len(taps))
  kernel = jnp.sum(jnp.stack(sums).reshape(len(taps), -1, channels), axis=1)
  return kernel.reshape(*window, 1, channels).astype(dtype)


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
