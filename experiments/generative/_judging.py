"""How images that were made are judged beside real ones: figures and pictures that the chapters' reports share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from mlnotes.data import DataSet, Split, fixed_subset
from mlnotes.engine.errors import InputError
from mlnotes.engine.plot import new_figure, save_figure, sheet_height, show_images
from mlnotes.engine.progress import report_step

# Precision and recall look at the third neighbour of each sample.
MIN_SAMPLES = 4
# Fewest images, training and test together, that leave as many for the distance between two sets of real ones.
_MIN_IMAGES = 2 * MIN_SAMPLES
# Training images among which the nearest is searched, and that the judge learns from; test images beside them.
_SEARCHED, _HELD_OUT = 60_000, 10_000
_REAL_SPLITS = 10


def check_images(data: DataSet) -> None:
  """Raises InputError for a data set too small to measure samples against, before the run that is to be measured."""
  found = len(data.train) + len(data.test)
  if found < _MIN_IMAGES:
    raise InputError(
      f"--dataset: found {found} images in {data.name}, expected at least {_MIN_IMAGES} for the figures of the report, "
      "or --report_seeds=0 for none."
    )


def read_part(split: Split, limit: int) -> Mapping[str, np.ndarray]:
  return split.read(fixed_subset(len(split), limit))


class Reference(NamedTuple):
  """Real images, their judge and its features of them: what samples are measured against."""

  judge: Any
  judge_accuracy: float
  train: Mapping[str, np.ndarray]
  test: Mapping[str, np.ndarray]
  features: np.ndarray
  real_distance: float
  num_samples: int

  def two_real_sets(self) -> tuple[np.ndarray, np.ndarray]:
    """Features of `num_samples` real images and of as many others: what a score of real images is taken of."""
    order, count = np.random.default_rng(1).permutation(len(self.features)), self.num_samples
    return self.features[order[:count]], self.features[order[count : 2 * count]]

  def real_features(self) -> np.ndarray:
    """Of `num_samples` real images: held out ones, which the judge has not seen, and training images where they end."""
    num_train = len(self.features) - len(self.test["label"])
    index = num_train + fixed_subset(len(self.test["label"]), self.num_samples)
    if missing := self.num_samples - len(index):
      index = np.concatenate([index, fixed_subset(num_train, missing)])
    return self.features[index]

  def distance(self, features: np.ndarray) -> float:
    """Frechet distance of samples to as many real images, a mean over random choices of these."""
    from mlnotes.generative import feature_frechet_distance

    rng = np.random.default_rng(0)
    pick = lambda: rng.choice(len(self.features), self.num_samples, replace=False)
    return float(np.mean([feature_frechet_distance(self.features[pick()], features) for _ in range(_REAL_SPLITS)]))


def make_reference(data: DataSet, num_samples: int) -> Reference:
  """Trains the judge of `data`, or finds it in the cache, and measures real images with it.

  The features are of test images and as many training images as make ten times `num_samples`, at most all.
  """
  from mlnotes.generative import class_agreement, compute_real_distance, load_or_train_judge

  train, test = read_part(data.train, _SEARCHED), read_part(data.test, _HELD_OUT)
  report_step(f"a judge from {len(train['label'])} training images, unless it is in the cache")
  judge = load_or_train_judge(train["image"], train["label"], data.num_classes, data.levels)
  subset = read_part(data.train, 10 * num_samples)
  features = judge.features(np.concatenate([subset["image"], test["image"]]))
  num_samples = min(num_samples, len(features) // 2)
  return Reference(
    judge=judge,
    judge_accuracy=class_agreement(judge.predict(test["image"]), test["label"]),
    train=train,
    test=test,
    features=features,
    real_distance=compute_real_distance(features, num_samples, _REAL_SPLITS),
    num_samples=num_samples,
  )


def judge_samples(
  reference: Reference, images: UInt8[np.ndarray, "N H W C"], label: np.ndarray | None = None
) -> dict[str, float]:
  """Figures of `reference.num_samples` images beside as many real ones; `label`: the class asked of each, if any.

  The names carry how many: a distance between a thousand and a thousand does not compare with one between ten thousand.
  `judge_distance_N` and its floor `judge_distance_N_real` are Frechet distances in the features of the data's own
  judge, which are no FID; `precision_N_real` and `recall_N_real` are of real images too. Raises ValueError for another
  number of images.
  """
  from mlnotes.generative import class_agreement, precision_recall

  count = reference.num_samples
  if len(images) != count:
    raise ValueError(f"found {len(images)} images to judge, expected {count}, as many as the real ones.")
  features = reference.judge.features(images)
  precision, recall = precision_recall(reference.real_features(), features)
  real_precision, real_recall = precision_recall(*reference.two_real_sets())
  figures = {
    f"judge_distance_{count}": reference.distance(features),
    f"judge_distance_{count}_real": reference.real_distance,
    f"precision_{count}": precision,
    f"precision_{count}_real": real_precision,
    f"recall_{count}": recall,
    f"recall_{count}_real": real_recall,
    "judge_accuracy": reference.judge_accuracy,
  }
  if label is not None:
    figures["class_agreement"] = class_agreement(reference.judge.predict(images), label)
  return figures


def one_of_each(label: Int[np.ndarray, " N"], count: int) -> Int[np.ndarray, " M"]:
  """Positions of `count` examples, the classes in turn."""
  order = np.concatenate([np.flatnonzero(label == c)[:count] for c in np.unique(label)])
  turn = np.concatenate([np.arange(min(count, np.sum(label == c))) for c in np.unique(label)])
  return order[np.argsort(turn, kind="stable")][:count]


def draw_pairs(above: np.ndarray, below: np.ndarray, title: str, path: Path, columns: int = 10) -> None:
  """Two rows of images on [0, 1] and what became of them below, or four where there are enough to fill these."""
  columns = min(columns, len(above))
  starts = range(0, min(2, len(above) // columns) * columns, columns)
  images = np.concatenate([part[i : i + columns] for i in starts for part in (above, below)])
  figure, axes = new_figure(width=5.5, height=sheet_height(5.0, images, columns) + 0.5)
  show_images(axes[0, 0], images, columns=columns)
  axes[0, 0].set_title(title, fontsize=9, parse_math=False)
  save_figure(figure, path)


def label_rows(data: DataSet, conditional: bool, columns: int = 10) -> Int[np.ndarray, " N"]:
  """The labels of a sheet of samples: a row for each of the first ten classes, or ten rows of no class."""
  rows = min(data.num_classes, 10) if conditional else 10
  return np.repeat(np.arange(rows, dtype=np.int32), columns)


def draw_samples(images: Float[np.ndarray, "N H W C"], data: DataSet, conditional: bool, said: str, path: Path) -> None:
  """Samples of the labels of `label_rows`, on [0, 1], their classes at the left; `said`: the title's end."""
  figure, axes = new_figure(width=5.0, height=sheet_height(4.5, images, 10) + 0.6)
  axis = axes[0, 0]
  show_images(axis, images, columns=10)
  if conditional:
    height, rows = data.image_shape[0] + 1, len(images) // 10
    ticks = [height * i + height / 2 - 1 for i in range(rows)]
    axis.set_yticks(ticks, data.class_names[:rows], parse_math=False)  # a class may be called $$
  axis.tick_params(length=0)
  axis.set_title(f"Samples of {data.name}{' by class' if conditional else ''}{said}", parse_math=False)
  save_figure(figure, path)


def draw_real_and_generated(reference: Reference, images: np.ndarray, num_levels: int, path: Path) -> None:
  """Real images, generated ones, and the nearest training image to each of these."""
  from mlnotes.generative import find_nearest

  rng = np.random.default_rng(0)
  pick = lambda count: rng.choice(count, min(50, count), replace=False)
  generated = images[pick(len(images))]
  nearest = reference.train["image"][find_nearest(generated, reference.train["image"]).index]
  real = reference.test["image"][pick(len(reference.test["image"]))]
  height = max(sheet_height(3.9, sheet, 10) for sheet in (real, generated, nearest))
  figure, axes = new_figure(1, 3, width=12.0, height=height + 0.4)
  titles = ("real, held out", "generated", f"nearest of {len(reference.train['label'])} training images to each")
  for axis, sheet, title in zip(axes[0], (real, generated, nearest), titles):
    show_images(axis, sheet / (num_levels - 1), columns=10)
    axis.set_title(title, fontsize=9)
  save_figure(figure, path)
