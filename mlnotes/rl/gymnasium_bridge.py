"""Gymnasium's environments by name, one's own among them, and returns of a trained policy in them.

A policy is a function from a batch of observations (E, ...) to a batch of actions, jitted by the caller. Gymnasium is
imported when it is used.
"""

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from mlnotes.engine.errors import InputError

# Where an environment has no time limit of its own, an episode is stopped here.
LONGEST_EPISODE = 1000


def make_gymnasium_env(name: str, **settings: Any) -> Any:
  """`gymnasium.make` without its notices, and without display and sound; `module:function` by `make_python_env`."""
  os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
  os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
  os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
  import gymnasium

  if ":" in name:
    return make_python_env(name, **settings)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return gymnasium.make(name, **settings)


def has_gymnasium(name: str) -> bool:
  """Whether `make_gymnasium_env` makes an environment of that name."""
  import gymnasium

  return ":" in name or name in gymnasium.registry


def solved_at(name: str) -> float | None:
  """The mean return at which Gymnasium calls the environment solved, where it says so."""
  import gymnasium

  spec = gymnasium.registry.get(name.removeprefix("gymnasium:"))
  return spec.reward_threshold if spec else None


def run_gymnasium_episodes(
  name: str, policy: Callable[[Any], Any], num_episodes: int, seed: int = 0, longest: int = LONGEST_EPISODE
) -> np.ndarray:
  """The return of each of `num_episodes` episodes in Gymnasium, seeded `seed`, `seed + 1`, ...

  All episodes advance together, so that the policy is called once per step on a batch of constant size.
  """
  envs = [make_gymnasium_env(name) for _ in range(num_episodes)]
  observations = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(envs)])
  alive, returns = np.ones(num_episodes, bool), np.zeros(num_episodes)
  for _ in range((envs[0].spec and envs[0].spec.max_episode_steps) or longest):
    actions = np.asarray(policy(as_policy_input(observations)))
    for i in np.flatnonzero(alive):
      observations[i], reward, terminated, truncated, _ = envs[i].step(as_gymnasium_action(actions[i]))
      returns[i] += float(reward)
      alive[i] = not (terminated or truncated)
    if not alive.any():
      break
  for env in envs:
    env.close()
  return returns


def as_policy_input(observations: np.ndarray) -> np.ndarray:
  """A batch of Gymnasium's observations as a policy takes them: numbers of states int32, all else float32."""
  discrete = np.issubdtype(observations.dtype, np.integer) and observations.ndim == 1
  return observations.astype(np.int32 if discrete else np.float32)


def as_gymnasium_action(action: Any) -> Any:
  """A policy's action as Gymnasium takes it: a Python number where it is discrete."""
  return int(action) if np.ndim(action) == 0 else action


def make_python_env(name: str, **settings: Any) -> Any:
  """The Gymnasium environment behind `name`, with observations that are a Discrete number or one Box.

  Dict and Tuple observations are flattened as Gymnasium does it. `settings` are those of a `gymnasium:NAME`; a function
  makes what it makes. Raises InputError for what cannot be made.
  """
  import gymnasium

  module, _, attribute = name.partition(":")
  if not (module and attribute):
    raise InputError(f"--env={name} lacks the {'function' if module else 'module'}: expected module:function.")
  try:
    if module == "gymnasium":
      env = make_gymnasium_env(attribute, disable_env_checker=True, **settings)
    else:
      env = getattr(importlib.import_module(module), attribute)()
  except (ImportError, AttributeError, TypeError, gymnasium.error.Error) as error:
    expected = "gymnasium:NAME, or module:function where the function takes no argument"
    raise InputError(f"--env={name} cannot be made ({type(error).__name__}: {error}): expected {expected}.") from error
  if not isinstance(env, gymnasium.Env):
    raise InputError(f"--env={name} gives {type(env).__name__}: expected a gymnasium.Env.")
  if not isinstance(env.observation_space, (gymnasium.spaces.Discrete, gymnasium.spaces.Box)):
    with contextlib.suppress(NotImplementedError):
      env = gymnasium.wrappers.FlattenObservation(env)
    if not isinstance(env.observation_space, gymnasium.spaces.Box):
      raise InputError(f"--env={name} has observations {env.observation_space}: expected numbers of a fixed count.")
  return env
