"""Image files and arrays as pixels: uint8, H W C, with 1, 3 or 4 channels."""

import io
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mlnotes.engine.errors import InputError


class DataError(InputError):
  """A data set cannot be found or used. The message is one sentence: what was found, what was expected."""


# PIL's modes that it converts to grey or RGB as it should.
_GREY, _COLOUR = ("1", "L"), ("P", "RGB", "RGBX", "YCbCr", "CMYK", "HSV")
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
# EXIF orientations that exchange height and width.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


def decode_image(encoded: bytes, shape: tuple[int, int, int], resize: bool = False) -> UInt8[np.ndarray, "H W C"]:
  """The pixels of an image file (PNG, JPEG, ...) with shape[-1] channels (1 grey, 3 RGB, 4 RGBA).

  Turned as its EXIF orientation says; 16 bits per pixel become 8; transparent pixels are laid on white unless there are
  4 channels; the first picture of an animation. With `resize`, scaled to the height and width of `shape` (see
  `resize_images`).

  Raises DataError where it is no image that can be read so, or, without `resize`, of another size.
  """
  from PIL import UnidentifiedImageError

  try:
    pixels = _to_pixels(encoded, shape[-1])
  except DataError:
    raise
  except Exception as error:  # decoders of damaged files raise whatever they meet
    reason = "no image file" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    raise DataError(f"found an image that cannot be decoded ({reason}).") from error
  if resize and pixels.shape[:2] != tuple(shape[:2]):
    return resize_images(pixels[np.newaxis], shape[:2])[0]
  if pixels.shape != tuple(shape):
    raise DataError(f"found an encoded image of shape {pixels.shape}, expected {tuple(shape)}.")
  return pixels


def read_header(file: Any) -> tuple[int, int, bool]:
  """(height, width, whether it is grey) of an image file, without decoding its pixels. Raises as PIL does."""
  from PIL import Image

  with Image.open(file) as image:
    width, height = image.size
    if image.getexif().get(_ORIENTATION) in _TURNED:
      width, height = height, width
    return height, width, image.mode in (*_GREY, "LA", "La", "I", "F", *_SIXTEEN_BITS)


def _to_pixels(encoded: bytes, channels: int) -> UInt8[np.ndarray, "H W C"]:
  from PIL import Image, ImageOps

  with Image.open(io.BytesIO(encoded)) as file:
    # PIL before version 11 opens grey PNG files of 16 bits as 32-bit integers, and any version such PGM files.
    sixteen_bits = file.mode in _SIXTEEN_BITS or (file.mode == "I" and file.format in ("PNG", "PPM"))
    image = ImageOps.exif_transpose(file)
    if sixteen_bits:
      image = Image.fromarray(np.round(np.asarray(image).astype(np.float64) / 257).astype(np.uint8))
    transparent = image.mode in _TRANSPARENT or "transparency" in image.info
    if image.mode not in (*_GREY, *_COLOUR, *_TRANSPARENT):
      raise DataError(f"found an image of mode {image.mode}, expected 8 or 16 bits of grey, RGB, CMYK or a palette.")
    if transparent and channels != 4:
      image = image.convert("RGBA")
      image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
  return pixels.reshape(*pixels.shape[:2], channels)


def resize_images(image: UInt8[np.ndarray, "N H W C"], size: int | tuple[int, int]) -> UInt8[np.ndarray, "N h w C"]:
  """To `size` x `size` pixels (or (height, width)) on the host, whatever the shape was.

  By PIL's Hamming filter: antialiased, sharper than bilinear, and without overshoot, so that no value leaves the
  range of the old ones.
  """
  from PIL import Image

  height, width = (size, size) if isinstance(size, int) else size
  resize = lambda channel: np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.HAMMING))
  channels = np.moveaxis(image, -1, 1).reshape(-1, *image.shape[1:3])
  resized = np.stack([resize(np.ascontiguousarray(channel)) for channel in channels])
  return np.moveaxis(resized.reshape(len(image), -1, height, width), 1, -1)
