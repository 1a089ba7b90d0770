"""Schedules and sampler steps against the schedulers of `diffusers`, with the same noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.diffusion import (
  PARAMETERIZATIONS,
  VARIANCES,
  add_noise,
  clip_to_unit,
  compute_log_snr,
  ddim_step,
  ddpm_step,
  make_cosine_schedule,
  make_denoiser,
  make_linear_schedule,
  make_timesteps,
)

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

SCHEDULES = {"linear": make_linear_schedule, "squaredcos_cap_v2": make_cosine_schedule}
PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
DIMS = 6


def make_reference(scheduler, **options):
  """A scheduler whose tables are float64: its float32 1 - alpha_bar keeps four digits where alpha_bar is near 1."""
  reference = scheduler(num_train_timesteps=1000, **options)
  reference.betas = reference.betas.double()
  reference.alphas_cumprod = torch.cumprod(1 - reference.betas, dim=0)
  return reference


def make_inputs(schedule, times, name, perfect=0.8):
  """Noised examples and a network's imperfect outputs for them, some of which imply clean examples outside [-1, 1]."""
  rng = np.random.default_rng(0)
  x0 = rng.uniform(-1, 1, (len(times), DIMS)).astype(np.float32)
  noise, error, fresh = rng.normal(size=(3, len(times), DIMS)).astype(np.float32)
  log_snr = compute_log_snr(schedule, jnp.asarray(times))
  x_t = jax.vmap(add_noise)(jnp.asarray(x0), jnp.asarray(noise), log_snr)
  target = jax.vmap(PARAMETERIZATIONS[name].target)(jnp.asarray(x0), jnp.asarray(noise), log_snr)
  return np.asarray(x_t), np.asarray(target) * perfect + (1 - perfect) * error, fresh


def run_steps(schedule, step, name, clip, times, x_t, output, noise):
  """All steps of the stride at once, each from its own x_t."""
  denoise = make_denoiser(lambda x, t: jnp.asarray(output), schedule, PARAMETERIZATIONS[name], clip)
  previous = np.append(-1, times[:-1])

  @jax.jit
  def run(x_t, noise, t, s):
    prediction = denoise(x_t, t)
    return jax.vmap(partial(step, schedule))(prediction, x_t, noise, t, s), prediction.x0

  return run(*(jnp.asarray(a) for a in (x_t, noise, times, previous)))


def some_steps(count):
  """Every step of a short stride; of a long one both ends and a sample between."""
  return range(count) if count < 100 else [0, 1, 2, *range(3, count - 2, 97), count - 2, count - 1]


