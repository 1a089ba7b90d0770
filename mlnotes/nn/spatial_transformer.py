"""Spatial transformers: a network that turns, shifts and scales its input by what it sees in it.

theta, (2, 3), maps positions of the OUTPUT to positions of the input, (x, y) on [-1, 1] with x to the right and y down:

  (x_in, y_in) = theta (x_out, y_out, 1)                                            Jaderberg et al. 2015, eq. 1

so theta scaled by 1/2 zooms in twofold. What -1 and 1 are, `align_corners` says, as in torch: False (the default there
since 1.3 and here) the outer edges of the border pixels, True their centres. Outside the input there are zeros.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from mlnotes.nn.conv import Conv
from mlnotes.nn.convnet import ConvNet
from mlnotes.nn.norm import BatchNorm
from mlnotes.nn.pooling import max_pool

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def affine_grid(
  theta: Float[Array, "B 2 3"], shape: tuple[int, int], align_corners: bool = False
) -> Float[Array, "B h w 2"]:
  """Where an output of `shape` (height, width) looks in the input: `torch.nn.functional.affine_grid`.

  The last axis is (x, y) on [-1, 1].

  Raises ValueError where theta is not (B, 2, 3).
  """
  _require_theta(theta)
  x, y = (_centered(size, theta.dtype) / (size - 1 if align_corners and size > 1 else size) for size in shape[::-1])
  x, y = jnp.meshgrid(2 * x, 2 * y)
  return jnp.einsum("bij,hwj->bhwi", theta, jnp.stack([x, y, jnp.ones_like(x)], -1), precision="highest")


def sample_bilinear(
  images: Float[Array, "B H W C"], grid: Float[Array, "B h w 2"], align_corners: bool = False
) -> Float[Array, "B h w C"]:
  """The images at the positions of `grid`, between pixels by their distances: `torch.nn.functional.grid_sample`.

  y = sum_{n, m} image[n, m] max(0, 1 - |x - m|) max(0, 1 - |y - n|) in pixels        Jaderberg et al. 2015, eq. 5

  Zeros outside. Differentiable by both arguments.

  Raises ValueError where the grid is not (B, h, w, 2).
  """
  if images.ndim != 4 or grid.ndim != 4 or grid.shape[-1] != 2 or len(grid) != len(images):
    raise ValueError(
      f"images of shape {images.shape} and grid of shape {grid.shape}, expected (B, H, W, C), (B, h, w, 2)"
    )
  columns, rows = (
    grid[..., axis] * (size - 1 if align_corners else size) / 2 + (size - 1) / 2
    for axis, size in enumerate(images.shape[2:0:-1])
  )
  return _sample(images, rows, columns)


def warp_affine(
  images: Float[Array, "B H W C"],
  theta: Float[Array, "B 2 3"],
  shape: tuple[int, int] | None = None,
  align_corners: bool = False,
) -> Float[Array, "B h w C"]:
  """`sample_bilinear` on the `affine_grid` of `shape` (None: that of the images), in pixels all the way.

  Nothing is divided by the size and multiplied by it again, so the identity, turns by 90 degrees of square images and
  reflections give the pixels exactly.

  Raises ValueError where theta is not (B, 2, 3), one for each image.
  """
  _require_theta(theta)
  if images.ndim != 4 or len(theta) != len(images):
    raise ValueError(
      f"images of shape {images.shape} and theta of shape {theta.shape}, expected (B, H, W, C), (B, 2, 3)"
    )
  sizes_in, sizes_out = images.shape[2:0:-1], (shape or images.shape[1:3])[::-1]
  less = 1 if align_corners else 0
  out = jnp.meshgrid(*(_centered(size, theta.dtype) for size in sizes_out))
  coordinates = []
  for axis, size in enumerate(sizes_in):
    weights = theta[:, axis, :, None, None]
    scale = [(size - less) / max(other - less, 1) for other in sizes_out]
    center = (size - less) / 2 * weights[:, 2] + (size - 1) / 2
    coordinates.append(weights[:, 0] * (scale[0] * out[0])[None] + weights[:, 1] * (scale[1] * out[1])[None] + center)
  columns, rows = coordinates
  return _sample(images, rows, columns)


def _require_theta(theta: Array) -> None:
  if theta.shape[1:] != (2, 3):
    raise ValueError(f"theta has shape {theta.shape}, expected (B, 2, 3)")


def _centered(size: int, dtype: Any) -> Array:
  """Positions of `size` pixels from the middle of them all, in pixels."""
  return jnp.arange(size, dtype=dtype) - (size - 1) / 2


def _sample(images: Array, rows: Array, columns: Array) -> Array:
  channel = lambda image, *coordinates: map_coordinates(image, coordinates, order=1, mode="constant", cval=0.0)
  return jax.vmap(jax.vmap(channel, in_axes=(2, None, None), out_axes=2))(images, rows, columns)


class Localizer(nn.Module):
  """Two 3x3 convolutions, each with ReLU and 2x2 max-pooling, and a layer of `hidden` features over all positions.

  Not averaged over space: where something is, is what is asked.
  """

  features: int = 20
  hidden: int = 64
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B D"]:
    for _ in range(2):
      x = nn.relu(Conv(self.features, (3, 3), padding=((1, 1), (1, 1)), dtype=self.dtype)(x))
      x = max_pool(x, 2)
    return nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x.reshape(len(x), -1)))


class SpatialTransformer(nn.Module):
  """Warps each image by the affine theta that `localizer` and a linear layer find in it: Jaderberg et al. 2015.

    theta = identity + scale (W localizer(x) + b)

  `localizer` is called as (x, train) -> (B, D). W and b, the layer "affine", start at 0, so that the module starts as
  the identity exactly. theta is float32 and kept in the collection "intermediates" as "theta". `shape` is that of the
  output (height, width), None that of the input.

  theta should learn slower than what reads the warped image, about a tenth as fast: give the module's parameters a
  learning rate of their own, or set `scale`, which makes the steps of theta that many times as large under Adam, by
  its square under gradient descent.
  """

  localizer: nn.Module
  shape: tuple[int, int] | None = None
  align_corners: bool = False
  scale: float = 1.0

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w C"]:
    features = self.localizer(x, train).astype(jnp.float32)
    change = nn.Dense(6, kernel_init=nn.initializers.zeros, name="affine")(features)
    theta = (jnp.array([IDENTITY]) + self.scale * change).reshape(-1, 2, 3)
    self.sow("intermediates", "theta", theta)
    return warp_affine(x, theta, self.shape, self.align_corners)


class TransformedConvNet(nn.Module):
  """A `ConvNet` that sees its images through a `SpatialTransformer`; fields as of `ConvNet`."""

  width: int = 32
  num_classes: int | None = None
  norm: Callable[..., nn.Module] = BatchNorm
  dtype: Any = None
  dropout: float = 0.0
  scale: float = 0.1

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B D"]:
    transformer = SpatialTransformer(Localizer(dtype=self.dtype), scale=self.scale, name="transformer")
    convnet = ConvNet(
      self.width,
      norm=self.norm,
      dtype=self.dtype,
      num_classes=self.num_classes,
      dropout=self.dropout,
      name="convnet",
    )
    return convnet(transformer(x, train), train)
