"""How good generated images are: close to the real ones, as varied, of the class asked for, and not copied.

Host-side NumPy in float64. Features come from `mlnotes.generative.judge`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num


class Novelty(NamedTuple):
  """Distances to the nearest training image, beside those of real images that were held out.

  generated, held_out: medians, in the images' units.
  closer:              share of the generated images that lie no farther from a training image than the nearest
                       `quantile` of the held-out ones. About `quantile` for samples as new as real data; 1 for copies.
  copies:              share of the generated images that are training images, value for value.
  copies_held_out:     the same of the held-out images. Above `quantile`, `closer` counts copies alone.
  """

  generated: float
  held_out: float
  closer: float
  copies: float
  copies_held_out: float


def frechet_distance(
  mean1: Float[np.ndarray, " D"],
  cov1: Float[np.ndarray, "D D"],
  mean2: Float[np.ndarray, " D"],
  cov2: Float[np.ndarray, "D D"],
) -> float:
  """Squared Fréchet (2-Wasserstein) distance between two Gaussians; 0 when they are equal.

    |mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2))                 Dowson & Landau 1982

  The last trace is the sum of the square roots of the eigenvalues of cov1^(1/2) cov2 cov1^(1/2), which is symmetric,
  so the result is real for singular covariances too. Raises ValueError where the four do not fit together.
  """
  mean1, cov1, mean2, cov2 = (np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2))
  width = mean1.size
  if not (mean1.shape == mean2.shape == (width,) and cov1.shape == cov2.shape == (width, width)):
    raise ValueError(
      "expected means of one shape (D,) and covariances (D, D), found "
      f"{mean1.shape}, {cov1.shape}, {mean2.shape} and {cov2.shape}."
    )
  values, vectors = np.linalg.eigh(cov1)
  root1 = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  product = np.maximum(np.linalg.eigvalsh(root1 @ cov2 @ root1), 0)
  squared = np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * np.sum(np.sqrt(product))
  return float(max(squared, 0.0))  # rounding can leave a few ulp below zero


def feature_frechet_distance(real: Num[np.ndarray, "N D"], fake: Num[np.ndarray, "M D"]) -> float:
  """`frechet_distance` between the Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6).

  Biased upwards by the finite samples, the more the smaller they are: report `compute_real_distance` for the same
  sizes beside it. Raises ValueError for features that are not finite or of two widths, and for fewer than two rows.

  Differences from the paper: the features are whatever the caller gives, not those of Inception v3, so the number
  compares with others from the same judge only.
  """
  moments = []
  for name, features in (("real", real), ("fake", fake)):
    features = _check_features(name, features, minimum=2)
    if moments and features.shape[1] != moments[0].size:
      raise ValueError(f"real and fake features must have one width, found {moments[0].size} and {features.shape[1]}.")
    moments += [features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))]
  return frechet_distance(*moments)


def compute_real_distance(
  real: Num[np.ndarray, "N D"], size: int | None = None, num_splits: int = 10, seed: int = 0
) -> float:
  """`feature_frechet_distance` between two disjoint random samples of `size` real examples, averaged over splits.

  What a perfect generator would get: the yardstick for the distance between `size` generated and `size` real
  examples. `size=None` takes halves. Raises ValueError where two samples of `size` are more than there is.
  """
  size = len(real) // 2 if size is None else size
  if not 2 <= size <= len(real) // 2:
    raise ValueError(f"size must be from 2 to {len(real) // 2}, half of the real examples, found {size}")
  rng = np.random.default_rng(seed)
  distances = []
  for _ in range(num_splits):
    order = rng.permutation(len(real))
    distances.append(feature_frechet_distance(real[order[:size]], real[order[size : 2 * size]]))
  return float(np.mean(distances))


def precision_recall(real: Num[np.ndarray, "N D"], fake: Num[np.ndarray, "M D"], k: int = 3) -> tuple[float, float]:
  """Share of the generated examples that look real, and share of the real examples that are covered.

  A set's manifold is the union of balls around its points, each reaching to its k-th nearest neighbour in the set.
  Precision counts generated points inside the real manifold, recall real points inside the generated one; both
  are in [0, 1] and need sets of equal size to compare. A point that stands in the other set is inside it, whatever
  rounding does to its distance of 0. Kynkäänniemi et al. 2019, eq. 1 and 2.

  Raises ValueError where a set has no more than `k` rows, for features that are not finite or of two widths, and for
  `k` below 1.
  """
  if k < 1:
    raise ValueError(f"k must be 1 or more, found {k}.")
  real = _check_features("real", real, minimum=k + 1)
  fake = _check_features("fake", fake, minimum=k + 1)
  _check_widths(real, fake)
  return _share_inside(fake, real, k), _share_inside(real, fake, k)


def kernel_distance(
  real: Num[np.ndarray, "N D"],
  fake: Num[np.ndarray, "M D"],
  size: int | None = None,
  num_subsets: int = 100,
  seed: int = 0,
) -> float:
  """Unbiased squared maximum mean discrepancy with a cubic kernel: 0 on average for two samples of one distribution.

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),  k(x, y) = (x . y / D + 1)^3

  The KID of Binkowski et al. 2018 in the features of whatever judge the caller has; it may fall below 0.
  `size`: the mean over `num_subsets` random parts of so many rows of each, drawn without replacement; None: all rows at
  once. Raises ValueError for features that are not finite or of two widths, fewer than two rows, and a `size` below 2
  or above what there is.
  """
  real, fake = (_check_features(name, rows, minimum=2) for name, rows in (("real", real), ("fake", fake)))
  _check_widths(real, fake)
  if size is None:
    return _unbiased_mmd(real, fake)
  most = min(len(real), len(fake))
  if not 2 <= size <= most:
    raise ValueError(f"size must be from 2 to {most}, the rows that both have, found {size}")
  rng = np.random.default_rng(seed)
  pick = lambda rows: rows[rng.choice(len(rows), size, replace=False)]
  return float(np.mean([_unbiased_mmd(pick(real), pick(fake)) for _ in range(num_subsets)]))


def density_coverage(real: Num[np.ndarray, "N D"], fake: Num[np.ndarray, "M D"], k: int = 5) -> tuple[float, float]:
  """How densely the generated examples lie where real ones do, and the share of real ones with one nearby.

    density  = 1 / (k M) sum_j #{i: y_j in B(x_i)},   coverage = 1 / N #{i: some y_j in B(x_i)}

  B(x_i) is the ball to the k-th nearest other real example. Naeem et al. 2020. Density is 1 on average for
  the real distribution and may be more; coverage is in [0, 1], for the real distribution about 1 - 2^-k with N = M.

  Raises ValueError as `precision_recall` does; the generated set needs one row alone.
  """
  if k < 1:
    raise ValueError(f"k must be 1 or more, found {k}.")
  real, fake = _check_features("real", real, minimum=k + 1), _check_features("fake", fake, minimum=1)
  _check_widths(real, fake)
  inside = _inside(fake, real, _radii(real, k))
  return float(inside.sum() / (k * len(fake))), float(np.mean(inside.any(axis=0)))


def inception_score(probabilities: Num[np.ndarray, "N K"], num_splits: int = 10, seed: int = 0) -> tuple[float, float]:
  """exp(mean KL(p(y | x) || p(y))) of a classifier's probabilities, as mean and deviation over shuffled splits.

  From 1, where every image gets the same answer, to K, where each gets one class and all classes as many. In float64;
  p(y) is the mean within a split, so that the score of few images is biased towards 1. Salimans et al. 2016.
  It is comparable only under one classifier, one number of images and of splits.

  Raises ValueError for rows that are no probabilities (logits, for instance) and for fewer rows than splits.
  """
  probabilities = np.asarray(probabilities, np.float64)
  sums = probabilities.sum(axis=1)
  if not (np.all(probabilities >= 0) and np.allclose(sums, 1, atol=1e-4)):
    raise ValueError("probabilities must be 0 or more and sum to 1 in each row, found others: pass softmax(logits).")
  if not 1 <= num_splits <= len(probabilities):
    raise ValueError(f"num_splits must be from 1 to {len(probabilities)}, the number of rows, found {num_splits}")
  probabilities = probabilities / sums[:, None]
  scores = []
  for part in np.array_split(np.random.default_rng(seed).permutation(len(probabilities)), num_splits):
    rows = probabilities[part]
    log_ratio = np.log(np.maximum(rows, 1e-300)) - np.log(np.maximum(rows.mean(axis=0), 1e-300))
    scores.append(np.exp(np.mean(np.sum(np.where(rows > 0, rows * log_ratio, 0), axis=1))))
  return float(np.mean(scores)), float(np.std(scores))


class Nearest(NamedTuple):
  """The nearest training image of each image: its position, and its Euclidean distance, exactly 0 for a copy."""

  index: Int[np.ndarray, " N"]
  distance: Float[np.ndarray, " N"]


def find_nearest(images: Num[np.ndarray, "N *shape"], training: Num[np.ndarray, "M *shape"]) -> Nearest:
  """Searches all of `training` for each of `images`; distances in the images' units.

  Raises ValueError for images of two shapes, and where there is no training image.
  """
  from sklearn.neighbors import NearestNeighbors

  if images.shape[1:] != training.shape[1:]:
    raise ValueError(f"images must have one shape, found {images.shape[1:]} and {training.shape[1:]} (training).")
  if not len(training):
    raise ValueError("found no training image, expected one or more.")
  if not len(images):
    return Nearest(np.zeros(0, np.int64), np.zeros(0))
  neighbors = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(_flatten(training, np.float32))
  index = neighbors.kneighbors(_flatten(images, np.float32), return_distance=False)[:, 0]
  # Anew, because the search finds distances from inner products, which leave a copy at the root of a rounding error.
  return Nearest(index, np.linalg.norm(_flatten(images) - _flatten(training[index]), axis=1))


def nearest_training_distance(
  images: Num[np.ndarray, "N *shape"], training: Num[np.ndarray, "M *shape"]
) -> Float[np.ndarray, " N"]:
  """Euclidean distance of each image to the nearest training image, in the images' units; 0 for a copy."""
  return find_nearest(images, training).distance


