"""Expected SARSA: the mean over the policy's next action. FrozenLake, CliffWalking, Taxi, a maze.

  python -m experiments.rl.expected_sarsa --env=FrozenLake-v1 --seeds=50
  python -m experiments.rl.expected_sarsa --env=Taxi-v4

van Seijen et al. 2009; Sutton & Barto, section 6.6.
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
    "FrozenLake-v1": dict(steps=1000, final_epsilon=0.0, initial_value=1.0, learning_rate=1.0, step_size_power=0.6),
    "FrozenLake8x8-v1": dict(
      steps=3000, final_epsilon=0.0, initial_value=1.0, learning_rate=1.0, step_size_power=0.6, tolerance=0.05
    ),
    "CliffWalking-v1": dict(
      steps=200, epsilon=0.005, final_epsilon=0.0, learning_rate=1.0, exploration_fraction=0.5, tolerance=0.01
    ),
    "Taxi-v4": dict(steps=400, learning_rate=0.5, tolerance=0.01),
  }


def make(config: Config) -> Experiment:
  return make_tabular_experiment(RULES["expected_sarsa"](), config)


def main(config: Config) -> int:
  return train_table(make(config), config)


if __name__ == "__main__":
  run(main, Config)
