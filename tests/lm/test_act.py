"""Acting: the loop of a model and its surroundings against readings of the whole, and which calls help."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.engine.experiment import root_key
from mlnotes.lm import Surroundings, act, call_gain, call_weights, context_mask, make_llama

CONTEXT = jnp.array([0, 0, 0, 1, 1, 1, 0, 0, 2, 2, 2, 0, 0, 0])
PUT = jnp.array([1, 1, 0, 1, 1, 0, 1, 0, 1, 0, 0, 1, 0, 0]) > 0
PLACE = jnp.array([0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7])


class Scripted(NamedTuple):
  time: jax.Array
  tokens: jax.Array
  last: jax.Array


def test_acting_token_by_token_is_reading_the_whole():
  """Each own word is the likeliest by one reading of the row, contexts apart; rows end by themselves."""
  module = make_llama(12, 14, 2, 2, 8)
  tokens = jax.random.randint(root_key(0), (3, 14), 1, 12)
  variables = jax.jit(module.init)(root_key(1), tokens)
  variables = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, variables)
  surroundings = Surroundings(
    next=lambda s: (s.tokens[s.time], PUT[s.time], CONTEXT[s.time], PLACE[s.time]),
    observe=lambda s, token, put: s._replace(time=s.time + 1),
    done=lambda s: s.time >= s.last,
  )
  state = Scripted(jnp.zeros(3, jnp.int32), tokens, jnp.array([14, 9, 11]))
  found = jax.jit(lambda variables: act(module, variables, surroundings, state, 14))(variables)
  np.testing.assert_array_equal(found.length, [14, 9, 11])
  for i, length in enumerate((14, 9, 11)):
    np.testing.assert_array_equal(found.own[i, :length], ~PUT[:length])
    assert not found.own[i, length:].any() and not found.tokens[i, length:].any()
    np.testing.assert_array_equal(
      jnp.where(PUT[:length], found.tokens[i, :length], 0), jnp.where(PUT, tokens[i], 0)[:length]
    )
  mask = context_mask(jnp.broadcast_to(CONTEXT, (3, 14)), jnp.broadcast_to(PLACE, (3, 14)))
  logits = jax.jit(lambda tokens: module.apply(variables, tokens, mask))(found.tokens)
  expected = jnp.argmax(logits[:, :-1], -1)
  own = np.asarray(found.own[:, 1:])
  np.testing.assert_array_equal(np.asarray(found.tokens[:, 1:])[own], np.asarray(expected)[own])
  alone = jax.jit(lambda tokens: module.apply(variables, tokens))(found.tokens)
  assert np.any(np.asarray(jnp.argmax(alone[:, :-1], -1))[own] != np.asarray(expected)[own])


def test_a_call_is_kept_for_what_its_result_saves():
  """Weights 1, .8, .6, .4, .2 of a sum of 3 behind the call."""
  weights = call_weights(jnp.arange(8) - 2)
  np.testing.assert_allclose(weights, np.array([0, 0, 5, 4, 3, 2, 1, 0]) / 15, rtol=1e-6)
  without, unanswered, answered = (jnp.full(8, x) for x in (-2.0, -1.5, -0.5))
  np.testing.assert_allclose(call_gain(without, unanswered, answered, weights), 1.0, rtol=1e-6)
  np.testing.assert_allclose(call_gain(unanswered, without, answered, weights), 1.0, rtol=1e-6)
  assert call_gain(answered, unanswered, without, weights) < 0  # one that hurts
  first = jnp.zeros(8).at[2].set(3.0)
  np.testing.assert_allclose(call_gain(without, without, without + first, weights), 1.0, rtol=1e-6)
