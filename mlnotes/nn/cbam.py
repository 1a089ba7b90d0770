"""Convolutional block attention (CBAM): first which channels, then which pixels."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.nn.conv import Conv


class ChannelAttention(nn.Module):
  """One weight in (0, 1) per channel, from the mean and the maximum over the pixels: Woo et al. 2018, eq. 2.

    M = sigmoid(W1 relu(W0 mean(x)) + W1 relu(W0 max(x)))

  Both pooled features pass the same two matrices, W0 with C / `reduction` rows (rounded up).

  Raises ValueError where `reduction` is below 1, or x is no batch of images.
  """

  reduction: int = 16

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 C"]:
    if self.reduction < 1:
      raise ValueError(f"reduction is {self.reduction}, expected a positive integer")
    if x.ndim != 4:
      raise ValueError(f"x has shape {x.shape}, expected (B, H, W, C)")
    channels = x.shape[-1]
    squeeze = nn.Dense(-(-channels // self.reduction), use_bias=False, dtype=x.dtype, name="squeeze")
    excite = nn.Dense(channels, use_bias=False, dtype=x.dtype, name="excite")
    pooled = (jnp.mean(x, axis=(1, 2), keepdims=True), jnp.max(x, axis=(1, 2), keepdims=True))
    return nn.sigmoid(sum(excite(nn.relu(squeeze(features))) for features in pooled))


class PixelAttention(nn.Module):
  """One weight in (0, 1) per pixel, from the mean and the maximum over the channels: Woo et al. 2018, eq. 3.

  M = sigmoid(conv7x7(concatenate(mean_c x, max_c x)))
  """

  kernel_size: int = 7

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W 1"]:
    pooled = jnp.concatenate([jnp.mean(x, -1, keepdims=True), jnp.max(x, -1, keepdims=True)], axis=-1)
    window = (self.kernel_size, self.kernel_size)
    return nn.sigmoid(Conv(1, window, use_bias=False, dtype=x.dtype, name="conv")(pooled))


class CBAM(nn.Module):
  """x times its channels' weights, then that times its pixels' weights: Woo et al. 2018, eq. 1.

  2 C^2 / reduction + 2 kernel_size^2 parameters. In a residual block it stands on the branch, before the addition:
  `BasicBlock(attention=CBAM)`.

  Differences from the authors' code, not from the paper's equations: no biases, no norm after the convolution.

  Raises ValueError as `ChannelAttention` does.
  """

  reduction: int = 16
  kernel_size: int = 7

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    x = x * ChannelAttention(self.reduction, name="channel")(x)
    return x * PixelAttention(self.kernel_size, name="pixel")(x)
