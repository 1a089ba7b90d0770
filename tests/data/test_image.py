"""Files of every kind that PIL writes, as pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from mlnotes.data import DataError
from mlnotes.data.image import decode_image, read_header, resize_images

GREY = np.arange(0, 240, 8, dtype=np.uint8).reshape(5, 6)
COLOUR = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)


def encode(image, file_format="PNG", **options):
  file = io.BytesIO()
  image.save(file, file_format, **options)
  return file.getvalue()


def test_sixteen_bits_become_eight():
  """257 times a byte is the same share of 65535 as the byte of 255."""
  for offset in (-128, 0, 128):
    deep = (GREY.astype(np.int64) * 257 + offset).clip(0).astype(np.uint16)
    file = encode(Image.fromarray(deep))
    assert Image.open(io.BytesIO(file)).mode.startswith("I")
    np.testing.assert_array_equal(decode_image(file, (5, 6, 1))[..., 0], GREY)
    np.testing.assert_array_equal(decode_image(file, (5, 6, 3)), np.repeat(GREY[..., None], 3, -1))
  deep = Image.fromarray(GREY.astype(np.uint16) * 257)
  np.testing.assert_array_equal(decode_image(encode(deep, "TIFF"), (5, 6, 1))[..., 0], GREY)


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_modes_without_a_known_range_are_refused(mode):
  image = Image.fromarray(GREY).convert(mode) if mode != "LAB" else Image.new("LAB", (6, 5))
  with pytest.raises(DataError, match=f"found an image of mode {mode}, expected 8 or 16 bits"):
    decode_image(encode(image, "TIFF"), (5, 6, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_lie_on_white(channels):
  alpha = np.full((5, 6), 255, np.uint8)
  alpha[0], alpha[1] = 0, 51  # a fifth
  grey = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
  colour = Image.merge("RGBA", [*Image.fromarray(np.repeat(GREY[..., None], 3, -1)).split(), Image.fromarray(alpha)])
  expected = GREY.astype(float)
  expected[0], expected[1] = 255, 0.2 * expected[1] + 0.8 * 255
  for image in (grey, colour):
    found = decode_image(encode(image), (5, 6, channels))
    np.testing.assert_allclose(found, np.repeat(expected[..., None], channels, -1), atol=1)
  # Four channels keep it.
  np.testing.assert_array_equal(decode_image(encode(colour), (5, 6, 4))[..., 3], alpha)
  palette = Image.fromarray(GREY // 100).convert("P")
  palette.putpalette([0, 0, 0, 40, 40, 40, 90, 90, 90])
  found = decode_image(encode(palette, transparency=1), (5, 6, 3))
  np.testing.assert_array_equal(found[..., 0], np.array([0, 255, 90])[GREY // 100])


def test_palettes_single_bits_and_inks_are_the_colours_they_stand_for():
  palette = Image.fromarray(GREY // 100).convert("P")
  palette.putpalette([10, 20, 30, 200, 100, 0, 1, 2, 3])
  expected = np.array([[10, 20, 30], [200, 100, 0], [1, 2, 3]])[GREY // 100]
  for file_format in ("PNG", "GIF", "BMP"):
    np.testing.assert_array_equal(decode_image(encode(palette, file_format), (5, 6, 3)), expected)
  bits = Image.fromarray(GREY > 100)
  np.testing.assert_array_equal(decode_image(encode(bits), (5, 6, 1))[..., 0], 255 * (GREY > 100))
  flat = Image.new("RGB", (6, 5), (250, 120, 10))
  inks = decode_image(encode(flat.convert("CMYK"), "JPEG", quality=95), (5, 6, 3))
  np.testing.assert_allclose(inks, np.broadcast_to([250, 120, 10], (5, 6, 3)), atol=6)
  np.testing.assert_array_equal(decode_image(encode(Image.fromarray(COLOUR), "WEBP", lossless=True), (5, 6, 3)), COLOUR)


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_images_are_turned_as_the_camera_was(orientation, turn):
  exif = Image.Exif()
  exif[0x0112] = orientation
  upright = np.rot90(COLOUR, turn)
  file = encode(Image.fromarray(COLOUR), exif=exif)
  np.testing.assert_array_equal(decode_image(file, upright.shape), upright)
  assert read_header(io.BytesIO(file)) == (*upright.shape[:2], False)


def test_resizing_is_pils_by_channel():
  expected = np.asarray(Image.fromarray(COLOUR).resize((3, 4), Image.Resampling.HAMMING))
  np.testing.assert_array_equal(resize_images(COLOUR[None], (4, 3))[0], expected)
  np.testing.assert_array_equal(decode_image(encode(Image.fromarray(COLOUR)), (4, 3, 3), resize=True), expected)
  with pytest.raises(DataError, match=r"shape \(5, 6, 3\), expected \(4, 3, 3\)"):
    decode_image(encode(Image.fromarray(COLOUR)), (4, 3, 3))
