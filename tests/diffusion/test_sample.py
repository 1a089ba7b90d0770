"""Samplers on Gaussian data, where the best denoiser is known and every chain is linear in its noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlnotes.diffusion import (
  PARAMETERIZATIONS,
  VARIANCES,
  clip_to_unit,
  compute_log_snr,
  ddim_step,
  ddpm_step,
  drop_label,
  fixed_large,
  fixed_small,
  guide,
  learned,
  make_cosine_schedule,
  make_denoiser,
  make_linear_schedule,
  make_timesteps,
  sample,
  sample_trajectory,
)

MEAN, STD = 0.3, 0.5
FRACTION = 0.25  # of the learned variance

STEPS = {f"ddpm-{name}": partial(ddpm_step, variance=variance) for name, variance in VARIANCES.items()} | {
  f"ddim-{eta}": partial(ddim_step, eta=eta) for eta in (0.0, 0.5, 1.0)
}


def make_network(schedule, name="epsilon", mean=MEAN, std=STD, with_variance=False):
  """The exact E[x_0 | x_t] for x_0 ~ N(mean, std^2), put as any parameterization's output."""

  def network(x_t, t):
    alpha_bar = jax.nn.sigmoid(compute_log_snr(schedule, t))[:, None]
    alpha, sigma = jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)
    x0 = mean + alpha * std**2 / (alpha_bar * std**2 + 1 - alpha_bar) * (x_t - alpha * mean)
    noise = (x_t - alpha * x0) / sigma
    output = {"x0": x0, "epsilon": noise, "v": alpha * noise - sigma * x0}[name]
    half = jnp.full_like(output, 2 * FRACTION - 1)
    return jnp.concatenate([output, half], axis=-1) if with_variance else output

  return network


def make_exact_denoiser(schedule, name="epsilon", **options):
  return make_denoiser(make_network(schedule, name, **options), schedule, PARAMETERIZATIONS[name])


def exact_moments(schedule, sampler, times, mean=MEAN, std=STD):
  """Mean and variance of the chain's end, in float64, from the textbook coefficients of each sampler."""
  kind, option = sampler.split("-")
  alpha_bar = 1 / (1 + np.exp(-np.float64(schedule.log_snr)))
  m, v = 0.0, 1.0
  for t, s in zip(times[::-1], np.append(-1, times[:-1])[::-1]):
    a_t, a_s = alpha_bar[t], alpha_bar[s] if s >= 0 else 1.0
    beta = 1 - a_t / a_s
    small = beta * (1 - a_s) / (1 - a_t)
    slope = np.sqrt(a_t) * std**2 / (a_t * std**2 + 1 - a_t)
    offset = mean - slope * np.sqrt(a_t) * mean  # x0 = slope x_t + offset
    if kind == "ddpm":
      on_x0, on_x_t = np.sqrt(a_s) * beta / (1 - a_t), np.sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t)
      added = {"fixed_small": small, "fixed_large": beta, "learned": beta**FRACTION * small ** (1 - FRACTION)}[option]
      added = added if s >= 0 else 0.0
    else:
      added = float(option) ** 2 * small
      on_x_t = np.sqrt(1 - a_s - added) / np.sqrt(1 - a_t)
      on_x0 = np.sqrt(a_s) - on_x_t * np.sqrt(a_t)
    factor = on_x_t + on_x0 * slope
    m, v = factor * m + on_x0 * offset, factor**2 * v + added
  return m, v


