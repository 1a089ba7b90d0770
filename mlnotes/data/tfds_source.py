"""Prepared TFDS data sets, read without TensorFlow.

TensorFlow is needed only to prepare a set (`tfds build`). Reading goes through ArrayRecord (or Parquet) by index; a set
that is small enough is decoded once and then memory-mapped from the cache directory.
"""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlnotes.data.dataset import DataError, DataSet, RecordSplit, Split
from mlnotes.data.decoded import DECODE_LIMIT_BYTES, decode_once

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def load_tfds(
  dataset: str,
  data_dir: str | None = None,
  train_split: str = "train",
  test_split: str = "test",
  image_size: int = 0,
  decode_limit_bytes: int = DECODE_LIMIT_BYTES,
) -> DataSet:
  """Two splits of the TFDS image data set `dataset` ("name", "name/config", "name:1.0.0") under `data_dir`.

  An empty `data_dir` means TFDS's own: $TFDS_DATA_DIR, else ~/tensorflow_datasets. Without a version the highest one
  that is there is read. Images are resized to `image_size` unless it is 0. Raises DataError, one sentence, if the set
  is absent, has no random access, no such split, or no features `image` (uint8, one fixed shape unless resized) and
  `label` (one class).
  """
  flag = f"--dataset={dataset}"
  root = tfds_directory(data_dir)
  directory = find_prepared(dataset, root)

  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(directory)
  shape = _check_features(builder.info.features, flag, image_size)
  splits = [
    _open_split(builder, directory, split, shape, bool(image_size), flag, decode_limit_bytes)
    for split in (train_split, test_split)
  ]
  names = tuple(builder.info.features["label"].names)
  return DataSet(builder.info.name, *splits, len(names), names, 256, shape)


