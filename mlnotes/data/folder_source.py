"""Images in folders called after their classes: FOLDER/cat/1.png, or FOLDER/train/cat/1.png, FOLDER/test/cat/2.png."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mlnotes.data.class_folders import find_class_files
from mlnotes.data.dataset import DataError, DataSet, RecordSplit, Split
from mlnotes.data.decoded import DECODE_LIMIT_BYTES, decode_once
from mlnotes.data.image import read_header
from mlnotes.data.order import hold_out

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp")


@dataclasses.dataclass(frozen=True)
class _Files:
  """Image files and their labels, as `RecordSplit` reads them."""

  root: Path
  names: tuple[str, ...]  # relative to the root
  labels: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.names)

  def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
    read = lambda i: {"image": self._bytes(i), "label": self.labels[i], "name": self.names[i]}
    return [read(i) for i in positions]

  def _bytes(self, i: int) -> bytes:
    try:
      return (self.root / self.names[i]).read_bytes()
    except OSError as error:
      raise DataError(f"--dataset={self.root}: {self.names[i]} cannot be read ({error.strerror}).") from error

  def take(self, index: np.ndarray) -> "_Files":
    return _Files(self.root, *(tuple(values[i] for i in index) for values in (self.names, self.labels)))


def load_folder(
  folder: str,
  train_split: str = "train",
  test_split: str = "test",
  image_size: int = 0,
  decode_limit_bytes: int = DECODE_LIMIT_BYTES,
) -> DataSet:
  """The images under `folder`, one sub-folder for each class, whose name it has.

  `folder` may hold the sub-folders `train_split` and `test_split` with the classes in them. Without the second a fixed
  pseudo-random tenth of the images (at least one) is the test split. Files other than png, jpg, gif, webp and bmp, and
  hidden ones, are passed over. Images are grey where all are, else RGB; see `decode_image` for other kinds. They have
  one size, or are resized to `image_size`. What takes at most `decode_limit_bytes` is decoded once, into the cache.

  Raises DataError, one sentence, where there are no such images or they cannot be used.
  """
  flag = f"--dataset={folder}"
  root, parts, classes = find_class_files(folder, train_split, test_split, SUFFIXES, "image")
  files = [_Files(root, *part) for part in parts]
  shape = _find_shape(files, image_size, flag)
  if len(files) == 1:
    files = [files[0].take(index) for index in hold_out(len(files[0]), flag)]
  splits = [
    _open(part, name, shape, len(classes), bool(image_size), flag, decode_limit_bytes)
    for part, name in zip(files, ("train", "test"))
  ]
  return DataSet(root.resolve().name, *splits, len(classes), classes, 256, shape)


def _find_shape(files: Sequence[_Files], image_size: int, flag: str) -> tuple[int, int, int]:
  """The one shape of all images, or that which they are resized to, from the heads of their files."""

  def head(source, i):
    try:
      return read_header(source.root / source.names[i])
    except Exception as error:  # decoders of damaged files raise whatever they meet
      reason = str(error).split(" '")[0] or type(error).__name__
      raise DataError(f"{flag}: {source.names[i]} is no image that can be read ({reason}).") from error

  with ThreadPoolExecutor() as pool:
    places = [(source, i) for source in files for i in range(len(source))]
    heads = list(pool.map(lambda place: head(*place), places))
  channels = 1 if all(grey for *_, grey in heads) else 3
  if image_size:
    return image_size, image_size, channels
  first = heads[0][:2]
  for (source, i), (height, width, _) in zip(places, heads):
    if (height, width) != first:
      raise DataError(
        f"{flag}: found images of {first[0]} x {first[1]} ({places[0][0].names[0]}) and {height} x {width} "
        f"({source.names[i]}), expected one size; --image_size=64 makes all 64 x 64."
      )
  return (*first, channels)


def _open(
  files: _Files,
  name: str,
  shape: tuple[int, int, int],
  num_classes: int,
  resize: bool,
  flag: str,
  decode_limit_bytes: int,
) -> Split:
  records = RecordSplit(files, shape, f"{flag} ({name})", num_classes, resize)
  content = []
  for item, label in zip(files.names, files.labels):
    stat = (files.root / item).stat()
    content.append([item, label, stat.st_size, stat.st_mtime_ns])
  content = [str(files.root.resolve()), resize, content]
  return decode_once(records, flag, f"{files.root.resolve().name}-{name}", content, decode_limit_bytes)
