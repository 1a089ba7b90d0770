"""The documentation strings of Python's standard library: English prose that every installation has."""

import ast
import functools
import sysconfig
import warnings
from pathlib import Path

# Tests, and what is vendored or generated.
_LEFT_OUT = frozenset(
  {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "__pycache__"}
)
_DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.lru_cache(maxsize=1)
def read_docstrings() -> tuple[str, ...]:
  """A document for each module that has some, in the order of their paths: its strings with a blank line between.

  Some 1.6 million characters, of Python's own licence; they differ between its versions. Takes seconds.
  """
  root = Path(sysconfig.get_paths()["stdlib"])
  found = []
  for path in sorted(root.rglob("*.py")):
    if _LEFT_OUT.isdisjoint(path.relative_to(root).parts) and (text := _strings_of(path)):
      found.append(text)
  return tuple(found)


def _strings_of(path: Path) -> str:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of escapes in strings of the library's own
      tree = ast.parse(path.read_bytes())
  except (SyntaxError, ValueError):
    return ""
  strings = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, _DEFINITIONS))
  return "\n\n".join(text for text in strings if text)
