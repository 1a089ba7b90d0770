"""Dyna-Q: Q-learning and planning with a learned model. FrozenLake, CliffWalking, Taxi, a maze.

  python -m experiments.rl.dyna_q --env=FrozenLake-v1 --seeds=50
  python -m experiments.rl.dyna_q --env=Taxi-v4

Sutton 1990; Sutton & Barto, section 8.2. The model keeps the last outcome of each action.
"""

import dataclasses
from typing import ClassVar

from experiments.rl._tabular import TabularConfig, make_feeds as make_feeds, make_tabular_experiment, train_table
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run
from mlnotes.rl.tabular import RULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TabularConfig):
  """Defaults: the optimum of each environment, as far as the method finds it."""

  TUNED: ClassVar = {
    "FrozenLake-v1": dict(
      steps=1000, epsilon=0.5, final_epsilon=0.2, learning_rate=1.0, step_size_power=0.8, planning_steps=1
    ),
    "FrozenLake8x8-v1": dict(
      steps=2500,
      epsilon=1.0,
      final_epsilon=0.5,
      learning_rate=1.0,
      step_size_power=0.7,
      planning_steps=1,
      tolerance=0.05,
    ),
    "CliffWalking-v1": dict(steps=20, learning_rate=0.5, tolerance=0.01),
    "Taxi-v4": dict(steps=200, learning_rate=0.5, tolerance=0.01),
  }

  planning_steps: int = field(5, "updates from the model after each step in the world")

  def __post_init__(self):
    super().__post_init__()
    require(self.planning_steps >= 0, "planning_steps", self.planning_steps, "0 or more")


def make(config: Config) -> Experiment:
  return make_tabular_experiment(RULES["dyna_q"](config.planning_steps), config)


def main(config: Config) -> int:
  return train_table(make(config), config)


if __name__ == "__main__":
  run(main, Config)
