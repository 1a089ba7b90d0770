"""Small tasks with exact answers, drawn on the device: what a kind of attention can look up, copy, sort, compute.

Each draws one example from a key: (tokens (L,), targets (L,)), where a target is the token to be predicted at that
place, or -1 where nothing is asked. Batches are `vmap`s. Tokens are int32 in 0 ... vocabulary - 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

NOT_ASKED = -1


class Task(NamedTuple):
  """A task of sequences of one length.

  Attributes:
    draw: a key to (tokens (L,), targets (L,)).
    length: L.
    vocabulary: how many different tokens there are.
    causal: whether what is asked is what comes next, so that no later token may be seen.
  """

  draw: Callable[[Key[Array, ""]], tuple[Int[Array, " L"], Int[Array, " L"]]]
  length: int
  vocabulary: int
  causal: bool


def make_recall(pairs: int = 8, queries: int = 4, symbols: int = 32) -> Task:
  """Associative recall of several queries: k1 v1 ... kn vn, then keys again, each asking for its value.

  Keys are distinct, of the first half of the symbols, values of the second; the queries are distinct keys. Arora et
  al. 2023 (Zoology), definition 3.1, with the queries behind the pairs. Raises ValueError for more pairs than keys,
  or more queries than pairs.
  """
  half = symbols // 2
  if pairs > half or queries > pairs:
    raise ValueError(
      f"recall of {queries} queries, {pairs} pairs, {half} keys (half of the {symbols} symbols): expected no more of "
      "one than of the next"
    )

  def draw(key):
    of_keys, of_values, of_queries = jax.random.split(key, 3)
    keys = jax.random.choice(of_keys, half, (pairs,), replace=False)
    values = half + jax.random.randint(of_values, (pairs,), 0, half)
    asked = jax.random.choice(of_queries, pairs, (queries,), replace=False)
    tokens = jnp.concatenate([jnp.stack([keys, values], 1).reshape(-1), keys[asked]])
    return tokens, jnp.concatenate([jnp.full(2 * pairs, NOT_ASKED), values[asked]])

  return Task(draw, 2 * pairs + queries, 2 * half, True)


def make_induction(length: int = 32, symbols: int = 16) -> Task:
  """A random sequence that ends with a marker seen once before: what came after it then? Olsson et al. 2022.

  The marker is a symbol of its own, at a random place but the last two. Raises ValueError for a length below 4.
  """
  if length < 4:
    raise ValueError(f"induction over {length} tokens, expected 4 or more")

  def draw(key):
    of_tokens, of_place = jax.random.split(key)
    tokens = jax.random.randint(of_tokens, (length,), 0, symbols)
    place = jax.random.randint(of_place, (), 0, length - 2)
    tokens = tokens.at[place].set(symbols).at[length - 1].set(symbols)
    return tokens, jnp.full(length, NOT_ASKED).at[length - 1].set(tokens[place + 1])

  return Task(draw, length, symbols + 1, True)


def make_copying(count: int = 8, symbols: int = 8, gap: int = 8) -> Task:
  """Selective copying: `count` symbols among `gap` blanks, then as many marks: say them in their order.

  Gu & Dao 2023 (Mamba), sec. 4.1.1, after Arjovsky et al. 2016. Tokens: symbols, then the blank, then the mark.
  """

  def draw(key):
    of_symbols, of_places = jax.random.split(key)
    said = jax.random.randint(of_symbols, (count,), 0, symbols)
    places = jnp.sort(jax.random.choice(of_places, count + gap, (count,), replace=False))
    first = jnp.full(count + gap, symbols).at[places].set(said)
    tokens = jnp.concatenate([first, jnp.full(count, symbols + 1)])
    return tokens, jnp.concatenate([jnp.full(count + gap, NOT_ASKED), said])

  return Task(draw, 2 * count + gap, symbols + 2, True)


def make_sorting(count: int = 16, symbols: int = 32) -> Task:
  """`count` symbols, repeats allowed, in; the same in ascending order out, place by place. Everything is seen."""

  def draw(key):
    tokens = jax.random.randint(key, (count,), 0, symbols)
    return tokens, jnp.sort(tokens)

  return Task(draw, count, symbols, False)


LISTOPS = ("MIN", "MAX", "MED", "SM")


def make_listops(length: int = 64, depth: int = 4, most: int = 5) -> Task:
  """Nested operations on digits, [MAX 2 9 [MIN 4 7] 0]: what is the value? Nangia & Bowman 2018.

  MIN, MAX, MED (the median, rounded down) and SM (the sum modulo 10) of 2 to `most` arguments, each a digit or, where
  there is room, half the time an operation again, up to `depth` of them within each other. The rest of the places is
  filled, and the last place asks. Tokens: ten digits, the four opened operations, ], the filler, the question.
  Differences from the paper: it draws lengths and depths of its own; accuracies compare within this task alone.
  Raises ValueError for a length below 7, a depth below 1, or fewer than 2 arguments.
  """
  if length < 7 or depth < 1 or most < 2:
    raise ValueError(f"listops of length {length}, depth {depth}, {most} arguments: expected 7, 1, 2 or more")
  close, fill, ask = 14, 15, 16

  def draw(key):
    empty = jnp.zeros(depth, jnp.int32)
    start = _Open(jnp.int32(-1), empty, empty, jnp.zeros((depth, 10), jnp.int32), jnp.int32(-1))
    of_kind, of_digit, of_count, of_choice = jax.random.split(key, 4)
    chance = _Chance(
      jax.random.randint(of_kind, (length - 1,), 0, 4),
      jax.random.randint(of_digit, (length - 1,), 0, 10),
      jax.random.uniform(of_count, (length - 1,)),
      jax.random.bernoulli(of_choice, shape=(length - 1,)),
    )
    left = length - 1 - jnp.arange(length - 1)
    next_token = lambda state, x: _listops_token(state, *x, depth, most, close, fill)
    end, tokens = jax.lax.scan(next_token, start, (chance, left))
    tokens = jnp.append(tokens, ask)
    return tokens, jnp.full(length, NOT_ASKED).at[length - 1].set(end.value)

  return Task(draw, length, 17, False)


class _Open(NamedTuple):
  """Operations that are open: the deepest one's index (-1: none), and of each its kind, arguments to come, digits."""

  top: Int[Array, ""]
  kind: Int[Array, " depth"]
  missing: Int[Array, " depth"]
  digits: Int[Array, "depth 10"]
  value: Int[Array, ""]  # of the whole, -1 until it is closed


