"""Classification by the nearest neighbours in feature space: how good features are, without training anything."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from mlnotes.contrastive.loss import Scalar, normalize

# Halvings of [-1, 1] that tell any two cosines in float32 apart.
_HALVINGS = 26


def _kth_largest(similarity: Float[Array, "B N"], k: int) -> Float[Array, "B 1"]:
  """The k-th largest cosine of each row, by bisection; -1 where fewer count.

  A pass over the matrix for each halving: on CPUs some hundred times faster than `lax.top_k` with k = 200, on every
  backend without a sort.
  """

  def halve(_, bounds):
    low, high = bounds  # at least k entries reach low, fewer than k reach high
    middle = (low + high) / 2
    enough = jnp.sum(similarity >= middle, axis=1, keepdims=True) >= k
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  ones = jnp.ones((len(similarity), 1))
  return jax.lax.fori_loop(0, _HALVINGS, halve, (-1.001 * ones, 1.001 * ones))[0]


def knn_votes(
  features: Float[Array, "B D"],
  bank: Float[Array, "N D"],
  labels: Int[Array, " N"],
  num_classes: int,
  k: int = 200,
  temperature: Scalar = 0.1,
  mask: Num[Array, " N"] | None = None,
) -> Float[Array, "B {num_classes}"]:
  """The votes for each class of the k nearest of `bank`, each weighing exp(cosine / temperature).

  Wu et al. 2018, section 3.4: k = 200, temperature .07 there, .1 in MoCo's and most later monitors. Rows of `bank`
  where `mask` is 0 do not count; those as near as the k-th all do. The predicted class is the argmax. Weights are
  relative to the nearest neighbour's. NaN where the features, or any that count in `bank`, are not finite. Raises
  ValueError for k < 1, and unless there is one label for each row of `bank`.
  """
  if k < 1:
    raise ValueError(f"k={k} is out of range: expected 1 or more neighbours")
  if labels.shape != bank.shape[:1]:
    raise ValueError(f"knn_votes got labels of shape {labels.shape}: expected {bank.shape[:1]}, one for each of bank")
  similarity = normalize(features) @ normalize(bank).T
  if mask is not None:
    similarity = jnp.where(mask[None] > 0, similarity, -jnp.inf)
  nearest = jnp.max(similarity, axis=1, keepdims=True)
  weights = jnp.exp((similarity - nearest) / temperature)
  weights = jnp.where(similarity >= _kth_largest(similarity, k), weights, 0)
  # Not by `nearest`: XLA's maximum over an axis drops NaN on CPUs for some shapes.
  unknown = jnp.isnan(similarity).any(axis=1, keepdims=True)
  return jnp.where(unknown, jnp.nan, weights @ jax.nn.one_hot(labels, num_classes))


def score_votes(votes: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
  """1 where the label has most of the votes, else 0; NaN where the votes are NaN."""
  right = (jnp.argmax(votes, axis=-1) == labels).astype(jnp.float32)
  return jnp.where(jnp.isnan(votes).any(axis=-1), jnp.nan, right)


def choose_k(k: int, num_examples: int) -> int:
  """How many of `num_examples` neighbours vote: `k`, or a tenth of them if that is less, but one at least."""
  return min(k, max(1, num_examples // 10))


def compute_knn_accuracy(
  features: np.ndarray,
  labels: np.ndarray,
  bank: np.ndarray,
  bank_labels: np.ndarray,
  num_classes: int,
  k: int = 200,
  temperature: float = 0.1,
  chunk: int = 512,
) -> float:
  """Share of `features` that `knn_votes` classifies rightly, `chunk` of them at a time. In [0, 1].

  NaN where features or `bank` are not finite. Raises ValueError unless there is one label for each row.
  """
  if labels.shape != features.shape[:1]:
    raise ValueError(
      f"compute_knn_accuracy got labels of shape {labels.shape}: expected {features.shape[:1]}, one for each feature"
    )
  bank, bank_labels = jnp.asarray(bank), jnp.asarray(bank_labels)
  score = jax.jit(lambda x, y, bank: score_votes(knn_votes(x, bank, bank_labels, num_classes, k, temperature), y))
  right = 0.0
  for start in range(0, len(features), chunk):
    rows = slice(start, start + chunk)
    missing = chunk - len(labels[rows])  # one shape, one compilation
    padded = np.pad(features[rows], ((0, missing), (0, 0))), np.pad(labels[rows], (0, missing))
    right += float(np.sum(np.asarray(score(*map(jnp.asarray, padded), bank))[: chunk - missing]))
  return right / len(labels)
