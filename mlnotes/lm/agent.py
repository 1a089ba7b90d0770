"""An agent in its surroundings: one compiled loop in which a model speaks and tools answer; and which calls help.

The model says a token, the surroundings see it, and where they have something to say their tokens come next, whatever
the model would have said: the results of calls, as in Schick et al. 2023 (Toolformer), sec. 2, and Yao et al. 2023
(ReAct). Contexts, such as those of two agents or of a task within a task, stand in one cache and do not see each other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mlnotes.attention.mask import Mask
from mlnotes.lm.model import LanguageModel


class Surroundings(NamedTuple):
  """What an agent acts in, as functions of one row's state.

  next:    (state) -> (token, whether it is put there, context, place in that context) of the next token; a token that
           is not put there is the model's to say.
  observe: (state, token, put) -> state.
  done:    (state) -> whether nothing more is said.
  """

  next: Callable[[Any], tuple[Array, Array, Array, Array]]
  observe: Callable[[Any, Array, Array], Any]
  done: Callable[[Any], Array]


class Acted(NamedTuple):
  """B rows in the order of time: tokens, padding behind the last, and whose they are, see `Surroundings`.

  Attributes:
    own: whether the model said it.
    length: tokens of each. state: of the surroundings at the end.
  """

  tokens: Int[Array, "B T"]
  own: Bool[Array, "B T"]
  context: Int[Array, "B T"]
  length: Int[Array, " B"]
  state: Any


def context_mask(context: Int[Array, "B T"], position: Int[Array, "B T"]) -> Mask:
  """Causal, within each context alone, by the places there: how a whole trace is read at once. -1: padding."""
  return Mask.of_self(causal=True, segments=context, positions=position)


def act(
  model: LanguageModel, variables: Any, surroundings: Surroundings, state: Any, count: int, pad: int = 0
) -> Acted:
  """Up to `count` tokens of each row, the likeliest of the model's where nothing is put there. To be compiled.

  `state` has a leading axis of rows; the first token of a row must be put there. The model tells places by rotary or
  no positions, or has learned some for all that a context may have.
  """
  batch = len(jax.tree.leaves(state)[0])
  empty = jnp.full((batch, count), pad, jnp.int32)
  nowhere = jnp.full((batch, count), -1, jnp.int32)

  def step(carry):
    t, tokens, own, contexts, places, logits, cache, state = carry
    put_token, put, context, place = jax.vmap(surroundings.next)(state)
    ended = jax.vmap(surroundings.done)(state)
    token = jnp.where(put, put_token, jnp.argmax(logits, -1).astype(jnp.int32))
    token, context = jnp.where(ended, pad, token), jnp.where(ended, -1, context)
    write = lambda rows, column: jax.lax.dynamic_update_slice_in_dim(rows, column[:, None].astype(rows.dtype), t, 1)
    tokens, own = write(tokens, token), write(own, ~put & ~ended)
    contexts, places = write(contexts, context), write(places, place)
    mask = Mask(
      causal=True, key_segments=contexts, query_segments=context[:, None], key_positions=places,
      query_positions=place[:, None],
    )  # fmt: skip
    hidden, cache = model.apply(variables, token[:, None], mask, False, cache, method="hidden")
    logits = model.apply(variables, hidden[:, 0], method="logits")
    after = jax.vmap(surroundings.observe)(state, token, put)
    keep = lambda old, new: jnp.where(ended.reshape(-1, *[1] * (new.ndim - 1)), old, new)
    return t + 1, tokens, own, contexts, places, logits, cache, jax.tree.map(keep, state, after)

  going = lambda carry: (carry[0] < count) & ~jnp.all(jax.vmap(surroundings.done)(carry[-1]))
  logits = jnp.zeros((batch, model.vocabulary), jnp.float32)
  begun = (jnp.int32(0), empty, jnp.zeros((batch, count), bool), nowhere, jnp.zeros_like(empty), logits)
  carry = jax.lax.while_loop(going, step, (*begun, model.make_cache(batch, count), state))
  tokens, own, contexts = carry[1:4]
  return Acted(tokens, own, contexts, jnp.sum(contexts >= 0, 1).astype(jnp.int32), carry[-1])


def call_weights(distance: Int[Array, " T"]) -> Float[Array, " T"]:
  """What a token that stands `distance` behind a call counts, in all 1. Schick et al. 2023, sec. 4.1.

  w_t = max(0, 1 - t / 5) / sum_s max(0, 1 - s / 5);   nothing before the call
  """
  weights = jnp.where(distance >= 0, jnp.maximum(0.0, 1 - 0.2 * distance), 0.0)
  return weights / jnp.maximum(jnp.sum(weights), 1e-9)


def call_gain(
  without: Float[Array, " T"], unanswered: Float[Array, " T"], answered: Float[Array, " T"], weights: Float[Array, " T"]
) -> Float[Array, ""]:
  """How many nats a call saves of the tokens behind it, `weights` of them counted. Schick et al. 2023, sec. 2.

    min(L(no call), L(call without its result)) - L(call with its result),   L = -sum_t w_t log p_t

  The arguments are log-probabilities of these same tokens behind no call, an unanswered and an answered one. A call is
  kept where this is a threshold or more: the result must help, not the call alone.
  """
  nats = lambda logs: -jnp.sum(weights * logs)
  return jnp.minimum(nats(without), nats(unanswered)) - nats(answered)
