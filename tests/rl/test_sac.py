"""The parts of SAC: the policy's density, soft targets on numbers, the temperature, the optimum of a known critic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

from mlnotes.rl import sac
from mlnotes.rl.ddpg import Critic
from mlnotes.rl.distributions import TanhGaussian
from mlnotes.rl.replay import Transition

TEMPERATURE = 0.5


def fixed_policy(params, observation):
  return TanhGaussian(params["mean"], params["log_std"])


def two_values(params, observation, action):
  """Two critics that differ by a constant and prefer action 0."""
  return params - jnp.sum(action**2)


def make_params(**changes):
  actor = {"mean": jnp.array([0.3]), "log_std": jnp.array([-0.7])}
  params = {"actor": actor, "critics": jnp.array([1.0, 2.0]), "log_alpha": jnp.log(jnp.float32(TEMPERATURE))}
  return {**params, **changes}


def log_density(mean, log_std, action):
  """Of one action component in (-1, 1), by scipy and the change of variables."""
  return stats.norm.logpdf(np.arctanh(action), mean, np.exp(log_std)) - np.log1p(-(action**2))


@pytest.mark.parametrize("mean, log_std", [(0.0, 0.0), (1.5, -1.0), (-0.4, 0.5)])
def test_the_policys_density_integrates_to_one(mean, log_std):
  log_prob = jax.jit(lambda u: TanhGaussian(jnp.full(1, mean), jnp.full(1, log_std)).log_prob(u))
  action = np.tanh(np.linspace(-8, 8, 4001))
  found = np.asarray(jax.vmap(log_prob)(jnp.float32(np.linspace(-8, 8, 4001))[:, None]))
  assert integrate.trapezoid(np.exp(found), action) == pytest.approx(1.0, abs=2e-3)
  inner = np.abs(action) < 0.999
  np.testing.assert_allclose(found[inner], log_density(mean, log_std, action[inner]), atol=2e-3)


def test_log_prob_stays_finite_where_the_action_rounds_to_one():
  policy = TanhGaussian(jnp.zeros(1), jnp.zeros(1))
  value, slope = jax.value_and_grad(lambda u: policy.log_prob(u))(jnp.array([30.0]))
  # log N(30) + 2 * 30 - 2 log 2: the exact limit of the correction.
  assert value == pytest.approx(stats.norm.logpdf(30.0) + 60 - 2 * np.log(2), rel=1e-5)
  assert slope[0] == pytest.approx(-28.0, rel=1e-5)


def test_actor_network_keeps_the_standard_deviation_in_range(key):
  network = sac.GaussianActor((4,), 2)
  params = jax.jit(network.init)(key, jnp.zeros(3))
  policy = jax.jit(network.apply)(params, jnp.full((5, 3), 1e6))
  assert policy.mean.shape == policy.log_std.shape == (5, 2)
  assert np.all(policy.log_std >= sac.LOG_STD_MIN) and np.all(policy.log_std <= sac.LOG_STD_MAX)


def test_the_two_critics_are_independent(key):
  critic = Critic((8,))
  observation, action = jnp.ones(3), jnp.ones(2)
  params = jax.jit(lambda key: sac.init_critics(critic, key, observation, action))(key)
  both = jax.jit(sac.make_critics(critic))(params, observation, action)
  one = jax.jit(lambda i: critic.apply(jax.tree.map(lambda p: p[i], params), observation, action))
  for i in range(2):
    alone = one(i)
    np.testing.assert_allclose(both[i], alone, rtol=1e-5)
  assert both[0] != both[1]


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_critic_loss_by_hand(discount):
  """y = r + 0.9 discount (min Q' - alpha log pi(a' | s')), with a' from the noise; a half square for each critic."""
  normal, action = 0.8, 0.25
  transition = Transition(jnp.zeros(1), jnp.array([action]), jnp.float32(2.0), jnp.float32(discount), jnp.ones(1))
  params, target = make_params(), jnp.array([6.0, 4.0])
  next_action = np.tanh(0.3 + np.exp(-0.7) * normal)
  soft = 4.0 - next_action**2 - TEMPERATURE * log_density(0.3, -0.7, next_action)
  errors = 2 + 0.9 * discount * soft - (np.array([1.0, 2.0]) - action**2)

  def loss(params, target):
    return sac.compute_critic_loss(fixed_policy, two_values, params, target, transition, jnp.array([normal]), 0.9)

  value, (grads, target_grads) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, target)
  assert value == pytest.approx(np.sum(errors**2) / 2, rel=1e-4)
  np.testing.assert_allclose(grads["critics"], -errors, rtol=1e-4)
  for fixed in (*jax.tree.leaves(grads["actor"]), grads["log_alpha"], target_grads):
    assert not np.any(fixed)


def test_actor_loss_and_its_gradient_by_numerical_integration():
  """E[alpha log pi - min Q] over the noise, and its slope in the mean, from the density on a grid of actions."""
  normal = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000).astype(np.float32)[:, None]

  def mean_loss(params):
    one = lambda n: sac.compute_actor_loss(fixed_policy, two_values, params, jnp.zeros(1), n)
    loss, log_prob = jax.vmap(one)(jnp.asarray(normal))
    return jnp.mean(loss), jnp.mean(log_prob)

  (value, log_prob), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(make_params())

  def exact(mean):
    u = np.linspace(mean - 5, mean + 5, 20_001)
    action = np.tanh(u)
    log_p = log_density(mean, -0.7, action)
    weight = stats.norm.pdf(u, mean, np.exp(-0.7))
    average = lambda f: integrate.trapezoid(weight * f, u)
    return average(TEMPERATURE * log_p - (1.0 - action**2)), average(log_p)

  assert value == pytest.approx(exact(0.3)[0], abs=2e-3)
  assert log_prob == pytest.approx(exact(0.3)[1], abs=2e-3)
  slope = (exact(0.301)[0] - exact(0.299)[0]) / 0.002
  assert grads["actor"]["mean"][0] == pytest.approx(slope, abs=3e-3)
  assert not np.any(grads["critics"]) and not np.any(grads["log_alpha"])


@pytest.mark.parametrize("entropy, sign", [(-2.0, 1), (-0.5, -1)])
def test_temperature_rises_below_the_target_entropy_and_falls_above_it(entropy, sign):
  loss = lambda log_alpha: sac.compute_temperature_loss(log_alpha, jnp.float32(-entropy), -1.0)
  log_alpha = jnp.float32(0.2)
  moved = log_alpha - 0.1 * jax.grad(loss)(log_alpha)
  assert np.sign(moved - log_alpha) == sign


def test_policy_and_temperature_find_the_target_entropy_of_a_known_critic():
  """With the critic -a^2 the policy centres on 0; the learned temperature brings its entropy to the target, -1."""
  params = make_params(log_alpha=jnp.float32(-4.0))
  optimizer = optax.adam(1e-2)
  target_entropy = -1.0

  def total(params, normal):
    one = lambda n: sac.compute_actor_loss(fixed_policy, two_values, params, jnp.zeros(1), n)
    loss, log_prob = jax.vmap(one)(normal)
    return jnp.mean(loss) + sac.compute_temperature_loss(params["log_alpha"], jnp.mean(log_prob), target_entropy)

  def one(i, carry):
    params, opt_state = carry
    normal = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (128, 1))
    updates, opt_state = optimizer.update(jax.grad(total)(params, normal), opt_state)
    return optax.apply_updates(params, updates), opt_state

  run = jax.jit(lambda carry: jax.lax.fori_loop(0, 2000, one, carry))
  params, _ = run((params, optimizer.init(params)))
  actor = {name: float(value[0]) for name, value in params["actor"].items()}
  u = np.linspace(-6, 6, 20_001)
  weight = stats.norm.pdf(u, actor["mean"], np.exp(actor["log_std"]))
  entropy = -integrate.trapezoid(weight * log_density(actor["mean"], actor["log_std"], np.tanh(u)), u)
  assert entropy == pytest.approx(target_entropy, abs=0.1)
  assert actor["mean"] == pytest.approx(0.0, abs=0.1)
