"""Convolution that is fast on every backend, in loops, under `vmap` and at every order of differentiation.

XLA's CPU backend has no fast kernel for the weight gradient that JAX writes where it stands inside a `while` loop (so
also inside `lax.scan` and `lax.fori_loop`), nor for the gradient with respect to the input where the stride is above
1, nor for grouped convolutions, those that `vmap` over kernels gives among them. It has one for the forward
convolution, and on the CPU `convolve` writes both gradients, and theirs, as forward convolutions; wide ones with a 3x3
window are matrix products, by Winograd's algorithm; depthwise ones sums of shifted images, other grouped ones a few
convolutions. On all other platforms it is XLA's own convolution with XLA's own gradients.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, Inexact, Num

from mlnotes.nn.geometry import Geometry, Padding, equally_varying, pad_widths, per_axis, spans
from mlnotes.nn.trilinear import native, trilinear


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

  and with groups the i of o's group only: kernel has I = C / feature_group_count input channels, and the o-th output
  belongs to group o // (O / feature_group_count), as in torch. Zero padding:

  - "SAME": ceil(size / stride) positions, the smaller half before, so (0, 1) for 3 taps, stride 2 and an even size;
  - "TORCH": (k - 1) * dilation // 2 on both sides whatever the stride, (1, 1) there: the shape is the same, the numbers
    are others. What networks with torch's weights need;
  - "VALID": none. One integer: on all sides. A sequence: an integer or (low, high) per spatial axis.

  Gives what `lax.conv_general_dilated` gives up to rounding; on the CPU numbers that are not finite may also reach the
  outputs of neighbouring groups.

  Raises ValueError where ranks, channels, groups or sizes do not fit together.
  """
  rank = x.ndim - 2
  if kernel.ndim != x.ndim:
    raise ValueError(f"kernel has {kernel.ndim} axes, expected {x.ndim}, as many as x")
  groups = feature_group_count
  if groups < 1:
    raise ValueError(f"feature_group_count is {groups}, expected a positive integer")
  if x.shape[-1] != kernel.shape[-2] * groups:
    raise ValueError(
      f"x has {x.shape[-1]} channels, expected {kernel.shape[-2] * groups}: the kernel's input channels"
      f" times feature_group_count={groups}"
    )
  if kernel.shape[-1] % groups:
    raise ValueError(f"kernel has {kernel.shape[-1]} features, expected a multiple of feature_group_count={groups}")
  if x.dtype != kernel.dtype:
    raise ValueError(f"kernel is {kernel.dtype}, expected {x.dtype}, the type of x")
  strides, dilation = per_axis("strides", strides, rank), per_axis("kernel_dilation", kernel_dilation, rank)
  extents = spans(kernel.shape[:-2], dilation)
  padding = pad_widths(padding, x.shape[1:-1], extents, strides)
  padded = tuple(size + low + high for size, (low, high) in zip(x.shape[1:-1], padding))
  if any(size < extent for size, extent in zip(padded, extents)):
    raise ValueError(f"x has spatial size {padded} after padding, expected at least the kernel's {extents}")

  geometry = Geometry(x.shape[1:-1], kernel.shape[:-2], strides, padding, dilation, precision, groups)
  if groups == math.prod(kernel.shape[:-2]) == 1:
    default = partial(native, geometry=geometry)
    return lax.platform_dependent(x, kernel, cpu=partial(_pointwise, geometry=geometry), default=default)
  return trilinear.bind(*equally_varying(x, kernel), out="y", geometry=geometry)


def _pointwise(x, kernel, geometry):
  """A kernel of one tap: one matrix product."""
  x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pair, 0) for pair in geometry.padding), (0, 0, 0)))
  x = lax.slice(x, (0,) * x.ndim, x.shape, (1, *geometry.strides, 1))
  return jnp.matmul(x, kernel.reshape(kernel.shape[-2:]), precision=geometry.precision)


class Conv(nn.Module):
  """`flax.linen.Conv` computed by `convolve`: the same arguments, parameters and results.

  A checkpoint of one loads in the other. Padding may also be "CIRCULAR" (periodic). Any number of leading batch axes,
  none included. Arguments of `flax.linen.Conv` that are absent here: `input_dilation`, `mask`, and the paddings
  "REFLECT" and "CAUSAL".

  Raises ValueError where the input's channels or `features` are no multiple of `feature_group_count`, where there are
  no features or no taps, and as `convolve` does.
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
    if self.features < 1 or min(window, default=1) < 1:
      raise ValueError(f"features is {self.features}, kernel_size {self.kernel_size}: expected positive integers")
    if self.feature_group_count < 1:
      raise ValueError(f"feature_group_count is {self.feature_group_count}, expected a positive integer")
    if self.features % self.feature_group_count:
      raise ValueError(
        f"features is {self.features}, expected a multiple of feature_group_count={self.feature_group_count}"
      )
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
      extents = spans(window, per_axis("kernel_dilation", self.kernel_dilation, rank))
      x = jnp.pad(x, ((0, 0), *(((extent - 1) // 2, extent // 2) for extent in extents), (0, 0)), mode="wrap")
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
  names = {"conv_general_dilated", trilinear.name}
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
