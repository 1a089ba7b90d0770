"""What the vectors of test sentences are good for, beside counts of words: figures, neighbours.txt, sentences.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.lm._tuning_floors import measure_floors
from experiments.lm._tuning_tasks import SENTENCE, Question, encode_texts
from mlnotes.data import NamedArrays, read_labelled
from mlnotes.data.sentences import SentenceText
from mlnotes.lm.sentences import QuickThoughtModel

_AT_ONCE, _MOST = 256, 2000  # sentences
_PARTS, _SHOWN, _LETTERS = 3, 8, 40  # of sentences.png: parts, sentences of each, letters of a sentence


class Embedder(NamedTuple):
  """Texts to a vector each, (N, D) float32."""

  module: Any
  params: Any
  tokenizer: Any
  length: int

  def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    if isinstance(texts, str):
      raise ValueError("found one text: expected a list of texts")
    rows = encode_texts(self.tokenizer, texts, self.length)
    return self.vectors(rows["tokens"], rows["length"], "encode")

  def vectors(self, tokens: Int[np.ndarray, "N T"], lengths: Int[np.ndarray, " N"], method: str = "__call__") -> Any:
    """What the module's `method` gives of rows of tokens."""
    f = jax.jit(lambda tokens, lengths: self.module.apply({"params": self.params}, tokens, lengths, method=method))
    count = len(lengths)
    size = min(count, _AT_ONCE)
    rows = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)
    parts = [f(tokens[some].astype(np.int32), lengths[some].astype(np.int32)) for some in rows]
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *jax.tree.map(np.array, parts))


def report_sentences(config: Any, text: SentenceText, model: Embedder, directory: Path) -> dict[str, float]:
  """Figures of the first 2,000 test sentences at most, each among all others.

  neighbour_rank: the mean reciprocal rank of the nearer of the two sentences beside it, by the inner product of the two
  encoders, of skip-thought by the cosine of the vectors less their mean. same_part: how often the nearest by that
  cosine stands within the same 32 sentences. floor_: by the cosine of tf-idf counts of words. chance_: by a random
  order.
  """
  arrays, document = text.test.arrays, text.test.document[:_MOST]
  tokens, lengths = arrays["tokens"][:_MOST], arrays["length"][:_MOST]
  vectors = model.vectors(tokens, lengths, "encode")
  near = scores = cosine(vectors - vectors.mean(0))
  if isinstance(model.module, QuickThoughtModel):
    sentence, candidate = model.vectors(tokens, lengths)
    scores = sentence @ candidate.T
  counted = cosine(count_words(text.texts[:_MOST]))
  beside = find_beside(document)
  draw = np.random.default_rng(0).random(scores.shape)
  figures = {"neighbour_rank": reciprocal_rank(scores, beside), "same_part": nearest_in_part(near, document)}
  figures |= {f"floor_{name}": f(counted, of) for name, f, of in (
    ("neighbour_rank", reciprocal_rank, beside), ("same_part", nearest_in_part, document)
  )}  # fmt: skip
  figures |= {
    "chance_neighbour_rank": reciprocal_rank(draw, beside), "chance_same_part": nearest_in_part(draw, document),
    "sentences": float(len(document)), "features": float(vectors.shape[1]),
  }  # fmt: skip
  if config.labelled:
    figures |= tell_labels(config.labelled, model)
  write_nearest(text.texts[:_MOST], near, beside, directory / "neighbours.txt")
  draw_scores(text.texts, scores, document, config.objective, directory / "sentences.png")
  return figures


def cosine(vectors: Any) -> Float[np.ndarray, "N N"]:
  sizes = np.sqrt((vectors**2).sum(1, keepdims=True))
  unit = vectors / np.maximum(sizes, 1e-12)
  return unit @ unit.T


def count_words(texts: Sequence[str]) -> Float[np.ndarray, "N V"]:
  from sklearn.feature_extraction.text import TfidfVectorizer

  return TfidfVectorizer().fit_transform(texts).toarray()


def find_beside(document: Int[np.ndarray, " N"]) -> Bool[np.ndarray, "N N"]:
  """Which sentence stands beside which."""
  place = np.arange(len(document))
  apart = np.abs(place[:, None] - place[None])
  return (apart == 1) & (document[:, None] == document[None])