class _Chance(NamedTuple):
  """What is drawn for a place, whether it is used or not."""

  kind: Int[Array, "*L"]
  digit: Int[Array, "*L"]
  count: Float[Array, "*L"]  # of arguments, on [0, 1)
  opens: Bool[Array, "*L"]


def _listops_token(state: _Open, chance: _Chance, left, depth: int, most: int, close: int, fill: int):
  """The next token and what is open after it; `left` places are left, this one among them."""
  done, empty = state.value >= 0, state.top < 0
  levels = jnp.arange(depth)
  # What is open already needs this many places, and an operation in the place of an argument three to `most` + 1 more.
  needed = jnp.sum(jnp.where(levels <= state.top, state.missing + 1, 0))
  room = left - needed - jnp.where(empty, 2, 1)
  largest = jnp.clip(room, 2, most)
  count = 2 + jnp.floor(chance.count * (largest - 1)).astype(jnp.int32)
  opens = ~done & (empty | ((state.missing[state.top] > 0) & (state.top + 1 < depth) & (room >= 2)))
  opens &= empty | chance.opens
  closes = ~done & ~empty & (state.missing[state.top] == 0)

  result = _evaluate(state.kind[state.top], state.digits[state.top])
  below = jnp.where(opens, state.top, state.top - closes)
  got = jnp.where(closes, result, chance.digit)
  takes = ~done & ~opens & (below >= 0)
  at = levels == below
  digits = state.digits + ((takes & at)[:, None] & (jnp.arange(10) == got)[None, :])
  missing = state.missing - (at & ~done & ~closes & ~empty)
  new = levels == state.top + 1
  missing = jnp.where(opens & new, count, missing)
  digits = jnp.where((opens & new)[:, None], 0, digits)
  top = jnp.where(opens, state.top + 1, below)
  value = jnp.where(closes & (below < 0), result, state.value)
  token = jnp.where(done, fill, jnp.where(opens, 10 + chance.kind, jnp.where(closes, close, chance.digit)))
  return _Open(top, jnp.where(opens & new, chance.kind, state.kind), missing, digits, value), token


def _evaluate(kind: Int[Array, ""], digits: Int[Array, " 10"]) -> Int[Array, ""]:
  """MIN, MAX, MED or SM of digits, given how often each of the ten is there."""
  values, total = jnp.arange(10), jnp.sum(digits)
  upto = jnp.cumsum(digits)
  smallest, largest = jnp.argmax(digits > 0), 9 - jnp.argmax(digits[::-1] > 0)
  ranked = lambda rank: jnp.argmax(upto > rank)
  median = (ranked((total - 1) // 2) + ranked(total // 2)) // 2
  return jnp.stack([smallest, largest, median, jnp.sum(values * digits) % 10])[kind]
