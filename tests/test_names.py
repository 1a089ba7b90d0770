"""`python -m experiments`: the list by chapter, and methods found by any of their names."""

import importlib
import shlex

import pytest

from experiments import _names, catalogue
from experiments.__main__ import main
from mlnotes.engine.flags import config_fields


def found(capsys, *arguments, chapter=""):
  """The commands and modules that were printed."""
  assert main(list(arguments), chapter) == 0
  return [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("term, first", [
  ("动量", "python -m experiments.optim.compare --optimizers=sgd"),
  ("FOMAML", "python -m experiments.meta.maml --order=first"),
  ("个体判别", "python -m experiments.contrastive.instance"),
  ("对比学习", "python -m experiments.contrastive"),
  ("soft actor critic", "python -m experiments.rl.sac"),
  ("表格", "mlnotes.data.flags.TableConfig"),
  ("图神经网络", "python -m experiments.graph"),
  ("many graphs", "mlnotes.data.flags.GraphSetConfig"),
  ("卷积", "python -m experiments.nn.classifier"),
  ("Zbontar", "python -m experiments.contrastive.barlow_twins"),  # its docstring alone has it
])  # fmt: skip
def test_a_method_is_found_by_any_of_its_names(capsys, term, first):
  assert found(capsys, f"--find={term}")[0] == first


def test_all_that_go_by_a_name_are_found_and_nothing_else(capsys):
  traces = {f"python -m experiments.rl.{name}" for name in ("actor_critic", "sarsa_lambda", "watkins_q")}
  assert set(found(capsys, "--find", "资格迹")) == {*traces, "mlnotes.rl, experiments.rl"}
  assert set(found(capsys, "--find=资格迹", chapter="rl")) == traces
  commands = found(capsys, "--find=nce")  # difference, sequence, InfoNCE are other words
  assert all("contrastive" in command for command in commands) and len(commands) == 2


@pytest.mark.parametrize("arguments, chapter, words", [
  (["--find=mometum"], "", "did you mean momentum,"),
  (["--find=zzzz"], "", "expected one of Attention 注意力机制, "),
  (["--find=MAML"], "rl", "of this chapter: `python -m experiments --find=MAML` finds it"),
  (["--find="], "", "expected --find=TERM"),
  (["--fnd=MAML"], "", "expected --find=TERM"),
  (["rl.pppo"], "", "did you mean rl.ppo?"),
])  # fmt: skip
def test_what_is_no_name_is_answered_with_the_nearest(capsys, arguments, chapter, words):
  assert main(arguments, chapter) == 2
  out, err = capsys.readouterr()
  assert words in err and not out


def test_the_list_is_grouped_by_chapter(capsys):
  assert main([]) == 0
  lines = capsys.readouterr().out.splitlines()
  heads = [i for i, line in enumerate(lines) if line.endswith("/README.md")]
  assert [lines[i].partition(": ")[2].split("/")[1] for i in heads] == _names.chapters()
  listed = [line.split()[2].removeprefix("experiments.") for line in lines if line.startswith("  python")]
  assert listed == [name for name, _ in catalogue()]


def test_every_experiment_is_a_row_of_its_chapters_page():
  for chapter in _names.chapters():
    rows = [shlex.split(row.where) for row in _names.read_methods(_names.page_of(chapter), chapter)]
    shown = {row[2] for row in rows if row[0] == "python"}
    assert shown == {f"experiments.{name}" for name, _ in catalogue() if name.startswith(f"{chapter}.")}
    for row in rows:
      if row[0] != "python":
        importlib.import_module(row[0])


def test_every_flag_of_every_experiment_says_what_it_is():
  for name, _ in catalogue():
    for item, _, metadata in config_fields(importlib.import_module(f"experiments.{name}").Config):
      assert metadata.get("help"), f"{name}: --{item.name}"
