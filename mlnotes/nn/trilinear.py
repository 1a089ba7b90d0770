"""The form whose three gradients are a convolution and its two gradients, and how the CPU computes them."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from mlnotes.engine.sharding import count_cores
from mlnotes.nn.geometry import equally_varying
from mlnotes.nn.grouped import (
  compute_by_group,
  depthwise_gradient_by_kernel,
  depthwise_value,
  is_depthwise,
  shifted_sum,
)
from mlnotes.nn.winograd import in_tiles, tiled_forward, tiled_gradient_by_kernel

# From this many features on, XLA's convolution library shares its work among threads (see `_surplus_rows`).
_SHARED_FEATURES = 128
# From this many elements on, the batch and the channels are swapped in a loop (see `_swap_batch_and_channels`).
_LARGE = 2**22


def _channels_last(rank: int) -> tuple[str, str, str]:
  axes = "0123456789"[:rank]
  return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def native(x, kernel, geometry):
  """XLA's own convolution."""
  return lax.conv_general_dilated(
    x,
    kernel,
    geometry.strides,
    geometry.padding,
    rhs_dilation=geometry.dilation,
    dimension_numbers=_channels_last(len(geometry.window)),
    feature_group_count=geometry.groups,
    precision=geometry.precision,
  )


# The convolution and its gradients are the three gradients of one form, linear in each of three arrays:
#
#   form(x, kernel, y) = sum_{b, p, q, i, o} x[b, p * stride + q * dilation - low, i] kernel[q, i, o] y[b, p, o]
#
# and with groups the sum over the pairs (i, o) of one group only, i counted within it in the kernel.
# `trilinear` gives the one named `out` from the two other arrays, in this order. What is transposed is the form with
# another `out`, so the three are closed under differentiation of every order. Arrays may share leading axes.
_ARRAYS = ("x", "kernel", "y")
trilinear = Primitive("convolution_form")


def _operands(out: str) -> tuple[str, str]:
  first, second = (name for name in _ARRAYS if name != out)
  return first, second


trilinear.def_impl(jax.jit(trilinear.bind, static_argnames=("out", "geometry")))


@trilinear.def_abstract_eval
def _(first, second, *, out, geometry):
  rank = len(geometry.window)
  shapes = dict(zip(_operands(out), (first.shape, second.shape)))
  lead = first.shape[: first.ndim - rank - 2]
  batch = next(shapes[name][-rank - 2] for name in ("x", "y") if name in shapes)
  inputs = shapes["x"][-1] if "x" in shapes else shapes["kernel"][-2] * geometry.groups
  outputs = shapes["y"][-1] if "y" in shapes else shapes["kernel"][-1]
  return first.update(shape=lead + geometry.shapes(batch, inputs, outputs)[out])


def _transpose_rule(position: int):
  def rule(cotangent, first, second, *, out, geometry):
    names = _operands(out)
    known = {names[1 - position]: (first, second)[1 - position], out: cotangent}
    wanted = names[position]
    return trilinear.bind(*(known[name] for name in _operands(wanted)), out=wanted, geometry=geometry)

  return rule


ad.defbilinear(trilinear, _transpose_rule(0), _transpose_rule(1))


def _batch_rule(operands, axes, *, out, geometry):
  if None in axes:
    mapped = 0 if axes[1] is None else 1
    name = _operands(out)[mapped]
    shared = next(axis for axis in "BIO" if axis in _AXES[name] and axis in _AXES[out])
    # With groups there is no such kernel for I: its groups would need the new axis outside and inside at once.
    if geometry.groups == 1 or shared != "I":
      return _batch_one(operands, axes[mapped], mapped, shared, out, geometry)
    size = operands[mapped].shape[axes[mapped]]
    operands, axes = list(operands), list(axes)
    operands[1 - mapped] = jnp.broadcast_to(operands[1 - mapped], (size, *operands[1 - mapped].shape))
    axes[1 - mapped] = 0
  operands = [jnp.moveaxis(operand, axis, 0) for operand, axis in zip(operands, axes)]
  return trilinear.bind(*operands, out=out, geometry=geometry), 0


