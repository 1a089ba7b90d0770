"""Transposed convolution that is fast on every backend, in loops, under `vmap` and at every order of differentiation.

It is the gradient of a convolution with respect to its input, so it is computed as `mlnotes.nn.convolve` computes that:
on the CPU one forward convolution for each phase of the stride, by the taps that meet this phase, instead of a
convolution of an image that is mostly zeros; its own gradients are forward convolutions again, fast inside loops.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact, Num

from mlnotes.nn.geometry import Geometry, Padding, equally_varying, pad_widths, per_axis
from mlnotes.nn.trilinear import trilinear


def convolve_transpose(
  x: Inexact[Array, "B *spatial C"],
  kernel: Inexact[Array, "*window I O"],
  strides: int | Sequence[int] = 1,
  padding: Padding = "SAME",
  precision: Any = None,
) -> Inexact[Array, "B *out O"]:
  """Transposed convolution of channels-last images with any number of spatial axes.

  Each input stands `stride` apart from the next, zeros between, and is spread by the kernel:

    y[b, p] = sum_{t, q} x[b, t] kernel[k - 1 - q]          over t * stride + q - low = p, along each axis of k taps

  which is what `lax.conv_transpose` and `flax.linen.ConvTranspose` give (`transpose_kernel=False`), up to rounding.
  torch's weight w of shape (C, O, *window), which is not flipped, is kernel = flip(transpose(w, (2, 3, 0, 1)), (0, 1)).
  Of the (size - 1) * stride + k positions

  - "SAME" keeps size * stride, "VALID" all, or size * stride where the stride is longer than the kernel, as in lax;
  - one integer p cuts p off at both sides, as torch's `padding`; (low, high) per axis cuts low and high, so that
    torch's `output_padding` o is (p, p - o). What lax and Flax take as pairs is (k - 1 - low, k - 1 - high).

  Raises ValueError where ranks, channels or sizes do not fit together.
  """
  rank = x.ndim - 2
  if kernel.ndim != x.ndim:
    raise ValueError(f"kernel has {kernel.ndim} axes, expected {x.ndim}, as many as x")
  if x.shape[-1] != kernel.shape[-2]:
    raise ValueError(f"x has {x.shape[-1]} channels, expected {kernel.shape[-2]}, the kernel's input channels")
  if x.dtype != kernel.dtype:
    raise ValueError(f"kernel is {kernel.dtype}, expected {x.dtype}, the type of x")
  window, strides = kernel.shape[:-2], per_axis("strides", strides, rank)
  cut = _cut(padding, x.shape[1:-1], window, strides)
  full = ((size - 1) * stride + taps for size, stride, taps in zip(x.shape[1:-1], strides, window))
  sizes = tuple(positions - low - high for positions, (low, high) in zip(full, cut))
  if min(sizes, default=1) < 1:
    raise ValueError(f"padding={padding} leaves the spatial size {sizes}, expected 1 or more along each axis")
  geometry = Geometry(sizes, window, strides, cut, (1,) * rank, precision)
  # The convolution whose gradient this is has the outputs as its inputs; lax's kernel is its kernel, turned round.
  kernel = jnp.swapaxes(lax.rev(kernel, tuple(range(rank))), -1, -2)
  kernel, x = equally_varying(kernel, x)
  return trilinear.bind(kernel, x, out="x", geometry=geometry)


def _cut(padding: Padding, sizes, window, strides) -> tuple[tuple[int, int], ...]:
  """(low, high) of what is cut off the full result along each axis; below 0 zeros are added."""
  if padding not in ("SAME", "VALID"):
    if isinstance(padding, str):
      raise ValueError(f"padding is {padding!r}, expected 'SAME', 'VALID', an integer or pairs of numbers")
    return pad_widths(padding, sizes, window, strides)
  surplus = [taps - stride for taps, stride in zip(window, strides)]
  if padding == "VALID":
    return tuple((0, min(extra, 0)) for extra in surplus)
  low = [max(extra, 0) // 2 for extra in surplus]
  return tuple((first, extra - first) for first, extra in zip(low, surplus))


class ConvTranspose(nn.Module):
  """`flax.linen.ConvTranspose` computed by `convolve_transpose`: its parameters and results, fast in loops.

  A checkpoint of one loads in the other. Padding as `convolve_transpose` has it: numbers are torch's. Any number of
  leading batch axes, none included. Arguments of `flax.linen.ConvTranspose` that are absent here: `kernel_dilation`,
  `mask`, `transpose_kernel` and the padding "CIRCULAR".

  Raises ValueError where there are no features or no taps, and as `convolve_transpose` does.
  """

  features: int
  kernel_size: int | Sequence[int]
  strides: int | Sequence[int] = 1
  padding: Padding = "SAME"
  use_bias: bool = True
  dtype: Any = None
  param_dtype: Any = jnp.float32
  precision: Any = None
  kernel_init: Callable[..., Array] = nn.linear.default_kernel_init
  bias_init: Callable[..., Array] = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: Num[Array, "*batch_spatial C"]) -> Inexact[Array, "*batch_out O"]:
    window = (self.kernel_size,) if isinstance(self.kernel_size, int) else tuple(self.kernel_size)
    rank = len(window)
    if x.ndim <= rank:
      raise ValueError(f"x has {x.ndim} axes, expected at least {rank + 1} for kernel_size={self.kernel_size}")
    if self.features < 1 or min(window, default=1) < 1:
      raise ValueError(f"features is {self.features}, kernel_size {self.kernel_size}: expected positive integers")
    kernel = self.param("kernel", self.kernel_init, (*window, x.shape[-1], self.features), self.param_dtype)
    bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    batch_shape = x.shape[: x.ndim - rank - 1]
    x = x.reshape(math.prod(batch_shape), *x.shape[len(batch_shape) :])
    y = convolve_transpose(x, kernel, self.strides, self.padding, self.precision)
    if bias is not None:
      y += jnp.expand_dims(bias, range(y.ndim - 1))
    return y.reshape(*batch_shape, *y.shape[1:])
