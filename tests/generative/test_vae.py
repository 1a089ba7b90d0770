"""Bounds of variational auto-encoders, against exact likelihoods, integrals and other people's distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.decomposition import PCA

from mlnotes.generative import vae
from mlnotes.generative.vae import GaussianPosterior


def draw_noise(key, samples, q):
  return jax.random.normal(key, (samples, *q.mean.shape))


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.0), (1.5, 0.3), (-2.0, 2.5)])
def test_the_kl_is_the_integral(mean, sigma):
  q, p = stats.norm(mean, sigma), stats.norm()
  integral, _ = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), mean - 12 * sigma, mean + 12 * sigma)
  kl = vae.gaussian_kl(GaussianPosterior(jnp.array([mean]), jnp.array([2 * np.log(sigma)])))
  np.testing.assert_allclose(kl, [integral], rtol=1e-5, atol=1e-6)


def test_the_kl_is_that_of_its_samples(key):
  """What is subtracted and what is drawn are of one distribution: a log variance, not a deviation."""
  q = GaussianPosterior(jnp.array([0.5, -1.0]), jnp.array([-1.0, 0.7]))
  draws = jax.vmap(lambda key: vae.reparameterize(q, jax.random.normal(key, (2,))))(jax.random.split(key, 20_000))
  scipy = stats.norm(q.mean, np.exp(np.asarray(q.log_var) / 2))
  np.testing.assert_allclose(draws.std(0), scipy.std(), rtol=0.03)
  estimate = np.mean(scipy.logpdf(draws) - stats.norm().logpdf(draws), axis=0)
  np.testing.assert_allclose(vae.gaussian_kl(q), estimate, atol=0.03)


@pytest.mark.parametrize("logit", [-6.0, -0.02, -0.009, 0.0, 0.0001, 0.011, 3.0])
def test_the_continuous_bernoulli_is_a_density(logit):
  density = lambda x: float(jnp.exp(vae.continuous_bernoulli_log_prob(jnp.float32(x), jnp.float32(logit))))
  np.testing.assert_allclose(integrate.quad(density, 0, 1)[0], 1, atol=2e-5)


def test_probabilities_of_pixels():
  logits = np.array([-3.0, 0.0, 2.0])
  p = 1 / (1 + np.exp(-logits))
  for x in (0.0, 1.0):
    expected = stats.bernoulli(p).logpmf(x)
    np.testing.assert_allclose(vae.bernoulli_log_prob(jnp.full(3, x), jnp.array(logits)), expected, rtol=1e-5)
  found = vae.gaussian_log_prob(jnp.array([0.2, 1.0]), 0.5, jnp.array([-2.0, 1.0]))
  np.testing.assert_allclose(found, stats.norm(0.5, np.exp([-1.0, 0.5])).logpdf([0.2, 1.0]), rtol=1e-5)


@pytest.fixture(scope="module")
def linear():
  """A linear Gaussian decoder at its optimum, its exact posterior, and scikit-learn's exact likelihood of each row."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 5)) + 0.3 * rng.normal(size=(300, 5)) + 1.0
  pca = PCA(2).fit(x)
  noise = pca.noise_variance_
  weights = pca.components_.T * np.sqrt(pca.explained_variance_ - noise)  # orthogonal: the posterior is diagonal
  precision = np.sum(weights**2, axis=0) / noise + 1
  mean = (x - pca.mean_) @ weights / noise / precision
  q = GaussianPosterior(jnp.array(mean, jnp.float32), jnp.broadcast_to(-jnp.log(jnp.array(precision)), mean.shape))

  def log_likelihood(z):
    centre = z @ jnp.array(weights.T, jnp.float32) + jnp.array(pca.mean_, jnp.float32)[None]
    return jnp.sum(vae.gaussian_log_prob(jnp.array(x, jnp.float32), centre, np.log(noise)), axis=-1)

  return q, log_likelihood, pca.score_samples(x)


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("doubly", [False, True])
def test_with_the_exact_posterior_every_weight_is_the_likelihood(linear, key, samples, doubly):
  """log p(x, z) / q(z|x) is log p(x) whatever z: probabilistic PCA, by scikit-learn (Tipping & Bishop 1999)."""
  q, log_likelihood, exact = linear
  noise = draw_noise(key, samples, q)
  np.testing.assert_allclose(vae.compute_iwae(noise, q, log_likelihood, doubly).bound, exact, atol=2e-3)


def test_the_elbo_at_the_optimum_is_the_likelihood(linear, key):
  q, log_likelihood, exact = linear
  noise = draw_noise(key, 200, q)
  bound = vae.compute_elbo(noise, q, log_likelihood)
  np.testing.assert_allclose(bound.bound.mean(), exact.mean(), atol=0.02)
  np.testing.assert_allclose(bound.log_likelihood - bound.kl.sum(-1), bound.bound, rtol=1e-6)
  # Away from it it is less, by the divergence between the two posteriors.
  moved = q._replace(mean=q.mean + 0.5)
  gap = exact.mean() - vae.compute_elbo(noise, moved, log_likelihood).bound.mean()
  np.testing.assert_allclose(gap, np.mean(np.sum(0.5**2 / np.exp(q.log_var) / 2, -1)), rtol=0.1)


