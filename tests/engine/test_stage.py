"""Experiments that stand on a trained run: given, trained first, taken up where it was interrupted."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import import_experiment
from mlnotes.engine.stage import find_stage

SOFTMAX = Path(__file__).parents[1] / "softmax_regression.py"
SETTINGS = dict(steps=10, log_every=5, eval_every=0, checkpoint_every=5, tensorboard=False)


def test_an_earlier_stage_is_trained_once_and_then_found(tmp_path, capsys):
  softmax = import_experiment(str(SOFTMAX))
  directory = find_stage("teacher", "", softmax, tmp_path, **SETTINGS)
  card = (directory / "result.json").read_bytes()
  assert directory == tmp_path / "teacher" and json.loads(card)["steps"] == 10
  assert "--teacher is empty: " in capsys.readouterr().err
  assert find_stage("teacher", "", softmax, tmp_path, **SETTINGS) == directory
  assert (directory / "result.json").read_bytes() == card
  # A run that is named is taken as it is, whatever lies beside it.
  assert find_stage("teacher", "runs/mine", softmax, tmp_path, **SETTINGS) == Path("runs/mine")


def test_a_stage_that_is_stopped_ends_what_stands_on_it(tmp_path):
  stopped = SimpleNamespace(__name__="experiments.toy", Config=lambda **settings: settings, main=lambda config: 143)
  with pytest.raises(SystemExit) as ended:
    find_stage("victim", "", stopped, tmp_path)
  assert ended.value.code == 143
