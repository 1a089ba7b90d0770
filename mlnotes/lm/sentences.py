"""Vectors of sentences learned from their neighbours: skip-thought and quick-thought, of recurrent encoders."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.engine.experiment import Mean
from mlnotes.lm.contrast import quick_thought
from mlnotes.lm.pairs import Sentences, find_neighbours
from mlnotes.lm.vocabulary import real_places
from mlnotes.nn.dropout import Dropout
from mlnotes.nn.loss import cross_entropy
from mlnotes.sequence.recurrent import RecurrentStack
from mlnotes.sequence.registry import make_cell

_EMBED = nn.initializers.uniform(0.2)


def _centred(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
  """Uniform in [-.1, .1], as the authors of both papers start embeddings."""
  return _EMBED(key, shape, dtype) - 0.1


class SentenceEncoder(nn.Module):
  """A vector of each sentence: the states of a recurrent layer behind its last token, of both directions side by side.

  The "bi-skip" encoder of Kiros et al. 2015, sec. 3, and the one of Logeswaran & Lee 2018. `dropout` is of the embedded
  tokens.
  """

  vocabulary: int
  width: int
  cell: str = "gru"
  bidirectional: bool = True
  dropout: float = 0.0

  def setup(self):
    self.embed = nn.Embed(self.vocabulary, self.width, embedding_init=_centred)
    self.stack = RecurrentStack(make_cell(self.cell, self.width), bidirectional=self.bidirectional)
    self.drop = Dropout(self.dropout)

  def __call__(self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], train: bool = False) -> Float[Array, "B D"]:
    outputs, _ = self.stack(self.drop(self.embed(tokens), deterministic=not train), lengths)
    last = jnp.take_along_axis(outputs, jnp.maximum(lengths - 1, 0)[:, None, None], 1)[:, 0]
    if not self.bidirectional:
      return last
    return jnp.concatenate([last[:, : self.width], outputs[:, 0, self.width :]], -1)


class QuickThoughtModel(nn.Module):
  """Two encoders that share nothing: f of the sentence, g of the candidates. Logeswaran & Lee 2018, sec. 3."""

  vocabulary: int
  width: int
  cell: str = "gru"
  bidirectional: bool = True
  dropout: float = 0.0

  def setup(self):
    sizes = (self.vocabulary, self.width, self.cell, self.bidirectional, self.dropout)
    self.of_sentence, self.of_candidate = SentenceEncoder(*sizes), SentenceEncoder(*sizes)

  def __call__(self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], train: bool = False) -> tuple[Array, Array]:
    return self.of_sentence(tokens, lengths, train), self.of_candidate(tokens, lengths, train)

  def encode(self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]) -> Float[Array, "B D"]:
    """What a sentence is represented by afterwards: both encoders' outputs side by side."""
    return jnp.concatenate(self(tokens, lengths), -1)


class SkipThoughtModel(nn.Module):
  """An encoder, and two decoders that say the sentence before and the one behind. Kiros et al. 2015, sec. 2.1.

  A decoder is a recurrent layer whose inputs are the token before and the vector of the sentence, which is then in each
  of the cell's sums, as in eq. 5 to 7; the embedding of the tokens and the head are those of both decoders. `start`
  stands in front of the first token and is said behind the last.
  """

  vocabulary: int
  width: int
  start: int
  cell: str = "gru"
  bidirectional: bool = True
  dropout: float = 0.0

  def setup(self):
    self.encoder = SentenceEncoder(self.vocabulary, self.width, self.cell, self.bidirectional, self.dropout)
    make = lambda: RecurrentStack(make_cell(self.cell, self.width))
    self.decoders = {"before": make(), "after": make()}
    self.head = nn.Dense(self.vocabulary)

  def __call__(self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]) -> Any:
    vectors = self.encode(tokens, lengths)
    return vectors, {name: self.decode(name, vectors, tokens) for name in self.decoders}

  def encode(self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], train: bool = False) -> Float[Array, "B D"]:
    return self.encoder(tokens, lengths, train)

  def decode(
    self, name: str, vectors: Float[Array, "B D"], target: Int[Array, "B T"], train: bool = False
  ) -> Float[Array, "B T+1 V"]:
    """Logits of each token of the target, and of what stands behind its last one, from those before and the vector."""
    given = jnp.concatenate([jnp.full_like(target[:, :1], self.start), target], 1)
    told = jnp.broadcast_to(vectors[:, None], (*given.shape, vectors.shape[-1]))
    embedded = self.encoder.drop(self.encoder.embed(given), deterministic=not train)
    hidden, _ = self.decoders[name](jnp.concatenate([embedded, told], -1))
    return self.head(hidden)


