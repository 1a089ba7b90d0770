"""A small model drafts some tokens, the large one checks them at once: speculative decoding. Leviathan et al. 2023.

What comes out is distributed exactly as what the large model alone would draw, by whatever temperature and top-k,
as long as both distributions are those after these: `next_distribution` makes them.

    found = speculative_decode(key, small, of_small, large, of_large, prompt, new=100, drafted=4, temperature=0.8)
    found.tokens[: found.length], found.accepted / found.drafted
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.lm.model import LanguageModel

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


def expected_speedup(
  acceptance: Scalar, drafted: int, draft_cost: Scalar, target_cost: Scalar = 1.0
) -> Float[Array, ""]:
  """Times as fast as the large model alone: (1 - a^(G + 1)) / ((1 - a) (G c + 1)). Leviathan et al. 2023, theorem 3.8.

  `draft_cost` is c, that of a call of the small model in calls of the large one for a single token; `target_cost` takes
  the place of the 1, where a call for G + 1 tokens costs more than that.
  """
  return expected_tokens(acceptance, drafted) / (drafted * jnp.asarray(draft_cost) + target_cost)


class Speculated(NamedTuple):
  """A sequence with its prompt, and how it came about.

  Attributes:
    tokens: (T,) the first `length` of them count.
    rounds: calls of the large model, that for the prompt not counted.
    drafted, accepted: tokens that the small one drafted, and those of them that passed. Those behind the end of the
      text are among them, so that `accepted / rounds + 1` tokens are what a call gives.
    refused: rounds in which a token was refused: `accepted / (accepted + refused)` of those asked about passed.
    of_draft: (T,) whether a token is the small model's.
  """

  tokens: Int[Array, " T"]
  length: Int[Array, ""]
  rounds: Int[Array, ""]
  drafted: Int[Array, ""]
  accepted: Int[Array, ""]
  refused: Int[Array, ""]
  of_draft: Bool[Array, " T"]


class Reader(NamedTuple):
  """A model that goes on from what it has read.

  Attributes:
    memory: of what it has read so far.
    read: (memory, tokens (T,), start, count) -> (logits (count, V) of what follows each of the `count` tokens from
      `start` on, the memory with them). `count` is a Python number. What the memory has from `start` on is of tokens
      that were refused: it is forgotten.
  """

  memory: Any
  read: Callable[..., tuple[Float[Array, "C V"], Any]]


def anew(logits: NextLogits) -> Reader:
  """Reads the whole sequence each time, and keeps nothing."""

  def read(memory, tokens, start, count):
    return jax.lax.dynamic_slice_in_dim(logits(tokens, start + count), start, count), memory

  return Reader((), read)


def cached(model: LanguageModel, variables: Any, prompt: Int[Array, " P"], room: int) -> Reader:
  """Reads only what is new, by a cache of keys and values for `room` tokens; the prompt is read here.

  What was refused is forgotten by setting the number of tokens that the cache holds back to where it was: what stands
  behind it is not seen, and is written over.
  """

  def read(memory, tokens, start, count):
    memory = tuple(layer._replace(length=jnp.asarray(start, jnp.int32)) for layer in memory)
    some = jax.lax.dynamic_slice_in_dim(tokens, start, count)
    logits, memory = model.apply(variables, some[None], None, False, memory)
    return logits[0], memory

  _, memory = model.apply(variables, prompt[None], None, False, model.make_cache(1, room), method="hidden")
  return Reader(memory, read)


def speculative_generate(
  key: Key[Array, ""],
  draft: NextLogits,
  target: NextLogits,
  prompt: Int[Array, " P"],
  new: int,
  drafted: int = 4,
  temperature: Scalar = 1.0,
  top_k: int | None = None,
  end: Int[Array, ""] | int | None = None,
) -> Speculated:
  """`new` tokens behind a prompt, or fewer where END comes, drawn as from the large model alone.

  Each round the small model draws `drafted` tokens one by one and the large one reads them in one call. Both read the
  whole sequence anew: this is the form for any function of tokens, of which `speculative_decode` is the fast one.
  Raises ValueError for fewer than one token of either kind, or of the prompt.
  """
  _require_some(len(prompt), new, drafted)
  return _speculate(key, anew(draft), anew(target), prompt, len(prompt), new, drafted, temperature, top_k, end)


def speculative_decode(
  key: Key[Array, ""],
  draft: LanguageModel,
  draft_variables: Any,
  target: LanguageModel,
  target_variables: Any,
  prompt: Int[Array, " P"],
  length: Int[Array, ""] | int | None = None,
  new: int = 100,
  drafted: int = 4,
  temperature: Scalar = 1.0,
  top_k: int | None = None,
  end: Int[Array, ""] | int | None = None,
) -> Speculated:
  """`speculative_generate` of two models with caches, in one compiled loop: `jax.jit` over variables and arrays.

  Only the first `length` tokens of the prompt count; None: all. Of one sequence: `vmap` over key, prompt and length
  makes it many, and a row does not depend on those beside it; `tokens` has room for P + `new`. Temperature 0 takes the
  large model's likeliest tokens, as `generate` does. Raises ValueError also for models of other vocabularies, those
  that do not read from the left, and more tokens than either has learned positions for.
  """
  _require_some(len(prompt), new, drafted)
  if draft.vocabulary != target.vocabulary:
    raise ValueError(f"the draft has {draft.vocabulary} tokens, the target {target.vocabulary}: expected the same ones")
  room = len(prompt) + new + drafted
  for name, model in (("draft", draft), ("target", target)):
    if not model.causal:
      raise ValueError(f"the {name} reads from both sides: expected a causal model")
    if model.position == "learned" and room - 1 > model.length:
      raise ValueError(
        f"{len(prompt)} + {new} tokens and {drafted} drafted pass the {model.length} that the {name} has positions for"
      )
  small, large = (
    cached(model, variables, prompt, room)
    for model, variables in ((draft, draft_variables), (target, target_variables))
  )
  length = len(prompt) if length is None else length
  return _speculate(key, small, large, prompt, length, new, drafted, temperature, top_k, end)


def _require_some(prompt: int, new: int, drafted: int) -> None:
  if new < 1 or drafted < 1:
    raise ValueError(f"new is {new}, drafted {drafted}: expected 1 or more")
  if prompt < 1:
    raise ValueError("the prompt is empty: expected a token or more")


def _speculate(
  key: Key[Array, ""],
  draft: Reader,
  target: Reader,
  prompt: Int[Array, " P"],
  length: Int[Array, ""] | int,
  new: int,
  drafted: int,
  temperature: Scalar,
  top_k: int | None,
  end: Int[Array, ""] | int | None,
) -> Speculated:
  total, last = len(prompt) + new, length + new
  distribution = lambda logits: next_distribution(logits, temperature, top_k)

  def propose(of_draft, memory, tokens, length):
    """The last two tokens are read at first: of the one ahead of the last the draft may know nothing yet."""
    start = jnp.maximum(length - 2, 0)
    logits, memory = draft.read(memory, tokens, start, 2)
    q = distribution(logits[length - 1 - start])

    def write(tokens, q, i):
      token = jax.random.categorical(jax.random.fold_in(of_draft, i), jnp.log(q)).astype(tokens.dtype)
      return tokens.at[length + i].set(token), token

    def step(carry, i):
      tokens, memory, q = carry
      tokens, token = write(tokens, q, i)
      logits, memory = draft.read(memory, tokens, length + i, 1)
      return (tokens, memory, distribution(logits[0])), (token, q)

    (tokens, memory, q_last), (found, q) = jax.lax.scan(step, (tokens, memory, q), jnp.arange(drafted - 1))
    tokens, token = write(tokens, q_last, drafted - 1)
    return tokens, memory, jnp.append(found, token), jnp.concatenate([q, q_last[None]])

  def round_(state):
    found, memories, _ = state
    of_draft, of_check = jax.random.split(jax.random.fold_in(key, found.rounds))
    tokens, small, proposed, q = propose(of_draft, memories[0], found.tokens, found.length)
    logits, large = target.read(memories[1], tokens, found.length - 1, drafted + 1)
    checked = check_draft(of_check, proposed, q, distribution(logits))
    passed = checked.count - 1
    count = jnp.minimum(checked.count, last - found.length)
    done = found.length + count >= last
    if end is not None:
      ends = (checked.tokens == end) & (jnp.arange(drafted + 1) < count)
      done |= jnp.any(ends)
      count = jnp.where(jnp.any(ends), jnp.argmax(ends) + 1, count)
    put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=found.length, axis=0)
    of = Speculated(
      put(found.tokens, checked.tokens),
      found.length + count,
      found.rounds + 1,
      found.drafted + drafted,
      found.accepted + passed,
      found.refused + (passed < drafted),
      put(found.of_draft, jnp.arange(drafted + 1) < passed),
    )
    return of, (small, large), done

  zero = jnp.zeros((), jnp.int32)
  tokens = jnp.zeros((total + drafted + 1,), prompt.dtype).at[: len(prompt)].set(prompt)
  start = Speculated(tokens, zero + length, zero, zero, zero, zero, jnp.zeros(tokens.shape, bool))
  state = start, (draft.memory, target.memory), jnp.zeros((), bool)
  found = jax.lax.while_loop(lambda state: ~state[2], round_, state)[0]
  real = jnp.arange(total) < found.length
  return found._replace(tokens=jnp.where(real, found.tokens[:total], 0), of_draft=real & found.of_draft[:total])
