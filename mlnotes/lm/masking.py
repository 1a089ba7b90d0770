"""Hidden words to be guessed from both sides: BERT's masks, SpanBERT's spans.

Everything is drawn on the device from a key, anew for each update: masks are dynamic, Liu et al. 2019 (RoBERTa), 4.1.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.lm.spans import Scalar, cut_lengths, draw_lengths, geometric_lengths, place_spans, round_at_random
from mlnotes.lm.vocabulary import Vocabulary
from mlnotes.nn.norm import LayerNorm


class Masked(NamedTuple):
  """What is read, what is to be said, and where it counts.

  Attributes:
    inputs: tokens, some of them hidden.
    targets: the tokens as they were, at every place.
    weights: 1 where a token was chosen, whether it is hidden, replaced or kept; 0 elsewhere. The loss is the sum of
      `weights` times the cross entropy, over the sum of the weights of the whole batch.
  """

  inputs: Int[Array, "B T"]
  targets: Int[Array, "B T"]
  weights: Float[Array, "B T"]


def mask_words(
  key: Key[Array, ""],
  tokens: Int[Array, "B T"],
  vocabulary: Vocabulary,
  lengths: Int[Array, " B"] | None = None,
  rate: Scalar = 0.15,
  mask_share: Scalar = 0.8,
  random_share: Scalar = 0.1,
) -> Masked:
  """Each word is chosen with probability `rate`. Devlin et al. 2019, sec. 3.1, task 1.

  Of the chosen, `mask_share` become the mask, `random_share` a word drawn from the vocabulary, the rest stay. Special
  tokens and padding are neither chosen nor drawn. Difference from the paper: its number is that of binomial draws, as
  in transformers' collator; the authors' code chooses a fixed share of each row.
  Raises ValueError for a vocabulary without a mask.
  """
  of_choice, of_fate, of_words = jax.random.split(key, 3)
  chosen = vocabulary.is_word(tokens, lengths) & (jax.random.uniform(of_choice, tokens.shape) < rate)
  fate = jax.random.uniform(of_fate, tokens.shape)
  return _hide(of_words, tokens, vocabulary, chosen, fate, mask_share, random_share)


def _hide(key, tokens, vocabulary: Vocabulary, chosen, fate, mask_share: Scalar, random_share: Scalar) -> Masked:
  """Masks where fate < mask_share, random words where it is above by less than random_share."""
  words = jnp.asarray(vocabulary.words)
  drawn = words[jax.random.randint(key, tokens.shape, 0, len(words))]
  changed = jnp.where(fate < mask_share + random_share, drawn, tokens)
  changed = jnp.where(fate < mask_share, vocabulary.require_mask(), changed)
  return Masked(jnp.where(chosen, changed, tokens), tokens, chosen.astype(jnp.float32))


class MaskedSpans(NamedTuple):
  """`Masked` of spans, with what the boundary objective reads.

  Attributes:
    left: (B, T) at chosen places that of the last token before their span, x_{s-1}.
    right: (B, T) likewise that of the first one behind it, x_{e+1}.
    distance: (B, T) how many places behind `left` the word stands, 1 for the first of the span.
    boundary_weights: 1 where a token was chosen and its span has a token on both sides.
  """

  inputs: Int[Array, "B T"]
  targets: Int[Array, "B T"]
  weights: Float[Array, "B T"]
  left: Int[Array, "B T"]
  right: Int[Array, "B T"]
  distance: Int[Array, "B T"]
  boundary_weights: Float[Array, "B T"]


def mask_spans(
  key: Key[Array, ""],
  tokens: Int[Array, "B T"],
  vocabulary: Vocabulary,
  lengths: Int[Array, " B"] | None = None,
  rate: Scalar = 0.15,
  p: float = 0.2,
  longest: int = 10,
  mask_share: Scalar = 0.8,
  random_share: Scalar = 0.1,
) -> MaskedSpans:
  """Spans of words that hold `rate` of them in all, their lengths geometric, up to `longest`. Joshi et al. 2020, 3.1.

  A span as a whole becomes masks, becomes words drawn one by one, or stays. The number of hidden words of a row is
  `rate` times its words, rounded to one of its neighbours at random; the last span drawn is shortened to it. Spans do
  not touch, so that both neighbours of each can be read; a special token between two words divides a span.
  Differences from the paper: a token is a word, and spans may begin at any.
  Raises ValueError for a vocabulary without a mask.
  """
  is_word = vocabulary.is_word(tokens, lengths)
  places = tokens.shape[1]
  of_fate, of_words, of_rows = jax.random.split(key, 3)
  draw = lambda key, words: _draw_spans(key, words, places, rate, p, longest)
  spans = jax.vmap(draw)(jax.random.split(of_rows, len(tokens)), jnp.sum(is_word, 1))
  # Spans were drawn among the words alone: word number n of a row is at hand, so the n-th place is looked up.
  number = jnp.maximum(jnp.cumsum(is_word, 1) - 1, 0)
  chosen = jnp.take_along_axis(spans.inside, number, 1) & is_word
  begins = jnp.take_along_axis(spans.first, number, 1) & is_word
  left, right, distance = _neighbours(chosen)
  fate = jax.random.uniform(of_fate, (len(tokens), places))
  fate = jnp.take_along_axis(fate, jnp.cumsum(begins, 1), 1, mode="clip")
  masked = _hide(of_words, tokens, vocabulary, chosen, fate, mask_share, random_share)
  total = jnp.full((len(tokens),), places) if lengths is None else lengths
  bounded = chosen & (left >= 0) & (right < total[:, None])
  clip = lambda x: jnp.clip(x, 0, places - 1)
  return MaskedSpans(*masked, clip(left), clip(right), distance, bounded.astype(jnp.float32))


def _draw_spans(key, words: Int[Array, ""], places: int, rate: Scalar, p: float, longest: int):
  """Of one row, whose `words` words stand at the front."""
  of_lengths, of_budget, of_places = jax.random.split(key, 3)
  budget = round_at_random(of_budget, words * jnp.asarray(rate, jnp.float32))
  spans = cut_lengths(draw_lengths(of_lengths, geometric_lengths(p, longest), places), budget)
  return place_spans(of_places, spans, words, places)


def _neighbours(chosen: Bool[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"], Int[Array, "B T"]]:
  """(last place before that was not chosen, -1 if none; first one behind, T if none; places since the former)."""
  place = jnp.broadcast_to(jnp.arange(chosen.shape[1])[None], chosen.shape)
  left = jax.lax.cummax(jnp.where(chosen, -1, place), axis=1)
  right = jax.lax.cummin(jnp.where(chosen, chosen.shape[1], place), axis=1, reverse=True)
  return left, right, place - left


class BoundaryHead(nn.Module):
  """Features of a hidden word from the two tokens around its span and its place in it alone. Joshi et al. 2020, 3.2.

    h_0 = [x_{s-1}; x_{e+1}; p_{i-s+1}],  h_1 = LayerNorm(GeLU(W_1 h_0)),  y_i = LayerNorm(GeLU(W_2 h_1))

  What is said of them comes from the embedding matrix that the masked words' logits come from. Positions are learned,
  one for each distance up to `longest`, which must not be below the longest span that is drawn.
  """

  longest: int = 10
  position_width: int | None = None
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, hidden: Float[Array, "B T D"], masked: MaskedSpans) -> Float[Array, "B T D"]:
    """(B, T, D) to be compared with the embeddings; of use where `boundary_weights` is 1."""
    width = hidden.shape[-1]
    at = lambda index: jnp.take_along_axis(hidden, index[..., None], axis=1)
    table = nn.Embed(self.longest, self.position_width or width, dtype=self.dtype, name="places")
    place = table(jnp.clip(masked.distance - 1, 0, self.longest - 1))
    x = jnp.concatenate([at(masked.left), at(masked.right), place.astype(hidden.dtype)], -1)
    for i in range(2):
      x = nn.gelu(nn.Dense(width, dtype=self.dtype, name=f"dense{i}")(x))
      x = LayerNorm(dtype=self.dtype, name=f"norm{i}")(x)
    return x
