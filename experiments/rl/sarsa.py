"""SARSA: on-policy temporal differences, epsilon falling to 0. FrozenLake, CliffWalking, Taxi, a maze.

  python -m experiments.rl.sarsa --env=FrozenLake-v1 --seeds=50
  python -m experiments.rl.sarsa --env=Taxi-v4

Rummery & Niranjan 1994; Sutton & Barto, section 6.4.
"""

import dataclasses
from typing import ClassVar

from experiments.rl._tabular import TabularConfig, make_feeds as make_feeds, make_tabular_experiment, train_table
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import run
from mlnotes.rl.tabular import RULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TabularConfig):
  """Defaults: the optimum of each environment.

  Along the cliff the shortest way is the best on-policy only below an epsilon of some 0.006, and one fall must not move
  a value by more than the two steps that a detour costs: hence the small epsilon and step size there. Values that start
  at 0, above all true ones, see to exploration.
  """

  TUNED: ClassVar = {
    "FrozenLake-v1": dict(steps=1000, final_epsilon=0.0, initial_value=1.0, learning_rate=1.0, step_size_power=0.6),
    "FrozenLake8x8-v1": dict(
      steps=3000, final_epsilon=0.0, initial_value=1.0, learning_rate=1.0, step_size_power=0.6, tolerance=0.05
    ),
    "CliffWalking-v1": dict(
      steps=1000, epsilon=0.002, final_epsilon=0.0, learning_rate=0.01, exploration_fraction=0.8, tolerance=0.01
    ),
    "Taxi-v4": dict(steps=800, final_epsilon=0.0, learning_rate=0.1, exploration_fraction=0.9, tolerance=0.01),
  }


def make(config: Config) -> Experiment:
  return make_tabular_experiment(RULES["sarsa"](), config)


def main(config: Config) -> int:
  return train_table(make(config), config)


if __name__ == "__main__":
  run(main, Config)
