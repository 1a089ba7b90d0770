from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from mlnotes.diffusion import (
  EPSILON,
  PARAMETERIZATIONS,
  VARIANCES,
  X0,
  Prediction,
  V,
  add_noise,
  compute_denoising_loss,
  compute_gaussian_kl,
  compute_hybrid_loss,
  compute_log_snr,
  compute_prior_kl,
  compute_vlb,
  compute_vlb_term,
  constant_weight,
  discretized_gaussian_log_prob,
  estimate_vlb,
  fixed_large,
  fixed_small,
  learned,
  make_cosine_schedule,
  make_denoiser,
  make_linear_schedule,
  make_min_snr_weight,
  make_schedule_from_log_snr,
  to_bits_per_dim,
  to_signed,
)

MEAN, STD = 0.3, 0.5


log_prob_of_levels = jax.jit(discretized_gaussian_log_prob, static_argnums=3)


def exact_alpha_bar(schedule):
  return 1 / (1 + np.exp(-np.float64(schedule.log_snr)))


def gaussian_denoiser(schedule, fraction=None):
  """E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2); `fraction` from t."""

  def denoise(x_t, t):
    alpha_bar = jax.nn.sigmoid(compute_log_snr(schedule, t))[:, None]
    slope = jnp.sqrt(alpha_bar) * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
    x0 = MEAN + slope * (x_t - jnp.sqrt(alpha_bar) * MEAN)
    noise = (x_t - jnp.sqrt(alpha_bar) * x0) / jnp.sqrt(1 - alpha_bar)
    return Prediction(x0, noise, None if fraction is None else jnp.broadcast_to(fraction(t)[:, None], x0.shape))

  return denoise


@pytest.mark.parametrize(
  ("p", "q"), [((0.0, 1.0), (0.0, 1.0)), ((0.3, 0.5), (0.0, 1.0)), ((1.0, 2.0), (-0.5, 0.7)), ((0.0, 0.3), (0.0, 0.31))]
)
def test_gaussian_kl_is_the_integral(p, q):
  first, second = scipy.stats.norm(*p), scipy.stats.norm(*q)
  integrand = lambda x: first.pdf(x) * (first.logpdf(x) - second.logpdf(x))
  expected = scipy.integrate.quad(integrand, p[0] - 10 * p[1], p[0] + 10 * p[1], epsabs=1e-10)[0]
  found = compute_gaussian_kl(*(jnp.array([v]) for v in (p[0], 2 * np.log(p[1]), q[0], 2 * np.log(q[1]))))
  np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("num_levels", [2, 17, 256])
