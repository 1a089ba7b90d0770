"""One thin entrypoint per method: `python -m experiments.<chapter>.<method>`; `python -m experiments` lists them.

What launches experiments takes one's own as well: a module (`my.module`) or a file (`softmax_regression.py`) with
`Config`, `make(config)`, `make_feeds(config)` and `main(config)`.
"""

import ast
import functools
import hashlib
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from mlnotes.engine.errors import InputError, nearest


def catalogue() -> Iterator[tuple[str, str]]:
  """("<chapter>.<method>", first line of its docstring) of every experiment, without importing any."""
  for module in sorted(pkgutil.walk_packages(__path__, "experiments."), key=lambda m: m.name):
    if module.ispkg or module.name.endswith("__main__") or module.name.rpartition(".")[2].startswith("_"):
      continue
    name = module.name.removeprefix("experiments.")
    yield name, docstring_of(name).partition("\n")[0]


@functools.cache
def docstring_of(name: str) -> str:
  """What the experiment `<chapter>.<method>` says of itself, without importing it."""
  source = Path(find_spec(f"experiments.{name}").origin).read_text(encoding="utf-8")
  return ast.get_docstring(ast.parse(source)) or ""


def no_experiment(name: str, flag: str = "", chapters: bool = False) -> InputError:
  """What is to be said of an experiment that is not there; `chapters`: where the name of a chapter would do."""
  names = [known for known, _ in catalogue()]
  names = [*dict.fromkeys(known.partition(".")[0] for known in names if chapters), *names]
  hint = nearest(name, names, "expected one that `python -m experiments` lists, a module or a file of one's own.")
  return InputError(f"{flag}{name} is not an experiment: {hint}")


def import_experiment(name: str) -> ModuleType:
  """The module of the experiment `<chapter>.<method>`, or of one's own: the name of a module or the path of a file.

  Raises InputError for a name that is none of these, with the nearest in the catalogue.
  """
  if not is_file(name) and _is_listed(name):
    return importlib.import_module(f"experiments.{name}")
  module = _import_file(Path(name).expanduser()) if is_file(name) else _import_module(name)
  if module is None:
    raise no_experiment(name, "--experiment=")
  if missing := [part for part in ("Config", "main") if not hasattr(module, part)]:
    raise InputError(f"--experiment={name} has no {' and no '.join(missing)}: expected an experiment's module.")
  return module


def _is_listed(name: str) -> bool:
  # Of one that was imported before, the catalogue need not be read again.
  return hasattr(sys.modules.get(f"experiments.{name}"), "Config") or name in [known for known, _ in catalogue()]


def is_file(name: str) -> bool:
  return name.endswith(".py")


def _import_file(path: Path) -> ModuleType | None:
  if not path.is_file():
    raise InputError(f"--experiment={path} is not there: expected a Python file.")
  path = path.resolve()
  # A name of its own: `numpy.py` must not take numpy's place.
  name = f"_experiment_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
  if name not in sys.modules:
    spec = spec_from_file_location(name, path)
    module = sys.modules[name] = module_from_spec(spec)
    if str(path.parent) not in sys.path:
      sys.path.append(str(path.parent))  # its neighbours, as when it is run
    try:
      spec.loader.exec_module(module)
    except BaseException:
      del sys.modules[name]
      raise
  return sys.modules[name]


def _import_module(name: str) -> ModuleType | None:
  try:
    found = all(part.isidentifier() for part in name.split(".")) and find_spec(name) is not None
  except (ImportError, ValueError):
    found = False
  return importlib.import_module(name) if found else None


def command_of(name: str) -> list[str]:
  """What follows `python` on the command line of an experiment that `import_experiment` finds."""
  if is_file(name):
    return [str(Path(name).expanduser().absolute())]
  return ["-m", f"experiments.{name}" if _is_listed(name) else name]


def _explain_missing_module() -> None:
  """Ends `python -m experiments.rl.pppo` with the nearest that there is, where Python would say that it finds none."""
  arguments = sys.orig_argv[1:]
  name = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""
  place = Path(__file__).parent.joinpath(*name.split(".")[1:])
  if name.startswith("experiments.") and not (place.with_suffix(".py").exists() or (place / "__main__.py").exists()):
    print(f"error: {no_experiment(name.removeprefix('experiments.'), chapters=True)}", file=sys.stderr)
    sys.exit(2)


if sys.argv[:1] == ["-m"]:  # Python is still looking for what it is to run
  _explain_missing_module()
