"""What the networks of this chapter see of an image: augmented in training, distorted where that is asked."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from mlnotes.data import DataSet, augment
from mlnotes.data.dataset import is_written

AugmentationName: TypeAlias = Literal["auto", "shift", "crop", "crop_reflect", "none"]
Distortion: TypeAlias = Literal["none", "r", "rts"]

# Jaderberg et al. 2015, appendix A.4: degrees, and magnifications.
_DEGREES = {"r": 90.0, "rts": 45.0}
_ZOOM = (0.7, 1.2)
# Characters of up to this many pixels a side move by one pixel, larger ones by two.
_SMALLEST_CHARACTERS = 16


def choose_augmentation(name: AugmentationName, data: DataSet) -> str:
  """The recipe that --augmentation names, or that auto stands for with this data set."""
  if name != "auto":
    return name
  return "shift" if is_written(data) else "crop"


def make_augmentation(name: AugmentationName, data: DataSet) -> augment.Augmentation:
  """Changes one image on [0, 1] that leave its class as it is.

  shift: a pixel or two each way, for written characters. crop: four pixels each way, black coming in, and mirrored
  half the time; crop_reflect: the same, the image's reflection coming in.
  """
  recipes = {
    "none": lambda: lambda key, image: image,
    "shift": lambda: augment.random_translation(1 if max(data.image_shape[:2]) <= _SMALLEST_CHARACTERS else 2),
    "crop": lambda: augment.compose(augment.random_translation(4), augment.random_flip()),
    "crop_reflect": lambda: augment.compose(augment.random_translation(4, "reflect"), augment.random_flip()),
  }
  return recipes[choose_augmentation(name, data)]()


def seen_shape(distort: Distortion, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
  """The shape of what the network sees: distorted images lie on a canvas of one and a half times the size."""
  height, width, channels = image_shape
  return image_shape if distort == "none" else (3 * height // 2, 3 * width // 2, channels)


def centre(image: Num[Array, "H W C"], shape: tuple[int, int, int]) -> Num[Array, "h w C"]:
  """The image in the middle of a canvas of `shape`, 0 around it."""
  before = [(new - old) // 2 for old, new in zip(image.shape[:2], shape)]
  sides = [(low, new - old - low) for low, old, new in zip(before, image.shape[:2], shape)]
  return jnp.pad(image, (*sides, (0, 0)))


def make_distortion(
  distort: Distortion,
) -> Callable[[Key[Array, ""], Float[Array, "H W C"]], tuple[Float[Array, "h w C"], Float[Array, ""]]]:
  """(key, image on [0, 1]) -> (the image on its canvas, the degrees that it was turned by, counter-clockwise).

  r turns by up to 90 degrees either way; rts turns by up to 45, magnifies by .7 to 1.2 and moves by up to a quarter of
  the image. All uniform; one bilinear resampling. Jaderberg et al. 2015, appendix A.4.

  Differences from the paper: r has the larger canvas too, so that no corner is cut off.
  """
  if distort == "none":
    return lambda key, image: (image, jnp.float32(0))

  def apply(key, image):
    height, width, _ = image.shape
    image = centre(image, seen_shape(distort, image.shape))
    turn, down, right, size = jax.random.uniform(key, (4,))
    degrees = _DEGREES[distort] * (2 * turn - 1)
    if distort == "r":
      return augment.affine(image, degrees), degrees
    down, right = height / 4 * (2 * down - 1), width / 4 * (2 * right - 1)
    return augment.affine(image, degrees, down, right, _ZOOM[0] + (_ZOOM[1] - _ZOOM[0]) * size), degrees

  return apply


def black(data: DataSet) -> float:
  """What black is for the networks: 0 behind written characters, as the zeros that they pad with; -1 in photographs."""
  return 0.0 if is_written(data) else -1.0


def to_network(images: Num[Array, "*B H W C"], levels: int, black: float) -> Float[Array, "*B H W C"]:
  """Images as they are stored (integers below `levels`), or floats on [0, 1], on [black, 1], where networks work."""
  images = jnp.asarray(images)
  unit = images if jnp.issubdtype(images.dtype, jnp.floating) else images.astype(jnp.float32) / (levels - 1)
  return black + (1 - black) * unit
