"""Tables against the Gymnasium environments that they were read from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.engine.errors import InputError
from mlnotes.rl.gymnasium_bridge import make_gymnasium_env
from mlnotes.rl.registry import make_env
from mlnotes.rl.table import (
  TABLE_ENVS,
  TableState,
  advance_table,
  make_dyna_maze,
  make_table_env,
  read_table,
  sample_initial,
)

each_table = pytest.mark.parametrize("name", TABLE_ENVS)


@each_table
def test_every_outcome_is_gymnasiums(name):
  table, world = read_table(name), make_gymnasium_env(name).unwrapped
  d = table.dynamics
  assert d.next_state.shape[:2] == (world.observation_space.n, world.action_space.n)
  np.testing.assert_allclose(d.initial, world.initial_state_distrib, rtol=1e-6)
  for s, actions in world.P.items():
    for a, outcomes in actions.items():
      found = [
        (pytest.approx(p, rel=1e-6), n, r, t)
        for p, n, r, t in zip(d.probability[s, a], d.next_state[s, a], d.reward[s, a], d.terminated[s, a])
      ]
      assert found[: len(outcomes)] == [tuple(outcome) for outcome in outcomes]
      assert not d.probability[s, a, len(outcomes) :].any()


@each_table
def test_time_limit_is_the_registered_one(name):
  assert make_env(name).time_limit == (make_gymnasium_env(name).spec.max_episode_steps or 0)


@pytest.mark.parametrize("name", ["FrozenLake-v1", "FrozenLake8x8-v1"])
def test_sampled_outcomes_have_the_tables_probabilities(name):
  """Evenly spread uniform numbers give each next state its probability, to one part in their number."""
  table, count = read_table(name), 600
  uniform = (jnp.arange(count) + 0.5) / count
  state = lambda s: TableState(s, jnp.int32(0))
  step = lambda s, a, u: advance_table(table, u, state(s), a)[1]
  grid = jax.vmap(jax.vmap(jax.vmap(step, (None, None, 0)), (None, 0, None)), (0, None, None))
  s, a = jnp.arange(table.num_states), jnp.arange(table.num_actions)
  led_to = np.asarray(jax.jit(grid)(s, a, uniform).next_observation)
  world = make_gymnasium_env(name).unwrapped
  for s, actions in world.P.items():
    for a, outcomes in actions.items():
      expected = np.zeros(table.num_states)
      for p, n, _, _ in outcomes:
        expected[n] += p
      np.testing.assert_allclose(
        np.bincount(led_to[s, a], minlength=table.num_states) / count, expected, atol=2 / count
      )


def test_the_largest_uniform_number_reaches_nothing_impossible():
  """Rounded sums of thirds stay below it; what fills up the table must still not be chosen."""
  table = read_table("FrozenLake-v1")
  largest = jnp.float32(1 - 2**-24)
  for s in (0, 5):  # 5 is a hole, with one outcome instead of three
    after, _ = advance_table(table, largest, TableState(jnp.int32(s), jnp.int32(0)), jnp.int32(1))
    assert int(after.index) in {n for _, n, _, _ in make_gymnasium_env("FrozenLake-v1").unwrapped.P[s][1]}
  assert read_table("Taxi-v4").dynamics.initial[int(sample_initial(read_table("Taxi-v4").dynamics, largest))] > 0


def test_first_states_of_the_taxi_are_uniform_over_the_possible_ones():
  table, count = read_table("Taxi-v4"), 30_000
  first = sample_initial(table.dynamics, (jnp.arange(count) + 0.5) / count)
  world = make_gymnasium_env("Taxi-v4").unwrapped
  np.testing.assert_allclose(np.bincount(first, minlength=500) / count, world.initial_state_distrib, atol=2 / count)


@pytest.mark.parametrize("name", ["CliffWalking-v1", "Taxi-v4"])
def test_deterministic_worlds_go_step_for_step_with_gymnasium(name, key):
  env, world = make_table_env(read_table(name)), make_gymnasium_env(name)
  step = jax.jit(env.step)
  rng = np.random.default_rng(0)
  ends = 0
  observation, _ = world.reset(seed=0)
  state = TableState(jnp.int32(observation), jnp.int32(0))
  for i in range(600):
    # Mostly to the right and down, which ends an episode of the cliff now and then.
    action = int(rng.choice(env.actions.n, p=[0.25, 0.35, *[0.4 / (env.actions.n - 2)] * (env.actions.n - 2)]))
    state, timestep = step(jax.random.fold_in(key, i), state, jnp.int32(action))
    observation, reward, terminated, truncated, _ = world.step(action)
    found = tuple(map(float, (timestep.next_observation, timestep.reward, timestep.discount, timestep.last)))
    assert found == (observation, reward, 1 - terminated, terminated or truncated)
    if terminated or truncated:
      ends += 1
      observation, _ = world.reset()
      state = TableState(jnp.int32(observation), jnp.int32(0))
  assert ends >= (2 if name == "Taxi-v4" else 1)


def walk(env, actions):
  state, _ = env.reset(jax.random.key(0))
  step = jax.jit(env.step)
  for i, action in enumerate(actions):
    state, timestep = step(jax.random.key(i), state, jnp.int32(action))
    yield timestep


def test_a_time_limit_truncates_and_does_not_terminate():
  steps = list(walk(make_env("Taxi-v4"), [0] * 200))
  assert not any(bool(t.last) for t in steps[:-1])
  assert bool(steps[-1].last) and float(steps[-1].discount) == 1


def test_the_goal_terminates():
  steps = list(walk(make_env("CliffWalking-v1"), [0, *[1] * 11, 2]))
  assert [bool(t.last) for t in steps] == [False] * 12 + [True]
  assert float(steps[-1].discount) == 0 and sum(float(t.reward) for t in steps) == -13


def test_the_dyna_mazes_shortest_way_takes_14_steps():
  """Breadth-first search; walls are never entered."""
  maze = make_dyna_maze()
  letters = "".join(maze.cells)
  assert not any(letters[n] == "#" for s, n in np.ndenumerate(maze.dynamics.next_state[..., 0]) if letters[s[0]] != "#")
  frontier, steps, seen = {letters.index("S")}, 0, set()
  while letters.index("G") not in frontier:
    seen |= frontier
    frontier = {int(n) for s in frontier for n in maze.dynamics.next_state[s, :, 0]} - seen
    steps += 1
  assert steps == 14
  np.testing.assert_array_equal(maze.dynamics.reward > 0, maze.dynamics.terminated)


def test_an_unknown_table_is_named():
  with pytest.raises(InputError, match="CartPole-v1 is not a table"):
    read_table("CartPole-v1")
