"""The parts of DDPG: scaling of actions, noise, and the deterministic policy gradient on a known critic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from mlnotes.rl import ddpg
from mlnotes.rl.env import Box, Discrete
from mlnotes.rl.registry import make_env
from mlnotes.rl.replay import Transition

BEST = jnp.array([0.3, -0.6])


def quadratic(params, observation, action):
  """A critic whose best action is BEST, worth `params`."""
  return params - jnp.sum((action - BEST) ** 2)


def constant(params, observation):
  return jnp.tanh(params)


def test_scaling_maps_the_ends_to_the_bounds_and_never_leaves_them():
  action = jnp.linspace(-1.0, 1.0, 100_001)[:, None]
  scaled = np.asarray(ddpg.scale_action(action, -0.3, 0.7))
  np.testing.assert_allclose(scaled[[0, 50_000, -1], 0], [-0.3, 0.2, 0.7], atol=1e-6)
  assert scaled.min() >= np.float32(-0.3) and scaled.max() <= np.float32(0.7)


def test_normalized_pendulum_is_pendulum_with_torques_scaled_by_two(key):
  env = make_env("Pendulum-v1")
  unit = ddpg.normalize_actions(env)
  assert unit.actions == Box((1,), -1.0, 1.0)
  state, _ = jax.jit(env.reset)(key)
  step = jax.random.key(1)
  _, plain = jax.jit(env.step)(step, state, jnp.array([-1.4]))
  _, scaled = jax.jit(unit.step)(jax.random.clone(step), state, jnp.array([-0.7]))
  np.testing.assert_allclose(scaled.next_observation, plain.next_observation, rtol=1e-5)
  np.testing.assert_allclose(scaled.reward, plain.reward, rtol=1e-5)


@pytest.mark.parametrize("actions", [Discrete(2), Box((1,), -jnp.inf, 1.0), Box((1,), 0.0, 0.0)])
def test_only_bounded_vectors_can_be_normalized(actions):
  with pytest.raises(ValueError, match="expected vectors between two finite bounds"):
    ddpg.normalize_actions(make_env("Pendulum-v1")._replace(actions=actions))


def test_noise_is_standard_independent_and_clipped_after_it_is_added(key):
  noise = ddpg.sample_action_noise(key, (500, 4, 2))
  normal = np.asarray(noise.normal).reshape(500, 8)
  assert stats.kstest(normal.ravel(), "norm").pvalue > 1e-3
  assert stats.kstest((np.asarray(noise.uniform).ravel() + 1) / 2, "uniform").pvalue > 1e-3
  # Environments and components: eight columns without correlation.
  correlation = np.corrcoef(normal.T) - np.eye(8)
  assert np.abs(correlation).max() < 0.2
  action = ddpg.add_exploration_noise(jnp.array([0.9, -0.9, 0.0]), jnp.array([2.0, -2.0, 1.0]), 0.25)
  np.testing.assert_allclose(action, [1.0, -1.0, 0.25])


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_critic_loss_by_hand(discount):
  """y = 2 + 0.9 discount Q'(s', mu'(s')) with Q' = 7 - |mu' - BEST|^2, against Q(s, a) = 1 - |a - BEST|^2."""
  action, target_action = np.array([0.5, 0.5]), np.tanh([0.2, 0.1])
  transition = Transition(jnp.zeros(1), jnp.float32(action), jnp.float32(2.0), jnp.float32(discount), jnp.ones(1))
  params = {"critic": jnp.float32(1.0), "actor": jnp.zeros(2)}
  target = {"critic": jnp.float32(7.0), "actor": jnp.array([0.2, 0.1])}
  best = np.asarray(BEST)
  y = 2 + 0.9 * discount * (7 - np.sum((target_action - best) ** 2))
  error = y - (1 - np.sum((action - best) ** 2))
  loss = lambda params, target: ddpg.compute_critic_loss(constant, quadratic, params, target, transition, 0.9)
  value, (grads, target_grads) = jax.value_and_grad(loss, argnums=(0, 1))(params, target)
  assert value == pytest.approx(error**2 / 2, rel=1e-5)
  assert grads["critic"] == pytest.approx(-error, rel=1e-5)
  for fixed in (grads["actor"], target_grads["actor"], target_grads["critic"]):
    assert not np.any(fixed)


def test_actor_gradient_is_the_chain_rule_and_leaves_the_critic():
  """d(-Q)/d(theta) = 2 (mu - BEST) (1 - mu^2) for mu = tanh(theta)."""
  params = {"critic": jnp.float32(1.0), "actor": jnp.array([0.4, 0.2])}
  grads = jax.grad(lambda p: ddpg.compute_actor_loss(constant, quadratic, p, jnp.zeros(1)))(params)
  mu = np.tanh([0.4, 0.2])
  np.testing.assert_allclose(grads["actor"], 2 * (mu - np.asarray(BEST)) * (1 - mu**2), rtol=1e-5)
  assert grads["critic"] == 0


def test_actor_finds_the_best_action_of_a_known_critic(key):
  actor = ddpg.Actor((16,), 2)
  observation = jnp.array([0.5, -1.0])
  params = {"critic": jnp.float32(0.0), "actor": jax.jit(actor.init)(key, observation)}
  optimizer = optax.adam(1e-2)

  def one(_, carry):
    params, opt_state = carry
    grads = jax.grad(lambda p: ddpg.compute_actor_loss(actor.apply, quadratic, p, observation))(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state

  params, _ = jax.jit(lambda c: jax.lax.fori_loop(0, 300, one, c))((params, optimizer.init(params)))
  np.testing.assert_allclose(jax.jit(actor.apply)(params["actor"], observation), BEST, atol=1e-2)
