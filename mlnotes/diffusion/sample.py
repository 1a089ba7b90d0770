"""Samplers: pure functions over any denoiser, with the whole loop in one compiled scan.

A step is a pure function of explicit noise; `sample` repeats it. To sample from network parameters, jit the whole:

  jax.jit(lambda params, key: sample(key, make_denoiser(partial(apply, params), schedule), schedule, shape))
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes.diffusion.process import (
  Denoiser,
  Prediction,
  Variance,
  compute_alpha_sigma,
  compute_posterior,
  fixed_small,
)
from mlnotes.diffusion.schedule import Schedule, compute_log_snr

# (schedule, prediction, x_t, noise, t, s) -> x_s, for one example.
Step: TypeAlias = Callable[[Schedule, Prediction, Array, Array, Array, Array], Array]


class Trajectory(NamedTuple):
  """What a sampler did, along a leading axis of steps.

  x:  the chain, from pure noise x[0] to the sample x[-1].
  x0: the denoiser's clean example at each step, after clipping.
  """

  x: Float[Array, "S+1 ..."]
  x0: Float[Array, "S ..."]


def ddpm_step(
  schedule: Schedule,
  prediction: Prediction,
  x_t: Float[Array, "*dims"],
  noise: Float[Array, "*dims"],
  t: Int[Array, ""],
  s: Int[Array, ""],
  variance: Variance = fixed_small,
) -> Float[Array, "*dims"]:
  """One ancestral step of one example from time `t` to any earlier time `s`; s = -1 is the clean data.

    x_s = mean of q(x_s | x_t, x_0 = prediction) + exp(log variance / 2) noise      Ho et al. 2020, algorithm 2

  Without noise where s = -1.
  """
  mean = compute_posterior(x_t, prediction.x0, compute_log_snr(schedule, t), compute_log_snr(schedule, s)).mean
  return mean + jnp.where(s < 0, 0.0, jnp.exp(0.5 * variance(schedule, t, s, prediction.fraction))) * noise


def ddim_step(
  schedule: Schedule,
  prediction: Prediction,
  x_t: Float[Array, "*dims"],
  noise: Float[Array, "*dims"],
  t: Int[Array, ""],
  s: Int[Array, ""],
  eta: Float[Array, ""] | float = 0.0,
) -> Float[Array, "*dims"]:
  """One DDIM step of one example from time `t` to any earlier time `s`; s = -1 is the clean data.

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - d^2) eps + d noise,  d^2 = eta^2 beta_{t|s} sigma_s^2 / sigma_t^2

  with x_0 and eps from the prediction: they agree with each other even where x_0 was clipped. `eta`, in [0, 1],
  is 0 for a deterministic step, 1 for the ancestral sampler with `fixed_small`. Song et al. 2021 (DDIM), eq. 12 and 16.

  Raises:
    ValueError: a number `eta` outside [0, 1].
  """
  if isinstance(eta, int | float) and not 0 <= eta <= 1:
    raise ValueError(f"eta must lie in [0, 1], found {eta}.")
  log_snr_t, log_snr_s = compute_log_snr(schedule, t), compute_log_snr(schedule, s)
  alpha_s, sigma_s = compute_alpha_sigma(log_snr_s)
  # d^2 = eta^2 share sigma_s^2, so that the difference under the root is taken between numbers of order one.
  share = -jnp.expm1(log_snr_t - log_snr_s)
  kept = jnp.sqrt(1 - eta**2 * share)
  return alpha_s * prediction.x0 + sigma_s * (kept * prediction.noise + eta * jnp.sqrt(share) * noise)


def sample(
  key: Key[Array, ""],
  denoise: Denoiser,
  schedule: Schedule,
  shape: tuple[int, ...],
  step: Step = ddpm_step,
  timesteps: Int[np.ndarray, " S"] | None = None,
) -> Float[Array, "B ..."]:
  """Samples from noise by repeating `step` over falling times, ending in the clean data.

  Args:
    key: the initial noise is one array drawn from it, each step's noise another: no device count changes a sample.
    denoise: see `make_denoiser`, where clipping and parameterization are chosen, and `guide`.
    schedule: the one that the denoiser was trained with.
    shape: of the batch, (B, ...).
    step: `ddpm_step` or `ddim_step`, or a `functools.partial` of either with its `variance` or `eta`.
    timesteps: the rising times to visit, see `make_timesteps`; None for all.

  Raises:
    ValueError: timesteps that do not rise strictly within 0..T-1.
  """
  return _run(key, denoise, schedule, shape, step, timesteps, record=False)[0]


def sample_trajectory(
  key: Key[Array, ""],
  denoise: Denoiser,
  schedule: Schedule,
  shape: tuple[int, ...],
  step: Step = ddpm_step,
  timesteps: Int[np.ndarray, " S"] | None = None,
) -> Trajectory:
  """As `sample` (the same samples from the same key), with every step kept: S + 1 times its memory, twice."""
  last, (x, x0) = _run(key, denoise, schedule, shape, step, timesteps, record=True)
  return Trajectory(jnp.concatenate([x, last[None]]), x0)


def _run(key, denoise, schedule, shape, step, timesteps, record):
  times = np.arange(schedule.num_steps) if timesteps is None else timesteps
  _check_timesteps(times, schedule.num_steps)
  start_key, noise_key = jax.random.split(key)

  def body(x_t, step_times):
    t, s = step_times
    prediction = denoise(x_t, jnp.full(shape[:1], t))
    noise = jax.random.normal(jax.random.fold_in(noise_key, t), shape)
    x_s = jax.vmap(partial(step, schedule), (0, 0, 0, None, None))(prediction, x_t, noise, t, s)
    return x_s, ((x_t, prediction.x0) if record else None)

  steps = (times[::-1], np.append(-1, times[:-1])[::-1])
  steps = jax.tree.map(lambda times: jnp.asarray(times, jnp.int32), steps)
  return jax.lax.scan(body, jax.random.normal(start_key, shape), steps)


def _check_timesteps(timesteps: np.ndarray, num_steps: int) -> None:
  if timesteps.size == 0 or np.any(np.diff(timesteps) <= 0) or timesteps[0] < 0 or timesteps[-1] >= num_steps:
    raise ValueError(f"timesteps must rise strictly within 0..{num_steps - 1}, found {timesteps.tolist()}.")