def load_tfds_texts(
  dataset: str, data_dir: str | None = None, train_split: str = "train", test_split: str = "test"
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The feature `text` of all examples of two splits of the TFDS data set `dataset`; empty ones are passed over.

  Raises DataError, one sentence, as `load_tfds` does, or if there is no such feature.
  """
  flag, root = f"--dataset={dataset}", tfds_directory(data_dir)
  if not dataset or not (root / dataset.partition(":")[0]).is_dir():
    raise DataError(
      f"{flag}: no such text, expected pydoc, docstrings, a file.txt, a file.jsonl, or a TFDS data set with a feature "
      f"text that is prepared in {root} (--data_dir)."
    )
  directory = find_prepared(dataset, root)

  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(directory)
  features = builder.info.features
  found = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {"(one)": features}
  if not isinstance(found.get("text"), tfds.features.Text):
    raise DataError(f"{flag}: found the features {_describe(found)}, expected text (Text).")
  # The other features are left as they are: images would be decoded.
  decoders = {name: tfds.decode.SkipDecoding() for name in found if name != "text"}
  splits = []
  for split in (train_split, test_split):
    _find_files(builder, split, flag)
    source = _open_source(builder, directory, split, decoders, flag)
    try:
      texts = [bytes(source[i]["text"]).decode("utf-8") for i in range(len(source))]
    except UnicodeDecodeError as error:
      raise DataError(f"{flag}: split {split!r} holds a text that is no UTF-8 ({error.reason}).") from error
    splits.append(tuple(text for text in texts if text))
    if not splits[-1]:
      raise DataError(f"{flag}: split {split!r} has no text, expected a character or more.")
  return splits[0], splits[1]


def tfds_directory(data_dir: str | None) -> Path:
  """Where TFDS data sets are prepared: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
  return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(dataset: str, root: Path) -> Path:
  """The directory of a prepared version of `dataset` under `root`: root/name[/config]/version."""
  name, _, version = dataset.partition(":")
  base = root / name
  if not name or ".." in Path(name).parts or not base.is_dir():
    raise DataError(_absent(dataset, name, root))
  found = sorted(_versions(base), key=lambda path: tuple(map(int, path.name.split("."))))
  if version:
    found = [path for path in found if path.name == version]
  if found:
    return found[-1]
  configs = sorted(f"{name}/{path.name}" for path in base.iterdir() if path.is_dir() and _versions(path))
  if configs:
    raise DataError(f"--dataset={dataset}: found only the configurations {', '.join(configs)}, expected one of them.")
  there = ", ".join(sorted(path.name for path in base.iterdir())) or "nothing"
  raise DataError(
    f"--dataset={dataset}: found {there} in {base}, expected a prepared version"
    f" ({version or 'such as 1.0.0'}) with its dataset_info.json and features.json."
  )


def _versions(base: Path) -> list[Path]:
  needed = ("dataset_info.json", "features.json")
  return [
    path for path in base.iterdir() if _VERSION.fullmatch(path.name) and all((path / n).is_file() for n in needed)
  ]


def _absent(dataset: str, name: str, root: Path) -> str:
  there = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
  near = difflib.get_close_matches(name, ["digits", *there], n=1)
  found = f"found {', '.join(there)}" if there else ("found it empty" if root.is_dir() else "no such directory")
  return (
    f"--dataset={dataset}: looked for a prepared TFDS data set in {root / name} ({root}: {found})"
    f"{f', did you mean {near[0]!r}' if near else ''}; expected either --data_dir=DIR with a prepared one"
    f" (pip install -e '.[tf]' here, then tfds build {name or 'NAME'} --file_format=array_record --data_dir=DIR)"
    " or --dataset=path.npz with the arrays image and label, or --dataset=FOLDER of images in class folders."
  )


def _describe(features: dict[str, Any]) -> str:
  return ", ".join(f"{key} ({type(value).__name__})" for key, value in sorted(features.items()))


def _check_features(features: Any, flag: str, image_size: int) -> tuple[int, int, int]:
  import tensorflow_datasets as tfds

  wanted = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
  found = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {"(one)": features}
  for name, kind in wanted.items():
    if not isinstance(found.get(name), kind):
      raise DataError(f"{flag}: found the features {_describe(found)}, expected image (Image) and label (ClassLabel).")
  image = features["image"]
  shape = tuple(image.shape)
  if image_size and len(shape) == 3:
    shape = (image_size, image_size, shape[-1])
  if image.np_dtype != np.uint8 or None in shape or len(shape) != 3 or shape[-1] not in (1, 3, 4):
    raise DataError(
      f"{flag}: found images of shape {shape} and dtype {np.dtype(image.np_dtype)},"
      " expected one fixed shape H W C (--image_size makes one) with 1, 3 or 4 channels of uint8."
    )
  return shape


def _open_split(
  builder: Any,
  directory: Path,
  split: str,
  shape: tuple[int, int, int],
  resize: bool,
  flag: str,
  decode_limit_bytes: int,
) -> Split:
  import tensorflow_datasets as tfds

  info, instructions = builder.info, _find_files(builder, split, flag)
  source = _open_source(builder, directory, split, {"image": tfds.decode.SkipDecoding()}, flag)
  num_classes = info.features["label"].num_classes
  records = RecordSplit(source, shape, f"{flag}: split {split!r}", num_classes, resize)
  if not len(records):
    raise DataError(f"{flag}: split {split!r} is empty, expected at least one example.")
  content = [info.full_name, split, _stat_files(instructions, split, flag)]
  return decode_once(records, flag, f"{info.full_name}-{split}", content, decode_limit_bytes)


def _find_files(builder: Any, split: str, flag: str) -> Sequence[Any]:
  """Where the examples of `split` are."""
  splits = builder.info.splits
  try:
    return splits[split].file_instructions
  except (KeyError, ValueError) as error:
    raise DataError(
      f"{flag}: no split {split!r}; found {', '.join(splits)},"
      " expected one of them, or a slice such as 'train[:90%]', in --train_split and --test_split."
    ) from error


def _open_source(builder: Any, directory: Path, split: str, decoders: dict[str, Any], flag: str) -> Any:
  """Random access to the examples of `split`."""
  try:
    return builder.as_data_source(split, decoders=decoders)
  except NotImplementedError as error:
    raise DataError(
      f"{flag}: {directory} is in the format {builder.info.file_format.value}, which has no random access; expected"
      " array_record (tfds build --file_format=array_record, or tfds convert_format)."
    ) from error
  except OSError as error:
    raise DataError(f"{flag}: {directory} cannot be read ({error}), expected the files of split {split!r}.") from error


def _stat_files(instructions: Sequence[Any], split: str, flag: str) -> list[list[Any]]:
  """What the bytes of one split depend on: other files on disk, or another slice, give another list."""
  files = []
  for item in instructions:
    path = Path(item.filename)
    try:
      stat = path.stat()
    except OSError as error:
      raise DataError(f"{flag}: {path} is missing, expected the files of split {split!r}.") from error
    files.append([path.name, stat.st_size, stat.st_mtime_ns, item.skip, item.take])
  return files
