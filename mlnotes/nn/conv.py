"""Convolution that is fast on every backend, in loops, under `vmap` and at every order of differentiation.

XLA's CPU backend has no fast kernel for the weight gradient that JAX writes where it stands inside a `while` loop (so
also inside `lax.scan` and `lax.fori_loop`), nor for the gradient with respect to the input where the stride is above
1, nor for the grouped convolutions that `vmap` over kernels gives. It has one for the forward convolution, and on the
CPU `convolve` writes both gradients, and theirs, as forward convolutions; wide ones with a 3x3 window are matrix
products, by Winograd's algorithm. On all other platforms it is XLA's own convolution with XLA's own gradients.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Inexact, Num

from mlnotes.engine.sharding import count_cores

# "SAME", "VALID", one integer for all sides, or per spatial axis one integer or (low, high).
Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]

# From this many features on, XLA's convolution library shares its work among threads (see `_surplus_rows`).
_SHARED_FEATURES = 128
# From this many channels in and out, and this many tiles, on, Winograd's algorithm is faster (see `_in_tiles`).
_TILED_CHANNELS, _TILES = 128, 128
# From this many elements on, the batch and the channels are swapped in a loop (see `_swap_batch_and_channels`).
_LARGE = 2**22


def convolve(
  x: Inexact[Array, "B *spatial C"],
  kernel: Inexact[Array, "*window I O"],
  strides: int | Sequence[int] = 1,
  padding: Padding = "SAME",
  kernel_dilation: int | Sequence[int] = 1,
  feature_group_count: int = 1,
  precision: Any = None,
) -> Inexact[Array, "B *out O"]:
  """Convolution (cross-correlation) of channels-last images with any number of spatial axes.

    y[b, p, o] = sum_{q, i} x[b, p * stride + q * dilation - low, i] kernel[q, i, o]

  Zero padding; "SAME" puts the smaller half before. Gives what `lax.conv_general_dilated` gives up to rounding;
  grouped convolutions are lowered to it on every platform.

  Raises ValueError where ranks, channels, groups or sizes do not fit together.
  """
  rank = x.ndim - 2
  if kernel.ndim != x.ndim:
    raise ValueError(f"kernel has {kernel.ndim} axes, expected {x.ndim}, as many as x")
  if x.shape[-1] != kernel.shape[-2] * feature_group_count:
    raise ValueError(
      f"x has {x.shape[-1]} channels, expected {kernel.shape[-2] * feature_group_count}: the kernel's input channels"
      f" times feature_group_count={feature_group_count}"
    )
  if x.dtype != kernel.dtype:
    raise ValueError(f"kernel is {kernel.dtype}, expected {x.dtype}, the type of x")
  strides, dilation = _per_axis("strides", strides, rank), _per_axis("kernel_dilation", kernel_dilation, rank)
  spans = _spans(kernel.shape[:-2], dilation)
  padding = _pad_widths(padding, x.shape[1:-1], spans, strides)
  padded = tuple(size + low + high for size, (low, high) in zip(x.shape[1:-1], padding))
  if any(size < span for size, span in zip(padded, spans)):
    raise ValueError(f"x has spatial size {padded} after padding, expected at least the kernel's {spans}")

  geometry = _Geometry(x.shape[1:-1], kernel.shape[:-2], strides, padding, dilation, precision)
  native = partial(_native, geometry=geometry, feature_group_count=feature_group_count)
  if feature_group_count != 1:
    return native(x, kernel)
  if math.prod(kernel.shape[:-2]) == 1:
    return lax.platform_dependent(x, kernel, cpu=partial(_pointwise, geometry=geometry), default=native)
  return _trilinear.bind(*_equally_varying(x, kernel), out="y", geometry=geometry)


def _equally_varying(x, kernel):
  """Inside `jax.shard_map`, marks each array as varying over the mesh axes that the other one varies over."""

  def axes(array):
    aval = jax.typeof(array)
    # Older releases of JAX call it `vma`.
    return frozenset(getattr(getattr(aval, "mat", None), "varying", None) or getattr(aval, "vma", ()))

  def cast(array, missing):
    return lax.pcast(array, tuple(missing), to="varying") if missing else array

  return cast(x, axes(kernel) - axes(x)), cast(kernel, axes(x) - axes(kernel))


class _Geometry(NamedTuple):
  """What defines a convolution beside its arrays: one entry per spatial axis."""

  sizes: tuple[int, ...]
  window: tuple[int, ...]
  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  dilation: tuple[int, ...]
  precision: Any

  def shapes(self, batch: int, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    spans = _spans(self.window, self.dilation)
    positions = tuple(
      (size + low + high - span) // stride + 1
      for size, (low, high), span, stride in zip(self.sizes, self.padding, spans, self.strides)
    )
    return {
      "x": (batch, *self.sizes, inputs),
      "kernel": (*self.window, inputs, outputs),
      "y": (batch, *positions, outputs),
    }


def _per_axis(name: str, value: int | Sequence[int], rank: int) -> tuple[int, ...]:
  values = (value,) * rank if isinstance(value, int) else tuple(value)
  if len(values) != rank or min(values, default=1) < 1:
    raise ValueError(f"{name} is {value}, expected a positive integer or {rank} of them")
  return values


def _spans(window: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
  return tuple((taps - 1) * step + 1 for taps, step in zip(window, dilation))


def _pad_widths(padding, sizes, spans, strides) -> tuple[tuple[int, int], ...]:
  if isinstance(padding, str):
    if padding not in ("SAME", "VALID"):
      raise ValueError(f"padding is {padding!r}, expected 'SAME', 'VALID' or pairs of numbers")
    return tuple(lax.padtype_to_pads(sizes, spans, strides, padding))
  padding = (padding,) * len(sizes) if isinstance(padding, int) else padding
  if len(padding) != len(sizes):
    raise ValueError(f"padding is {padding}, expected {len(sizes)} entries, one per spatial axis")
  return tuple((width, width) if isinstance(width, int) else tuple(width) for width in padding)


def _channels_last(rank: int) -> tuple[str, str, str]:
  axes = "0123456789"[:rank]
  return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def _native(x, kernel, geometry, feature_group_count=1):
  return lax.conv_general_dilated(
    x,
    kernel,
    geometry.strides,
    geometry.padding,
    rhs_dilation=geometry.dilation,
    dimension_numbers=_channels_last(len(geometry.window)),
    feature_group_count=feature_group_count,
    precision=geometry.precision,
  )


def _pointwise(x, kernel, geometry):
  """A kernel of one tap: one matrix product."""
  x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pair, 0) for pair in geometry.padding), (0, 0, 0)))
  x = lax.slice(x, (0,) * x.ndim, x.shape, (1, *geometry.strides, 1))
  return jnp.matmul(x, kernel.reshape(kernel.shape[-2:]), precision=geometry.precision)


# The convolution and its gradients are the three gradients of one form, linear in each of three arrays:
#
#   form(x, kernel, y) = sum_{b, p, q, i, o} x[b, p * stride + q * dilation - low, i] kernel[q, i, o] y[b, p, o]
#
# `_trilinear` gives the one named `out` from the two other arrays, in this order. What is transposed is the form with
# another `out`, so the three are closed under differentiation of every order. Arrays may share leading axes.
_ARRAYS = ("x", "kernel", "y")
_trilinear = Primitive("convolution_form")


def _operands(out: str) -> tuple[str, str]:
  first, second = (name for name in _ARRAYS if name != out)
  return first, second


_trilinear.def_impl(jax.jit(_trilinear.bind, static_argnames=("out", "geometry")))


@_trilinear.def_abstract_eval
def _(first, second, *, out, geometry):
  rank = len(geometry.window)
  shapes = dict(zip(_operands(out), (first.shape, second.shape)))
  lead = first.shape[: first.ndim - rank - 2]
  batch = next(shapes[name][-rank - 2] for name in ("x", "y") if name in shapes)
  inputs = shapes["x"][-1] if "x" in shapes else shapes["kernel"][-2]
  outputs = shapes["y"][-1] if "y" in shapes else shapes["kernel"][-1]
  return first.update(shape=lead + geometry.shapes(batch, inputs, outputs)[out])


def _transpose_rule(position: int):
  def rule(cotangent, first, second, *, out, geometry):
    names = _operands(out)
    known = {names[1 - position]: (first, second)[1 - position], out: cotangent}
    wanted = names[position]
    return _trilinear.bind(*(known[name] for name in _operands(wanted)), out=wanted, geometry=geometry)

  return rule


ad.defbilinear(_trilinear, _transpose_rule(0), _transpose_rule(1))


def _batch_rule(operands, axes, *, out, geometry):
  if None not in axes:
    operands = [jnp.moveaxis(operand, axis, 0) for operand, axis in zip(operands, axes)]
    return _trilinear.bind(*operands, out=out, geometry=geometry), 0
  # One operand only: its new axis joins an axis that this operand has in common with the result.
  mapped = 0 if axes[1] is None else 1
  name, rank = _operands(out)[mapped], len(geometry.window)
  shared = next(axis for axis in "BIO" if axis in _AXES[name] and axis in _AXES[out])
  where = {"B": {"x": -rank - 2, "y": -rank - 2}, "I": {"x": -1, "kernel": -2}, "O": {"kernel": -1, "y": -1}}[shared]
  size = operands[mapped].shape[axes[mapped]]
  operands = list(operands)
  operands[mapped] = _join(operands[mapped], axes[mapped], where[name])
  result = _trilinear.bind(*operands, out=out, geometry=geometry)
  axis = result.ndim + where[out]
  return result.reshape(*result.shape[:axis], size, -1, *result.shape[axis + 1 :]), axis


_AXES = {"x": "BI", "kernel": "IO", "y": "BO"}


def _join(array, axis: int, into: int):
  """Makes `axis` the slow part of the axis `into`, which counts from the end and among the others."""
  into += array.ndim - 1
  array = jnp.moveaxis(array, axis, into)
  return array.reshape(*array.shape[:into], -1, *array.shape[into + 2 :])


batching.primitive_batchers[_trilinear] = _batch_rule


def _natively(first, second, *, out, geometry):
  """XLA's own convolution or its transposes, grouped for leading axes."""

  def compute(first, second):
    if out == "y":
      return _native(first, second, geometry)
    batch, inputs, outputs = second.shape[0], first.shape[-1], second.shape[-1]
    if out == "x":
      x = jax.ShapeDtypeStruct((batch, *geometry.sizes, first.shape[-2]), second.dtype)
      return jax.linear_transpose(lambda x: _native(x, first, geometry), x)(second)[0]
    kernel = jax.ShapeDtypeStruct((*geometry.window, inputs, outputs), second.dtype)
    return jax.linear_transpose(lambda kernel: _native(first, kernel, geometry), kernel)(second)[0]

  for _ in range(first.ndim - len(geometry.window) - 2):
    compute = jax.vmap(compute)
  return compute(first, second)


