"""One thin entrypoint per method: `python -m experiments.<chapter>.<method>`; `python -m experiments` lists them."""

import ast
import pkgutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path


def catalogue() -> Iterator[tuple[str, str]]:
  """("<chapter>.<method>", first line of its docstring) of every experiment, without importing any."""
  for module in sorted(pkgutil.walk_packages(__path__, "experiments."), key=lambda m: m.name):
    if module.ispkg or module.name.endswith("__main__"):
      continue
    source = Path(find_spec(module.name).origin).read_text()
    summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    yield module.name.removeprefix("experiments."), summary
