"""A tuned language model as a function of texts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.lm._tuning_tasks import Question, encode_texts
from mlnotes.data.tokenizer import Tokenizer
from mlnotes.lm import SpanLogits, best_span

_AT_ONCE = 64  # rows


class Classes(NamedTuple):
  """What each text is said to be, and the probability of every class."""

  labels: tuple[str, ...]
  probability: Float[np.ndarray, "N K"]


class TokenClasses(NamedTuple):
  """Of each text: what each of its tokens is said to be, as numbers, and the probability of every class."""

  labels: tuple[Int[np.ndarray, " T"], ...]
  probability: tuple[Float[np.ndarray, "T K"], ...]


class Spans(NamedTuple):
  """Of each text: the span that is said, and its first and last token."""

  texts: tuple[str, ...]
  start: Int[np.ndarray, " N"]
  end: Int[np.ndarray, " N"]


class Tuned(NamedTuple):
  """Texts to what the task asks of them: `Classes`, `TokenClasses` or `Spans`.

    found = mlnotes.load_run("runs/tuned").model(["the first sentence", "another one"])
    found.labels, found.probability

  Of a text the first `length` tokens are read. Of --task=follows a text is its two passages one behind the other, of
  --task=case it is in lower case.
  """

  tokenizer: Tokenizer
  length: int
  question: Question
  say: Callable[[Array, Array], Any]

  def __call__(self, texts: Sequence[str]) -> Classes | TokenClasses | Spans:
    """Raises ValueError for what is no list of texts."""
    if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
      raise ValueError(f"texts is {type(texts).__name__}, expected a list of one text or more")
    rows = encode_texts(self.tokenizer, texts, self.length, self.question.marks)
    outputs = self.outputs(rows["tokens"], rows["length"])
    if self.question.kind.name == "span":
      start, end = self.spans(outputs)
      of = lambda row, first, last: self.tokenizer.decode(row[first : last + 1])
      return Spans(tuple(map(of, rows["tokens"], start, end)), start, end)
    probability = softmax(outputs)
    if self.question.kind.name == "token":
      cut = tuple(p[:size] for p, size in zip(probability, rows["length"]))
      return TokenClasses(tuple(p.argmax(-1) for p in cut), cut)
    return Classes(tuple(self.question.classes[i] for i in probability.argmax(-1)), probability)

  def outputs(self, tokens: Int[np.ndarray, "N T"], lengths: Int[np.ndarray, " N"]) -> Any:
    """What the head gives of rows, in any number."""
    found = []
    for first in range(0, len(tokens), _AT_ONCE):
      rows = np.minimum(np.arange(first, first + _AT_ONCE), len(tokens) - 1)
      found.append(jax.tree.map(np.array, self.say(tokens[rows], lengths[rows])))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(tokens)], *found)

  def spans(self, outputs: SpanLogits) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    start, end, _ = best_span(SpanLogits(*map(jax.numpy.asarray, outputs)), self.question.longest)
    return np.array(start), np.array(end)


def softmax(logits: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """Over the last axis."""
  return np.array(jax.nn.softmax(logits, -1))
