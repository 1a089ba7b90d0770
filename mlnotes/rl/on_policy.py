"""What A2C, TRPO and PPO share: the rollout as a batch to learn from, minibatches, scaled rewards."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes.data.order import permute_index
from mlnotes.engine.experiment import Mean
from mlnotes.rl.actor_critic import ActorCritic
from mlnotes.rl.env import Actors, Box, Discrete, Environment, Trajectory
from mlnotes.rl.normalize import Moments, compute_scale, discounted_sums, update_moments
from mlnotes.rl.returns import compute_gae

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


def one_hot_observation(env: Environment) -> Callable[[Any], Any]:
  """Observations of `env` as they are normalised: numbers of states as one-hot vectors, others as they are."""
  discrete = isinstance(env.observations, Discrete)
  return lambda observation: jax.nn.one_hot(observation, env.observations.n) if discrete else observation


def one_hot_states(env: Environment) -> Environment:
  """`env` with the one-hot vectors of its states where they are numbered; others as they are."""
  if not isinstance(env.observations, Discrete):
    return env
  vector = one_hot_observation(env)

  def reset(key):
    state, observation = env.reset(key)
    return state, vector(observation)

  def step(key, state, action):
    state, timestep = env.step(key, state, action)
    seen = {name: vector(getattr(timestep, name)) for name in ("observation", "next_observation")}
    return state, timestep._replace(**seen)

  return env._replace(reset=reset, step=step, observations=Box((env.observations.n,), 0.0, 1.0))


def scale_rewards(state: OnPolicyState, trajectory: Trajectory):
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
