"""Labelled images as classes to draw from, divided into three sets that share no class: training, validation, test.

sets = make_episode_sets(load_data(config), image_size=28)
sets.train.num_classes, sets.test.label
"""

from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, UInt8

from mlnotes.data import ArraySplit, DataSet, Split
from mlnotes.data.image import resize_images
from mlnotes.data.order import permute_index
from mlnotes.engine.errors import InputError

# Which sets have each class turned by 90, 180 and 270 degrees as three further classes.
Rotations: TypeAlias = Literal["all", "train", "none"]
# Images decoded and resized at a time.
_CHUNK = 512


class ClassPool(NamedTuple):
  """Images sorted by class: those of class k are image[start[k] : start[k] + count[k]].

  With four `turns` there are 4 K classes of K stored ones: number c is class c // 4 turned by turns[c % 4] quarters
  (Santoro et al. 2016, section 4.1). A 6 turned by two is a 9 then, and an o is itself: such classes cannot be told
  apart by anybody. The numbers of classes, K and all, are shapes, so known while tracing; the counts are not.
  """

  image: UInt8[Array, "N H W C"]
  start: Int32[Array, " K"]
  count: Int32[Array, " K"]
  label: Int32[Array, " K"]  # in the data set
  turns: Int32[Array, " R"]  # (0) or (0, 1, 2, 3), counter-clockwise

  @property
  def num_classes(self) -> int:
    """With the turned ones."""
    return self.label.shape[0] * self.turns.shape[0]


class EpisodeSets(NamedTuple):
  """Classes to learn from, to choose settings by, and to report on. No class is in two of them, turned or not."""

  train: ClassPool
  valid: ClassPool
  test: ClassPool
  levels: int  # pixel values are 0 .. levels - 1
  image_shape: tuple[int, int, int]


def make_class_pool(
  image: UInt8[np.ndarray, "N H W C"], label: Int[np.ndarray, " N"], rotations: bool = False
) -> ClassPool:
  """The pool of all classes that occur in `label`, in rising order; within a class the order of the examples stays.

  Raises InputError if images that are not square are to be rotated.
  """
  if rotations and image.shape[1] != image.shape[2]:
    raise InputError(
      f"--rotations: found images of {image.shape[1]} x {image.shape[2]} pixels, expected square ones; "
      "--image_size makes them so."
    )
  classes, start, count = np.unique(np.sort(label), return_index=True, return_counts=True)
  as_int = lambda x: jnp.asarray(x, jnp.int32)
  turns = range(4 if rotations else 1)
  order = np.argsort(label, kind="stable")
  return ClassPool(jnp.asarray(image[order]), as_int(start), as_int(count), as_int(classes), as_int(turns))


def make_episode_sets(
  data: DataSet,
  *,
  image_size: int = 0,
  bright_ink: bool = True,
  rotations: Rotations = "all",
  valid_fraction: float = 0.2,
  test_fraction: float = 0.2,
  seed: int = 0,
) -> EpisodeSets:
  """Divides the classes of `data`, and prepares its images as `prepare_images` says.

  Where the test split has classes that the training split lacks, they are the test classes, and the test split's
  examples of other classes are not used; the training split's classes give `valid_fraction` to validation. Otherwise
  the examples of both splits are pooled, and all classes divided by both fractions. `seed` chooses which class goes
  where. `rotations` adds turned classes to all three sets, to training alone, or to none.

  Raises InputError if there are too few classes for each set to have one.
  """
  train_classes, test_classes = (np.unique(_read_labels(split)) for split in (data.train, data.test))
  new = np.setdiff1d(test_classes, train_classes)
  if new.size:
    learn, valid = _divide(train_classes, (valid_fraction,), seed)
    divided = (learn, valid, new)
  else:
    divided = _divide(train_classes, (valid_fraction, test_fraction), seed)
  kept = [np.concatenate(divided[:2]), new] if new.size else [train_classes, train_classes]
  images, labels = zip(*(_read_classes(split, k, image_size) for split, k in zip((data.train, data.test), kept)))
  image, label = prepare_images(np.concatenate(images), data.levels, bright_ink), np.concatenate(labels)
  turned = (rotations != "none", rotations == "all", rotations == "all")
  pools = []
  for classes, turn in zip(divided, turned):
    mine = np.isin(label, classes)
    pools.append(make_class_pool(image[mine], label[mine], turn))
  return EpisodeSets(*pools, data.levels, image.shape[1:])


def _divide(classes: np.ndarray, fractions: tuple[float, ...], seed: int) -> tuple[np.ndarray, ...]:
  """What is left of `classes`, and a pseudo-random share of them, at least one, for each of `fractions`."""
  sizes = [max(1, round(fraction * len(classes))) for fraction in fractions]
  if sum(sizes) >= len(classes):
    flags = " ".join(f"--{name}_fraction={value}" for name, value in zip(("valid", "test"), fractions))
    raise InputError(f"{flags}: found {len(classes)} classes, expected more than the {sum(sizes)} to be set aside.")
  order = permute_index(np.arange(len(classes)), len(classes), np.array([0, seed], np.uint32))
  *parts, rest = np.split(classes[order], np.cumsum(sizes))
  return (np.sort(rest), *map(np.sort, parts))


# ---- Images --------------------------------------------------------------------------------------------------------


def prepare_images(image: UInt8[np.ndarray, "N H W C"], levels: int, bright_ink: bool) -> UInt8[np.ndarray, "N H W c"]:
  """One channel where all are equal everywhere; with `bright_ink` such images are bright on dark.

  They are inverted (v becomes levels - 1 - v) if the median of the pixels at their borders is in the upper half.
  """
  if not (image == image[..., :1]).all():
    return image
  image = image[..., :1]
  border = np.concatenate([image[:, [0, -1]].ravel(), image[:, :, [0, -1]].ravel()])
  return levels - 1 - image if bright_ink and np.median(border) > (levels - 1) / 2 else image


def _read_labels(split: Split) -> np.ndarray:
  if isinstance(split, ArraySplit):
    return split.label
  chunks = range(0, len(split), _CHUNK)
  return np.concatenate([split.read(np.arange(i, min(i + _CHUNK, len(split))))["label"] for i in chunks])


def _read_classes(split: Split, classes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """(images, labels) of the examples of `classes`, of `size` x `size` pixels unless `size` is 0."""
  index = np.flatnonzero(np.isin(_read_labels(split), classes))
  images, labels = [], []
  for i in range(0, len(index), _CHUNK):
    batch = split.read(index[i : i + _CHUNK])
    images.append(resize_images(batch["image"], size) if size else batch["image"])
    labels.append(batch["label"])
  return np.concatenate(images), np.concatenate(labels)