@pytest.mark.parametrize("mean", [-1.0, 0.013, 0.99, 4.0])
@pytest.mark.parametrize("std", [0.003, 0.05, 2.0])
def test_level_probabilities_sum_to_one(num_levels, mean, std):
  x = to_signed(jnp.arange(num_levels), num_levels)
  log_prob = log_prob_of_levels(x, jnp.full_like(x, mean), jnp.full_like(x, 2 * np.log(std)), num_levels)
  assert np.all(np.isfinite(log_prob))
  np.testing.assert_allclose(np.exp(np.float64(log_prob)).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize(("mean", "std"), [(0.2, 0.05), (-0.97, 0.01), (0.0, 1.5)])
def test_level_probabilities_are_the_bins_masses(mean, std):
  x = np.linspace(-1, 1, 17)
  edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
  # In float64 and from the nearer tail, as far out as its own subtraction holds.
  below, above = scipy.stats.norm.cdf(edges, mean, std), scipy.stats.norm.sf(edges, mean, std)
  mass = np.where(x < mean, np.diff(below), -np.diff(above))
  found = log_prob_of_levels(jnp.asarray(x, jnp.float32), jnp.full(17, mean), jnp.full(17, 2 * np.log(std)), 17)
  seen = mass > 1e-300
  np.testing.assert_allclose(found[seen], np.log(mass[seen]), rtol=1e-4, atol=1e-5)
  assert np.all(found[~seen] < -600) and np.all(np.isfinite(found))


def test_gradient_of_the_decoder_is_finite_far_from_the_data():
  log_prob = lambda mean, log_variance: discretized_gaussian_log_prob(jnp.array(1.0), mean, log_variance, 256)
  gradient = jax.jit(jax.grad(log_prob, (0, 1)))
  for mean, log_variance in [(-1.0, -10.0), (1.0, -10.0), (0.0, 0.0), (-3.0, -10.0), (1.0, -30.0)]:
    assert np.all(np.isfinite(gradient(mean, log_variance)))


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_loss_of_a_perfect_network_is_zero_and_of_a_silent_one_the_mean_square(key, name):
  schedule, parameterization = make_cosine_schedule(100), PARAMETERIZATIONS[name]
  x_key, noise_key = jax.random.split(key)
  x0, noise = jax.random.uniform(x_key, (3, 4, 2), minval=-1), jax.random.normal(noise_key, (3, 4, 2))
  t = jnp.array([0, 50, 99])
  target = jax.vmap(parameterization.target)(x0, noise, compute_log_snr(schedule, t))

  def outputs(x, t):
    return target, jnp.zeros_like(x), jnp.zeros((*x.shape[:-1], 4)).at[..., 2:].set(9.0)

  @jax.jit
  def losses():
    networks = [lambda x, t, i=i: outputs(x, t)[i] for i in range(3)]
    return [compute_denoising_loss(network, schedule, x0, noise, t, parameterization) for network in networks]

  perfect, silent, with_variance_half = losses()
  np.testing.assert_array_equal(perfect, 0)
  np.testing.assert_allclose(silent, np.mean(np.square(target), axis=(1, 2)), rtol=1e-6)
  np.testing.assert_array_equal(with_variance_half, silent)


def test_network_sees_the_noised_example(key):
  schedule = make_linear_schedule(100)
  x0, noise, t = jnp.ones((2, 3)), jax.random.normal(key, (2, 3)), jnp.array([0, 99])
  alpha_bar = exact_alpha_bar(schedule)[np.asarray(t)][:, None]

  def network(x_t, times):
    np.testing.assert_allclose(x_t, np.sqrt(alpha_bar) + np.sqrt(1 - alpha_bar) * noise, rtol=1e-5)
    np.testing.assert_array_equal(times, t)
    return x_t

  compute_denoising_loss(network, schedule, x0, noise, t)


def test_min_snr_weights_of_the_paper():
  """Hang et al. 2023, section 3.4."""
  log_snr = jnp.linspace(-12, 9, 50)
  snr = np.exp(np.float64(log_snr))
  for parameterization, expected in [
    (X0, np.minimum(snr, 5)),
    (EPSILON, np.minimum(1, 5 / snr)),
    (V, np.minimum(snr, 5) / (snr + 1)),
  ]:
    np.testing.assert_allclose(make_min_snr_weight(parameterization)(log_snr), expected, rtol=1e-5)
  np.testing.assert_array_equal(constant_weight(log_snr), 1)


@pytest.mark.parametrize("t", [10, 60, 99])
def test_min_snr_loss_is_the_same_for_every_parameterization(t):
  """The same wrong guess of x0, put in three ways, costs min(SNR, gamma) times its squared error."""
  schedule, times = make_linear_schedule(100), jnp.array([t])
  x0, noise, guess = jnp.array([[0.5, -0.2]]), jnp.array([[1.0, 0.3]]), jnp.array([[0.1, 0.9]])
  log_snr = compute_log_snr(schedule, times)
  x_t = jax.vmap(add_noise)(x0, noise, log_snr)
  alpha_bar = exact_alpha_bar(schedule)[t]
  alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
  eps = (x_t - alpha * guess) / sigma
  outputs = {"epsilon": eps, "x0": guess, "v": alpha * eps - sigma * guess}
  for name, output in outputs.items():
    parameterization = PARAMETERIZATIONS[name]
    weight = make_min_snr_weight(parameterization, gamma=2.0)
    loss = compute_denoising_loss(lambda x, t, y=output: y, schedule, x0, noise, times, parameterization, weight)
    expected = min(alpha_bar / (1 - alpha_bar), 2.0) * np.mean((0.4**2, 1.1**2))
    np.testing.assert_allclose(loss, expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["fixed_small", "fixed_large"])
def test_step_terms_in_closed_form(name):
  """KL of two Gaussians of known variances, whose means differ by the posterior's weight of x0 times the x0 error."""
  schedule, times = make_linear_schedule(100), np.array([1, 2, 50, 99])
  alpha_bar = exact_alpha_bar(schedule)
  a_t, a_s = alpha_bar[times], alpha_bar[times - 1]
  beta = 1 - a_t / a_s
  small = beta * (1 - a_s) / (1 - a_t)
  variance = {"fixed_small": small, "fixed_large": beta}[name]
  shift = np.sqrt(a_s) * beta / (1 - a_t) * 0.2
  expected = 3 * (np.log(variance / small) + (small + shift**2) / variance - 1) / 2
  x0 = jnp.full((4, 3), 0.5)
  term = partial(compute_vlb_term, schedule, num_levels=256, variance=VARIANCES[name])
  one = lambda x0, t: term(Prediction(x0 - 0.2, x0), x0=x0, x_t=1.3 * x0, t=t)
  found = jax.jit(jax.vmap(one))(x0, jnp.asarray(times))
  np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_prior_kl_in_closed_form():
  schedule = make_linear_schedule(50)
  variance = 1 - exact_alpha_bar(schedule)[-1]
  x0 = np.array([0.5, -1.0])
  expected = np.sum((variance + (1 - variance) * x0**2 - 1 - np.log(variance)) / 2)
  np.testing.assert_allclose(compute_prior_kl(schedule, jnp.asarray(x0, jnp.float32)), expected, rtol=2e-3)
  assert compute_prior_kl(make_cosine_schedule(1000), jnp.ones(5)) < 1e-6


def expected_bound(schedule, variance):
  """E over N(MEAN, STD^2) of the bound for the exact denoiser with a density as decoder, float64, term by term."""
  alpha_bar = exact_alpha_bar(schedule)
  a_t, a_s = alpha_bar[1:], alpha_bar[:-1]
  error = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)  # E (x0 - E[x0 | x_t])^2
  beta = 1 - a_t / a_s
  small = beta * (1 - a_s) / (1 - a_t)
  chosen = {fixed_small: small, fixed_large: beta}[variance]
  shift = (np.sqrt(a_s) * beta / (1 - a_t)) ** 2 * error[1:]
  steps = (np.log(chosen / small) + (small + shift) / chosen - 1) / 2
  decoder = (np.log(2 * np.pi * small[0]) + error[0] / small[0]) / 2
  last = alpha_bar[-1]
  prior = (1 - last + last * (MEAN**2 + STD**2) - 1 - np.log1p(-last)) / 2
  return prior, np.concatenate([[decoder], steps])


