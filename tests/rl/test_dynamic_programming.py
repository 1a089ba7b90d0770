"""Dynamic programming against linear programming, plain loops over Gymnasium's tables and known optima."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from mlnotes.rl import dynamic_programming as dp
from mlnotes.rl.gymnasium_bridge import make_gymnasium_env
from mlnotes.rl.table import make_dyna_maze, read_table

value_iteration = jax.jit(dp.value_iteration)
policy_iteration = jax.jit(dp.policy_iteration)
evaluate_policy = jax.jit(dp.evaluate_policy)
evaluate_horizon = jax.jit(dp.evaluate_horizon, static_argnums=3)


@functools.cache
def solved(name, discount=0.99):
  dynamics = read_table(name).dynamics
  return dynamics, value_iteration(dynamics, discount).values


def optimal_policy(name, discount=0.99):
  dynamics, values = solved(name, discount)
  return dp.greedy_policy(dp.compute_action_values(dynamics, values, discount))


@pytest.mark.parametrize("name", ["FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1"])
def test_optimal_values_solve_the_linear_program(name):
  """min sum_s v(s)  subject to  v(s) >= r(s, a) + gamma sum_s' p(s' | s, a) v(s')."""
  table, discount = make_gymnasium_env(name).unwrapped.P, 0.99
  rows, bounds = [], []
  for s, actions in table.items():
    for outcomes in actions.values():
      row, reward = np.zeros(len(table)), 0.0
      row[s] -= 1
      for p, n, r, terminated in outcomes:
        row[n] += 0 if terminated else discount * p
        reward += p * r
      rows.append(row)
      bounds.append(-reward)
  exact = linprog(np.ones(len(table)), np.array(rows), bounds, bounds=(None, None))
  assert exact.success
  np.testing.assert_allclose(solved(name)[1], exact.x, atol=1e-4 * max(1, np.abs(exact.x).max()))


def evaluate_by_sweeps(table, policy, discount, sweeps):
  """Sutton & Barto, section 4.1, in place."""
  v = np.zeros(len(table))
  for _ in range(sweeps):
    for s, actions in table.items():
      v[s] = sum(
        policy[s, a] * p * (r + (0 if terminated else discount * v[n]))
        for a, outcomes in actions.items()
        for p, n, r, terminated in outcomes
      )
  return v


def test_the_value_of_a_random_policy_is_that_of_plain_sweeps():
  name, discount = "FrozenLake-v1", 0.9
  policy = np.random.default_rng(0).dirichlet(np.ones(4), 16).astype(np.float32)
  expected = evaluate_by_sweeps(make_gymnasium_env(name).unwrapped.P, policy, discount, 300)
  dynamics = read_table(name).dynamics
  np.testing.assert_allclose(evaluate_policy(dynamics, policy, discount), expected, atol=1e-6)
  swept = jax.jit(dp.evaluate_policy_iteratively)(dynamics, policy, discount, 1e-7)
  np.testing.assert_allclose(swept.values, expected, atol=1e-5)
  assert 10 < swept.iterations < 300


@pytest.mark.parametrize("name", ["FrozenLake-v1", "FrozenLake8x8-v1", "Taxi-v4"])
def test_policy_iteration_finds_the_same_values_in_fewer_rounds(name):
  dynamics, values = solved(name)
  found = policy_iteration(dynamics, 0.99)
  np.testing.assert_allclose(found.values, values, atol=1e-4 * float(jnp.max(jnp.abs(values))))
  assert found.iterations < 20


@pytest.mark.parametrize(
  ("name", "value", "success", "horizon"),
  [("FrozenLake-v1", 0.5420, 0.740, 100), ("FrozenLake8x8-v1", 0.4146, 0.863, 200)],
)
def test_frozen_lake_has_its_known_optimum(name, value, success, horizon):
  dynamics, values = solved(name)
  policy = np.asarray(optimal_policy(name))
  assert float(dp.start_value(dynamics, values)) == pytest.approx(value, abs=1e-4)
  limited = dp.start_value(dynamics, evaluate_horizon(dynamics, policy, 1.0, horizon))
  assert float(limited) == pytest.approx(success, abs=1e-3)
  # The same by following the distribution over states forward, through Gymnasium's own table.
  world = make_gymnasium_env(name).unwrapped
  where, reached = np.array(world.initial_state_distrib), 0.0
  for _ in range(horizon):
    after = np.zeros_like(where)
    for s in np.flatnonzero(where):
      for p, n, r, terminated in world.P[s][int(np.argmax(policy[s]))]:
        reached += where[s] * p * r
        after[n] += 0 if terminated else where[s] * p
    where = after
  assert float(limited) == pytest.approx(reached, abs=1e-5)


def test_taxi_and_cliff_have_their_known_optimum():
  for name, optimum, horizon in (("Taxi-v4", 7.93, 200), ("CliffWalking-v1", -13.0, 1000)):
    dynamics, values = solved(name, 1.0)
    assert float(dp.start_value(dynamics, values)) == pytest.approx(optimum, abs=1e-3)
    limited = evaluate_horizon(dynamics, optimal_policy(name), 1.0, horizon)
    assert float(dp.start_value(dynamics, limited)) == pytest.approx(optimum, abs=1e-3)


def test_the_maze_is_worth_one_reward_after_14_steps():
  dynamics = make_dyna_maze().dynamics
  values = value_iteration(dynamics, 0.95).values
  assert float(dp.start_value(dynamics, values)) == pytest.approx(0.95**13, rel=1e-5)


def total_rewards_by_plain_sweeps(name, action, sweeps):
  """Undiscounted, over Gymnasium's own table, without an end but the world's."""
  d = read_table(name).dynamics
  where, earned = np.array(d.initial, np.float64), 0.0
  for _ in range(sweeps):
    after = np.zeros_like(where)
    for s in np.flatnonzero(where > 1e-15):
      at = (s, action[s])
      for p, n, r, ended in zip(d.probability[at], d.next_state[at], d.reward[at], d.terminated[at]):
        earned += where[s] * p * r
        after[n] += 0 if ended else where[s] * p
    where = after
  return earned


# The chance of reaching the goal with time without end: 14 in 17, and certainty where one can keep away from all holes.
UNDISCOUNTED = {"FrozenLake-v1": 14 / 17, "FrozenLake8x8-v1": 1, "CliffWalking-v1": -13, "Taxi-v4": 7.93, "DynaMaze": 1}


@pytest.mark.parametrize("name", UNDISCOUNTED)
def test_policy_iteration_without_a_discount_finds_policies_that_end(name):
  """Where nothing is lost by waiting, equals are no optimum: the policy must earn what the values promise."""
  dynamics = read_table(name).dynamics
  found = policy_iteration(dynamics, 1.0)
  assert np.all(np.isfinite(found.values))
  assert float(dp.start_value(dynamics, found.values)) == pytest.approx(UNDISCOUNTED[name], abs=1e-4)
  action = np.asarray(found.policy).argmax(-1)
  assert total_rewards_by_plain_sweeps(name, action, 3000) == pytest.approx(UNDISCOUNTED[name], abs=1e-3)
  doubled = jax.jit(dp.evaluate_doubling)(dynamics, found.policy)
  assert float(dp.start_value(dynamics, doubled)) == pytest.approx(UNDISCOUNTED[name], abs=1e-3)


def test_doubling_is_a_horizon_of_a_power_of_two():
  dynamics = read_table("CliffWalking-v1").dynamics
  policy = np.random.default_rng(0).dirichlet(np.ones(4), 48).astype(np.float32)
  expected = evaluate_horizon(dynamics, policy, 1.0, 64)
  np.testing.assert_allclose(jax.jit(dp.evaluate_doubling, static_argnums=2)(dynamics, policy, 6), expected, rtol=1e-4)
  never = jax.nn.one_hot(jnp.zeros(48, jnp.int32), 4)  # always up
  assert float(dp.start_value(dynamics, jax.jit(dp.evaluate_doubling)(dynamics, never))) == -8192


def test_greedy_policy_takes_the_first_of_equals():
  policy = dp.greedy_policy(jnp.array([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]]))
  np.testing.assert_array_equal(policy, [[0, 1, 0], [1, 0, 0]])
