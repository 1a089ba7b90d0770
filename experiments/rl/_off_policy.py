"""What DQN, DDPG and SAC share: their flags."""

import dataclasses

import optax

from experiments.rl._agent import RLConfig
from mlnotes.engine.errors import require
from mlnotes.engine.flags import field
from mlnotes.optim import ScheduleName
from mlnotes.optim.flags import OptimConfig, make_optimizer


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
