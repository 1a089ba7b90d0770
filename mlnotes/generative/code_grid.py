"""Images as grids of codes: the networks of VQ-VAE, and a prior over its grids."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from mlnotes.generative.networks import halvings
from mlnotes.lm.forms import make_gpt2
from mlnotes.lm.generate import Sampling, generate
from mlnotes.lm.model import LanguageModel
from mlnotes.nn.conv import Conv
from mlnotes.nn.conv_transpose import ConvTranspose


class ResidualStack(nn.Module):
  """`depth` times x + conv1x1(relu(conv3x3(relu(x)))), then relu. Van den Oord et al. 2017, sec. 4.1."""

  depth: int = 2
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    channels = x.shape[-1]
    for _ in range(self.depth):
      y = nn.relu(Conv(max(channels // 2, 1), (3, 3), dtype=self.dtype)(nn.relu(x)))
      x = x + Conv(channels, (1, 1), dtype=self.dtype)(y)
    return nn.relu(x)


class GridEncoder(nn.Module):
  """Images to a grid of vectors: 4 x 4 convolutions of stride 2 with `channels`, one halving each, then residual steps.

  Odd sizes are rounded up: 28 x 28 becomes 7 x 7 by two of them.
  """

  features: int
  channels: Sequence[int] = (32, 64)
  depth: int = 2
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    for channels in self.channels:
      x = nn.relu(Conv(channels, (4, 4), strides=2, dtype=self.dtype)(x))
    x = Conv(self.channels[-1], (3, 3), dtype=self.dtype)(x)
    x = ResidualStack(self.depth, self.dtype)(x)
    return Conv(self.features, (1, 1), dtype=self.dtype)(x).astype(jnp.float32)


class GridDecoder(nn.Module):
  """The mirror of `GridEncoder`: a grid of vectors to images of `image_shape`, without an activation on them."""

  image_shape: tuple[int, int, int]
  channels: Sequence[int] = (32, 64)
  depth: int = 2
  dtype: Any = None

  @nn.compact
  def __call__(self, z: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
    sizes = halvings(self.image_shape[:2], len(self.channels))
    x = Conv(self.channels[-1], (3, 3), dtype=self.dtype)(z)
    x = ResidualStack(self.depth, self.dtype)(x)
    for level in reversed(range(len(self.channels))):
      features = self.channels[level - 1] if level else self.image_shape[-1]
      x = ConvTranspose(features, (4, 4), strides=2, dtype=self.dtype)(x)[:, : sizes[level][0], : sizes[level][1]]
      x = nn.relu(x) if level else x
    return x.astype(jnp.float32)


class CodePrior(LanguageModel):
  """A decoder over the class of an image and then its codes, row by row; classes are no codes, and never come next.

    prior = make_code_prior(num_codes=128, num_classes=10, length=49, depth=2, heads=4, width=64)
    nats = code_nats(prior, variables, codes, label)             # of each code
    codes = sample_codes(prior, variables, keys, label)

  `vocabulary` is num_codes + the number of classes; the token of class c is num_codes + c.
  """

  num_codes: int = 0

  def logits(self, hidden: Float[Array, "... D"], dtype: DTypeLike = jnp.float32) -> Float[Array, "... V"]:
    logits = super().logits(hidden, dtype)
    is_code = jnp.arange(self.vocabulary) < self.num_codes
    return jnp.where(jnp.expand_dims(is_code, range(logits.ndim - 1)), logits, -jnp.inf)


def make_code_prior(num_codes: int, num_classes: int, length: int, **settings: Any) -> CodePrior:
  """GPT-2's form for `length` codes; `settings` are those of `mlnotes.lm.make_gpt2`: depth, heads, width and such."""
  form = make_gpt2(vocabulary=num_codes + num_classes, length=length, **settings)
  given = {
    field.name: getattr(form, field.name) for field in dataclasses.fields(form) if field.name not in ("parent", "name")
  }
  return CodePrior(**given, num_codes=num_codes)


def code_nats(
  prior: CodePrior,
  variables: Any,
  codes: Int[Array, "B N"],
  label: Int[Array, " B"],
  train: bool = False,
  dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B N"]:
  """-log p of each code given the class and the codes before it, in nats; log K where nothing is learned."""
  tokens = jnp.concatenate([prior.num_codes + label[:, None], codes[:, :-1]], axis=1)
  keys = {} if dropout_key is None else {"dropout": dropout_key}
  logits = prior.apply(variables, tokens, train=train, rngs=keys)
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], axis=-1)[..., 0]


def sample_codes(
  prior: CodePrior, variables: Any, keys: Key[Array, " B"], label: Int[Array, " B"], temperature: float = 1.0
) -> Int[Array, "B N"]:
  """Codes of images of the classes `label`, drawn one after the other, each image by its own key. To be compiled."""
  prompts = prior.num_codes + label[:, None]
  return generate(prior, variables, prompts, keys=keys, count=prior.length, sampling=Sampling(temperature)).tokens
