"""Environments that run in Python, as pure functions on the device: any of Gymnasium's, or one's own.

    env = make_host_env("gymnasium:Blackjack-v1")
    env = make_host_env("mypackage.worlds:make_maze")     # a function or class without arguments

A Gymnasium environment hides its state. Here the state of an episode is the seed that it was reset with and the actions
taken in it, so that a step is a function of its arguments: the host keeps environments that are under way, and where
none is at the right place, as after a restart, it resets one and takes the actions again. This is exact for
environments that are deterministic given seed and actions, which is tried once when one is made.
"""

import collections
import functools
import inspect
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, Num, UInt32

from mlnotes.engine.errors import InputError
from mlnotes.rl.env import Box, Discrete, Environment, TimeStep
from mlnotes.rl.gymnasium_bridge import LONGEST_EPISODE, make_python_env

# Seeds whose environments are kept under way; with more at a time, each step takes all of its episode's again.
_KEPT = 4096
# Environments of one seed: agents that differ in their actions alone, and those that two devices train alike.
_KEPT_OF_A_SEED = 16
_TRIED = 25


class HostState(NamedTuple):
  """An episode by what determines it: its seed, and the actions of which the first `time` were taken.

  `over`: whether it has ended. What is stepped all the same, beside others that go on, waits: observations of zeros,
  no reward.
  """

  seed: UInt32[Array, ""]
  actions: Num[Array, "..."]
  time: Int[Array, ""]
  over: Bool[Array, ""]


def _read_spaces(name: str, env: Any) -> tuple[Discrete | Box, Discrete | Box]:
  from gymnasium import spaces

  def convert(space):
    if isinstance(space, spaces.Discrete):
      if space.start:
        raise InputError(f"--env={name} numbers {space} from {space.start}: expected numbers from 0.")
      return Discrete(int(space.n))
    return Box(tuple(space.shape), float(space.low.min()), float(space.high.max()))

  actions = env.action_space
  if isinstance(actions, spaces.Box) and not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
    raise InputError(f"--env={name} has actions {actions}: expected finite bounds, as those of spaces.Box(-1, 1, ..).")
  if isinstance(actions, spaces.Box) and (np.ptp(actions.low) or np.ptp(actions.high)):
    raise InputError(f"--env={name} has other bounds for each action: wrap it in gymnasium.wrappers.RescaleAction.")
  if not isinstance(actions, (spaces.Box, spaces.Discrete)):
    raise InputError(f"--env={name} has actions {actions}: expected Discrete or Box ones.")
  return convert(env.observation_space), convert(actions)


def _kind(found: Any) -> str:
  return f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__


