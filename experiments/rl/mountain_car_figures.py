"""Figures 10.2 and 12.10 of Sutton & Barto: SARSA and SARSA(lambda) with tile coding on Mountain Car.

  python -m experiments.rl.mountain_car_figures

Writes learning_curves.png, trace_decay.png and result.json. All runs of a curve are one program; episodes have no time
limit but a large one. The standard Mountain Car task: start in [-0.6, -0.4) at rest, -1 per step, undiscounted.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.engine.errors import require
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.study import run_study
from mlnotes.rl.gymnax_env import make_gymnax_env
from mlnotes.rl.linear import Learner, init_agent, learn, make_n_step_sarsa, make_sarsa_lambda
from mlnotes.rl.tiles import Tiling, make_tiling, observation_bounds

NAME = "MountainCar-v0"
CHUNK = 500  # steps per call of the program
ALPHAS = (0.1, 0.2, 0.5)  # times the number of tilings, of figure 10.2
CURVE_EPISODES = 500
TRACE_DECAYS = (0.0, 0.68, 0.84, 0.92, 0.96, 0.98, 0.99)
TRACE_ALPHAS = (0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.7)
TRACE_EPISODES = 50
LONGEST_MEAN = 400  # steps per episode after which a setting is given up and left out of the picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  workdir: str = field("runs/rl.mountain_car_figures", "directory of the pictures and the numbers", free=True)
  seed: int = field(0, "of the runs, >= 0")
  runs: int = field(100, "runs that the curves of figure 10.2 are averaged over")
  trace_runs: int = field(30, "runs per point of figure 12.10")
  num_tilings: int = field(8, "grids of tiles")
  tiles_per_dim: int = field(8, "tiles per dimension in each grid")
  longest: int = field(5000, "steps after which an episode is cut")

  def __post_init__(self):
    super().__post_init__()
    for name in ("runs", "trace_runs", "num_tilings", "tiles_per_dim", "longest"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")


def make_tiling_of(config: Config) -> Tiling:
  return make_tiling(*observation_bounds(NAME), config.num_tilings, config.tiles_per_dim)


def measure_episodes(
  config: Config, learner: Learner, alpha: np.ndarray, trace_decay: np.ndarray, num_episodes: int, most_steps: int
) -> np.ndarray:
  """Steps of each episode (runs, num_episodes), one run per alpha; infinite for what `most_steps` did not suffice."""
  env = make_gymnax_env(NAME, max_steps_in_episode=config.longest)
  tiling = make_tiling_of(config)
  root = root_key(config.seed)

  def keys(name, chunk):
    return jax.random.split(stream_key(root, name, chunk), len(alpha))

  def advance(agent, key, step_size, trace_decay):
    return learn(
      env, tiling, learner, agent, key, CHUNK, step_size=step_size, trace_decay=trace_decay, epsilon=0.0, discount=1.0
    )

  agents = jax.jit(jax.vmap(lambda key: init_agent(env, tiling, learner, key, 0.0)))(keys("init", 0))
  advance = jax.jit(jax.vmap(advance), donate_argnums=0)
  step_size, trace_decay = jnp.asarray(alpha / config.num_tilings), jnp.asarray(trace_decay)
  steps = np.full((len(alpha), num_episodes), np.inf)
  done = np.zeros(len(alpha), int)
  for chunk in range(-(-most_steps // CHUNK)):
    agents, record = advance(agents, keys("learn", chunk), step_size, trace_decay)
    last, length = np.asarray(record.last), np.asarray(record.episode_length)
    for i in np.flatnonzero(done < num_episodes):
      found = length[i, last[i]][: num_episodes - done[i]]
      steps[i, done[i] : done[i] + len(found)] = found
      done[i] += len(found)
    if done.min() == num_episodes:
      break
  return steps


def measure_curves(config: Config) -> np.ndarray:
  """Figure 10.2: (alphas, runs, episodes)."""
  learner = make_n_step_sarsa(make_tiling_of(config), 3, 1)
  alpha = np.repeat(np.float32(ALPHAS), config.runs)
  most = CURVE_EPISODES * config.longest
  steps = measure_episodes(config, learner, alpha, np.zeros_like(alpha), CURVE_EPISODES, most)
  return steps.reshape(len(ALPHAS), config.runs, -1)


def measure_trace_decays(config: Config) -> np.ndarray:
  """Figure 12.10: mean steps of the first 50 episodes, (trace decays, alphas, runs)."""
  learner = make_sarsa_lambda(make_tiling_of(config), 3, "replacing")
  alpha = np.repeat(np.float32(TRACE_ALPHAS), config.trace_runs)
  rows = []
  # One lambda after the other: their weights and traces together would not fit the processor's caches.
  for trace_decay in TRACE_DECAYS:
    decays = np.full_like(alpha, trace_decay)
    steps = measure_episodes(config, learner, alpha, decays, TRACE_EPISODES, LONGEST_MEAN * TRACE_EPISODES)
    rows.append(steps.mean(1).reshape(len(TRACE_ALPHAS), config.trace_runs))
    print(f"lambda {trace_decay}: best {rows[-1].mean(1).min():.1f} steps per episode")
  return np.stack(rows)


def draw_curves(steps: np.ndarray, path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(width=6.0, height=4.0)
  axis = axes[0, 0]
  for alpha, of_runs in zip(ALPHAS, steps):
    axis.plot(np.arange(1, CURVE_EPISODES + 1), of_runs.mean(0), linewidth=1, label=rf"$\alpha={alpha}/8$")
  axis.set_yscale("log")
  axis.set_ylim(100, 1000)
  axis.set_yticks([100, 200, 400, 1000], ["100", "200", "400", "1000"])
  axis.minorticks_off()
  axis.set_title("Mountain Car, semi-gradient SARSA (figure 10.2)")
  axis.set_xlabel("episode")
  axis.set_ylabel(f"steps per episode, mean of {steps.shape[1]} runs")
  axis.legend(frameon=False)
  save_figure(figure, path)


def draw_trace_decays(steps: np.ndarray, path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(width=6.0, height=4.5)
  axis = axes[0, 0]
  for i, (trace_decay, means) in enumerate(zip(TRACE_DECAYS, steps.mean(2))):
    known = np.isfinite(means)
    colour = f"C{i}"
    axis.plot(np.array(TRACE_ALPHAS)[known], means[known], "o-", markersize=3, linewidth=1, color=colour,
              label=rf"$\lambda={trace_decay:g}$")  # fmt: skip
  axis.set_ylim(150, 320)
  axis.set_title(r"Mountain Car, SARSA($\lambda$), replacing traces (figure 12.10)")
  axis.set_xlabel(r"$\alpha$ times the number of tilings")
  axis.set_ylabel(f"steps per episode, first {TRACE_EPISODES}, mean of {steps.shape[2]} runs")
  axis.legend(frameon=False, ncols=2, loc="upper right")
  save_figure(figure, path)


def main(config: Config) -> int:
  def study(directory: Path):
    curves = measure_curves(config)
    draw_curves(curves, directory / "learning_curves.png")
    figures = {f"alpha_{alpha}/episodes_401_to_500": runs[:, 400:].mean(1) for alpha, runs in zip(ALPHAS, curves)}
    decays = measure_trace_decays(config)
    draw_trace_decays(decays, directory / "trace_decay.png")
    for trace_decay, of_alphas in zip(TRACE_DECAYS, decays):
      best = int(np.argmin(of_alphas.mean(1)))
      figures[f"lambda_{trace_decay:g}/best_alpha"] = TRACE_ALPHAS[best]
      figures[f"lambda_{trace_decay:g}/first_50_episodes"] = of_alphas[best]
    return figures

  return run_study("rl.mountain_car_figures", config, study)


if __name__ == "__main__":
  run(main, Config)