def _as_forward_convolutions(first, second, *, out, geometry):
  compute = partial({"y": _value, "x": _gradient_by_input, "kernel": _gradient_by_kernel}[out], geometry=geometry)
  lead = first.ndim - len(geometry.window) - 2
  if not lead:
    return compute(first, second)
  flat = [operand.reshape(-1, *operand.shape[lead:]) for operand in (first, second)]
  # One after the other: a forward convolution is fast in a loop, a grouped one nowhere.
  result = lax.map(lambda pair: compute(*pair), tuple(flat))
  return result.reshape(*first.shape[:lead], *result.shape[1:])


mlir.register_lowering(_trilinear, mlir.lower_fun(_natively, multiple_results=False))
mlir.register_lowering(_trilinear, mlir.lower_fun(_as_forward_convolutions, multiple_results=False), platform="cpu")


def _surplus_rows(rows_in: int, rows_out: int, features: int, threads: int) -> int:
  """Rows to compute in vain above the output, so that the convolution runs on all threads.

  YNNPACK, which takes what has at most as many rows as its input, runs a convolution of few features on one thread;
  Eigen, which takes the rest, on all of them, at 0.85 of YNNPACK's speed on each. So on one thread there are none, and
  on several at most a quarter of the work.
  """
  surplus = rows_in + 1 - rows_out
  shared = threads == 1 or features >= _SHARED_FEATURES
  return 0 if shared or not 0 < surplus <= rows_out // 4 else surplus


