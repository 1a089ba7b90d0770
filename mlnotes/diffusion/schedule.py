"""Noise schedules: how much of the data is left at each of T times.

A schedule is its log signal-to-noise ratio, log(alpha_bar / (1 - alpha_bar)), and nothing else: everything a diffusion
process needs between any two times follows from the two log-SNRs without cancellation (Kingma et al. 2021, section 3),
at both ends, where alpha_bar or 1 - alpha_bar alone would round to 0 or 1 in float32.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

# Most times that `stratified_times` tells apart.
MAX_STRATA = 2**16


class Schedule(NamedTuple):
  """A variance-preserving noise schedule over times t = 0 (least noise) to T - 1 (most).

  `log_snr` falls strictly. Time -1 stands for the clean data (log-SNR of infinity, alpha_bar of 1).
  The papers' t = 1..T is t + 1 here.
  """

  log_snr: Float[Array, " T"]

  @property
  def num_steps(self) -> int:
    """T, the number of noise levels."""
    return self.log_snr.shape[0]

  @property
  def alpha_bar(self) -> Float[Array, " T"]:
    """Share of the variance of x_t that is signal: q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)."""
    return jax.nn.sigmoid(self.log_snr)

  @property
  def beta(self) -> Float[Array, " T"]:
    """Variance added from t - 1 to t: 1 - alpha_bar_t / alpha_bar_{t-1}, with alpha_bar_{-1} = 1."""
    previous = jnp.concatenate([jnp.full(1, jnp.inf), self.log_snr[:-1]])
    return jax.nn.sigmoid(-self.log_snr) * -jnp.expm1(self.log_snr - previous)


def compute_log_snr(schedule: Schedule, t: Int[Array, "*times"]) -> Float[Array, "*times"]:
  """Log-SNR at times `t` in -1..T-1; infinity at -1, the clean data. Times beyond T - 1 count as T - 1."""
  return jnp.where(t < 0, jnp.inf, schedule.log_snr[jnp.maximum(t, 0)])


def make_linear_schedule(
  num_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02, max_beta: float = 0.999
) -> Schedule:
  """Betas on a line, rescaled so that every number of steps T destroys about the same amount of signal.

    beta_t = min(1000 / T * (beta_start + t / (T - 1) * (beta_end - beta_start)), max_beta)

  At T = 1000 these are the betas of Ho et al. 2020, section 4. The cap is only met below T = 21, where the
  rescaled line would pass 1.

  Raises:
    ValueError: fewer than 2 steps, not 0 < beta_start <= beta_end < 1, or `max_beta` not in (0, 1).

  Differences from the paper: the factor 1000 / T (as Nichol & Dhariwal 2021 do for other T), and the cap.
  """
  _check_num_steps(num_steps)
  if not 0 < beta_start <= beta_end < 1:
    raise ValueError(f"beta_start and beta_end must satisfy 0 < start <= end < 1, found {beta_start} and {beta_end}.")
  _check_max_beta(max_beta)
  beta = np.linspace(beta_start, beta_end, num_steps) * (1000 / num_steps)
  return _from_beta(np.minimum(beta, max_beta))


def make_cosine_schedule(num_steps: int, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
  """alpha_bar as a squared cosine of time: slower at both ends than the linear schedule.

    alpha_bar_t = f(t + 1) / f(0),  f(t) = cos((t / T + offset) / (1 + offset) * pi / 2)^2,
    beta_t = min(1 - f(t + 1) / f(t), max_beta)                               Nichol & Dhariwal 2021, eq. 17

  Raises:
    ValueError: fewer than 2 steps, a negative `offset`, or `max_beta` not in (0, 1).
  """
  _check_num_steps(num_steps)
  _check_max_beta(max_beta)
  if not offset >= 0:
    raise ValueError(f"offset must not be negative, found {offset}.")
  u = np.arange(num_steps + 1) / num_steps
  f = np.cos((u + offset) / (1 + offset) * (np.pi / 2)) ** 2
  return _from_beta(np.minimum(1 - f[1:] / f[:-1], max_beta))


def make_schedule_from_log_snr(
  log_snr: Callable[[Float[Array, " T"]], Float[Array, " T"]],
  num_steps: int,
  bounds: tuple[float, float] = (-20.0, 20.0),
) -> Schedule:
  """The discrete schedule that visits a continuous one at T evenly spaced times u, the last of them 1 or earlier.

  The last time is 1 unless the one before it would already be at the lower bound: then it is where the log-SNR meets
  that bound (as for the cosine with many steps), so that no two times are equally noisy.

  The first time is 1/T, or later: where the log-SNR has come down to the upper bound. Grey levels that lie 2h apart
  are told apart by a network without error at noise far below h, yet every step spent there costs the variational
  bound bits: an upper bound of about -2 log(0.8 h) lets the decoder of the first step do the rounding instead.

  Args:
    log_snr: from times u in [0, 1] to log-SNRs, such as `cosine_log_snr`.
    num_steps: T.
    bounds: (lowest, highest) log-SNR. The lowest replaces what is below it, such as an infinite end.

  Raises:
    ValueError: fewer than 2 steps, or the log-SNR within the bounds does not fall strictly: too many steps for float32.
  """
  _check_num_steps(num_steps)
  lowest, highest = bounds
  first = _find_time(log_snr, highest, 1 / num_steps)
  last = 1.0
  if float(log_snr(jnp.linspace(first, 1.0, num_steps))[-2]) <= lowest:
    last = _find_time(log_snr, lowest, first)
  values = jnp.maximum(log_snr(jnp.linspace(first, last, num_steps)), lowest)
  if not bool(jnp.all(jnp.diff(values) < 0)):
    raise ValueError(f"log_snr must fall strictly over {num_steps} steps within {bounds}; it does not.")
  return Schedule(values)


def _find_time(log_snr: Callable[[Array], Array], value: float, earliest: float) -> float:
  """The first time in [`earliest`, 1] at which a falling log-SNR is at most `value`, by bisection."""
  at_most = lambda u: float(log_snr(jnp.full(1, u))[0]) <= value
  if at_most(earliest):
    return earliest
  low, high = earliest, 1.0
  for _ in range(24):  # to the precision of float32
    middle = (low + high) / 2
    low, high = (low, middle) if at_most(middle) else (middle, high)
  return high


def linear_log_snr(
  u: Float[Array, "*times"], beta_start: float = 1e-4, beta_end: float = 0.02
) -> Float[Array, "*times"]:
  """Continuous-time limit of the linear schedule at times `u` in [0, 1]; infinite at u = 0.

    alpha_bar(u) = exp(-(b0 u + (b1 - b0) u^2 / 2)),  b0, b1 = 1000 beta_start, 1000 beta_end

  Source: the VP SDE, Song et al. 2021, eq. 32 and 33.
  """
  b0, b1 = 1000 * beta_start, 1000 * beta_end
  return -jnp.log(jnp.expm1(b0 * u + (b1 - b0) * u**2 / 2))


def cosine_log_snr(u: Float[Array, "*times"], offset: float = 0.008) -> Float[Array, "*times"]:
  """Continuous-time limit of the cosine schedule at times `u` in [0, 1]; infinite at u = 0, minus infinity at u = 1.

    alpha_bar(u) = cos(a)^2 / cos(a0)^2,  a = (u + offset) / (1 + offset) * pi / 2,  a0 = a at u = 0

  Nichol & Dhariwal 2021, eq. 17. With cos(a0)^2 - cos(a)^2 = sin(a - a0) sin(a + a0) neither end cancels.
  """
  scale = np.pi / 2 / (1 + offset)
  cos_a = jnp.sin((1 - u) * scale)
  return 2 * jnp.log(cos_a) - jnp.log(jnp.sin(u * scale)) - jnp.log(jnp.sin((u + 2 * offset) * scale))


def make_timesteps(
  num_steps: int, num_samples: int, spacing: Literal["leading", "trailing", "linspace"] = "trailing"
) -> Int[np.ndarray, " S"]:
  """`num_samples` rising times out of 0..num_steps-1 for a strided sampler.

    leading    0, r, 2r, ...  with r = T // S        starts below full noise
    trailing   ..., T - 1 - T/S, T - 1               ends at t = T / S - 1
    linspace   0, ..., T - 1  evenly                 both ends

  Source: Lin et al. 2024 (common diffusion noise schedules), table 2.

  Raises:
    ValueError: `num_samples` outside 1..num_steps, or an unknown spacing.
  """
  if not 1 <= num_samples <= num_steps:
    raise ValueError(f"num_samples must lie in 1..{num_steps} (the schedule's steps), found {num_samples}.")
  index = np.arange(num_samples)
  match spacing:
    case "leading":
      times = index * (num_steps // num_samples)
    case "trailing":
      times = np.round(num_steps - index[::-1] * (num_steps / num_samples)) - 1
    case "linspace":
      times = np.round(np.linspace(0, num_steps - 1, num_samples))
    case _:
      raise ValueError(f"spacing must be 'leading', 'trailing' or 'linspace', found {spacing!r}.")
  return times.astype(np.int32)


def stratified_times(index: UInt32[Array, " B"] | Int[Array, " B"], num_steps: int) -> Int[Array, " B"]:
  """A time of 0..T-1 for each example by its position in the data set: evenly spread over any run of positions.

    t = floor(T frac(phi index)),  phi = 0.618..., the golden ratio, as a fraction of 2^32

  Integer arithmetic, exact for every index below 2^32: a float32 product has no fraction left from a few million on.
  How often two times occur among consecutive positions differs by a few, whatever their number (Weyl's sequence;
  Knuth 1998, section 6.4). Raises ValueError if `num_steps` is not in 1..65536.
  """
  if not 1 <= num_steps <= MAX_STRATA:
    raise ValueError(f"num_steps must lie in 1..{MAX_STRATA}, found {num_steps}.")
  fraction = index.astype(jnp.uint32) * np.uint32(2654435769)  # modulo 2^32, as it should be
  # The high word of a 32 by 17 bit product, in parts that fit into 32 bits each.
  low = ((fraction & np.uint32(0xFFFF)) * np.uint32(num_steps)) >> np.uint32(16)
  return (((fraction >> np.uint32(16)) * np.uint32(num_steps) + low) >> np.uint32(16)).astype(jnp.int32)


def _check_max_beta(max_beta: float) -> None:
  if not 0 < max_beta < 1:
    raise ValueError(f"max_beta must lie between 0 and 1, found {max_beta}.")


def _check_num_steps(num_steps: int) -> None:
  if num_steps < 2:
    raise ValueError(f"num_steps must be at least 2, found {num_steps}.")


def _from_beta(beta: Float[np.ndarray, " T"]) -> Schedule:
  # On the host in float64: a float32 product of a thousand factors near 1 has lost its last digits.
  log_alpha_bar = np.cumsum(np.log1p(-beta))
  return Schedule(jnp.asarray(log_alpha_bar - np.log(-np.expm1(log_alpha_bar)), jnp.float32))
