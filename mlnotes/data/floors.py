"""What needs no learning of features: the floors that classifiers of images are held against."""

import functools

import numpy as np
from jaxtyping import Float, Int

from mlnotes.data.dataset import DataSet
from mlnotes.data.order import fixed_subset
from mlnotes.data.split import Split

# Of larger splits a fixed pseudo-random subset.
MOST_TRAIN, MOST_TEST = 10_000, 2_000


def to_pixels(split: Split, levels: int, most: int) -> tuple[Float[np.ndarray, "N D"], Int[np.ndarray, " N"]]:
  """(images as vectors on [0, 1], labels) of at most so many examples."""
  examples = split.read(fixed_subset(len(split), min(most, len(split))))
  image = examples["image"]
  return image.reshape(len(image), -1).astype(np.float32) / (levels - 1), examples["label"]


@functools.lru_cache(maxsize=4)
def floors(data: DataSet) -> dict[str, float]:
  """Test accuracy on raw pixels of the nearest neighbour (Euclidean) and of a linear classifier.

  The latter is scikit-learn's logistic regression with its own settings, at most 1000 iterations.
  """
  from sklearn.linear_model import LogisticRegression
  from sklearn.neighbors import KNeighborsClassifier
  from threadpoolctl import threadpool_limits

  train = to_pixels(data.train, data.levels, MOST_TRAIN)
  test = to_pixels(data.test, data.levels, MOST_TEST)
  figures = {}
  with threadpool_limits(1):
    figures["nearest_neighbour"] = float(KNeighborsClassifier(1).fit(*train).score(*test))
    if len(np.unique(train[1])) > 1:
      figures["linear_classifier"] = float(LogisticRegression(max_iter=1000).fit(*train).score(*test))
  return figures
