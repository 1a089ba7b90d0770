"""Where data sets come from: scikit-learn's digits, an .npz file, or a TFDS directory."""

from pathlib import Path
from typing import Any

import numpy as np

from mlnotes.data.dataset import ArraySplit, DataError, DataSet, make_array_split
from mlnotes.data.order import permute_index

BUILT_IN = ("digits",)


def load(dataset: str, data_dir: str | None = None, train_split: str = "train", test_split: str = "test") -> DataSet:
  """Reads the data set that `--dataset` names.

  "digits":     scikit-learn's 1797 handwritten digits, 8x8x1 with 17 grey levels; needs no file.
  "path.npz":   arrays `image` and `label`, and `image_test` and `label_test` (else a tenth is set aside).
  other names:  a TFDS data set, prepared under `data_dir` ("mnist", "name/config", "name:1.0.0"). `train_split` and
                `test_split` choose its splits, slices such as "train[:90%]" included.

  Raises DataError, one sentence, if there is no such data set or it cannot be used.
  """
  if dataset == "digits":
    return load_digits()
  if dataset.endswith(".npz"):
    return load_npz(dataset)
  from mlnotes.data.tfds_source import load_tfds

  return load_tfds(dataset, data_dir, train_split, test_split)


def load_digits() -> DataSet:
  """Scikit-learn's digits: a fixed split into 1437 to train and 360 to test, shuffled and stratified by class."""
  from sklearn.datasets import load_digits as read_digits
  from sklearn.model_selection import train_test_split

  digits = read_digits()
  train, test = train_test_split(np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0)
  image = digits.images.astype(np.uint8)
  splits = [make_array_split("digits", image[i], digits.target[i], 17, 10) for i in (train, test)]
  return DataSet("digits", *splits, 10, tuple(map(str, digits.target_names)), 17, splits[0].image_shape)


def load_npz(path: str) -> DataSet:
  """The arrays of an .npz file: `image`, `label` and, optionally, `image_test`, `label_test`.

  Without test arrays a fixed pseudo-random tenth of the examples (at least one) is the test split.
  """
  flag = f"--dataset={path}"
  arrays = _read_npz(path, flag)
  missing = {"image", "label"} - arrays.keys()
  if missing:
    raise DataError(
      f"{flag}: found the arrays {', '.join(sorted(arrays)) or 'none'}, expected image and label"
      " (and, optionally, image_test and label_test)."
    )
  if ("image_test" in arrays) != ("label_test" in arrays):
    raise DataError(f"{flag}: found only one of image_test and label_test, expected both or neither.")
  train = make_array_split(flag, arrays["image"], arrays["label"])
  if "image_test" in arrays:
    test = make_array_split(f"{flag} (test)", arrays["image_test"], arrays["label_test"])
    if test.image_shape != train.image_shape:
      raise DataError(f"{flag}: image_test has images of shape {test.image_shape}, expected {train.image_shape}.")
  else:
    train, test = _hold_out(train, flag)
  num_classes = int(max(train.label.max(), test.label.max())) + 1
  names = tuple(map(str, range(num_classes)))
  return DataSet(Path(path).stem, train, test, num_classes, names, 256, train.image_shape)


def _read_npz(path: str, flag: str) -> dict[str, Any]:
  import zipfile
  import zlib

  try:
    with open(Path(path).expanduser(), "rb") as file:
      if not zipfile.is_zipfile(file):
        raise DataError(f"{flag}: not an .npz archive or cut short, expected a file written by np.savez.")
      file.seek(0)
      with np.load(file, allow_pickle=False) as archive:
        names = {"image", "label", "image_test", "label_test"}.intersection(archive.files) or archive.files
        return {name: archive[name] for name in names}
  except FileNotFoundError as error:
    raise DataError(f"{flag}: no such file, expected an .npz with image and label.") from error
  except DataError:
    raise
  except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
    raise DataError(f"{flag}: not readable ({error}), expected plain arrays written by np.savez.") from error


def _hold_out(split: ArraySplit, flag: str) -> tuple[ArraySplit, ArraySplit]:
  size = len(split)
  if size < 2:
    raise DataError(f"{flag}: found {size} example, expected at least 2 to set a test split aside.")
  order = permute_index(np.arange(size), size, np.zeros(2, np.uint32))
  num_test = max(1, size // 10)
  test, train = (ArraySplit(**split.read(part)) for part in (order[:num_test], order[num_test:]))
  return train, test
