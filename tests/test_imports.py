"""What importing the packages must not do, each in a fresh process."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
  module.name
  for package in ("mlnotes", "experiments", "launch")
  for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")
  if not module.name.endswith("__main__")
]
HEAVY = (
  *("tensorflow", "tensorflow_datasets", "grain", "matplotlib", "orbax", "sklearn", "torch", "tensorboardX"),
  *("gymnasium", "gymnax", "pygame", "PIL", "tokenizers"),
)


def run_python(code):
  return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_importing_makes_no_array_defines_no_flag_and_stays_light():
  code = f"""
import importlib, sys
from absl import flags
for name in {MODULES!r}:
  importlib.import_module(name)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a backend was started"
ours = ("mlnotes", "experiments", "launch")
defined = [module for module in flags.FLAGS.flags_by_module_dict() if module.startswith(ours)]
assert not defined, defined
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""
  done = run_python(code)
  assert done.returncode == 0, done.stderr


LIGHT = tuple(f"mlnotes.engine.{name}" for name in ("cache", "errors", "experiment", "sharding"))
CHAPTERS = ("attention", "contrastive", "diffusion", "generative", "lm", "meta", "nn", "optim", "rl", "sequence")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_brings_nothing_that_runs_experiments(chapter):
  """No flags, files, pictures or loop; absl itself comes with optax."""
  code = f"""
import sys
import mlnotes.{chapter}
found = [name for name in sys.modules if name.startswith(("mlnotes.engine.", "experiments", "launch"))]
allowed = {LIGHT!r}
assert set(found) <= set(allowed), found
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""
  done = run_python(code)
  assert done.returncode == 0, done.stderr


def test_imports_go_down():
  """`lint-imports` with the floors of pyproject.toml."""
  code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
  done = run_python(code)
  assert done.returncode == 0, done.stdout


def test_a_training_run_imports_no_tensorflow(tmp_path):
  code = f"""
import sys
sys.modules["tensorflow"] = None  # importing it raises
sys.path.insert(0, "tests")
import softmax_regression as experiment
config = experiment.Config(workdir={str(tmp_path / "run")!r}, steps=5, log_every=5)
assert experiment.main(config) == 0
"""
  done = run_python(code)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["-m", "experiments"], ["-m", "experiments.diffusion.ddpm", "--helpshort"]])
def test_help_is_there(arguments):
  done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert "diffusion" in done.stdout
  if arguments[-1] == "--helpshort":
    for flag in ("--workdir", "--learning_rate", "--dataset", "--timesteps", "<epsilon|x0|v>", "default"):
      assert flag in done.stdout
