"""What DQN, DDPG and SAC share: gradient steps once there is enough data, and targets."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from mlnotes.engine.experiment import Mean
from mlnotes.rl.replay import Replay


def can_learn(replay: Replay, learning_starts: int) -> Bool[Array, ""]:
  """Whether the replay holds enough to learn from: at least one transition in any case."""
  return replay.size >= max(learning_starts, 1)


def learn(
  gradient_step: Callable[[PyTree, Any], tuple[PyTree, Mapping[str, Float[Array, ""]]]],
  learner: PyTree,
  inputs: PyTree,
  ready: Bool[Array, ""],
) -> tuple[PyTree, dict[str, Mean]]:
  """One `gradient_step(learner, input)` after another for the leading axis of `inputs`, or none until `ready`.

  Only `learner` (networks and optimizer) passes through the condition, never the replay: with several seeds a
  condition computes both sides and selects.
  """
  scan = lambda learner: jax.lax.scan(gradient_step, learner, inputs)
  metrics = jax.eval_shape(scan, learner)[1]
  wait = lambda learner: (learner, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), metrics))
  learner, metrics = jax.lax.cond(ready, scan, wait, learner)
  steps = jax.tree.leaves(inputs)[0].shape[0]
  return learner, {name: Mean(jnp.sum(values), ready * jnp.float32(steps)) for name, values in metrics.items()}


def update_target(
  target: PyTree,
  params: PyTree,
  tau: Float[Array, ""] | float,
  count: Int[Array, ""] | int = 0,
  period: Int[Array, ""] | int = 1,
) -> PyTree:
  """target <- (1 - tau) target + tau params at every `period`-th gradient step; `count` counts them from 0.

  tau 1 copies (Mnih et al. 2015); tau 0.005 with period 1 is the moving average of Lillicrap et al. 2016.
  """
  due = (count + 1) % period == 0
  return jax.tree.map(lambda old, new: jnp.where(due, (1 - tau) * old + tau * new, old), target, params)