@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_bound_on_gaussian_data_term_by_term(key, variance):
  schedule, count = make_linear_schedule(50), 4000
  data_key, noise_key = jax.random.split(key)
  x0 = MEAN + STD * jax.random.normal(data_key, (count, 1))
  keys = jax.random.split(noise_key, count)
  bound = jax.jit(partial(compute_vlb, variance=variance, chunk=8), static_argnums=(1, 4))(
    keys, gaussian_denoiser(schedule), schedule, x0, None
  )
  prior, terms = expected_bound(schedule, variance)
  found = np.asarray(bound.terms, np.float64)
  assert found.shape == (50, count)
  assert np.all(np.abs(found.mean(1) - terms) < 5 * found.std(1) / np.sqrt(count) + 1e-5)
  np.testing.assert_allclose(np.mean(bound.prior), prior, rtol=0.1)
  np.testing.assert_allclose(bound.total, bound.prior + found.sum(0), rtol=1e-5, atol=1e-5)


def gaps_to_the_likelihood(key, schedule, denoise, count):
  """Bound minus each example's own -log p(x_0): much less noise than the bound minus the entropy."""
  data_key, noise_key = jax.random.split(key)
  x0 = MEAN + STD * jax.random.normal(data_key, (count, 1))
  run = jax.jit(lambda keys, x0: compute_vlb(keys, denoise, schedule, x0, None, learned, chunk=10).total)
  bound = np.asarray(run(jax.random.split(noise_key, count), x0), np.float64)
  return bound + scipy.stats.norm.logpdf(x0, MEAN, STD)[:, 0]


def test_bound_is_the_entropy_of_gaussian_data_with_the_right_variance(key):
  """Reverse steps of Gaussian data are Gaussian: with their variance the bound is tight, however few the steps."""
  schedule = make_schedule_from_log_snr(lambda u: 8 - 18 * u, 20)
  alpha_bar = exact_alpha_bar(schedule)
  a_t, a_s = alpha_bar[1:], alpha_bar[:-1]
  marginal_s, marginal_t = a_s * STD**2 + 1 - a_s, a_t * STD**2 + 1 - a_t
  reverse = marginal_s - a_t / a_s * marginal_s**2 / marginal_t  # Var(x_s | x_t), from the joint of the two
  large = 1 - a_t / a_s
  small = large * (1 - a_s) / (1 - a_t)
  fraction = np.log(reverse / small) / np.log(large / small)
  error = STD**2 * (1 - alpha_bar[0]) / (alpha_bar[0] * STD**2 + 1 - alpha_bar[0])
  first = np.log(error / small[0]) / np.log((1 - alpha_bar[0]) / small[0])
  fractions = jnp.asarray(np.append(first, fraction), jnp.float32)
  gaps = gaps_to_the_likelihood(key, schedule, gaussian_denoiser(schedule, lambda t: fractions[t]), 4000)
  assert abs(gaps.mean()) < 4 * gaps.std() / np.sqrt(4000) and gaps.std() / np.sqrt(4000) < 0.02


def test_bound_with_the_small_variance_approaches_the_entropy(key):
  """The smallest variance is right in the limit of many steps: the gap falls as 1 / T."""
  gaps = []
  for i, num_steps in enumerate((30, 120, 480)):
    schedule = make_schedule_from_log_snr(lambda u: 8 - 18 * u, num_steps)
    # The decoder takes the variance of its own step, sigma_0^2, which is not small for it.
    denoise = gaussian_denoiser(schedule, fraction=lambda t: (t == 0).astype(jnp.float32))
    gaps.append(gaps_to_the_likelihood(jax.random.fold_in(key, i), schedule, denoise, 1000).mean())
  assert 0 < gaps[1] < 0.4 * gaps[0] and 0 < gaps[2] < 0.4 * gaps[1] and gaps[2] < 0.15


