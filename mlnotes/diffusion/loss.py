"""Training losses and the variational bound. All values are per example; all bounds in nats."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mlnotes.diffusion.process import (
  EPSILON,
  Denoiser,
  Network,
  Parameterization,
  Prediction,
  Variance,
  add_noise,
  check_data,
  compute_alpha_sigma,
  compute_posterior,
  fixed_small,
  interpret_output,
  learned,
  split_output,
)
from mlnotes.diffusion.schedule import Schedule, compute_log_snr

# Data that are no levels need not lie within [-1, 1], but nothing standardised goes as far as this.
_DENSITY_LIMIT = 20.0
# From log-SNRs to the weights of the squared errors of the network's output.
Weight: TypeAlias = Callable[[Float[Array, " B"]], Float[Array, " B"]]


def constant_weight(log_snr: Float[Array, "*times"]) -> Float[Array, "*times"]:
  """1 at every time: the simple loss. Ho et al. 2020, eq. 14."""
  return jnp.ones_like(log_snr)


def make_min_snr_weight(parameterization: Parameterization, gamma: float = 5.0) -> Weight:
  """min(SNR, gamma) on the error of x0, expressed on the network's output.

    epsilon: min(SNR, gamma) / SNR    x0: min(SNR, gamma)    v: min(SNR, gamma) / (SNR + 1)

  Source: Hang et al. 2023, section 3.4. Raises ValueError for a `gamma` that is not positive.
  """
  if not gamma > 0:
    raise ValueError(f"gamma must be positive, found {gamma}.")

  def weight(log_snr: Float[Array, "*times"]) -> Float[Array, "*times"]:
    return jnp.exp(jnp.minimum(log_snr, math.log(gamma))) * parameterization.error_scale(log_snr)

  return weight


def compute_denoising_loss(
  network: Network,
  schedule: Schedule,
  x0: Float[Array, "B *dims"],
  noise: Float[Array, "B *dims"],
  t: Int[Array, " B"],
  parameterization: Parameterization = EPSILON,
  weight: Weight = constant_weight,
) -> Float[Array, " B"]:
  """Weighted squared error of the network's output at times `t`, a mean over each example's dimensions.

    w(log-SNR_t) mean (target - network(x_t, t))^2                              Ho et al. 2020, eq. 14

  `x0` lies on [-1, 1], `noise` is standard normal, `t` uniform on 0..T-1. A variance half of the output is ignored.

  Raises:
    ValueError: `x0` that is not floating-point, or, outside `jit`, far from [-1, 1].
  """
  check_data(x0, _DENSITY_LIMIT)
  log_snr = compute_log_snr(schedule, t)
  output = network(jax.vmap(add_noise)(x0, noise, log_snr), t)
  return _weighted_error(output, x0, noise, log_snr, parameterization, weight)


def compute_hybrid_loss(
  network: Network,
  schedule: Schedule,
  x0: Float[Array, "B *dims"],
  noise: Float[Array, "B *dims"],
  t: Int[Array, " B"],
  num_levels: int | None,
  parameterization: Parameterization = EPSILON,
  weight: Weight = constant_weight,
  vlb_weight: Float[Array, ""] | float = 1e-3,
) -> Float[Array, " B"]:
  """Denoising loss for the mean plus the variational bound for the variance, of a network that learns both.

    L = L_denoising + vlb_weight T L_t / D,  no gradient from L_t to the mean     Nichol & Dhariwal 2021, eq. 16

  with D dimensions per example. See `compute_denoising_loss` for the arguments and `compute_vlb_term` for L_t.

  Raises:
    ValueError: the network's output has no variance half; or `x0` as in `compute_vlb`.

  Differences from the paper: L_t in nats per dimension; its published code counts bits.
  """
  check_data(x0, 1.0 if num_levels else _DENSITY_LIMIT)
  log_snr = compute_log_snr(schedule, t)
  x_t = jax.vmap(add_noise)(x0, noise, log_snr)
  output = network(x_t, t)
  simple = _weighted_error(output, x0, noise, log_snr, parameterization, weight)

  def vlb_term(output, x0, x_t, t, log_snr):
    prediction = interpret_output(output, x_t, log_snr, parameterization)
    mean_only = jax.lax.stop_gradient(Prediction(prediction.x0, prediction.noise))
    return compute_vlb_term(schedule, mean_only._replace(fraction=prediction.fraction), x0, x_t, t, num_levels, learned)

  terms = jax.vmap(vlb_term)(output, x0, x_t, t, log_snr)
  return simple + vlb_weight * schedule.num_steps / x0[0].size * terms


class VariationalBound(NamedTuple):
  """Upper bound on -log p(x_0), in nats per example (summed over dimensions).

  prior: L_T, KL from q(x_{T-1} | x_0) to the standard normal; nothing to learn.
  terms: for t = 0 the decoder's -log p(x_0 | x_t), for t > 0 the KL of the step from t to t - 1.
  """

  prior: Float[Array, " B"]
  terms: Float[Array, "T B"]

  @property
  def total(self) -> Float[Array, " B"]:
    """The bound itself, the sum of all terms."""
    return self.prior + jnp.sum(self.terms, axis=0)


def compute_vlb(
  keys: Key[Array, " B"],
  denoise: Denoiser,
  schedule: Schedule,
  x0: Float[Array, "B *dims"],
  num_levels: int | None,
  variance: Variance = fixed_small,
  chunk: int = 1,
) -> VariationalBound:
  """The variational bound with every one of its T terms, each at one draw of x_t.

    -log p(x_0) <= L_T + sum_{t>0} L_t + L_0                                    Ho et al. 2020, eq. 5

  T network evaluations of the batch, `chunk` of them at a time. One key per example: an example's bound is the same in
  whatever batch it stands. For `num_levels` and `variance` see `compute_vlb_term`.

  Raises:
    ValueError: `x0` that is not floating-point, or, outside `jit`, not on [-1, 1].
  """
  check_data(x0, 1.0 if num_levels else _DENSITY_LIMIT)

  def terms_at(t: Int[Array, ""]) -> Float[Array, " B"]:
    noise = jax.vmap(lambda key, x: jax.random.normal(jax.random.fold_in(key, t), x.shape))(keys, x0)
    times = jnp.full(x0.shape[:1], t)
    return _vlb_terms(denoise, schedule, x0, noise, times, num_levels, variance)

  terms = jax.lax.map(terms_at, jnp.arange(schedule.num_steps), batch_size=chunk)
  return VariationalBound(jax.vmap(compute_prior_kl, (None, 0))(schedule, x0), terms)


def estimate_vlb(
  denoise: Denoiser,
  schedule: Schedule,
  x0: Float[Array, "B *dims"],
  noise: Float[Array, "B *dims"],
  t: Int[Array, " B"],
  num_levels: int | None,
  variance: Variance = fixed_small,
) -> Float[Array, " B"]:
  """An estimate of the variational bound from one of its terms, unbiased if `t` is uniform on 0..T-1.

  One network evaluation of the batch, nats per example: L_T + T L_t. See `compute_vlb`, also for what it raises.
  """
  check_data(x0, 1.0 if num_levels else _DENSITY_LIMIT)
  terms = _vlb_terms(denoise, schedule, x0, noise, t, num_levels, variance)
  return jax.vmap(compute_prior_kl, (None, 0))(schedule, x0) + schedule.num_steps * terms


def compute_vlb_term(
  schedule: Schedule,
  prediction: Prediction,
  x0: Float[Array, "*dims"],
  x_t: Float[Array, "*dims"],
  t: Int[Array, ""],
  num_levels: int | None,
  variance: Variance = fixed_small,
) -> Float[Array, ""]:
  """One term of the variational bound for one example, in nats, summed over its dimensions.

    t > 0: KL( q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t) )      t = 0: -log p(x_0 | x_t)     Ho et al. 2020, eq. 5

  The decoder at t = 0 is discretized to `num_levels` levels on [-1, 1] (see `discretized_gaussian_log_prob`), so that
  the bound is on the code length of the levels, or, with None, a density, for data that are continuous.
  """
  # The posterior into the clean data is a point, at infinite divergence from any Gaussian: there the decoder's
  # likelihood stands instead, and neither of the two branches may put NaN into the other's gradients.
  decoding = t == 0
  log_snr_t = compute_log_snr(schedule, jnp.maximum(t, 1))
  log_snr_s = compute_log_snr(schedule, jnp.maximum(t, 1) - 1)
  log_variance = jnp.broadcast_to(variance(schedule, t, t - 1, prediction.fraction), x0.shape)

  true = compute_posterior(x_t, x0, log_snr_t, log_snr_s)
  mean = compute_posterior(x_t, prediction.x0, log_snr_t, log_snr_s).mean
  kl = compute_gaussian_kl(true.mean, jnp.broadcast_to(true.log_variance, x0.shape), mean, log_variance)

  decoder_mean = jnp.where(decoding, prediction.x0, x0)
  decoder_log_variance = jnp.where(decoding, log_variance, 0.0)
  if num_levels is None:
    log_prob = -0.5 * (
      jnp.square(x0 - decoder_mean) * jnp.exp(-decoder_log_variance) + decoder_log_variance + math.log(2 * math.pi)
    )
  else:
    log_prob = discretized_gaussian_log_prob(x0, decoder_mean, decoder_log_variance, num_levels)
  return jnp.sum(jnp.where(decoding, -log_prob, kl))


def compute_prior_kl(schedule: Schedule, x0: Float[Array, "*dims"]) -> Float[Array, ""]:
  """L_T = KL( q(x_{T-1} | x_0) || N(0, I) ) in nats, summed over dimensions. Ho et al. 2020, eq. 5."""
  alpha, _ = compute_alpha_sigma(schedule.log_snr[-1])
  log_variance = jnp.full(x0.shape, jax.nn.log_sigmoid(-schedule.log_snr[-1]))
  return jnp.sum(compute_gaussian_kl(alpha * x0, log_variance, jnp.zeros_like(x0), jnp.zeros_like(x0)))


def compute_gaussian_kl(
  mean_q: Float[Array, "*dims"],
  log_variance_q: Float[Array, "*dims"],
  mean_p: Float[Array, "*dims"],
  log_variance_p: Float[Array, "*dims"],
) -> Float[Array, "*dims"]:
  """KL(q || p) in nats of univariate Gaussians, element by element.

  1/2 (r - 1 - log r + (mean_q - mean_p)^2 / variance_p),  r = variance_q / variance_p
  """
  log_ratio = log_variance_q - log_variance_p
  shift = jnp.square(mean_q - mean_p) * jnp.exp(-log_variance_p)
  return 0.5 * (jnp.expm1(log_ratio) - log_ratio + shift)


def discretized_gaussian_log_prob(
  x: Float[Array, "*dims"], mean: Float[Array, "*dims"], log_variance: Float[Array, "*dims"], num_levels: int
) -> Float[Array, "*dims"]:
  """Log-probability of the level of `x` under a Gaussian whose mass is dealt out to levels on [-1, 1], in nats.

    log integral of N(mean, variance) from x - h to x + h,  h = 1 / (num_levels - 1)

  with the lowest and the highest level open to the outside, so that all levels together have probability 1. `x` must
  be a level, -1 + 2 k h. 256 levels for 8-bit images, 17 for scikit-learn's digits. Ho et al. 2020, eq. 13.

  Raises:
    ValueError: fewer than 2 levels.
  """
  if num_levels < 2:
    raise ValueError(f"num_levels must be at least 2, found {num_levels}.")
  half = 1 / (num_levels - 1)
  scale = jnp.exp(-0.5 * log_variance)
  # log(1 - Phi(z)) is exact only as log Phi(-z): mirror so that the middle of the bin lies in the left tail.
  sign = jnp.where(x > mean, -1.0, 1.0)
  middle = sign * (x - mean)
  log_below_top = jax.scipy.special.log_ndtr((middle + half) * scale)
  log_below_bottom = jax.scipy.special.log_ndtr((middle - half) * scale)
  # A bin of no width in float32 would give log 0; the smallest normal number is its floor.
  width = jnp.maximum(-jnp.expm1(log_below_bottom - log_below_top), jnp.finfo(jnp.float32).tiny)
  inner = log_below_top + jnp.log(width)
  lowest = jax.scipy.special.log_ndtr((x - mean + half) * scale)
  highest = jax.scipy.special.log_ndtr((mean - x + half) * scale)
  return jnp.where(x < -1 + half, lowest, jnp.where(x > 1 - half, highest, inner))


def to_bits_per_dim(nats: Float[Array, "*batch"], num_dims: int) -> Float[Array, "*batch"]:
  """Nats per example as bits per dimension. Raises ValueError for fewer than one dimension."""
  if num_dims < 1:
    raise ValueError(f"num_dims must be at least 1, found {num_dims}.")
  return nats / (num_dims * math.log(2))


def _weighted_error(output, x0, noise, log_snr, parameterization, weight):
  mean, _ = split_output(output, x0.shape)
  error = jnp.square(mean - jax.vmap(parameterization.target)(x0, noise, log_snr))
  return weight(log_snr) * jnp.mean(error.reshape(len(error), -1), axis=1)


def _vlb_terms(denoise, schedule, x0, noise, t, num_levels, variance):
  x_t = jax.vmap(add_noise)(x0, noise, compute_log_snr(schedule, t))

  def term(prediction, x0, x_t, t):
    return compute_vlb_term(schedule, prediction, x0, x_t, t, num_levels, variance)

  return jax.vmap(term)(denoise(x_t, t), x0, x_t, t)
