"""The documentation strings of Python's standard library: English prose that every installation has."""

import ast
import functools
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Tests, and what is vendored or generated.
_LEFT_OUT = frozenset(
  {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "__pycache__"}
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (ast.Module, ast.ClassDef, *_FUNCTIONS)


@functools.lru_cache(maxsize=1)
def read_docstrings() -> tuple[str, ...]:
  """A document for each module that has some, in the order of their paths: its strings with a blank line between.

  Some 1.6 million characters, of Python's own licence; they differ between its versions. Takes seconds.
  """
  return tuple("\n\n".join(text for _, text in strings) for _, strings in _read_modules())


@functools.lru_cache(maxsize=1)
def read_summaries() -> tuple[tuple[tuple[str, str], ...], ...]:
  """(a function as it is called, the first line of its docstring) of each module of `read_docstrings`, in its order.

  Such as ("textwrap.dedent(text)", "Remove any common leading whitespace from every line in `text`."). Of lines that
  are a sentence; functions of a class are called after it; what begins with _ is left out.
  """
  found = []
  for module, strings in _read_modules():
    rows = []
    for node, text in strings:
      name, line = f"{module}.{node.name}", text.strip().partition("\n")[0].strip()
      public = not any(part.startswith("_") for part in name.split("."))
      if isinstance(node.definition, _FUNCTIONS) and public and line.endswith(".") and len(line.split()) > 2:
        rows.append((f"{name}({_arguments(node.definition)})", line))
    found.append(tuple(dict.fromkeys(rows)))
  return tuple(found)


class _Node(NamedTuple):
  definition: ast.AST
  name: str  # within its module


@functools.lru_cache(maxsize=1)
def _read_modules() -> tuple[tuple[str, tuple[tuple[_Node, str], ...]], ...]:
  """(name, its definitions with their docstrings) of each module that has some, in the order of their paths."""
  root = Path(sysconfig.get_paths()["stdlib"])
  found = []
  for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    if _LEFT_OUT.isdisjoint(parts) and (strings := tuple(_strings_of(path))):
      found.append((".".join(part for part in parts if part != "__init__"), strings))
  return tuple(found)


def _strings_of(path: Path) -> Iterator[tuple[_Node, str]]:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of escapes in strings of the library's own
      tree = ast.parse(path.read_bytes())
  except (SyntaxError, ValueError):
    return
  names = {tree: ""}
  for node in ast.walk(tree):  # breadth first: a definition comes behind what it stands in
    for child in ast.iter_child_nodes(node):
      own = f".{child.name}" if isinstance(child, _DEFINITIONS) else ""
      names[child] = names[node] + own
    if isinstance(node, _DEFINITIONS) and (text := ast.get_docstring(node)):
      yield _Node(node, names[node].removeprefix(".")), text


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
  given = [x.arg for x in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
  return ", ".join(name for name in given if name not in ("self", "cls"))
