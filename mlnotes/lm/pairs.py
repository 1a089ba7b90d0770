"""Sentences and their neighbours: does the one follow the other, and in which order did they stand?

Sentences are rows of one batch in the order of the text, with the number of the document that each is of.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.lm.vocabulary import join_rows, real_places

Scalar = Float[Array, ""] | float | int


class Sentences(NamedTuple):
  """Rows of tokens. `document` tells which rows are of one text; rows of one that are beside each other follow."""

  tokens: Int[Array, "B S"]
  lengths: Int[Array, " B"]
  document: Int[Array, " B"]


class Pairs(NamedTuple):
  """Two sentences of each row, and whether the second is what a classifier is to call true.

  Attributes:
    first, second: rows of the sentences, as numbers.
    label: True where the second follows the first in the text.
    weights: 0 where the batch has no such pair of a row: its last sentence, or that of a document, has no next one.
  """

  first: Int[Array, " B"]
  second: Int[Array, " B"]
  label: Bool[Array, " B"]
  weights: Float[Array, " B"]


def _follows(sentences: Sentences) -> Bool[Array, " B"]:
  """Whether the next row goes on with the document."""
  document = sentences.document
  return jnp.append(document[:-1] == document[1:], False)


def next_sentence_pairs(key: Key[Array, ""], sentences: Sentences, share: Scalar = 0.5) -> Pairs:
  """Each sentence beside its next one, or with probability 1 - `share` beside one of another document.

  Devlin et al. 2019, sec. 3.1, task 2. Those of the batch are drawn from, with equal chance. Where all are of one
  document there is no other: every pair is then a true one.
  """
  of_coin, of_other = jax.random.split(key)
  document = sentences.document
  batch = len(document)
  others = document[:, None] != document[None, :]
  drawn = jnp.argmax(jnp.where(others, jax.random.uniform(of_other, (batch, batch)), -1.0), 1)
  follows = jax.random.bernoulli(of_coin, share, (batch,)) | ~jnp.any(others, 1)
  place = jnp.arange(batch)
  second = jnp.where(follows, jnp.minimum(place + 1, batch - 1), drawn)
  return Pairs(place, second, follows, _follows(sentences).astype(jnp.float32))


def sentence_order_pairs(key: Key[Array, ""], sentences: Sentences, share: Scalar = 0.5) -> Pairs:
  """Each sentence and its next one, exchanged with probability 1 - `share`. Lan et al. 2020 (ALBERT), sec. 3.1."""
  place = jnp.arange(len(sentences.document))
  after = jnp.minimum(place + 1, len(place) - 1)
  kept = jax.random.bernoulli(key, share, place.shape)
  first, second = jnp.where(kept, place, after), jnp.where(kept, after, place)
  return Pairs(first, second, kept, _follows(sentences).astype(jnp.float32))


class Packed(NamedTuple):
  """Two sentences as one row. `segments` is 0 up to the first separator, it included, then 1."""

  tokens: Int[Array, "B T"]
  lengths: Int[Array, " B"]
  segments: Int[Array, "B T"]


def pack_pairs(sentences: Sentences, pairs: Pairs, classify: int, separate: int, pad: int) -> Packed:
  """[CLS] first [SEP] second [SEP], in rows of 2 S + 3. Devlin et al. 2019, sec. 3.2."""
  of = lambda row: (sentences.tokens[row], sentences.lengths[row])
  first, second = of(pairs.first), of(pairs.second)
  size = 2 * sentences.tokens.shape[1] + 3
  tokens, lengths = join_rows([classify, first, separate, second, separate], size, pad)
  return Packed(tokens, lengths, (~real_places(first[1] + 2, size) & real_places(lengths, size)).astype(jnp.int32))


class Neighbours(NamedTuple):
  """Of each row the rows before and behind it in its document, with weight 0 where there is none."""

  before: Int[Array, " B"]
  after: Int[Array, " B"]
  before_weights: Float[Array, " B"]
  after_weights: Float[Array, " B"]


def find_neighbours(sentences: Sentences) -> Neighbours:
  """What skip-thought vectors generate from each sentence: the one before it and the one behind. Kiros et al. 2015, 2.

  neighbours = find_neighbours(sentences)
  targets = sentences.tokens[neighbours.after]
  """
  place, last = jnp.arange(len(sentences.document)), len(sentences.document) - 1
  follows = _follows(sentences)
  before, after = jnp.maximum(place - 1, 0), jnp.minimum(place + 1, last)
  had = jnp.append(False, follows[:-1])
  return Neighbours(before, after, had.astype(jnp.float32), follows.astype(jnp.float32))
