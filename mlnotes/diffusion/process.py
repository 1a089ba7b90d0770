"""The forward process, its posterior, and what a network's output says about both.

Everything at one time is a function of that time's log-SNR, everything between two times of both log-SNRs; so the same
code serves discrete schedules, any stride, and continuous time. Functions take ONE example of any shape.
"""

import types
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, Shaped

from mlnotes.diffusion.schedule import Schedule, compute_log_snr

Scalar: TypeAlias = Float[Array, ""]


class Gaussian(NamedTuple):
  """A diagonal Gaussian. A log-variance of minus infinity is a point mass."""

  mean: Float[Array, "..."]
  log_variance: Float[Array, "..."]


class Prediction(NamedTuple):
  """What a denoiser believes about x_t: the clean example and the noise, which together make x_t.

  `fraction` is what it says of the reverse variance, 0 for the smallest and 1 for the largest sensible one (see
  `learned`), or None where it says nothing.
  """

  x0: Float[Array, "..."]
  noise: Float[Array, "..."]
  fraction: Float[Array, "..."] | None = None


class Parameterization(NamedTuple):
  """What the network's output stands for.

  to_x0:       (output, x_t, log_snr) -> the clean example it implies.
  target:      (x0, noise, log_snr) -> what the output should have been.
  error_scale: log_snr -> k in |x0 error|^2 = k |output error|^2.
  """

  to_x0: Callable[[Array, Array, Array], Array]
  target: Callable[[Array, Array, Array], Array]
  error_scale: Callable[[Array], Array]


# A network: (x_t, t) -> output, batched. A denoiser: the same, with its output understood.
Network: TypeAlias = Callable[[Float[Array, "B ..."], Int[Array, " B"]], Float[Array, "B ..."]]
Denoiser: TypeAlias = Callable[[Float[Array, "B ..."], Int[Array, " B"]], Prediction]
# (schedule, t, s, fraction) -> log-variance of the reverse step from t to s.
Variance: TypeAlias = Callable[[Schedule, Array, Array, Array | None], Array]


def compute_alpha_sigma(log_snr: Float[Array, "*times"]) -> tuple[Float[Array, "*times"], Float[Array, "*times"]]:
  """Amplitudes of signal and noise, alpha = sqrt(alpha_bar) and sigma = sqrt(1 - alpha_bar)."""
  return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


def add_noise(x0: Float[Array, "*dims"], noise: Float[Array, "*dims"], log_snr: Scalar) -> Float[Array, "*dims"]:
  """A draw from q(x_t | x_0) given standard normal `noise`.

  x_t = alpha_t x_0 + sigma_t noise                                           Ho et al. 2020, eq. 4
  """
  alpha, sigma = compute_alpha_sigma(log_snr)
  return alpha * x0 + sigma * noise


def compute_noise(x_t: Float[Array, "*dims"], x0: Float[Array, "*dims"], log_snr: Scalar) -> Float[Array, "*dims"]:
  """The noise that leads from `x0` to `x_t`: (x_t - alpha_t x_0) / sigma_t."""
  alpha, sigma = compute_alpha_sigma(log_snr)
  return (x_t - alpha * x0) / sigma


def compute_step_log_variance(log_snr_t: Scalar, log_snr_s: Scalar) -> Scalar:
  """Log of beta_{t|s}, the variance that the forward process adds from the earlier time s to t.

  beta_{t|s} = 1 - alpha_bar_t / alpha_bar_s = sigma_t^2 (1 - SNR_t / SNR_s)  Kingma et al. 2021, appendix A.1
  """
  return jax.nn.log_sigmoid(-log_snr_t) + jnp.log(-jnp.expm1(log_snr_t - log_snr_s))


def compute_posterior(
  x_t: Float[Array, "*dims"], x0: Float[Array, "*dims"], log_snr_t: Scalar, log_snr_s: Scalar
) -> Gaussian:
  """q(x_s | x_t, x_0) for any two times s < t; the point x_0 where s is the clean data.

    mean     = alpha_{t|s} sigma_s^2 / sigma_t^2 x_t + alpha_s beta_{t|s} / sigma_t^2 x_0
    variance = beta_{t|s} sigma_s^2 / sigma_t^2
  Ho et al. 2020, eq. 6 and 7, for neighbours; Kingma et al. 2021, appendix A.2, for any stride. `log_variance` is a
  scalar.
  """
  log_alpha_ratio = (jax.nn.log_sigmoid(log_snr_t) - jax.nn.log_sigmoid(log_snr_s)) / 2
  from_x_t = jnp.exp(log_alpha_ratio + jax.nn.log_sigmoid(-log_snr_s) - jax.nn.log_sigmoid(-log_snr_t))
  new_share = -jnp.expm1(log_snr_t - log_snr_s)
  from_x0 = compute_alpha_sigma(log_snr_s)[0] * new_share
  return Gaussian(from_x_t * x_t + from_x0 * x0, jax.nn.log_sigmoid(-log_snr_s) + jnp.log(new_share))


