"""Worlds small enough to write down: every outcome of every action in one table.

    table = read_table("FrozenLake-v1")     # Gymnasium's own probabilities
    env = make_table_env(table)             # the same world, stepped on the device

`table.dynamics` holds arrays only, for `mlnotes.rl.dynamic_programming`; the rest describes the world for people.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.engine.errors import InputError
from mlnotes.rl.env import (
  Discrete,
  Environment,
  TimeStep,
)

# Names of Gymnasium whose whole dynamics is a table.
TABLE_ENVS = ("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4")


class Dynamics(NamedTuple):
  """p(s', r | s, a) with S states, A actions and at most K outcomes of each pair; host arrays or device arrays.

  Attributes:
    next_state: int32 (S, A, K).
    probability: float32 (S, A, K), sums to 1 over K; 0 fills up the pairs with fewer outcomes.
    reward: float32 (S, A, K).
    terminated: bool (S, A, K): the outcome ends the episode, so nothing of `next_state`'s value counts.
    initial: float32 (S,), the distribution of the first state.
  """

  next_state: Int[Array, "S A K"]
  probability: Float[Array, "S A K"]
  reward: Float[Array, "S A K"]
  terminated: Bool[Array, "S A K"]
  initial: Float[Array, " S"]


class Table(NamedTuple):
  """A world with its name and what a picture of it needs.

  Attributes:
    dynamics: the arrays.
    time_limit: steps after which an episode is truncated; 0: none.
    actions: their names, in order.
    cells: rows of one letter per state where the world is a grid, numbered row by row: S start, G goal, H hole,
      C cliff, # wall, any other letter: free. () where it is none.
  """

  name: str
  dynamics: Dynamics
  time_limit: int
  actions: tuple[str, ...]
  cells: tuple[str, ...] = ()

  @property
  def num_states(self) -> int:
    return self.dynamics.next_state.shape[0]

  @property
  def num_actions(self) -> int:
    return self.dynamics.next_state.shape[1]


_ACTIONS = {
  "FrozenLake": ("left", "down", "right", "up"),
  "CliffWalking": ("up", "right", "down", "left"),
  "Taxi": ("down", "up", "right", "left", "pick up", "drop off"),
}


def read_table(name: str) -> Table:
  """Gymnasium's own table of one of `TABLE_ENVS`, or "DynaMaze". Raises InputError for another name."""
  if name == "DynaMaze":
    return make_dyna_maze()
  from mlnotes.rl.gymnasium_bridge import make_gymnasium_env

  if name not in TABLE_ENVS:
    raise InputError(f"--env={name} is not a table: expected one of {', '.join(TABLE_ENVS)}, DynaMaze.")
  env = make_gymnasium_env(name)
  world = env.unwrapped
  family = next(key for key in _ACTIONS if name.startswith(key))
  cells = ()
  if family == "FrozenLake":
    cells = tuple(b"".join(row).decode() for row in world.desc)
  elif family == "CliffWalking":
    height, width = world.shape
    cells = ("." * width,) * (height - 1) + ("S" + "C" * (width - 2) + "G",)
  time_limit = env.spec.max_episode_steps or 0
  dynamics = _read_outcomes(world.P, world.initial_state_distrib)
  env.close()
  return Table(name, dynamics, time_limit, _ACTIONS[family], cells)


def _read_outcomes(table: dict, initial: np.ndarray) -> Dynamics:
  """Gymnasium's {state: {action: [(probability, next state, reward, terminated), ...]}} as arrays."""
  num_actions = len(table[0])
  most = max(len(outcomes) for actions in table.values() for outcomes in actions.values())
  shape = (len(table), num_actions, most)
  # What fills up stays in state 0 with probability 0.
  next_state, probability = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
  reward, terminated = np.zeros(shape, np.float32), np.zeros(shape, bool)
  for s, actions in table.items():
    for a, outcomes in actions.items():
      for k, outcome in enumerate(outcomes):
        probability[s, a, k], next_state[s, a, k], reward[s, a, k], terminated[s, a, k] = outcome
  return Dynamics(next_state, probability, reward, terminated, np.asarray(initial, np.float32))


def make_dyna_maze() -> Table:
  """The maze of Sutton & Barto's example 8.1: 6 x 9 cells, reward 1 at the goal, where the episode ends, 0 elsewhere.

  The shortest way takes 14 steps. A move into a wall or off the grid stays where it is.
  """
  cells = (
    ".......#G",
    "..#....#.",
    "S.#....#.",
    "..#......",
    ".....#...",
    ".........",
  )
  return _make_maze("DynaMaze", cells)


def _make_maze(name: str, cells: tuple[str, ...]) -> Table:
  letters = np.array([list(row) for row in cells])
  height, width = letters.shape
  moves = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
  shape = (letters.size, len(moves), 1)
  next_state = np.zeros(shape, np.int32)
  for s in range(letters.size):
    row, column = divmod(s, width)
    for a, (down, right) in enumerate(moves.values()):
      to = min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)
      next_state[s, a, 0] = s if letters[to] == "#" else to[0] * width + to[1]
  at_goal = letters.reshape(-1)[next_state] == "G"
  initial = np.float32(letters.reshape(-1) == "S")
  dynamics = Dynamics(next_state, np.ones(shape, np.float32), np.float32(at_goal), at_goal, initial)
  return Table(name, dynamics, 0, tuple(moves), cells)