def probe_moments(schedule, sampler, strides, name="epsilon"):
  """The same from the code under test, for several strides: each step's response to x_t and to noise, no sampling."""
  denoise = make_exact_denoiser(schedule, name, with_variance=True)

  @jax.jit
  @jax.vmap
  def respond(t, s):
    x_t, noise = jnp.array([[0.0], [1.0], [0.0]]), jnp.array([[0.0], [0.0], [1.0]])
    prediction = denoise(x_t, jnp.full(3, t))
    step = partial(STEPS[sampler], schedule)
    at_zero, at_x, at_noise = jax.vmap(step, (0, 0, 0, None, None))(prediction, x_t, noise, t, s)[:, 0]
    return jnp.stack([at_zero, at_x - at_zero, at_noise - at_zero])

  t = np.concatenate(strides)
  s = np.concatenate([np.append(-1, times[:-1]) for times in strides])
  responses = np.asarray(respond(jnp.asarray(t), jnp.asarray(s)), np.float64)
  moments = []
  for stride in np.split(responses, np.cumsum([len(times) for times in strides])[:-1]):
    m, v = 0.0, 1.0
    for offset, factor, spread in stride[::-1]:
      m, v = factor * m + offset, factor**2 * v + spread**2
    moments.append([m, v])
  return np.array(moments)


TIMES = {
  "full": np.arange(100),
  "leading": make_timesteps(100, 20, "leading"),
  "trailing": make_timesteps(100, 7, "trailing"),
  "linspace": make_timesteps(100, 13, "linspace"),
  "irregular": np.array([3, 4, 20, 70, 99]),
}


@pytest.mark.parametrize("sampler", STEPS)
@pytest.mark.parametrize("make_schedule", [make_linear_schedule, make_cosine_schedule])
def test_steps_give_the_exact_mean_and_variance_at_every_stride(make_schedule, sampler):
  schedule, strides = make_schedule(100), list(TIMES.values())
  expected = [exact_moments(schedule, sampler, times) for times in strides]
  np.testing.assert_allclose(probe_moments(schedule, sampler, strides), expected, rtol=2e-4)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("sampler", ["ddpm-fixed_small", "ddim-0.0"])
def test_every_parameterization_gives_the_same_chain(sampler, name):
  schedule, times = make_linear_schedule(100), TIMES["trailing"]
  expected = exact_moments(schedule, sampler, times)
  np.testing.assert_allclose(probe_moments(schedule, sampler, [times], name)[0], expected, rtol=2e-4)


@pytest.mark.parametrize(
  ("sampler", "stride"),
  [(name, "trailing") for name in STEPS] + [("ddpm-fixed_small", "full")],
)
def test_samples_have_the_exact_mean_and_variance(key, sampler, stride):
  schedule, count = make_linear_schedule(100), 20_000
  denoise = make_exact_denoiser(schedule, with_variance=True)
  run = jax.jit(lambda key: sample(key, denoise, schedule, (count, 1), STEPS[sampler], TIMES[stride]))
  x = np.asarray(run(key), np.float64)
  mean, variance = exact_moments(schedule, sampler, TIMES[stride])
  assert abs(x.mean() - mean) < 4 * np.sqrt(variance / count)
  assert abs(x.var() - variance) < 4 * variance * np.sqrt(2 / count)


@pytest.mark.parametrize("sampler", STEPS)
def test_moments_converge_to_the_data(sampler):
  """With more steps every sampler and every variance ends in the data's mean and variance."""
  strides = [make_timesteps(1280, count) for count in (20, 80, 320, 1280)]
  moments = probe_moments(make_linear_schedule(1280), sampler, strides, "x0")
  errors = np.abs(moments - [MEAN, STD**2])
  assert np.all(errors[-1] < [1e-3, 4e-3])
  assert np.all(errors[1:, 1] < 0.5 * errors[:-1, 1])


def test_standard_normal_data_are_reproduced_at_any_stride_by_the_large_variance():
  """For N(0, 1) data x_t is N(0, 1) at every t; beta_{t|s} is the exact reverse variance (and the last step adds 0)."""
  schedule = make_linear_schedule(100)
  for times in TIMES.values():
    m, v = exact_moments(schedule, "ddpm-fixed_large", times, 0.0, 1.0)
    assert m == 0 and np.isclose(v, 1 / (1 + np.exp(-np.float64(schedule.log_snr[times[0]]))), rtol=1e-6)


