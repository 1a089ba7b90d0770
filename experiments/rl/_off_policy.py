"""What DQN, DDPG and SAC share: their flags, and the experiment around what tells them apart.

method = Method(init, explore, gradient, act, hparams=("discount", "tau"))
return make_off_policy_experiment(method, env, config)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.rl._agent import RLConfig, as_policy, make_evaluate, make_report
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, stream_key
from mlnotes.engine.flags import field
from mlnotes.optim import ScheduleName
from mlnotes.optim.flags import OptimConfig, make_optimizer
from mlnotes.rl.env import Actors, Environment, init_actors, rollout
from mlnotes.rl.episodes import finished_episodes, observation_size, observation_vector
from mlnotes.rl.normalize import Moments, init_moments, update_moments
from mlnotes.rl.off_policy import can_learn, learn, update_target
from mlnotes.rl.replay import Replay, Transition, add, as_transitions, init_env_replay, sample_batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(OptimConfig, RLConfig):
  """The flags of methods that learn from a replay.

  One update acts `train_every` times in each of `num_envs` environments and then takes `gradient_steps` gradient steps.
  """

  schedule: ScheduleName = "linear"
  num_envs: int = field(8, "environments that act side by side, per seed")
  train_every: int = field(8, "steps of each environment between two updates")
  gradient_steps: int = field(16, "gradient steps per update")
  batch_size: int = field(64, "transitions per gradient step")
  replay_capacity: int = field(100_000, "transitions that the replay holds")
  learning_starts: int = field(
    1000, "transitions in the replay before the first gradient step, at which --schedule begins"
  )
  tau: float = field(
    0.005, "share of the trained parameters that the target takes over at a time, in (0, 1]; 1: a copy"
  )
  hidden: tuple[int, ...] = field((128, 128), "widths of the hidden layers")

  def __post_init__(self):
    super().__post_init__()
    for name in ("num_envs", "train_every", "gradient_steps", "batch_size"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    least = self.env_steps_per_update
    require(self.replay_capacity >= least, "replay_capacity", self.replay_capacity, f"{least} (one update) or more")
    known = f"0 to {self.replay_capacity}, the replay's capacity"
    require(0 <= self.learning_starts <= self.replay_capacity, "learning_starts", self.learning_starts, known)
    require(0 < self.tau <= 1, "tau", self.tau, "a number in (0, 1]")
    require(min(self.hidden, default=0) >= 1, "hidden", self.hidden, "one or more widths of 1 or more")
    most = self.learning_updates // 2
    why = f"at most {most}, half of the {self.learning_updates} updates that take gradient steps"
    require(self.warmup_steps <= most, "warmup_steps", self.warmup_steps, why)

  @property
  def env_steps_per_update(self) -> int:
    return self.num_envs * self.train_every

  @property
  def waiting_updates(self) -> int:
    """Updates before the first that takes gradient steps, as `can_learn` says after each."""
    return -(-max(self.learning_starts, 1) // self.env_steps_per_update) - 1

  @property
  def learning_updates(self) -> int:
    """Updates that take gradient steps."""
    return max(self.steps - self.waiting_updates, 0)

  def make_optimizer(self) -> optax.GradientTransformation:
    """The optimizer, whose schedule runs over the updates that take gradient steps: it ends with the run."""
    return make_optimizer(self, max(self.learning_updates, 1), self.gradient_steps)

  def idle_flags(self):
    if self.learning_updates:
      return super().idle_flags()
    collected = self.steps * self.env_steps_per_update
    why = f"the {collected} transitions of {self.steps} updates are fewer than --learning_starts={self.learning_starts}"
    names = ("learning_rate", "optimizer", "schedule", "gradient_steps", "batch_size", "tau", "steps")
    return super().idle_flags() | dict.fromkeys(names, f"nothing is learned, as {why}")


class OffPolicyState(NamedTuple):
  """`target` follows `Method.tracked` of `params`; `moments` are those of observations, or ()."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  target: chex.ArrayTree
  opt_state: optax.OptState
  replay: Replay
  actors: Actors
  moments: Moments | tuple[()]
  hparams: dict[str, Float[Array, ""]]


