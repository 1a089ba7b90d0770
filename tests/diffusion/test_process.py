import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.diffusion import (
  EPSILON,
  PARAMETERIZATIONS,
  VARIANCES,
  X0,
  V,
  add_noise,
  check_range,
  clip_to_unit,
  compute_log_snr,
  compute_noise,
  compute_posterior,
  compute_step_log_variance,
  fixed_large,
  fixed_small,
  interpret_output,
  learned,
  make_cosine_schedule,
  make_denoiser,
  make_linear_schedule,
  to_levels,
  to_signed,
)

SCHEDULES = {"linear": make_linear_schedule(1000), "cosine": make_cosine_schedule(1000)}


def exact_alpha_bar(schedule):
  return 1 / (1 + np.exp(-np.float64(schedule.log_snr)))


def condition(alpha_bar, t, s):
  """q(x_s | x_t, x_0) by conditioning the joint Gaussian of (x_s, x_t) given x_0: weights of x_t and x_0, variance."""
  alpha_bar_s = alpha_bar[s] if s >= 0 else 1.0
  gain = np.sqrt(alpha_bar[t] / alpha_bar_s)
  var_s, var_t, cov = 1 - alpha_bar_s, 1 - alpha_bar[t], gain * (1 - alpha_bar_s)
  return cov / var_t, np.sqrt(alpha_bar_s) - cov / var_t * np.sqrt(alpha_bar[t]), var_s - cov**2 / var_t


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("t", "s"), [(0, -1), (1, 0), (2, 1), (500, 499), (999, 998), (999, 0), (999, 500), (19, -1)])
def test_posterior_is_the_joint_gaussian_conditioned_on_x_t(name, t, s):
  schedule = SCHEDULES[name]
  from_x_t, from_x0, variance = condition(exact_alpha_bar(schedule), t, s)
  log_snr_t, log_snr_s = compute_log_snr(schedule, jnp.array([t, s]))
  one, zero = jnp.ones(3), jnp.zeros(3)
  np.testing.assert_allclose(compute_posterior(one, zero, log_snr_t, log_snr_s).mean, from_x_t, rtol=2e-5, atol=1e-7)
  posterior = compute_posterior(zero, one, log_snr_t, log_snr_s)
  np.testing.assert_allclose(posterior.mean, from_x0, rtol=2e-4, atol=1e-7)
  np.testing.assert_allclose(np.exp(posterior.log_variance), variance, rtol=2e-4, atol=1e-12)


def test_posterior_into_the_clean_data_is_the_clean_data():
  log_snr_t, log_snr_s = compute_log_snr(SCHEDULES["linear"], jnp.array([300, -1]))
  mean, log_variance = compute_posterior(jnp.array([7.0]), jnp.array([0.25]), log_snr_t, log_snr_s)
  assert mean[0] == 0.25 and log_variance == -jnp.inf


