"""Figures of several seeds, against numbers worked out by hand."""

import numpy as np
import pytest

from mlnotes.engine.summary import Score, format_spread, format_summary, is_better, make_score, order_key, over_seeds

NAN, INF = float("nan"), float("inf")


def test_mean_and_spread_are_over_the_finite_seeds_and_say_how_many():
  assert over_seeds([1.0, 2.0, 3.0]) == (2.0, 1.0, 3, 3)
  assert over_seeds([1.0, NAN, 3.0, INF]) == (2.0, pytest.approx(np.sqrt(2.0)), 2, 4)
  assert over_seeds(4) == (4.0, 0.0, 1, 1) and over_seeds([0.1] * 3).std == 0.0
  assert np.isnan(over_seeds([NAN, NAN]).mean) and over_seeds([NAN, NAN]).lost == 2


@pytest.mark.parametrize(
  ("values", "text"),
  [
    ([0.91234], "0.9123"),
    ([409 - 136, 409 + 136], "409 ± 192"),
    ([500.0, 500.0], "500 ± 0"),
    ([0.95, NAN], "0.95 ± 0 (1 of 2 seeds finite)"),
    ([NAN], "not finite"),
    ([NAN, INF], "not finite (0 of 2 seeds)"),
  ],
)
def test_text(values, text):
  assert format_summary(over_seeds(values)) == text


@pytest.mark.parametrize(
  ("value", "text"),
  [(136.2, "136"), (100.0, "100"), (9.96, "10"), (9.94, "9.9"), (12.34, "12"), (0.0123, "0.012"), (5e-7, "5e-07")],
)
def test_spreads_are_readable(value, text):
  assert format_spread(value) == text


@pytest.mark.parametrize(
  ("mode", "order"), [("max", ["high", "low", "lost", "none"]), ("min", ["low", "high", "lost", "none"])]
)
def test_what_lost_a_seed_ranks_below_whatever_lost_none(mode, order):
  extreme = 1e9 if mode == "max" else -1e9
  figures = {"lost": [extreme, NAN, extreme], "none": [NAN] * 3, "low": [0.1] * 3, "high": [0.9] * 3}
  assert sorted(figures, key=lambda name: order_key(over_seeds(figures[name]), mode)) == order
  assert order_key(None, mode) == order_key(over_seeds([NAN]), mode)


def test_scores_of_checkpoints():
  assert make_score([3.0, 1.0], "min") == Score(0, 2.0) and make_score([3.0, NAN], "max") == Score(1, -3.0)
  assert make_score([NAN, NAN], "min") is None
  assert is_better(Score(0, 9.0), Score(1, -9.0)) and is_better(Score(1, 1.0), Score(1, 2.0))
  assert is_better(Score(7, 1.0), None) and not is_better(None, None) and not is_better(Score(0, 1.0), Score(0, 1.0))
