"""What DQN, DDPG and SAC share: their flags, gradient steps once there is enough data, and targets."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from experiments.rl._agent import RLConfig
from mlnotes.engine.experiment import Mean
from mlnotes.engine.flags import field, require
from mlnotes.optim import OptimConfig, ScheduleName, make_optimizer
from mlnotes.rl.replay import Replay


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(OptimConfig, RLConfig):
  """The flags of methods that learn from a replay.

  One update acts `train_every` times in each of `num_envs` environments and then takes `gradient_steps` gradient steps.
  """

  schedule: ScheduleName = "linear"
  num_envs: int = field(8, "environments that act side by side, per seed")
  train_every: int = field(8, "steps of each environment between two updates")
  gradient_steps: int = field(16, "gradient steps per update")
  batch_size: int = field(64, "transitions per gradient step")
  replay_capacity: int = field(100_000, "transitions that the replay holds")
  learning_starts: int = field(
    1000, "transitions in the replay before the first gradient step, at which --schedule begins"
  )
  tau: float = field(
    0.005, "share of the trained parameters that the target takes over at a time, in (0, 1]; 1: a copy"
  )
  hidden: tuple[int, ...] = field((128, 128), "widths of the hidden layers")

  def __post_init__(self):
    super().__post_init__()
    for name in ("num_envs", "train_every", "gradient_steps", "batch_size"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    least = self.env_steps_per_update
    require(self.replay_capacity >= least, "replay_capacity", self.replay_capacity, f"{least} (one update) or more")
    known = f"0 to {self.replay_capacity}, the replay's capacity"
    require(0 <= self.learning_starts <= self.replay_capacity, "learning_starts", self.learning_starts, known)
    require(0 < self.tau <= 1, "tau", self.tau, "a number in (0, 1]")
    require(min(self.hidden, default=0) >= 1, "hidden", self.hidden, "one or more widths of 1 or more")
    most = self.learning_updates // 2
    why = f"at most {most}, half of the {self.learning_updates} updates that take gradient steps"
    require(self.warmup_steps <= most, "warmup_steps", self.warmup_steps, why)

  @property
  def env_steps_per_update(self) -> int:
    return self.num_envs * self.train_every

  @property
  def waiting_updates(self) -> int:
    """Updates before the first that takes gradient steps, as `can_learn` says after each."""
    return -(-max(self.learning_starts, 1) // self.env_steps_per_update) - 1

  @property
  def learning_updates(self) -> int:
    """Updates that take gradient steps."""
    return max(self.steps - self.waiting_updates, 0)

  def make_optimizer(self) -> optax.GradientTransformation:
    """The optimizer, whose schedule runs over the updates that take gradient steps: it ends with the run."""
    return make_optimizer(self, max(self.learning_updates, 1), self.gradient_steps)

  def idle_flags(self):
    if self.learning_updates:
      return super().idle_flags()
    collected = self.steps * self.env_steps_per_update
    why = f"the {collected} transitions of {self.steps} updates are fewer than --learning_starts={self.learning_starts}"
    names = ("learning_rate", "optimizer", "schedule", "gradient_steps", "batch_size", "tau", "steps")
    return super().idle_flags() | dict.fromkeys(names, f"nothing is learned, as {why}")


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
