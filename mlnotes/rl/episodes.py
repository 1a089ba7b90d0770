"""Episodes of a policy on the device, and what a method asks of an environment."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Mean, root_key
from mlnotes.rl.env import Box, Discrete, Environment
from mlnotes.rl.gymnasium_bridge import LONGEST_EPISODE


def require_discrete(env: Environment) -> int:
  """The number of actions. Raises InputError where actions are not discrete."""
  if not isinstance(env.actions, Discrete):
    raise InputError(f"--env={env.name} has continuous actions: this method expects discrete ones.")
  return env.actions.n


def require_box(env: Environment) -> Box:
  """The space of actions. Raises InputError where they are not continuous and bounded."""
  if not isinstance(env.actions, Box):
    raise InputError(f"--env={env.name} has discrete actions: this method expects continuous ones.")
  low, high = env.actions.low, env.actions.high
  if not (math.isfinite(low) and math.isfinite(high) and low < high):
    raise InputError(f"--env={env.name} has actions from {low} to {high}: this method expects finite bounds.")
  return env.actions


def observation_vector(env: Environment, observation: Any) -> Float[Array, "*B D"]:
  """Observations as vectors: numbered states one-hot, pictures flattened. Leading axes stay."""
  if isinstance(env.observations, Discrete):
    return jax.nn.one_hot(observation, env.observations.n)
  batch = observation.shape[: observation.ndim - len(env.observations.shape)]
  return observation.reshape(*batch, -1)


def observation_size(env: Environment) -> int:
  """The length of `observation_vector`."""
  spec = jax.eval_shape(lambda key: observation_vector(env, env.reset(key)[1]), root_key(0))
  return spec.shape[-1]


def finished_episodes(
  last: Bool[Array, "*T"], episode_return: Float[Array, "*T"], episode_length: Int[Array, "*T"]
) -> dict[str, Mean]:
  """Training metrics: mean return and length of the episodes that ended, read where `last`."""
  mean = lambda values: Mean(jnp.sum(jnp.where(last, values, 0)), jnp.sum(last))
  return {"episode_return": mean(episode_return), "episode_length": mean(episode_length)}


def run_episodes(
  env: Environment,
  act: Callable[[Any], Any],
  key: Key[Array, ""],
  num_episodes: int,
) -> tuple[Float[Array, " E"], Int[Array, " E"]]:
  """(return, length) of one episode in each of `num_episodes` environments, with the policy `act(observation)`."""
  reset_key, step_key = jax.random.split(key)
  state, observation = jax.vmap(env.reset)(jax.random.split(reset_key, num_episodes))
  longest = env.time_limit or LONGEST_EPISODE

  def running(carry):
    return (carry[0] < longest) & jnp.any(carry[3])

  def one(carry):
    t, state, observation, alive, returned, length = carry
    keys = jax.random.split(jax.random.fold_in(step_key, t), num_episodes)
    state, timestep = jax.vmap(env.step)(keys, state, jax.vmap(act)(observation))
    returned = returned + jnp.where(alive, timestep.reward, 0)
    return t + 1, state, timestep.observation, alive & ~timestep.last, returned, length + alive

  zero = jnp.zeros(num_episodes)
  alive = jnp.ones(num_episodes, bool)
  start = (jnp.zeros([], jnp.int32), state, observation, alive, zero, zero.astype(jnp.int32))
  carry = jax.lax.while_loop(running, one, start)
  return carry[4], carry[5]