def _forward(x, kernel, strides, padding, dilation, precision):
  """XLA's forward convolution; negative padding, for which it has no fast kernel, crops first."""
  starts = (0, *(max(-low, 0) for low, _ in padding), 0)
  stops = (x.shape[0], *(size - max(-high, 0) for size, (_, high) in zip(x.shape[1:-1], padding)), x.shape[-1])
  x = lax.slice(x, starts, stops)
  padding = [(max(low, 0), max(high, 0)) for low, high in padding]
  span = (kernel.shape[0] - 1) * dilation[0] + 1
  rows = (x.shape[1] + sum(padding[0]) - span) // strides[0] + 1
  surplus = _surplus_rows(x.shape[1], rows, kernel.shape[-1], count_cores())
  padding[0] = (padding[0][0] + surplus * strides[0], padding[0][1])
  y = lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=_channels_last(len(strides)),
    precision=precision,
  )
  return lax.slice_in_dim(y, surplus, surplus + rows, axis=1)


# Winograd's F(2x2, 3x3): the weights of four inputs, of three taps and of two outputs in each of four products, along
# one axis. A product takes two inputs only: the first, and the second with the sign.
_INPUTS = ((0, 2, -1), (1, 2, 1), (2, 1, -1), (1, 3, -1))
_TAPS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_OUTPUTS = np.array([[1, 0], [1, 1], [1, -1], [0, -1]], np.float32)


