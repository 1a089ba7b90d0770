"""Linear classification of frozen features: what they are worth with many labels and with few."""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mlnotes.engine.errors import InputError

# Inverse strengths of the L2 penalty that cross-validation chooses from where labels are few.
_INVERSE_PENALTIES = np.logspace(-2, 3, 6)
_THREADS_FROM_SIZE = 10**7


def fit_linear_probe(
  features: Float[np.ndarray, "N D"], labels: Int[np.ndarray, " N"], cross_validate: bool = False
) -> Any:
  """Scikit-learn's multinomial logistic regression on features that are centred and scaled by one number.

  The L2 penalty is C = 1, or with `cross_validate` the best of six by (at most) five-fold cross-validation on these
  labels alone, which needs two examples of each class. `predict(features)` and `score(features, labels)` as there.

  Raises InputError for labels of a single class.
  """
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression
  from sklearn.model_selection import GridSearchCV, StratifiedKFold
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import FunctionTransformer
  from threadpoolctl import threadpool_limits

  if len(np.unique(labels)) < 2:
    raise InputError(f"a linear probe needs labels of 2 classes or more: found {len(np.unique(labels))}.")
  mean, scale = features.mean(axis=0), features.std(axis=0)
  # One number for all: a scale for each would blow up coordinates that hardly vary, such as border pixels.
  scale = float(np.sqrt(np.mean(scale**2))) or 1.0
  probe = make_pipeline(
    FunctionTransformer(lambda x: (x - mean) / scale),
    LogisticRegression(max_iter=300, tol=1e-3),
  )
  rarest = np.unique(labels, return_counts=True)[1].min()
  if cross_validate and rarest >= 2:
    folds = StratifiedKFold(min(5, rarest), shuffle=True, random_state=0)
    probe = GridSearchCV(probe, {"logisticregression__C": _INVERSE_PENALTIES}, cv=folds)
  # Threads cost more than they bring in small problems, eight times as much where the cores are busy.
  threads = 1 if features.size < _THREADS_FROM_SIZE else None
  with warnings.catch_warnings(), threadpool_limits(threads):
    # 300 iterations leave the accuracy where it stays.
    warnings.simplefilter("ignore", ConvergenceWarning)
    return probe.fit(features, labels)


def draw_few_labels(labels: Int[np.ndarray, " N"], per_class: int, seed: int) -> Int[np.ndarray, " M"]:
  """Positions of `per_class` examples of each class, drawn without replacement; fewer where a class has fewer."""
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(labels))
  return np.concatenate([order[labels[order] == label][:per_class] for label in np.unique(labels)])


def compute_probe_accuracy(
  train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], per_class: int = 0, draws: int = 5
) -> Float[np.ndarray, " draws"]:
  """Test accuracy in [0, 1] of linear probes with `per_class` labels of each class, one per draw; 0: all labels, once.

  `train` and `test` are (features, labels). Draw number i is the same for all features, so that differences pair up.
  NaN where features are not finite.

  Raises ValueError unless there is one label for each row of features.
  """
  for features, labels in (train, test):
    if labels.shape != features.shape[:1]:
      raise ValueError(f"a probe got labels of shape {labels.shape}: expected {features.shape[:1]}, one for each row")
  if not all(np.isfinite(features).all() for features, _ in (train, test)):
    return np.full(draws if per_class else 1, np.nan)
  features, labels = train
  if per_class == 0:
    return np.array([fit_linear_probe(features, labels).score(*test)])
  subsets = [draw_few_labels(labels, per_class, seed) for seed in range(draws)]
  return np.array([fit_linear_probe(features[i], labels[i], cross_validate=True).score(*test) for i in subsets])
