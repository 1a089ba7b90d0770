"""The README's promises that a machine can check."""

import re
import shlex
from pathlib import Path

import pytest

from experiments import catalogue
from launch.plan import make_runs, parse_grid
from mlnotes.engine.flags import read

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README.partition("## Building blocks")[2].partition("\n## ")[0], re.DOTALL)
# What a test can wait for: less of the same.
SMALLER = {
  "schedule, (16, 32, 32, 3)": "schedule, (2, 8, 8, 3)",
  "make_timesteps(1000, 50)": "make_timesteps(1000, 2)",
  "length=500": "length=5",
}
CODE = lambda text: [line for line in text.splitlines() if line.strip()]


def test_ci_runs_the_readmes_test_command():
  command = re.search(r"^(pip install .* && python -m pytest)$", README, re.MULTILINE).group(1)
  assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_examples_are_the_tested_files_and_short():
  own = README.partition("## An experiment of your own")[2]
  softmax, diabetes = re.findall(r"```python\n(.*?)```", own, re.DOTALL)
  assert CODE(softmax) == CODE((ROOT / "tests" / "softmax_regression.py").read_text())
  # The imports apart: what one has to write.
  assert len([line for line in CODE(softmax) if not line.startswith(("import", "from", '"""'))]) <= 40
  table = (ROOT / "tests" / "diabetes_regression.py").read_text()
  assert diabetes.strip() in table and len(CODE(diabetes)) <= 16


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_building_block_runs_when_pasted_alone(number):
  """In a namespace of its own, on smaller sizes."""
  text = BLOCKS[number]
  for size, smaller in SMALLER.items():
    text = text.replace(size, smaller)
  exec(compile(text, f"building block {number}", "exec"), {"__name__": "__main__"})


def test_the_commands_for_an_experiment_of_ones_own_are_commands(tmp_path, monkeypatch):
  """Parsed and planned as they stand; that such a file is swept and measured is tested in test_own_experiment."""
  from launch import bench, sweep

  monkeypatch.chdir(ROOT / "tests")
  own = README.partition("## An experiment of your own")[2]
  lines = re.search(r"```bash\n(.*?)```", own, re.DOTALL).group(1).splitlines()
  commands = {line.split()[2]: shlex.split(line)[3:] for line in lines}
  values = read(sweep.Config, commands["launch.sweep"], "launch.sweep")
  runs = make_runs(values["experiment"].value, "", parse_grid(values["grid"].value), tmp_path)
  assert len(runs) == 8 and runs[0].directory.parent == tmp_path / "softmax_regression"
  (name,) = bench.named_experiments(commands["launch.bench"])
  assert bench.parse_flags(name, commands["launch.bench"]).batch_size == 64


def test_every_experiment_is_in_the_readme():
  for name, summary in catalogue():
    assert f"experiments.{name}" in README and summary


def test_every_picture_is_there():
  for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
    assert (ROOT / path).stat().st_size > 1000


def test_every_local_link_is_there():
  for path in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#:]+)\)", README):
    assert (ROOT / path).exists(), path


def test_no_command_installs_a_strangers_package():
  for path in (ROOT / "README.md", *ROOT.glob("mlnotes/**/*.py"), *ROOT.glob(".github/*.md")):
    assert not re.search(r"pip install[^`\n]*['\" ]mlnotes(?!-jax)", path.read_text()), path
