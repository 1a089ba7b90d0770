"""What every experiment of this chapter shares: its flags, evaluation on the device, the report.

env = make_env(config.env)
act = lambda state, observation: ...          # the greedy action of one environment
return Experiment(init, step, make_evaluate(env, act, config), make_report(env, act, config))
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from experiments.rl._animation import animate_policy, can_draw, why_not_drawn
from mlnotes.data import Feeds
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, State, stream_key
from mlnotes.engine.flags import field
from mlnotes.engine.layout import Layout
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.progress import report_step, warn
from mlnotes.optim import eval_params
from mlnotes.rl.env import Environment
from mlnotes.rl.episodes import (
  run_episodes,
)
from mlnotes.rl.gymnasium_bridge import has_gymnasium, run_gymnasium_episodes, solved_at
from mlnotes.rl.registry import make_env


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLConfig(LoopConfig):
  """The flags of every experiment that learns by acting.

  `TUNED` holds, per environment, the settings that take the place of the defaults where they are not given.
  """

  TUNED: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
  UNIT: ClassVar[str] = "env_steps"
  fills_cores: ClassVar[bool] = False

  env: str = field(
    "CartPole-v1",
    "environment: a name of gymnax, a table of Gymnasium's such as FrozenLake-v1, gymnasium:NAME or module:function, "
    "which makes one that is drawn if its render_mode is rgb_array; "
    "some bring settings of their own in place of the defaults, see config.json",
  )
  discount: float = field(0.99, "gamma, in [0, 1]")
  eval_episodes: int = field(20, "episodes of the greedy policy per evaluation on the device", free="report")
  gym_episodes: int = field(
    20,
    "episodes of the final greedy policy in the real Gymnasium environment, where there is one; 0: none",
    free="report",
  )
  gif: bool = field(True, "draw an animation of the final policy", free="pictures")

  def __post_init__(self):
    super().__post_init__()
    require(0 <= self.discount <= 1, "discount", self.discount, "a number in [0, 1]")
    require(self.eval_episodes >= 1, "eval_episodes", self.eval_episodes, "1 or more")
    require(self.gym_episodes >= 0, "gym_episodes", self.gym_episodes, "0 or more")

  def make_world(self) -> Environment:
    """What `--env` names."""
    return make_env(self.env)

  def cpu_layout(self, cores: int) -> Layout | None:
    chosen = super().cpu_layout(cores)
    if chosen is None or ":" not in self.env:
      return chosen
    # While a device waits for Python, another thread has to copy what Python is given.
    return chosen._replace(threads=max(chosen.threads, chosen.devices + 1))

  def idle_flags(self):
    idle = super().idle_flags()
    if not has_gymnasium(self.env):
      idle["gym_episodes"] = f"Gymnasium has no {self.env}"
    if not can_draw(self.make_world()):
      idle["gif"] = why_not_drawn(self.make_world())
    return idle

  @property
  def env_steps_per_update(self) -> int:
    """Steps in all environments of one seed between two updates of the loop."""
    raise NotImplementedError

  @property
  def units_per_update(self) -> int:
    return self.env_steps_per_update

  @classmethod
  def tuned(cls, **given: Any) -> "RLConfig":
    """The config with what was given, and the environment's own settings for the rest."""
    env = given.get("env", cls.__dataclass_fields__["env"].default)
    return cls(**{**cls.TUNED.get(env, {}), **given})


def make_feeds(config: RLConfig) -> Feeds:
  """Agents make their own data."""
  return Feeds()


def train_agent(experiment: Experiment, config: RLConfig, best_metric: str = "episode_return") -> int:
  """`mlnotes.engine.loop.train` with the best checkpoint by the highest `best_metric`."""
  return train(experiment, make_feeds(config), config, best_metric=best_metric, best_mode="max")


def trained_policy(state: State) -> State:
  """The state whose policy is judged: where an optimizer returns other parameters than it trains, these."""
  if not hasattr(state, "opt_state"):
    return state
  return state._replace(params=eval_params(state.opt_state, state.params))


def as_policy(act: Callable[[State, Any], Any]) -> Callable[[State], Callable[[Any], Any]]:
  """The contract's `model`: state -> (observation of one environment -> the greedy action)."""
  return lambda state: jax.jit(functools.partial(act, trained_policy(state)))


def make_evaluate(env: Environment, act: Callable[[State, Any], Any], config: RLConfig):
  """The contract's `evaluate`: the greedy policy in `--eval_episodes` episodes on the device, always the same ones."""

  def evaluate(state: State, batch) -> dict[str, Mean]:
    state = trained_policy(state)
    key = stream_key(state.key, "evaluate")
    returns, lengths = run_episodes(env, lambda observation: act(state, observation), key, config.eval_episodes)
    count = jnp.float32(config.eval_episodes)
    return {"episode_return": Mean(jnp.sum(returns), count), "episode_length": Mean(jnp.sum(lengths), count)}

  return evaluate


def make_report(env: Environment, act: Callable[[State, Any], Any], config: RLConfig):
  """The contract's `report`: returns in the real Gymnasium environment, and `policy.gif`.

  The figures are `gymnasium_return`, the mean over `--gym_episodes` episodes, and `gymnasium_solved`, 1 where that
  mean reaches the threshold that Gymnasium registers for the environment and 0 where it does not.
  """

  def report(state: State, directory: Path) -> dict[str, float]:
    judged = trained_policy(state)
    policy = jax.jit(jax.vmap(lambda observation: act(judged, observation)))
    figures = {}
    if config.gym_episodes and has_gymnasium(env.name):
      report_step(f"playing {config.gym_episodes} episodes of {env.name} in Gymnasium")
      returns = run_gymnasium_episodes(env.name, policy, config.gym_episodes)
      figures["gymnasium_return"] = float(returns.mean())
      threshold = solved_at(env.name)
      if threshold is not None:
        figures["gymnasium_solved"] = float(returns.mean() >= threshold)
    if config.gif and ":" in env.name and (reason := why_not_drawn(env)):
      print(f"note: no policy.gif: {reason}", file=sys.stderr)
    if config.gif and can_draw(env):
      report_step("drawing policy.gif")
      # The key of a seed's state is made of the seed: its last word is the seed.
      seed = int(jax.random.key_data(state.key)[-1])
      try:
        animate_policy(env, policy, directory / "policy.gif", who=f"agent of --seed={seed}")
      except InputError as error:  # the figures do not hang on it
        warn(f"no policy.gif: {error}")
    return figures

  return report
