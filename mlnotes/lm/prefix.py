"""One model under several masks: read from both sides, from one, or a source first and then what follows. UniLM."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mlnotes.attention.mask import Mask
from mlnotes.lm.vocabulary import fill_lengths, real_places

BIDIRECTIONAL, FORWARD, BACKWARD, PREFIX = range(4)


def prefix_mask(sources: Int[Array, " B"], places: int, lengths: Int[Array, " B"] | None = None) -> Mask:
  """The first `sources` tokens of a row see each other, those behind see all up to themselves. Dong et al. 2019, 2.3.

  A causal mask where `sources` is 0, one that shows everything where it is the length. Positions are the places, as
  in any mask: only the order in which tokens are read is another one.
  """
  place = jnp.arange(places)[None]
  order = jnp.where(place < sources[:, None], 0, place)
  return Mask.of_self(causal=True, order=order, lengths=lengths)


class Reading(NamedTuple):
  """A mask for each row, and which it is: BIDIRECTIONAL, FORWARD, BACKWARD or PREFIX."""

  mask: Mask
  kind: Int[Array, " B"]


def draw_reading(
  key: Key[Array, ""],
  sources: Int[Array, " B"],
  places: int,
  lengths: Int[Array, " B"] | None = None,
  shares: tuple[float, float, float, float] = (1 / 3, 1 / 3, 0.0, 1 / 3),
) -> Reading:
  """Of each row one of the kinds of mask, with probability `shares`. Dong et al. 2019, sec. 2.

  Words are hidden beforehand by `mask_words`, and each is guessed from what its place sees under the mask. `sources`
  says where the second segment begins, of which PREFIX rows read from the left to the right. One mask for the batch,
  of static shape, whatever was drawn. Difference from the paper: there a third is by rows of either direction, half
  each: shares of (1/3, 1/6, 1/6, 1/3).
  Raises ValueError for shares that are negative or sum to 0.
  """
  if min(shares) < 0 or sum(shares) <= 0:
    raise ValueError(f"shares is {shares}, expected four numbers of 0 or more, one above it")
  kind = jax.random.choice(key, 4, sources.shape, p=jnp.asarray(shares) / sum(shares)).astype(jnp.int32)
  place = jnp.broadcast_to(jnp.arange(places)[None], (len(sources), places))
  of_kind: tuple[Array, ...] = (jnp.zeros_like(place), place, places - 1 - place)
  order = jnp.where(place < sources[:, None], 0, place)
  for number, other in enumerate(of_kind):
    order = jnp.where(kind[:, None] == number, other, order)
  return Reading(Mask.of_self(causal=True, order=order, lengths=lengths), kind)


class Continued(NamedTuple):
  """Next tokens to be said of a prefix model, those behind the source."""

  inputs: Int[Array, "B T"]
  targets: Int[Array, "B T"]
  weights: Float[Array, "B T"]
  mask: Mask


def continue_prefix(
  tokens: Int[Array, "B U"], sources: Int[Array, " B"], lengths: Int[Array, " B"] | None = None
) -> Continued:
  """The prefix language model: rows of T + 1 tokens, each of those behind the source said from what is before it.

  The source, `sources` tokens of 1 or more, is read from both sides and not said; with 0 it is the plain causal model.
  Raffel et al. 2020, sec. 3.2.1.
  """
  places = tokens.shape[1] - 1
  lengths = fill_lengths(lengths, tokens)
  real = real_places(jnp.maximum(lengths - 1, 0), places)
  said = real & (jnp.arange(places)[None] + 1 >= sources[:, None])
  mask = prefix_mask(sources, places, jnp.maximum(lengths - 1, 0))
  return Continued(tokens[:, :-1], tokens[:, 1:], said.astype(jnp.float32), mask)
