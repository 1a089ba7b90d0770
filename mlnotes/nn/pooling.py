"""Maxima and means over windows, for any number of spatial axes."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from mlnotes.nn.geometry import Padding, pad_widths, per_axis, spans


def max_pool(
  x: Float[Array, "B *spatial C"],
  window: int | Sequence[int],
  strides: int | Sequence[int] | None = None,
  padding: Padding = "VALID",
  dilation: int | Sequence[int] = 1,
) -> Float[Array, "B *out C"]:
  """The largest value of each window and channel; of equal ones the first gets the gradient, in rows as one reads.

    y[b, p, c] = max_q x[b, p * stride + q * dilation - low, c]

  What lies outside of the image is -inf, so it is never chosen. NaN is larger than all. Strides are the window's where
  none are given, as in torch (in `flax.linen.max_pool` they are 1). Paddings are those of `convolve`.

  Raises ValueError where the window is larger than the padded image, or lies in the padding alone at some position, and
  where x holds integers.
  """
  plan = _plan(x, window, strides, padding, dilation, may_be_empty=False)
  # The innermost axis first, so that among equal values the first in the image is the first found.
  for axis in range(x.ndim - 2, 0, -1):
    x = _along(axis, x, *plan[axis - 1], -jnp.inf, _larger)
  return x


def avg_pool(
  x: Float[Array, "B *spatial C"],
  window: int | Sequence[int],
  strides: int | Sequence[int] | None = None,
  padding: Padding = "VALID",
  count_include_pad: bool = False,
) -> Float[Array, "B *out C"]:
  """The mean of each window and channel, of what lies inside of the image.

    y[b, p, c] = sum_{q inside} x[b, p * stride + q - low, c] / #{q inside}

  With `count_include_pad` the sum is divided by the window's whole size, as by default in torch and in
  `flax.linen.avg_pool`: borders become darker. Strides are the window's where none are given. Paddings are those of
  `convolve`. Sums are at least float32.

  Raises ValueError as `max_pool` does; with `count_include_pad` a window may lie in the padding alone and gives 0.
  """
  plan = _plan(x, window, strides, padding, 1, may_be_empty=count_include_pad)
  total = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  for axis, (taps, stride, step, pads) in enumerate(plan, 1):
    counts = _count_inside(x.shape[axis], taps, stride, step, pads)
    total = _along(axis, total, taps, stride, step, pads, 0, jnp.add)
    counts = np.full_like(counts, taps) if count_include_pad else counts
    total /= jnp.asarray(counts, total.dtype).reshape(-1, *(1,) * (x.ndim - 1 - axis))[(None,) * axis]
  return total.astype(x.dtype)


def _larger(first: Array, second: Array) -> Array:
  return jnp.where((second > first) | jnp.isnan(second), second, first)


def _plan(x, window, strides, padding, dilation, may_be_empty):
  """(taps, stride, step, (low, high)) of each spatial axis."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"x is {x.dtype}, expected floating-point numbers")
  rank = x.ndim - 2
  window, dilation = per_axis("window", window, rank), per_axis("dilation", dilation, rank)
  strides = window if strides is None else per_axis("strides", strides, rank)
  extents, sizes = spans(window, dilation), x.shape[1:-1]
  padding = pad_widths(padding, sizes, extents, strides)
  padded = tuple(size + low + high for size, (low, high) in zip(sizes, padding))
  if any(size < extent for size, extent in zip(padded, extents)):
    raise ValueError(f"x has spatial size {padded} after padding, expected at least the window's {extents}")
  plan = list(zip(window, strides, dilation, padding))
  if not may_be_empty and not all(np.all(_count_inside(size, *axis) > 0) for size, axis in zip(sizes, plan)):
    raise ValueError(f"padding is {padding}, expected less: some window of {window} lies outside of the image")
  return plan


def _count_inside(size: int, taps: int, stride: int, step: int, pads: tuple[int, int]) -> np.ndarray:
  """Of each position along an axis, how many taps lie inside of the image."""
  low, high = pads
  positions = (size + low + high - (taps - 1) * step - 1) // stride + 1
  at = np.arange(positions)[:, None] * stride + np.arange(taps) * step - low
  return np.sum((at >= 0) & (at < size), axis=1)


def _along(axis: int, x, taps, stride, step, pads, outside, combine: Callable[[Array, Array], Array]):
  """Combines the taps along one axis: a window is as many of these as it has axes, and vector operations throughout."""
  widths = [(0, 0, 0)] * x.ndim
  widths[axis] = (*pads, 0)
  x = lax.pad(x, jnp.asarray(outside, x.dtype), widths)
  positions = (x.shape[axis] - (taps - 1) * step - 1) // stride + 1
  images = [
    lax.slice_in_dim(x, tap * step, tap * step + (positions - 1) * stride + 1, stride, axis) for tap in range(taps)
  ]
  result = images[0]
  for image in images[1:]:
    result = combine(result, image)
  return result
