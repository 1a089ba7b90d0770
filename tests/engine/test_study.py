"""A study that cannot be done leaves its directory free."""

import dataclasses

import pytest

from mlnotes.engine.errors import InputError
from mlnotes.engine.study import run_study


@dataclasses.dataclass(frozen=True)
class Config:
  workdir: str
  size: int


def refuse(directory):
  raise InputError("nothing to study.")


def test_a_refused_study_gives_its_directory_back(tmp_path):
  with pytest.raises(InputError, match="nothing to study"):
    run_study("study", Config(str(tmp_path), 1), refuse)
  assert run_study("study", Config(str(tmp_path), 2), lambda directory: {"figure": 1.0}) == 0
  assert (tmp_path / "result.json").exists()


def test_a_refused_study_leaves_a_finished_one_alone(tmp_path):
  config = Config(str(tmp_path), 1)
  assert run_study("study", config, lambda directory: {"figure": 1.0}) == 0
  with pytest.raises(InputError, match="nothing to study"):
    run_study("study", config, refuse)
  with pytest.raises(InputError, match="other settings"):
    run_study("study", Config(str(tmp_path), 2), refuse)