EPSILON = Parameterization(
  to_x0=lambda output, x_t, log_snr: (x_t - compute_alpha_sigma(log_snr)[1] * output) / compute_alpha_sigma(log_snr)[0],
  target=lambda x0, noise, log_snr: noise,
  error_scale=lambda log_snr: jnp.exp(-log_snr),
)
X0 = Parameterization(
  to_x0=lambda output, x_t, log_snr: output,
  target=lambda x0, noise, log_snr: x0,
  error_scale=jnp.ones_like,
)
# v = alpha_t noise - sigma_t x_0, Salimans & Ho 2022, appendix D.
V = Parameterization(
  to_x0=lambda output, x_t, log_snr: add_noise(x_t, -output, log_snr),
  target=lambda x0, noise, log_snr: add_noise(noise, -x0, log_snr),
  error_scale=lambda log_snr: jax.nn.sigmoid(-log_snr),
)
PARAMETERIZATIONS: Mapping[str, Parameterization] = types.MappingProxyType({"epsilon": EPSILON, "x0": X0, "v": V})


def fixed_small(
  schedule: Schedule, t: Int[Array, ""], s: Int[Array, ""], fraction: Float[Array, "*dims"] | None = None
) -> Scalar:
  """Log-variance of q(x_s | x_t, x_0): right if the data were a single point. Ho et al. 2020, section 3.2.

  Into the clean data (s = -1), where that variance is 0, it is the one from t = 1 to 0: only the decoder term of the
  variational bound asks for it, samplers add no noise there.
  """
  last = s < 0
  log_snr_t = compute_log_snr(schedule, jnp.where(last, 1, t))
  log_snr_s = compute_log_snr(schedule, jnp.where(last, 0, s))
  return jax.nn.log_sigmoid(-log_snr_s) + jnp.log(-jnp.expm1(log_snr_t - log_snr_s))


def fixed_large(
  schedule: Schedule, t: Int[Array, ""], s: Int[Array, ""], fraction: Float[Array, "*dims"] | None = None
) -> Scalar:
  """Log of beta_{t|s}: right if the data were N(0, I). Ho et al. 2020, section 3.2. As `fixed_small` where s = -1."""
  return jnp.where(s < 0, fixed_small(schedule, t, s), _largest_log_variance(schedule, t, s))


def learned(
  schedule: Schedule, t: Int[Array, ""], s: Int[Array, ""], fraction: Float[Array, "*dims"] | None = None
) -> Float[Array, "*dims"]:
  """Between the small and the large variance, in the log domain, by the network's `fraction` for each dimension.

    log variance = fraction log beta_{t|s} + (1 - fraction) log beta~_{t|s}      Nichol & Dhariwal 2021, eq. 15

  Raises:
    ValueError: the network gave no fraction: its output has as many channels as x, not twice as many.
  """
  if fraction is None:
    raise ValueError("variance 'learned' needs a network with twice the channels of x, found as many as x.")
  small, large = fixed_small(schedule, t, s), _largest_log_variance(schedule, t, s)
  return small + fraction * (large - small)


VARIANCES: Mapping[str, Variance] = types.MappingProxyType(
  {"fixed_small": fixed_small, "fixed_large": fixed_large, "learned": learned}
)


def interpret_output(
  output: Float[Array, "..."],
  x_t: Float[Array, "*dims"],
  log_snr: Scalar,
  parameterization: Parameterization,
  clip: Callable[[Array], Array] | None = None,
) -> Prediction:
  """The clean example, the noise and the variance fraction that a network's raw output stands for.

  An output with twice the channels of `x_t` (last axis) holds the prediction, then the variance: -1 the smallest, 1 the
  largest. `clip` is applied to the clean example, and the noise follows from what is left, so that the two always make
  `x_t`.

  Raises:
    ValueError: the output has neither the shape of `x_t` nor twice its channels.
  """
  mean, fraction = split_output(output, x_t.shape)
  x0 = parameterization.to_x0(mean, x_t, log_snr)
  x0 = x0 if clip is None else clip(x0)
  return Prediction(x0, compute_noise(x_t, x0, log_snr), fraction)


