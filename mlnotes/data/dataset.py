"""What a data set is once it has been read: two splits of uint8 images with integer labels."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt8

from mlnotes.data.image import DataError, decode_image
from mlnotes.data.split import Rows, Split

# Grey, RGB, RGBA.
_CHANNELS = (1, 3, 4)
# More classes than this are taken for the ids of examples where hardly one has two examples.
_ID_CLASSES = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySplit(Rows):
  """Images held as arrays, in memory or memory-mapped: {"image": uint8 (B, H, W, C), "label": int32 (B,)}."""

  image: UInt8[np.ndarray, "N H W C"]
  label: Int32[np.ndarray, " N"]

  @property
  def arrays(self) -> Mapping[str, np.ndarray]:
    return {"image": self.image, "label": self.label}

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return self.image.shape[1:]


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSplit:
  """Examples too large to hold decoded: read from `source` by index and decoded on demand.

  `source.__getitems__(positions)` gives a list of {"image": encoded bytes, "label": int} and, if it likes, "name".

  name:   of data set and split, at the head of an error's sentence.
  resize: scale images to `image_shape` that are of another size.
  """

  source: Any
  image_shape: tuple[int, int, int]
  name: str = "records"
  num_classes: int | None = None
  resize: bool = False
  arrays: ClassVar[None] = None

  def __len__(self) -> int:
    return len(self.source)

  @property
  def nbytes(self) -> int:
    """Bytes that all examples would take as arrays."""
    return len(self) * (int(np.prod(self.image_shape)) + np.dtype(np.int32).itemsize)

  def read(self, index: Int[np.ndarray, " B"]) -> Mapping[str, np.ndarray]:
    """The examples at `index`: {"image": uint8 (B, H, W, C), "label": int32 (B,)}. Safe to call from many threads.

    Raises DataError, which names the record, for one that cannot be read or decoded or has a label out of range.
    """
    try:
      records = self.source.__getitems__([int(i) for i in index])
    except DataError:
      raise
    except Exception as error:  # readers of damaged files raise whatever they meet
      where = f"{self.name}, records {min(index)} to {max(index)}"
      raise DataError(f"{where}: not readable ({error}), expected whole files.") from error
    image, label = np.empty((len(records), *self.image_shape), np.uint8), np.empty(len(records), np.int32)
    for row, (i, record) in enumerate(zip(index, records)):
      where = f"{self.name}, {record.get('name', f'record {i}')}"
      try:
        image[row] = decode_image(record["image"], self.image_shape, self.resize)
      except DataError as error:
        raise DataError(f"{where}: {error}") from error
      label[row] = record["label"]
      if label[row] < 0 or (self.num_classes is not None and label[row] >= self.num_classes):
        raise DataError(f"{where}: label has the value {label[row]}, expected 0 to {(self.num_classes or 2**31) - 1}.")
    return {"image": image, "label": label}


class DataSet(NamedTuple):
  """A training and a test split that share their classes."""

  name: str
  train: Split
  test: Split
  num_classes: int
  class_names: tuple[str, ...]
  levels: int  # pixel values are 0 .. levels - 1
  image_shape: tuple[int, int, int]


# Data sets of written characters, by their names: grey, and a mirrored one is another character.
WRITTEN = (
  "binarized_mnist", "digits", "digits_halves", "emnist", "kmnist", "mnist", "mnist_corrupted", "optdigits", "qmnist",
  "semeion", "usps",
)  # fmt: skip


def is_written(data: DataSet) -> bool:
  """Whether its images are written characters, which may move a little but are others when mirrored."""
  return data.name.partition("/")[0].lower() in WRITTEN


# More names than this are not listed.
_NAMED_CLASSES = 5


def describe_classes(data: Any, of: str = "image") -> list[str]:
  """A sentence about each thing that keeps accuracies from telling what was learned: classes of one split alone, one
  class in all. Nothing where the labels would have to be decoded first. `of`: what has a label, in the sentences.

  Raises DataError where no class of the test split can be learned.
  """
  labels = [
    split.arrays["label"] if split.arrays is not None else getattr(getattr(split, "source", None), "labels", None)
    for split in (data.train, data.test)
  ]
  if any(label is None for label in labels):
    return []
  train, test = (set(np.unique(label).tolist()) for label in labels)

  def names(classes):
    some = ", ".join(data.class_names[i] for i in sorted(classes)[:_NAMED_CLASSES])
    return some + (f" and {len(classes) - _NAMED_CLASSES} more" if len(classes) > _NAMED_CLASSES else "")

  if not train & test:
    raise DataError(
      f"--dataset={data.name}: found the classes {names(train)} to learn from and {names(test)} to test on, expected "
      "some in both."
    )
  said = []
  if len(train | test) == 1:
    said.append(f"all {of}s are of one class ({names(train)}), so that an accuracy is 1 whatever is learned.")
  if test - train:
    said.append(f"no training {of} is of {names(test - train)}: their test {of}s count as errors in any accuracy.")
  if train - test:
    said.append(f"no test {of} is of {names(train - test)}: no figure says how these are recognised.")
  return said


def make_array_split(
  flag: str, image: Any, label: Any, levels: int = 256, num_classes: int | None = None
) -> ArraySplit:
  """`image` and `label` as a split after the checks that the rest of the package relies on.

  `image` must be uint8, N H W or N H W C with N, H, W >= 1, 1, 3 or 4 channels and values below `levels`; `label`
  integers of shape (N,), not negative and below `num_classes`. Raises DataError that begins with `flag` for anything
  else.
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
  if image.shape[-1] not in _CHANNELS:
    first = image.shape[1] in _CHANNELS
    remedy = " (channels first become last by np.moveaxis(image, 1, -1))" if first else ""
    raise DataError(f"{flag}: image has shape {image.shape}, expected N H W C with C of 1, 3 or 4{remedy}.")
  if label.dtype.kind not in "iu":
    raise DataError(f"{flag}: label has dtype {label.dtype}, expected integers{_label_remedy(label)}.")
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