def assert_close(found, expected):
  # Clean examples implied at the noisy end are in the hundreds: there float32 has no five decimals left.
  np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [50, 1000, 4000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_tables(name, num_steps):
  scale = 1000 / num_steps
  reference = diffusers.DDPMScheduler(num_steps, 1e-4 * scale, 0.02 * scale, name)
  schedule = SCHEDULES[name](num_steps)
  np.testing.assert_allclose(schedule.beta, reference.betas, atol=1e-5)
  np.testing.assert_allclose(schedule.alpha_bar, reference.alphas_cumprod, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("count", [1000, 50, 7])
def test_timesteps(spacing, count):
  reference = diffusers.DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing)
  reference.set_timesteps(count)
  times = reference.timesteps.numpy()[::-1]
  np.testing.assert_array_equal(make_timesteps(1000, count, spacing), times)


@pytest.mark.parametrize("name", SCHEDULES)
def test_add_noise(name):
  reference, schedule = diffusers.DDPMScheduler(beta_schedule=name), SCHEDULES[name](1000)
  x0, noise = np.random.default_rng(1).uniform(-2, 2, (2, 1000, DIMS)).astype(np.float32)
  times = np.arange(1000)
  log_snr = compute_log_snr(schedule, jnp.asarray(times))
  found = jax.vmap(add_noise)(jnp.asarray(x0), jnp.asarray(noise), log_snr)
  expected = reference.add_noise(torch.tensor(x0), torch.tensor(noise), torch.tensor(times))
  # The reference takes 1 - alpha_bar in float32; the root of its rounding error at t = 0 is 3e-6 of noise of size 2.
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("count", [1000, 50, 7])
@pytest.mark.parametrize("clip", [None, clip_to_unit])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("name", PREDICTIONS)
def test_ddpm_steps(monkeypatch, name, variance, clip, count):
  schedule = make_linear_schedule(1000)
  reference = make_reference(
    diffusers.DDPMScheduler,
    variance_type={"learned": "learned_range"}.get(variance, variance),
    prediction_type=PREDICTIONS[name],
    clip_sample=clip is not None,
  )
  reference.set_timesteps(count)
  times = make_timesteps(1000, count, "leading")
  x_t, output, noise = make_inputs(schedule, times, name)
  if variance == "learned":
    output = np.concatenate([output, np.random.default_rng(2).uniform(-1, 1, output.shape)], axis=1, dtype=np.float32)
  found, found_x0 = run_steps(
    schedule, partial(ddpm_step, variance=VARIANCES[variance]), name, clip, times, x_t, output, noise
  )
  for i in some_steps(count):
    draw = lambda *args, i=i, **options: torch.tensor(noise[i : i + 1])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", draw)
    expected = reference.step(torch.tensor(output[i : i + 1]), int(times[i]), torch.tensor(x_t[i : i + 1]))
    assert_close(found[i : i + 1], expected.prev_sample)
    assert_close(found_x0[i : i + 1], expected.pred_original_sample)


@pytest.mark.parametrize(("count", "spacing"), [(1000, "leading"), (50, "leading"), (50, "trailing"), (7, "leading")])
@pytest.mark.parametrize("clip", [None, clip_to_unit])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", PREDICTIONS)
def test_ddim_steps(name, eta, clip, count, spacing):
  schedule = make_linear_schedule(1000)
  reference = make_reference(
    diffusers.DDIMScheduler,
    prediction_type=PREDICTIONS[name],
    clip_sample=clip is not None,
    timestep_spacing=spacing,
  )
  reference.set_timesteps(count)
  times = make_timesteps(1000, count, spacing)
  x_t, output, noise = make_inputs(schedule, times, name)
  found, found_x0 = run_steps(schedule, partial(ddim_step, eta=eta), name, clip, times, x_t, output, noise)
  for i in some_steps(count):
    expected = reference.step(
      torch.tensor(output[i : i + 1]),
      int(times[i]),
      torch.tensor(x_t[i : i + 1]),
      eta=eta,
      use_clipped_model_output=True,
      variance_noise=torch.tensor(noise[i : i + 1]),
    )
    assert_close(found[i : i + 1], expected.prev_sample)
    assert_close(found_x0[i : i + 1], expected.pred_original_sample)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_chain_on_the_cosine_schedule(eta):
  """A whole clipped chain, each side from its own states."""
  schedule, times = make_cosine_schedule(1000), make_timesteps(1000, 50, "trailing")
  reference = make_reference(
    diffusers.DDIMScheduler,
    beta_schedule="squaredcos_cap_v2",
    prediction_type="v_prediction",
    timestep_spacing="trailing",
  )
  reference.set_timesteps(50)
  noise = np.random.default_rng(3).normal(size=(51, 4, DIMS)).astype(np.float32)
  denoise = make_denoiser(lambda x, t: jnp.tanh(2 * x), schedule, PARAMETERIZATIONS["v"], clip_to_unit)

  @jax.jit
  def run(x, noise, t, s):
    step = partial(ddim_step, schedule, eta=eta)
    return jax.vmap(step, (0, 0, 0, None, None))(denoise(x, jnp.full(4, t)), x, noise, t, s)

  x, y = jnp.asarray(noise[50]), torch.tensor(noise[50])
  for i in reversed(range(50)):
    t, s = jnp.asarray(times[i]), jnp.asarray(times[i - 1] if i else -1)
    x = run(x, jnp.asarray(noise[i]), t, s)
    y = reference.step(
      torch.tanh(2 * y), int(t), y, eta=eta, use_clipped_model_output=True, variance_noise=torch.tensor(noise[i])
    ).prev_sample
    np.testing.assert_allclose(x, y, atol=1e-5)