def split_output(
  output: Float[Array, "..."], shape: tuple[int, ...]
) -> tuple[Float[Array, "..."], Float[Array, "..."] | None]:
  """The prediction half and the variance fraction (None if absent) of an output for examples of `shape`.

  Raises:
    ValueError: the output has neither `shape` nor twice its channels.
  """
  if output.shape == shape:
    return output, None
  if not shape or output.shape != (*shape[:-1], 2 * shape[-1]):
    raise ValueError(f"network output must have shape {shape} or twice its channels, found {output.shape}.")
  mean, variance = jnp.split(output, 2, axis=-1)
  return mean, (variance + 1) / 2


def make_denoiser(
  network: Network,
  schedule: Schedule,
  parameterization: Parameterization = EPSILON,
  clip: Callable[[Array], Array] | None = None,
) -> Denoiser:
  """The denoiser (x_t, t) -> Prediction made of a network (x_t, t) -> output; see `interpret_output`.

  `clip` maps one clean example to a clipped one, for instance `clip_to_unit`.
  """

  def denoise(x_t: Float[Array, "B *dims"], t: Int[Array, " B"]) -> Prediction:
    def interpret(output, x_t, log_snr):
      return interpret_output(output, x_t, log_snr, parameterization, clip)

    return jax.vmap(interpret)(network(x_t, t), x_t, compute_log_snr(schedule, t))

  return denoise


def clip_to_unit(x0: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
  """x0 clipped to [-1, 1], the range of the data."""
  return jnp.clip(x0, -1.0, 1.0)


def to_signed(levels: Num[Array, "*dims"], num_levels: int) -> Float[Array, "*dims"]:
  """Levels 0..num_levels-1 as numbers in [-1, 1], evenly spaced with both ends reached. 256 levels for 8-bit images.

  Raises:
    ValueError: fewer than 2 levels, or levels that are not integers.
  """
  _check_num_levels(num_levels)
  if not jnp.issubdtype(levels.dtype, jnp.integer):
    raise ValueError(f"levels must be integers from 0 to {num_levels - 1}, found dtype {levels.dtype}.")
  return levels.astype(jnp.float32) * (2 / (num_levels - 1)) - 1


def to_levels(x: Float[Array, "*dims"], num_levels: int) -> Int[Array, "*dims"]:
  """The nearest level 0..num_levels-1 of numbers in [-1, 1]; what lies outside goes to the nearest end.

  Raises:
    ValueError: fewer than 2 levels.
  """
  _check_num_levels(num_levels)
  return jnp.clip(jnp.round((x + 1) * ((num_levels - 1) / 2)), 0, num_levels - 1).astype(jnp.int32)


def _check_num_levels(num_levels: int) -> None:
  if num_levels < 2:
    raise ValueError(f"num_levels must be at least 2, found {num_levels}.")


def check_data(x0: Shaped[Array, "..."] | Shaped[np.ndarray, "..."], limit: float = 1.0) -> None:
  """Refuses clean data that cannot be meant: integers, and, where the values are known, any beyond `limit`.

  Losses and bounds call it; inside `jit` only the dtype can be seen. See `check_range` for a whole data set.

  Raises:
    ValueError: as said.
  """
  if not jnp.issubdtype(x0.dtype, jnp.floating):
    raise ValueError(f"x0 must be floating-point in [-1, 1] (see to_signed), found dtype {x0.dtype}.")
  if isinstance(x0, jax.core.Tracer) or not x0.size or not getattr(x0, "is_fully_addressable", True):
    return
  largest = float(np.max(np.abs(np.asarray(x0))))  # NumPy: under `jit` even a constant would become a tracer
  if largest > limit * (1 + 1e-6):
    raise ValueError(f"x0 must lie in [-1, 1] (see to_signed), found values as large as {largest:g}.")


def check_range(x: Shaped[Array, "..."] | Shaped[np.ndarray, "..."], name: str = "x") -> None:
  """Refuses data that is not on [-1, 1]. For the host, once, on the data set: never inside `jit`.

  Raises:
    ValueError: not floating-point, not finite, outside [-1, 1], or with no negative number at all (data on [0, 1]).
  """
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"{name} must be floating-point in [-1, 1] (see to_signed), found dtype {x.dtype}.")
  low, high = float(x.min()), float(x.max())
  # Float32 rounding of a rescaled end may step over it by an ulp. NaN fails every comparison.
  if not (-1 - 1e-6 <= low < 0 and high <= 1 + 1e-6):
    raise ValueError(f"{name} must fill [-1, 1] (see to_signed), found values in [{low:g}, {high:g}].")


def _largest_log_variance(schedule: Schedule, t: Int[Array, ""], s: Int[Array, ""]) -> Scalar:
  return compute_step_log_variance(compute_log_snr(schedule, t), compute_log_snr(schedule, s))
