"""gymnax's environments as those of this chapter, stepping as Gymnasium's of the same name do."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from mlnotes.engine.errors import InputError, nearest
from mlnotes.rl.env import Box, Discrete, Environment, EnvState, TimeStep
from mlnotes.rl.table import TABLE_ENVS


def _space(space: Any) -> Discrete | Box:
  from gymnax.environments import spaces

  if isinstance(space, spaces.Discrete):
    return Discrete(int(space.n))
  bounded = lambda bound, pick: float(pick(jnp.asarray(bound)))
  low, high = bounded(space.low, jnp.min), bounded(space.high, jnp.max)
  return Box(tuple(space.shape), low, high)


def step_continuous_mountain_car(key: Key[Array, ""], state: EnvState, action: Any, params: Any):
  """One step of Gymnasium's MountainCarContinuous-v0, on the state and the parameters of gymnax's.

  gymnax's own keeps the velocity of a car that hits the left wall, and sets a negative one at the goal to 0, which ends
  an episode that Gymnasium lets go on.
  """
  (action,) = action
  force = jnp.clip(action, params.min_action, params.max_action)
  velocity = state.velocity + force * params.power - params.gravity * jnp.cos(3 * state.position)
  velocity = jnp.clip(velocity, -params.max_speed, params.max_speed)
  position = jnp.clip(state.position + velocity, params.min_position, params.max_position)
  velocity = jnp.where((position == params.min_position) & (velocity < 0), 0.0, velocity)
  terminated = (position >= params.goal_position) & (velocity >= params.goal_velocity)
  reward = jnp.where(terminated, 100.0, 0.0) - 0.1 * action**2
  state = state.replace(position=position, velocity=velocity, time=state.time + 1)
  return jnp.stack([position, velocity]), state, reward, terminated, {}


# Steps that take the place of gymnax's, where those are not what the name says.
_STEPS = {"MountainCarContinuous-v0": step_continuous_mountain_car}


def make_gymnax_env(name: str, **params: Any) -> Environment:
  """An environment of gymnax, with `params` in place of its own parameters (`max_steps_in_episode=5000`).

  Those of a name that Gymnasium has too step as Gymnasium's do, and the time limit truncates as there: after the step
  with that number. Raises InputError for an unknown name.
  """
  import gymnax

  try:
    env, defaults = gymnax.make(name)
  except ValueError:
    known = (*TABLE_ENVS, *gymnax.registered_envs, "gymnasium:NAME", "module:function")
    raise InputError(f"--env={name} is not an environment: {nearest(name, known)}") from None
  except OSError as error:  # one that downloads its data
    raise InputError(f"--env={name} needs data that cannot be loaded ({error}): expected another one.") from error
  settings = defaults.replace(**params)
  step_env = _STEPS.get(name, env.step_env)
  observations, actions = _space(env.observation_space(settings)), _space(env.action_space(settings))
  # gymnax counts in Python numbers after a reset and in arrays after a step: one (strong) type for both.
  settle = lambda state: jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)

  def reset(key):
    observation, state = env.reset_env(key, settings)
    return settle(state), jnp.asarray(observation, jnp.float32)

  def step(key, state, action):
    observation, new, reward, terminated, _ = step_env(key, state, action, settings)
    new = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype).reshape(like.shape), new, state)
    terminated = jnp.asarray(terminated, bool)
    truncated = jnp.asarray(env.is_truncated(new, settings), bool)
    observation = jnp.asarray(observation, jnp.float32)
    reward = jnp.asarray(reward, jnp.float32).reshape(())
    discount = 1.0 - terminated.astype(jnp.float32)
    return new, TimeStep(observation, reward, discount, terminated | truncated, observation)

  return Environment(name, reset, step, observations, actions, int(settings.max_steps_in_episode))
