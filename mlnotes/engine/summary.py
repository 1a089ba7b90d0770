"""Several seeds as one figure: one rule wherever figures are logged, printed, tabulated, ranked or compared.

Mean and spread are over the seeds whose value is finite, and where that is not all of them the figure says how many.
What lost seeds ranks below whatever has lost fewer, however good the rest is.
"""

from typing import Any, Literal, NamedTuple

import numpy as np


class Summary(NamedTuple):
  """A figure over seeds.

  Attributes:
    mean: over the seeds whose value is finite; NaN where none is.
    std: the sample standard deviation (divisor n - 1) over them; 0 where there is one.
    finite: how many these are.
    count: of how many.
  """

  mean: float
  std: float
  finite: int
  count: int

  @property
  def lost(self) -> int:
    return self.count - self.finite


def over_seeds(values: Any) -> Summary:
  """The summary of one value per seed, or of a number."""
  values = np.atleast_1d(np.asarray(values, np.float64)).ravel()
  kept = values[np.isfinite(values)]
  # Of equal numbers the computed deviation need not be 0.
  spread = float(kept.std(ddof=1)) if len(set(kept.tolist())) > 1 else 0.0
  return Summary(float(kept.mean()) if kept.size else float("nan"), spread, kept.size, values.size)


def format_spread(value: float) -> str:
  """At least two digits, never an exponent where plain digits do: 136, 12, 0.012."""
  size = abs(value)
  if size == 0 or not np.isfinite(size):
    return f"{value:.2g}"
  return f"{value:.0f}" if 9.95 <= size < 1e6 else f"{value:.2g}"


def format_summary(figure: Summary, digits: int = 4) -> str:
  """`0.9123`; of several seeds `0.9123 ± 0.012`; `0.95 ± 0.01 (7 of 8 seeds finite)` where not all are."""
  if not figure.finite:
    return "not finite" if figure.count == 1 else f"not finite (0 of {figure.count} seeds)"
  text = f"{figure.mean:.{digits}g}" + (f" ± {format_spread(figure.std)}" if figure.count > 1 else "")
  return text + (f" ({figure.finite} of {figure.count} seeds finite)" if figure.lost else "")


def order_key(figure: Summary | None, mode: Literal["min", "max"]) -> tuple[float, float]:
  """What to sort by, best first: complete figures, then by how many seeds are lost; last those without a figure."""
  if figure is None or not figure.finite:
    return (float("inf"), 0.0)
  return (float(figure.lost), figure.mean if mode == "min" else -figure.mean)


class Score(NamedTuple):
  """What checkpoints are compared by: the smaller, the better.

  Attributes:
    lost: how many seeds are not finite.
    value: the mean over the others, with the sign that makes lower better.
  """

  lost: int
  value: float


def make_score(values: Any, mode: Literal["min", "max"]) -> Score | None:
  """The score of one value per seed; None, worse than any, where none is finite."""
  figure = over_seeds(values)
  return Score(figure.lost, figure.mean if mode == "min" else -figure.mean) if figure.finite else None


def is_better(score: Score | None, than: Score | None) -> bool:
  return score is not None and (than is None or score < than)
