"""Whole episodes from many environments at once, for the Monte-Carlo policy gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from mlnotes.rl.env import Environment


class Episodes(NamedTuple):
  """One episode per environment from its first step, time first (T, N); steps after its end are padding.

  `real` is true up to and including the last step. At a truncation `discount` is 1 and `last` true, as everywhere.
  """

  observation: Any
  action: Any
  reward: Float[Array, "T N"]
  discount: Float[Array, "T N"]
  last: Bool[Array, "T N"]
  next_observation: Any
  real: Bool[Array, "T N"]


def run_whole_episodes(env: Environment, act: Callable[[Any, Any], Any], noise: Any, key: Key[Array, ""]) -> Episodes:
  """Starts N environments and acts until each has ended, at most T steps; `noise` (T, N, ...) is what `act` uses.

  An episode that is still running after T steps is cut there like one that its time limit truncates. After its end an
  environment repeats its last step and action, so that padding holds nothing that was not met before it.
  """
  num_steps, num_envs = jax.tree.leaves(noise)[0].shape[:2]
  reset_key, step_key = jax.random.split(key)
  state, observation = jax.vmap(env.reset)(jax.random.split(reset_key, num_envs))
  keys = jax.random.split(step_key, (num_steps, num_envs))

  def choose(rows, new, old):
    pick = lambda x, y: jnp.where(rows.reshape(-1, *(1 for _ in x.shape[1:])), x, y)
    return jax.tree.map(pick, new, old)

  def one(carry, inputs):
    state, observation, action, alive, t = carry
    noise, keys = inputs
    action = choose(alive, act(noise, observation), action)
    new, timestep = jax.vmap(env.step)(keys, state, action)
    last = timestep.last | (t == num_steps - 1)
    step = Episodes(
      observation, action, timestep.reward, timestep.discount, last, timestep.next_observation, alive
    )  # fmt: skip
    goes_on = alive & ~last
    state, observation = choose(goes_on, (new, timestep.observation), (state, observation))
    return (state, observation, action, goes_on, t + 1), step

  spec = jax.eval_shape(act, jax.tree.map(lambda x: x[0], noise), observation)
  action = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), spec)
  start = (state, observation, action, jnp.ones(num_envs, bool), jnp.zeros([], jnp.int32))
  return jax.lax.scan(one, start, (noise, keys))[1]


def masked_mean(x: Float[Array, "*B"], real: Bool[Array, "*B"]) -> Float[Array, ""]:
  """The mean of the entries that are `real`, 0 where there are none. The others have no part in it, nor a gradient."""
  return jnp.sum(jnp.where(real, x, 0)) / jnp.maximum(jnp.sum(real), 1)


def masked_standardize(x: Float[Array, "*B"], real: Bool[Array, "*B"]) -> Float[Array, "*B"]:
  """To mean 0 and standard deviation 1 over the entries that are `real`; the others become 0."""
  # The selection comes first: behind it, what is not finite would still be in the gradient, as 0 times infinity.
  x = jnp.where(real, x, 0)
  mean = masked_mean(x, real)
  variance = masked_mean((x - mean) ** 2, real)
  std = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
  return jnp.where(real, (x - mean) / (std + 1e-8), 0.0)
