"""Where the taps of a window stand: sizes, strides, dilation and padding of convolution and pooling."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax import lax

# "SAME", "VALID", "TORCH", one integer for all sides, or per spatial axis one integer or (low, high).
Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]
PADDINGS = ("SAME", "VALID", "TORCH")


class Geometry(NamedTuple):
  """What defines a convolution beside its arrays: one entry per spatial axis."""

  sizes: tuple[int, ...]
  window: tuple[int, ...]
  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  dilation: tuple[int, ...]
  precision: Any = None
  groups: int = 1

  def shapes(self, batch: int, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    extents = spans(self.window, self.dilation)
    positions = tuple(
      (size + low + high - span) // stride + 1
      for size, (low, high), span, stride in zip(self.sizes, self.padding, extents, self.strides)
    )
    return {
      "x": (batch, *self.sizes, inputs),
      "kernel": (*self.window, inputs // self.groups, outputs),
      "y": (batch, *positions, outputs),
    }


def per_axis(name: str, value: int | Sequence[int], rank: int) -> tuple[int, ...]:
  values = tuple(value) if isinstance(value, Sequence) else (value,) * rank
  if len(values) != rank or not all(isinstance(v, int | np.integer) and v >= 1 for v in values):
    raise ValueError(f"{name} is {value}, expected a positive integer or {rank} of them")
  return values


def spans(window: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
  return tuple((taps - 1) * step + 1 for taps, step in zip(window, dilation))


def pad_widths(
  padding: Padding, sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
  """(low, high) of each spatial axis. `extents` are the window's, dilation included.

  "SAME": ceil(size / stride) positions, the smaller half before, as in TensorFlow, Flax and Keras: (0, 1) for three
  taps, stride 2 and an even size. "TORCH": (extent - 1) // 2 on both sides whatever the stride, what torch's networks
  write as `padding=k // 2`: (1, 1) there. The two differ in what they give, not in its shape, for odd extents.
  """
  if isinstance(padding, str):
    if padding not in PADDINGS:
      raise ValueError(f"padding is {padding!r}, expected 'SAME', 'VALID', 'TORCH' or pairs of numbers")
    if padding == "TORCH":
      return tuple(((extent - 1) // 2,) * 2 for extent in extents)
    return tuple(lax.padtype_to_pads(sizes, extents, strides, padding))
  padding = (padding,) * len(sizes) if isinstance(padding, int) else padding
  if len(padding) != len(sizes):
    raise ValueError(f"padding is {padding}, expected {len(sizes)} entries, one per spatial axis")
  pairs = tuple((width, width) if isinstance(width, int) else tuple(width) for width in padding)
  if any(len(pair) != 2 for pair in pairs):
    raise ValueError(f"padding is {padding}, expected one number or (low, high) per spatial axis")
  return pairs


def equally_varying(x, kernel):
  """Inside `jax.shard_map`, marks each array as varying over the mesh axes that the other one varies over."""

  def axes(array):
    aval = jax.typeof(array)
    # Older releases of JAX call it `vma`.
    return frozenset(getattr(getattr(aval, "mat", None), "varying", None) or getattr(aval, "vma", ()))

  def cast(array, missing):
    return lax.pcast(array, tuple(missing), to="varying") if missing else array

  return cast(x, axes(kernel) - axes(x)), cast(kernel, axes(x) - axes(kernel))
