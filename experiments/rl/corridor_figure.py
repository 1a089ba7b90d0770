"""Figures 13.1 and 13.2 of Sutton & Barto: REINFORCE, without and with a baseline, in the short corridor.

  python -m experiments.rl.corridor_figure

Writes corridor.png and result.json. All runs of all step sizes are one program.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.engine.errors import require
from mlnotes.engine.experiment import root_key
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.study import run_study
from mlnotes.rl.corridor import BEST_RIGHT, compute_start_value, init_parameters, make_corridor, run_reinforce

# (exponent of alpha_theta, exponent of alpha_w), both of 2; None: no baseline.
METHODS = ((-12, None), (-13, None), (-14, None), (-9, -6))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  workdir: str = field("runs/rl.corridor_figure", "directory of the picture and the numbers", free=True)
  seed: int = field(0, "of the runs, >= 0")
  runs: int = field(100, "runs that the curves are averaged over")
  episodes: int = field(1000, "episodes of each run")
  longest: int = field(1000, "steps after which an episode is cut")
  first_right: float = field(0.05, "probability of going right at first, in (0, 1)")

  def __post_init__(self):
    super().__post_init__()
    for name in ("runs", "episodes", "longest"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")
    require(0 < self.first_right < 1, "first_right", self.first_right, "a number in (0, 1)")


def measure(config: Config) -> np.ndarray:
  """Total reward (methods, runs, episodes)."""
  env, params = make_corridor(config.longest), init_parameters(config.first_right)
  theta_step = jnp.array([2.0**theta for theta, _ in METHODS])
  w_step = jnp.array([0.0 if w is None else 2.0**w for _, w in METHODS])
  # Every method gets the same keys: what differs between the curves is the method.
  keys = jax.random.split(root_key(config.seed), config.runs)
  one = lambda key, theta_step, w_step: run_reinforce(env, key, params, theta_step, w_step, config.episodes)[1]
  over_runs = jax.vmap(one, in_axes=(0, None, None))
  return np.asarray(jax.jit(jax.vmap(over_runs, in_axes=(None, 0, 0)))(keys, theta_step, w_step))


def label(theta: int, w: int | None) -> str:
  if w is None:
    return rf"REINFORCE, $\alpha=2^{{{theta}}}$"
  return rf"with baseline, $\alpha_\theta=2^{{{theta}}}$, $\alpha_w=2^{{{w}}}$"


def draw(means: np.ndarray, path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=10.0, height=3.8)
  episode = np.arange(1, means.shape[1] + 1)
  for axis, chosen, title in (
    (axes[0, 0], (2, 1, 0), "REINFORCE (figure 13.1)"),
    (axes[0, 1], (1, 3), "with a baseline (figure 13.2)"),
  ):
    for i in chosen:
      axis.plot(episode, means[i], linewidth=0.9, color=f"C{i}", label=label(*METHODS[i]))
    best = compute_start_value(BEST_RIGHT)
    axis.axhline(best, color="black", linestyle="--", linewidth=1, label=f"best policy, {best:.1f}")
    axis.set_ylim(-95, -5)
    axis.set_title(title)
    axis.set_xlabel("episode")
    axis.set_ylabel("total reward, mean over runs")
    axis.legend(frameon=False, loc="lower right")
  save_figure(figure, path)


def main(config: Config) -> int:
  def study(directory: Path):
    rewards = measure(config)
    draw(rewards.mean(1), directory / "corridor.png")
    windows = {"episodes_151_to_200": slice(150, 200), "last_100": slice(-100, None)}
    figures = {"best": compute_start_value(BEST_RIGHT)}
    for (theta, w), values in zip(METHODS, rewards):
      name = f"theta_2^{theta}" + ("" if w is None else f"_w_2^{w}")
      figures |= {f"{name}/{window}": values[:, part].mean(1) for window, part in windows.items()}
    return figures

  return run_study("rl.corridor_figure", config, study)


if __name__ == "__main__":
  run(main, Config)
