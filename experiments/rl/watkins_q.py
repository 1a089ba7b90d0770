"""Watkins's Q(lambda): eligibility traces cut at each exploring action. FrozenLake, CliffWalking, Taxi, a maze.

  python -m experiments.rl.watkins_q --env=FrozenLake-v1 --seeds=50
  python -m experiments.rl.watkins_q --env=CliffWalking-v1

Watkins 1989; Sutton & Barto, section 12.10.
"""

import dataclasses
from typing import ClassVar, Literal

from experiments.rl._tabular import TabularConfig, make_feeds as make_feeds, make_tabular_experiment, train_table
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run
from mlnotes.rl.tabular import RULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TabularConfig):
  """Defaults: the optimum of each environment, as far as the method finds it."""

  TUNED: ClassVar = {
    "FrozenLake-v1": dict(steps=600, epsilon=0.5, final_epsilon=0.2, learning_rate=1.0, step_size_power=0.7),
    "CliffWalking-v1": dict(steps=300, learning_rate=0.5, trace_decay=0.5, tolerance=0.01),
  }

  trace_decay: float = field(0.8, "lambda, in [0, 1]")
  traces: Literal["accumulating", "replacing"] = field("replacing", "what a second visit does to a trace")

  def __post_init__(self):
    super().__post_init__()
    require(0 <= self.trace_decay <= 1, "trace_decay", self.trace_decay, "a number in [0, 1]")


def make(config: Config) -> Experiment:
  return make_tabular_experiment(RULES["watkins_q"](replacing=config.traces == "replacing"), config)


def main(config: Config) -> int:
  return train_table(make(config), config)


if __name__ == "__main__":
  run(main, Config)
