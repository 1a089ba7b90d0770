"""What needs no network: the floors that a tuned one is held against, learned from the same rows."""

from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.lm._tuning_tasks import Question
from mlnotes.data import fixed_subset
from mlnotes.lm import SpanLogits, best_span

_ORDERS = (1, 2, 3)
_AROUND = (-2, -1, 0, 1, 2)
_MOST = 60_000  # places of the training rows that a classifier of places learns from
_ITERATIONS = 200


def measure_floors(question: Question) -> dict[str, float]:
  """Shares of the test rows, or of their tokens, that are right, as the network's own figure counts them.

  floor_majority: the commonest answer of the training rows, always. floor_bag: scikit-learn's logistic regression with
  its own settings, of a whole text on the counts of its 1- to 3-grams; of tokens and of a span's ends on the tokens up
  to two places away, and the pairs of neighbours among them.
  """
  from threadpoolctl import threadpool_limits

  measure = {"sentence": _sentences, "token": _tokens, "span": _spans}[question.kind.name]
  with threadpool_limits(1):
    return measure(question)


def _commonest(label: np.ndarray) -> Any:
  values, counts = np.unique(label, return_counts=True)
  return values[np.argmax(counts)]


def _fit(features: Any, label: np.ndarray) -> Any:
  import warnings

  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression

  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    return LogisticRegression(max_iter=_ITERATIONS).fit(features, label)


def ngrams(row: tuple[Int[np.ndarray, " T"], int]) -> list[tuple[int, ...]]:
  """Those of 1 to 3 tokens in a row of so many real ones."""
  ids = row[0][: row[1]].tolist()
  return [tuple(ids[i : i + n]) for n in _ORDERS for i in range(len(ids) - n + 1)]


def _sentences(question: Question) -> dict[str, float]:
  from sklearn.feature_extraction.text import CountVectorizer

  train, test = question.train.arrays, question.test.arrays
  counts = CountVectorizer(analyzer=ngrams, min_df=min(2, len(train["label"])))
  rows = lambda arrays: list(zip(arrays["tokens"], arrays["length"].tolist()))
  model = _fit(counts.fit_transform(rows(train)), train["label"])
  return {
    "floor_majority": float(np.mean(test["label"] == _commonest(train["label"]))),
    "floor_bag": float(model.score(counts.transform(rows(test)), test["label"])),
  }


def around(tokens: Int[np.ndarray, "N T"]) -> Int[np.ndarray, "N T F"]:
  """Of each place the tokens up to two places away, -1 beyond the row, and pairs of neighbours as one number."""
  edge = len(_AROUND) // 2
  padded = np.pad(tokens.astype(np.int64), ((0, 0), (edge, edge)), constant_values=-1)
  single = [padded[:, edge + i : edge + i + tokens.shape[1]] for i in _AROUND]
  pairs = [(a + 1) * 2**31 + b + 1 for a, b in pairwise(single)]
  return np.stack([*single, *pairs], -1)


def _classifier(features: Int[np.ndarray, "M F"], label: Int[np.ndarray, " M"]) -> Any:
  """(features) -> log odds of label 1."""
  from sklearn.preprocessing import OneHotEncoder

  some = fixed_subset(len(label), _MOST)
  encoder = OneHotEncoder(handle_unknown="ignore", min_frequency=2)
  model = _fit(encoder.fit_transform(features[some]), label[some])
  return lambda features: model.decision_function(encoder.transform(features))


def _tokens(question: Question) -> dict[str, float]:
  train, test = question.train.arrays, question.test.arrays
  chosen = [arrays["weight"] > 0 for arrays in (train, test)]
  label, asked = (arrays["label"][some] for arrays, some in zip((train, test), chosen))
  model = _classifier(around(train["tokens"])[chosen[0]], label)
  said = model(around(test["tokens"])[chosen[1]]) > 0
  true = np.sum(said & (asked == 1))
  return {
    "floor_majority": float(np.mean(asked == _commonest(label))),
    "floor_bag": float(np.mean(said == asked)),
    "floor_bag_f1": float(2 * true / max(1, np.sum(said) + np.sum(asked))),
  }


def _spans(question: Question) -> dict[str, float]:
  train, test = question.train.arrays, question.test.arrays
  rows = fixed_subset(len(train["start"]), max(1, _MOST // train["tokens"].shape[1]))
  seen, shape = around(train["tokens"][rows]), test["tokens"].shape
  asked, scores = around(test["tokens"]).reshape(-1, seen.shape[-1]), []
  for name in ("start", "end"):
    label = (train[name][rows][:, None] == np.arange(shape[1])).astype(np.int32)
    model = _classifier(seen.reshape(-1, seen.shape[-1]), label.reshape(-1))
    scores.append(model(asked).reshape(shape).astype(np.float32))
  start, end, _ = best_span(SpanLogits(*map(_as_array, scores)), question.longest)
  exact, f1 = span_figures(np.array(start), np.array(end), test)
  pairs = train["start"].astype(np.int64) * shape[1] + train["end"]
  first, last = divmod(int(_commonest(pairs)), shape[1])
  always = span_figures(np.full(shape[0], first), np.full(shape[0], last), test)
  return {
    "floor_majority": always[0], "floor_majority_f1": always[1], "floor_bag": exact, "floor_bag_f1": f1
  }  # fmt: skip


def _as_array(x: Float[np.ndarray, "N T"]) -> Any:
  import jax.numpy as jnp

  return jnp.asarray(x)


def span_figures(start: np.ndarray, end: np.ndarray, asked: Any) -> tuple[float, float]:
  """(share that is exact, mean F1 of tokens)."""
  shared = np.maximum(np.minimum(end, asked["end"]) - np.maximum(start, asked["start"]) + 1, 0)
  f1 = 2 * shared / ((end - start + 1) + (asked["end"] - asked["start"] + 1))
  return float(np.mean((start == asked["start"]) & (end == asked["end"]))), float(np.mean(f1))