def test_more_weights_bring_the_bound_up_to_the_likelihood(linear, key):
  q, log_likelihood, exact = linear
  moved = GaussianPosterior(q.mean + 0.1, q.log_var + 1.0)
  noise = draw_noise(key, 1000, q)
  bounds = [float(vae.compute_iwae(noise[:k], moved, log_likelihood).bound.mean()) for k in (1, 5, 50, 1000)]
  assert bounds == sorted(bounds)
  assert exact.mean() - bounds[0] > 0.3 > 0.02 > exact.mean() - bounds[-1] > -0.02


@pytest.fixture(scope="module")
def gradients():
  """Gradients of both estimators with respect to the encoder's mean and the decoder's bias, for many draws."""
  x = jnp.array([[1.0, -0.5]])

  def objective(params, key, doubly):
    q = GaussianPosterior(params["mean"][None], jnp.array([[-0.5, 0.2]]))
    likelihood = lambda z: jnp.sum(vae.gaussian_log_prob(x, 1.5 * z + params["bias"][None], -1.0), axis=-1)
    return vae.compute_iwae(draw_noise(key, 8, q), q, likelihood, doubly).objective[0]

  params = {"mean": jnp.array([0.1, 0.4]), "bias": jnp.array([0.3, -0.2])}
  keys = lambda: jax.random.split(jax.random.key(1), 20_000)
  draw = jax.jit(jax.vmap(jax.grad(objective), (None, 0, None)), static_argnums=2)
  return draw(params, keys(), False), draw(params, keys(), True)


def test_the_doubly_reparameterized_gradient_is_unbiased_with_less_noise(gradients):
  plain, doubly = gradients
  error = 4 * np.sqrt(np.var(plain["mean"], axis=0) + np.var(doubly["mean"], axis=0)) / np.sqrt(20_000)
  assert np.all(np.abs(plain["mean"].mean(0) - doubly["mean"].mean(0)) < error)
  assert np.all(np.var(doubly["mean"], axis=0) < 0.5 * np.var(plain["mean"], axis=0))
  np.testing.assert_allclose(plain["bias"], doubly["bias"], rtol=1e-3, atol=1e-4)


def test_free_bits_pay_only_for_what_is_above():
  q = GaussianPosterior(jnp.array([[0.1, 2.0], [0.2, 1.0]]), jnp.zeros((2, 2)))
  paid = lambda mean, free: vae.clip_free_bits(vae.gaussian_kl(q._replace(mean=mean)), free)
  kl = vae.gaussian_kl(q)
  np.testing.assert_allclose(paid(q.mean, 0.0), kl.mean(0).sum(), rtol=1e-6)
  np.testing.assert_allclose(paid(q.mean, 0.5), 0.5 + kl.mean(0)[1], rtol=1e-6)
  gradient = jax.grad(paid)(q.mean, 0.5)
  assert np.all(gradient[:, 0] == 0) and np.all(gradient[:, 1] > 0)


def test_parts_of_the_kl(key):
  """Against densities by SciPy. With the whole data as the batch each aggregate density is too small by 1 / N."""
  q = GaussianPosterior(jnp.array([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]]), jnp.array([[0.0, -1.0]] * 3))
  z = vae.reparameterize(q, jax.random.normal(key, (3, 2)))
  each = stats.norm(np.asarray(q.mean)[None], np.exp(np.asarray(q.log_var) / 2)[None]).logpdf(np.asarray(z)[:, None])
  joint = np.log(np.mean(np.exp(each.sum(-1)), axis=1))
  single = np.log(np.mean(np.exp(each), axis=1)).sum(-1)
  own, prior = np.einsum("bbd->b", each), stats.norm().logpdf(z).sum(-1)
  parts = vae.decompose_kl(z, q, num_examples=3)
  log_n = np.log(3)
  np.testing.assert_allclose(parts.index_code, np.mean(own - joint) + log_n, rtol=1e-4)
  np.testing.assert_allclose(parts.total_correlation, np.mean(joint - single) - log_n + 2 * log_n, rtol=1e-4)
  np.testing.assert_allclose(parts.dimension_wise, np.mean(single - prior) - 2 * log_n, rtol=1e-4)
  np.testing.assert_allclose(sum(parts), np.mean(own - prior), rtol=1e-4)
  more = vae.decompose_kl(z, q, num_examples=300)
  np.testing.assert_allclose(more.index_code - parts.index_code, np.log(100), rtol=1e-4)


def test_active_latents_are_those_that_move():
  means = jnp.stack([jnp.linspace(-1, 1, 50), jnp.full(50, 3.0), jnp.linspace(0, 0.1, 50)], axis=1)
  assert vae.count_active(means) == 1


def test_an_odd_number_of_features_is_refused():
  with pytest.raises(ValueError, match="a mean and a log variance for each latent: found 3"):
    vae.split_posterior(jnp.zeros((2, 3)))
