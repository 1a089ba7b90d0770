"""The short corridor: its values from the linear equations, and REINFORCE from the book's box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.rl import corridor
from mlnotes.rl.env import init_actors, rollout


@pytest.mark.parametrize("right", [0.05, 0.4, corridor.BEST_RIGHT, 0.95])
def test_the_start_value_solves_the_equations_of_the_world(right):
  left = 1 - right
  transitions = np.array([[left, right, 0], [right, 0, left], [0, left, 0]])
  value = np.linalg.solve(np.eye(3) - transitions, -np.ones(3))
  assert corridor.compute_start_value(right) == pytest.approx(value[0])


def test_no_other_probability_is_better_than_the_best():
  others = [corridor.compute_start_value(p) for p in np.linspace(0.01, 0.99, 197)]
  best = corridor.compute_start_value(corridor.BEST_RIGHT)
  assert max(others) <= best == pytest.approx(-11.66, abs=0.005)
  # The two values that example 13.1 gives for epsilon = 0.1.
  assert corridor.compute_start_value(0.95) == pytest.approx(-44, abs=0.5)
  assert corridor.compute_start_value(0.05) == pytest.approx(-82, abs=0.5)


def test_the_environment_moves_as_the_book_says():
  env = corridor.make_corridor(50)
  step = jax.jit(env.step)
  for cell, action, arrives in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 2), (2, 0, 3), (2, 1, 1)]:
    state = (jnp.int32(cell), jnp.int32(0))
    (found, _), timestep = step(jax.random.key(0), state, jnp.int32(action))
    assert int(found) == arrives and float(timestep.reward) == -1
    assert bool(timestep.last) == (arrives == corridor.GOAL) and float(timestep.discount) == (arrives != corridor.GOAL)
  _, timestep = step(jax.random.key(0), (jnp.int32(0), jnp.int32(49)), jnp.int32(1))
  assert bool(timestep.last) and float(timestep.discount) == 1


def test_episodes_of_the_environment_earn_the_exact_value():
  env = corridor.make_corridor(1000)

  @jax.jit
  def mean_return(key):
    reset_key, noise_key, key = jax.random.split(key, 3)
    noise = jax.random.uniform(noise_key, (2000, 64))
    act = lambda noise, observation: jnp.where(noise < 0.6, corridor.RIGHT, corridor.LEFT)
    _, trajectory = rollout(env, act, noise, key, init_actors(env, reset_key, 64))
    return jnp.sum(trajectory.episode_return * trajectory.last) / jnp.sum(trajectory.last)

  assert float(mean_return(jax.random.key(0))) == pytest.approx(corridor.compute_start_value(0.6), rel=0.03)


def reinforce_box(theta, w, actions, rewards, theta_step, w_step):
  """The box in section 13.4: x(s, right) = [1, 0], x(s, left) = [0, 1], gamma = 1."""
  x = np.eye(2)
  for t, a in enumerate(actions):
    returned = sum(rewards[t:])
    delta = returned - w
    w += w_step * delta
    h = np.array([theta @ x[b] for b in range(2)])
    pi = np.exp(h) / np.exp(h).sum()
    theta = theta + theta_step * delta * (x[a] - sum(pi[b] * x[b] for b in range(2)))
  return theta, w


@pytest.mark.parametrize("w_step", [0.0, 0.05])
def test_reinforce_is_the_box_of_the_book_and_stops_where_the_episode_does(w_step):
  actions, length = np.array([1, 0, 0, 1, 0, 1, 1, 0]), 6
  rewards = -np.ones(length)
  params = corridor.Parameters(jnp.array([0.3, -0.2]), jnp.float32(-1.0))
  returns = jnp.append(-jnp.arange(6.0, 0.0, -1.0), jnp.array([99.0, 99.0]))
  mask = jnp.append(jnp.ones(6), jnp.zeros(2))
  actual = jax.jit(corridor.update_reinforce)(params, jnp.asarray(actions), returns, mask, 0.01, w_step)
  theta, w = reinforce_box(np.array([0.3, -0.2]), -1.0, actions[:length], rewards, 0.01, w_step)
  np.testing.assert_allclose(actual.theta, theta, rtol=1e-5)
  np.testing.assert_allclose(actual.w, w, rtol=1e-5)


def test_no_action_becomes_impossible():
  policy = corridor.compute_policy(jnp.array([50.0, -50.0]))
  np.testing.assert_allclose(policy, [0.95, 0.05])


def test_reinforce_with_a_baseline_goes_from_82_lost_to_the_best_policy():
  env = corridor.make_corridor(300)
  first = corridor.init_parameters(0.05)
  one = lambda key: corridor.run_reinforce(env, key, first, 2.0**-9, 2.0**-6, 160)
  params, rewards = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 40))
  assert float(jnp.mean(rewards[:, 0])) < -60
  assert float(jnp.mean(rewards[:, -80:])) == pytest.approx(-11.66, abs=0.7)
  right = np.asarray(jax.jit(jax.vmap(corridor.compute_policy))(params.theta))[:, corridor.RIGHT]
  assert np.median(right) == pytest.approx(corridor.BEST_RIGHT, abs=0.08)
