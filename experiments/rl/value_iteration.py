"""Value iteration and policy iteration: the exact optimum of FrozenLake, CliffWalking, Taxi or a maze.

  python -m experiments.rl.value_iteration --env=FrozenLake-v1

Closed form, in seconds: prints the figures, writes values.png and result.json. Sutton & Barto, chapter 4.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from experiments.rl._gridworld_report import Panel, write_action_values
from mlnotes.engine.errors import require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.study import run_study
from mlnotes.rl import dynamic_programming as dp
from mlnotes.rl.gymnasium_bridge import LONGEST_EPISODE
from mlnotes.rl.table import Table, read_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  workdir: str = field("", "directory of the picture and the numbers; empty: runs/rl.value_iteration-<env>", free=True)
  env: str = field("FrozenLake-v1", "FrozenLake-v1, FrozenLake8x8-v1, CliffWalking-v1, Taxi-v4 or DynaMaze")
  discount: float = field(0.99, "gamma, in (0, 1]")
  threshold: float = field(1e-6, "iteration stops where no value changes by more than this, > 0")

  def __post_init__(self):
    super().__post_init__()
    require(0 < self.discount <= 1, "discount", self.discount, "a number in (0, 1]")
    require(self.threshold > 0, "threshold", self.threshold, "a number above 0")


def solve(table: Table, config: Config) -> tuple[Panel, dict[str, float]]:
  """(optimal action values and the actions of an optimal policy, figures)."""
  dynamics, discount = table.dynamics, config.discount
  by_values = jax.jit(dp.value_iteration)(dynamics, discount, config.threshold)
  by_policies = jax.jit(dp.policy_iteration)(dynamics, discount)
  q = dp.compute_action_values(dynamics, by_values.values, discount)
  # With discount 1 the greedy policy of the values alone may never end an episode.
  policy = dp.greedy_policy(q) if discount < 1 else by_policies.policy
  limited = dp.evaluate_horizon(dynamics, policy, 1.0, table.time_limit or LONGEST_EPISODE)
  figures = {
    "start_value": dp.start_value(dynamics, by_values.values),
    "start_value_policy_iteration": dp.start_value(dynamics, by_policies.values),
    "start_value_of_greedy_policy": dp.start_value(dynamics, dp.evaluate_policy(dynamics, policy, discount)),
    "episode_return": dp.start_value(dynamics, limited),
    "value_iteration_sweeps": by_values.iterations,
    "policy_iterations": by_policies.iterations,
  }
  panel = Panel(np.asarray(q), np.asarray(policy).argmax(-1))
  return panel, {name: float(value) for name, value in figures.items()}


def main(config: Config) -> int:
  def study(directory: Path):
    table = read_table(config.env)
    optimum, figures = solve(table, config)
    write_action_values(table, {"optimum": optimum}, directory / "values.png")
    return figures

  return run_study("rl.value_iteration", config, study, f"-{config.env}")


if __name__ == "__main__":
  run(main, Config)
