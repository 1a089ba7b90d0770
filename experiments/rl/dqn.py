"""Deep Q-networks with double Q-learning (optionally dueling): CartPole, Acrobot, MountainCar, MinAtar, ...

  python -m experiments.rl.dqn --seeds=10                                # CartPole-v1
  python -m experiments.rl.dqn --env=MountainCar-v0 --seeds=10

Mnih et al. 2015, van Hasselt et al. 2016, Wang et al. 2016. One update acts `--train_every` times in each of
`--num_envs` environments, then takes `--gradient_steps` gradient steps; the replay too is on the device.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.rl._agent import as_policy, make_evaluate, make_report, train_agent
from experiments.rl._agent import make_feeds as make_feeds
from experiments.rl._off_policy import OffPolicyConfig
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.rl import dqn
from mlnotes.rl.env import Actors, init_actors, rollout
from mlnotes.rl.episodes import finished_episodes, observation_size, observation_vector, require_discrete
from mlnotes.rl.normalize import Moments, init_moments, normalize, update_moments
from mlnotes.rl.off_policy import can_learn, learn, update_target
from mlnotes.rl.registry import make_env
from mlnotes.rl.replay import Replay, add, as_transitions, init_env_replay, sample_batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OffPolicyConfig):
  """Defaults: CartPole-v1 solved."""

  TUNED: ClassVar = {
    "Acrobot-v1": dict(steps=1600, gradient_steps=16, final_epsilon=0.1, replay_capacity=100_000),
    "MountainCar-v0": dict(
      steps=4000,
      train_every=32,
      gradient_steps=32,
      target_period=200,
      final_epsilon=0.05,
      exploration=0.5,
      repeat_exploration=True,
      normalize_observations=True,
      replay_capacity=100_000,
    ),
  }

  steps: int = 7500
  gradient_steps: int = 8
  replay_capacity: int = 200_000
  log_every: int = 250
  eval_every: int = 1000
  checkpoint_every: int = 2000

  tau: float = 1.0
  target_period: int = field(100, "gradient steps between two updates of the target network")
  double: bool = field(True, "double Q-learning: the online network chooses the action that the target values")
  dueling: bool = field(False, "separate heads for the state's value and the advantages")
  huber_delta: float = field(100.0, "TD error from which the loss is linear, > 0")
  first_epsilon: float = field(1.0, "share of random actions at the start, in [0, 1]")
  final_epsilon: float = field(0.04, "share of random actions after --exploration, in [0, 1]")
  exploration: float = field(0.2, "part of the run over which that share falls, in [0, 1]")
  repeat_exploration: bool = field(False, "repeat random actions for a random time (epsilon-z-greedy)")
  normalize_observations: bool = field(False, "by their running mean and standard deviation")

  def __post_init__(self):
    super().__post_init__()
    require(self.target_period >= 1, "target_period", self.target_period, "1 or more")
    require(self.huber_delta > 0, "huber_delta", self.huber_delta, "a number above 0")
    for name in ("first_epsilon", "final_epsilon", "exploration"):
      require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number in [0, 1]")

  def idle_flags(self):
    idle = {}
    if self.first_epsilon == self.final_epsilon:
      idle["exploration"] = "--first_epsilon and --final_epsilon are the same"
    if self.tau == self.target_period == 1:
      idle["double"] = "with --tau=1 and --target_period=1 the target network is the online network"
    return super().idle_flags() | idle


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  target: chex.ArrayTree
  opt_state: optax.OptState
  replay: Replay
  actors: Actors
  moments: Moments | tuple[()]
  hparams: dict[str, Float[Array, ""]]


def make(config: Config) -> Experiment:
  env = make_env(config.env)
  num_actions = require_discrete(env)
  network = dqn.QNetwork(config.hidden, num_actions, dueling=config.dueling, dtype=jnp.dtype(config.precision))
  size = observation_size(env)
  optimizer = config.make_optimizer()
  names = ("discount", "huber_delta", "tau", "first_epsilon", "final_epsilon", "exploration")

  def apply(moments, params, observation):
    # Out of the replay pictures of zeros and ones are bool.
    vector = observation_vector(env, observation.astype(jnp.float32) if observation.dtype == bool else observation)
    return network.apply(params, normalize(moments, vector) if config.normalize_observations else vector)

  def init(key, batch) -> State:
    params = network.init(stream_key(key, "init"), jnp.zeros(size))
    # A copy: parameters and target are updated in place, each its own.
    target = jax.tree.map(jnp.copy, params)
    actors = init_actors(env, stream_key(key, "reset"), config.num_envs)
    replay = init_env_replay(env, config.replay_capacity)
    moments = init_moments((size,)) if config.normalize_observations else ()
    hparams = {name: jnp.float32(getattr(config, name)) for name in names}
    return State(
      jnp.zeros([], jnp.int32), key, params, target, optimizer.init(params), replay, actors, moments, hparams
    )

  def step(state: State, batch):
    stream = lambda name: stream_key(state.key, name, state.step)
    h = state.hparams
    progress = state.step / config.steps
    epsilon = dqn.compute_epsilon(progress, h["first_epsilon"], h["final_epsilon"], h["exploration"])
    size = (config.train_every, config.num_envs)
    explore = lambda noise, observation: dqn.explore(noise, apply(state.moments, state.params, observation))

    def explore_repeatedly(noise, observation, first, held):
      noise, held = dqn.hold_actions(noise, first, held)
      return explore(noise, observation), held

    if config.repeat_exploration:
      noise = dqn.sample_repeats(stream("explore"), size, num_actions, epsilon)
      act, held = explore_repeatedly, dqn.init_held(config.num_envs)
    else:
      noise = dqn.sample_exploration(stream("explore"), size, num_actions, epsilon)
      act, held = explore, None
    actors, trajectory = rollout(env, act, noise, stream("rollout"), state.actors, held)
    replay = add(state.replay, as_transitions(trajectory, state.replay))
    moments = state.moments
    if config.normalize_observations:
      moments = update_moments(moments, observation_vector(env, as_transitions(trajectory).observation))
    loss = functools.partial(dqn.compute_dqn_loss, functools.partial(apply, moments), double=config.double)

    def gradient_step(learner, inputs):
      params, target, opt_state = learner
      transitions, i = inputs
      one = lambda params, t: loss(params, target, t, h["discount"], huber_delta=h["huber_delta"])
      mean_loss = lambda params: jnp.mean(jax.vmap(one, (None, 0))(params, transitions))
      value, grads = jax.value_and_grad(mean_loss)(params)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
      count = (state.step - config.waiting_updates) * config.gradient_steps + i
      return (params, update_target(target, params, h["tau"], count, config.target_period), opt_state), {"loss": value}

    batches = sample_batches(replay, stream("replay"), config.gradient_steps, config.batch_size)
    inputs = (batches, jnp.arange(config.gradient_steps))
    learner = (state.params, state.target, state.opt_state)
    (params, target, opt_state), metrics = learn(
      gradient_step, learner, inputs, can_learn(replay, config.learning_starts)
    )
    state = State(state.step + 1, state.key, params, target, opt_state, replay, actors, moments, h)
    return state, {
      **metrics,
      **finished_episodes(trajectory.last, trajectory.episode_return, trajectory.episode_length),
      "epsilon": epsilon,
    }

  act = lambda state, observation: dqn.act_greedily(apply(state.moments, state.params, observation))
  return Experiment(init, step, make_evaluate(env, act, config), make_report(env, act, config), model=as_policy(act))


def main(config: Config) -> int:
  return train_agent(make(config), config)


if __name__ == "__main__":
  run(main, Config)
