"""Text from a language model, token after token: one compiled loop over a cache of fixed size.

    found = generate(model, variables, prompts, lengths, keys, count=100, end=2, sampling=Sampling(temperature=0.8))
    found.tokens                                        # (B, 100): what follows each prompt, padding behind its END

What a row gives does not depend on the rows beside it, nor on how much padding its prompt has.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.attention.mask import Mask
from mlnotes.lm.model import LanguageModel

Scalar = Float[Array, ""] | Int[Array, ""] | float | int


class Sampling(NamedTuple):
  """How a token is drawn. What is None is left out, and costs nothing; `Sampling()` takes the likeliest token.

  Numbers may be traced: another value compiles nothing anew. In this order, as Hugging Face's processors have it:

  Attributes:
    repetition_penalty: logits above 0 of tokens that were there are divided by it, others multiplied. Keskar et al.
      2019 (CTRL), sec. 4.1; the division alone is theirs. The prompt counts.
    temperature: logits are divided by it, above 0. None: the likeliest token, nothing is drawn.
    top_k: only the k likeliest tokens. Fan et al. 2018.
    top_p: only the likeliest tokens until their chances together reach p. Holtzman et al. 2020, sec. 3.1.
    min_p: only tokens with a chance of p times that of the likeliest or more. Nguyen et al. 2024.

  Tokens as likely as the last one that is kept are kept too.
  """

  temperature: Scalar | None = None
  top_k: Scalar | None = None
  top_p: Scalar | None = None
  min_p: Scalar | None = None
  repetition_penalty: Scalar | None = None


GREEDY = Sampling()


class Generated(NamedTuple):
  """What follows B prompts.

  Attributes:
    tokens: (B, N) END with them, then padding.
    length: how many of them are no padding.
    log_probability: (B, N) of each in nats, in the distribution that it was drawn from (`adjust_logits`); 0 at padding.
  """

  tokens: Int[Array, "B N"]
  length: Int[Array, " B"]
  log_probability: Float[Array, "B N"]


def adjust_logits(
  logits: Float[Array, "*B V"], sampling: Sampling, seen: Bool[Array, "*B V"] | None = None
) -> Float[Array, "*B V"]:
  """Logits of the distribution that tokens are drawn from, -inf for those that cannot be. See `Sampling`.

  `seen` is what the repetition penalty is for. The likeliest token always stays. In float32. Raises ValueError for a
  temperature or a penalty that is a Python number and not above 0.
  """
  for name in ("temperature", "repetition_penalty"):
    number = getattr(sampling, name)
    if isinstance(number, int | float) and not number > 0:
      raise ValueError(f"{name} is {number}, expected a number above 0, or None: the likeliest token, no penalty")
  logits = logits.astype(jnp.float32)
  if sampling.repetition_penalty is not None and seen is not None:
    weaker = jnp.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
    logits = jnp.where(seen, weaker, logits)
  if sampling.temperature is not None:
    logits = logits / sampling.temperature
  if sampling.top_k is None and sampling.top_p is None:
    return _filter_min_p(logits, sampling.min_p)
  falling = -jnp.sort(-logits, axis=-1)
  if sampling.top_k is not None:
    place = jnp.clip(jnp.asarray(sampling.top_k, jnp.int32), 1, logits.shape[-1]) - 1
    least = jnp.take(falling, place[None], axis=-1)
    logits, falling = (jnp.where(x >= least, x, -jnp.inf) for x in (logits, falling))
  if sampling.top_p is not None:
    chance = jax.nn.softmax(falling, axis=-1)
    before = jnp.cumsum(chance, axis=-1) - chance
    kept = (before < sampling.top_p).at[..., 0].set(True)
    least = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  return _filter_min_p(logits, sampling.min_p)


def _filter_min_p(logits: Float[Array, "*B V"], min_p: Scalar | None) -> Float[Array, "*B V"]:
  if min_p is None:
    return logits
  top = jnp.max(logits, axis=-1, keepdims=True)
  return jnp.where(logits - top >= jnp.log(jnp.minimum(min_p, 1.0)), logits, -jnp.inf)


def generate(
  model: LanguageModel,
  variables: Any,
  prompts: Int[Array, "B P"],
  lengths: Int[Array, " B"] | None = None,
  keys: Key[Array, " B"] | None = None,
  count: int = 100,
  sampling: Sampling = GREEDY,
  end: int = -1,
  pad: int = 0,
  cache_dtype: DTypeLike | None = None,
) -> Generated:
  """`count` tokens behind each prompt, or those up to `end`. To be compiled: `jax.jit` over `variables` and arrays.

  Args:
    lengths: how many tokens of each prompt are real, 1 or more, from the first on; None: all.
    keys: one for each row; what is drawn for it goes by its key and the token's number alone. None: nothing is drawn.
    end: the token behind which a row is done; -1: none. The loop ends where all are.
    cache_dtype: of the keys and values that are kept, int8 too; None: the model's.

  Raises ValueError for an empty prompt, a count below 1, keys that are missing or not used, for more tokens than the
  model has positions for, and as `adjust_logits` does.
  """
  batch, room = prompts.shape
  if room < 1 or count < 1:
    raise ValueError(f"found prompts of {room} tokens and count={count}, expected 1 or more of both")
  if (keys is None) != (sampling.temperature is None):
    raise ValueError("keys draw at a temperature: expected both, or none of them")
  if model.position == "learned" and room + count - 1 > model.length:
    raise ValueError(f"{room} + {count} tokens pass the {model.length} that positions were learned for")
  padding = None if lengths is None else room - lengths
  if padding is not None:
    place = (jnp.arange(room)[None] - padding[:, None]) % room
    prompts = jnp.take_along_axis(prompts, place, axis=1)  # the padding in front
  size = room + count - 1

  def read(tokens, cache, at):
    mask = None if padding is None else _padded_mask(padding, at, tokens.shape[1], size)
    hidden, cache = model.apply(variables, tokens, mask, False, cache, method="hidden")
    return model.apply(variables, hidden[:, -1], method="logits"), cache

  def choose(logits, seen, i):
    logits = adjust_logits(logits, sampling, seen)
    if keys is None:
      chosen = jnp.argmax(logits, -1)
    else:
      draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, i), row)
      chosen = jax.vmap(draw)(keys, logits)
    chance = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[:, None], -1)[:, 0]
    return chosen.astype(jnp.int32), chance

  def write(i, found, chances, going, seen, logits):
    chosen, chance = choose(logits, seen, i)
    chosen = jnp.where(going, chosen, pad)
    found = jax.lax.dynamic_update_slice_in_dim(found, chosen[:, None], i, 1)
    chances = jax.lax.dynamic_update_slice_in_dim(chances, jnp.where(going, chance, 0)[:, None], i, 1)
    seen = None if seen is None else seen | jax.nn.one_hot(chosen, seen.shape[-1], dtype=bool)
    return found, chances, going & (chosen != end), seen, chosen

  def step(carry):
    i, found, chances, going, seen, last, cache = carry
    logits, cache = read(last[:, None], cache, room + i - 1)
    return i + 1, *write(i, found, chances, going, seen, logits), cache

  seen = None if sampling.repetition_penalty is None else _occurring(prompts, padding, model.vocabulary)
  logits, cache = read(prompts, model.make_cache(batch, size, cache_dtype), 0)
  empty = jnp.full((batch, count), pad, jnp.int32), jnp.zeros((batch, count), jnp.float32)
  first = write(0, *empty, jnp.ones((batch,), bool), seen, logits)
  carry = jax.lax.while_loop(lambda c: (c[0] < count) & jnp.any(c[3]), step, (jnp.int32(1), *first, cache))
  found, chances = carry[1:3]
  ended = jnp.cumsum(found == end, 1) - (found == end) > 0
  return Generated(found, jnp.sum(~ended, 1).astype(jnp.int32), chances)


def _padded_mask(padding: Int[Array, " B"], at: Int[Array, ""] | int, tokens: int, size: int) -> Mask:
  """Of `tokens` queries from slot `at` on among `size` slots, the first `padding` of which are empty."""
  segment = lambda slots: (slots >= padding[:, None]).astype(jnp.int32)
  position = lambda slots: jnp.maximum(slots - padding[:, None], 0)
  slots, asking = jnp.arange(size)[None], at + jnp.arange(tokens)[None]
  return Mask(
    causal=True,
    key_segments=segment(slots),
    query_segments=segment(asking),
    key_positions=position(slots),
    query_positions=position(asking),
  )


def _occurring(prompts: Int[Array, "B P"], padding: Int[Array, " B"] | None, vocabulary: int) -> Bool[Array, "B V"]:
  batch, room = prompts.shape
  real = jnp.ones((batch, room), bool) if padding is None else jnp.arange(room)[None] >= padding[:, None]
  rows = jnp.broadcast_to(jnp.arange(batch)[:, None], prompts.shape)
  return jnp.zeros((batch, vocabulary), bool).at[rows, prompts].max(real)
