"""REINFORCE and A2C: whole episodes with their ends, gradients beside exact ones, values where they are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rl import a2c, reinforce
from mlnotes.program import Program, make_mesh, window_means
from mlnotes.rl import on_policy
from mlnotes.rl.actor_critic import make_actor_critic
from mlnotes.rl.env import Box, Discrete, make_env
from mlnotes.rl.networks import orthogonal
from mlnotes.rl.policy_gradient import masked_mean, masked_standardize, run_whole_episodes
from mlnotes.rl.probe import constant_reward_env


@pytest.mark.parametrize("terminates", [True, False])
def test_whole_episodes_end_where_the_environment_says(terminates):
  env = constant_reward_env(time_limit=3, terminates=terminates)
  noise = jnp.zeros((6, 2))
  act = lambda noise, observation: jnp.zeros(2, jnp.int32)
  episodes = jax.jit(lambda key: run_whole_episodes(env, act, noise, key))(jax.random.key(0))
  np.testing.assert_array_equal(episodes.real[:, 0], [True, True, True, False, False, False])
  np.testing.assert_array_equal(episodes.last[:3, 0], [False, False, True])
  assert float(episodes.discount[2, 0]) == (0.0 if terminates else 1.0)
  np.testing.assert_array_equal(episodes.next_observation[:3, 0, 0], [1, 2, 3])


def test_masked_statistics_ignore_the_padding():
  x = np.array([[1.0, 5.0], [2.0, 1e9], [6.0, -1e9]], np.float32)
  real = np.array([[True, True], [True, False], [True, False]])
  kept = x[real]
  np.testing.assert_allclose(masked_mean(jnp.asarray(x), jnp.asarray(real)), kept.mean(), rtol=1e-6)
  scaled = np.asarray(masked_standardize(jnp.asarray(x), jnp.asarray(real)))
  np.testing.assert_allclose(scaled[real], (kept - kept.mean()) / kept.std(), rtol=1e-5)
  np.testing.assert_array_equal(scaled[~real], 0)


def test_orthogonal_initialisation():
  for shape in ((7, 7), (3, 20), (20, 3), (1, 5)):
    kernel = np.asarray(orthogonal(2.0)(jax.random.key(0), shape), np.float64)
    gram = kernel @ kernel.T if shape[0] <= shape[1] else kernel.T @ kernel
    np.testing.assert_allclose(gram, 4 * np.eye(min(shape)), atol=1e-5)
  several = jax.vmap(lambda key: orthogonal(1.0)(key, (2, 2)))(jax.random.split(jax.random.key(1), 4000))
  # Uniform: every entry has mean 0 and variance 1/2, and half of the determinants are negative.
  np.testing.assert_allclose(np.mean(several, 0), 0, atol=0.05)
  np.testing.assert_allclose(np.var(several, 0), 0.5, atol=0.03)
  np.testing.assert_allclose(np.mean(np.linalg.det(several) > 0), 0.5, atol=0.04)


def test_actor_critic_shapes_and_first_policy():
  for name, kind in (("CartPole-v1", Discrete), ("Pendulum-v1", Box), ("Breakout-MinAtar", Discrete)):
    env = make_env(name)
    assert isinstance(env.actions, kind)
    networks = make_actor_critic(env, (8,))
    params = jax.jit(networks.init)(jax.random.key(0))
    observation = jnp.ones((3, 2, *env.observations.shape))
    policy = jax.jit(networks.policy)(params, observation)
    assert networks.value(params, observation).shape == (3, 2)
    assert policy.log_prob(policy.mode()).shape == (3, 2)
    if kind is Discrete:
      # Nearly uniform at the start.
      np.testing.assert_allclose(policy.entropy(), np.log(env.actions.n), rtol=1e-3)
    noise = networks.sample_noise(jax.random.key(1), (3, 2))
    assert policy.sample(noise).shape == policy.mode().shape


def test_reinforce_points_along_the_exact_gradient(monkeypatch):
  """One step, two actions, rewards 0 and 1: dJ/dlogit_1 = p (1 - p); averaged over seeds the estimate is that."""
  base = constant_reward_env(time_limit=1, terminates=True)

  def step(key, state, action):
    state, timestep = base.step(key, state, action)
    return state, timestep._replace(reward=action.astype(jnp.float32))

  monkeypatch.setattr(reinforce, "make_env", lambda name: base._replace(step=step))
  config = reinforce.Config(
    num_envs=2048, optimizer="sgd", momentum=0.0, learning_rate=1.0, schedule="constant", baseline=False, hidden=(4,),
    steps=10,
  )  # fmt: skip
  experiment = reinforce.make(config)
  state = jax.jit(experiment.init)(jax.random.key(0), ())
  after, metrics = jax.jit(experiment.step)(state, ())
  bias = lambda state: np.asarray(state.params["actor"]["params"]["Dense_1"]["bias"], np.float64)
  moved = bias(after) - bias(state)
  # Sampling error of the mean of 2048: about .011.
  np.testing.assert_allclose(moved, [-0.25, 0.25], atol=0.035)
  np.testing.assert_allclose(metrics["episode_return"], 0.5, atol=0.05)


@pytest.mark.parametrize("terminates", [True, False])
def test_a2c_values_of_a_constant_reward(terminates, monkeypatch):
  env = constant_reward_env(time_limit=4, terminates=terminates, clock=terminates)
  monkeypatch.setattr(on_policy, "make_env", lambda name: env)
  config = a2c.Config(num_envs=4, rollout_length=6, discount=0.9, learning_rate=1e-2, hidden=(32,), steps=2000)
  experiment = a2c.make(config)
  state = jax.jit(experiment.init)(jax.random.key(0), ())
  state = jax.jit(lambda state: jax.lax.fori_loop(0, 2000, lambda _, s: experiment.step(s, ())[0], state))(state)
  values = make_actor_critic(env, config.hidden).value(state.params, jnp.arange(4.0)[:, None] * terminates)
  exact = [sum(0.9**k for k in range(4 - t)) for t in range(4)] if terminates else [10.0] * 4
  np.testing.assert_allclose(values, exact, rtol=0.06)


def test_reinforce_learns_cartpole_and_counts_real_steps():
  config = reinforce.Config(steps=60)
  program = Program(reinforce.make(config), reinforce.make_feeds(config), (0, 1), make_mesh(1))
  state = program.init()
  lengths = 0.0
  for _ in range(5):
    state, window = program.update(state, program.empty_window(), 1)
    lengths = lengths + 4 * window_means(window)["episode_length"]
  np.testing.assert_array_equal(state.env_steps, lengths)
  state, _ = program.update(state, program.empty_window(), 55)
  assert np.all(program.evaluate(state)["episode_return"] > 150)


def test_rewards_are_scaled_by_the_rollouts_before(monkeypatch):
  """Rewards a thousand times larger: after scaling the value function sees the same numbers."""
  losses = []
  for scale in (1.0, 1000.0):
    base = make_env("Pendulum-v1")

    def step(key, state, action, base=base, scale=scale):
      state, timestep = base.step(key, state, action)
      return state, timestep._replace(reward=scale * timestep.reward)

    monkeypatch.setattr(on_policy, "make_env", lambda name, base=base, step=step: base._replace(step=step))
    experiment = a2c.make(a2c.Config(env="Pendulum-v1", normalize_rewards=True, steps=5))
    state = jax.jit(experiment.init)(jax.random.key(0), ())
    state, first = jax.jit(experiment.step)(state, ())
    _, second = jax.jit(experiment.step)(state, ())
    losses.append((first["value_loss"], second["value_loss"]))
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