@pytest.mark.parametrize("sampler", STEPS)
def test_the_last_step_adds_no_noise_and_is_finite(sampler):
  schedule = make_linear_schedule(50)
  x_t, noise, t = jnp.ones((4, 1)), jnp.array([[0.0], [1e3], [0.0], [-1e3]]), jnp.array([0, 0, 7, 7])
  prediction = jax.jit(make_exact_denoiser(schedule, with_variance=True))(x_t, t)
  x = jax.jit(jax.vmap(partial(STEPS[sampler], schedule)))(prediction, x_t, noise, t, jnp.full(4, -1))
  np.testing.assert_allclose(x, prediction.x0, rtol=1e-6)


@pytest.mark.parametrize("sampler", ["ddpm-learned", "ddim-0.0", "ddim-1.0"])
def test_clipped_sampling_stays_in_range(key, sampler):
  """A network that always overshoots ends at the clip, even from a schedule that starts in nearly pure noise."""
  schedule = make_cosine_schedule(1000)
  network = lambda x, t: jnp.concatenate([jnp.full_like(x, -100), jnp.zeros_like(x)], axis=-1)
  denoise = make_denoiser(network, schedule, clip=clip_to_unit)
  times = make_timesteps(1000, 20)
  run = jax.jit(lambda key: sample_trajectory(key, denoise, schedule, (16, 3), STEPS[sampler], times))(key)
  assert np.all(np.abs(run.x0) <= 1) and np.all(np.isfinite(run.x))
  np.testing.assert_allclose(run.x[-1], 1.0, atol=1e-5)


def test_trajectory_holds_the_same_chain(key):
  schedule, times = make_linear_schedule(40), make_timesteps(40, 8)
  denoise = make_exact_denoiser(schedule, "x0")
  run_both = jax.jit(
    lambda a, b: [f(k, denoise, schedule, (5, 2), timesteps=times) for f, k in zip((sample, sample_trajectory), (a, b))]
  )
  x, run = run_both(jax.random.clone(key), key)
  assert run.x.shape == (9, 5, 2) and run.x0.shape == (8, 5, 2)
  np.testing.assert_array_equal(run.x[-1], x)
  np.testing.assert_allclose(run.x0[-1], x, rtol=1e-6)
  x0 = jax.jit(denoise)(run.x[:-1].reshape(40, 2), jnp.repeat(jnp.asarray(times[::-1]), 5)).x0
  np.testing.assert_allclose(x0.reshape(8, 5, 2), run.x0, rtol=1e-5, atol=1e-6)


def test_noise_is_fresh_at_every_step_and_for_every_example(key):
  """With the mean held at 0 and unit variances the chain is its noise: all draws must differ and be uncorrelated."""
  schedule = make_linear_schedule(30)
  step = lambda schedule, prediction, x_t, noise, t, s: noise
  denoise = make_denoiser(lambda x, t: x, schedule)
  run = jax.jit(lambda key: sample_trajectory(key, denoise, schedule, (2000, 1), step))(key)
  correlation = np.corrcoef(np.asarray(run.x)[:, :, 0])
  assert np.max(np.abs(correlation - np.eye(31))) < 0.11
  assert len(np.unique(run.x)) > 0.99 * run.x.size


def test_sampling_compiles_whole_and_does_not_depend_on_the_number_of_devices(key):
  schedule = make_linear_schedule(40)

  def run(scale, key):
    network = lambda x, t: scale * make_network(schedule)(x, t)
    return sample(key, make_denoiser(network, schedule), schedule, (16, 2))

  alone = jax.jit(run)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec("data")))
  x = sharded(jnp.array(0.9), jax.random.clone(key))
  assert len(x.sharding.device_set) == 8
  np.testing.assert_allclose(alone(jnp.array(0.9), jax.random.clone(key)), x, rtol=1e-6)
  alone(jnp.array(0.8), key)
  assert alone._cache_size() == 1


