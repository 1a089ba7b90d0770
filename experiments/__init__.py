"""One thin entrypoint per method: `python -m experiments.<chapter>.<method>`; `python -m experiments` lists them."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from mlnotes.errors import InputError, nearest


def catalogue() -> Iterator[tuple[str, str]]:
  """("<chapter>.<method>", first line of its docstring) of every experiment, without importing any."""
  for module in sorted(pkgutil.walk_packages(__path__, "experiments."), key=lambda m: m.name):
    if module.ispkg or module.name.endswith("__main__"):
      continue
    source = Path(find_spec(module.name).origin).read_text(encoding="utf-8")
    summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    yield module.name.removeprefix("experiments."), summary


def import_experiment(name: str) -> ModuleType:
  """The module of the experiment `<chapter>.<method>`.

  Raises InputError for a name that is not in the catalogue, with the nearest that is.
  """
  names = [known for known, _ in catalogue()]
  if name not in names:
    hint = nearest(name, names, "expected one that `python -m experiments` lists.")
    raise InputError(f"--experiment={name} is not an experiment: {hint}")
  return importlib.import_module(f"experiments.{name}")
