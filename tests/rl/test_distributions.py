"""Distributions over actions beside SciPy and numerical integration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mlnotes.rl.distributions import Categorical, DiagonalGaussian, TanhGaussian

LOGITS = np.array([[0.3, -1.0, 2.0], [50.0, 0.0, -50.0]], np.float32)
MEAN = np.array([[0.5, -2.0], [0.0, 30.0]], np.float32)
LOG_STD = np.array([[0.1, -1.0], [-3.0, 1.0]], np.float32)


def test_categorical_against_scipy():
  p = np.exp(LOGITS.astype(np.float64) - LOGITS.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  policy = Categorical(jnp.asarray(LOGITS))
  np.testing.assert_allclose(policy.entropy(), stats.entropy(p, axis=-1), atol=1e-6)
  other = Categorical(jnp.asarray(LOGITS[::-1].copy()))
  np.testing.assert_allclose(policy.kl(other), stats.entropy(p, p[::-1], axis=-1), rtol=1e-5)
  np.testing.assert_allclose(policy.log_prob(jnp.array([1, 0])), [np.log(p[0, 1]), 0.0], atol=1e-6)
  np.testing.assert_array_equal(policy.mode(), [2, 0])


def test_categorical_samples_with_its_probabilities():
  policy = Categorical(jnp.broadcast_to(jnp.asarray(LOGITS[0]), (20000, 3)))
  drawn = policy.sample(jax.random.gumbel(jax.random.key(0), (20000, 3)))
  expected = 20000 * np.asarray(jax.nn.softmax(LOGITS[0]), np.float64)
  assert stats.chisquare(np.bincount(drawn, minlength=3), expected * 20000 / expected.sum()).pvalue > 0.01


def test_masked_logits_are_actions_without_probability():
  """-inf: as if the action were not there, in values and gradients; a KL to what lacks an action is infinite."""
  masked, whole = jnp.array([0.3, -jnp.inf, 2.0, -1.0]), jnp.array([0.3, 2.0, -1.0])
  other, other_whole = jnp.array([1.0, -jnp.inf, 0.5, 0.0]), jnp.array([1.0, 0.5, 0.0])
  functions = {
    "log_prob": lambda logits, other: Categorical(logits).log_prob(jnp.argmax(logits)),
    "entropy": lambda logits, other: Categorical(logits).entropy(),
    "kl": lambda logits, other: Categorical(logits).kl(Categorical(other)),
    "kl_to": lambda logits, other: Categorical(other).kl(Categorical(logits)),
  }
  for name, function in functions.items():
    value, grads = jax.value_and_grad(function, argnums=(0, 1))(masked, other)
    expected, expected_grads = jax.value_and_grad(function, argnums=(0, 1))(whole, other_whole)
    np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=name)
    for found, exact in zip(grads, expected_grads):
      np.testing.assert_allclose(found, np.insert(exact, 1, 0.0), rtol=1e-5, atol=1e-6, err_msg=name)
  policy, uniform = Categorical(masked), Categorical(jnp.zeros(4))
  assert policy.log_prob(jnp.int32(1)) == -np.inf and np.isfinite(policy.kl(uniform)) and uniform.kl(policy) == np.inf
  noise = jax.random.gumbel(jax.random.key(3), (500, 4))
  assert not np.any(Categorical(jnp.broadcast_to(masked, (500, 4))).sample(noise) == 1)


def test_gaussian_against_scipy():
  policy = DiagonalGaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
  action = MEAN + np.exp(LOG_STD) * np.array([[1.0, -2.0], [0.3, 0.0]], np.float32)
  normal = stats.norm(MEAN, np.exp(LOG_STD))
  np.testing.assert_allclose(policy.log_prob(jnp.asarray(action)), normal.logpdf(action).sum(-1), rtol=1e-4)
  np.testing.assert_allclose(policy.entropy(), normal.entropy().sum(-1), rtol=1e-5)


def test_gaussian_kl_against_integration():
  policy = DiagonalGaussian(jnp.array([0.4]), jnp.array([-0.5]))
  other = DiagonalGaussian(jnp.array([-0.3]), jnp.array([0.2]))
  x = np.linspace(-8, 8, 200001)
  p, q = stats.norm(0.4, np.exp(-0.5)), stats.norm(-0.3, np.exp(0.2))
  expected = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
  np.testing.assert_allclose(policy.kl(other), expected, rtol=1e-4)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-1.5, 0.3)])
def test_squashed_density_integrates_to_one_and_is_that_of_its_samples(mean, log_std):
  pre = jnp.linspace(-12.0, 12.0, 40001)[:, None]
  policy = TanhGaussian(jnp.full_like(pre, mean), jnp.full_like(pre, log_std))
  density = np.exp(np.asarray(policy.log_prob(pre), np.float64))
  action = np.tanh(np.asarray(pre[:, 0], np.float64))
  np.testing.assert_allclose(np.trapezoid(density, action), 1.0, atol=2e-4)
  normal = jax.random.normal(jax.random.key(0), (20000, 1))
  many = TanhGaussian(jnp.full((20000, 1), mean), jnp.full((20000, 1), log_std))
  drawn, pre_tanh = many.sample(normal)
  np.testing.assert_allclose(drawn, np.tanh(pre_tanh), rtol=1e-6)
  # A sample's share below 0 is the integral of the density up to 0.
  share = np.trapezoid(density[action <= 0], action[action <= 0])
  np.testing.assert_allclose(np.mean(np.asarray(drawn) < 0), share, atol=0.012)


def test_squashed_log_prob_stays_finite_where_tanh_rounds_to_one():
  pre = jnp.array([[20.0], [-40.0], [90.0]])
  policy = TanhGaussian(jnp.zeros_like(pre), jnp.zeros_like(pre))
  value = policy.log_prob(pre)
  grads = jax.grad(lambda pre: jnp.sum(policy.log_prob(pre)))(pre)
  assert np.all(np.isfinite(value)) and np.all(np.isfinite(grads))