class _Host:
  """What runs in Python: a function of seed and actions, with environments under way so that it need not start anew."""

  def __init__(self, name: str):
    self.name = name
    self.lock = threading.Lock()
    self.idle: list[Any] = []
    # seed -> [(environment, actions taken)], the longest unused first
    self.running: collections.OrderedDict[int, list[tuple[Any, np.ndarray]]] = collections.OrderedDict()
    # seed -> (all actions, what the last led to) of episodes that have ended: padding repeats it
    self.ended: collections.OrderedDict[int, tuple[np.ndarray, tuple]] = collections.OrderedDict()
    self.example = make_python_env(name)
    self.observations, self.actions = _read_spaces(name, self.example)
    parameters = inspect.signature(self.example.unwrapped.reset).parameters.values()
    if not any(p.name == "seed" or p.kind == p.VAR_KEYWORD for p in parameters):
      raise InputError(f"--env={name}: its reset takes no seed: expected reset(self, *, seed=None, options=None).")
    self.waiting = np.zeros_like(self.reset(0)), np.float32(0), True, False
    self.time_limit = (self.example.spec and self.example.spec.max_episode_steps) or LONGEST_EPISODE

  def observe(self, observation: Any) -> Any:
    discrete = isinstance(self.observations, Discrete)
    try:
      found = np.asarray(observation)
      found = found.astype(np.float32) if not discrete else found
      said = f"shape {found.shape}" + (f" and type {found.dtype}" if discrete else "")
    except (TypeError, ValueError):
      found, said = np.zeros(0), f"type {type(observation).__name__}"
    if discrete and found.shape == () and np.issubdtype(found.dtype, np.integer) and 0 <= found < self.observations.n:
      return np.int32(found)
    if not discrete and found.shape == self.observations.shape:
      return found
    said = f"the value {observation}" if discrete and found.shape == () else said
    space = self.example.observation_space
    raise InputError(
      f"--env={self.name} gives an observation of {said}: expected one of its observation_space {space}."
    )

  def take(self, env: Any, action: Any) -> tuple[Any, float, bool, bool]:
    discrete = isinstance(self.actions, Discrete)
    action = int(action) if discrete else np.asarray(action, self.example.action_space.dtype)
    found = env.step(action)
    if not isinstance(found, tuple) or len(found) != 5:
      expected = "(observation, reward, terminated, truncated, info)"
      raise InputError(f"--env={self.name}: its step gives {_kind(found)}: expected {expected}.")
    return found[:4]

  def reset(self, seed: Any) -> Any:
    return self.begin(self.example, seed)

  def begin(self, env: Any, seed: Any) -> Any:
    found = env.reset(seed=int(seed))
    if not isinstance(found, tuple) or len(found) != 2:
      raise InputError(f"--env={self.name}: its reset gives {_kind(found)}: expected (observation, info).")
    return self.observe(found[0])

  def step(self, seed: Any, actions: np.ndarray, time: Any) -> tuple[Any, Any, bool, bool]:
    """The step number `time`, counted from 1, of the episode."""
    seed, before = int(seed), actions[: time - 1]
    taken, found = self.ended.get(seed, (None, ()))
    if taken is not None and np.array_equal(taken, actions[:time]):
      return found
    worlds = self.running.pop(seed, [])
    at = next((i for i, (_, taken) in enumerate(worlds) if np.array_equal(taken, before)), None)
    if at is not None:
      env, _ = worlds.pop(at)
    else:
      env = worlds.pop(0)[0] if len(worlds) == _KEPT_OF_A_SEED else self._find_env()
      env.reset(seed=seed)
      for action in before:
        self.take(env, action)
    observation, reward, terminated, truncated = self.take(env, actions[time - 1])
    truncated = bool(truncated or time >= self.time_limit)
    found = self.observe(observation), np.float32(reward), bool(terminated), truncated
    if terminated or truncated:
      self.idle.append(env)
      self.ended[seed] = actions[:time].copy(), found
      if len(self.ended) > _KEPT:
        self.ended.popitem(last=False)
    else:
      worlds.append((env, actions[:time].copy()))
    if worlds:
      self.running[seed] = worlds
    return found

  def _find_env(self) -> Any:
    if self.idle:
      return self.idle.pop()
    if len(self.running) >= _KEPT:
      self.idle += [env for env, _ in self.running.popitem(last=False)[1]]
      return self.idle.pop()
    return make_python_env(self.name)

  def reset_many(self, seed: Any) -> np.ndarray:
    seed = np.asarray(seed)
    with self.lock:
      found = [self.reset(s) for s in seed.reshape(-1)]
    return np.stack(found).reshape((*seed.shape, *found[0].shape))

  def step_many(self, seed: Any, actions: Any, time: Any, over: Any) -> tuple[np.ndarray, ...]:
    seed, actions, time, over = (np.asarray(x) for x in (seed, actions, time, over))
    rows = zip(seed.reshape(-1), actions.reshape(-1, *actions.shape[seed.ndim :]), time.reshape(-1))
    with self.lock:
      found = [self.waiting if done else self.step(*row) for done, row in zip(over.reshape(-1), rows)]
    join = lambda values: np.stack(values).reshape((*seed.shape, *np.shape(values[0])))
    return tuple(join(values) for values in zip(*found))

  def require_determinism(self) -> None:
    """Raises InputError where the same seed and actions give two different episodes."""
    rng = np.random.default_rng(0)
    if isinstance(self.actions, Discrete):
      actions = rng.integers(self.actions.n, size=_TRIED)
    else:
      low, high = (np.clip(bound, -1e3, 1e3) for bound in (self.actions.low, self.actions.high))
      actions = rng.uniform(low, high, (_TRIED, *self.actions.shape)).astype(np.float32)

    def play(env):
      rows = [(self.begin(env, 7),)]
      for action in actions:
        observation, *rest = self.take(env, action)
        rows.append((self.observe(observation), *rest))
        for what, value in (("reward", rest[0]), ("observation", rows[-1][0])):
          if np.isnan(value).any() or (what == "reward" and not np.isfinite(value)):
            raise InputError(
              f"--env={self.name} gives the {what} {value} after {len(rows) - 1} steps: expected numbers."
            )
        if rest[1] or rest[2]:
          break
      return rows

    first, second = play(self.example), play(make_python_env(self.name))
    same = len(first) == len(second) and all(
      np.array_equal(x, y) for one, other in zip(first, second) for x, y in zip(one, other)
    )
    if not same:
      raise InputError(
        f"--env={self.name} gave two different episodes for one seed and the same actions: expected an environment "
        "whose every random number comes from the seed of reset."
      )


@functools.cache
def _make_host(name: str) -> _Host:
  host = _Host(name)
  host.require_determinism()
  return host


def make_host_env(name: str) -> Environment:
  """The environment behind `gymnasium:NAME` or `module:function`, stepped on the host from within compiled programs.

  Raises InputError where it cannot be made, is not deterministic, has spaces of another kind, or gives in its first
  steps what its spaces do not hold.
  """
  host = _make_host(name)
  if isinstance(host.observations, Discrete):
    observed = jax.ShapeDtypeStruct((), jnp.int32)
  else:
    observed = jax.ShapeDtypeStruct(host.observations.shape, jnp.float32)
  scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype)
  many = {"vmap_method": "broadcast_all"}
  if isinstance(host.actions, Discrete):
    none = jnp.zeros(host.time_limit, jnp.int32)
  else:
    none = jnp.zeros((host.time_limit, *host.actions.shape), jnp.float32)

  def reset(key: Key[Array, ""]):
    # Gymnasium's seeds are signed.
    seed = jax.random.bits(key, (), jnp.uint32) >> 1
    observation = jax.pure_callback(host.reset_many, observed, seed, **many)
    return HostState(seed, none, jnp.zeros([], jnp.int32), jnp.zeros([], bool)), observation

  def step(key: Key[Array, ""], state: HostState, action):
    del key  # all chance comes from the episode's seed
    actions = state.actions.at[state.time].set(jnp.asarray(action, none.dtype))
    time = state.time + 1
    shapes = (observed, scalar(jnp.float32), scalar(bool), scalar(bool))
    found = jax.pure_callback(host.step_many, shapes, state.seed, actions, time, state.over, **many)
    observation, reward, terminated, truncated = found
    discount = 1.0 - terminated.astype(jnp.float32)
    last = terminated | truncated
    return HostState(state.seed, actions, time, last), TimeStep(observation, reward, discount, last, observation)

  return Environment(name, reset, step, host.observations, host.actions, host.time_limit)
