"""The U-Net that predicts noise: convolutions at several sizes, joined by skip connections.

Sizes, without classes:

  image        channels  multipliers  num_blocks  attention_resolutions  parameters
  8 x 8 x 1    32        (1, 2)       1           ()                     0.62 M
  28 x 28 x 1  32        (1, 2, 2)    1           (7,)                   1.08 M
  32 x 32 x 3  32        (1, 2, 4)    1           (16, 8)                2.64 M
  32 x 32 x 3  32        (1, 2, 4)    2           (16, 8)                3.88 M
  32 x 32 x 3  128       (1, 2, 2, 2) 2           (16,)                  35.29 M (Ho et al.'s CIFAR-10 network: 35.7 M)
"""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from mlnotes.nn.attention import SpatialAttention
from mlnotes.nn.conv import Conv
from mlnotes.nn.norm import GroupNorm


def sinusoidal_embedding(
  t: Num[Array, " B"], features: int, max_period: float = 10_000.0
) -> Float[Array, "B {features}"]:
  """Sines, then cosines, of `t` at geometrically spaced frequencies.

    sin(t w_i), cos(t w_i)  with  w_i = max_period^(-2 i / features),  i = 0 .. features/2 - 1

  The slowest wave turns in about 2 pi max_period, so `t` should be counted in steps (0 to about 1000); a time in
  [0, 1] must be scaled up first. `features` must be even. Vaswani et al. 2017, sec. 3.5.
  """
  if features % 2:
    raise ValueError(f"features must be even, found {features}")
  half = features // 2
  frequency = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(max_period) / half))
  angle = t.astype(jnp.float32)[:, None] * frequency[None, :]
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def upsample_nearest(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
  """Twice the height and width; every pixel becomes a block of 2 x 2 equal pixels."""
  batch, height, width, channels = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
  return x.reshape(batch, 2 * height, 2 * width, channels)


class ResidualBlock(nn.Module):
  """Two convolutions around which the input is carried; the class multiplies and the time adds in between.

    h = conv(silu(norm(x)))
    h = gain(label) * norm(h) + shift(time)
    y = x + conv(dropout(silu(h)))

  `gain` is 1 at the start whatever the label, and the second convolution 0, so the block starts as the identity
  (as a 1 x 1 convolution where the number of channels changes). The modulation is the adaptive group normalisation
  of Dhariwal & Nichol 2021, eq. 1, with the scale from the label alone and the shift from the time alone.
  """

  features: int
  dropout: float = 0.0
  groups: int = 8
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B H W C"],
    time: Float[Array, "B E"],
    label: Float[Array, "B F"] | None = None,
    train: bool = False,
  ) -> Float[Array, "B H W {self.features}"]:
    dense = functools.partial(nn.Dense, self.features, dtype=self.dtype)
    norm = functools.partial(GroupNorm, self.groups, dtype=self.dtype)
    h = Conv(self.features, (3, 3), dtype=self.dtype, name="conv1")(nn.silu(norm(name="norm1")(x)))
    h = norm(name="norm2")(h)
    if label is not None:
      gain = dense(kernel_init=nn.initializers.zeros, bias_init=nn.initializers.ones, name="gain")(label)
      h = gain[:, None, None, :] * h
    h = nn.silu(h + dense(name="shift")(time)[:, None, None, :])
    h = nn.Dropout(self.dropout, deterministic=not train)(h)
    h = Conv(self.features, (3, 3), kernel_init=nn.initializers.zeros, dtype=self.dtype, name="conv2")(h)
    if x.shape[-1] != self.features:
      x = Conv(self.features, (1, 1), dtype=self.dtype, name="skip")(x)
    return x + h


