"""The entrypoints that are one computation: their pictures, their result cards, settings per environment."""

import json

import pytest
from absl import flags as absl_flags

from experiments.rl import cliff_figure, ppo, value_iteration
from mlnotes.errors import InputError
from mlnotes.flags import define, parse


def test_value_iteration_leaves_its_figures_and_a_map(tmp_path, capsys):
  assert value_iteration.main(value_iteration.Config(env="CliffWalking-v1", workdir=str(tmp_path))) == 0
  card = json.loads((tmp_path / "result.json").read_text())
  assert card["finished"] and card["metrics"]["episode_return"]["mean"] == -13
  assert (tmp_path / "values.png").stat().st_size > 1000
  assert "episode_return -13" in capsys.readouterr().out


def test_a_figure_summarises_its_runs(tmp_path):
  assert cliff_figure.main(cliff_figure.Config(runs=3, workdir=str(tmp_path))) == 0
  metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
  assert all(len(value["seeds"]) == 3 for value in metrics.values())
  assert metrics["reward_sarsa"]["mean"] > metrics["reward_q_learning"]["mean"]
  assert (tmp_path / "cliff.png").stat().st_size > 1000


def parsed(*argv):
  values = absl_flags.FlagValues()
  define(ppo.Config, values)
  values(["program", *argv])
  return parse(ppo.Config, values)


def test_an_environments_settings_give_way_to_flags():
  tuned = ppo.Config.TUNED["Pendulum-v1"]
  config = parsed("--env=Pendulum-v1")
  assert all(getattr(config, name) == value for name, value in tuned.items())
  config = parsed("--env=Pendulum-v1", "--discount=0.99", "--epochs=4")
  assert (config.discount, config.epochs, config.minibatches) == (0.99, 4, tuned["minibatches"])
  assert parsed() == ppo.Config()


def test_what_does_not_fit_together_names_the_flag():
  with pytest.raises(InputError, match="--minibatches=3"):
    parsed("--minibatches=3")
