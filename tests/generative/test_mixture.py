"""Mixtures: EM against scikit-learn step by step, closed forms, an objective that never falls, a floor that holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.mixture import GaussianMixture as Reference

from mlnotes.engine.errors import InputError
from mlnotes.generative import mixture as m

SKLEARN = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}
STEPS = 12


def blobs(count=120, dims=3, seed=0):
  rng = np.random.default_rng(seed)
  centers = 2.5 * rng.normal(size=(3, dims))
  return centers[rng.integers(0, 3, count)] + rng.normal(size=(count, dims)) @ (0.3 + rng.random((dims, dims)))


@pytest.mark.parity
@pytest.mark.parametrize("covariance", m.COVARIANCES)
def test_em_is_scikit_learns_step_by_step(covariance):
  x = blobs()
  resp = np.eye(3)[np.random.default_rng(1).integers(0, 3, len(x))]
  with jax.enable_x64(True):

    @jax.jit
    def fit(x, resp):
      first = m.maximize_gaussian(x, resp, covariance, 0.0)
      improve = lambda mixture, _: m.improve_gaussian(mixture, x, covariance, 0.0)
      last, objective = jax.lax.scan(improve, first, length=STEPS)
      return first, last, objective, m.mixture_log_density(last, x), last.covariances()

    first, last, objective, density, covariances = jax.tree.map(np.asarray, fit(jnp.asarray(x), jnp.asarray(resp)))
  precisions = np.linalg.inv(np.asarray(jax.tree.map(np.asarray, first.factors @ np.swapaxes(first.factors, 1, 2))))
  if covariance == "diagonal":
    precisions = 1 / first.factors[:, 0] ** 2
  elif covariance == "spherical":
    precisions = 1 / first.factors[:, 0, 0] ** 2
  elif covariance == "tied":
    precisions = precisions[0]
  reference = Reference(
    3, covariance_type=SKLEARN[covariance], reg_covar=0.0, tol=0.0, max_iter=STEPS,
    weights_init=np.exp(first.log_weights), means_init=first.means, precisions_init=precisions,
  )  # fmt: skip
  with pytest.warns(UserWarning, match="did not converge"):
    reference.fit(x)
  np.testing.assert_allclose(objective, reference.lower_bounds_, rtol=1e-9)
  np.testing.assert_allclose(last.means, reference.means_, rtol=1e-6)
  np.testing.assert_allclose(np.exp(last.log_weights), reference.weights_, rtol=1e-6)
  np.testing.assert_allclose(density, reference.score_samples(x), rtol=1e-7)
  expected = {
    "full": lambda found: found,
    "tied": lambda found: np.stack([found] * 3),
    "diagonal": lambda found: np.stack([np.diag(row) for row in found]),
    "spherical": lambda found: found.reshape(-1, 1, 1) * np.eye(3),
  }[covariance](reference.covariances_)
  np.testing.assert_allclose(covariances, expected, rtol=1e-6, atol=1e-9)
  count = m.count_parameters(3, 3, covariance)
  assert count == reference._n_parameters()
  assert m.compute_bic(density.sum(), count, len(x)) == pytest.approx(reference.bic(x), rel=1e-9)


@pytest.mark.parametrize("covariance", m.COVARIANCES)
def test_objective_never_falls_and_the_floor_holds(covariance):
  """Ten examples in five places: without a floor components shrink onto them and the likelihood has no bound."""
  rng = np.random.default_rng(0)
  x = np.repeat(rng.normal(size=(5, 2)), 2, axis=0)
  with jax.enable_x64(True):
    fit = jax.vmap(lambda key: m.fit_gaussian_mixture(key, jnp.asarray(x), 4, covariance, 0.01, 40))
    fits = fit(jax.random.split(jax.random.key(0), 3))
    variances = np.linalg.eigvalsh(np.asarray(jax.vmap(lambda f: f.covariances())(fits.mixture)))
  assert np.all(np.diff(np.asarray(fits.objective)) >= -1e-12)
  assert np.all(np.isfinite(fits.objective))
  assert variances.min() == pytest.approx(0.01, rel=1e-6)


def test_log_density_is_scipys():
  rng = np.random.default_rng(0)
  factors = np.tril(rng.normal(size=(2, 3, 3))) + 2 * np.eye(3)
  means, weights, x = rng.normal(size=(2, 3)), np.array([0.3, 0.7]), rng.normal(size=(6, 3))
  mixture = m.GaussianMixture(*(jnp.asarray(v, jnp.float32) for v in (np.log(weights), means, factors)))
  parts = [
    w * scipy.stats.multivariate_normal(mu, f @ f.T).pdf(x) for w, mu, f in zip(weights, means, factors)
  ]  # fmt: skip
  np.testing.assert_allclose(m.mixture_log_density(mixture, jnp.asarray(x, jnp.float32)), np.log(sum(parts)), rtol=1e-4)
  resp = m.responsibilities(mixture, jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(resp, np.stack(parts, 1) / sum(parts)[:, None], rtol=2e-3)


def test_well_separated_blobs_are_found_by_the_best_restart():
  centers = np.array([[0, 0], [6, 0], [0, 6], [6, 6]])
  rng = np.random.default_rng(0)
  x = jnp.asarray(np.repeat(centers, 50, 0) + 0.3 * rng.normal(size=(200, 2)), jnp.float32)
  fit = jax.vmap(lambda key: m.fit_gaussian_mixture(key, x, 4, "full", 1e-4, 10))
  best = m.best_restart(fit(jax.random.split(jax.random.key(1), 4)))
  order = np.lexsort(np.round(np.asarray(best.mixture.means)).T[::-1])
  np.testing.assert_allclose(np.asarray(best.mixture.means)[order], centers[np.lexsort(centers.T[::-1])], atol=0.2)
  np.testing.assert_allclose(np.exp(best.mixture.log_weights), 0.25, atol=0.02)
  sampled = m.sample_gaussian_mixture(jax.random.key(2), best.mixture, 4000)
  np.testing.assert_allclose(np.cov(np.asarray(sampled).T), np.cov(np.asarray(x).T), atol=0.6)


def test_next_centers_are_drawn_by_squared_distance():
  """Of three places, 0, 1 and 3, the second centre after 0 is 3 nine times in ten."""
  x = jnp.array([[0.0], [1.0], [3.0]])
  centers = jax.vmap(lambda key: m.choose_centers(key, x, 2))(jax.random.split(jax.random.key(0), 6000))
  centers = np.asarray(centers)[..., 0]
  after = centers[centers[:, 0] == 0][:, 1]
  assert len(after) > 1800 and np.mean(after == 3) == pytest.approx(0.9, abs=0.02)
  assert np.all(after != 0)


def test_one_bernoulli_vector_is_the_frequency_of_each_pixel():
  x = (np.random.default_rng(0).random((50, 4)) < [0.1, 0.5, 0.9, 0.0]).astype(np.float32)
  fit = m.fit_bernoulli_mixture(jax.random.key(0), jnp.asarray(x), 1, 0.5, 2)
  frequency = (x.sum(0) + 0.5) / (50 + 1)
  np.testing.assert_allclose(jax.nn.sigmoid(fit.mixture.logits[0]), frequency, rtol=1e-4)
  expected = scipy.stats.bernoulli.logpmf(x.astype(int), frequency).sum(1)
  np.testing.assert_allclose(m.mixture_log_density(fit.mixture, jnp.asarray(x)), expected, rtol=1e-4)


def test_bernoulli_objective_never_falls_and_is_brute_force():
  rng = np.random.default_rng(0)
  x = (rng.random((60, 5)) < rng.random((2, 5))[rng.integers(0, 2, 60)]).astype(np.float64)
  with jax.enable_x64(True):
    fit = jax.tree.map(np.asarray, m.fit_bernoulli_mixture(jax.random.key(0), jnp.asarray(x), 3, 0.2, 30))
    again = m.fit_bernoulli_mixture(jax.random.key(0), jnp.asarray(x), 3, 0.2, 31)
  assert np.all(np.diff(fit.objective) >= -1e-12)
  assert fit.objective[-1] > fit.objective[0] + 1e-3
  p = 1 / (1 + np.exp(-fit.mixture.logits))
  likelihood = np.prod(np.where(x[:, None] == 1, p, 1 - p), -1) @ np.exp(fit.mixture.log_weights)
  prior = 0.2 * np.sum(np.log(p) + np.log(1 - p)) / 60
  assert float(again.objective[-1]) == pytest.approx(np.mean(np.log(likelihood)) + prior, rel=1e-9)


def test_samples_of_bernoulli_vectors_have_their_frequencies():
  mixture = m.BernoulliMixture(jnp.log(jnp.array([0.25, 0.75])), jnp.array([[4.0, -4.0], [-4.0, 4.0]]))
  x = np.asarray(m.sample_bernoulli_mixture(jax.random.key(0), mixture, 4000))
  off = 1 / (1 + np.exp(4))
  np.testing.assert_allclose(x.mean(0), [0.25 + 0.5 * off, 0.75 - 0.5 * off], atol=0.02)


@pytest.mark.parametrize(
  ("call", "sentence"),
  [
    (lambda x, key: m.fit_gaussian_mixture(key, x, 9), "count is 9, expected 1 to 8"),
    (lambda x, key: m.fit_gaussian_mixture(key, x, 2, steps=0), "steps is 0, expected 1 or more"),
    (lambda x, key: m.fit_bernoulli_mixture(key, x, 0), "count is 0, expected 1 to 8"),
  ],
)
def test_bad_input_is_refused_in_a_sentence(call, sentence):
  with pytest.raises(InputError, match=sentence):
    call(jnp.zeros((8, 2)), jax.random.key(0))
