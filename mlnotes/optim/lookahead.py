"""Lookahead around any optimizer."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from mlnotes.optim.precision import to_accumulator


class LookaheadState(NamedTuple):
  """`count`: inner updates since the last synchronisation; `slow`: the slow weights."""

  count: Int[Array, ""]
  slow: chex.ArrayTree
  inner: optax.OptState


def lookahead(
  inner: optax.GradientTransformation, sync_period: int = 5, slow_step_size: float = 0.5
) -> optax.GradientTransformationExtraArgs:
  """Every `sync_period` updates the slow weights step towards the fast ones, which restart from there.

    slow <- slow + slow_step_size (fast - slow);  fast <- slow       Zhang et al. 2019, algorithm 1

  The parameters that training sees are the fast weights, as in the paper; the slow ones are in the state. Unlike
  `optax.lookahead` it leaves the parameters an ordinary pytree, so it wraps any optimizer of any experiment.

  Args:
    inner: the optimizer of the fast weights; its state is kept at a synchronisation.
    sync_period: k >= 1.
    slow_step_size: alpha in (0, 1].
  """
  if sync_period < 1:
    raise ValueError(f"sync_period must be at least 1, found {sync_period}.")
  if not 0 < slow_step_size <= 1:
    raise ValueError(f"slow_step_size must lie in (0, 1], found {slow_step_size}.")
  inner = optax.with_extra_args_support(inner)

  def init(params):
    slow = jax.tree.map(lambda p: jnp.array(to_accumulator(p), copy=True), params)
    return LookaheadState(jnp.zeros([], jnp.int32), slow, inner.init(params))

  def update(updates, state, params=None, **extra):
    if params is None:
      raise ValueError(optax.NO_PARAMS_MSG)
    updates, inner_state = inner.update(updates, state.inner, params, **extra)
    count = state.count + 1
    synced = count == sync_period

    def move(slow, p, u):
      p, u = to_accumulator(p), to_accumulator(u)
      return jnp.where(synced, slow + slow_step_size * (p + u - slow) - p, u)

    updates = jax.tree.map(move, state.slow, params, updates)
    fast = jax.tree.map(lambda p, u: to_accumulator(p) + u, params, updates)
    # A loop of one turn or none. It works in place, where a `cond` copies what its branches pass through, and leaves
    # the line above to be one pass with the inner update and the addition that applies it.
    _, slow = jax.lax.while_loop(lambda carry: carry[0], lambda _: (jnp.zeros([], bool), fast), (synced, state.slow))
    return updates, LookaheadState(count % sync_period, slow, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)