def _in_tiles(geometry: _Geometry, x: tuple[int, ...], y: tuple[int, ...], dtype: Any) -> bool:
  """Whether Winograd's algorithm computes the array `y` from `x`, or the kernel from both, given their shapes.

  It does 4/9 of the multiplications in 16 matrix products, which run on all threads. The sums before and after grow
  with the channels, the products with their square: with 128 channels it takes 0.75 of the time of XLA's convolution,
  with 256 0.6, with 64 more. Rounding errors are up to twice as large, so it is not for those who ask for a precision.
  """
  _, window, strides, padding, dilation, precision = geometry
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


def _tiled_forward(x, kernel, padding, axis):
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


def _tiled_gradient_by_kernel(x, y, padding):
  def compute(rows):
    of_input, of_output = rows
    of_products = (_weighted(weights, (of_output[:, :, ::2], of_output[:, :, 1::2])) for weights in _OUTPUTS)
    product = lambda a, b: a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])
    products = list(map(product, _columns_of_input(of_input), of_products))
    return jnp.stack([_weighted(weights, products) for weights in _TAPS.T])

  of_output = jnp.stack([_weighted(weights, (y[:, ::2], y[:, 1::2])) for weights in _OUTPUTS])
  rows = lax.map(compute, (_rows_of_input(x, padding), of_output))
  return jnp.stack([_weighted(weights, rows) for weights in _TAPS.T])


def _value(x, kernel, geometry):
  if _in_tiles(geometry, x.shape, geometry.shapes(x.shape[0], *kernel.shape[-2:])["y"], x.dtype):
    return _tiled_forward(x, kernel, geometry.padding, 0)
  return _forward(x, kernel, geometry.strides, geometry.padding, geometry.dilation, geometry.precision)