# -- stepping ----------------------------------------------------------------------------------------------------------


class TableState(NamedTuple):
  """Where an episode is: the state's number and the steps taken."""

  index: Int[Array, ""]
  time: Int[Array, ""]


def sample_initial(dynamics: Dynamics, uniform: Float[Array, "*B"]) -> Int[Array, "*B"]:
  """First states by inversion of their cumulative distribution at numbers uniform on [0, 1)."""
  initial = np.asarray(dynamics.initial)
  # States that no episode starts in are left out, so that rounding cannot reach one.
  starts = np.flatnonzero(initial)
  cumulative = np.cumsum(initial[starts].astype(np.float64))[:-1].astype(np.float32)
  if len(starts) == 1:
    return jnp.full(uniform.shape, int(starts[0]), jnp.int32)
  chosen = jnp.searchsorted(jnp.asarray(cumulative), uniform, side="right")
  return jnp.asarray(starts, jnp.int32)[chosen]


def advance_table(
  table: Table, uniform: Float[Array, ""], state: TableState, action: Int[Array, ""]
) -> tuple[TableState, TimeStep]:
  """One step, with the outcome by inversion of its cumulative distribution at one number uniform on [0, 1)."""
  dynamics = table.dynamics
  at = (state.index, action)
  outcomes = dynamics.next_state.shape[-1]
  if outcomes > 1:
    # Sums of all but the last outcome that can happen, then above any number: rounding cannot reach what cannot happen.
    probability = np.asarray(dynamics.probability, np.float64)
    last = outcomes - 1 - np.argmax(probability[..., ::-1] > 0, axis=-1)
    cumulative = np.cumsum(probability, axis=-1)
    cumulative[np.arange(outcomes) >= last[..., None]] = 2
    at = (*at, jnp.sum(jnp.asarray(cumulative, jnp.float32)[at] <= uniform))
  else:
    at = (*at, 0)
  index = jnp.asarray(dynamics.next_state)[at]
  time = state.time + 1
  terminated = jnp.asarray(dynamics.terminated)[at]
  truncated = time >= table.time_limit if table.time_limit else jnp.zeros_like(terminated)
  reward = jnp.asarray(dynamics.reward)[at]
  discount = 1.0 - terminated.astype(jnp.float32)
  return TableState(index, time), TimeStep(index, reward, discount, terminated | truncated, index)


def make_table_env(table: Table) -> Environment:
  """The table as an environment: observations are the states' numbers, actions are numbers too."""

  def reset(key: Key[Array, ""]):
    index = sample_initial(table.dynamics, jax.random.uniform(key))
    return TableState(index, jnp.zeros([], jnp.int32)), index

  def step(key: Key[Array, ""], state: TableState, action):
    return advance_table(table, jax.random.uniform(key), state, action)

  return Environment(table.name, reset, step, Discrete(table.num_states), Discrete(table.num_actions), table.time_limit)
