"""Learning rates over time; optax's where it has them. All give the rate of update `count` = 0, 1, ..."""

from typing import Literal, TypeAlias

import jax.numpy as jnp
import optax

from mlnotes.optim.checks import require_non_negative, require_positive


def inverse_square_root(peak: float, timescale: int) -> optax.Schedule:
  """peak sqrt(timescale / (timescale + count)).

  After `timescale` updates of linear warm-up this is the schedule of Vaswani et al. 2017, eq. 3, scaled to its peak.
  """
  require_positive("timescale", timescale)
  return lambda count: peak * jnp.sqrt(timescale / (timescale + jnp.maximum(count, 0)))


def triangular(low: float, peak: float, half_period: int) -> optax.Schedule:
  """Lines from `low` to `peak` in `half_period` updates and back, for ever (Smith 2017, section 3.1)."""
  require_positive("half_period", half_period)
  return lambda count: low + (peak - low) * (1 - jnp.abs((count % (2 * half_period)) / half_period - 1))


def two_drops(total_steps: int) -> optax.Schedule:
  """1, a tenth from half of `total_steps` updates on, and a hundredth from three quarters on."""
  return lambda count: jnp.where(4 * count >= 3 * total_steps, 0.01, jnp.where(2 * count >= total_steps, 0.1, 1.0))


def warm_restarts(peak: float, first_period: int, factor: int, total_steps: int, low: float = 0.0) -> optax.Schedule:
  """SGDR: cosines from `peak` to `low`, each period `factor` times as long as the last.

  Loshchilov & Hutter 2017, eq. 5. As many periods as cover `total_steps`; the last may be cut.
  """
  require_positive("first_period", first_period)
  require_positive("peak", peak)
  if factor < 1:
    raise ValueError(f"factor={factor} is out of range: expected 1 or more.")
  periods, boundaries = [first_period], []
  while sum(periods) < total_steps:
    boundaries.append(sum(periods))
    periods.append(periods[-1] * factor)
  return optax.join_schedules([optax.cosine_decay_schedule(peak, n, low / peak) for n in periods], boundaries)


def warm_up(schedule: optax.Schedule, warmup_steps: int) -> optax.Schedule:
  """A line from 0 to where `schedule` starts in `warmup_steps` updates, then `schedule` from its beginning."""
  require_non_negative("warmup_steps", warmup_steps)
  if not warmup_steps:
    return schedule
  return optax.join_schedules([lambda count: schedule(0) * count / warmup_steps, schedule], [warmup_steps])


ScheduleName: TypeAlias = Literal[
  "constant", "step", "exponential", "polynomial", "linear", "cosine", "warmup_cosine", "inverse_sqrt", "triangular",
  "one_cycle", "warm_restarts",
]  # fmt: skip


def make_schedule(name: ScheduleName, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
  """A schedule with peak 1 over `total_steps` updates, to be multiplied by the learning rate.

  The learning rate itself stays a traced value of the optimizer's state, so that changing it recompiles nothing.
  Raises ValueError for an unknown name, and where the warm-up leaves no update for the schedule.
  """
  rest = total_steps - warmup_steps
  if rest <= 0:
    raise ValueError(f"warmup_steps={warmup_steps} leaves nothing of total_steps={total_steps}: expected fewer.")
  schedules = {
    "constant": lambda: optax.constant_schedule(1.0),
    "step": lambda: two_drops(rest),
    "exponential": lambda: optax.exponential_decay(1.0, rest, 0.01),
    "polynomial": lambda: optax.polynomial_schedule(1.0, 0.0, 2, rest),
    "linear": lambda: optax.linear_schedule(1.0, 0.0, rest),
    "cosine": lambda: optax.cosine_decay_schedule(1.0, rest),
    "warmup_cosine": lambda: optax.cosine_decay_schedule(1.0, rest),
    "inverse_sqrt": lambda: inverse_square_root(1.0, max(warmup_steps, 1)),
    "triangular": lambda: triangular(0.1, 1.0, max(rest // 8, 1)),
    "one_cycle": lambda: optax.cosine_onecycle_schedule(rest, 1.0),
    "warm_restarts": lambda: warm_restarts(1.0, -(-rest // 7), 2, rest),
  }
  if name not in schedules:
    raise ValueError(f"found the schedule {name!r}, expected one of {', '.join(schedules)}.")
  return warm_up(schedules[name](), warmup_steps)