def _gradient_by_kernel(x, y, geometry):
  """Channels as the images, images as the channels: the kernel is the convolution of `x` by `y`."""
  if _in_tiles(geometry, x.shape, y.shape, x.dtype):
    return _tiled_gradient_by_kernel(x, y, geometry.padding)
  padding = [
    (low, (taps - 1) * step + (count - 1) * stride + 1 - size - low)
    for size, taps, stride, (low, _), step, count in zip(*geometry[:5], y.shape[1:-1])
  ]
  x, y = _swap_batch_and_channels(x), jnp.moveaxis(y, 0, -2)
  kernel = _forward(x, y, geometry.dilation, padding, geometry.strides, geometry.precision)
  return jnp.moveaxis(kernel, 0, -2)


def _swap_batch_and_channels(x):
  """`jnp.swapaxes(x, 0, -1)`; for large arrays row by row in a loop, in a network up to five times faster.

  XLA's one copy reads each element from a cache line of its own, and where x comes from elementwise operations it
  computes it on the way, from several such lines. What a loop starts from is computed first, whole pixels at a time.
  """
  if x.size < _LARGE:
    return jnp.swapaxes(x, 0, -1)
  rows = jnp.moveaxis(x, 0, -2)
  start, rows = _equally_varying(jnp.zeros((x.shape[-1], *rows.shape[:-1]), x.dtype), rows)
  swap = lambda row, y: lax.dynamic_update_index_in_dim(y, jnp.moveaxis(rows[row], -1, 0), row, 1)
  return lax.fori_loop(0, len(rows), swap, start)