_AXES = {"x": "BI", "kernel": "IO", "y": "BO"}


def _batch_one(operands, axis, mapped, shared, out, geometry):
  """One operand only: its new axis joins an axis that this operand has in common with the result."""
  name, rank = _operands(out)[mapped], len(geometry.window)
  where = {"B": {"x": -rank - 2, "y": -rank - 2}, "I": {"x": -1, "kernel": -2}, "O": {"kernel": -1, "y": -1}}[shared]
  size, groups = operands[mapped].shape[axis], geometry.groups if shared == "O" else 1
  operands = list(operands)
  operands[mapped] = _join(operands[mapped], axis, where[name], groups)
  result = trilinear.bind(*operands, out=out, geometry=geometry)
  axis = result.ndim + where[out]
  if groups == 1:
    return result.reshape(*result.shape[:axis], size, -1, *result.shape[axis + 1 :]), axis
  result = jnp.moveaxis(result.reshape(*result.shape[:axis], groups, size, -1), axis + 1, 0)
  return result.reshape(*result.shape[:-2], -1), 0


def _join(array, axis: int, into: int, groups: int):
  """Makes `axis` the slow part of the axis `into`, or of its groups; `into` counts from the end among the others."""
  into += array.ndim - 1
  array = jnp.moveaxis(array, axis, into)
  size, rest = array.shape[into : into + 2]
  if groups > 1:
    array = jnp.moveaxis(array.reshape(*array.shape[: into + 1], groups, rest // groups), into, into + 1)
  return array.reshape(*array.shape[:into], size * rest, *array.shape[into + 2 + (groups > 1) :])


batching.primitive_batchers[trilinear] = _batch_rule


def _natively(first, second, *, out, geometry):
  """XLA's own convolution or its transposes, grouped for leading axes."""

  def compute(first, second):
    if out == "y":
      return native(first, second, geometry)
    batch, inputs, outputs = second.shape[0], first.shape[-1], second.shape[-1]
    if out == "x":
      x = jax.ShapeDtypeStruct((batch, *geometry.sizes, first.shape[-2] * geometry.groups), second.dtype)
      return jax.linear_transpose(lambda x: native(x, first, geometry), x)(second)[0]
    kernel = jax.ShapeDtypeStruct((*geometry.window, inputs // geometry.groups, outputs), second.dtype)
    return jax.linear_transpose(lambda kernel: native(first, kernel, geometry), kernel)(second)[0]

  for _ in range(first.ndim - len(geometry.window) - 2):
    compute = jax.vmap(compute)
  return compute(first, second)


def _as_forward_convolutions(first, second, *, out, geometry):
  compute = partial(_compute, out=out, geometry=geometry)
  lead = first.ndim - len(geometry.window) - 2
  if not lead:
    return compute(first, second)
  flat = [operand.reshape(-1, *operand.shape[lead:]) for operand in (first, second)]
  arrays = {name: operand[0] for name, operand in zip(_operands(out), flat)}
  if out != "kernel" and geometry.groups > 1 and is_depthwise(arrays, geometry):
    result = jax.vmap(compute)(*flat)  # elementwise: together they share the cost of each operation
  else:
    # One after the other: a forward convolution is fast in a loop, a grouped one nowhere.
    result = lax.map(lambda pair: compute(*pair), tuple(flat))
  return result.reshape(*first.shape[:lead], *result.shape[1:])


def _compute(first, second, out, geometry):
  if geometry.groups == 1:
    return {"y": _value, "x": _gradient_by_input, "kernel": _gradient_by_kernel}[out](first, second, geometry)
  arrays = dict(zip(_operands(out), (first, second)))
  if not is_depthwise(arrays, geometry):
    return compute_by_group(_compute, arrays, out, geometry)
  if out == "y":
    return depthwise_value(first, second, geometry)
  if out == "kernel":
    return depthwise_gradient_by_kernel(first, second, geometry)
  multiplier = second.shape[-1] // geometry.groups
  return sum(
    _by_phases(first[..., start::multiplier], second[..., start::multiplier], geometry, shifted_sum)
    for start in range(multiplier)
  )


mlir.register_lowering(trilinear, mlir.lower_fun(_natively, multiple_results=False))
mlir.register_lowering(trilinear, mlir.lower_fun(_as_forward_convolutions, multiple_results=False), platform="cpu")


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


def _value(x, kernel, geometry):
  if in_tiles(geometry, x.shape, geometry.shapes(x.shape[0], *kernel.shape[-2:])["y"], x.dtype):
    return tiled_forward(x, kernel, geometry.padding, 0)
  return _forward(x, kernel, geometry.strides, geometry.padding, geometry.dilation, geometry.precision)


def _gradient_by_kernel(x, y, geometry):
  """Channels as the images, images as the channels: the kernel is the convolution of `x` by `y`."""
  if in_tiles(geometry, x.shape, y.shape, x.dtype):
    return tiled_gradient_by_kernel(x, y, geometry.padding)
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
  start, rows = equally_varying(jnp.zeros((x.shape[-1], *rows.shape[:-1]), x.dtype), rows)
  swap = lambda row, y: lax.dynamic_update_index_in_dim(y, jnp.moveaxis(rows[row], -1, 0), row, 1)
  return lax.fori_loop(0, len(rows), swap, start)


def _gradient_by_input(kernel, y, geometry):
  sizes, _, _, padding, *_ = geometry
  if in_tiles(geometry, y.shape, (y.shape[0], *sizes, kernel.shape[-2]), y.dtype):
    return tiled_forward(y, lax.rev(kernel, (0, 1)), [(2 - low, 2 - high) for low, high in padding], 1)
  return _by_phases(jnp.swapaxes(kernel, -1, -2), y, geometry, _forward)


def _by_phases(kernel, y, geometry, forward):
  """`y` convolved by the flipped kernel; with strides, one such convolution for each phase of the input.

  Along one axis, x at t * stride + phase gets y[t - (q * dilation - low - phase) / stride] kernel[q] of all taps q for
  which the fraction is whole: every (stride / gcd(stride, dilation))-th tap.
  """
  sizes, window, strides, padding, dilation, precision, _ = geometry
  counts = [-(-size // stride) for size, stride in zip(sizes, strides)]

  def compute_phase(phases):
    part, pads, steps = kernel, [], []
    for axis, (phase, stride, (low, _), step) in enumerate(zip(phases, strides, padding, dilation)):
      taps = [q for q in range(window[axis]) if (q * step - low - phase) % stride == 0]
      if not taps:
        return jnp.zeros((y.shape[0], *counts, kernel.shape[-1]), y.dtype)
      every = stride // math.gcd(stride, step)
      part = lax.rev(lax.slice_in_dim(part, taps[0], taps[-1] + 1, every, axis), (axis,))
      first, last = ((q * step - low - phase) // stride for q in (taps[0], taps[-1]))
      pads.append((last, counts[axis] - y.shape[axis + 1] - first))
      steps.append(step * every // stride)
    return forward(y, part, (1,) * len(window), pads, steps, precision)

  phases = [compute_phase(phases) for phases in itertools.product(*map(range, strides))]
  if len(phases) == 1:
    return phases[0]
  # (phase of each axis, B, t of each axis, I) to (B, t and phase of each axis, I).
  rank = len(window)
  x = jnp.stack(phases).reshape(*strides, *phases[0].shape)
  x = x.transpose(rank, *(a for axis in range(rank) for a in (rank + 1 + axis, axis)), 2 * rank + 1)
  x = x.reshape(y.shape[0], *(count * stride for count, stride in zip(counts, strides)), -1)
  return lax.slice(x, (0,) * x.ndim, (x.shape[0], *sizes, x.shape[-1]))
