"""Monte-Carlo control: every- or first-visit, epsilon-greedy. FrozenLake, Taxi, a maze.

  python -m experiments.rl.monte_carlo --env=FrozenLake-v1 --seeds=50
  python -m experiments.rl.monte_carlo --visits=every

On-policy; Sutton & Barto, section 5.4. It learns only when an episode ends: on CliffWalking, which has no time limit, a
policy that goes round in circles teaches it next to nothing, and it does not find the way.
"""

import dataclasses
from typing import ClassVar, Literal

from experiments.rl._tabular import TabularConfig, make_feeds as make_feeds, make_tabular_experiment, train_table
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run
from mlnotes.rl.tabular import RULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TabularConfig):
  """Defaults: the optimum of each environment, as far as the method finds it."""

  TUNED: ClassVar = {
    "FrozenLake-v1": dict(
      steps=600, epsilon=0.5, final_epsilon=0.0, learning_rate=1.0, step_size_power=0.7, tolerance=0.05
    ),
  }

  visits: Literal["every", "first"] = field("first", "which visits of an episode count")


def make(config: Config) -> Experiment:
  return make_tabular_experiment(RULES["monte_carlo"](first_visit=config.visits == "first"), config)


def main(config: Config) -> int:
  return train_table(make(config), config)


if __name__ == "__main__":
  run(main, Config)
