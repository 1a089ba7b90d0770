"""Q-learning: off-policy temporal differences. FrozenLake, CliffWalking, Taxi, a maze.

  python -m experiments.rl.q_learning --env=FrozenLake-v1 --seeds=50
  python -m experiments.rl.q_learning --env=Taxi-v4

Watkins 1989; Sutton & Barto, section 6.5.
"""

import dataclasses
from typing import ClassVar

from experiments.rl._tabular import TabularConfig, make_feeds as make_feeds, make_tabular_experiment, train_table
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import run
from mlnotes.rl.tabular import RULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TabularConfig):
  """Defaults: the optimum of each environment, as far as the method finds it."""

  TUNED: ClassVar = {
    "FrozenLake-v1": dict(steps=1000, epsilon=0.5, final_epsilon=0.2, learning_rate=1.0, step_size_power=0.6),
    "FrozenLake8x8-v1": dict(
      steps=4000, epsilon=1.0, final_epsilon=0.5, learning_rate=1.0, step_size_power=0.65, tolerance=0.05
    ),
    "CliffWalking-v1": dict(steps=50, learning_rate=0.5, tolerance=0.01),
    "Taxi-v4": dict(steps=600, learning_rate=0.5, tolerance=0.01),
  }


def make(config: Config) -> Experiment:
  return make_tabular_experiment(RULES["q_learning"](), config)


def main(config: Config) -> int:
  return train_table(make(config), config)


if __name__ == "__main__":
  run(main, Config)
