"""Environments on the device beside the same ones of Gymnasium, state by state; ends of episodes told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.errors import InputError
from mlnotes.rl.env import (
  Box,
  Discrete,
  clip_actions,
  init_actors,
  make_env,
  make_gymnax_env,
  rollout,
  step_with_reset,
)
from mlnotes.rl.gymnasium_bridge import make_gymnasium_env
from mlnotes.rl.probe import constant_reward_env

# How the state of gymnax is written into Gymnasium's environment.
STATES = {
  "CartPole-v1": lambda s: np.array([s.x, s.x_dot, s.theta, s.theta_dot], np.float64),
  "MountainCar-v0": lambda s: np.array([s.position, s.velocity], np.float64),
  "Acrobot-v1": lambda s: np.array([s.joint_angle1, s.joint_angle2, s.velocity_1, s.velocity_2], np.float64),
  "Pendulum-v1": lambda s: np.array([s.theta, s.theta_dot], np.float64),
}


def random_action(env, rng):
  if isinstance(env.actions, Discrete):
    return rng.integers(env.actions.n)
  return rng.uniform(1.5 * env.actions.low, 1.5 * env.actions.high, env.actions.shape).astype(np.float32)


@pytest.mark.parametrize("name", STATES)
def test_every_step_agrees_with_gymnasium(name):
  """From 40 reached states each: one step of both gives the same observation, reward and ending."""
  env, real = clip_actions(make_env(name)), make_gymnasium_env(name).unwrapped
  rng = np.random.default_rng(0)
  step = jax.jit(env.step)
  key = jax.random.key(0)
  state, _ = jax.jit(env.reset)(key)
  real.reset(seed=0)
  for t in range(40):
    action = random_action(env, rng)
    real.state = STATES[name](jax.device_get(state))
    if name == "CartPole-v1":
      real.steps_beyond_terminated = None
    observation, reward, terminated, _, _ = real.step(action if isinstance(env.actions, Box) else int(action))
    state, timestep = step(jax.random.fold_in(key, t), state, jnp.asarray(action))
    np.testing.assert_allclose(timestep.next_observation, observation, atol=2e-5)
    np.testing.assert_allclose(timestep.reward, reward, atol=1e-4)
    assert bool(timestep.discount == 0) == terminated
    if terminated:
      state, _ = jax.jit(env.reset)(jax.random.fold_in(key, 1000 + t))


@pytest.mark.parametrize("name", STATES)
def test_spaces_and_time_limit_are_gymnasiums(name):
  env, real = make_env(name), make_gymnasium_env(name)
  assert env.time_limit == real.spec.max_episode_steps
  assert env.observations.shape == real.observation_space.shape
  if isinstance(env.actions, Discrete):
    assert env.actions.n == real.action_space.n
  else:
    assert env.actions.shape == real.action_space.shape
    assert (env.actions.low, env.actions.high) == (real.action_space.low.min(), real.action_space.high.max())


def test_first_states_have_gymnasiums_distribution():
  env, real = make_env("CartPole-v1"), make_gymnasium_env("CartPole-v1")
  ours = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2000))[1]
  theirs = np.array([real.reset(seed=i)[0] for i in range(2000)])
  np.testing.assert_allclose(np.mean(ours, 0), theirs.mean(0), atol=4e-3)
  np.testing.assert_allclose(np.std(ours, 0), theirs.std(0), atol=2e-3)


def test_an_unknown_name_is_one_sentence():
  with pytest.raises(InputError, match="--env=CartPole is not an environment: expected one of FrozenLake-v1"):
    make_env("CartPole")


def test_time_limit_truncates_at_the_same_step_as_gymnasium():
  env, real = make_env("Pendulum-v1"), make_gymnasium_env("Pendulum-v1")
  real.reset(seed=0)
  step = jax.jit(env.step)
  key = jax.random.key(0)
  state, _ = jax.jit(env.reset)(key)
  for t in range(200):
    state, timestep = step(jax.random.fold_in(key, t), state, jnp.zeros(1))
    _, _, terminated, truncated, _ = real.step(np.zeros(1, np.float32))
    assert bool(timestep.last) == (terminated or truncated) == (t == 199)
    assert timestep.discount == 1 and not terminated


def test_a_terminal_on_the_last_allowed_step_terminates():
  """Both at once: the future is worth nothing, whatever the clock says."""
  env = make_gymnax_env("CartPole-v1", max_steps_in_episode=1)
  state, _ = env.reset(jax.random.key(0))
  falling = state.replace(theta=jnp.float32(0.209), theta_dot=jnp.float32(5.0))
  _, timestep = env.step(jax.random.key(1), falling, jnp.int32(1))
  assert timestep.last and timestep.discount == 0
  _, timestep = env.step(jax.random.key(1), state, jnp.int32(1))
  assert timestep.last and timestep.discount == 1


def test_reset_keeps_the_final_observation():
  """A value is bootstrapped from the state that the limit cut, not from the next episode's first (cleanrl#198)."""
  env = constant_reward_env(time_limit=3, terminates=False)
  state, _ = env.reset(jax.random.key(0))
  for t in range(7):
    fresh = env.reset(jax.random.key(0))
    state, timestep = step_with_reset(env, jax.random.key(0), state, jnp.int32(0), fresh)
    ended = t % 3 == 2
    assert bool(timestep.last) == ended and timestep.discount == 1
    assert float(timestep.next_observation[0]) == t % 3 + 1
    assert float(timestep.observation[0]) == (0 if ended else t % 3 + 1)


