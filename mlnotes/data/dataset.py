"""What a data set is once it has been read: two splits of uint8 images with integer labels."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int, Int32, UInt8

from mlnotes.errors import InputError


class DataError(InputError):
  """A data set cannot be found or used. The message is one sentence: what was found, what was expected."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySplit:
  """Examples held as arrays, in memory or memory-mapped."""

  image: UInt8[np.ndarray, "N H W C"]
  label: Int32[np.ndarray, " N"]

  def __len__(self) -> int:
    return len(self.label)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return self.image.shape[1:]

  @property
  def nbytes(self) -> int:
    """Bytes of all examples as arrays."""
    return self.image.nbytes + self.label.nbytes

  def read(self, index: Int[np.ndarray, " B"]) -> Mapping[str, np.ndarray]:
    """The examples at `index`: {"image": uint8 (B, H, W, C), "label": int32 (B,)}."""
    return {"image": self.image[index], "label": self.label[index]}


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSplit:
  """Examples too large to hold decoded: read from `source` by index and decoded on demand.

  `source.__getitems__(positions)` gives a list of {"image": encoded bytes, "label": int}.
  """

  source: Any
  image_shape: tuple[int, int, int]

  def __len__(self) -> int:
    return len(self.source)

  @property
  def nbytes(self) -> int:
    """Bytes that all examples would take as arrays."""
    return len(self) * (int(np.prod(self.image_shape)) + np.dtype(np.int32).itemsize)

  def read(self, index: Int[np.ndarray, " B"]) -> Mapping[str, np.ndarray]:
    """The examples at `index`: {"image": uint8 (B, H, W, C), "label": int32 (B,)}. Safe to call from many threads."""
    records = self.source.__getitems__([int(i) for i in index])
    image = np.empty((len(records), *self.image_shape), np.uint8)
    for row, record in zip(image, records):
      row[...] = decode_image(record["image"], self.image_shape)
    return {"image": image, "label": np.array([record["label"] for record in records], np.int32)}


Split: TypeAlias = ArraySplit | RecordSplit


class DataSet(NamedTuple):
  """A training and a test split that share their classes."""

  name: str
  train: Split
  test: Split
  num_classes: int
  class_names: tuple[str, ...]
  levels: int  # pixel values are 0 .. levels - 1
  image_shape: tuple[int, int, int]


def decode_image(encoded: bytes, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "H W C"]:
  """The pixels of a PNG or JPEG file with shape[-1] channels (1 grey, 3 RGB, 4 RGBA).

  Raises DataError if its height or width is not the expected one.
  """
  import io

  from PIL import Image

  with Image.open(io.BytesIO(encoded)) as image:
    pixels = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[shape[-1]]))
  pixels = pixels.reshape(*pixels.shape[:2], -1)
  if pixels.shape != tuple(shape):
    raise DataError(f"found an encoded image of shape {pixels.shape}, expected {tuple(shape)}.")
  return pixels


def make_array_split(
  flag: str, image: Any, label: Any, levels: int = 256, num_classes: int | None = None
) -> ArraySplit:
  """`image` and `label` as a split after the checks that the rest of the package relies on.

  `image` must be uint8, N H W or N H W C with N, H, W, C >= 1 and values below `levels`; `label` integers of shape
  (N,), not negative and below `num_classes`. Raises DataError that begins with `flag` for anything else.
  """
  image, label = np.asarray(image), np.asarray(label)
  if image.dtype != np.uint8:
    remedy = " (floats in [0, 1] convert with np.round(255 * image).astype(np.uint8))"
    raise DataError(
      f"{flag}: image has dtype {image.dtype}, expected uint8{remedy if image.dtype.kind == 'f' else ''}."
    )
  if image.ndim == 3:
    image = image[..., np.newaxis]
  if image.ndim != 4:
    raise DataError(f"{flag}: image has shape {image.shape}, expected N H W or N H W C.")
  if image.size == 0:
    raise DataError(f"{flag}: image is empty (shape {image.shape}), expected at least one pixel of one example.")
  if label.dtype.kind not in "iu":
    raise DataError(f"{flag}: label has dtype {label.dtype}, expected integers.")
  if label.shape != image.shape[:1]:
    raise DataError(f"{flag}: label has shape {label.shape}, expected {image.shape[:1]}, one for each image.")
  if label.min() < 0:
    raise DataError(f"{flag}: label has the value {label.min()}, expected classes counted from 0.")
  limit = 2**31 if num_classes is None else num_classes
  if label.max() >= limit:
    raise DataError(f"{flag}: label has the value {label.max()}, expected less than {limit}.")
  if levels < 256 and image.max() >= levels:
    raise DataError(f"{flag}: image has the value {image.max()}, expected less than {levels}.")
  return ArraySplit(image, label.astype(np.int32))
