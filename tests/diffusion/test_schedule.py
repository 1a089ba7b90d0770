import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.diffusion import (
  compute_log_snr,
  cosine_log_snr,
  linear_log_snr,
  make_cosine_schedule,
  make_linear_schedule,
  make_schedule_from_log_snr,
  make_timesteps,
  stratified_times,
)

SCHEDULES = {"linear": make_linear_schedule, "cosine": make_cosine_schedule}


def exact_beta(name, num_steps):
  """The papers' betas in float64, in the papers' own notation (t = 1..T)."""
  if name == "linear":
    return np.linspace(0.1, 20, num_steps) / num_steps
  angle = (np.linspace(0, 1, num_steps + 1) + 0.008) / 1.008 * np.pi / 2
  alpha_bar = (np.cos(angle) / np.cos(angle[0])) ** 2
  return np.array([min(1 - alpha_bar[t] / alpha_bar[t - 1], 0.999) for t in range(1, num_steps + 1)])


@pytest.mark.parametrize("num_steps", [50, 200, 1000, 4000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_alpha_bar_falls_strictly_from_below_one_to_nearly_zero(name, num_steps):
  schedule = SCHEDULES[name](num_steps)
  alpha_bar = np.asarray(schedule.alpha_bar)
  assert schedule.num_steps == num_steps and alpha_bar.dtype == np.float32
  assert np.all(np.diff(alpha_bar) < 0) and np.all(np.diff(schedule.log_snr) < 0)
  assert 0.995 < alpha_bar[0] < 1
  assert 0 < alpha_bar[-1] < 5e-5
  assert np.all((schedule.beta > 0) & (schedule.beta < 1)) and np.all(np.isfinite(schedule.log_snr))


@pytest.mark.parametrize("num_steps", [50, 200, 1000, 4000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_float32_schedule_keeps_the_precision_of_float64(name, num_steps):
  schedule, beta = SCHEDULES[name](num_steps), exact_beta(name, num_steps)
  alpha_bar = np.array([np.prod(1 - beta[: t + 1]) for t in range(num_steps)])
  np.testing.assert_allclose(schedule.beta, beta, atol=2e-6, rtol=0)
  # Both alpha_bar and 1 - alpha_bar are right to the last digits, however small.
  np.testing.assert_allclose(schedule.alpha_bar, alpha_bar, rtol=5e-6)
  np.testing.assert_allclose(1 / (1 + np.exp(np.float64(schedule.log_snr))), 1 - alpha_bar, rtol=5e-6)


@pytest.mark.parametrize("num_steps", [2, 5, 20])
def test_few_steps_keep_beta_below_one(num_steps):
  schedule = make_linear_schedule(num_steps)
  assert np.all(schedule.beta < 1) and np.all(np.diff(schedule.log_snr) < 0)
  assert np.all(np.isfinite(schedule.log_snr))


@pytest.mark.parametrize(("name", "log_snr"), [("linear", linear_log_snr), ("cosine", cosine_log_snr)])
def test_discrete_schedules_converge_to_the_continuous_ones(name, log_snr):
  def worst(num_steps):
    u = jnp.arange(1, num_steps + 1) / num_steps
    middle = (u > 0.1) & (u < 0.95)
    return np.max(np.abs(SCHEDULES[name](num_steps).log_snr - log_snr(u))[middle])

  # The cosine is sampled exactly; the linear one is a first-order discretization.
  assert worst(1000) < {"linear": 0.13, "cosine": 1e-4}[name]
  assert name == "cosine" or worst(4000) < 0.3 * worst(1000)


def test_schedule_from_log_snr_clips_the_ends_and_refuses_a_flat_one():
  schedule = make_schedule_from_log_snr(cosine_log_snr, 1000)
  np.testing.assert_allclose(schedule.log_snr[:-1], make_cosine_schedule(1000).log_snr[:-1], atol=5e-4)
  assert schedule.log_snr[-1] == -20
  with pytest.raises(ValueError, match="fall strictly"):
    make_schedule_from_log_snr(lambda u: 5 - 1e4 * u, 100)


def test_time_minus_one_is_the_clean_data():
  schedule = make_linear_schedule(10)
  values = compute_log_snr(schedule, jnp.array([-1, 0, 9]))
  np.testing.assert_array_equal(values, [np.inf, schedule.log_snr[0], schedule.log_snr[9]])


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("num_steps", "num_samples"), [(1000, 1000), (1000, 50), (1000, 7), (50, 49), (10, 1)])
def test_timesteps_rise_strictly_within_the_schedule(spacing, num_steps, num_samples):
  times = make_timesteps(num_steps, num_samples, spacing)
  assert len(times) == num_samples and np.all(np.diff(times) > 0)
  assert times[0] >= 0 and times[-1] < num_steps
  if spacing != "trailing":
    assert times[0] == 0
  if spacing == "trailing" or (spacing == "linspace" and num_samples > 1):
    assert times[-1] == num_steps - 1


def test_timesteps_of_the_table_in_the_paper():
  """Lin et al. 2024, table 2: T = 1000, 10 steps; there 1-based."""
  assert make_timesteps(1000, 10, "leading").tolist() == list(range(0, 1000, 100))
  assert make_timesteps(1000, 10, "trailing").tolist() == list(range(99, 1000, 100))
  assert make_timesteps(1000, 10, "linspace").tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]


@pytest.mark.parametrize(
  ("call", "match"),
  [
    (lambda: make_linear_schedule(1), "num_steps must be at least 2, found 1"),
    (lambda: make_cosine_schedule(0), "num_steps must be at least 2, found 0"),
    (lambda: make_linear_schedule(10, 0.02, 0.01), "beta_start and beta_end"),
    (lambda: make_linear_schedule(1000, beta_end=5.0), "0 < start <= end < 1, found 0.0001 and 5.0"),
    (lambda: make_linear_schedule(10, max_beta=1.0), "max_beta must lie between 0 and 1, found 1.0"),
    (lambda: make_cosine_schedule(10, max_beta=2.0), "max_beta must lie between 0 and 1, found 2.0"),
    (lambda: make_cosine_schedule(10, offset=-0.1), "offset must not be negative, found -0.1"),
    (lambda: make_schedule_from_log_snr(cosine_log_snr, 1), "num_steps must be at least 2, found 1"),
    (lambda: make_timesteps(10, 11), "num_samples must lie in 1..10"),
    (lambda: make_timesteps(10, 0), "num_samples must lie in 1..10"),
  ],
)
def test_bad_arguments_are_refused(call, match):
  with pytest.raises(ValueError, match=match):
    call()


@pytest.mark.parametrize("num_steps", [50, 1000])
def test_schedule_from_log_snr_starts_at_the_upper_bound(num_steps):
  """4 - 16 u crosses 3 at u = 1/16, and from there to u = 1 the times are evenly spaced."""
  schedule = make_schedule_from_log_snr(lambda u: 4 - 16 * u, num_steps, (-20.0, 3.0))
  np.testing.assert_allclose(schedule.log_snr, np.linspace(3, -12, num_steps), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_steps", [2, 10, 619, 620, 1000, 4000, 65_536])
@pytest.mark.parametrize(("name", "log_snr"), [("linear", linear_log_snr), ("cosine", cosine_log_snr)])
def test_a_schedule_within_bounds_falls_strictly_between_its_ends(name, log_snr, num_steps):
  for lowest, highest in ((-12.0, 6.0), (-12.0, -1.0), (-6.0, 11.0), (-20.0, 20.0)):
    values = np.asarray(make_schedule_from_log_snr(log_snr, num_steps, (lowest, highest)).log_snr)
    assert values.shape == (num_steps,) and np.all(np.diff(values) < 0)
    assert np.all((values >= lowest) & (values <= highest + 2e-3))
    # The first time is where the log-SNR meets the upper bound, or 1 / T.
    first = float(log_snr(jnp.full(1, 1 / num_steps))[0])
    np.testing.assert_allclose(values[0], min(first, highest), atol=2e-3)
    # The last is what the schedule ends with at u = 1, but not below the lower bound.
    end = {"linear": -10.05, "cosine": -np.inf}[name]
    np.testing.assert_allclose(values[-1], max(end, lowest), atol=2e-2)


@pytest.mark.parametrize("num_steps", [2, 10, 128, 600])
def test_bounds_that_one_time_reaches_leave_the_others_evenly_spaced_up_to_one(num_steps):
  """What a cosine schedule was for few steps, and what it must stay: only its infinite end is replaced."""
  values = np.asarray(make_schedule_from_log_snr(cosine_log_snr, num_steps, (-12.0, 6.0)).log_snr)
  a = lambda u: (u + 0.008) / 1.008 * np.pi / 2
  alpha_bar = lambda u: (np.cos(a(u)) / np.cos(a(0))) ** 2
  first = max(1 / num_steps, 2 / np.pi * np.arccos(np.cos(a(0)) / np.sqrt(1 + np.exp(-6))) * 1.008 - 0.008)
  u = np.linspace(first, 1, num_steps)[:-1]
  np.testing.assert_allclose(values[:-1], np.log(alpha_bar(u) / (1 - alpha_bar(u))), rtol=1e-3, atol=1e-3)


def test_stratified_times_are_those_of_exact_integers():
  rng = np.random.default_rng(0)
  index = np.concatenate([np.arange(1000), 1_281_167 - np.arange(9), rng.integers(0, 2**31, 3000), [2**31 - 1]])
  for num_steps in (1, 2, 128, 1000, 4000, 65_535, 65_536):
    expected = [(int(i) * 2654435769 % 2**32) * num_steps >> 32 for i in index]
    found = jax.jit(stratified_times, static_argnums=1)(jnp.asarray(index, jnp.int32), num_steps)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("size", "num_steps"), [(360, 128), (50_000, 1000), (1_281_167, 1000), (20_000_000, 1000)])
def test_every_stratified_time_comes_equally_often(size, num_steps):
  times = stratified_times(jnp.arange(size), num_steps)
  counts = np.bincount(times, minlength=num_steps)
  assert len(counts) == num_steps and np.abs(counts - size / num_steps).max() < 5


def test_more_strata_than_can_be_told_apart_are_refused():
  for num_steps in (0, 65_537):
    with pytest.raises(ValueError, match=r"num_steps must lie in 1\.\.65536"):
      stratified_times(jnp.arange(3), num_steps)
