"""Environments as pure functions, and the step that starts the next episode by itself.

    env = make_env("CartPole-v1")
    state, observation = env.reset(key)
    state, timestep = env.step(key, state, action)

Two flags must never be confused: an episode *terminates* in a state that has no future (`discount` 0), and it is
*truncated* where a time limit cuts it off (`last` is true while `discount` stays 1, so that the value of
`next_observation` still counts). Everything here works on one environment; `jax.vmap` makes it many.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# A pytree of arrays that only the environment reads.
EnvState: TypeAlias = Any


class TimeStep(NamedTuple):
  """What one action led to.

  Attributes:
    observation: what to act on next. After `step_with_reset`, the first of the next episode where `last`.
    reward: of this action.
    discount: 0 where the episode terminated, otherwise 1, also where a time limit truncated it.
    last: whether the episode ended, by either.
    next_observation: what the action led to, before any reset: values are bootstrapped from this one.
  """

  observation: Any
  reward: Float[Array, "*B"]
  discount: Float[Array, "*B"]
  last: Bool[Array, "*B"]
  next_observation: Any


class Discrete(NamedTuple):
  """Actions 0 .. n - 1, or observations that number the states."""

  n: int


class Box(NamedTuple):
  """Arrays between `low` and `high`, the lowest and the highest bound of any component; +-inf where there is none."""

  shape: tuple[int, ...]
  low: float
  high: float


class Environment(NamedTuple):
  """One environment as two pure functions.

  Attributes:
    name: as in Gymnasium or gymnax.
    reset: key -> (state, observation).
    step: (key, state, action) -> (state, TimeStep), without reset: `observation` is `next_observation`.
    observations: Discrete (int32 scalars) or Box (float32).
    actions: Discrete (int32 scalars) or Box (float32).
    time_limit: steps after which an episode is truncated; 0: none.
  """

  name: str
  reset: Callable[[Key[Array, ""]], tuple[EnvState, Any]]
  step: Callable[[Key[Array, ""], EnvState, Any], tuple[EnvState, TimeStep]]
  observations: Discrete | Box
  actions: Discrete | Box
  time_limit: int


def step_with_reset(
  env: Environment, key: Key[Array, ""], state: EnvState, action: Any, fresh: tuple[EnvState, Any]
) -> tuple[EnvState, TimeStep]:
  """One step, and where it ends the episode, on to the first state of the next.

  `fresh` is what `env.reset` gave: a loop over many steps draws all of them before it starts.
  """
  state, timestep = env.step(key, state, action)
  choose = lambda new, old: jnp.where(timestep.last, new, old)
  state, observation = jax.tree.map(choose, fresh, (state, timestep.next_observation))
  return state, timestep._replace(observation=observation)


class Actors(NamedTuple):
  """Environments in progress, (N,) each, and what their current episodes have earned so far."""

  state: EnvState
  observation: Any
  episode_return: Float[Array, " N"]
  episode_length: Int[Array, " N"]


def init_actors(env: Environment, key: Key[Array, ""], num_envs: int) -> Actors:
  """`num_envs` environments, each at the start of an episode of its own."""
  state, observation = jax.vmap(env.reset)(jax.random.split(key, num_envs))
  # Two buffers: the state is donated, and an observation may be the state itself.
  observation = jax.tree.map(jnp.copy, observation)
  return Actors(state, observation, jnp.zeros(num_envs), jnp.zeros(num_envs, jnp.int32))


class Trajectory(NamedTuple):
  """Transitions with time first: (T, N, ...).

  `episode_return` and `episode_length` are those of the episode that ended with this step; read them where `last`.
  """

  observation: Any
  action: Any
  reward: Float[Array, "T N"]
  discount: Float[Array, "T N"]
  last: Bool[Array, "T N"]
  next_observation: Any
  episode_return: Float[Array, "T N"]
  episode_length: Int[Array, "T N"]


def rollout(
  env: Environment,
  act: Callable[[Any, Any], Any],
  noise: Any,
  key: Key[Array, ""],
  actors: Actors,
  memory: Any = None,
) -> tuple[Actors, Trajectory]:
  """Acts in N environments for T steps; episodes follow one another.

  All random numbers are drawn before the loop, in one call each, which on small environments is most of the speed.

  Args:
    act: (noise of one step, observations (N, ...)) -> actions (N, ...).
    noise: a pytree with leading axes (T, N): what `act` uses to explore.
    memory: what `act` starts from where it remembers something from step to step. It is then
      (noise, observations, whether they begin an episode, memory) -> (actions, memory).
  """
  num_steps, num_envs = jax.tree.leaves(noise)[0].shape[:2]
  step_key, reset_key = jax.random.split(key)
  step_keys = jax.random.split(step_key, (num_steps, num_envs))
  fresh = jax.vmap(jax.vmap(env.reset))(jax.random.split(reset_key, (num_steps, num_envs)))
  advance = jax.vmap(step_with_reset, in_axes=(None, 0, 0, 0, 0))

  def one(carry, inputs):
    actors, memory = carry
    noise, keys, fresh = inputs
    if memory is None:
      action = act(noise, actors.observation)
    else:
      action, memory = act(noise, actors.observation, actors.episode_length == 0, memory)
    state, timestep = advance(env, keys, actors.state, action, fresh)
    returned = actors.episode_return + timestep.reward
    length = actors.episode_length + 1
    transition = Trajectory(
      observation=actors.observation,
      action=action,
      reward=timestep.reward,
      discount=timestep.discount,
      last=timestep.last,
      next_observation=timestep.next_observation,
      episode_return=returned,
      episode_length=length,
    )
    # A selection: times 0, a return that is not finite would never end.
    from_zero = lambda x: jnp.where(timestep.last, 0, x)
    actors = Actors(state, timestep.observation, from_zero(returned), from_zero(length))
    return (actors, memory), transition

  (actors, _), trajectory = jax.lax.scan(one, (actors, memory), (noise, step_keys, fresh))
  return actors, trajectory


def clip_actions(env: Environment) -> Environment:
  """The environment with continuous actions cut to their bounds before they are taken; others as they are."""
  if isinstance(env.actions, Discrete):
    return env
  clip = lambda action: jnp.clip(action, env.actions.low, env.actions.high)
  return env._replace(step=lambda key, state, action: env.step(key, state, clip(action)))
