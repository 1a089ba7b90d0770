"""Figure 6.4 of Sutton & Barto: SARSA learns the safe way along the cliff, Q-learning the optimal one.

  python -m experiments.rl.cliff_figure

Writes cliff.png and result.json. All runs of a method are one program. As in the book: step size 0.5, epsilon 0.1, no
discount, values that start at 0. Expected SARSA is drawn too.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from mlnotes.engine.errors import require
from mlnotes.engine.experiment import root_key
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.study import run_study
from mlnotes.rl.interaction import learn_episodes
from mlnotes.rl.table import read_table
from mlnotes.rl.tabular import RULES, Settings

METHODS = {"sarsa": "SARSA", "expected_sarsa": "expected SARSA", "q_learning": "Q-learning"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  workdir: str = field("runs/rl.cliff_figure", "directory of the picture and the numbers", free=True)
  seed: int = field(0, "of the runs, >= 0")
  runs: int = field(500, "runs that the curves are averaged over")
  episodes: int = field(500, "episodes of each run")
  last: int = field(100, "episodes at the end whose mean is the figure")
  learning_rate: float = field(0.5, "step size, in (0, 1]")
  epsilon: float = field(0.1, "probability of a random action, in [0, 1]")

  def __post_init__(self):
    super().__post_init__()
    for name in ("runs", "episodes"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(1 <= self.last <= self.episodes, "last", self.last, "1 to --episodes")
    require(self.seed >= 0, "seed", self.seed, "0 or more")
    require(0 < self.learning_rate <= 1, "learning_rate", self.learning_rate, "a number in (0, 1]")
    require(0 <= self.epsilon <= 1, "epsilon", self.epsilon, "a number in [0, 1]")


def measure(config: Config) -> dict[str, np.ndarray]:
  """Sum of rewards (runs, episodes) of each method."""
  table = read_table("CliffWalking-v1")
  settings = Settings(config.learning_rate, 0.0, 1.0, config.epsilon, 0.0)
  keys = jax.random.split(root_key(config.seed), config.runs)

  def rewards(name):
    learn = lambda key: learn_episodes(table, RULES[name](), settings, key, config.episodes)[0]
    # Every method gets the same keys: what differs between the curves is the method.
    return np.asarray(jax.jit(jax.vmap(learn))(jax.random.clone(keys)))

  return {name: rewards(name) for name in METHODS}


def draw(rewards: dict[str, np.ndarray], path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(width=6.4, height=4.2)
  axis = axes[0, 0]
  for name, values in rewards.items():
    axis.plot(np.arange(1, values.shape[1] + 1), values.mean(0), linewidth=1, label=METHODS[name])
  axis.axhline(-13, color="black", linestyle="--", linewidth=1, label="shortest way, -13")
  axis.set_ylim(-100, -10)
  axis.set_title("CliffWalking: reward while learning (figure 6.4)")
  axis.set_xlabel("episode")
  axis.set_ylabel("sum of rewards, mean over runs")
  axis.legend(frameon=False)
  save_figure(figure, path)


def main(config: Config) -> int:
  def study(directory: Path):
    rewards = measure(config)
    draw(rewards, directory / "cliff.png")
    return {f"reward_{name}": values[:, -config.last :].mean(1) for name, values in rewards.items()}

  return run_study("rl.cliff_figure", config, study)


if __name__ == "__main__":
  run(main, Config)
