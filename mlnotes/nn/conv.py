"""Convolution that is fast on every backend, in loops, under `vmap` and at every order of differentiation.

XLA's CPU backend has no fast kernel for the weight gradient of a convolution inside a `while` loop (so also inside
`lax.scan` and `lax.fori_loop`), nor for the grouped convolutions that `vmap` over kernels gives. There `convolve`
differentiates a matrix product of patches instead, whose derivatives of every order are matrix products as well. On
all other platforms it is XLA's own convolution with XLA's own gradients.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, Inexact, Num

# "SAME", "VALID", one integer for all sides, or per spatial axis one integer or (low, high).
Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]

# Patches of at most this size stay in the last-level cache between being written and being multiplied.
_PATCH_BYTES = 4 * 2**20


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
  strides, dilation = _per_axis("strides", strides, rank), _per_axis("kernel_dilation", kernel_dilation, rank)
  spans = _spans(kernel.shape[:-2], dilation)
  padding = _pad_widths(padding, x.shape[1:-1], spans, strides)
  padded = tuple(size + low + high for size, (low, high) in zip(x.shape[1:-1], padding))
  if any(size < span for size, span in zip(padded, spans)):
    raise ValueError(f"x has spatial size {padded} after padding, expected at least the kernel's {spans}")

  native = partial(
    lax.conv_general_dilated,
    window_strides=strides,
    padding=padding,
    rhs_dilation=dilation,
    dimension_numbers=lax.conv_dimension_numbers(x.shape, kernel.shape, _channels_last(rank)),
    feature_group_count=feature_group_count,
    precision=precision,
  )
  if feature_group_count != 1:
    return native(x, kernel)
  product = partial(_convolve_as_product, strides=strides, padding=padding, dilation=dilation, precision=precision)
  on_cpu = product if math.prod(kernel.shape[:-2]) == 1 else _with_derivatives_of(native, product)
  # One checkpoint around both, so that the backward pass keeps x and not its patches.
  choice = partial(lax.platform_dependent, cpu=on_cpu, default=native)
  return jax.checkpoint(choice, prevent_cse=False)(x, kernel)


def _with_derivatives_of(native, product):
  """`native`, for values of single kernels only: derivatives, and values under `vmap` over kernels, by `product`."""

  @jax.custom_batching.custom_vmap
  def compute_value(x, kernel):
    return native(x, kernel)

  @compute_value.def_vmap
  def _(axis_size, batched, x, kernel):
    x_batched, kernel_batched = batched
    if kernel_batched:
      return jax.vmap(product, (0 if x_batched else None, 0))(x, kernel), True
    y = compute_value(x.reshape(-1, *x.shape[2:]), kernel)
    return y.reshape(axis_size, -1, *y.shape[1:]), True

  convolution = jax.custom_jvp(compute_value)

  @convolution.defjvp
  def _(primals, tangents):
    return convolution(*primals), jax.jvp(product, primals, tangents)[1]

  return convolution


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


def _convolve_as_product(x, kernel, strides, padding, dilation, precision):
  """The convolution as matrix products of patches, as many images at a time as the cache holds."""
  product = partial(_patch_product, strides=strides, padding=padding, dilation=dilation, precision=precision)
  out = jax.eval_shape(product, x, kernel)
  batch, window = x.shape[0], math.prod(kernel.shape[:-2])
  image_bytes = math.prod(out.shape[1:-1]) * math.prod(kernel.shape[:-1]) * x.dtype.itemsize
  counts = (n for n in range(1, batch) if batch % n == 0 and batch // n * image_bytes <= _PATCH_BYTES)
  chunks = 1 if window == 1 else next(counts, max(batch, 1))
  if chunks == 1:
    return product(x, kernel)
  # A chunk takes every `chunks`-th image, so that a batch sharded over devices stays sharded.
  images = jnp.swapaxes(x.reshape(batch // chunks, chunks, *x.shape[1:]), 0, 1)
  # Without the checkpoint the scan would stack the patches of all chunks for its backward pass.
  product = jax.checkpoint(product, prevent_cse=False)
  _, y = lax.scan(lambda _, chunk: (None, product(chunk, kernel)), None, images)
  return jnp.swapaxes(y, 0, 1).reshape(out.shape)


def _patch_product(x, kernel, strides, padding, dilation, precision):
  """One product: (images and positions) x (window and channels) by (window and channels) x (features)."""
  patches = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)))
  rank = x.ndim - 2
  # One axis at a time: the offsets of all axes at once make many more slices, which compile slowly.
  for axis in reversed(range(rank)):
    taps, stride, step = kernel.shape[axis], strides[axis], dilation[axis]
    span = patches.shape[axis + 1] - (taps - 1) * step
    slices = [lax.slice_in_dim(patches, tap * step, tap * step + span, stride, axis + 1) for tap in range(taps)]
    patches = jnp.stack(slices, axis=rank + 1)
  return jnp.matmul(
    patches.reshape(*patches.shape[: rank + 1], -1),
    kernel.reshape(-1, kernel.shape[-1]),
    precision=precision,
  )


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


def _inner_jaxprs_on_cpu(eqn) -> list[ClosedJaxpr | Jaxpr]:
  platforms = eqn.params.get("branches_platforms")
  if platforms is not None:
    # One tuple of names per branch; the default branch has None and stands last.
    chosen = next(i for i, names in enumerate(platforms) if names is None or "cpu" in names)
    return [eqn.params["branches"][chosen]]
  leaves = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda value: isinstance(value, ClosedJaxpr | Jaxpr))
  return [leaf for leaf in leaves if isinstance(leaf, ClosedJaxpr | Jaxpr)]
