"""The two players: fully connected ones for points and small images, DCGAN's convolutional ones for images.

A generator turns noise (and a label) into examples: `(z, label, train) -> (B, *shape)`. A discriminator turns examples
(and labels) into a `Verdict`: `(x, label, train)`. What a network does with a label is its `conditional`:

  none         nothing; the label may be None
  concat       D: one-hot planes beside the image (a one-hot vector beside a point). Mirza & Osindero 2014
  projection   D: the features' inner product with a vector of the class is added. Miyato & Koyama 2018
  auxiliary    D: says the class as well, and is not told it. Odena et al. 2017

A generator of a label has it as a one-hot vector beside its noise, in every form.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mlnotes.nn.conv import Conv
from mlnotes.nn.conv_transpose import ConvTranspose
from mlnotes.nn.dense import Dense
from mlnotes.nn.initializers import he
from mlnotes.nn.norm import BatchNorm, LayerNorm

Conditional = Literal["none", "concat", "projection", "auxiliary"]
Labels = Int[Array, " B"] | None

# Radford et al. 2016: every weight from N(0, .02).
DCGAN_INIT = nn.initializers.normal(0.02)
_MOST_HALVINGS = 3
_LEAST_SIZE = 4


class Verdict(NamedTuple):
  """What a discriminator says: a score per example, the features behind it, the class logits (auxiliary) or None."""

  score: Float[Array, " B"]
  features: Float[Array, "B D"]
  class_logits: Float[Array, "B K"] | None = None


def halved(height: int, width: int) -> list[tuple[int, int]]:
  """The sizes from an image's down to where DCGAN's networks begin: 28, 14, 7; 32, 16, 8, 4; 8, 4, 2.

  Halved while both sides are even and one is 4 or more, at most three times.
  """
  sizes = [(height, width)]
  while len(sizes) <= _MOST_HALVINGS and all(n % 2 == 0 for n in sizes[-1]) and max(sizes[-1]) >= _LEAST_SIZE:
    sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
  return sizes


def leaky_relu(x: Array) -> Array:
  return nn.leaky_relu(x, 0.2)


def _one_hot(label: Labels, num_classes: int, dtype: Any) -> Array:
  if label is None:
    raise ValueError("label is None, expected one class for each example of a conditional network.")
  return jax.nn.one_hot(label, num_classes, dtype=dtype)


def _normalize(kind: str, train: bool, init: Callable[..., Array] | None = None) -> Callable[[Array], Array]:
  """The norm of that name as a function: batch, layer or none."""
  if kind == "batch":
    scale = {"scale_init": _around_one(init)} if init is not None else {}
    return lambda x: BatchNorm(use_running_average=not train, **scale)(x)
  if kind == "layer":
    # Over the whole example, whose batch is no part of it.
    return lambda x: LayerNorm()(x.reshape(len(x), -1)).reshape(x.shape)
  if kind != "none":
    raise ValueError(f"norm is {kind!r}, expected batch, layer or none.")
  return lambda x: x


def _around_one(init: Callable[..., Array]) -> Callable[..., Array]:
  return lambda key, shape, dtype=jnp.float32: 1 + init(key, shape, dtype)


class MlpGenerator(nn.Module):
  """Noise through `depth` layers of `width` with ReLU, then one number for each of `shape`. No norm.

  `bounded`: tanh at the end, for images on [-1, 1].
  """

  shape: tuple[int, ...] = (2,)
  width: int = 128
  depth: int = 2
  num_classes: int | None = None
  bounded: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(self, z: Float[Array, "B Z"], label: Labels = None, train: bool = False) -> Float[Array, "B *shape"]:
    if self.num_classes is not None:
      z = jnp.concatenate([z, _one_hot(label, self.num_classes, z.dtype)], axis=-1)
    for _ in range(self.depth):
      z = nn.relu(Dense(self.width, kernel_init=he(), dtype=self.dtype)(z))
    x = Dense(math.prod(self.shape), dtype=self.dtype)(z).reshape(len(z), *self.shape)
    return (jnp.tanh(x) if self.bounded else x).astype(jnp.float32)


class MlpDiscriminator(nn.Module):
  """Points or flattened images through `depth` layers of `width` with a leaky ReLU. `norm`: none or layer."""

  width: int = 128
  depth: int = 2
  num_classes: int | None = None
  conditional: Conditional = "none"
  norm: str = "none"
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "B *shape"], label: Labels = None, train: bool = False) -> Verdict:
    x = x.reshape(len(x), -1)
    if self.conditional == "concat":
      x = jnp.concatenate([x, _one_hot(label, self.num_classes, x.dtype)], axis=-1)
    for _ in range(self.depth):
      x = Dense(self.width, kernel_init=he(slope=0.2), dtype=self.dtype)(x)
      x = leaky_relu(_normalize(self.norm, train)(x))
    return _judge(x, label, self.num_classes, self.conditional, nn.initializers.lecun_normal())


class DcganGenerator(nn.Module):
  """Radford et al. 2016, figure 1: noise onto the smallest of `halved`, doubled by transposed 4 x 4 convolutions.

  BatchNorm and ReLU behind each but the last, which ends in tanh. `width` channels before the last, twice as many one
  level down, and so on. The sizes adapt to the image; the paper's is of 64 x 64.
  """

  image_shape: tuple[int, int, int]
  width: int = 32
  num_classes: int | None = None
  kernel_init: Callable[..., Array] = DCGAN_INIT
  dtype: Any = None

  @nn.compact
  def __call__(self, z: Float[Array, "B Z"], label: Labels = None, train: bool = False) -> Float[Array, "B H W C"]:
    *larger, smallest = halved(*self.image_shape[:2])
    levels = len(larger)
    if self.num_classes is not None:
      z = jnp.concatenate([z, _one_hot(label, self.num_classes, z.dtype)], axis=-1)
    norm = _normalize("batch", train, self.kernel_init)
    keep = dict(kernel_init=self.kernel_init, dtype=self.dtype)
    channels = self.width * 2 ** max(levels - 1, 0)
    x = Dense(math.prod(smallest) * channels, use_bias=False, **keep)(z).reshape(len(z), *smallest, channels)
    for level in range(1, levels):
      x = ConvTranspose(channels // 2**level, (4, 4), 2, use_bias=False, **keep)(nn.relu(norm(x)))
    x, outputs = nn.relu(norm(x)), self.image_shape[-1]
    x = ConvTranspose(outputs, (4, 4), 2, **keep)(x) if levels else Conv(outputs, (3, 3), **keep)(x)
    return jnp.tanh(x.astype(jnp.float32))


class DcganDiscriminator(nn.Module):
  """The mirror of `DcganGenerator`: 4 x 4 convolutions of stride 2 with a leaky ReLU of slope .2, then the score.

  `norm` ("batch", "layer", "none") stands behind every convolution but the first. With "batch" the scores of a batch
  hang together: real and generated examples go through it apart, and no gradient penalty is defined.
  """

  width: int = 32
  num_classes: int | None = None
  conditional: Conditional = "none"
  norm: str = "batch"
  kernel_init: Callable[..., Array] = DCGAN_INIT
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], label: Labels = None, train: bool = False) -> Verdict:
    levels = len(halved(*x.shape[1:3])) - 1
    if self.conditional == "concat":
      planes = _one_hot(label, self.num_classes, x.dtype)[:, None, None]
      x = jnp.concatenate([x, jnp.broadcast_to(planes, (*x.shape[:-1], self.num_classes))], axis=-1)
    for level in range(max(levels, 1)):
      plain = level == 0 or self.norm == "none"
      strides = 2 if levels else 1
      keep = dict(use_bias=plain, kernel_init=self.kernel_init, dtype=self.dtype)
      x = Conv(self.width * 2**level, (4, 4), strides, **keep)(x)
      x = leaky_relu(x if plain else _normalize(self.norm, train, self.kernel_init)(x))
    return _judge(x.reshape(len(x), -1), label, self.num_classes, self.conditional, self.kernel_init)


class AutoencoderDiscriminator(nn.Module):
  """EBGAN's: the score is the energy |x' - x| of an example and its reconstruction; the features are the code.

  Zhao et al. 2017. Fully connected, `width` in the middle of two layers of four times as many.
  """

  width: int = 32
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "B *shape"], label: Labels = None, train: bool = False) -> Verdict:
    flat = x.reshape(len(x), -1)
    dense = lambda features: Dense(features, kernel_init=he(), dtype=self.dtype)
    code = nn.relu(dense(self.width)(nn.relu(dense(4 * self.width)(flat))))
    rebuilt = Dense(flat.shape[-1], dtype=self.dtype)(nn.relu(dense(4 * self.width)(code))).astype(jnp.float32)
    energy = jnp.sqrt(jnp.sum(jnp.square(rebuilt - flat), axis=-1) + 1e-12)
    return Verdict(energy, code.astype(jnp.float32))


def _judge(
  features: Array, label: Labels, num_classes: int | None, conditional: Conditional, init: Callable[..., Array]
) -> Verdict:
  """The head that all forms share; called inside a compact module. The score is in float32."""
  features = features.astype(jnp.float32)
  score = Dense(1, kernel_init=init, name="score")(features)[:, 0]
  if conditional == "projection":
    if label is None:
      raise ValueError("label is None, expected one class for each example of a conditional network.")
    score += jnp.sum(
      nn.Embed(num_classes, features.shape[-1], embedding_init=init, name="classes")(label) * features, -1
    )
  logits = Dense(num_classes, kernel_init=init, name="classes")(features) if conditional == "auxiliary" else None
  return Verdict(score, features, logits)
