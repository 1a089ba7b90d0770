"""The README's promises that a machine can check."""

import re
from pathlib import Path

from experiments import catalogue

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_readmes_test_command():
  command = re.search(r"^(pip install .* && python -m pytest)$", README, re.MULTILINE).group(1)
  assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_example_is_the_tested_file_and_short():
  example = re.search(r"## An experiment of your own.*?```python\n(.*?)```", README, re.DOTALL).group(1)
  file = (ROOT / "tests" / "softmax_regression.py").read_text()
  code = lambda text: [line for line in text.splitlines() if line.strip()]
  assert code(example) == code(file)
  # The imports apart: what one has to write.
  assert len([line for line in code(example) if not line.startswith(("import", "from", '"""'))]) < 40


def test_every_experiment_is_in_the_readme():
  for name, summary in catalogue():
    assert f"experiments.{name}" in README and summary


def test_every_picture_is_there():
  for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
    assert (ROOT / path).stat().st_size > 1000
