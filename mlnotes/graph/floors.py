"""What needs no graph network: the commonest class, labels that spread along edges, a logistic regression behind SGC.

On the host, by scikit-learn. What is chosen is chosen on the validation nodes; each gives the classes of all nodes.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from mlnotes.graph.convolution import propagate_powers
from mlnotes.graph.edges import Edges


def majority(label: Int[np.ndarray, " N"], train: Bool[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
  """The commonest class of the training nodes, for all."""
  return np.full(len(label), np.bincount(label[train]).argmax())


def _adjacency(edges: Edges, size: int):
  from scipy.sparse import csr_array

  real = np.asarray(edges.mask) > 0
  ends = (np.asarray(edges.receivers)[real], np.asarray(edges.senders)[real])
  return csr_array((np.ones(real.sum()), ends), shape=(size, size))


def _known(label: Int[np.ndarray, " N"], train: Bool[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
  return np.where(train, label, -1)


def spread_labels(
  edges: Edges, label: Int[np.ndarray, " N"], train: Bool[np.ndarray, " N"], alpha: float = 0.95
) -> Int[np.ndarray, " N"]:
  """F <- alpha D^-1/2 A D^-1/2 F + (1 - alpha) Y: Zhou et al. 2004. A node that no label reaches has class 0."""
  import warnings

  from sklearn.exceptions import ConvergenceWarning
  from sklearn.semi_supervised import LabelSpreading

  matrix = _adjacency(edges, len(label))
  model = LabelSpreading(kernel=lambda *_: matrix, alpha=alpha, max_iter=200)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    model.fit(np.arange(len(label))[:, None], _known(label, train))
  return model.transduction_


def propagate_labels(
  edges: Edges, label: Int[np.ndarray, " N"], train: Bool[np.ndarray, " N"], steps: int = 200
) -> Int[np.ndarray, " N"]:
  """F <- D^-1 A F with the labels of the training nodes put back each time: Zhu & Ghahramani 2002.

  scikit-learn's own divides by 0 at a node without neighbours, so the product is written here.
  """
  matrix = _adjacency(edges, len(label))
  walk = matrix.multiply(1 / np.maximum(matrix.sum(axis=1), 1)[:, None]).tocsr()
  known = np.eye(label.max() + 1)[label]
  found = known * train[:, None]
  for _ in range(steps):
    found = np.where(train[:, None], known, walk @ found)
  return found.argmax(axis=1)


def choose(
  options: Sequence[Callable[[], Int[np.ndarray, " N"]]], label: Int[np.ndarray, " N"], valid: Bool[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
  """The classes of the first of `options` that is right most often on the validation nodes."""
  best, score = None, -1.0
  for option in options:
    found = option()
    right = float((found == label)[valid].mean()) if valid.any() else 0.0
    if right > score:
      best, score = found, right
  return best


def fit_logistic(
  x: Float[np.ndarray, "N D"], label: Int[np.ndarray, " N"], train: Bool[np.ndarray, " N"], inverse: float = 100.0
) -> Int[np.ndarray, " N"]:
  """Logistic regression on the features of the training nodes; `inverse` is one over the penalty's weight."""
  import warnings

  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression

  if len(np.unique(label[train])) < 2:
    return majority(label, train)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    model = LogisticRegression(C=inverse, max_iter=300).fit(x[train], label[train])
  return model.predict(x)


def simplified(edges: Edges, x: Float[np.ndarray, "N D"], steps: int) -> Float[np.ndarray, "N D"]:
  """A^^steps x with loops and GCN's weights: the features of SGC (Wu et al. 2019)."""
  import jax.numpy as jnp

  return np.asarray(propagate_powers(edges, jnp.asarray(x), steps))