def test_forward_process_composes():
  """Noise to s, then from s to t with the step variance, is noise to t."""
  schedule = SCHEDULES["cosine"]
  alpha_bar = exact_alpha_bar(schedule)
  for s, t in [(0, 1), (10, 400), (400, 998)]:
    log_snr_s, log_snr_t = compute_log_snr(schedule, jnp.array([s, t]))
    step = np.exp(np.float64(compute_step_log_variance(log_snr_t, log_snr_s)))
    np.testing.assert_allclose(alpha_bar[s] * (1 - step), alpha_bar[t], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose((1 - step) * (1 - alpha_bar[s]) + step, 1 - alpha_bar[t], rtol=1e-4)


@pytest.mark.parametrize("t", [0, 1, 500, 999])
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_perfect_output_gives_back_x0_and_noise(key, name, t):
  parameterization, schedule = PARAMETERIZATIONS[name], SCHEDULES["linear"]
  x_key, noise_key = jax.random.split(key)
  x0, noise = jax.random.uniform(x_key, (4, 4, 2), minval=-1), jax.random.normal(noise_key, (4, 4, 2))
  log_snr = compute_log_snr(schedule, jnp.asarray(t))
  x_t = add_noise(x0, noise, log_snr)
  output = parameterization.target(x0, noise, log_snr)
  prediction = interpret_output(output, x_t, log_snr, parameterization)
  np.testing.assert_allclose(prediction.x0, x0, atol=2e-4 if name == "epsilon" else 1e-6)
  np.testing.assert_allclose(prediction.noise, noise, atol=1e-4)
  assert prediction.fraction is None


@pytest.mark.parametrize("t", [0, 500, 999])
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_error_scale_turns_output_errors_into_x0_errors(name, t):
  parameterization = PARAMETERIZATIONS[name]
  log_snr = compute_log_snr(SCHEDULES["linear"], jnp.asarray(t))
  wrong, right = (parameterization.to_x0(jnp.array([y]), jnp.array([0.3]), log_snr)[0] for y in (0.7, 0.2))
  np.testing.assert_allclose((wrong - right) ** 2, parameterization.error_scale(log_snr) * 0.25, rtol=1e-3)


def test_targets_at_known_angles():
  """At alpha = sigma = sqrt(1/2): v = (noise - x0) / sqrt(2)."""
  x0, noise, log_snr = jnp.array([0.5]), jnp.array([-1.5]), jnp.array(0.0)
  assert EPSILON.target(x0, noise, log_snr)[0] == -1.5
  assert X0.target(x0, noise, log_snr)[0] == 0.5
  np.testing.assert_allclose(V.target(x0, noise, log_snr), -np.sqrt(2), rtol=1e-6)
  np.testing.assert_allclose(add_noise(x0, noise, log_snr), -np.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stride", [1, 40])
def test_variances_lie_between_the_bounds_at_any_stride(name, stride):
  schedule = SCHEDULES[name]
  alpha_bar = exact_alpha_bar(schedule)
  for t in range(stride, 1000, 111):
    s = t - stride
    small = condition(alpha_bar, t, s)[2]
    large = 1 - alpha_bar[t] / alpha_bar[s]
    arguments = schedule, jnp.asarray(t), jnp.asarray(s)
    np.testing.assert_allclose(np.exp(fixed_small(*arguments)), small, rtol=2e-4)
    np.testing.assert_allclose(np.exp(fixed_large(*arguments)), large, rtol=2e-4)
    fractions = jnp.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(
      np.exp(learned(*arguments, fractions)), [small, np.sqrt(small * large), large], rtol=2e-4
    )


@pytest.mark.parametrize("name", VARIANCES)
def test_variances_are_finite_into_the_clean_data(name):
  schedule = SCHEDULES["linear"]
  beta, alpha_bar = np.asarray(schedule.beta, np.float64), exact_alpha_bar(schedule)
  log_variance = VARIANCES[name](schedule, jnp.asarray(0), jnp.asarray(-1), jnp.array([1.0]))
  first = np.log(beta[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1]))
  np.testing.assert_allclose(log_variance, np.log(beta[0]) if name == "learned" else first, rtol=1e-4)


def test_learned_variance_needs_a_variance_half():
  with pytest.raises(ValueError, match="twice the channels"):
    learned(SCHEDULES["linear"], jnp.asarray(5), jnp.asarray(4))


def test_variance_half_of_the_output():
  x_t, log_snr = jnp.zeros((2, 3)), jnp.array(0.0)
  output = jnp.concatenate([jnp.full((2, 3), 0.4), jnp.full((2, 3), -1.0)], axis=-1)
  prediction = interpret_output(output, x_t, log_snr, X0)
  assert jnp.all(prediction.x0 == 0.4) and jnp.all(prediction.fraction == 0)
  with pytest.raises(ValueError, match=r"\(2, 3\) or twice its channels, found \(2, 4\)"):
    interpret_output(jnp.zeros((2, 4)), x_t, log_snr, X0)


def test_clipping_keeps_x0_and_noise_consistent():
  schedule = SCHEDULES["linear"]
  network = lambda x, t: jnp.zeros_like(x)
  x_t, t = jnp.array([[0.1], [3.0]]), jnp.array([100, 100])
  free = make_denoiser(network, schedule)(x_t, t)
  clipped = make_denoiser(network, schedule, clip=clip_to_unit)(x_t, t)
  assert free.x0[1, 0] > 3 and clipped.x0[1, 0] == 1 and clipped.x0[0, 0] == free.x0[0, 0]
  assert abs(free.noise[1, 0]) < 1e-5 and clipped.noise[1, 0] > 1
  log_snr = compute_log_snr(schedule, t)
  np.testing.assert_allclose(jax.vmap(add_noise)(clipped.x0, clipped.noise, log_snr), x_t, rtol=1e-6)
  np.testing.assert_allclose(jax.vmap(compute_noise)(x_t, clipped.x0, log_snr), clipped.noise, rtol=1e-6)


def test_clip_sees_one_example():
  """A per-example threshold depends on no other example of the batch."""
  scale = lambda x0: x0 / jnp.maximum(jnp.max(jnp.abs(x0)), 1.0)
  denoise = make_denoiser(lambda x, t: x, SCHEDULES["linear"], X0, clip=scale)
  x0 = denoise(jnp.array([[4.0, 2.0], [0.5, 0.25]]), jnp.array([3, 3])).x0
  np.testing.assert_allclose(x0, [[1.0, 0.5], [0.5, 0.25]])


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_levels_round_trip(num_levels):
  levels = jnp.arange(num_levels)
  x = to_signed(levels, num_levels)
  assert x[0] == -1 and abs(x[-1] - 1) < 1e-6
  np.testing.assert_array_equal(to_levels(x, num_levels), levels)
  assert to_levels(jnp.array([-3.0, 3.0]), num_levels).tolist() == [0, num_levels - 1]
  check_range(x)


@pytest.mark.parametrize(
  "x",
  [
    np.array([0, 255], np.uint8),
    np.array([0.0, 255.0], np.float32),
    np.array([0.0, 1.0], np.float32),
    np.array([-1.0, 1.1], np.float32),
    np.array([-1.1, 1.0], np.float32),
    np.array([-1.0, np.nan], np.float32),
    np.array([-np.inf, 1.0], np.float32),
  ],
)
def test_data_out_of_range_are_refused(x):
  with pytest.raises(ValueError, match=r"image must .*\[-1, 1\] .*found"):
    check_range(x, "image")
