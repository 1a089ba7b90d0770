"""Normalisation layers that a large mean, a constant input, half precision and padding leave exact.

The variance E[x^2] - E[x]^2 (the default of Flax's layers) cancels where the mean is large: at mean 1e4 and deviation 1
float32 has no digit left of it. Here moments are of x - c for a constant c near the mean, in float32 (float64 for such
an x). BatchNorm and GroupNorm take c from the middle position, of the whole batch or of each example: (mean - c)^2 is
then at most as many variances as there are positions, and both moments come from one pass. A mean taken first costs a
pass and is rounded, by up to 1e-3 of the deviation at 1e4. Milliseconds for 64x32x32x64 in float32 on two CPU cores,
best of 15, forward and gradient: about c 3.8 and 6.0, two passes 3.5 and 7.1, E[x^2] - E[x]^2 2.5 and 4.9 (the bare
formulas); as modules, BatchNorm 2.7 and 4.0 against 3.6 and 3.8 for the last, GroupNorm 2.9 and 6.0 against 3.6 and 7.4
for two passes.

`mask` is True (or not 0) where an example, shape (B,), or a position, (B, *space), counts. The statistics are those of
what counts; all else comes out as 0, and nothing that stands there, NaN included, reaches a value or a gradient.

Every norm raises ValueError where x holds integers.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Num

Mask = Bool[Array, "B *positions"] | Num[Array, "B *positions"]


class GroupNorm(nn.Module):
  """Normalises each group of neighbouring channels of each example to mean 0 and variance 1, then scales and shifts.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias                  Wu & He 2018, eq. 1, 7

  `groups=1` is LayerNorm over space and channels together; `groups=None`, one group for each channel, is InstanceNorm
  (Ulyanov et al. 2016). Same parameters as `flax.linen.GroupNorm`. epsilon is Flax's; torch's is 1e-5.

  Statistics are float32 whatever `dtype`, the type of the result (None: that of x). Sums run over pixels first and
  over a group's channels last, so no image is reshaped: about half the time of `flax.linen.GroupNorm` on a CPU.

  Raises ValueError where `groups` does not divide the channels, or the mask does not fit x.
  """

  groups: int | None = 8
  epsilon: float = 1e-6
  dtype: DTypeLike | None = jnp.float32
  scale_init: Callable[..., Array] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, "B *space C"], mask: Mask | None = None) -> Float[Array, "B *space C"]:
    channels = x.shape[-1]
    groups = channels if self.groups is None else self.groups
    if groups < 1 or channels % groups:
      raise ValueError(f"groups={groups} must divide the number of channels, found {channels}")
    scale = self.param("scale", self.scale_init, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    pixels = tuple(range(1, x.ndim - 1))
    rows, counted = _exact(x), _counted(mask, x)

    def group_mean(values: Array, counted: Array | None) -> Array:
      per_channel = _mean(values, pixels, counted)
      grouped = per_channel.reshape(*per_channel.shape[:-1], groups, channels // groups)
      return jnp.broadcast_to(jnp.mean(grouped, -1, keepdims=True), grouped.shape).reshape(per_channel.shape)

    rows = rows if counted is None else jnp.where(counted, rows, 0)
    center = group_mean(_middle(rows), None) if counted is None else group_mean(rows, counted)
    deviation = rows - _constant(center)
    mean = group_mean(deviation, counted)
    var = jnp.maximum(group_mean(jnp.square(deviation), counted) - jnp.square(mean), 0)
    gain = jax.lax.rsqrt(var + self.epsilon) * jnp.expand_dims(scale, range(x.ndim - 1))
    y = deviation * gain + (jnp.expand_dims(bias, range(x.ndim - 1)) - mean * gain)
    return _result(y, counted, x.dtype if self.dtype is None else self.dtype)


InstanceNorm = partial(GroupNorm, groups=None)


class LayerNorm(nn.Module):
  """Normalises the last axis of each position to mean 0 and variance 1, then scales and shifts.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias                  Ba et al. 2016, eq. 3-4

  Same parameters as `flax.linen.LayerNorm`. epsilon stands inside the root and is Flax's; torch's is 1e-5, BERT's
  1e-12. A position needs no mask: its statistics are its own.

  Statistics are float32 whatever `dtype`, the type of the result (None: that of x), and of two passes: Flax's of one
  are off by 10 deviations where x = 1e4 + .01 noise, and its two by the rounding of the mean.
  """

  epsilon: float = 1e-6
  dtype: DTypeLike | None = None
  use_scale: bool = True
  use_bias: bool = True
  scale_init: Callable[..., Array] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    mean = lambda values: jnp.mean(values, axis=-1, keepdims=True)
    deviation = _exact(x) - _constant(mean(_exact(x)))
    # The first mean is rounded to the digits of x; what is left of it is not small beside the deviation.
    rest = mean(deviation)
    var = jnp.maximum(mean(jnp.square(deviation)) - jnp.square(rest), 0)
    y = (deviation - rest) * jax.lax.rsqrt(var + self.epsilon)
    per_channel = lambda v: jnp.expand_dims(v, range(x.ndim - 1))
    if self.use_scale:
      y *= per_channel(self.param("scale", self.scale_init, (x.shape[-1],)))
    if self.use_bias:
      y += per_channel(self.param("bias", nn.initializers.zeros, (x.shape[-1],)))
    return y.astype(x.dtype if self.dtype is None else self.dtype)


class RMSNorm(nn.Module):
  """Divides each position by the root of its mean square over the last axis, then scales.

    y = x / sqrt(mean(x^2) + epsilon) * scale                                 Zhang & Sennrich 2019, eq. 4

  No mean is taken away and nothing is added, so a shift of x is no symmetry of it. epsilon stands inside the root and
  is Flax's; `torch.nn.RMSNorm` takes the eps of the input's type (1.2e-7 for float32), LLaMA 1e-5 or 1e-6. The square
  and the product with the scale are float32 whatever `dtype`, the type of the result (None: that of x).

  `unit_offset` multiplies by 1 + scale, with scale starting at 0: some checkpoints (Gemma's) store scale - 1.
  """

  epsilon: float = 1e-6
  dtype: DTypeLike | None = None
  unit_offset: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    init = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
    scale = self.param("scale", init, (x.shape[-1],)) + (1 if self.unit_offset else 0)
    rows = _exact(x)
    gain = jax.lax.rsqrt(jnp.mean(jnp.square(rows), axis=-1, keepdims=True) + self.epsilon)
    y = rows * gain * jnp.expand_dims(scale, range(x.ndim - 1))
    return y.astype(x.dtype if self.dtype is None else self.dtype)


class BatchNorm(nn.Module):
  """Normalises each channel over the batch, or over each of `num_splits` parts of it, then scales and shifts.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias                  Ioffe & Szegedy 2015, algorithm 1
    running = momentum * running + (1 - momentum) * batch

  Parameters and running statistics ("batch_stats", which must be mutable where `use_running_average` is false) are
  those of `flax.linen.BatchNorm`. The statistics are those of the whole batch however many devices share it.

  Conventions: `momentum` is the part that is kept (torch's .1 is the new part, .9 here). The variance is the biased
  one, over m values, both where it normalises and where it is stored; torch, like the paper's algorithm 2, stores the
  unbiased one, m / (m - 1) times as large.

  With `num_splits` > 1 each run of B / num_splits neighbouring examples has statistics of its own, as if it stood alone
  on a device: what He et al. 2020 (section 3.3) need against leaks between a query and its key. The running
  statistics are the means over the splits (over those with anything that counts; where nothing counts, they stay).

  Statistics are float32 whatever `dtype`, the type of the result (None: that of x).

  Raises ValueError where `num_splits` does not divide the batch, or the mask does not fit x.
  """

  use_running_average: bool
  num_splits: int = 1
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: DTypeLike | None = None
  use_scale: bool = True
  use_bias: bool = True
  scale_init: Callable[..., Array] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, "B *space C"], mask: Mask | None = None) -> Float[Array, "B *space C"]:
    if self.num_splits < 1:
      raise ValueError(f"num_splits={self.num_splits} is out of range: expected 1 or more")
    channels = x.shape[-1]
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
    dtype = x.dtype if self.dtype is None else self.dtype
    # A split becomes an axis of its own. Without splits x keeps its shape: XLA's CPU backend takes five times as long
    # where a sum's outermost axis has length 1.
    split = not self.use_running_average and self.num_splits > 1
    if split and x.shape[0] % self.num_splits:
      raise ValueError(f"num_splits={self.num_splits} must divide the batch, found {x.shape[0]} examples")
    by_split = lambda v: v.reshape(self.num_splits, -1, v.shape[-1]) if split else v
    rows, counted = by_split(_exact(x)), _counted(mask, x)
    if counted is not None:
      counted = by_split(counted)
      rows = jnp.where(counted, rows, 0)
    per_channel = lambda v: jnp.expand_dims(v, range(rows.ndim - 1))
    if self.use_running_average:
      deviation, mean, var = rows - per_channel(running_mean.value), 0.0, per_channel(running_var.value)
    else:
      axes = tuple(range(1 if split else 0, rows.ndim - 1))
      center = _mean(by_split(_exact(_middle(x))), axes, None) if counted is None else _mean(rows, axes, counted)
      center = _constant(center)
      deviation = rows - center
      mean = _mean(deviation, axes, counted)
      # Rounding must not leave a negative variance.
      var = jnp.maximum(_mean(jnp.square(deviation), axes, counted) - jnp.square(mean), 0)
      if not self.is_initializing():
        for running, batch in ((running_mean, center + mean), (running_var, var)):
          rate, batch = 1 - self.momentum, batch.reshape(-1, channels)
          if counted is None:
            batch = jnp.mean(batch, axis=0)
          else:
            some = jnp.any(counted, axes).reshape(-1, 1)
            batch, rate = _mean(batch, (0,), some)[0], jnp.where(jnp.any(some), rate, 0)
          running.value += rate * (batch - running.value)
    gain = jax.lax.rsqrt(var + self.epsilon)
    if self.use_scale:
      gain *= per_channel(self.param("scale", self.scale_init, (channels,)))
    shift = -mean * gain
    if self.use_bias:
      shift += per_channel(self.param("bias", nn.initializers.zeros, (channels,)))
    return _result(deviation * gain + shift, counted, dtype).reshape(x.shape)


def _exact(x: Array) -> Array:
  """x in the type of its statistics: float32, or float64 where x has it. Raises ValueError where x holds integers."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"x is {x.dtype}, expected floating-point numbers")
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _constant(center: Array) -> Array:
  """What moments are taken about. The result does not depend on it, so neither does the gradient.

  Three bits less than its type has: where x - sum / number is compiled to one fused multiply-add the quotient stays
  unrounded, elsewhere it does not, and moments and result would be about two values.
  """
  kind = jnp.finfo(center.dtype)
  return jax.lax.stop_gradient(jax.lax.reduce_precision(center, kind.nexp, kind.nmant - 3))


def _middle(x: Array) -> Array:
  """The position in the middle of each example, space kept as axes of length 1."""
  return x[(slice(None), *(slice(size // 2, size // 2 + 1) for size in x.shape[1:-1]))]


def _counted(mask: Array | None, x: Array) -> Array | None:
  """What counts, as booleans of x's shape with one channel; None where all of it does."""
  if mask is None:
    return None
  mask = jnp.asarray(mask)
  if mask.ndim not in (1, x.ndim - 1) or mask.shape != x.shape[: mask.ndim]:
    raise ValueError(f"mask has shape {mask.shape}, expected {x.shape[:1]} or {x.shape[:-1]}")
  mask = mask.reshape(*mask.shape, *(1 for _ in range(x.ndim - mask.ndim)))
  return jnp.broadcast_to(mask != 0, (*x.shape[:-1], 1))


def _mean(values: Array, axes: tuple[int, ...], counted: Array | None) -> Array:
  """Mean over axes, kept with length 1, of what counts; 0 where nothing does."""
  if counted is None:
    return jnp.mean(values, axes, keepdims=True)
  number = jnp.sum(counted, axes, values.dtype, keepdims=True)
  return jnp.sum(jnp.where(counted, values, 0), axes, keepdims=True) / jnp.maximum(number, 1)


def _result(y: Array, counted: Array | None, dtype: DTypeLike) -> Array:
  return (y if counted is None else jnp.where(counted, y, 0)).astype(dtype)