class UNet(nn.Module):
  """Noise predictor of Ho et al. 2020, sec. 4 and app. B: an image and its time in, an image out; zero at the start.

  Level i works at 1 / 2^i of the height and width with channels * multipliers[i] channels: `num_blocks` residual
  blocks on the way down and one more on the way up, each of which also sees what the way down left behind. Between
  levels stand a strided convolution and a nearest-neighbour upsampling with a convolution. Self-attention follows
  the blocks wherever the height is one of `attention_resolutions`, and always the first block of the middle.

  channels:              of the first level; a multiple of `groups` and of `heads`, even.
  out_channels:          of the output; as many as the input's if None. Twice as many for a learned variance.
  num_classes:           None for no labels. Otherwise labels are 0 .. num_classes - 1, and num_classes means
                         "no label" (what classifier-free guidance trains on now and then), as does `label=None`.
  dropout:               rate, in [0, 1), inside the residual blocks; needs `rngs={"dropout": key}` where `train`.
  dtype:                 of the arithmetic. Parameters, normalisations, softmax and output are float32.

  `t` counts steps, as integers or floats (see `sinusoidal_embedding`). `context` is a sequence for cross-attention
  after each self-attention, with True in `context_mask` where it counts; a network with it must see it at init.

  Raises ValueError for an image whose height or width does not halve len(multipliers) - 1 times, for a label given
  to a network without classes, and where `groups` or `heads` does not divide the channels.

  Differences from the paper: time and label act as a gain and a shift after the second normalisation (see
  `ResidualBlock`) where Ho et al. add the time before it; the convolution after an upsampling already gives the
  channels of the level it enters; several attention heads.
  """

  channels: int = 32
  multipliers: tuple[int, ...] = (1, 2, 4)
  num_blocks: int = 2
  attention_resolutions: tuple[int, ...] = ()
  out_channels: int | None = None
  num_classes: int | None = None
  dropout: float = 0.0
  heads: int = 4
  groups: int = 8
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B H W C"],
    t: Num[Array, " B"],
    label: Int[Array, " B"] | None = None,
    context: Float[Array, "B L D"] | None = None,
    context_mask: Bool[Array, "B L"] | None = None,
    train: bool = False,
  ) -> Float[Array, "B H W out"]:
    self._check(x, label)
    out_channels = x.shape[-1] if self.out_channels is None else self.out_channels
    conv = functools.partial(Conv, kernel_size=(3, 3), dtype=self.dtype)
    time = self._embed_time(t)
    label = self._embed_label(label, x.shape[0])

    def block(x: Array, features: int, name: str, attend: bool) -> Array:
      x = ResidualBlock(features, self.dropout, self.groups, self.dtype, name=name)(x, time, label, train)
      if attend:
        attention = SpatialAttention(self.heads, self.groups, self.dtype, name=f"{name}_attention")
        x = attention(x, context, context_mask)
      return x

    h = conv(self.channels, name="conv_in")(x.astype(self.dtype))
    skips = [h]
    for level, multiplier in enumerate(self.multipliers):
      if level:
        h = conv(h.shape[-1], strides=(2, 2), name=f"down{level}")(h)
        skips.append(h)
      for i in range(self.num_blocks):
        attend = h.shape[1] in self.attention_resolutions
        h = block(h, self.channels * multiplier, f"down{level}_block{i}", attend)
        skips.append(h)

    h = block(h, h.shape[-1], "middle_block0", attend=True)
    h = block(h, h.shape[-1], "middle_block1", attend=False)

    for level, multiplier in reversed(list(enumerate(self.multipliers))):
      features = self.channels * multiplier
      if level < len(self.multipliers) - 1:
        h = conv(features, name=f"up{level}")(upsample_nearest(h))
      for i in range(self.num_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = block(h, features, f"up{level}_block{i}", h.shape[1] in self.attention_resolutions)

    h = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm_out")(h))
    h = conv(out_channels, kernel_init=nn.initializers.zeros, name="conv_out")(h)
    return h.astype(jnp.float32)

  def _embed_time(self, t: Array) -> Array:
    features = 4 * self.channels
    h = nn.Dense(features, dtype=self.dtype, name="time1")(sinusoidal_embedding(t, self.channels))
    h = nn.Dense(features, dtype=self.dtype, name="time2")(nn.silu(h))
    return nn.silu(h)

  def _embed_label(self, label: Array | None, batch: int) -> Array | None:
    if self.num_classes is None:
      return None
    if label is None:
      label = jnp.full((batch,), self.num_classes)
    return nn.Embed(self.num_classes + 1, 4 * self.channels, dtype=self.dtype, name="label")(label)

  def _check(self, x: Array, label: Array | None) -> None:
    factor = 2 ** (len(self.multipliers) - 1)
    if x.shape[1] % factor or x.shape[2] % factor:
      raise ValueError(
        f"a U-Net with {len(self.multipliers)} levels needs a height and width that are multiples of {factor}, "
        f"found {x.shape[1]} x {x.shape[2]} (images are B H W C)"
      )
    if label is not None and self.num_classes is None:
      raise ValueError("label was given to a U-Net without classes, expected label=None or num_classes set")
