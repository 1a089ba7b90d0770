"""Whether each latent follows one cause of the data: MIG, the FactorVAE score, DCI.

Host-side NumPy. `codes` are the latents (means) of N examples, `factors` the causes they were made from, as integers.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class MutualInformation(NamedTuple):
  """In nats: `table` I(z_d; v_k) of each latent and factor, `entropy` H(v_k) of each factor."""

  table: Float[np.ndarray, "D K"]
  entropy: Float[np.ndarray, " K"]


def compute_mutual_information(
  codes: Float[np.ndarray, "N D"], factors: Int[np.ndarray, "N K"], bins: int = 20
) -> MutualInformation:
  """Of latents cut into `bins` of equal width between their least and their largest value, as in Locatello et al. 2019.

  Raises ValueError for codes that are not finite.
  """
  _check(codes)
  table = np.zeros((codes.shape[1], factors.shape[1]))
  for d, code in enumerate(codes.T):
    edges = np.histogram_bin_edges(code, bins)
    cell = np.digitize(code, edges[1:-1])
    for k, factor in enumerate(factors.T):
      table[d, k] = _mutual_information(cell, factor)
  return MutualInformation(table, np.array([_entropy(factor) for factor in factors.T]))


def compute_mig(information: MutualInformation) -> float:
  """Mutual information gap in [0, 1]: how far the most telling latent of a factor is ahead of the next.

    mean_k (I(z_1st; v_k) - I(z_2nd; v_k)) / H(v_k)                          Chen et al. 2018, eq. 6

  1: each factor stands in one latent alone, 0: in two alike, or in none. With one latent the second is 0. A factor with
  one value is left out.
  """
  ordered = np.sort(information.table, axis=0)[::-1]
  second = ordered[1] if len(ordered) > 1 else np.zeros_like(ordered[0])
  told = information.entropy > 0
  return float(np.mean((ordered[0] - second)[told] / information.entropy[told])) if told.any() else 0.0


# Draws (codes of `size` examples) that share the value of factor k: (rng, k, size) -> (size, D).
DrawFixed = Callable[[np.random.Generator, int, int], Float[np.ndarray, "M D"]]


def compute_factor_score(
  draw: DrawFixed, num_factors: int, deviation: Float[np.ndarray, " D"], votes: int = 800, size: int = 64, seed: int = 0
) -> float:
  """FactorVAE's score in [0, 1]: how often the latent that varies least tells which factor was held fixed.

  Each vote takes `size` examples with one factor in common and names the latent of the smallest variance, relative to
  the `deviation` of all data; a majority table from half of the votes is right on so much of the other half. Latents
  with a deviation below .05 are dead, where the prior's is 1, and have no vote. Kim & Mnih 2018, section 4. By chance
  1 / num_factors; 0 where all latents are dead.
  """
  rng = np.random.default_rng(seed)
  alive = np.flatnonzero(deviation > 0.05)
  if not len(alive):
    return 0.0
  cast = []
  for vote in range(votes):
    factor = vote % num_factors
    codes = draw(rng, factor, size)[:, alive] / deviation[alive]
    cast.append((alive[np.argmin(np.var(codes, axis=0))], factor))
  cast = np.array(cast)[rng.permutation(votes)]
  learned, asked = np.split(cast, [votes // 2])
  table = np.zeros((len(deviation), num_factors))
  np.add.at(table, (learned[:, 0], learned[:, 1]), 1)
  return float(np.mean(np.argmax(table, axis=1)[asked[:, 0]] == asked[:, 1]))


class DCI(NamedTuple):
  """Of a table of importances, each in [0, 1] (Eastwood & Williams 2018, section 2).

  disentanglement: whether a latent is of use for one factor alone
  completeness:    whether a factor needs one latent alone
  informativeness: how well the factors are told from the latents: accuracy on held-out examples
  """

  disentanglement: float
  completeness: float
  informativeness: float


def compute_dci(
  codes: Float[np.ndarray, "N D"], factors: Int[np.ndarray, "N K"], test_share: float = 0.25, seed: int = 0
) -> DCI:
  """From bagged trees (scikit-learn's), some for each factor, whose importances are the table.

  Differences from the paper: trees that classify a factor's values, in place of those that regress.
  """
  from sklearn.ensemble import RandomForestClassifier

  _check(codes)
  order = np.random.default_rng(seed).permutation(len(codes))
  test, train = np.split(order, [int(test_share * len(codes))])
  importance, right = [], []
  for factor in factors.T:
    forest = RandomForestClassifier(20, max_depth=12, max_features=None, random_state=seed).fit(
      codes[train], factor[train]
    )
    importance.append(forest.feature_importances_)
    right.append(np.mean(forest.predict(codes[test]) == factor[test]))
  table = np.array(importance).T + 1e-11  # (D, K)
  return DCI(_spread(table), _spread(table.T), float(np.mean(right)))


def _spread(table: Float[np.ndarray, "R C"]) -> float:
  """1 - the entropy of each row as a distribution, in units of its largest, weighted by the rows' sums."""
  if table.shape[1] == 1:
    return 1.0
  share = table / table.sum(axis=1, keepdims=True)
  entropy = -np.sum(share * np.log(share), axis=1) / np.log(table.shape[1])
  return float(np.sum((1 - entropy) * table.sum(axis=1)) / table.sum())


def _entropy(values: Int[np.ndarray, " N"]) -> float:
  share = np.unique(values, return_counts=True)[1] / len(values)
  return float(-np.sum(share * np.log(share)))


def _mutual_information(a: Int[np.ndarray, " N"], b: Int[np.ndarray, " N"]) -> float:
  both = np.unique(np.stack([a, b]), axis=1, return_inverse=True)[1].reshape(-1)
  return max(0.0, _entropy(a) + _entropy(b) - _entropy(both))


def _check(codes: np.ndarray) -> None:
  if not np.all(np.isfinite(codes)):
    raise ValueError(f"codes must be finite, found {np.sum(~np.isfinite(codes))} numbers that are not.")
