"""The sink of Weights & Biases, with a stand-in for its package."""

import sys
from types import SimpleNamespace

import pytest

from mlnotes.engine.errors import InputError

from .test_best_checkpoint import run


@pytest.fixture
def wandb(monkeypatch):
  calls = []

  def init(**settings):
    calls.append(("init", settings))
    return SimpleNamespace(
      log=lambda values, step: calls.append(("log", step, values)), finish=lambda: calls.append(("finish",))
    )

  monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
  return calls


def test_the_metrics_of_the_log_are_sent(wandb, tmp_path):
  run(tmp_path / "run", [[0, 3, 2]] * 2, wandb="project")
  (kind, settings), *rest = wandb
  assert kind == "init" and settings["project"] == "project" and settings["config"]["steps"] == 2
  assert settings["resume"] == "allow" and settings["name"] == "run"
  sent = [(step, values["eval/loss"]) for _, step, values in rest[:-1] if "eval/loss" in values]
  assert sent == [(1, 3.0), (2, 2.0)] and rest[-1] == ("finish",)
  assert not any(name.endswith("/seeds") for _, _, values in rest[:-1] for name in values)


def test_without_the_package_one_sentence_before_training(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(InputError, match="--wandb=project needs a package that is not here: expected pip install wandb"):
    run(tmp_path / "run", [[0, 3, 2]], wandb="project")
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_nothing_of_it_is_imported_otherwise(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
  run(tmp_path / "run", [[0, 3, 2]])
