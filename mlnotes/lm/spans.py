"""Spans of tokens drawn on the device, of static shapes: how long they are, where they lie.

Functions are of one row, `length` of its `places` real; batches are `vmap`s. A row is treated as a ring that is cut at
a place drawn uniformly, so that every place is hit at one rate, the first and the last like any other. A span that the
cut divides counts as two.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Scalar = Float[Array, ""] | float | int


class Spans(NamedTuple):
  """Which places are in a span, and which are the first of theirs. False behind the row's length.

  Attributes:
    inside: (T,).
    first: (T,) two spans may touch: then it is by this that they are told apart.
  """

  inside: Bool[Array, "*B T"]
  first: Bool[Array, "*B T"]


def geometric_lengths(p: float = 0.2, longest: int = 10) -> Float[np.ndarray, " M"]:
  """Probabilities of the lengths 0 ... `longest` under a geometric distribution, renormalised. Joshi et al. 2020, 3.1.

  Its mean is 3.8 for p = .2 and 10. Raises ValueError for p outside (0, 1], or a longest below 1.
  """
  if not 0 < p <= 1 or longest < 1:
    raise ValueError(f"p is {p}, longest {longest}: expected p in (0, 1], and 1 or more")
  weight = np.r_[0.0, p * (1 - p) ** np.arange(longest)]
  return weight / weight.sum()


def poisson_lengths(mean: float = 3.0, longest: int = 32) -> Float[np.ndarray, " M"]:
  """Probabilities of the lengths 0 ... `longest` under a Poisson distribution, renormalised. Lewis et al. 2020, 2.2.

  Raises ValueError for a mean that is not above 0.
  """
  if not mean > 0:
    raise ValueError(f"mean is {mean}, expected more than 0")
  weight = np.exp([n * math.log(mean) - mean - math.lgamma(n + 1) for n in range(longest + 1)])
  return weight / weight.sum()


def draw_lengths(key: Key[Array, ""], probabilities: Float[np.ndarray, " M"], count: int) -> Int[Array, " S"]:
  """`count` lengths 0 ... M - 1, by the inverse of the distribution function."""
  bounds = jnp.asarray(np.cumsum(probabilities)[:-1], jnp.float32)
  return jnp.searchsorted(bounds, jax.random.uniform(key, (count,)), side="right").astype(jnp.int32)


def cut_lengths(lengths: Int[Array, " S"], budget: Int[Array, ""]) -> Int[Array, " S"]:
  """As many as fill the budget, the last of them shortened, 0 from there on."""
  before = jnp.cumsum(lengths) - lengths
  return jnp.clip(budget - before, 0, lengths)


def round_at_random(key: Key[Array, ""], x: Float[Array, ""]) -> Int[Array, ""]:
  """One of the two whole numbers around x, which is their mean."""
  return jnp.floor(x + jax.random.uniform(key)).astype(jnp.int32)


def draw_composition(key: Key[Array, ""], total: Int[Array, ""], parts: Int[Array, ""], size: int) -> Int[Array, " S"]:
  """`total` as a sum of `parts` whole numbers of 1 or more, each such sum as likely; 0 from the number `parts` on.

  `total` is at most `size`, and `parts` at most `total`; with no parts, the first is `total`.
  """
  place = jnp.arange(size)
  chance = jnp.where((place > 0) & (place < total), jax.random.uniform(key, (size,)), jnp.inf)
  rank = jnp.argsort(jnp.argsort(chance))
  part = jnp.cumsum((place > 0) & (rank < parts - 1))
  return jnp.zeros((size,), jnp.int32).at[jnp.where(place < total, part, size)].add(1, mode="drop")


def place_spans(
  key: Key[Array, ""], spans: Int[Array, " S"], length: Int[Array, ""], places: int, apart: int = 1
) -> Spans:
  """Spans of the given lengths in their order around the ring, what is between them drawn uniformly.

  `apart` places or more lie between two neighbours: 0 lets them touch, and so do more spans than there is room
  between. Lengths of 0 are no spans. The sum of all is at most `length`.
  """
  of_gaps, of_cut = jax.random.split(key)
  spans = spans[jnp.argsort(spans == 0)]  # stable: zeros go behind the others
  count, inside = jnp.sum(spans > 0), jnp.sum(spans)
  outside = length - inside
  touch = jnp.where((apart == 0) | (outside < count), 1, 0)
  size = max(places, len(spans))
  gaps = draw_composition(of_gaps, outside + touch * count, count, 2 * size)[:size]
  gaps -= jnp.where(jnp.arange(size) < count, touch, 0)
  spans = jnp.pad(spans, (0, size - len(spans)))
  ends = jnp.cumsum(jnp.stack([gaps, spans], 1).reshape(-1))
  place = jnp.arange(places)
  which = jnp.searchsorted(ends, place, side="right")
  is_inside = which % 2 == 1
  is_first = is_inside & (place == ends[which - 1])
  offset = jax.random.randint(of_cut, (), 0, jnp.maximum(length, 1))
  turned = (place + offset) % jnp.maximum(length, 1)
  is_inside = is_inside[turned] & (place < length)
  return Spans(is_inside, is_inside & (is_first[turned] | (place == 0)))


def compact(tokens: Int[Array, " T"], keep: Bool[Array, " T"], size: int, pad: int) -> Int[Array, " U"]:
  """What is kept, moved to the front, `pad` behind it; what finds no room in `size` is dropped."""
  place = jnp.where(keep, jnp.cumsum(keep) - 1, size)
  return jnp.full((size,), pad, jnp.int32).at[place].set(tokens.astype(jnp.int32), mode="drop")
