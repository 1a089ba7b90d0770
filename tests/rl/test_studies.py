"""The entrypoints that are one computation: their pictures, their result cards, settings per environment."""

import json

import pytest
from absl import flags as absl_flags

from experiments.rl import cliff_figure, ppo, value_iteration
from mlnotes.errors import InputError
from mlnotes.flags import define, parse
from mlnotes.rl.table import read_table


def test_value_iteration_leaves_its_figures_and_a_map(tmp_path, capsys):
  assert value_iteration.main(value_iteration.Config(env="CliffWalking-v1", workdir=str(tmp_path))) == 0
  card = json.loads((tmp_path / "result.json").read_text())
  assert card["finished"] and card["metrics"]["episode_return"]["mean"] == -13
  assert (tmp_path / "values.png").stat().st_size > 1000
  assert "episode_return -13" in capsys.readouterr().out


@pytest.mark.parametrize(("env", "value"), [("DynaMaze", 1.0), ("FrozenLake8x8-v1", 1.0), ("CliffWalking-v1", -13.0)])
def test_value_iteration_without_a_discount_follows_a_policy_that_arrives(env, value):
  panel, figures = value_iteration.solve(read_table(env), value_iteration.Config(env=env, discount=1.0))
  for name in ("start_value", "start_value_policy_iteration", "start_value_of_greedy_policy"):
    assert figures[name] == pytest.approx(value, rel=1e-3)
  if env != "FrozenLake8x8-v1":
    assert figures["episode_return"] == value
  else:  # the largest chance of arriving at all takes more than its 200 steps now and then
    assert 0.65 < figures["episode_return"] < 0.75
  assert panel.actions.shape == panel.values.shape[:1]


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