def _gradient_by_input(kernel, y, geometry):
  """`y` convolved by the flipped kernel; with strides, one such convolution for each phase of the input.

  Along one axis, x at t * stride + phase gets y[t - (q * dilation - low - phase) / stride] kernel[q] of all taps q for
  which the fraction is whole: every (stride / gcd(stride, dilation))-th tap.
  """
  sizes, window, strides, padding, dilation, precision = geometry
  if _in_tiles(geometry, y.shape, (y.shape[0], *sizes, kernel.shape[-2]), y.dtype):
    return _tiled_forward(y, lax.rev(kernel, (0, 1)), [(2 - low, 2 - high) for low, high in padding], 1)
  counts = [-(-size // stride) for size, stride in zip(sizes, strides)]
  flipped = jnp.swapaxes(kernel, -1, -2)

  def compute_phase(phases):
    part, pads, steps = flipped, [], []
    for axis, (phase, stride, (low, _), step) in enumerate(zip(phases, strides, padding, dilation)):
      taps = [q for q in range(window[axis]) if (q * step - low - phase) % stride == 0]
      if not taps:
        return jnp.zeros((y.shape[0], *counts, kernel.shape[-2]), y.dtype)
      every = stride // math.gcd(stride, step)
      part = lax.rev(lax.slice_in_dim(part, taps[0], taps[-1] + 1, every, axis), (axis,))
      first, last = ((q * step - low - phase) // stride for q in (taps[0], taps[-1]))
      pads.append((last, counts[axis] - y.shape[axis + 1] - first))
      steps.append(step * every // stride)
    return _forward(y, part, (1,) * len(window), pads, steps, precision)

  phases = [compute_phase(phases) for phases in itertools.product(*map(range, strides))]
  if len(phases) == 1:
    return phases[0]
  # (phase of each axis, B, t of each axis, I) to (B, t and phase of each axis, I).
  rank = len(window)
  x = jnp.stack(phases).reshape(*strides, *phases[0].shape)
  x = x.transpose(rank, *(a for axis in range(rank) for a in (rank + 1 + axis, axis)), 2 * rank + 1)
  x = x.reshape(y.shape[0], *(count * stride for count, stride in zip(counts, strides)), -1)
  return lax.slice(x, (0,) * x.ndim, (x.shape[0], *sizes, x.shape[-1]))


class Conv(nn.Module):
  """`flax.linen.Conv` computed by `convolve`: the same arguments, parameters and results.

  A checkpoint of one loads in the other. Padding may also be "CIRCULAR" (periodic). Any number of leading batch axes,
  none included. Arguments of `flax.linen.Conv` that are absent here: `input_dilation`, `mask`, and the paddings
  "REFLECT" and "CAUSAL".

  Raises ValueError where the input's channels are no multiple of `feature_group_count`, and as `convolve` does.
  """

  features: int
  kernel_size: int | Sequence[int]
  strides: int | Sequence[int] = 1
  padding: Padding = "SAME"
  kernel_dilation: int | Sequence[int] = 1
  feature_group_count: int = 1
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
    if x.shape[-1] % self.feature_group_count:
      raise ValueError(
        f"x has {x.shape[-1]} channels, expected a multiple of feature_group_count={self.feature_group_count}"
      )
    in_features = x.shape[-1] // self.feature_group_count
    kernel = self.param("kernel", self.kernel_init, (*window, in_features, self.features), self.param_dtype)
    bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)

    batch_shape = x.shape[: x.ndim - rank - 1]
    x = x.reshape(math.prod(batch_shape), *x.shape[len(batch_shape) :])
    padding = self.padding
    if padding == "CIRCULAR":
      spans = _spans(window, _per_axis("kernel_dilation", self.kernel_dilation, rank))
      x = jnp.pad(x, ((0, 0), *(((span - 1) // 2, span // 2) for span in spans), (0, 0)), mode="wrap")
      padding = "VALID"
    y = convolve(x, kernel, self.strides, padding, self.kernel_dilation, self.feature_group_count, self.precision)
    if bias is not None:
      y += jnp.expand_dims(bias, range(y.ndim - 1))
    return y.reshape(*batch_shape, *y.shape[1:])


def contains_slow_convolution(closed_jaxpr: ClosedJaxpr | Jaxpr) -> bool:
  """Whether a traced function holds a convolution that the CPU backend runs slowly inside a `while` loop.

  That is the gradient of XLA's own convolution with respect to its kernel. Forward convolutions and gradients with
  respect to the input do not count, nor do the branches that `lax.platform_dependent` keeps for other platforms.
  Takes what `jax.make_jaxpr(f)(...)` or `jax.jit(f).trace(...).jaxpr` gives, and looks into all it contains.
  """
  jaxpr = getattr(closed_jaxpr, "jaxpr", closed_jaxpr)
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "conv_general_dilated":
      batch_axis, feature_axis = eqn.params["dimension_numbers"].lhs_spec[:2]
      # JAX writes the kernel's gradient as a convolution that sums over the batch as if it were the channels.
      if batch_axis > feature_axis:
        return True
    if any(contains_slow_convolution(inner) for inner in _inner_jaxprs_on_cpu(eqn)):
      return True
  return False


def contains_convolution(closed_jaxpr: ClosedJaxpr | Jaxpr) -> bool:
  """Whether a traced function holds a convolution, of this module or XLA's own, on the CPU."""
  jaxpr = getattr(closed_jaxpr, "jaxpr", closed_jaxpr)
  names = {"conv_general_dilated", _trilinear.name}
  return any(
    eqn.primitive.name in names or any(map(contains_convolution, _inner_jaxprs_on_cpu(eqn))) for eqn in jaxpr.eqns
  )


def _inner_jaxprs_on_cpu(eqn) -> list[ClosedJaxpr | Jaxpr]:
  platforms = eqn.params.get("branches_platforms")
  if platforms is not None:
    # One tuple of names per branch; the default branch has None and stands last.
    chosen = next(i for i, names in enumerate(platforms) if names is None or "cpu" in names)
    return [eqn.params["branches"][chosen]]
  leaves = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda value: isinstance(value, ClosedJaxpr | Jaxpr))
  return [leaf for leaf in leaves if isinstance(leaf, ClosedJaxpr | Jaxpr)]