class Flat(NamedTuple):
  """Sentences of passages (B, S, T) as rows, the passage as their document, and which are of a real passage."""

  sentences: Sentences
  real: Bool[Array, " R"]


def flatten_passages(tokens: Int[Array, "B S T"], lengths: Int[Array, "B S"], real: Bool[Array, " B"]) -> Flat:
  passages, each = lengths.shape
  document = jnp.repeat(jnp.arange(passages), each)
  rows = Sentences(tokens.reshape(-1, tokens.shape[-1]), lengths.reshape(-1), document)
  return Flat(rows, jnp.repeat(real, each))


def quick_thought_terms(
  module: QuickThoughtModel, params: Any, flat: Flat, context: int = 1, key: Key[Array, ""] | None = None
) -> dict[str, Mean]:
  """Sums and counts over the sentences that have a neighbour; candidates are all real sentences of the batch.

  With dropout where a key is given.
  """
  rows = flat.sentences
  sentence, candidate = module.apply({"params": params}, rows.tokens, rows.lengths, **_training(key))
  found = quick_thought(sentence, candidate, rows.document, context, flat.real)
  some = (found.weights > 0) & flat.real
  over = lambda x: Mean(jnp.sum(jnp.where(some, x, 0)), jnp.sum(some.astype(jnp.float32)))
  return {"loss": over(found.loss), "accuracy": over(found.correct)}


def _training(key: Key[Array, ""] | None) -> dict[str, Any]:
  return {} if key is None else {"train": True, "rngs": {"dropout": key}}


def skip_thought_terms(
  module: SkipThoughtModel,
  params: Any,
  flat: Flat,
  key: Key[Array, ""] | None = None,
  told: Float[Array, "R D"] | None = None,
) -> dict[str, Mean]:
  """Nats of the tokens of both neighbours, their ends included, from the sentence between them.

  With dropout where a key is given. `told` are other vectors in the place of the sentences' own.
  """
  rows, keys = flat.sentences, (None,) * 3 if key is None else jax.random.split(key, 3)
  vectors = told
  if told is None:
    vectors = module.apply({"params": params}, rows.tokens, rows.lengths, method="encode", **_training(keys[0]))
  near = find_neighbours(rows)
  sums = []
  sides = (("before", near.before, near.before_weights), ("after", near.after, near.after_weights))
  for (name, row, weights), of_side in zip(sides, keys[1:]):
    target, lengths = rows.tokens[row], rows.lengths[row]
    logits = module.apply({"params": params}, name, vectors, target, method="decode", **_training(of_side))
    places = target.shape[1] + 1
    asked = jnp.where(real_places(lengths, places), jnp.pad(target, ((0, 0), (0, 1))), module.start)
    counted = real_places(lengths + 1, places) & (weights > 0)[:, None] & flat.real[:, None]
    over = lambda x, counted=counted: jnp.sum(jnp.where(counted, x, 0))
    sums.append((over(cross_entropy(logits, asked)), over(jnp.argmax(logits, -1) == asked), over(1.0)))
  nats, right, count = (sum(each) for each in zip(*sums))
  return {"loss": Mean(nats, count), "accuracy": Mean(right.astype(jnp.float32), count)}
