"""The clock of the benchmarks: whole updates, from the host, blocking on their results."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mlnotes.engine.program import Program


def time_call(call: Callable[[], Any]) -> float:
  """Seconds until everything that `call` returns is there."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


class Measurements(NamedTuple):
  """Seconds of one update in each measurement, every one the mean over `updates_each` updates.

  `data_wait_seconds` is the part of an update, on average, in which the host waited for its batch.
  """

  step_seconds: Sequence[float]
  updates_each: int
  data_wait_seconds: float


class Stepper:
  """A program and its state: every call goes on training."""

  def __init__(self, program: Program):
    self.program = program
    self._carry = (program.init(), program.empty_window())

  def __call__(self, count: int) -> float:
    """Seconds of `count` updates together."""

    def call():
      self._carry = self.program.update(*self._carry, count)
      return self._carry

    return time_call(call)

  def measure(self, measurements: int, seconds: float, warm_up: int = 1) -> Measurements:
    """Times the updates in `measurements` stretches of at least about `seconds` each, after `warm_up` updates."""
    self.program.compile()
    self(warm_up)
    count = 1
    while (elapsed := self(count)) < seconds / 2:
      count = max(2 * count, min(64 * count, int(count * seconds / max(elapsed, 1e-9) / 2)))
    each = max(1, round(count * seconds / max(elapsed, 1e-9)))
    feed = self.program.feeds.train
    waited = feed.wait_seconds if self.program.streamed else 0.0
    times = [self(each) / each for _ in range(measurements)]
    waited = feed.wait_seconds - waited if self.program.streamed else 0.0
    return Measurements(times, each, waited / (each * measurements))


def summarize_times(seconds: Sequence[float]) -> dict[str, float]:
  """Median, 10th and 90th percentile, by linear interpolation."""
  p10, median, p90 = np.percentile(np.asarray(seconds), (10, 50, 90)).tolist()
  return {"median": median, "p10": p10, "p90": p90}
