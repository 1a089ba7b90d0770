"""The chapter's experiments at their smallest: pictures, tables, figures."""

import json

import numpy as np
import pytest

from experiments.optim import batch_size, compare, landscape
from mlnotes.engine.errors import InputError

pytestmark = pytest.mark.thorough  # whole runs


def figures(directory):
  return json.loads((directory / "result.json").read_text())["metrics"]


def test_compare_sweeps_to_the_best_learning_rate(tmp_path, monkeypatch, capsys):
  # Far below the best one: the sweep must move.
  monkeypatch.setitem(compare.CENTRES, "plain_sgd", 1e-4)
  config = compare.Config(
    optimizers=("plain_sgd", "lookahead_adam"), seeds=2, rates=3, steps=40, points=2, widths=(8,), workdir=str(tmp_path)
  )
  assert compare.main(config) == 0
  found = figures(tmp_path)
  assert found["plain_sgd/learning_rate"]["mean"] > 1e-2
  assert len(found["lookahead_adam/test_accuracy"]["seeds"]) == 2
  assert found["lookahead_adam/test_accuracy"]["mean"] > 0.5
  assert (tmp_path / "table.md").read_text().count("\n") == 4
  for name in ("compare.png", "sensitivity.png"):
    assert (tmp_path / name).stat().st_size > 1000


def test_compare_names_what_it_cannot_use():
  with pytest.raises(InputError, match="--optimizers=sgdd"):
    compare.Config(optimizers=("sgdd",))
  with pytest.raises(InputError, match="--optimizers=lookahead_lookahead_adam"):
    compare.Config(optimizers=("lookahead_lookahead_adam",))
  with pytest.raises(InputError, match="each name once"):
    compare.Config(optimizers=("adam", "adam"))
  with pytest.raises(InputError, match="--widths="):
    compare.Config(widths=(8, 0))
  with pytest.raises(InputError, match="--points=7"):
    compare.Config(points=7)


@pytest.mark.parametrize("loss, accuracy", [(np.nan, 0.1), (0.0, 1.0)])
def test_compare_draws_what_diverged_and_what_is_perfect(loss, accuracy, tmp_path):
  """Matplotlib warns of what it cannot draw, and a warning is an error here."""
  shape = (3, 1, 1)
  found = compare.Sweep(np.array([0.1, 1.0, 10.0]), np.full(shape, loss), np.full(shape, accuracy), 1.0, 1.0)
  config = compare.Config(optimizers=("sgd",), seeds=1, steps=1, points=1)
  compare.draw_curves(config, {"sgd": found}, tmp_path / "curves.png")
  compare.draw_sensitivity(config, {"sgd": found}, tmp_path / "sensitivity.png")


def test_compare_says_that_the_best_is_at_the_edge(tmp_path, monkeypatch, capsys):
  """No update at all: every learning rate is as good, and the sweep's first is taken."""
  monkeypatch.setattr(compare, "MOST_SHIFTS", 1)
  monkeypatch.setitem(compare.CENTRES, "plain_sgd", 1e-12)
  config = compare.Config(
    optimizers=("lookahead_plain_sgd",), seeds=1, rates=3, steps=1, points=1, widths=(), workdir=str(tmp_path)
  )
  assert compare.main(config) == 0
  assert "at the edge of the sweep" in capsys.readouterr().out
  assert "at the edge of the sweep" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
  "study, flags",
  [(compare, {}), (landscape, {}), (batch_size, {}), (batch_size, {"batch_size": 512, "batch_sizes": (10**6,)})],
)
def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(study, flags, tmp_path):
  with pytest.raises(InputError, match="--batch_size"):
    study.main(study.Config(**{"batch_size": 10**6, **flags}, workdir=str(tmp_path / "run")))
  assert not (tmp_path / "run").exists()


def test_landscape_draws_and_agrees_with_the_exact_hessian(tmp_path):
  config = landscape.Config(width=3, steps=40, lanczos_steps=60, probes=2, workdir=str(tmp_path))
  assert landscape.main(config) == 0
  found = {name: value["mean"] for name, value in figures(tmp_path).items()}
  for end in ("largest", "smallest"):
    np.testing.assert_allclose(found[f"after_adam/{end}_lanczos"], found[f"after_adam/{end}"], rtol=1e-2)
  assert found["ravine/momentum"] < 1e-6 and found["saddle/plain_sgd"] < -0.24
  for name in ("surfaces.png", "network.png", "curvature.png"):
    assert (tmp_path / name).stat().st_size > 1000


def test_batch_size_measures_and_draws(tmp_path):
  config = batch_size.Config(
    batch_sizes=(64, 256), epochs=2, seeds=2, widths=(8,), deep_widths=(8, 8), batch_size=256, rates=(0.05, 0.1),
    warmup_total=10, warmup_updates=5, workdir=str(tmp_path),
  )  # fmt: skip
  assert batch_size.main(config) == 0
  found = figures(tmp_path)
  assert found["batch_64/train_loss"]["mean"] < found["batch_256/train_loss"]["mean"]
  for size in (64, 256):  # of digits' 1437 training examples, twice
    assert abs(found[f"batch_{size}/examples"]["mean"] - 2 * 1437) <= size / 2
  assert found["batch_256/epoch_milliseconds"]["mean"] > 0
  assert np.isfinite(found["with_warmup/rate_0.1/train_loss"]["mean"])
  for name in ("batch_size.png", "warmup.png"):
    assert (tmp_path / name).stat().st_size > 1000
