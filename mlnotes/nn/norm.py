"""Normalisation layers."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class GroupNorm(nn.Module):
  """Normalises each group of neighbouring channels of each example to mean 0 and variance 1, then scales and shifts.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias                  Wu & He 2018, eq. 1, 7

  Same parameters as `flax.linen.GroupNorm`. Statistics are float32 whatever `dtype`, the type of the result, and
  the variance is the mean squared deviation, which cancels nothing. Sums run over pixels first and over a group's
  channels last, so no image is reshaped: about half the time of `flax.linen.GroupNorm` on a CPU.

  Raises ValueError where `groups` does not divide the channels.
  """

  groups: int = 8
  epsilon: float = 1e-6
  dtype: DTypeLike = jnp.float32
  scale_init: Callable[..., Array] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, "B *space C"]) -> Float[Array, "B *space C"]:
    channels = x.shape[-1]
    if channels % self.groups:
      raise ValueError(f"groups={self.groups} must divide the number of channels, found {channels}")
    scale = self.param("scale", self.scale_init, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    pixels = tuple(range(1, x.ndim - 1))

    def group_mean(values: Array) -> Array:
      per_channel = jnp.mean(values, pixels, keepdims=True)
      groups = per_channel.reshape(*per_channel.shape[:-1], self.groups, channels // self.groups)
      return jnp.broadcast_to(jnp.mean(groups, -1, keepdims=True), groups.shape).reshape(per_channel.shape)

    x = x.astype(jnp.float32)
    deviation = x - group_mean(x)
    gain = jax.lax.rsqrt(group_mean(jnp.square(deviation)) + self.epsilon) * jnp.expand_dims(scale, range(x.ndim - 1))
    return (deviation * gain + jnp.expand_dims(bias, range(x.ndim - 1))).astype(self.dtype)


class BatchNorm(nn.Module):
  """Normalises each channel over the batch, or over each of `num_splits` parts of it, then scales and shifts.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias                  Ioffe & Szegedy 2015, algorithm 1

  Parameters and running statistics ("batch_stats", which must be mutable where `use_running_average` is false) are
  those of `flax.linen.BatchNorm`. The statistics are those of the whole batch however many devices share it.

  With `num_splits` > 1 each run of B / num_splits neighbouring examples has statistics of its own, as if it stood alone
  on a device: what He et al. 2020 (section 3.3) need against leaks between a query and its key. The running
  statistics are the means over the splits.

  Statistics are float32 whatever `dtype`, the type of the result (None: that of x).

  Raises ValueError where `num_splits` does not divide the batch.
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
  def __call__(self, x: Float[Array, "B *space C"]) -> Float[Array, "B *space C"]:
    channels = x.shape[-1]
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
    dtype = x.dtype if self.dtype is None else self.dtype
    # A split becomes an axis of its own. Without splits x keeps its shape: XLA's CPU backend takes five times as long
    # where a sum's outermost axis has length 1.
    rows = x.astype(jnp.float32)
    if not self.use_running_average and self.num_splits > 1:
      if x.shape[0] % self.num_splits:
        raise ValueError(f"num_splits={self.num_splits} must divide the batch, found {x.shape[0]} examples")
      rows = rows.reshape(self.num_splits, -1, channels)
    per_channel = lambda v: jnp.expand_dims(v, range(rows.ndim - 1))
    if self.use_running_average:
      mean, var = per_channel(running_mean.value), per_channel(running_var.value)
    else:
      axes = tuple(range(1 if self.num_splits > 1 else 0, rows.ndim - 1))
      mean = jnp.mean(rows, axes, keepdims=True)
      # One pass over x instead of two; rounding must not leave a negative variance.
      var = jnp.maximum(jnp.mean(jnp.square(rows), axes, keepdims=True) - jnp.square(mean), 0)
      if not self.is_initializing():
        for running, batch in ((running_mean, mean), (running_var, var)):
          batch = jnp.mean(batch.reshape(-1, channels), axis=0)
          running.value += (1 - self.momentum) * (batch - running.value)
    gain = jax.lax.rsqrt(var + self.epsilon)
    if self.use_scale:
      gain *= per_channel(self.param("scale", self.scale_init, (channels,)))
    shift = -mean * gain
    if self.use_bias:
      shift += per_channel(self.param("bias", nn.initializers.zeros, (channels,)))
    return (rows * gain + shift).astype(dtype).reshape(x.shape)