def compute_novelty(
  generated: Num[np.ndarray, "N *shape"],
  held_out: Num[np.ndarray, "K *shape"],
  training: Num[np.ndarray, "M *shape"],
  quantile: float = 0.05,
) -> Novelty:
  """Whether a generator copies its training images: see `Novelty`. All images in the same units.

  Raises ValueError where there are no generated or no held-out images, for images of several shapes, and for a
  `quantile` outside [0, 1].
  """
  if not 0 <= quantile <= 1:
    raise ValueError(f"quantile must lie in [0, 1], found {quantile}.")
  if not (len(generated) and len(held_out)):
    raise ValueError(f"found {len(generated)} generated and {len(held_out)} held-out images, expected some of each.")
  distance, reference = (find_nearest(images, training).distance for images in (generated, held_out))
  # The element itself, not a value between two, and "no farther": held-out images that are copies make it 0.
  closer = np.mean(distance <= np.quantile(reference, quantile, method="lower"))
  medians = float(np.median(distance)), float(np.median(reference))
  return Novelty(*medians, float(closer), float(np.mean(distance == 0)), float(np.mean(reference == 0)))


def class_agreement(predicted: Int[np.ndarray, " N"], label: Int[np.ndarray, " N"]) -> float:
  """Share of examples whose predicted class is the label: of generated images, those of the class asked for.

  Raises ValueError unless both have one shape (N,) with N of 1 or more.
  """
  if predicted.shape != label.shape or predicted.ndim != 1 or not predicted.size:
    raise ValueError(f"expected two arrays of one shape (N,), found {predicted.shape} and {label.shape}.")
  return float(np.mean(predicted == label))


