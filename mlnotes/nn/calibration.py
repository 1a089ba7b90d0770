"""How far a classifier's confidence can be believed, and what it takes for what: sums that add over batches."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class CalibrationBins(NamedTuple):
  """Sums over the examples of each bin of confidence. Add the fields of two batches and they are those of both."""

  count: Int[Array, " M"]
  confidence: Float[Array, " M"]  # sum of the probabilities of what was predicted
  correct: Int[Array, " M"]

  def __add__(self, other: "CalibrationBins") -> "CalibrationBins":
    return CalibrationBins(*(a + b for a, b in zip(self, other)))


def calibration_bins(
  probabilities: Float[Array, "B K"],
  labels: Int[Array, " B"],
  num_bins: int = 15,
  where: Bool[Array, " B"] | None = None,
) -> CalibrationBins:
  """Examples by the probability of the class they are given, in bins ((m - 1) / M, m / M]: Guo et al. 2017, sec. 2.

  `probabilities` are those after the softmax, not logits; a row that is NaN makes its bin's sum NaN. Examples where
  `where` is False count nowhere. Counts are int32, which adds up to 2^31 examples.

  Raises ValueError where `num_bins` is below 1.
  """
  if num_bins < 1:
    raise ValueError(f"num_bins={num_bins} is out of range: expected 1 or more")
  counted = jnp.ones(len(labels), bool) if where is None else where
  predicted, confidence = jnp.argmax(probabilities, axis=-1), jnp.max(probabilities, axis=-1).astype(jnp.float32)
  index = jnp.clip(jnp.ceil(jnp.nan_to_num(confidence) * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
  add = lambda values: jnp.zeros(num_bins, values.dtype).at[index].add(jnp.where(counted, values, 0))
  right = (predicted == labels).astype(jnp.int32)
  return CalibrationBins(add(jnp.ones_like(right)), add(confidence), add(right))


def expected_calibration_error(bins: CalibrationBins) -> Float[Array, ""]:
  """sum_m n_m / n |accuracy_m - confidence_m|, in [0, 1]: Guo et al. 2017, eq. 3. NaN without any example.

  Depends on the number of bins, and grows by chance where they hold few examples: compare equal numbers of both.
  """
  return jnp.sum(jnp.abs(bins.correct - bins.confidence)) / jnp.sum(bins.count)


def maximum_calibration_error(bins: CalibrationBins) -> Float[Array, ""]:
  """max_m |accuracy_m - confidence_m| over bins that hold an example: Guo et al. 2017, eq. 5. NaN without any."""
  gap = jnp.abs(bins.correct - bins.confidence) / jnp.maximum(bins.count, 1)
  return jnp.where(jnp.any(bins.count > 0), jnp.max(gap), jnp.nan)


def confusion_matrix(
  labels: Int[Array, " B"], predictions: Int[Array, " B"], num_classes: int, where: Bool[Array, " B"] | None = None
) -> Int[Array, "K K"]:
  """How many examples of class i were taken for class j, in row i and column j: as scikit-learn's, int32.

  Examples where `where` is False count nowhere, nor do numbers outside 0 .. num_classes - 1: the sum over all entries
  then falls short of the examples. The trace over that sum is the accuracy, over a row's sum the class's recall.
  """
  inside = lambda values: (values >= 0) & (values < num_classes)
  counted = inside(labels) & inside(predictions) & (True if where is None else where)
  place = jnp.where(counted, labels * num_classes + predictions, 0)
  counts = jnp.zeros(num_classes**2, jnp.int32).at[place].add(counted.astype(jnp.int32))
  return counts.reshape(num_classes, num_classes)
