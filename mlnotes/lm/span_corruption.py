"""Text with spans taken out, for an encoder and a decoder: T5, BART, MASS.

Tokens are text alone: marks such as a start and an end are put around what is made here, or named to it.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.lm.spans import (
  compact,
  cut_lengths,
  draw_composition,
  draw_lengths,
  place_spans,
  poisson_lengths,
  round_at_random,
)
from mlnotes.lm.vocabulary import Vocabulary, fill_lengths, real_places

Scalar = Float[Array, ""] | float | int


class Corrupted(NamedTuple):
  """What an encoder reads and what a decoder says, each with its lengths and padded behind these.

  Attributes:
    weights: 1 at the targets' real places, whose cross entropy is the loss.
  """

  inputs: Int[Array, "B S"]
  input_lengths: Int[Array, " B"]
  targets: Int[Array, "B T"]
  target_lengths: Int[Array, " B"]
  weights: Float[Array, "B T"]


def _corrupted(inputs: Array, input_lengths: Array, targets: Array, target_lengths: Array) -> Corrupted:
  weights = real_places(target_lengths, targets.shape[1]).astype(jnp.float32)
  return Corrupted(inputs, input_lengths, targets, target_lengths, weights)


class _Counts(NamedTuple):
  noise: Array
  spans: Array


def _count(length, rate: float, mean_span: float, numpy=np) -> _Counts:
  """Tokens and spans of noise in `length` tokens, rounded as numpy does, at least one token left of either kind."""
  length = numpy.asarray(length, numpy.float32)
  noise = numpy.clip(numpy.round(length * numpy.float32(rate)), 1, numpy.maximum(length - 1, 0))
  spans = numpy.clip(numpy.round(noise / numpy.float32(mean_span)), 1, numpy.maximum(length - noise, 1))
  spans = numpy.minimum(spans, noise)
  return _Counts(noise.astype(numpy.int32), spans.astype(numpy.int32))


def corrupted_sizes(length: int, rate: float = 0.15, mean_span: float = 3.0, end: bool = True) -> tuple[int, int]:
  """(size of the inputs, size of the targets) that `corrupt_spans` gives of rows of `length`.

  The ring of tokens may be cut within a span, which are two then: one place more than an uncut one needs.
  """
  noise, spans = (int(x) for x in _count(length, rate, mean_span))
  return length - noise + spans + 1 + end, noise + spans + 2 + end


def count_sentinels(length: int, rate: float = 0.15, mean_span: float = 3.0) -> int:
  """How many sentinels `corrupt_spans` may need for rows of `length`: one for each span and the final one."""
  return int(_count(length, rate, mean_span).spans) + 2


def corrupt_spans(
  key: Key[Array, ""],
  tokens: Int[Array, "B T"],
  vocabulary: Vocabulary,
  lengths: Int[Array, " B"] | None = None,
  end: int | None = None,
  rate: float = 0.15,
  mean_span: float = 3.0,
  sentinels: int = 100,
) -> Corrupted:
  """Spans replaced by sentinels; to be said are the sentinels, what each stands for, and one more. Raffel et al. 2020.

    thank you for inviting me to your party last week        sec. 3.1.4, figure 2
    inputs    thank you <X> me to your party <Y> week
    targets   <X> for inviting <Y> last <Z>

  Of L tokens round(rate L) are noise, in round(rate L / mean_span) spans. Noise and what is between are divided into as
  many parts, each division as likely. Number k of the `sentinels` is the id `vocabulary.size - 1 - k`. Rates are
  static, as the sizes follow from them: `corrupted_sizes`. Rows of one token are all noise-free.

  Difference from the authors' code: there a row begins with text and ends with noise, so that the last token is always
  taken; their `random_roll`, which this is, came later.
  Raises ValueError where a sentinel is no special id, or there may be more spans than sentinels.
  """
  most = count_sentinels(tokens.shape[1], rate, mean_span)
  if most > sentinels:
    raise ValueError(f"sentinels is {sentinels}, expected {most} or more for {tokens.shape[1]} tokens")
  tops = set(range(vocabulary.size - sentinels, vocabulary.size))
  if not tops <= set(vocabulary.special):
    first = vocabulary.size - sentinels
    raise ValueError(f"sentinels are the ids {first} to {vocabulary.size - 1}: expected all among the special ones")
  sizes = corrupted_sizes(tokens.shape[1], rate, mean_span, end is not None)
  of_row = partial(_corrupt_row, rate=rate, mean_span=mean_span, sizes=sizes, top=vocabulary.size - 1, end=end)
  keys = jax.random.split(key, len(tokens))
  return _corrupted(*jax.vmap(partial(of_row, pad=vocabulary.pad))(keys, tokens, fill_lengths(lengths, tokens)))


def _corrupt_row(key, tokens, length, rate, mean_span, sizes, top: int, end: int | None, pad: int):
  of_noise, of_places = jax.random.split(key)
  noise, spans = _count(length, rate, mean_span, jnp)
  parts = draw_composition(of_noise, noise, jnp.minimum(spans, noise), len(tokens))
  inside, first = place_spans(of_places, parts, length, len(tokens))
  number = jnp.cumsum(first) - 1
  read, said = sizes
  keep = (first | ~inside) & (jnp.arange(len(tokens)) < length)
  inputs = compact(jnp.where(inside, top - number, tokens), keep, read, pad)
  # A token of noise stands behind those before it and behind its own sentinel and those of the spans before.
  place = jnp.where(inside, jnp.cumsum(inside) + number, said)
  targets = jnp.full((said,), pad, jnp.int32).at[place].set(tokens.astype(jnp.int32), mode="drop")
  targets = targets.at[jnp.where(first, place - 1, said)].set(top - number, mode="drop")
  count = jnp.sum(first)
  input_length, target_length = jnp.sum(keep), jnp.sum(inside) + count
  targets = targets.at[target_length].set(top - count)
  target_length += 1
  if end is not None:
    inputs, targets = inputs.at[input_length].set(end), targets.at[target_length].set(end)
    input_length, target_length = input_length + 1, target_length + 1
  return inputs, input_length, targets, target_length


def infill(
  key: Key[Array, ""],
  tokens: Int[Array, "B T"],
  vocabulary: Vocabulary,
  lengths: Int[Array, " B"] | None = None,
  rate: Scalar = 0.3,
  mean_span: float = 3.0,
) -> Corrupted:
  """Spans of Poisson lengths, each replaced by ONE mask; a span of length 0 puts one in. Lewis et al. 2020, sec. 2.2.

  Spans are drawn until they hold `rate` of the tokens, rounded to one of its neighbours at random, the last of them
  shortened to it; they may touch. Masks are put in as often as a length of 0 was drawn, at places drawn uniformly, but
  never so many that a row becomes longer than it was. The targets are the whole text.
  Raises ValueError for a vocabulary without a mask.
  """
  of_row = partial(_infill_row, rate=rate, mean_span=mean_span, mask=vocabulary.require_mask(), pad=vocabulary.pad)
  keys = jax.random.split(key, len(tokens))
  lengths = fill_lengths(lengths, tokens)
  inputs, input_lengths = jax.vmap(of_row)(keys, tokens, lengths)
  return _corrupted(inputs, input_lengths, tokens, lengths)


def _infill_row(key, tokens, length, rate, mean_span, mask: int, pad: int) -> tuple[Array, Array]:
  of_lengths, of_budget, of_places, of_inserts = jax.random.split(key, 4)
  budget = round_at_random(of_budget, length * jnp.asarray(rate, jnp.float32))
  drawn = draw_lengths(of_lengths, poisson_lengths(mean_span), len(tokens) + 8)
  spans = cut_lengths(drawn, budget)
  inside, first = place_spans(of_places, spans, length, len(tokens), apart=0)
  keep = (first | ~inside) & (jnp.arange(len(tokens)) < length)
  short = compact(jnp.where(inside, mask, tokens), keep, len(tokens), pad)
  used = jnp.cumsum(drawn) - drawn < budget
  inserts = jnp.minimum(jnp.sum(used & (drawn == 0)), length - jnp.sum(keep))
  total = jnp.sum(keep) + inserts
  place = jnp.arange(len(tokens))
  chance = jnp.where(place < total, jax.random.uniform(of_inserts, place.shape), jnp.inf)
  inserted = jnp.argsort(jnp.argsort(chance)) < inserts
  source = jnp.cumsum(~inserted) - 1
  longer = jnp.where(inserted, mask, short[source])
  return jnp.where(place < total, longer, pad), total


def permute_sentences(
  key: Key[Array, ""],
  tokens: Int[Array, "B T"],
  ends: Bool[Array, "B T"],
  lengths: Int[Array, " B"] | None = None,
) -> Int[Array, "B T"]:
  """Each row's sentences in random order, each order as likely. Lewis et al. 2020, sec. 2.2.

  `ends` is True at each sentence's last token, a full stop; what is behind the last of them is a sentence too.
  Padding stays where it is.
  """
  return jax.vmap(_permute_row)(jax.random.split(key, len(tokens)), tokens, ends, fill_lengths(lengths, tokens))


def _permute_row(key, tokens, ends, length) -> Array:
  number = jnp.cumsum(ends) - ends
  chance = jax.random.uniform(key, tokens.shape)[number]
  place = jnp.arange(len(tokens))
  # Sorted by (drawn number of the sentence, place); two sentences that drew one number stay in their order.
  order = jnp.lexsort((place, number, jnp.where(place < length, chance, jnp.inf)))
  return tokens[order]


class Fragment(NamedTuple):
  """A row whose fragment is hidden, and the fragment for a decoder that sees nothing but it.

  Attributes:
    inputs: (B, T) what the encoder reads.
    decoder_inputs: (B, F) the mask, then the fragment without its last token.
    targets: (B, F) the fragment.
    positions: (B, F) where its tokens stand in the row.
    weights: (B, F) 1 where a token is real.
  """

  inputs: Int[Array, "B T"]
  decoder_inputs: Int[Array, "B F"]
  targets: Int[Array, "B F"]
  positions: Int[Array, "B F"]
  weights: Float[Array, "B F"]


def hide_fragment(
  key: Key[Array, ""],
  tokens: Int[Array, "B T"],
  vocabulary: Vocabulary,
  lengths: Int[Array, " B"] | None = None,
  share: float = 0.5,
  mask_share: Scalar = 0.8,
  random_share: Scalar = 0.1,
) -> Fragment:
  """One fragment of `share` of the tokens, from a start drawn uniformly, hidden from the encoder. Song et al. 2019, 3.

  Of its tokens in the encoder `mask_share` become the mask and `random_share` words drawn from the vocabulary. The
  decoder reads the fragment alone, shifted by one; what the encoder sees is hidden from it.
  Raises ValueError for a vocabulary without a mask, or a share outside (0, 1].
  """
  if not 0 < share <= 1:
    raise ValueError(f"share is {share}, expected a number in (0, 1]")
  batch, places = tokens.shape
  mask, lengths = vocabulary.require_mask(), fill_lengths(lengths, tokens)
  of_start, of_fate, of_words = jax.random.split(key, 3)
  size = max(1, round(share * places))
  count = jnp.clip(jnp.round(lengths * jnp.float32(share)).astype(jnp.int32), jnp.minimum(lengths, 1), size)
  start = jnp.floor(jax.random.uniform(of_start, (batch,)) * (lengths - count + 1)).astype(jnp.int32)
  place = jnp.arange(places)[None]
  inside = (place >= start[:, None]) & (place < (start + count)[:, None])
  fate = jax.random.uniform(of_fate, tokens.shape)
  words = jnp.asarray(vocabulary.words)
  drawn = words[jax.random.randint(of_words, tokens.shape, 0, len(words))]
  hidden = jnp.where(fate < mask_share, mask, jnp.where(fate < mask_share + random_share, drawn, tokens))
  positions = jnp.minimum(start[:, None] + jnp.arange(size)[None], places - 1)
  real = real_places(count, size)
  targets = jnp.where(real, jnp.take_along_axis(tokens, positions, 1), vocabulary.pad)
  shifted = jnp.concatenate([jnp.full((batch, 1), mask, targets.dtype), targets[:, :-1]], 1)
  return Fragment(jnp.where(inside, hidden, tokens), shifted, targets, positions, real.astype(jnp.float32))
