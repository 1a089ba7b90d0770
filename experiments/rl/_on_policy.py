"""What A2C, TRPO and PPO share: act for a while with the current policy, estimate advantages, learn, forget.

def learn(networks, optimizer, state, batch, key) -> (params, opt_state, metrics)
experiment = make_on_policy_experiment(config, learn, hparams, gradient_steps)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import optax

from experiments.rl._agent import RLConfig, as_policy, make_evaluate, make_report
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, stream_key
from mlnotes.engine.flags import field
from mlnotes.optim.flags import OptimConfig, make_optimizer
from mlnotes.rl.actor_critic import ActorCritic, idle_for_discrete_actions, make_actor_critic, make_greedy
from mlnotes.rl.env import clip_actions, init_actors, rollout
from mlnotes.rl.episodes import finished_episodes
from mlnotes.rl.normalize import init_moments, normalize, update_moments
from mlnotes.rl.on_policy import (
  OnPolicyBatch,
  OnPolicyState,
  RewardScale,
  explained_variance,
  flatten_time,
  make_on_policy_batch,
  one_hot_observation,
  one_hot_states,
  scale_rewards,
)
from mlnotes.rl.registry import make_env


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(OptimConfig, RLConfig):
  """The flags of methods that learn from what the current policy just did."""

  num_envs: int = field(8, "environments that act side by side, per seed")
  rollout_length: int = field(128, "steps of each environment between two updates")
  gae_lambda: float = field(0.95, "lambda of the advantage estimate, in [0, 1]: 0 one step, 1 the whole return")
  hidden: tuple[int, ...] = field((64, 64), "widths of the hidden layers of policy and value function")
  activation: Literal["tanh", "relu"] = field("tanh", "between the layers")
  initial_std: float = field(1.0, "standard deviation of a Gaussian policy at the start, > 0")
  entropy_weight: float = field(0.0, "weight of the policy's entropy in the loss")
  value_weight: float = field(0.5, "weight of the value loss beside the policy's")
  normalize_observations: bool = field(False, "by their running mean and standard deviation")
  normalize_rewards: bool = field(
    False, "by the running standard deviation of their discounted sums, then cut off at +-10"
  )
  normalize_advantages: bool = field(True, "to mean 0 and standard deviation 1 within the batch of each loss")

  def __post_init__(self):
    super().__post_init__()
    for name in ("num_envs", "rollout_length"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "a number in [0, 1]")
    require(self.value_weight >= 0, "value_weight", self.value_weight, "0 or more")
    require(min(self.hidden, default=0) >= 1, "hidden", self.hidden, "one or more widths of 1 or more")
    require(self.initial_std > 0, "initial_std", self.initial_std, "a number above 0")

    if self.rows_per_loss < 2:
      why = "2 or more steps in each loss, whose advantages have a standard deviation, or --nonormalize_advantages"
      require(not self.normalize_advantages, "rollout_length", self.rollout_length, why)

  @property
  def env_steps_per_update(self) -> int:
    return self.num_envs * self.rollout_length

  @property
  def rows_per_loss(self) -> int:
    """Steps over which one loss of the policy is averaged."""
    return self.env_steps_per_update

  def idle_flags(self):
    return super().idle_flags() | idle_for_discrete_actions(self.env)


# (networks, optimizer, state, batch, key) -> (params, opt_state, metrics)
Learn = Callable[
  [ActorCritic, optax.GradientTransformation, OnPolicyState, OnPolicyBatch, Any], tuple[Any, Any, Mapping]
]


def make_on_policy_experiment(
  config: OnPolicyConfig, learn: Learn, hparams: Mapping[str, float], gradient_steps: int = 1
) -> Experiment:
  """The experiment around `learn`, which takes `gradient_steps` steps of the optimizer per update.

  `state.hparams` holds `discount`, `gae_lambda`, `entropy_weight`, `value_weight` and the given `hparams`.
  """
  env = clip_actions(make_env(config.env))
  # Numbers of states are no quantities: what is normalised are their one-hot vectors.
  seen_env = one_hot_states(env) if config.normalize_observations else env
  vector = one_hot_observation(env) if config.normalize_observations else lambda observation: observation
  networks = make_actor_critic(
    seen_env, config.hidden, config.activation, config.initial_std, jnp.dtype(config.precision)
  )
  optimizer = make_optimizer(config, config.steps, gradient_steps)
  common = ("discount", "gae_lambda", "entropy_weight", "value_weight")
  numbers = {**{name: getattr(config, name) for name in common}, **hparams}

  def prepare(state: OnPolicyState, observation: Any) -> Any:
    return normalize(state.observation_moments, vector(observation)) if config.normalize_observations else observation

  def init(key, batch) -> OnPolicyState:
    params = networks.init(stream_key(key, "init"))
    actors = init_actors(env, stream_key(key, "actors"), config.num_envs)
    return OnPolicyState(
      step=jnp.zeros([], jnp.int32),
      key=key,
      params=params,
      opt_state=optimizer.init(params),
      actors=actors,
      observation_moments=init_moments(vector(actors.observation).shape[1:]) if config.normalize_observations else (),
      reward_scale=RewardScale(init_moments(), jnp.zeros(config.num_envs)) if config.normalize_rewards else (),
      hparams={name: jnp.float32(value) for name, value in numbers.items()},
    )

  def step(state: OnPolicyState, batch):
    shape = (config.rollout_length, config.num_envs)
    noise = networks.sample_noise(stream_key(state.key, "act", state.step), shape)
    act = lambda noise, seen: networks.policy(state.params, prepare(state, seen)).sample(noise)
    env_key = stream_key(state.key, "env", state.step)
    actors, trajectory = rollout(env, act, noise, env_key, state.actors)
    metrics = finished_episodes(trajectory.last, trajectory.episode_return, trajectory.episode_length)
    reward, reward_scale = scale_rewards(state, trajectory)
    seen = trajectory._replace(
      observation=prepare(state, trajectory.observation),
      next_observation=prepare(state, trajectory.next_observation),
      reward=reward,
    )
    gamma, gae_lambda = state.hparams["discount"], state.hparams["gae_lambda"]
    data = make_on_policy_batch(networks, state.params, seen, gamma, gae_lambda)
    learn_key = stream_key(state.key, "learn", state.step)
    params, opt_state, learned = learn(networks, optimizer, state, data, learn_key)
    moments = state.observation_moments
    if config.normalize_observations:
      moments = update_moments(moments, flatten_time(vector(trajectory.observation)))
    metrics |= {"explained_variance": explained_variance(data.value, data.target), **learned}
    state = state._replace(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      actors=actors,
      observation_moments=moments,
      reward_scale=reward_scale,
    )
    return state, metrics

  act = make_greedy(env, networks, prepare)
  return Experiment(init, step, make_evaluate(env, act, config), make_report(env, act, config), model=as_policy(act))
