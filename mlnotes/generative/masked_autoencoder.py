"""Masked auto-encoders: most patches of an image are hidden, and guessed from the others. He et al. 2022.

model = MaskedAutoencoder(image_shape=(28, 28, 1), patch=4)
masking = draw_masking(example_keys(stream_key(key, "mask", step), index), model.num_patches, share=0.75)
predicted = model.apply(variables, images, masking)                              # (B, N, patch * patch * C)
loss = masked_patch_loss(predicted, normalize_patches(patchify(images, 4)), masking)
features = model.apply(variables, images, method="features")                     # (B, width)
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from mlnotes.attention.position import sinusoidal_positions
from mlnotes.attention.transformer import Transformer
from mlnotes.engine.errors import InputError
from mlnotes.nn.dense import Dense


def patchify(images: Float[Array, "B H W C"], patch: int) -> Float[Array, "B N P"]:
  """Squares of `patch` pixels a side, row by row; the entries of each row by row too, channels last.

  Raises InputError where `patch` does not divide height and width.
  """
  batch, height, width, channels = images.shape
  if patch < 1 or height % patch or width % patch:
    raise InputError(f"patchify: found images of {height} x {width}, expected multiples of patch={patch}.")
  parts = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
  return parts.swapaxes(2, 3).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches: Float[Array, "B N P"], image_shape: tuple[int, int, int]) -> Float[Array, "B H W C"]:
  """The images whose patches these are. Raises InputError where they are not as many as make such images."""
  height, width, channels = image_shape
  patch = round((patches.shape[-1] / channels) ** 0.5)
  if patches.shape[1:] != (height * width // patch**2, patch * patch * channels):
    raise InputError(f"unpatchify: found {patches.shape[1]} patches of {patches.shape[2]}, expected {image_shape}.")
  parts = patches.reshape(len(patches), height // patch, width // patch, patch, patch, channels)
  return parts.swapaxes(2, 3).reshape(len(patches), *image_shape)


class Masking(NamedTuple):
  """Which patches of each image the encoder sees, and which it does not: together a permutation of all."""

  visible: Int[Array, "B V"]
  hidden: Int[Array, "B M"]


def count_visible(num_patches: int, share: float) -> int:
  """Patches that stay visible where `share` of them are masked. Raises InputError unless some are, and some are not."""
  visible = int(num_patches * (1 - share))
  if not 0 < visible < num_patches:
    raise InputError(
      f"a share of {share} masked of {num_patches} patches leaves {visible}: expected 1 to {num_patches - 1} visible."
    )
  return visible


def draw_masking(keys: Key[Array, " B"], num_patches: int, share: float = 0.75) -> Masking:
  """Masks `share` of the patches of each image, by its own key: of a step and an image. Raises as `count_visible`."""
  visible = count_visible(num_patches, share)
  order = jax.vmap(lambda key: jax.random.permutation(key, num_patches))(keys)
  return Masking(order[:, :visible], order[:, visible:])


def normalize_patches(patches: Float[Array, "B N P"], epsilon: float = 1e-6) -> Float[Array, "B N P"]:
  """Each patch with mean 0 and variance 1 of its own pixels. He et al. 2022, sec. 3, "Reconstruction target".

  The variance is the unbiased one, as in the authors' code; a patch of one grey is 0.
  """
  mean = jnp.mean(patches, -1, keepdims=True)
  variance = jnp.var(patches, -1, keepdims=True, ddof=1)
  return (patches - mean) / jnp.sqrt(variance + epsilon)


def masked_patch_loss(
  predicted: Float[Array, "B N P"], target: Float[Array, "B N P"], masking: Masking
) -> Float[Array, " B"]:
  """Mean squared error over the pixels of the hidden patches alone, of each image."""
  difference = jnp.take_along_axis(predicted - target, masking.hidden[..., None], axis=1)
  return jnp.mean(difference**2, (1, 2))


def make_grid_positions(height: int, width: int, features: int) -> Float[Array, "N D"]:
  """Sines and cosines of the row in the first half of the features, of the column in the second; row by row.

  Fixed, not learned. The authors' code has the column first: a permutation of the features. Raises InputError unless
  4 divides `features`.
  """
  if features % 4:
    raise InputError(f"positions in two dimensions: found {features} features, expected a multiple of 4.")
  row, column = (x.reshape(-1) for x in jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
  return jnp.concatenate([sinusoidal_positions(x, features // 2, interleaved=False) for x in (row, column)], -1)


class MaskedAutoencoder(nn.Module):
  """An encoder that sees visible patches only, and a thinner decoder that sees its outputs and a token for each other.

  Vision Transformers both, with fixed positions in two dimensions. He et al. 2022, sec. 3.

  Differences from the paper: no class token; what represents an image is the mean over its patches' last features,
  which the paper finds to be as good.

  Raises InputError where `patch` does not divide height and width.
  """

  image_shape: tuple[int, int, int]
  patch: int = 4
  depth: int = 4
  heads: int = 4
  width: int = 64
  decoder_depth: int = 1
  decoder_heads: int = 4
  decoder_width: int = 32
  dtype: DTypeLike | None = None

  def setup(self):
    channels = self.image_shape[-1]
    self.embed = Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
    self.encoder = self._transformer(self.depth, self.heads, self.width)
    self.narrow = Dense(self.decoder_width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
    self.mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.decoder_width,))
    self.decoder = self._transformer(self.decoder_depth, self.decoder_heads, self.decoder_width)
    self.head = Dense(self.patch**2 * channels, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())

  @nn.nowrap
  def _transformer(self, depth: int, heads: int, width: int) -> Transformer:
    return Transformer(depth, heads, width, activation="gelu_erf", dense=Dense, dtype=self.dtype)

  @property
  def grid(self) -> tuple[int, int]:
    """Patches from top to bottom, and from left to right."""
    return self.image_shape[0] // self.patch, self.image_shape[1] // self.patch

  @property
  def num_patches(self) -> int:
    return self.grid[0] * self.grid[1]

  def __call__(self, images: Float[Array, "B H W C"], masking: Masking) -> Float[Array, "B N P"]:
    """What each patch is guessed to be, the visible ones too. Nothing of a hidden patch is seen."""
    return self.decode(self.encode(images, masking.visible), masking)

  def encode(self, images: Float[Array, "B H W C"], visible: Int[Array, "B V"]) -> Float[Array, "B V D"]:
    """Features of the visible patches, from these alone."""
    patches = jnp.take_along_axis(patchify(images, self.patch), visible[..., None], axis=1)
    positions = make_grid_positions(*self.grid, self.width)
    return self.encoder(self.embed(patches) + jnp.take(positions, visible, axis=0))

  def decode(self, encoded: Float[Array, "B V D"], masking: Masking) -> Float[Array, "B N P"]:
    """All patches in their order, from the features of the visible ones."""
    seen = self.narrow(encoded)
    token = jnp.broadcast_to(self.mask_token.astype(seen.dtype), (*masking.hidden.shape, self.decoder_width))
    place = jnp.argsort(jnp.concatenate(masking, axis=1), axis=1)
    tokens = jnp.take_along_axis(jnp.concatenate([seen, token], axis=1), place[..., None], axis=1)
    positions = make_grid_positions(*self.grid, self.decoder_width)
    return self.head(self.decoder(tokens + positions[None].astype(tokens.dtype))).astype(jnp.float32)

  def features(self, images: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
    """What represents an image of which nothing is hidden: the mean over its patches."""
    everything = jnp.broadcast_to(jnp.arange(self.num_patches), (len(images), self.num_patches))
    return jnp.mean(self.encode(images, everything), axis=1).astype(jnp.float32)
