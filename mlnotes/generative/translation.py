"""Images of one kind made into images of another: networks, the pool of old fakes, and views that make pairs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mlnotes.nn.conv import Conv
from mlnotes.nn.conv_transpose import ConvTranspose
from mlnotes.nn.norm import InstanceNorm

# Images on [-1, 1] are this much smaller where their arctanh is taken.
_WITHIN = 0.99


class ResidualTranslator(nn.Module):
  """CycleGAN's generator for small images: one halving, `blocks` residual steps, one doubling; tanh.

  3 x 3 convolutions, instance norm and ReLU (Zhu et al. 2017, appendix 7.2, which has two halvings and six or nine
  blocks for images of 128 or 256). Heights and widths are even. `from_identity`: the network moves its input, in
  arctanh of it, and begins with not moving it at all (not in the paper); input and output have the same channels then.
  """

  channels: int
  width: int = 32
  blocks: int = 3
  from_identity: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B H W O"]:
    conv = lambda features, **more: Conv(features, (3, 3), dtype=self.dtype, **more)
    norm = lambda x: InstanceNorm(dtype=self.dtype)(x)
    start = jnp.arctanh(_WITHIN * x) if self.from_identity else 0.0
    x = nn.relu(norm(conv(self.width)(x)))
    x = nn.relu(norm(conv(2 * self.width, strides=2)(x)))
    for _ in range(self.blocks):
      y = nn.relu(norm(conv(2 * self.width)(x)))
      x = x + norm(conv(2 * self.width)(y))
    x = nn.relu(norm(ConvTranspose(self.width, (4, 4), strides=2, dtype=self.dtype)(x)))
    last = conv(self.channels, **({"kernel_init": nn.initializers.zeros} if self.from_identity else {}))
    return jnp.tanh(start + last(x).astype(jnp.float32))


class UNetTranslator(nn.Module):
  """pix2pix's generator for small images: halvings and doublings joined at each size, `dropout` its only noise; tanh.

  Isola et al. 2017, section 6.1. Its norm is batch norm with the statistics of the test batch, which at their batch of
  one is the instance norm here. Differences from the paper: dropout in training alone, so that what is evaluated does
  not hang on a draw.
  """

  channels: int
  width: int = 32
  levels: int = 2
  dropout: float = 0.5
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B H W O"]:
    norm = lambda x: InstanceNorm(dtype=self.dtype)(x)
    skips = [nn.relu(norm(Conv(self.width, (3, 3), dtype=self.dtype)(x)))]
    for level in range(self.levels):
      y = Conv(self.width * 2 ** (level + 1), (4, 4), strides=2, dtype=self.dtype)(skips[-1])
      skips.append(nn.relu(norm(y)))
    x = skips.pop()
    for level in reversed(range(self.levels)):
      x = norm(ConvTranspose(self.width * 2**level, (4, 4), strides=2, dtype=self.dtype)(x))
      x = nn.relu(nn.Dropout(self.dropout, deterministic=not train)(x))
      x = jnp.concatenate([x, skips.pop()], axis=-1)
    return jnp.tanh(Conv(self.channels, (3, 3), dtype=self.dtype)(x).astype(jnp.float32))


class PatchDiscriminator(nn.Module):
  """A score for each patch of an image: `layers` 4 x 4 convolutions of stride 2, then one of stride 1; leaky ReLU.

  Each score sees a part of the image alone (Isola et al. 2017, section 3.2.2). Where the output is judged beside the
  input (pix2pix), both are joined along the channels.
  """

  width: int = 32
  layers: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w"]:
    for layer in range(self.layers):
      x = Conv(self.width * 2**layer, (4, 4), strides=2, dtype=self.dtype)(x)
      x = nn.leaky_relu(InstanceNorm(dtype=self.dtype)(x) if layer else x, 0.2)
    x = nn.leaky_relu(InstanceNorm(dtype=self.dtype)(Conv(self.width * 2, (3, 3), dtype=self.dtype)(x)), 0.2)
    return Conv(1, (3, 3), dtype=self.dtype)(x)[..., 0].astype(jnp.float32)


class ImagePool(NamedTuple):
  """Generated images of earlier updates, of which `filled` are there."""

  images: Float[Array, "P H W C"]
  filled: Int[Array, ""]


def init_pool(size: int, image_shape: tuple[int, int, int]) -> ImagePool:
  """An empty pool. Raises ValueError for a size below 1."""
  if size < 1:
    raise ValueError(f"size must be 1 or more, found {size}.")
  return ImagePool(jnp.zeros((size, *image_shape)), jnp.zeros([], jnp.int32))


def exchange(
  key: Key[Array, ""], pool: ImagePool, images: Float[Array, "B H W C"]
) -> tuple[ImagePool, Float[Array, "B H W C"]]:
  """What the discriminator is shown for `images`: half the time an older one, whose place the new one takes.

  One image after the other: while the pool is not full each is stored and shown; then, with probability 1/2, a stored
  one at random is shown and replaced, else the image itself is shown (Shrivastava et al. 2017, section 2.3; CycleGAN's
  has 50).
  """
  size = len(pool.images)

  def one(pool: ImagePool, inputs: tuple[Array, Array]) -> tuple[ImagePool, Array]:
    number, image = inputs
    coin, place = jax.random.split(jax.random.fold_in(key, number))
    full = pool.filled >= size
    at = jnp.where(full, jax.random.randint(place, (), 0, size), pool.filled)
    old = pool.images[at]
    swapped = full & jax.random.bernoulli(coin)
    stored = ~full | swapped
    kept = pool.images.at[at].set(jnp.where(stored, image, old))
    return ImagePool(kept, jnp.minimum(pool.filled + 1, size)), jnp.where(swapped, old, image)

  return jax.lax.scan(one, pool, (jnp.arange(len(images)), images))


def view_negative(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
  """Black for white, on [0, 1]."""
  return 1 - x


def view_turned(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
  """A quarter turn. Raises ValueError where the image is no square."""
  if x.shape[1] != x.shape[2]:
    raise ValueError(f"only squares are turned, found images of {x.shape[1]} x {x.shape[2]}.")
  return jnp.rot90(x, axes=(1, 2))


def view_upper(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
  """The upper half; the lower one is black."""
  return x * (jnp.arange(x.shape[1]) < x.shape[1] // 2)[None, :, None, None]


def view_coarse(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
  """Means of 4 x 4 pixels, in the size of the image; the last row or column stands for what is left over at an edge."""
  batch, height, width, channels = x.shape
  x = jnp.pad(x, ((0, 0), (0, -height % 4), (0, -width % 4), (0, 0)), mode="edge")
  cells = x.reshape(batch, x.shape[1] // 4, 4, x.shape[2] // 4, 4, channels).mean((2, 4))
  return jnp.repeat(jnp.repeat(cells, 4, axis=1), 4, axis=2)[:, :height, :width]


def view_edges(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
  """How steep the image is: the length of Sobel's gradient, 1 where it is steepest; constant images are black."""
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
  smooth = lambda a, axis: (
    jax.lax.slice_in_dim(a, 0, a.shape[axis] - 2, axis=axis)
    + 2 * jax.lax.slice_in_dim(a, 1, a.shape[axis] - 1, axis=axis)
    + jax.lax.slice_in_dim(a, 2, a.shape[axis], axis=axis)
  )
  steep = lambda a, axis: (
    jax.lax.slice_in_dim(a, 2, a.shape[axis], axis=axis) - jax.lax.slice_in_dim(a, 0, a.shape[axis] - 2, axis=axis)
  )
  length = jnp.sqrt(steep(smooth(padded, 1), 2) ** 2 + steep(smooth(padded, 2), 1) ** 2)
  most = jnp.max(length, axis=(1, 2, 3), keepdims=True)
  return length / jnp.where(most > 0, most, 1)


# Images on [0, 1] as they are seen: what is to be translated back.
VIEWS: Mapping[str, Callable[[Array], Array]] = {
  "negative": view_negative,
  "turned": view_turned,
  "upper": view_upper,
  "coarse": view_coarse,
  "edges": view_edges,
}
