"""What a person sees while a run trains: a bar on a terminal, a plain line every so often elsewhere."""

import sys
import time
from collections.abc import Mapping

import numpy as np

from mlnotes.engine.summary import over_seeds

SECONDS_BETWEEN_LINES = 10.0


class Progress:
  """Reports on standard error. `examples` is what one update consumes, in `unit`s."""

  def __init__(self, steps: int, examples: int, unit: str, *, quiet: bool = False):
    self._steps, self._examples, self._unit, self._quiet = steps, examples, unit, quiet
    self._bar = None
    self._terminal = sys.stderr.isatty()
    self._last_line = 0.0
    self._metrics = ""

  def say(self, text: str) -> None:
    """One line now."""
    if self._quiet:
      return
    if self._bar is not None:
      self._bar.write(text, file=sys.stderr)
    else:
      print(text, file=sys.stderr, flush=True)

  def update(self, step: int, metrics: Mapping[str, np.ndarray], step_seconds: float) -> None:
    """The run is at `step`; `metrics` are the newest, or empty where nothing is new."""
    if self._quiet:
      return
    if metrics:
      names = sorted(metrics, key=lambda name: name != "loss")[:4]  # the loss first, the others as they come
      self._metrics = "  ".join(f"{name} {over_seeds(metrics[name]).mean:.4g}" for name in names)
    rate = f"{self._examples / step_seconds:,.0f} {self._unit}/s"
    if self._terminal:
      if self._bar is None:
        from tqdm import tqdm

        self._bar = tqdm(total=self._steps, initial=step, unit="step", dynamic_ncols=True, file=sys.stderr)
      self._bar.set_postfix_str(f"{self._metrics}  {rate}", refresh=False)
      self._bar.update(step - self._bar.n)
    elif metrics and (step == self._steps or time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES):
      self._last_line = time.monotonic()
      left = (self._steps - step) * step_seconds
      self.say(f"step {step}/{self._steps}  {self._metrics}  {rate}  {left:,.0f} s left")

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None


def warn(text: str) -> None:
  """Says what went wrong without ending the run; the result card will say it too."""
  _warnings.append(text)
  print(f"warning: {text}", file=sys.stderr, flush=True)


def take_warnings() -> list[str]:
  """What `warn` has said since the last call."""
  taken = list(_warnings)
  _warnings.clear()
  return taken


_warnings: list[str] = []
_said: tuple[str, float] = ("", 0.0)


def report_step(text: str, done: int | None = None, total: int | None = None) -> None:
  """Says on standard error what a report is doing, such as "sampling 2000 images", and how far it is.

  May be called as often as one likes: a line comes where the text is new, and then at most every 10 seconds.
  """
  global _said
  last, when = _said
  if text == last and time.monotonic() - when < SECONDS_BETWEEN_LINES:
    return
  _said = text, time.monotonic()
  far = "" if done is None else f": {done}" if total is None else f": {done} of {total}"
  print(f"  {text}{far}", file=sys.stderr, flush=True)
