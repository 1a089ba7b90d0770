"""Tabular methods in the training loop: one environment per seed, many steps per update, exact evaluation.

    def make(config): return make_tabular_experiment(RULES["q_learning"](), config)

All random numbers of an update are drawn before its loop over environment steps, one call per purpose. With the seeds
vmapped, that and one-row updates of the table are what makes some ten million steps a second on two CPU cores.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from experiments.rl._agent import RLConfig, as_policy, make_feeds as make_feeds, make_report, train_agent
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, stream_key
from mlnotes.engine.flags import field
from mlnotes.rl.dynamic_programming import (
  evaluate_doubling,
  evaluate_horizon,
  evaluate_policy,
  greedy_policy,
  policy_iteration,
  start_value,
)
from mlnotes.rl.env import Environment
from mlnotes.rl.gymnasium_bridge import LONGEST_EPISODE
from mlnotes.rl.interaction import Actor, draw_noise, init_actor, interact
from mlnotes.rl.table import Table, make_table_env, read_table
from mlnotes.rl.tabular import Rule, Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TabularConfig(RLConfig):
  """The flags of every method that learns a table of action values."""

  env: str = field(
    "FrozenLake-v1", "FrozenLake-v1, FrozenLake8x8-v1, CliffWalking-v1, Taxi-v4 or DynaMaze", refines=True
  )
  steps: int = 1000
  log_every: int = 20
  eval_every: int = 100
  checkpoint_every: int = 0
  eval_episodes: int = 1
  steps_per_update: int = field(1000, "environment steps per update of the loop")
  learning_rate: float = field(0.1, "step size of the first update of a pair, in (0, 1]")
  step_size_power: float = field(0.0, "p in learning_rate / N(s, a)^p, in [0, 1]; 0: constant step size")
  epsilon: float = field(0.1, "probability of a random action at the start, in [0, 1]")
  final_epsilon: float = field(0.1, "probability of a random action in the end, in [0, 1]")
  exploration_fraction: float = field(1.0, "share of training over which epsilon goes from first to last, in (0, 1]")
  initial_value: float = field(0.0, "of every action; optimistic where it is above what can be earned")
  tolerance: float = field(0.02, "a seed is solved where the greedy policy's value is within this share of the optimum")

  def make_world(self) -> Environment:
    """The table that `--env` names, the maze included."""
    return make_table_env(read_table(self.env))

  def idle_flags(self):
    idle = {
      "eval_episodes": "the greedy policy is evaluated exactly, from the table",
      "precision": "the table is float32",
    }
    if self.epsilon == self.final_epsilon:
      idle["exploration_fraction"] = "--epsilon and --final_epsilon are the same"
    if 0 in (getattr(self, "trace_decay", 1), self.discount):
      idle["traces"] = "nothing of a trace is left at the next step"
    return super().idle_flags() | {name: why for name, why in idle.items() if hasattr(self, name)}

  def __post_init__(self):
    super().__post_init__()
    require(self.steps_per_update >= 1, "steps_per_update", self.steps_per_update, "1 or more")
    for name in ("learning_rate", "exploration_fraction"):
      require(0 < getattr(self, name) <= 1, name, getattr(self, name), "a number in (0, 1]")
    for name in ("step_size_power", "epsilon", "final_epsilon"):
      require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number in [0, 1]")
    require(self.tolerance >= 0, "tolerance", self.tolerance, "0 or more")

  @property
  def env_steps_per_update(self) -> int:
    return self.steps_per_update


_HPARAMS = (
  "learning_rate",
  "step_size_power",
  "discount",
  "epsilon",
  "final_epsilon",
  "exploration_fraction",
)


class TabularState(NamedTuple):
  """The contract's state: a learner in its world, and the settings that a sweep may vary."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  actor: Actor
  hparams: dict[str, Float[Array, ""]]

  @property
  def params(self) -> Float[Array, "..."]:
    """What must stay finite."""
    return self.actor.learner.table


def anneal_epsilon(hparams: dict, progress: Float[Array, "*T"]) -> Float[Array, "*T"]:
  """Epsilon when the part `progress` of training is done: a line from first to last over `exploration_fraction`."""
  share = jnp.minimum(1.0, progress / hparams["exploration_fraction"])
  return hparams["epsilon"] + share * (hparams["final_epsilon"] - hparams["epsilon"])


