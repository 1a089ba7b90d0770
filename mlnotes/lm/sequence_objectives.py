"""What an encoder and a decoder learn from text that was taken apart: T5, BART, MASS.

Windows hold T + 1 tokens, of which the first T are used. The loss is that of what the decoder says while it reads what
it should have said, summed over the asked tokens and divided by their number in the whole batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.lm.encoder_objectives import row_of
from mlnotes.lm.model import EncoderDecoder
from mlnotes.lm.objective import Objective, make_head, score_words
from mlnotes.lm.span_corruption import Corrupted, corrupt_spans, hide_fragment, infill, permute_sentences
from mlnotes.lm.vocabulary import Vocabulary


class Sequences(NamedTuple):
  """What an encoder reads, and what a decoder reads and is asked for.

  Attributes:
    lengths: how much of the source is no padding; None: all.
    shown: the targets one place later, behind a start token.
    weights: 1 where a target is asked for.
    positions: where what is shown stands; None: from 0 on.
  """

  source: Int[Array, "B S"]
  lengths: Int[Array, " B"] | None
  shown: Int[Array, "B T"]
  targets: Int[Array, "B T"]
  weights: Float[Array, "B T"]
  positions: Int[Array, "B T"] | None = None


# (key, tokens (1, T)) -> Sequences.
Corruption = Callable[[Key[Array, ""], Int[Array, "B T"]], Sequences]


def shift_right(targets: Int[Array, "B T"], start: int) -> Int[Array, "B T"]:
  """The start token, then the targets without their last."""
  return jnp.concatenate([jnp.full_like(targets[:, :1], start), targets[:, :-1]], 1)


def _behind_start(corrupted: Corrupted, start: int) -> Sequences:
  shown = shift_right(corrupted.targets, start)
  return Sequences(corrupted.inputs, corrupted.input_lengths, shown, corrupted.targets, corrupted.weights)


def corruption_of_spans(vocabulary: Vocabulary, **settings: Any) -> Corruption:
  """T5's, with `corrupt_spans`' settings. The start is the pad. Raffel et al. 2020, sec. 3.1.4."""
  return lambda key, tokens: _behind_start(corrupt_spans(key, tokens, vocabulary, **settings), vocabulary.pad)


def corruption_by_infilling(
  vocabulary: Vocabulary,
  start: int,
  ends: Callable[[Int[Array, "B T"]], Bool[Array, "B T"]] | None = None,
  **settings: Any,
) -> Corruption:
  """BART's: sentences in another order where `ends` tells their last tokens, then `infill` with its settings.

  The decoder says the text as it was, behind the id `start`. Lewis et al. 2020, sec. 2.2.
  """

  def corrupt(key, tokens):
    of_order, of_spans = jax.random.split(key)
    moved = tokens if ends is None else permute_sentences(of_order, tokens, ends(tokens))
    found = infill(of_spans, moved, vocabulary, **settings)
    return _behind_start(found._replace(targets=tokens.astype(jnp.int32)), start)

  return corrupt


def corruption_of_fragment(vocabulary: Vocabulary, **settings: Any) -> Corruption:
  """MASS's, with `hide_fragment`'s settings: the decoder reads the fragment at its places. Song et al. 2019, sec. 3."""

  def corrupt(key, tokens):
    found = hide_fragment(key, tokens, vocabulary, **settings)
    return Sequences(found.inputs, None, found.decoder_inputs, found.targets, found.weights, found.positions)

  return corrupt


def sequence_objective(module: EncoderDecoder, corrupt: Corruption, chunks: int = 1) -> Objective:
  """Each target from the source and the targets before it. `chunks` is `head_cross_entropy`'s."""

  def terms(params, examples, key):
    hidden = decode_shown(module, params, examples, key)
    return score_words(make_head(module, params, key), hidden, examples.targets, examples.weights, chunks)

  return Objective(
    init=lambda key, examples: module.init(key, examples.source, examples.shown)["params"],
    prepare=lambda key, tokens: row_of(corrupt(key, tokens[None, :-1])),
    terms=terms,
    weights={"loss": 1.0},
  )


def decode_shown(
  module: EncoderDecoder, params: chex.ArrayTree, examples: Sequences, key: Key[Array, ""] | None = None
) -> Float[Array, "B T D"]:
  """What the head reads of each target; with dropout where a key is given."""
  of_encoder, of_decoder = (None, None) if key is None else jax.random.split(key)
  context = encode_text(module, params, examples.source, examples.lengths, of_encoder)
  decode = partial(module.apply, {"params": params}, examples.shown, context, examples.lengths, method="decode")
  return decode(train=key is not None, positions=examples.positions, rngs=_dropout(of_decoder))


def encode_text(
  module: EncoderDecoder,
  params: chex.ArrayTree,
  tokens: Int[Array, "B T"],
  lengths: Int[Array, " B"] | None,
  key: Key[Array, ""] | None = None,
) -> Float[Array, "B T D"]:
  """The encoder's features; with dropout where a key is given."""
  options = dict(train=key is not None, rngs=_dropout(key), method="encode")
  return module.apply({"params": params}, tokens, lengths, **options)


def _dropout(key: Key[Array, ""] | None) -> dict[str, Key[Array, ""]] | None:
  return None if key is None else {"dropout": key}