def test_estimate_of_the_bound_is_its_terms(key):
  schedule, denoise = make_linear_schedule(20), gaussian_denoiser(make_linear_schedule(20))
  x0, keys = jnp.array([[0.25], [-0.5]]), jax.random.split(key, 2)

  @jax.jit
  def estimate(keys, t):
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), (1,)))(keys)
    return estimate_vlb(denoise, schedule, x0, noise, jnp.full(2, t), 17)

  bound = jax.jit(lambda keys: compute_vlb(keys, denoise, schedule, x0, 17))(jax.random.clone(keys))
  for t in (0, 7, 19):
    expected = bound.prior + 20 * bound.terms[t]
    np.testing.assert_allclose(estimate(jax.random.clone(keys), jnp.asarray(t)), expected, rtol=1e-5)


def test_bound_of_an_example_does_not_depend_on_its_batch_or_on_the_chunk(key):
  schedule = make_linear_schedule(20)
  x0, keys = jnp.array([[0.25], [-0.5], [1.0]]), jax.random.split(key, 3)

  @partial(jax.jit, static_argnums=2)
  def run(keys, x0, chunk):
    return compute_vlb(keys, gaussian_denoiser(schedule), schedule, x0, 17, chunk=chunk).total

  together = run(jax.random.clone(keys), x0, 1)
  np.testing.assert_allclose(run(jax.random.clone(keys), x0, 7), together, rtol=1e-5)
  np.testing.assert_allclose(run(jax.random.clone(keys)[1:2], x0[1:2], 1), together[1:2], rtol=1e-5)


def test_bits_per_dimension():
  """Eight dimensions that each take one of 256 values evenly: 8 bits each."""
  np.testing.assert_allclose(to_bits_per_dim(jnp.array([8 * np.log(256)]), 8), 8, rtol=1e-6)


def hybrid_setting(key):
  schedule = make_cosine_schedule(100)
  x_key, noise_key, key = jax.random.split(key, 3)
  t = jnp.array([0, 1, 50, 99])
  x0 = to_signed(jax.random.randint(x_key, (4, 3), 0, 17), 17)
  params = {"mean": 0.5 * jax.random.normal(key, (3,)), "variance": jnp.array([-0.3, 0.1, 0.6])}
  make_network = lambda params: (
    lambda x, t: jnp.concatenate([x * params["mean"][None], jnp.broadcast_to(params["variance"], x.shape)], axis=-1)
  )
  return schedule, x0, jax.random.normal(noise_key, (4, 3)), t, params, make_network


def test_hybrid_loss_is_the_sum_and_teaches_the_mean_nothing_about_the_bound(key):
  schedule, x0, noise, t, params, make_network = hybrid_setting(key)
  simple = lambda params: compute_denoising_loss(make_network(params), schedule, x0, noise, t)
  hybrid = lambda params, w: compute_hybrid_loss(make_network(params), schedule, x0, noise, t, 17, vlb_weight=w)
  bound = lambda params: 100 / 3 * vlb_terms(make_network(params), schedule, x0, noise, t)

  @jax.jit
  def values_and_gradients(params):
    losses = (lambda params: hybrid(params, 0.01)), simple, bound
    return [(loss(params), jax.grad(lambda params, f=loss: jnp.mean(f(params)))(params)) for loss in losses]

  (total, both), (first, plain), (second, pure) = values_and_gradients(params)
  np.testing.assert_allclose(total, first + 0.01 * second, rtol=1e-4)
  np.testing.assert_allclose(both["mean"], plain["mean"], rtol=1e-5)
  assert np.all(np.abs(pure["mean"]) > 1e-3) and np.all(plain["variance"] == 0)
  np.testing.assert_allclose(both["variance"], 0.01 * pure["variance"], rtol=1e-4)
  assert np.all(np.isfinite(both["variance"])) and np.all(both["variance"] != 0)


def vlb_terms(network, schedule, x0, noise, t):
  estimate = estimate_vlb(make_denoiser(network, schedule), schedule, x0, noise, t, 17, learned)
  return (estimate - jax.vmap(partial(compute_prior_kl, schedule))(x0)) / schedule.num_steps


def test_hybrid_loss_needs_a_variance_half(key):
  schedule, x0, noise, t, _, _ = hybrid_setting(key)
  with pytest.raises(ValueError, match="twice the channels"):
    compute_hybrid_loss(lambda x, t: x, schedule, x0, noise, t, 17)
