"""What A2C, TRPO and PPO share: act for a while with the current policy, estimate advantages, learn, forget.

def learn(networks, optimizer, state, batch, key) -> (params, opt_state, metrics)
experiment = make_on_policy_experiment(config, learn, gradient_steps)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.rl._agent import RLConfig, as_policy, finished_episodes, make_evaluate, make_report
from mlnotes.data.order import permute_index
from mlnotes.engine.experiment import Experiment, Mean, stream_key
from mlnotes.engine.flags import field, require
from mlnotes.optim import OptimConfig, make_optimizer
from mlnotes.rl.actor_critic import ActorCritic, idle_for_discrete_actions, make_actor_critic, make_greedy
from mlnotes.rl.env import Actors, Box, Discrete, Environment, Trajectory, clip_actions, init_actors, make_env, rollout
from mlnotes.rl.normalize import Moments, compute_scale, discounted_sums, init_moments, normalize, update_moments
from mlnotes.rl.returns import compute_gae


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


# A first reward among thousands of zeros is hundreds of standard deviations of their sums.
REWARD_LIMIT = 10.0


class RewardScale(NamedTuple):
  """Moments of the discounted sums of rewards, and the sums in progress (N,)."""

  moments: Moments
  running: Float[Array, " N"]


class OnPolicyState(NamedTuple):
  """`observation_moments` and `reward_scale` are () where nothing is normalised."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState
  actors: Actors
  observation_moments: Moments | tuple[()]
  reward_scale: RewardScale | tuple[()]
  hparams: dict[str, Float[Array, ""]]


class OnPolicyBatch(NamedTuple):
  """A trajectory (T, N) with what the value function makes of it. Observations are normalised where that is asked for.

  `advantage` is the generalised advantage estimate, `target` = advantage + value what the value function should say.
  """

  observation: Float[Array, "T N ..."]
  action: Any
  value: Float[Array, "T N"]
  advantage: Float[Array, "T N"]
  target: Float[Array, "T N"]


# (networks, optimizer, state, batch, key) -> (params, opt_state, metrics)
Learn = Callable[
  [ActorCritic, optax.GradientTransformation, OnPolicyState, OnPolicyBatch, Any], tuple[Any, Any, Mapping]
]


def make_on_policy_batch(
  networks: ActorCritic,
  params: Any,
  trajectory: Trajectory,
  gamma: Float[Array, ""] | float,
  gae_lambda: Float[Array, ""] | float,
) -> OnPolicyBatch:
  """Values and advantages of a rollout.

  `gamma` is the method's discount factor, which the trajectory's own `discount` multiplies, 0 at a termination. Both
  values of a step come from one pass over (observation, next_observation): where the time limit cut an episode, the
  second is the value of the state it was cut in, not of the next episode's first.
  """
  both = jnp.stack([trajectory.observation, trajectory.next_observation])
  value, next_value = networks.value(params, both)
  estimate = jax.vmap(compute_gae, in_axes=(1, 1, 1, 1, 1, None), out_axes=1)
  advantage = estimate(trajectory.reward, gamma * trajectory.discount, trajectory.last, value, next_value, gae_lambda)
  return OnPolicyBatch(trajectory.observation, trajectory.action, value, advantage, advantage + value)


def flatten_time(batch: Any) -> Any:
  """(T, N, ...) to (T * N, ...), for methods that take transitions in any order."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def minibatch_rows(key: Key[Array, ""], epochs: int, minibatches: int, size: int) -> Int[Array, "M B"]:
  """Which of `size` rows each gradient step takes, (epochs * minibatches, size / minibatches): all rows every epoch.

  Raises ValueError where `minibatches` does not divide `size`.
  """
  if size % minibatches:
    raise ValueError(f"minibatches={minibatches} does not divide the {size} rows.")
  # A keyed permutation computed per row: on a CPU a sixth of the time that `jax.random.permutation` takes to sort.
  shuffle = lambda key: permute_index(jnp.arange(size), size, jax.random.key_data(key))
  return jax.vmap(shuffle)(jax.random.split(key, epochs)).reshape(epochs * minibatches, -1)


def standardize(x: Float[Array, " B"]) -> Float[Array, " B"]:
  """To mean 0 and standard deviation 1."""
  return (x - jnp.mean(x)) / (jnp.std(x) + 1e-8)


def explained_variance(value: Float[Array, "*B"], target: Float[Array, "*B"]) -> Mean:
  """1 - Var(target - value) / Var(target): 1 for a perfect value function, 0 for a constant one.

  As a quotient still to be taken, so that over several updates it is that of their mean variances. A target that is
  constant (in float32: to a millionth of its size) has none and counts for nothing.
  """
  variance = jnp.var(target)
  varies = variance > jnp.maximum(1e-12 * jnp.mean(target) ** 2, jnp.finfo(jnp.float32).tiny)
  explained = variance - jnp.var(target - value)
  return Mean(jnp.where(varies, explained, 0.0), jnp.where(varies, variance, 0.0))


def _one_hot(env: Environment) -> Callable[[Any], Any]:
  discrete = isinstance(env.observations, Discrete)
  return lambda observation: jax.nn.one_hot(observation, env.observations.n) if discrete else observation


def one_hot_states(env: Environment) -> Environment:
  """`env` with the one-hot vectors of its states where they are numbered; others as they are."""
  if not isinstance(env.observations, Discrete):
    return env
  vector = _one_hot(env)

  def reset(key):
    state, observation = env.reset(key)
    return state, vector(observation)

  def step(key, state, action):
    state, timestep = env.step(key, state, action)
    seen = {name: vector(getattr(timestep, name)) for name in ("observation", "next_observation")}
    return state, timestep._replace(**seen)

  return env._replace(reset=reset, step=step, observations=Box((env.observations.n,), 0.0, 1.0))


def make_on_policy_experiment(
  config: OnPolicyConfig, learn: Learn, hparams: Mapping[str, float], gradient_steps: int = 1
) -> Experiment:
  """The experiment around `learn`, which takes `gradient_steps` steps of the optimizer per update.

  `state.hparams` holds `discount`, `gae_lambda`, `entropy_weight`, `value_weight` and the given `hparams`.
  """
  env = clip_actions(make_env(config.env))
  # Numbers of states are no quantities: what is normalised are their one-hot vectors.
  seen_env = one_hot_states(env) if config.normalize_observations else env
  vector = _one_hot(env) if config.normalize_observations else lambda observation: observation
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
    reward, reward_scale = _scale_rewards(state, trajectory)
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


def _scale_rewards(state: OnPolicyState, trajectory: Trajectory):
  """(rewards as the value function will see them, the scale after this rollout).

  The scale is that of the rollouts before this one; the first rollout is divided by its own. While all sums have been
  the same, as before the first reward, it is 1. Engstrom et al. 2020, reward scaling and clipping.
  """
  if state.reward_scale == ():
    return trajectory.reward, ()
  running, sums = discounted_sums(
    state.reward_scale.running, trajectory.reward, trajectory.last, state.hparams["discount"]
  )
  moments = update_moments(state.reward_scale.moments, sums.reshape(-1))
  scale = jnp.where(state.step == 0, compute_scale(moments), compute_scale(state.reward_scale.moments))
  return jnp.clip(trajectory.reward / scale, -REWARD_LIMIT, REWARD_LIMIT), RewardScale(moments, running)