def name_classes(
  flag: str, *labels: Any, of: str = "image"
) -> tuple[tuple[Int32[np.ndarray, " _"], ...], tuple[str, ...]]:
  """(labels counted from 0 for each of the given arrays, the classes' names) of labels that are any integers or words.

  The classes are the distinct values of all arrays together, in order; each keeps its value as its name. Raises
  DataError that begins with `flag` for other labels, negative ones, and ids: more than a thousand distinct values of
  which the average has fewer than two examples. `of`: what has a label, in its sentence.
  """
  arrays = [np.asarray(label) for label in labels]
  for label in arrays:
    if label.dtype.kind not in "iuU" or label.ndim != 1:
      found = f"dtype {label.dtype}" if label.ndim == 1 else f"shape {label.shape}"
      remedy = _label_remedy(label)
      raise DataError(f"{flag}: label has {found}, expected integers or words, one for each {of}{remedy}.")
    if label.size and label.dtype.kind != "U" and not 0 <= label.min() <= label.max() < 2**63:
      found = label.min() if label.min() < 0 else label.max()
      raise DataError(f"{flag}: label has the value {found}, expected classes from 0 to 2^63 - 1.")
  if len({label.dtype.kind == "U" for label in arrays}) > 1:
    raise DataError(f"{flag}: found integers and words as labels, expected one kind in both splits.")
  # One type for all: NumPy joins signed and unsigned integers of 64 bits as floating-point numbers.
  together = np.concatenate([label if label.dtype.kind == "U" else label.astype(np.int64) for label in arrays])
  values, index = np.unique(together, return_inverse=True)
  if len(values) > max(_ID_CLASSES, len(together) // 2):
    raise DataError(
      f"{flag}: found {len(values)} distinct labels (up to {values[-1]}) of {len(together)} {of}s, expected classes "
      f"of several {of}s each, not an id for each."
    )
  ends = np.cumsum([len(label) for label in arrays])[:-1]
  return tuple(np.split(index.reshape(-1).astype(np.int32), ends)), tuple(map(str, values.tolist()))


def _label_remedy(label: np.ndarray) -> str:
  if label.dtype.kind == "b":
    return " (label.astype(int) makes them)"
  if label.dtype.kind != "f":
    return ""
  if not np.isfinite(label).all():
    return f"; {np.sum(~np.isfinite(label))} of them are not finite"
  return " (label.astype(int) makes them)" if np.array_equal(label, np.round(label)) else ""
