"""Sentences of a text in their order: passages of a few that follow each other."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer

from mlnotes.data.image import DataError
from mlnotes.data.order import hold_out
from mlnotes.data.text import load_documents, pad_sequences, text_kind
from mlnotes.data.tokenizer import END, Tokenizer, train_tokenizer

# Between sentences: a blank line, or space behind a mark and in front of what no small letter begins.
_BREAK = re.compile(r"""\n\s*\n|(?:(?<=[.!?])|(?<=[.!?]["')\]]))\s+(?=[^a-z\s])""")
_WORD = re.compile(r"[^\W\d_]+")
_PART = 32


def split_sentences(text: str, end: Literal["marks", "line"] = "marks", fewest: int = 3) -> list[str]:
  """The sentences of a text that have `fewest` words or more, white space between their words as one space.

  They end at . ! or ? in front of a space and no small letter, and at blank lines; with "line" at each line's end.
  """
  parts = text.splitlines() if end == "line" else _BREAK.split(text)
  return [" ".join(part.split()) for part in parts if len(_WORD.findall(part)) >= fewest]


class Passages:
  """A split of passages: example i is `sentences` of a document that follow each other.

    {"tokens": int32 (B, sentences, T), "length": int32 (B, sentences)}        padded with 0

  A passage begins at each sentence that has enough behind it in its document; where they are not to `overlap`, at the
  next one behind a passage.

  Attributes:
    document: the number of the document, or of its part, of each sentence, in the order of the text.
  """

  def __init__(self, documents: Sequence[Sequence[np.ndarray]], length: int, sentences: int, overlap: bool = True):
    rows, sizes = [row for document in documents for row in document], [len(document) for document in documents]
    self.document = np.repeat(np.arange(len(documents)), sizes)
    step = 1 if overlap else sentences
    start = np.concatenate(
      [first + np.arange(0, size - sentences + 1, step) for first, size in zip(np.cumsum([0, *sizes]), sizes)]
    )
    padded = pad_sequences(rows, length)
    tokens = padded["tokens"].astype(np.min_scalar_type(int(padded["tokens"].max(initial=0))))
    self.arrays = {"tokens": tokens, "length": padded["length"], "start": start.astype(np.int32)}
    self.sentences = sentences
    self.take = partial(_take_passages, sentences=sentences)

  def __len__(self) -> int:
    return len(self.arrays["start"])

  @property
  def nbytes(self) -> int:
    return sum(value.nbytes for value in self.arrays.values())

  def read(self, index: Int[np.ndarray, " B"]) -> Mapping[str, np.ndarray]:
    place = self.arrays["start"][index][:, None] + np.arange(self.sentences)
    return {name: self.arrays[name][place].astype(np.int32) for name in ("tokens", "length")}


def _take_passages(
  arrays: Mapping[str, Integer[Array, "..."]], index: Int[Array, " B"], sentences: int
) -> dict[str, Array]:
  place = arrays["start"][index][:, None] + jnp.arange(sentences)[None]
  return {name: arrays[name].at[place].get(mode="promise_in_bounds").astype(jnp.int32) for name in ("tokens", "length")}


class SentenceText(NamedTuple):
  """Two splits of passages, and the tokenizer of their ids, whose <end> ends no row: add it where it is meant.

  Attributes:
    texts: the test sentences.
    cut: how many sentences, of both splits, have more than `length` tokens.
  """

  name: str
  train: Passages
  test: Passages
  tokenizer: Tokenizer
  texts: tuple[str, ...]
  cut: int


def load_sentences(
  dataset: str,
  test_dataset: str = "",
  documents: Literal["file", "line"] = "file",
  tokenizer: str = "words",
  vocab_size: int = 4096,
  length: int = 32,
  end: Literal["marks", "line"] = "marks",
  passage: int = 3,
  data_dir: str = "",
  train_split: str = "train",
  test_split: str = "test",
) -> SentenceText:
  """The text that `--dataset` names (`load_documents`), cut into sentences of `length` tokens at most.

  A sentence that has been before is left out, and its document ends and begins anew there. Where the text has no test
  split of its own, documents are cut after every 32 sentences and a fixed pseudo-random tenth of the parts is set
  aside. `tokenizer` is a kind that is trained on the training sentences. Raises DataError, one sentence, where a split
  has no part of `passage` sentences.
  """
  found = load_documents(dataset, test_dataset, documents, data_dir, train_split, test_split)
  seen: set[str] = set()
  cut_up = lambda texts: [part for text in texts for part in _parts(split_sentences(text, end), seen, passage)]
  train, test = cut_up(found.train), cut_up(found.test)
  if not test_dataset and text_kind(dataset) != "tfds" and len(train) + len(test) > 1:
    parts = train + test
    train, test = ([parts[i] for i in which] for which in hold_out(len(parts), f"--dataset={dataset}"))
  for name, parts in (("training", train), ("test", test)):
    if not parts:
      raise DataError(
        f"--dataset={dataset}: the {name} text has no {passage} new sentences in a row, as --passage asks."
      )
  codec = train_tokenizer(tokenizer, ["\n".join(part) for part in train], vocab_size, (END,))
  rows = [[[codec.encode(sentence) for sentence in part] for part in parts] for parts in (train, test)]
  cut = sum(len(row) > length for parts in rows for part in parts for row in part)
  splits = [Passages(parts, length, passage, overlap) for parts, overlap in zip(rows, (True, False))]
  return SentenceText(found.name, *splits, codec, tuple(x for part in test for x in part), cut)


def _parts(sentences: Sequence[str], seen: set[str], fewest: int) -> list[list[str]]:
  """Runs of up to 32 sentences that are new, of `fewest` or more; what is new has been seen afterwards."""
  parts: list[list[str]] = [[]]
  for sentence in sentences:
    if sentence in seen or len(parts[-1]) == _PART:
      parts.append([])
    if sentence not in seen:
      parts[-1].append(sentence)
      seen.add(sentence)
  return [part for part in parts if len(part) >= fewest]
