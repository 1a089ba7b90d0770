"""From a model of the next token to whole sequences: greedily, by drawing, by beam search. One form for every decoder.

    decoder = model.make_decoder(variables, source, lengths, room=32)
    best = beam_search(decoder, START, END, PAD, max_length=32, width=4, length_penalty=0.6)
    best.tokens[:, 0]      # (B, T), the likeliest of each row: its tokens, END, PAD ...

All are compiled, of a batch at once, and what a row gives does not depend on the rows beside it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Scalar = Float[Array, ""] | float | int


class Decoder(NamedTuple):
  """What is known of B sequences before their first token, and how one token more is read.

  Attributes:
    step: (source, state, tokens (N,)) -> (log-probabilities of the next token (N, V), state, attention (N, S) or None).
      It goes by its arguments alone, row by row: N is B, or with W beams of each row B W.
    state: what a step changes: arrays whose first axis is B, and scalars, which all rows share.
    source: what every step reads and none changes, arrays whose first axis is B. Beams do not copy it at each step.
    lengths: how many of the S places that `attention` is of are real; None: all.
  """

  step: Callable[[Any, Any, Array], tuple[Array, Any, Array | None]]
  state: Any
  source: Any = ()
  lengths: Int[Array, " B"] | None = None


class Decoded(NamedTuple):
  """Sequences without START: their tokens, END, then padding. From beam search with an axis W, the best ones first.

  Attributes:
    tokens: (B, T) or (B, W, T).
    length: tokens that are no padding, END counted: it is tokens[length - 1], and tokens[length] the first padding. A
      sequence that greedy decoding or drawing has cut has none.
    log_probability: sum of its tokens', END's with them, in nats.
    score: what beam search orders by; otherwise the same.
  """

  tokens: Int[Array, "B *W T"]
  length: Int[Array, "B *W"]
  log_probability: Float[Array, "B *W"]
  score: Float[Array, "B *W"]


def length_normalizer(length: Int[Array, "..."] | int, length_penalty: Scalar) -> Float[Array, "..."]:
  """((5 + L) / 6)^alpha, which a log-probability is divided by. Wu et al. 2016 (GNMT), eq. 14. END counts in L."""
  return (jnp.asarray(5.0 + length, jnp.float32) / 6.0) ** length_penalty


def greedy(decoder: Decoder, start: int, end: int, pad: int, max_length: int) -> Decoded:
  """The likeliest token at each step, until END or `max_length` tokens."""
  return _one_by_one(decoder, start, end, pad, max_length, lambda log_probability, i: jnp.argmax(log_probability, -1))


def sample(
  keys: Key[Array, " B"],
  decoder: Decoder,
  start: int,
  end: int,
  pad: int,
  max_length: int,
  temperature: Scalar = 1.0,
) -> Decoded:
  """A token drawn at each step from p^(1 / temperature), by a key for each row, until END or `max_length` tokens."""

  def choose(log_probability, i):
    of_row = lambda key, row: jax.random.categorical(jax.random.fold_in(key, i), row / temperature)
    return jax.vmap(of_row)(keys, log_probability)

  return _one_by_one(decoder, start, end, pad, max_length, choose)


def _one_by_one(decoder, start, end, pad, max_length, choose) -> Decoded:
  batch = _batch_of(decoder)

  def body(carry):
    i, tokens, last, total, going, state = carry
    log_probability, state, _ = decoder.step(decoder.source, state, last)
    chosen = choose(log_probability, i).astype(jnp.int32)
    of_chosen = jnp.take_along_axis(log_probability, chosen[:, None], -1)[:, 0]
    total = total + jnp.where(going, of_chosen, 0)
    tokens = tokens.at[:, i].set(jnp.where(going, chosen, pad))
    return i + 1, tokens, chosen, total, going & (chosen != end), state

  first = (
    jnp.int32(0),
    jnp.full((batch, max_length), pad, jnp.int32),
    jnp.full((batch,), start, jnp.int32),
    jnp.zeros((batch,), jnp.float32),
    jnp.ones((batch,), bool),
    decoder.state,
  )
  _, tokens, _, total, _, _ = jax.lax.while_loop(lambda c: (c[0] < max_length) & jnp.any(c[4]), body, first)
  return Decoded(tokens, _lengths(tokens, end, max_length), total, total)


class _Beams(NamedTuple):
  """Running sequences beside finished ones, W of each, the best first."""

  i: Int[Array, ""]
  tokens: Int[Array, "B W T"]
  log_probability: Float[Array, "B W"]
  coverage: Float[Array, "B W S"] | None
  state: Any
  done: Int[Array, "B W T"]
  done_log_probability: Float[Array, "B W"]
  done_score: Float[Array, "B W"]


def beam_search(
  decoder: Decoder,
  start: int,
  end: int,
  pad: int,
  max_length: int,
  width: int = 4,
  length_penalty: Scalar = 0.0,
  coverage_penalty: float = 0.0,
  monotonic: bool = False,
) -> Decoded:
  """The `width` best complete sequences of at most `max_length` tokens, END counted, that `width` beams meet.

    score = log p / ((5 + L) / 6)^alpha + beta sum_i log min(sum_t a_ti, 1)            Wu et al. 2016 (GNMT), eq. 14

  Running and finished sequences stand in lists of their own: the W likeliest that go on, and the W best that ended.
  The search ends where no running one can still enter the latter, whatever follows: a log-probability only falls, so
  that log p over the largest normaliser within reach bounds the score, for alpha of either sign. Every sequence
  returned ends with END; where fewer than W do, what is left has a score of -inf.

  Args:
    length_penalty: alpha; 0 is the log-probability alone, below 0 prefers short ones.
    coverage_penalty: beta >= 0; sources that attention passed over cost. Weights below 1e-6 count as that.
    monotonic: beam k takes the best that is left of what the beams 1 ... k lead to. Those of a narrower search are then
      the first ones of a wider one, so that a wider one never returns a lower score, which the usual choice of the W
      best of all may do. Lemons et al. 2022.

  Raises ValueError for a width below 1, a negative beta, or a beta where the decoder gives no attention.
  """
  if width < 1 or max_length < 1:
    raise ValueError(f"width={width}, max_length={max_length}: expected 1 or more")
  if coverage_penalty < 0:
    raise ValueError(f"coverage_penalty={coverage_penalty} is out of range: expected 0 or more")
  batch = _batch_of(decoder)
  widen = lambda x: jnp.repeat(x, width, axis=0) if jnp.ndim(x) else x
  source = jax.tree.map(widen, decoder.source)
  state = jax.tree.map(widen, decoder.state)
  places = _places(decoder, source, state, batch * width, coverage_penalty)
  normalizer = lambda length: length_normalizer(length, length_penalty)
  largest = normalizer(max_length)

  def score(log_probability, coverage, length):
    found = log_probability / normalizer(length)
    if coverage is None:
      return found
    real = jnp.ones((batch, 1, places), bool)
    if decoder.lengths is not None:
      real = jnp.arange(places)[None, None] < decoder.lengths[:, None, None]
    seen = jnp.log(jnp.clip(coverage, 1e-6, 1.0))
    return found + coverage_penalty * jnp.sum(jnp.where(real, seen, 0), -1)

  def can_win(beams: _Beams) -> Bool[Array, " B"]:
    bound = jnp.max(beams.log_probability, 1) / jnp.maximum(normalizer(beams.i + 1), largest)
    return bound > beams.done_score[:, -1]

  def body(beams: _Beams) -> _Beams:
    i = beams.i
    before = jax.lax.dynamic_index_in_dim(beams.tokens, jnp.maximum(i - 1, 0), 2, keepdims=False)
    last = jnp.where(i == 0, start, before).reshape(-1)
    log_probability, state, attention = decoder.step(source, beams.state, last)
    total = beams.log_probability[..., None] + log_probability.reshape(batch, width, -1)
    coverage = None
    if beams.coverage is not None:
      coverage = beams.coverage + attention.reshape(batch, width, -1)
    # Finished: what ends here beside what ended before, which wins where they are equal.
    ended = total[..., end]
    scores = jnp.concatenate([beams.done_score, score(ended, coverage, i + 1)], 1)
    done_score, kept = jax.lax.top_k(scores, width)
    pick = lambda old, new: _take(jnp.concatenate([old, new], 1), kept)
    done = pick(beams.done, beams.tokens.at[:, :, i].set(end))
    done_log_probability = pick(beams.done_log_probability, ended)
    # Running: what goes on.
    going = total.at[..., end].set(-jnp.inf)
    found, parent, token = _nested_best(going) if monotonic else _best_of_all(going)
    tokens = _take(beams.tokens, parent).at[:, :, i].set(token)
    rows = (jnp.arange(batch)[:, None] * width + parent).reshape(-1)
    state = jax.tree.map(lambda x: x[rows] if jnp.ndim(x) else x, state)
    coverage = None if coverage is None else _take(coverage, parent)
    return _Beams(i + 1, tokens, found, coverage, state, done, done_log_probability, done_score)

  nothing = jnp.full((batch, width), -jnp.inf, jnp.float32)
  empty = jnp.full((batch, width, max_length), pad, jnp.int32)
  first = _Beams(
    jnp.int32(0), empty, nothing.at[:, 0].set(0.0),
    jnp.zeros((batch, width, places), jnp.float32) if coverage_penalty else None, state, empty, nothing, nothing,
  )  # fmt: skip
  beams = jax.lax.while_loop(lambda beams: (beams.i < max_length) & jnp.any(can_win(beams)), body, first)
  length = _lengths(beams.done, end, max_length)
  return Decoded(beams.done, length, beams.done_log_probability, beams.done_score)


def _best_of_all(total: Float[Array, "B W V"]) -> tuple[Array, Array, Array]:
  """(log-probability, parent, token) of the W likeliest, (B, W) each, falling."""
  batch, width, vocabulary = total.shape
  found, place = jax.lax.top_k(total.reshape(batch, -1), width)
  return found, place // vocabulary, (place % vocabulary).astype(jnp.int32)


def _nested_best(total: Float[Array, "B W V"]) -> tuple[Array, Array, Array]:
  """Likewise, number k the likeliest that is left among the children of the beams 0 ... k."""
  batch, width, vocabulary = total.shape
  most = min(width, vocabulary)
  best, token = jax.lax.top_k(total, most)
  parents = jnp.arange(width)[None, :, None]

  def take(best, k):
    allowed = jnp.where(parents <= k, best, -jnp.inf).reshape(batch, -1)
    place = jnp.argmax(allowed, -1)
    found = jnp.take_along_axis(allowed, place[:, None], 1)[:, 0]
    taken = jax.nn.one_hot(place, width * most, dtype=bool).reshape(best.shape)
    return jnp.where(taken, -jnp.inf, best), (found, place)

  _, (found, place) = jax.lax.scan(take, best, jnp.arange(width))
  found, place = found.T, place.T
  return found, place // most, jnp.take_along_axis(token.reshape(batch, -1), place, 1).astype(jnp.int32)


def _take(x: Array, index: Int[Array, "B W"]) -> Array:
  """x[b, index[b, w]]."""
  return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def _lengths(tokens: Int[Array, "... T"], end: int, max_length: int) -> Int[Array, "..."]:
  """Up to END, it counted; `max_length` where there is none."""
  is_end = tokens == end
  return jnp.where(jnp.any(is_end, -1), jnp.argmax(is_end, -1) + 1, max_length).astype(jnp.int32)


def _batch_of(decoder: Decoder) -> int:
  for x in jax.tree.leaves((decoder.state, decoder.source, decoder.lengths)):
    if jnp.ndim(x):
      return x.shape[0]
  raise ValueError("state, source and lengths of the decoder hold no array, expected one whose first axis is the batch")


def _places(decoder: Decoder, source: Any, state: Any, rows: int, coverage_penalty: float) -> int:
  """How many places the attention is of."""
  if not coverage_penalty:
    return 0
  attention = jax.eval_shape(decoder.step, source, state, jax.ShapeDtypeStruct((rows,), jnp.int32))[2]
  if attention is None:
    raise ValueError(f"coverage_penalty={coverage_penalty}: the decoder gives no attention, expected 0")
  return attention.shape[-1]