class Method(NamedTuple):
  """What tells one method from another.

  init:     key -> parameters.
  explore:  (state, key, (T, N)) -> (act, noise, memory), as `rollout` takes them.
  gradient: (params, target, transitions, what was drawn for them, state) -> (gradient, {name: scalar}), means.
  act:      (state, observation of one environment) -> the greedy action.
  hparams:  the names of the flags that become `state.hparams`.
  draw:     (key, (gradient steps, batch)) -> random numbers of the gradient steps, with these leading axes.
  tracked:  (parameters) -> the part that the target follows.
  watch:    (parameters) -> {name: scalar} after a gradient step.
  figures:  (state) -> {name: scalar} of an update.
  """

  init: Callable[[Key[Array, ""]], chex.ArrayTree]
  explore: Callable[[OffPolicyState, Key[Array, ""], tuple[int, int]], tuple[Callable, Any, Any]]
  gradient: Callable[[Any, Any, Transition, Any, OffPolicyState], tuple[Any, Mapping[str, Array]]]
  act: Callable[[OffPolicyState, Any], Any]
  hparams: tuple[str, ...]
  draw: Callable[[Key[Array, ""], tuple[int, int]], Any] = lambda key, size: ()
  tracked: Callable[[Any], Any] = lambda params: params
  watch: Callable[[Any], Mapping[str, Array]] = lambda params: {}
  figures: Callable[[OffPolicyState], Mapping[str, Array]] = lambda state: {}


def make_off_policy_experiment(
  method: Method, env: Environment, config: OffPolicyConfig, played: Environment | None = None
) -> Experiment:
  """The experiment that acts by `method` in `env` and learns from a replay; `played` is what it is evaluated in.

  `config` may have `target_period` and `normalize_observations`.
  """
  optimizer = config.make_optimizer()
  period, normalized = getattr(config, "target_period", 1), getattr(config, "normalize_observations", False)

  def init(key, batch) -> OffPolicyState:
    params = method.init(key)
    return OffPolicyState(
      step=jnp.zeros([], jnp.int32),
      key=key,
      params=params,
      # A copy: parameters and target are updated in place, each its own.
      target=jax.tree.map(jnp.copy, method.tracked(params)),
      opt_state=optimizer.init(params),
      replay=init_env_replay(env, config.replay_capacity),
      actors=init_actors(env, stream_key(key, "reset"), config.num_envs),
      moments=init_moments((observation_size(env),)) if normalized else (),
      hparams={name: jnp.float32(getattr(config, name)) for name in method.hparams},
    )

  def step(state: OffPolicyState, batch):
    stream = lambda name: stream_key(state.key, name, state.step)
    act, noise, memory = method.explore(state, stream("explore"), (config.train_every, config.num_envs))
    actors, trajectory = rollout(env, act, noise, stream("rollout"), state.actors, memory)
    replay = add(state.replay, as_transitions(trajectory, state.replay))
    if normalized:
      seen = observation_vector(env, as_transitions(trajectory).observation)
      state = state._replace(moments=update_moments(state.moments, seen))

    def gradient_step(learner, inputs):
      params, target, opt_state = learner
      transitions, drawn, i = inputs
      grads, means = method.gradient(params, target, transitions, drawn, state)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
      count = (state.step - config.waiting_updates) * config.gradient_steps + i
      due = (count, period) if period > 1 else ()
      target = update_target(target, method.tracked(params), state.hparams["tau"], *due)
      return (params, target, opt_state), {**means, **method.watch(params)}

    size = (config.gradient_steps, config.batch_size)
    batches = sample_batches(replay, stream("replay"), *size)
    inputs = (batches, method.draw(stream("actions"), size), jnp.arange(config.gradient_steps))
    learner = (state.params, state.target, state.opt_state)
    ready = can_learn(replay, config.learning_starts)
    (params, target, opt_state), metrics = learn(gradient_step, learner, inputs, ready)
    new = {"params": params, "target": target, "opt_state": opt_state, "replay": replay, "actors": actors}
    episodes = finished_episodes(trajectory.last, trajectory.episode_return, trajectory.episode_length)
    return state._replace(step=state.step + 1, **new), {**metrics, **episodes, **method.figures(state)}

  played = played or env
  evaluate, report = make_evaluate(played, method.act, config), make_report(played, method.act, config)
  return Experiment(init, step, evaluate, report, model=as_policy(method.act))
