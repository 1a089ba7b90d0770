"""A small model drafts some tokens, the large one checks them at once: speculative decoding. Leviathan et al. 2023.

What comes out is distributed exactly as what the large model alone would draw, by whatever temperature and top-k,
as long as both distributions are those after these: `next_distribution` makes them.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Scalar = Float[Array, ""] | float | int

# (tokens (T,), how many of them there are) to the logits (T, V) of what follows each.
NextLogits = Callable[[Array, Array], Array]


def next_distribution(
  logits: Float[Array, "*B V"], temperature: Scalar = 1.0, top_k: int | None = None
) -> Float[Array, "*B V"]:
  """What is drawn from: softmax(logits / temperature) over the `top_k` likeliest; one token at temperature 0.

  Of tokens that are as likely as number `top_k` none is left out. Raises ValueError for a `top_k` below 1.
  """
  logits = logits.astype(jnp.float32)
  if top_k is not None:
    if top_k < 1:
      raise ValueError(f"top_k is {top_k}, expected 1 or more")
    least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  temperature = jnp.asarray(temperature, jnp.float32)
  greedy = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])
  return jnp.where(temperature > 0, jax.nn.softmax(logits / jnp.where(temperature > 0, temperature, 1), -1), greedy)


class Checked(NamedTuple):
  """What becomes of a draft of G tokens.

  Attributes:
    tokens: (G + 1,) the accepted ones, then one of the large model's own; behind these nothing that counts.
    count: how many count: 1 to G + 1.
  """

  tokens: Int[Array, " G1"]
  count: Int[Array, ""]


def check_draft(
  key: Key[Array, ""], draft: Int[Array, " G"], q: Float[Array, "G V"], p: Float[Array, "G1 V"]
) -> Checked:
  """Accepts tokens while a uniform number is at most p(x) / q(x), then draws one more. Leviathan et al. 2023, alg. 1.

  That one comes from max(p - q, 0), normalised, where a token was refused, from p behind the draft where none was.
  `q` (G, V) is what each draft token was drawn from, `p` (G + 1, V) what the large model draws from at the same places
  and behind them. With p = q all are accepted. Of one sequence; `vmap` makes it many.
  """
  of_coins, of_last = jax.random.split(key)
  size = len(draft)
  at = lambda x: jnp.take_along_axis(x[:size], draft[:, None], 1)[:, 0]
  coins = jax.random.uniform(of_coins, (size,))
  accepted = jnp.cumprod(coins * at(q) < at(p)).astype(bool)
  kept = jnp.sum(accepted)
  behind = jnp.concatenate([q, jnp.zeros_like(q[:1])])[kept]
  rest = jnp.maximum(p[kept] - behind, 0)
  # Nothing is left but rounding where p = q: a refusal there is rounding too, and p as good.
  rest = jnp.where(jnp.sum(rest) > 0, rest, p[kept])
  last = jax.random.categorical(of_last, jnp.log(rest)).astype(draft.dtype)
  place = jnp.arange(size + 1)
  tokens = jnp.where(place < kept, jnp.append(draft, last), last)
  return Checked(tokens, kept + 1)


def expected_tokens(acceptance: Scalar, drafted: int) -> Float[Array, ""]:
  """Mean number of tokens of a round, (1 - a^(G + 1)) / (1 - a), each draft token accepted with probability a alone.

  Leviathan et al. 2023, sec. 2.2. G + 1 at a = 1.
  """
  powers = jnp.asarray(acceptance, jnp.float32) ** jnp.arange(drafted + 1)
  return jnp.sum(powers)


class Speculated(NamedTuple):
  """A sequence with its prompt, and how it came about.

  Attributes:
    tokens: (T,) the first `length` of them count.
    rounds: calls of the large model.
    drafted, accepted: tokens that the small one drafted, and those of them that were kept.
  """

  tokens: Int[Array, " T"]
  length: Int[Array, ""]
  rounds: Int[Array, ""]
  drafted: Int[Array, ""]
  accepted: Int[Array, ""]


def speculative_generate(
  key: Key[Array, ""],
  draft: NextLogits,
  target: NextLogits,
  prompt: Int[Array, " P"],
  new: int,
  drafted: int = 4,
  temperature: Scalar = 1.0,
  top_k: int | None = None,
  end: int | None = None,
) -> Speculated:
  """`new` tokens behind a prompt, or fewer where END comes, drawn as from the large model alone.

  Each round the small model draws `drafted` tokens one by one and the large one reads them in one call. Both read the
  whole sequence anew: this is the form for tests and small models, of which caches make a fast one by the same
  `check_draft`. Raises ValueError for fewer than one token of either kind.
  """
  if new < 1 or drafted < 1:
    raise ValueError(f"new is {new}, drafted {drafted}: expected 1 or more")
  room = len(prompt) + new + drafted + 1
  distribution = lambda logits: next_distribution(logits, temperature, top_k)

  def propose(key, carry, i):
    tokens, length = carry
    q = distribution(draft(tokens, length)[length - 1])
    token = jax.random.categorical(jax.random.fold_in(key, i), jnp.log(q)).astype(tokens.dtype)
    return (tokens.at[length].set(token), length + 1), (token, q)

  def round_(state):
    found, _ = state
    of_draft, of_check = jax.random.split(jax.random.fold_in(key, found.rounds))
    (tokens, _), (proposed, q) = jax.lax.scan(
      partial(propose, of_draft), (found.tokens, found.length), jnp.arange(drafted)
    )
    logits = target(tokens, found.length + drafted)
    p = distribution(jax.lax.dynamic_slice_in_dim(logits, found.length - 1, drafted + 1))
    checked = check_draft(of_check, proposed, q, p)
    count = jnp.minimum(checked.count, len(prompt) + new - found.length)
    done = count < checked.count
    if end is not None:
      ends = (checked.tokens == end) & (jnp.arange(drafted + 1) < count)
      done |= jnp.any(ends)
      count = jnp.where(jnp.any(ends), jnp.argmax(ends) + 1, count)
    tokens = jax.lax.dynamic_update_slice_in_dim(found.tokens, checked.tokens, found.length, 0)
    length = found.length + count
    done |= length >= len(prompt) + new
    of = Speculated(tokens, length, found.rounds + 1, found.drafted + drafted, found.accepted + checked.count - 1)
    return of, done

  tokens = jnp.zeros((room,), prompt.dtype).at[: len(prompt)].set(prompt)
  zero = jnp.zeros((), jnp.int32)
  start = Speculated(tokens, zero + len(prompt), zero, zero, zero)
  found, _ = jax.lax.while_loop(lambda state: ~state[1], round_, (start, jnp.zeros((), bool)))
  total = len(prompt) + new
  return found._replace(tokens=jnp.where(jnp.arange(total) < found.length, found.tokens[:total], 0))