def test_rollout_is_a_plain_loop_over_steps():
  """Against a Python loop with the same actions: transitions, returns, lengths, and where it goes on from."""
  env = constant_reward_env(time_limit=3, terminates=True)
  actors = init_actors(env, jax.random.key(0), 2)
  act = lambda noise, observation: (noise > 0.5).astype(jnp.int32)
  noise = jax.random.uniform(jax.random.key(1), (8, 2))
  run = jax.jit(lambda key, actors: rollout(env, act, noise, key, actors))
  after, trajectory = run(jax.random.key(2), actors)
  position, earned = 0, 0.0
  for t in range(8):
    np.testing.assert_array_equal(trajectory.observation[t], [[position]] * 2)
    np.testing.assert_array_equal(trajectory.action[t], noise[t] > 0.5)
    position, earned = position + 1, earned + 1
    np.testing.assert_array_equal(trajectory.next_observation[t], [[position]] * 2)
    ended = position == 3
    np.testing.assert_array_equal(trajectory.last[t], [ended] * 2)
    np.testing.assert_array_equal(trajectory.discount[t], [0.0 if ended else 1.0] * 2)
    np.testing.assert_array_equal(trajectory.episode_return[t], [earned] * 2)
    np.testing.assert_array_equal(trajectory.episode_length[t], [int(earned)] * 2)
    if ended:
      position, earned = 0, 0.0
  np.testing.assert_array_equal(after.observation, [[position]] * 2)
  np.testing.assert_array_equal(after.episode_return, [earned] * 2)


def test_environments_of_one_rollout_differ():
  env = make_env("CartPole-v1")
  actors = init_actors(env, jax.random.key(0), 4)
  act = lambda noise, observation: (noise > 0.5).astype(jnp.int32)
  noise = jax.random.uniform(jax.random.key(1), (60, 4))
  after, trajectory = jax.jit(lambda key, actors: rollout(env, act, noise, key, actors))(jax.random.key(2), actors)
  assert len(np.unique(after.observation[:, 0])) == 4
  starts = trajectory.observation[1:][trajectory.last[:-1]]
  assert len(starts) > 4 and len(np.unique(starts[:, 0])) == len(starts)
  # An episode's return in CartPole is its length.
  np.testing.assert_array_equal(trajectory.episode_return, trajectory.episode_length)


@pytest.mark.parametrize("name", ["Breakout-MinAtar", "SpaceInvaders-MinAtar"])
def test_minatar_steps_and_resets(name):
  env = make_env(name)
  assert len(env.observations.shape) == 3
  actors = jax.jit(lambda key: init_actors(env, key, 2))(jax.random.key(0))
  act = lambda noise, observation: (noise * env.actions.n).astype(jnp.int32)
  noise = jax.random.uniform(jax.random.key(1), (50, 2))
  _, trajectory = jax.jit(lambda key, actors: rollout(env, act, noise, key, actors))(jax.random.key(2), actors)
  assert trajectory.observation.shape == (50, 2, *env.observations.shape)
  assert np.all(np.isfinite(trajectory.reward)) and np.any(trajectory.last)
