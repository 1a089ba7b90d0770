"""Tokens predicted in an order drawn for each row, from those before them in it: XLNet. Yang et al. 2019.

Two streams, one that knows each token and one that knows its place alone, are here one sequence: the T tokens, and
behind them a query for each token to be predicted. Parameters are shared, and a mask says who sees whom:

    content i sees content j    where j comes before i or is i
    query i sees content j      where j comes before i

so that any network that takes a mask from `mlnotes.attention` and tells places apart by the mask's positions learns by
permutations, with the same parameters that read plain text afterwards.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mlnotes.attention.mask import Mask
from mlnotes.lm.vocabulary import Vocabulary, real_places

# The order of a key that nobody sees.
NEVER = 2**30


class Permuted(NamedTuple):
  """Content and queries as one sequence of T + P tokens, of whose outputs the last P are predictions.

    logits = model.apply(variables, permuted.inputs, permuted.mask)[:, -permuted.targets.shape[1]:]

  Attributes:
    inputs: the tokens, then P times the mask's id: what a query is before it has looked at anything.
    mask: who sees whom; its positions are the places of the tokens, of a query that of its token.
    order: (B, T) when a token is read; those that are not predicted at 0, where they see each other.
    places: (B, P) of the tokens to be predicted, in their order.
    targets: (B, P) these tokens.
    weights: (B, P) 0 where a row has fewer than P.
  """

  inputs: Int[Array, "B U"]
  mask: Mask
  order: Int[Array, "B T"]
  places: Int[Array, "B P"]
  targets: Int[Array, "B P"]
  weights: Float[Array, "B P"]


def permute(
  key: Key[Array, ""],
  tokens: Int[Array, "B T"],
  vocabulary: Vocabulary,
  lengths: Int[Array, " B"] | None = None,
  share: float = 1 / 6,
  ordered_context: bool = False,
) -> Permuted:
  """The last `share` = 1 / K of the words in a random order, each from all that come before it. Yang et al. 2019, 2.3.

  Special tokens are never among them: a row's order is drawn from those in which they are not. P = floor(T share), of
  a row with fewer words fewer, rounded down, but at least one where there is any. Where `ordered_context`, the tokens
  that are not predicted see each other in their order too, as the factorisation has it; otherwise all of them do, as
  in the authors' code.
  Raises ValueError for a vocabulary without a mask, or a share outside (0, 1].
  """
  if not 0 < share <= 1:
    raise ValueError(f"share is {share}, expected a number in (0, 1]")
  batch, length = tokens.shape
  is_word = vocabulary.is_word(tokens, lengths)
  real = jnp.ones(tokens.shape, bool) if lengths is None else real_places(lengths, length)
  words = jnp.sum(is_word, 1)
  size = max(1, int(length * share))
  count = jnp.clip(jnp.floor(words * jnp.float32(share)).astype(jnp.int32), jnp.minimum(words, 1), size)
  of_choice, of_order = jax.random.split(key)
  chance = jnp.where(is_word, jax.random.uniform(of_choice, tokens.shape), 2.0)
  predicted = jnp.argsort(jnp.argsort(chance, 1), 1) < count[:, None]
  # Padding, then the context, then the predicted: ranks, so that no two tokens are read at once.
  late = jnp.where(predicted, 2.0, jnp.where(real, 1.0, 0.0)) + jax.random.uniform(of_order, tokens.shape)
  rank = jnp.argsort(jnp.argsort(late, 1), 1)
  first = (length - count)[:, None]  # the rank of the first that is predicted
  order = jnp.where(predicted | ordered_context, rank - first + 1 + ordered_context * length, 0)
  places = jnp.argsort(jnp.where(predicted, rank, NEVER), 1)[:, :size]
  weights = real_places(count, size)
  targets = jnp.take_along_axis(tokens, places, 1)
  inputs = jnp.concatenate([tokens, jnp.full((batch, size), vocabulary.require_mask(), tokens.dtype)], 1)
  mask = two_stream_mask(order, places, real, weights)
  return Permuted(inputs, mask, order, places, targets, weights.astype(jnp.float32))


def two_stream_mask(order: Int[Array, "B T"], places: Int[Array, "B P"], real: Array, asked: Array) -> Mask:
  """Of T tokens read in an order and P queries for those at `places`; `asked` (B, P) are those that are meant."""
  place = jnp.broadcast_to(jnp.arange(order.shape[1])[None], order.shape)
  positions = jnp.concatenate([place, places], 1)
  before = jnp.where(asked, jnp.take_along_axis(order, places, 1) - 1, -NEVER)
  seen_from = jnp.concatenate([order, before], 1)
  seen_at = jnp.concatenate([jnp.where(real, order, NEVER), jnp.full_like(places, NEVER)], 1)
  return Mask(causal=True, key_positions=positions, query_positions=positions, key_order=seen_at, query_order=seen_from)


def two_stream_attention(
  attention: Callable[..., Array],
  content: Float[Array, "B T D"],
  query: Float[Array, "B P D"],
  order: Int[Array, "B T"],
  places: Int[Array, "B P"],
) -> tuple[Float[Array, "B T D"], Float[Array, "B P D"]]:
  """One step of both streams, each by itself, with the same parameters. Yang et al. 2019, sec. 2.3.

    h_t <- Attention(Q = h_t, KV = h_{z <= t}),   g_t <- Attention(Q = g_t, KV = h_{z < t})

  `attention` is a bound `MultiHeadAttention`: (x, context, mask) to (B, ., D). What a network does with the joined
  sequence of `Permuted` is this at each layer, without it: it is here to be read, and to be held against.
  """
  place = jnp.broadcast_to(jnp.arange(order.shape[1])[None], order.shape)
  of_content = Mask.of_self(causal=True, order=order)
  of_query = Mask(
    causal=True,
    key_positions=place,
    query_positions=places,
    key_order=order,
    query_order=jnp.take_along_axis(order, places, 1) - 1,
  )
  return attention(content, None, of_content), attention(query, content, of_query)
