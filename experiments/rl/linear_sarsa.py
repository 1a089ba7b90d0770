"""Linear function approximation with tile coding: semi-gradient SARSA, n-step SARSA, SARSA(lambda). Mountain Car.

  python -m experiments.rl.linear_sarsa --seeds=10
  python -m experiments.rl.linear_sarsa --traces=none --n=4

Sutton & Barto, chapters 10 and 12. Weights start at zero, above every true value where each step costs 1: that alone
makes the agent explore. One environment per seed; one update is `--steps_per_update` steps in it.
"""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from experiments.rl._agent import RLConfig, as_policy, make_evaluate, make_feeds as make_feeds, make_report, train_agent
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.rl.episodes import finished_episodes, require_discrete
from mlnotes.rl.linear import Agent, Learner, init_agent, learn, make_n_step_sarsa, make_sarsa_lambda
from mlnotes.rl.registry import make_env
from mlnotes.rl.tiles import Tiling, compute_linear_value, make_tiling, observation_bounds, tile_indices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RLConfig):
  """Defaults: MountainCar-v0 solved in its 200-step episodes."""

  # Six dimensions: coarser grids, and few enough weights for their traces to be updated in a tenth of a millisecond.
  TUNED: ClassVar = {"Acrobot-v1": dict(tiles_per_dim=4, max_features=2**14)}

  env: str = "MountainCar-v0"
  discount: float = 1.0
  steps: int = 200
  eval_episodes: int = 100
  gym_episodes: int = 100
  log_every: int = 5
  eval_every: int = 20
  checkpoint_every: int = 100

  learning_rate: float = field(0.3, "alpha, > 0; each tile learns with alpha / num_tilings")
  schedule: Literal["constant", "linear"] = field("linear", "of the learning rate; linear: down to 0 over the run")
  traces: Literal["none", "accumulating", "replacing", "dutch"] = field(
    "replacing", "eligibility traces; none: n-step SARSA"
  )
  trace_decay: float = field(0.9, "lambda, in [0, 1]; without effect where --traces=none")
  n: int = field(1, "steps of n-step SARSA; more than 1 needs --traces=none")
  epsilon: float = field(0.0, "share of random actions, in [0, 1]")
  num_tilings: int = field(16, "grids of tiles")
  tiles_per_dim: int = field(8, "tiles per dimension in each grid")
  max_features: int = field(2**17, "weights per action; tiles beyond that number are hashed and share them")
  steps_per_update: int = field(1000, "environment steps in one update")

  @property
  def env_steps_per_update(self) -> int:
    return self.steps_per_update

  def __post_init__(self):
    super().__post_init__()
    require(self.num_tilings <= 1024, "num_tilings", self.num_tilings, "at most 1024")
    for name in ("n", "num_tilings", "tiles_per_dim", "steps_per_update"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("trace_decay", "epsilon"):
      require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number in [0, 1]")
    require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
    least = self.num_tilings
    require(self.max_features >= least, "max_features", self.max_features, f"{least}, one per tiling, or more")
    require(self.n == 1 or self.traces == "none", "n", self.n, "1, or --traces=none")

  def idle_flags(self):
    idle = {"precision": "features and weights are float32"}
    if self.traces == "none":
      idle["trace_decay"] = "with --traces=none there are no traces"
    else:
      idle["n"] = "it is for --traces=none"
      if 0 in (self.trace_decay, self.discount):
        idle["traces"] = "nothing of a trace is left at the next step"
    tiling = make_tiling_of(self)
    if tiling.num_tiles <= self.max_features:
      idle["max_features"] = f"each of the {tiling.num_tiles} tiles has a weight of its own"
    return super().idle_flags() | idle


def make_tiling_of(config: Config) -> Tiling:
  bounds = observation_bounds(config.env)
  return make_tiling(*bounds, config.num_tilings, config.tiles_per_dim, config.max_features)


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  agent: Agent
  hparams: dict[str, Float[Array, ""]]

  @property
  def params(self) -> Float[Array, "..."]:
    """What must stay finite."""
    return self.agent.memory.weights


def make_learner(config: Config, tiling: Tiling, num_actions: int) -> Learner:
  if config.traces == "none":
    return make_n_step_sarsa(tiling, num_actions, config.n)
  return make_sarsa_lambda(tiling, num_actions, config.traces)


def draw_cost_to_go(tiling: Tiling, weights, path: Path) -> None:
  """A map of -max_a q(s, a) over the two observations: the steps that are still expected (figure 10.1 of the book)."""
  from mlnotes.engine.plot import new_figure, save_figure

  axes_of_box = [jnp.linspace(low, high, 150) for low, high in zip(tiling.low, tiling.high)]
  grid = jnp.stack(jnp.meshgrid(*axes_of_box), axis=-1)
  cost = lambda x: -jnp.max(compute_linear_value(weights, tile_indices(tiling, x)))
  figure, axes = new_figure(width=5.5, height=4.0)
  extent = (tiling.low[0], tiling.high[0], tiling.low[1], tiling.high[1])
  picture = axes[0, 0].imshow(jax.jit(jax.vmap(jax.vmap(cost)))(grid), origin="lower", extent=extent, aspect="auto")
  axes[0, 0].set(xlabel="position", ylabel="velocity", title="steps to the goal, as learnt")
  figure.colorbar(picture)
  save_figure(figure, path)


def make(config: Config) -> Experiment:
  env = make_env(config.env)
  tiling = make_tiling_of(config)
  learner = make_learner(config, tiling, require_discrete(env))
  names = ("learning_rate", "trace_decay", "epsilon", "discount")

  def init(key, batch) -> State:
    hparams = {name: jnp.float32(getattr(config, name)) for name in names}
    agent = init_agent(env, tiling, learner, stream_key(key, "init"), hparams["epsilon"])
    return State(jnp.zeros([], jnp.int32), key, agent, hparams)

  def step(state: State, batch):
    h = state.hparams
    left = 1 - state.step / config.steps if config.schedule == "linear" else 1.0
    agent, record = learn(
      env, tiling, learner, state.agent, stream_key(state.key, "learn", state.step), config.steps_per_update,
      step_size=h["learning_rate"] * left / config.num_tilings,
      trace_decay=h["trace_decay"], epsilon=h["epsilon"], discount=h["discount"],
    )  # fmt: skip
    metrics = {
      "squared_td_error": jnp.mean(record.td_error**2),
      **finished_episodes(record.last, record.episode_return, record.episode_length),
    }
    return state._replace(step=state.step + 1, agent=agent), metrics

  def act(state: State, observation):
    return jnp.argmax(compute_linear_value(state.agent.memory.weights, tile_indices(tiling, observation)))

  def report(state: State, directory: Path) -> dict[str, float]:
    if len(tiling.low) == 2:
      draw_cost_to_go(tiling, state.agent.memory.weights, directory / "cost_to_go.png")
    return make_report(env, act, config)(state, directory)

  return Experiment(init, step, make_evaluate(env, act, config), report, model=as_policy(act))


def main(config: Config) -> int:
  return train_agent(make(config), config)


if __name__ == "__main__":
  run(main, Config)
