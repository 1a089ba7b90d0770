"""Encoders of images into vectors and decoders of vectors into images, fully connected or convolutional."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, UInt8

from mlnotes.nn.conv import Conv
from mlnotes.nn.conv_transpose import ConvTranspose
from mlnotes.nn.dense import Dense


class Encoder(nn.Module):
  """Images to `features` numbers each, without an activation on them.

  mlp:  the pixels as a vector through layers of `hidden`
  conv: 4 x 4 convolutions of stride 2 with `channels`, one halving each, then one layer of `hidden[-1]` (if any)

  `activation` follows every layer but the last. Raises ValueError where `kind` is neither.
  """

  features: int
  kind: str = "mlp"
  hidden: Sequence[int] = (200, 200)
  channels: Sequence[int] = (32, 64)
  activation: Callable[[Array], Array] = nn.relu
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
    hidden = self.hidden if _check_kind(self.kind) == "mlp" else self.hidden[-1:]
    if self.kind == "conv":
      for channels in self.channels:
        x = self.activation(Conv(channels, (4, 4), strides=2, padding="SAME", dtype=self.dtype)(x))
    x = x.reshape(len(x), -1)
    for width in hidden:
      x = self.activation(Dense(width, dtype=self.dtype)(x))
    return Dense(self.features, dtype=self.dtype)(x)


class Decoder(nn.Module):
  """Vectors to images: `outputs` numbers for each pixel and channel, the mirror of `Encoder`.

  mlp:  layers of `hidden`, then one number for each pixel
  conv: one layer of `hidden[0]` (if any), then transposed 4 x 4 convolutions of stride 2 from `channels[-1]` back to
        `channels[0]` and the image's own; where a height is odd the last row of the doubled one is left out

  Returns (B, H, W, C), or (B, H, W, C, outputs) where there are several outputs. Raises ValueError where `kind` is
  neither.
  """

  image_shape: tuple[int, int, int]
  kind: str = "mlp"
  hidden: Sequence[int] = (200, 200)
  channels: Sequence[int] = (32, 64)
  activation: Callable[[Array], Array] = nn.relu
  outputs: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(self, z: Float[Array, "B D"]) -> Float[Array, "B *image"]:
    height, width, channels = self.image_shape
    numbers = channels * self.outputs
    x = z
    for size in self.hidden if _check_kind(self.kind) == "mlp" else self.hidden[:1]:
      x = self.activation(Dense(size, dtype=self.dtype)(x))
    if self.kind == "mlp":
      x = Dense(height * width * numbers, dtype=self.dtype)(x)
    else:
      sizes = halvings((height, width), len(self.channels))
      x = self.activation(Dense(math.prod(sizes[-1]) * self.channels[-1], dtype=self.dtype)(x))
      x = x.reshape(len(x), *sizes[-1], self.channels[-1])
      for level in reversed(range(len(self.channels))):
        last = level == 0
        features = numbers if last else self.channels[level - 1]
        x = ConvTranspose(features, (4, 4), strides=2, dtype=self.dtype)(x)[:, : sizes[level][0], : sizes[level][1]]
        x = x if last else self.activation(x)
    image = (len(z), height, width, channels)
    return x.reshape(image if self.outputs == 1 else (*image, self.outputs))


def halvings(size: tuple[int, int], levels: int) -> list[tuple[int, int]]:
  """The sizes (H, W) from `size` down through `levels` halvings, odd ones rounded up as "SAME" padding does."""
  sizes = [size]
  for _ in range(levels):
    sizes.append(tuple(-(-n // 2) for n in sizes[-1]))
  return sizes


def _check_kind(kind: str) -> str:
  if kind not in ("mlp", "conv"):
    raise ValueError(f"kind is {kind!r}, expected mlp or conv.")
  return kind


def to_unit(image: ArrayLike, levels: int) -> Float[Array, "..."]:
  """Grey levels 0 .. levels - 1 to [0, 1]."""
  return jnp.asarray(image, jnp.float32) / (levels - 1)


def from_unit(x: ArrayLike, levels: int) -> UInt8[Array, "..."]:
  """[0, 1] to the nearest grey level, as uint8; what lies outside is cut."""
  return jnp.clip(jnp.round(jnp.asarray(x) * (levels - 1)), 0, levels - 1).astype(jnp.uint8)


def binarize(key: Key[Array, ""], x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Each pixel 1 with the probability that is its value in [0, 1], else 0 (Salakhutdinov & Murray 2008)."""
  return jax.random.bernoulli(key, x).astype(jnp.float32)
