"""Deep Q-networks with double Q-learning (optionally dueling): CartPole, Acrobot, MountainCar, MinAtar, ...

  python -m experiments.rl.dqn --seeds=10                                # CartPole-v1
  python -m experiments.rl.dqn --env=MountainCar-v0 --seeds=10

Mnih et al. 2015, van Hasselt et al. 2016, Wang et al. 2016. One update acts `--train_every` times in each of
`--num_envs` environments, then takes `--gradient_steps` gradient steps; the replay too is on the device.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from experiments.rl._agent import make_feeds as make_feeds, train_agent
from experiments.rl._off_policy import Method, OffPolicyConfig, make_off_policy_experiment
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.rl import dqn
from mlnotes.rl.env import Environment
from mlnotes.rl.episodes import observation_size, observation_vector, require_discrete
from mlnotes.rl.normalize import normalize
from mlnotes.rl.registry import make_env


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

  def make_world(self) -> Environment:
    env = super().make_world()
    require_discrete(env)
    return env


def make(config: Config) -> Experiment:
  env = make_env(config.env)
  num_actions = require_discrete(env)
  network = dqn.QNetwork(config.hidden, num_actions, dueling=config.dueling, dtype=jnp.dtype(config.precision))

  def apply(moments, params, observation):
    # Out of the replay pictures of zeros and ones are bool.
    vector = observation_vector(env, observation.astype(jnp.float32) if observation.dtype == bool else observation)
    return network.apply(params, normalize(moments, vector) if config.normalize_observations else vector)

  def compute_epsilon(state):
    names = ("first_epsilon", "final_epsilon", "exploration")
    return dqn.compute_epsilon(state.step / config.steps, *(state.hparams[name] for name in names))

  def explore(state, key, size):
    epsilon = compute_epsilon(state)
    act = lambda noise, observation: dqn.explore(noise, apply(state.moments, state.params, observation))
    if not config.repeat_exploration:
      return act, dqn.sample_exploration(key, size, num_actions, epsilon), None

    def act_repeatedly(noise, observation, first, held):
      noise, held = dqn.hold_actions(noise, first, held)
      return act(noise, observation), held

    return act_repeatedly, dqn.sample_repeats(key, size, num_actions, epsilon), dqn.init_held(config.num_envs)

  def gradient(params, target, transitions, drawn, state):
    discount, delta = state.hparams["discount"], state.hparams["huber_delta"]
    q = functools.partial(apply, state.moments)
    one = lambda params, t: dqn.compute_dqn_loss(
      q, params, target, t, discount, double=config.double, huber_delta=delta
    )
    value, grads = jax.value_and_grad(lambda params: jnp.mean(jax.vmap(one, (None, 0))(params, transitions)))(params)
    return grads, {"loss": value}

  method = Method(
    init=lambda key: network.init(stream_key(key, "init"), jnp.zeros(observation_size(env))),
    explore=explore,
    gradient=gradient,
    act=lambda state, observation: dqn.act_greedily(apply(state.moments, state.params, observation)),
    hparams=("discount", "huber_delta", "tau", "first_epsilon", "final_epsilon", "exploration"),
    figures=lambda state: {"epsilon": compute_epsilon(state)},
  )
  return make_off_policy_experiment(method, env, config)


def main(config: Config) -> int:
  return train_agent(make(config), config)


if __name__ == "__main__":
  run(main, Config)
