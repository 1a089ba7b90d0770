"""Lookahead around any optimizer."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mlnotes.optim.checks import require_at_least_one, require_share
from mlnotes.optim.precision import accumulate_in_float32


class LookaheadState(NamedTuple):
  """`count`: inner updates since the last synchronisation; `slow`: the slow weights."""

  count: Int[Array, ""]
  slow: chex.ArrayTree
  inner: optax.OptState


def lookahead(
  inner: optax.GradientTransformation,
  sync_period: int | Int[Array, ""] = 5,
  slow_step_size: float | Float[Array, ""] = 0.5,
) -> optax.GradientTransformationExtraArgs:
  """Every `sync_period` updates the slow weights step towards the fast ones, which restart from there.

    slow <- slow + slow_step_size (fast - slow);  fast <- slow       Zhang et al. 2019, algorithm 1

  The parameters that training sees are the fast weights, as in the paper; the slow ones, which the method returns, are
  in the state: `eval_params` takes them. Unlike `optax.lookahead` it leaves the parameters an ordinary pytree, so it
  wraps any optimizer of any experiment.

  Args:
    inner: the optimizer of the fast weights; its state is kept at a synchronisation.
    sync_period: k >= 1.
    slow_step_size: alpha in (0, 1].

  Raises ValueError for arguments out of range, unless they are traced.
  """
  require_at_least_one("sync_period", sync_period)
  require_share("slow_step_size", slow_step_size)
  inner = optax.with_extra_args_support(inner)

  def init(params):
    slow = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
    return LookaheadState(jnp.zeros([], jnp.int32), slow, inner.init(params))

  def update(updates, state, params=None, **extra):
    if params is None:
      raise ValueError(optax.NO_PARAMS_MSG)
    updates, inner_state = inner.update(updates, state.inner, params, **extra)
    count = state.count + 1
    synced = count == sync_period

    def move(slow, p, u):
      return jnp.where(synced, slow + slow_step_size * (p + u - slow) - p, u)

    updates = jax.tree.map(move, state.slow, params, updates)
    fast = jax.tree.map(lambda p, u: p + u, params, updates)
    # A loop of one turn or none. It works in place, where a `cond` copies what its branches pass through, and leaves
    # the line above to be one pass with the inner update and the addition that applies it.
    _, slow = jax.lax.while_loop(lambda carry: carry[0], lambda _: (jnp.zeros([], bool), fast), (synced, state.slow))
    return updates, LookaheadState(count % sync_period, slow, inner_state)

  return accumulate_in_float32(optax.GradientTransformationExtraArgs(init, update))


def eval_params(state: optax.OptState, params: chex.ArrayTree) -> chex.ArrayTree:
  """What an optimizer with this state returns: Lookahead's slow weights, in the parameters' dtype; else `params`."""
  is_lookahead = lambda node: isinstance(node, LookaheadState)
  for node in jax.tree.leaves(state, is_leaf=is_lookahead):
    if is_lookahead(node):
      return jax.tree.map(lambda slow, p: slow.astype(p.dtype), node.slow, params)
  return params
