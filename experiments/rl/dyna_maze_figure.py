"""Figure 8.2 of Sutton & Barto: planning with a learned model finds the way out of a maze in few episodes.

  python -m experiments.rl.dyna_maze_figure

Writes dyna_maze.png and result.json. All runs are one program per number of planning steps. As in the book: step size
0.1, epsilon 0.1, discount 0.95, values that start at 0; the first episode is left out of the figures.
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
from mlnotes.rl.table import make_dyna_maze
from mlnotes.rl.tabular import RULES, Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  workdir: str = field("runs/rl.dyna_maze_figure", "directory of the picture and the numbers", free=True)
  seed: int = field(0, "of the runs, >= 0")
  runs: int = field(100, "runs that the curves are averaged over")
  episodes: int = field(50, "episodes of each run, 2 or more")
  planning_steps: tuple[int, ...] = field((0, 5, 50), "updates from the model per step, one curve each")
  learning_rate: float = field(0.1, "step size, in (0, 1]")
  epsilon: float = field(0.1, "probability of a random action, in [0, 1]")
  discount: float = field(0.95, "gamma, in [0, 1]")

  def __post_init__(self):
    super().__post_init__()
    require(self.runs >= 1, "runs", self.runs, "1 or more")
    require(self.episodes >= 2, "episodes", self.episodes, "2 or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")
    require(min(self.planning_steps, default=-1) >= 0, "planning_steps", self.planning_steps, "0 or more each")
    require(0 < self.learning_rate <= 1, "learning_rate", self.learning_rate, "a number in (0, 1]")
    for name in ("epsilon", "discount"):
      require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number in [0, 1]")


def measure(config: Config) -> dict[int, np.ndarray]:
  """Steps (runs, episodes) for each number of planning steps."""
  table = make_dyna_maze()
  settings = Settings(config.learning_rate, 0.0, config.discount, config.epsilon, 0.0)
  keys = jax.random.split(root_key(config.seed), config.runs)

  def steps(n):
    learn = lambda key: learn_episodes(table, RULES["dyna_q"](n), settings, key, config.episodes)[1]
    # Every method gets the same keys: what differs between the curves is the method.
    return np.asarray(jax.jit(jax.vmap(learn))(jax.random.clone(keys)))

  return {n: steps(n) for n in config.planning_steps}


def draw(steps: dict[int, np.ndarray], path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(width=6.4, height=4.2)
  axis = axes[0, 0]
  for n, values in steps.items():
    label = f"{n} planning steps" if n else "0 planning steps (Q-learning)"
    axis.plot(np.arange(2, values.shape[1] + 1), values[:, 1:].mean(0), linewidth=1.2, label=label)
  axis.axhline(14, color="black", linestyle="--", linewidth=1, label="shortest way, 14")
  axis.set_ylim(0, 800)
  axis.set_title("Dyna maze: steps per episode (figure 8.2)")
  axis.set_xlabel("episode")
  axis.set_ylabel("steps, mean over runs")
  axis.legend(frameon=False)
  save_figure(figure, path)


def main(config: Config) -> int:
  def study(directory: Path):
    steps = measure(config)
    draw(steps, directory / "dyna_maze.png")
    return {f"steps_per_episode_n{n}": values[:, 1:].mean(1) for n, values in steps.items()}

  return run_study("rl.dyna_maze_figure", config, study)


if __name__ == "__main__":
  run(main, Config)