def _flatten(images: np.ndarray, dtype: type = np.float64) -> np.ndarray:
  return images.reshape(len(images), -1).astype(dtype)


def _check_features(name: str, features: np.ndarray, minimum: int) -> np.ndarray:
  if features.ndim != 2:
    raise ValueError(f"{name} features must have the shape (N, D), found {features.shape}")
  if len(features) < minimum:
    raise ValueError(f"{name} features need at least {minimum} rows, found {len(features)}")
  features = features.astype(np.float64)
  if not np.all(np.isfinite(features)):
    raise ValueError(f"{name} features must be finite, found {np.sum(~np.isfinite(features))} that are not")
  return features


def _check_widths(real: np.ndarray, fake: np.ndarray) -> None:
  if real.shape[1] != fake.shape[1]:
    raise ValueError(f"real and fake features must have one width, found {real.shape[1]} and {fake.shape[1]}.")


def _unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
  kernel = lambda a, b: (a @ b.T / x.shape[1] + 1) ** 3
  among = lambda a: (np.sum(matrix := kernel(a, a)) - np.trace(matrix)) / (len(a) * (len(a) - 1))
  return float(among(x) + among(y) - 2 * np.mean(kernel(x, y)))


def _radii(centres: np.ndarray, k: int) -> np.ndarray:
  """The distance of each row to its k-th nearest other row."""
  from sklearn.neighbors import NearestNeighbors

  # Without an argument, kneighbors leaves each point out of its own neighbours.
  return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(centres).kneighbors()[0][:, -1]


def _inside(points: np.ndarray, centres: np.ndarray, radius: np.ndarray) -> np.ndarray:
  """(points, centres): whether the point is in the centre's ball; one that equals the centre always is."""
  from sklearn.metrics import pairwise_distances_chunked

  chunks = pairwise_distances_chunked(points, centres, reduce_func=lambda distance, _: distance <= radius)
  # Distances come from inner products, which leave equal rows apart by the root of a rounding error.
  rows = np.unique(np.concatenate([points, centres]), axis=0, return_inverse=True)[1].reshape(-1)
  return np.concatenate(list(chunks)) | (rows[: len(points), None] == rows[len(points) :])


def _share_inside(points: np.ndarray, centres: np.ndarray, k: int) -> float:
  """Share of `points` inside the manifold of `centres`."""
  return float(np.mean(_inside(points, centres, _radii(centres, k)).any(axis=1)))