def reciprocal_rank(scores: Float[np.ndarray, "N N"], wanted: Bool[np.ndarray, "N N"]) -> float:
  """The mean of 1 / rank of the best that is wanted; a sentence is not ranked for itself, ties count against it."""
  others = ~np.eye(len(scores), dtype=bool)
  best = np.max(np.where(wanted, scores, -np.inf), 1)
  rank = np.sum((scores >= best[:, None]) & others & ~wanted, 1) + 1
  return float(np.mean((1 / rank)[wanted.any(1)]))


def nearest_in_part(scores: Float[np.ndarray, "N N"], document: Int[np.ndarray, " N"]) -> float:
  """How often the highest of the others is of the same document."""
  nearest = np.argmax(np.where(np.eye(len(scores), dtype=bool), -np.inf, scores), 1)
  return float(np.mean(document[nearest] == document))


def tell_labels(labelled: str, model: Embedder) -> dict[str, float]:
  """How often logistic regression on the vectors tells the label of a test text; floors as in `lm.tune`."""
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler
  from threadpoolctl import threadpool_limits

  found = read_labelled(labelled, "", "labelled")
  rows = [
    NamedArrays({**encode_texts(model.tokenizer, texts, model.length), "label": label})
    for texts, label in ((found.train, found.train_label), (found.test, found.test_label))
  ]
  with threadpool_limits(1):
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    classifier.fit(model(found.train), found.train_label)
    accuracy = float(classifier.score(model(found.test), found.test_label))
  floors = measure_floors(Question(SENTENCE, *rows, classes=found.classes))
  return {"label_accuracy": accuracy, **{f"label_{name}": value for name, value in floors.items()}}


def write_nearest(texts: Sequence[str], near: Any, beside: Any, path: Path) -> None:
  """Of fifty sentences the nearest other one; * where it is one that stands beside it."""
  some = np.linspace(0, len(texts) - 1, min(50, len(texts))).astype(int)
  lines = []
  for i in some:
    j = int(np.argmax(np.where(np.arange(len(texts)) == i, -np.inf, near[i])))
    lines += [f"          {texts[i]}", f"{near[i, j]:8.2f} {'*' if beside[i, j] else ' '}{texts[j]}", ""]
  path.write_text("\n".join(lines), encoding="utf-8")


def draw_scores(texts: Sequence[str], scores: Any, document: Any, objective: str, path: Path) -> None:
  """Each row: its sentence's scores of the others, by rank from lowest to highest; frames: sentences of one part."""
  from matplotlib.patches import Rectangle

  from mlnotes.engine.plot import new_figure, save_figure

  some = np.concatenate([np.flatnonzero(document == part)[:_SHOWN] for part in np.unique(document)[:_PARTS]])
  count, document = len(some), document[some]
  shown = scores[np.ix_(some, some)].astype(float)
  np.fill_diagonal(shown, np.nan)
  rank = np.argsort(np.argsort(np.nan_to_num(shown, nan=-np.inf), 1), 1).astype(float)
  rank[np.eye(count, dtype=bool)] = np.nan
  figure, axes = new_figure(width=9.0, height=6.2)
  axis = axes[0, 0]
  axis.imshow(rank, cmap="viridis", interpolation="none")
  for part in np.unique(document):
    rows = np.flatnonzero(document == part)
    axis.add_patch(Rectangle((rows[0] - 0.5, rows[0] - 0.5), len(rows), len(rows), fill=False, edgecolor="C3", lw=1.5))
  shorten = lambda text: text if len(text) <= _LETTERS else text[: _LETTERS - 3] + "..."
  axis.set_yticks(range(count), [f"{shorten(texts[i])}  {row + 1}" for row, i in enumerate(some)], fontsize=7)
  axis.set_xticks(range(count), [str(i + 1) for i in range(count)], fontsize=6)
  axis.set(
    xlabel="the same sentences, of three passages", title=f"{objective}: what is nearest to each (yellow: nearest)"
  )
  save_figure(figure, path)