def make_tabular_experiment(rule: Rule, config: TabularConfig) -> Experiment:
  """The rule in the world that `--env` names. `config` may have `trace_decay`."""
  table = read_table(config.env)
  num_steps = config.steps_per_update
  evaluate_learner = make_exact_evaluation(table, config)

  def make_settings(hparams, epsilon) -> Settings:
    names = ("learning_rate", "step_size_power", "discount")
    return Settings(*(hparams[name] for name in names), epsilon, hparams["trace_decay"])

  def init(key, batch) -> TabularState:
    hparams = {name: jnp.float32(getattr(config, name)) for name in _HPARAMS}
    hparams["trace_decay"] = jnp.float32(getattr(config, "trace_decay", 0.0))
    settings = make_settings(hparams, hparams["epsilon"])
    actor = init_actor(table, rule, stream_key(key, "init"), settings, config.initial_value)
    return TabularState(jnp.zeros([], jnp.int32), key, actor, hparams)

  def step(state: TabularState, batch):
    # In updates, not in environment steps, of which there may be more than an int32 counts.
    progress = (state.step + jnp.arange(num_steps) / num_steps) / config.steps
    epsilon = anneal_epsilon(state.hparams, progress)
    noise = draw_noise(table, rule, stream_key(state.key, "interact", state.step), num_steps)

    def one(carry, inputs):
      actor, sums = carry
      noise, epsilon = inputs
      actor, outcome = interact(table, rule, actor, noise, make_settings(state.hparams, epsilon))
      last = outcome.last.astype(jnp.float32)
      new = (outcome.reward, last * outcome.episode_return, last * outcome.episode_length, last)
      return (actor, jax.tree.map(jnp.add, sums, new)), None

    sums = (jnp.zeros([]),) * 4
    (actor, sums), _ = jax.lax.scan(one, (state.actor, sums), (noise, epsilon))
    reward, returned, length, ended = sums
    metrics = {
      "reward": reward / num_steps,
      "epsilon": epsilon[-1],
      "episode_return": Mean(returned, ended),
      "episode_length": Mean(length, ended),
    }
    return state._replace(step=state.step + 1, actor=actor), metrics

  def evaluate(state: TabularState, batch) -> dict[str, Mean]:
    one = jnp.ones([])
    return {name: Mean(value, one) for name, value in evaluate_learner(state.actor.learner.q).items()}

  act = lambda state, observation: jnp.argmax(state.actor.learner.read_row(observation)).astype(jnp.int32)
  report_episodes = make_report(make_table_env(table), act, config)

  def report(state: TabularState, directory: Path) -> dict[str, float]:
    from experiments.rl._gridworld_report import write_comparison

    write_comparison(table, state.actor.learner.q, config.discount, directory / "policy.png")
    return report_episodes(state, directory)

  return Experiment(init, step, evaluate, report, model=as_policy(act))


def make_exact_evaluation(table: Table, config: TabularConfig):
  """q -> {name: number}: what the greedy policy is worth, computed from the table and not sampled.

  start_value is its discounted value in the first states without a time limit (with `--discount=1`: over 8,192 steps,
  since a policy may never end an episode), optimal_gap how far that is below the optimum as a share of the optimum, at
  least 0, solved whether that is within `--tolerance`, episode_return its mean undiscounted return under the time limit
  (or 1000 steps).
  """
  dynamics, horizon, discount = table.dynamics, table.time_limit or LONGEST_EPISODE, config.discount

  optimum = float(jax.jit(lambda: start_value(dynamics, policy_iteration(dynamics, discount).values))())

  def evaluate(q: Float[Array, "S A"]) -> dict[str, Float[Array, ""]]:
    policy = greedy_policy(q)
    returned = start_value(dynamics, evaluate_horizon(dynamics, policy, 1.0, horizon))
    endless = discount == 1
    values = evaluate_doubling(dynamics, policy) if endless else evaluate_policy(dynamics, policy, discount)
    value = start_value(dynamics, values)
    # Below 0 by rounding alone.
    gap = jnp.maximum(optimum - value, 0.0) / max(abs(optimum), 1e-6)
    solved = (gap <= config.tolerance).astype(jnp.float32)
    return {"start_value": value, "optimal_gap": gap, "solved": solved, "episode_return": returned}

  return evaluate


def train_table(experiment: Experiment, config: TabularConfig) -> int:
  """`train_agent` with the best checkpoint by the value of the greedy policy in the first states."""
  return train_agent(experiment, config, best_metric="start_value")
