"""Where data sets come from: built-in digits and sprites, an .npz file, a folder of images, or a TFDS directory."""

from pathlib import Path
from typing import Literal

import numpy as np

from mlnotes.data.dataset import ArraySplit, DataError, DataSet, make_array_split, name_classes
from mlnotes.data.folder_source import load_folder
from mlnotes.data.image import resize_images
from mlnotes.data.npz import read_npz
from mlnotes.data.order import hold_out
from mlnotes.data.sprites import load_sprites
from mlnotes.data.tfds_source import load_tfds, tfds_directory


def load(
  dataset: str,
  data_dir: str | None = None,
  train_split: str = "train",
  test_split: str = "test",
  image_size: int = 0,
) -> DataSet:
  """Reads the data set that `--dataset` names.

  "digits":     scikit-learn's 1797 handwritten digits, 8x8x1 with 17 grey levels; needs no file. "digits_halves" are
                the same in the order of their writers: the first half to learn from, the second to test on.
  "sprites":    24,576 binary pictures of a shape, 32x32x1, drawn from five causes: see `mlnotes.data.sprites`.
  "path.npz":   arrays `image` and `label`, and `image_test` and `label_test` (else a tenth is set aside).
  a folder:     images in sub-folders called after their classes, these in `train_split` and `test_split` or not (then
                a tenth is set aside); write ./name where a TFDS data set has the name too.
  other names:  a TFDS data set, prepared under `data_dir` ("mnist", "name/config", "name:1.0.0"). `train_split` and
                `test_split` choose its splits, slices such as "train[:90%]" included.

  Images are resized to `image_size` x `image_size` unless that is 0. Raises DataError, one sentence, if there is no
  such data set or it cannot be used.
  """
  kind = kind_of(dataset, data_dir)
  if kind == "folder":
    return load_folder(dataset, train_split, test_split, image_size)
  if kind == "tfds":
    return load_tfds(dataset, data_dir, train_split, test_split, image_size)
  if kind == "digits":
    data = load_digits(halves=dataset == "digits_halves")
  else:
    data = load_sprites() if kind == "sprites" else load_npz(dataset)
  return _resize(data, image_size) if image_size else data


def kind_of(dataset: str, data_dir: str | None = None) -> Literal["digits", "sprites", "npz", "folder", "tfds"]:
  """What `--dataset` names, without reading it."""
  if dataset in ("digits", "digits_halves"):
    return "digits"
  if dataset == "sprites":
    return "sprites"
  if dataset.endswith(".npz"):
    return "npz"
  if dataset.startswith((".", "/", "~")):
    return "folder"
  prepared = tfds_directory(data_dir) / dataset.partition(":")[0]
  # A name within a folder that is here is that of a path, whether it is there or not.
  path = Path(dataset)
  is_path = path.is_dir() or (len(path.parts) > 1 and path.parent.is_dir())
  return "folder" if dataset and is_path and not prepared.is_dir() else "tfds"


def _resize(data: DataSet, image_size: int) -> DataSet:
  resized = [ArraySplit(resize_images(split.image, image_size), split.label) for split in (data.train, data.test)]
  return data._replace(train=resized[0], test=resized[1], image_shape=resized[0].image_shape)


def load_digits(halves: bool = False) -> DataSet:
  """Scikit-learn's digits: a fixed split into 1437 to train and 360 to test, shuffled and stratified by class.

  halves: the first 898 to train and the last 899 to test instead. The writers of the one are not those of the other,
    which is harder: the nearest neighbour is right for 96.1 % instead of 98.3 %.
  """
  from sklearn.datasets import load_digits as read_digits
  from sklearn.model_selection import train_test_split

  digits = read_digits()
  order = np.arange(len(digits.target))
  if halves:
    train, test = np.split(order, [len(order) // 2])
  else:
    train, test = train_test_split(order, test_size=0.2, stratify=digits.target, random_state=0)
  image = digits.images.astype(np.uint8)
  splits = [make_array_split("digits", image[i], digits.target[i], 17, 10) for i in (train, test)]
  name = "digits_halves" if halves else "digits"
  return DataSet(name, *splits, 10, tuple(map(str, digits.target_names)), 17, splits[0].image_shape)


def load_npz(path: str) -> DataSet:
  """The arrays of an .npz file: `image`, `label` and, optionally, `image_test`, `label_test`.

  The distinct labels, of both splits together, are the classes, called by their values: see `name_classes`.

  Without test arrays a fixed pseudo-random tenth of the examples (at least one) is the test split.
  """
  flag = f"--dataset={path}"
  arrays = read_npz(path, flag, "image and label", ("image", "label", "image_test", "label_test"))
  missing = {"image", "label"} - arrays.keys()
  if missing:
    raise DataError(
      f"{flag}: found the arrays {arrays.listed}, expected image and label"
      " (and, optionally, image_test and label_test)."
    )
  if ("image_test" in arrays) != ("label_test" in arrays):
    raise DataError(f"{flag}: found only one of image_test and label_test, expected both or neither.")
  tested = "image_test" in arrays
  labels, names = name_classes(flag, *(arrays[name] for name in ("label", "label_test")[: 1 + tested]))
  train = make_array_split(flag, arrays["image"], labels[0])
  if tested:
    test = make_array_split(f"{flag} (test)", arrays["image_test"], labels[1])
    if test.image_shape != train.image_shape:
      raise DataError(f"{flag}: image_test has images of shape {test.image_shape}, expected {train.image_shape}.")
  else:
    train, test = (ArraySplit(**train.read(part)) for part in hold_out(len(train), flag))
  return DataSet(Path(path).stem, train, test, len(names), names, 256, train.image_shape)