@pytest.mark.parametrize("times", [[], [0, 0], [5, 3], [-1, 3], [0, 40]])
def test_bad_timesteps_are_refused(key, times):
  schedule = make_linear_schedule(40)
  denoise = make_exact_denoiser(schedule)
  with pytest.raises(ValueError, match=r"timesteps must rise strictly within 0\.\.39"):
    sample(key, denoise, schedule, (2, 1), timesteps=np.array(times, np.int32))


def conditional_network(schedule, with_variance=False):
  """Class 1 is N(MEAN, STD^2), the null class N(0, STD^2)."""

  def network(x_t, t, label):
    given = make_network(schedule, with_variance=with_variance)(x_t, t)
    free = make_network(schedule, mean=0.0, with_variance=with_variance)(x_t, t)
    output = jnp.where(label[:, None] == 1, given, free)
    return output.at[:, 1:].add(label[:, None].astype(jnp.float32)) if with_variance else output

  return network


@pytest.mark.parametrize(
  ("sampler", "weight"),
  [
    ("ddpm-fixed_small", 0.0),
    ("ddpm-fixed_small", 1.0),
    ("ddpm-fixed_large", 3.0),
    ("ddim-0.0", 3.0),
    ("ddim-0.5", 3.0),
  ],
)
def test_guidance_moves_the_mean_by_its_weight(key, sampler, weight):
  """Two Gaussians of one variance: the guided score is that of N(weight * MEAN, STD^2)."""
  schedule, count, times = make_linear_schedule(100), 20_000, make_timesteps(100, 20)
  network = guide(conditional_network(schedule), jnp.ones(count, jnp.int32), jnp.asarray(0), weight)
  denoise = make_denoiser(network, schedule)
  x = np.asarray(jax.jit(lambda key: sample(key, denoise, schedule, (count, 1), STEPS[sampler], times))(key))
  mean, variance = exact_moments(schedule, sampler, times, weight * MEAN)
  assert abs(x.mean() - mean) < 4 * np.sqrt(variance / count)
  assert abs(x.var() - variance) < 4 * variance * np.sqrt(2 / count)


def test_guidance_leaves_the_variance_half_to_the_conditional_network():
  schedule = make_linear_schedule(10)
  network = conditional_network(schedule, with_variance=True)
  x_t, t, ones, zeros = jnp.array([[0.2], [-1.0]]), jnp.array([3, 7]), jnp.ones(2, jnp.int32), jnp.zeros(2, jnp.int32)
  batches = []
  spy = lambda x, t, label: (batches.append(len(x)), network(x, t, label))[1]
  output = jax.jit(guide(spy, ones, jnp.asarray(0), 2.5))(x_t, t)
  given, free = jax.jit(lambda: (network(x_t, t, ones), network(x_t, t, zeros)))()
  assert batches == [4]
  np.testing.assert_allclose(output[:, 0], -1.5 * free[:, 0] + 2.5 * given[:, 0], rtol=1e-5)
  np.testing.assert_array_equal(output[:, 1], given[:, 1])
  assert not np.allclose(given[:, 1], free[:, 1])


def test_labels_are_dropped_at_the_rate(key):
  label = jnp.arange(10_000) % 10
  dropped = drop_label(key, label, 10, 0.2)
  assert abs(np.mean(dropped == 10) - 0.2) < 4 * np.sqrt(0.16 / 10_000)
  np.testing.assert_array_equal(dropped[dropped != 10], label[dropped != 10])


def test_every_variance_differs_in_the_chain():
  """The three variances are told apart by the moments they give, so the tests above can fail."""
  schedule = make_linear_schedule(100)
  moments = [exact_moments(schedule, f"ddpm-{name}", TIMES["trailing"])[1] for name in VARIANCES]
  assert min(np.diff(np.sort(moments))) > 1e-2
  assert {"fixed_small": fixed_small, "fixed_large": fixed_large, "learned": learned} == VARIANCES
