"""What needs no learning of features: the floors that classifiers of images are held against."""

import functools
import math

import numpy as np
from jaxtyping import Float, Int

from mlnotes.data.dataset import DataSet
from mlnotes.data.order import fixed_subset
from mlnotes.data.split import Split

# Of larger splits a fixed pseudo-random subset: at most so many images, and of large images at most so many numbers.
# With them all, those of 50,000 images of 32 x 32 in colour would take minutes.
_MOST_TRAIN, _MOST_TEST = 10_000, 2_000
_MOST_NUMBERS, _MOST_NUMBERS_LINEAR = 2**25, 10**7


def floor_images(data: DataSet) -> dict[str, int]:
  """How many images the floors learn from and are tested on."""
  pixels = math.prod(data.image_shape)
  most = lambda images, numbers, split: min(images, max(1, numbers // pixels), len(split))
  return {
    "nearest_neighbour_train_images": most(_MOST_TRAIN, _MOST_NUMBERS, data.train),
    "linear_classifier_train_images": most(_MOST_TRAIN, _MOST_NUMBERS_LINEAR, data.train),
    "floor_test_images": most(_MOST_TEST, _MOST_NUMBERS, data.test),
  }


def floor_test_index(data: DataSet) -> Int[np.ndarray, " N"]:
  """The test images that the floors are tested on."""
  return fixed_subset(len(data.test), floor_images(data)["floor_test_images"])


def to_pixels(
  split: Split, levels: int, index: Int[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "N D"], Int[np.ndarray, " N"]]:
  """(images as vectors on [0, 1], labels) of these examples."""
  examples = split.read(index)
  image = examples["image"]
  return image.reshape(len(image), -1).astype(np.float32) / (levels - 1), examples["label"]


@functools.lru_cache(maxsize=4)
def floors(data: DataSet) -> dict[str, float]:
  """Test accuracy on raw pixels of the nearest neighbour (Euclidean) and of a linear classifier.

  On as many images as `floor_images` says. The latter is scikit-learn's logistic regression with its own settings, at
  most 1000 iterations.
  """
  from sklearn.linear_model import LogisticRegression
  from sklearn.neighbors import KNeighborsClassifier
  from threadpoolctl import threadpool_limits

  def learn_from(name: str):
    return to_pixels(data.train, data.levels, fixed_subset(len(data.train), floor_images(data)[f"{name}_train_images"]))

  test = to_pixels(data.test, data.levels, floor_test_index(data))
  figures = {}
  with threadpool_limits(1):
    figures["nearest_neighbour"] = float(KNeighborsClassifier(1).fit(*learn_from("nearest_neighbour")).score(*test))
    train = learn_from("linear_classifier")
    if len(np.unique(train[1])) > 1:
      figures["linear_classifier"] = float(LogisticRegression(max_iter=1000).fit(*train).score(*test))
  return figures
