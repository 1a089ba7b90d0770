"""Corruptions by their moments, penalties against torch and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mlnotes.engine.errors import InputError
from mlnotes.generative import autoencoder


def test_corruptions_have_the_moments_they_name(key):
  x = jnp.full((100, 100), 2.0)
  masked = autoencoder.mask_entries(key, x, 0.25)
  assert set(np.unique(masked)) == {0.0, 2.0}
  assert np.mean(np.asarray(masked) == 0) == pytest.approx(0.25, abs=0.015)
  noise = np.asarray(autoencoder.add_gaussian_noise(jax.random.key(1), x, 0.3)) - 2
  assert noise.std() == pytest.approx(0.3, abs=0.01) and abs(noise.mean()) < 0.015


def test_the_penalty_is_the_divergence_of_bernoulli_variables():
  rho = np.array([0.01, 0.05, 0.3, 0.9])
  exact = scipy.special.rel_entr(0.05, rho) + scipy.special.rel_entr(0.95, 1 - rho)
  np.testing.assert_allclose(autoencoder.bernoulli_kl(jnp.asarray(rho), 0.05), exact, rtol=1e-4, atol=1e-6)
  # Pulls a lazy unit up and a busy one down; also where units are saturated.
  slope = jax.grad(lambda rho: jnp.sum(autoencoder.bernoulli_kl(rho, 0.05)))(jnp.array([0.0, 0.01, 0.9, 1.0]))
  np.testing.assert_array_equal(np.sign(slope[1:3]), [-1, 1])
  assert np.all(np.isfinite(slope))


def test_exactly_k_units_stay_and_only_they_learn():
  code = jnp.array([[3.0, -1.0, 2.0, 2.0], [-4.0, -3.0, -2.0, -5.0]])
  np.testing.assert_array_equal(autoencoder.keep_largest(code, 2), [[3, 0, 2, 0], [0, -3, -2, 0]])
  slope = jax.grad(lambda code: jnp.sum(autoencoder.keep_largest(code, 2) ** 2))(code)
  np.testing.assert_array_equal(slope, [[6, 0, 4, 0], [0, -6, -4, 0]])
  np.testing.assert_array_equal(autoencoder.keep_largest(code, 4), code)
  with pytest.raises(InputError, match="found k=5, expected 1 to 4"):
    autoencoder.keep_largest(code, 5)


@pytest.mark.parity
def test_the_penalty_is_torchs_divergence():
  torch = pytest.importorskip("torch")
  rho = torch.tensor([0.02, 0.4, 0.77])
  bernoulli = torch.distributions.Bernoulli
  exact = torch.distributions.kl_divergence(bernoulli(torch.tensor(0.05)), bernoulli(rho))
  np.testing.assert_allclose(autoencoder.bernoulli_kl(jnp.asarray(rho.numpy()), 0.05), exact.numpy(), rtol=1e-4)
