"""From the text of a sweep to its runs: an experiment, its flags, its config and its work directory each.

Nothing here runs an experiment or writes a file.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
import shlex
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from experiments import command_of, import_experiment
from mlnotes.data import DataError
from mlnotes.engine.errors import InputError
from mlnotes.engine.flags import config_fields, experiment_name, no_flag, parse, read
from mlnotes.engine.record import Record

# A longer name is cut and ends in a hash; file systems allow 255 bytes.
LONGEST_NAME = 150
# What the sweep itself sets.
RESERVED = ("workdir", "rows")

Settings = Mapping[str, str]


class Run(NamedTuple):
  """`settings` are the flags that tell the run from the others, `fixed` those that all have.

  `experiment` is what the run calls itself, `source` what --experiment called it where that is a file or a module.
  """

  experiment: str
  settings: Settings
  fixed: tuple[str, ...]
  directory: Path
  config: Any
  source: str = ""

  @property
  def module(self) -> ModuleType:
    return import_experiment(self.source or self.experiment)

  @property
  def program(self) -> list[str]:
    """What follows `python` on its command line, before the flags."""
    return command_of(self.source or self.experiment)

  @property
  def flags(self) -> list[str]:
    return [*self.fixed, *(f"--{name}={text}" for name, text in self.settings.items())]

  def finished(self) -> bool:
    """Whether its result card is there. Raises InputError where the directory belongs to other settings."""
    return Record(self.directory, self.experiment, self.config, writes=False).finished() is not None


# -- the text ----------------------------------------------------------------------------------------------------------


def split_outside(text: str, separator: str, flag: str) -> list[str]:
  """Parts of `text` at each `separator` outside parentheses and quotes, stripped; parts that are empty are left out.

  Raises InputError about `flag` for a parenthesis or a quote without its partner.
  """
  parts, depth, quote = [""], 0, ""
  for letter in text:
    if quote:
      quote = "" if letter == quote else quote
    elif letter in "'\"":
      quote = letter
    else:
      depth += (letter == "(") - (letter == ")")
      if depth < 0:
        break
      if letter == separator and depth == 0:
        parts.append("")
        continue
    parts[-1] += letter
  if depth or quote:
    raise InputError(f"--{flag} holds {text!r}: expected every parenthesis and quote in pairs.")
  return [part.strip() for part in parts if part.strip()]


def _unwrap(text: str) -> str:
  """A value without the parentheses or quotes around it."""
  return text[1:-1] if len(text) > 1 and (text[0], text[-1]) in (("(", ")"), ("'", "'"), ('"', '"')) else text


def _assignments(flag: str, text: str) -> Iterator[tuple[str, str]]:
  seen = set()
  for part in split_outside(text, ";", flag):
    name, equals, value = part.partition("=")
    name = name.strip().lstrip("-")
    if not (equals and name.isidentifier() and value.strip()):
      raise InputError(f"--{flag} holds {part!r}: expected name=value, and a semicolon between two of them.")
    if name in seen:
      raise InputError(f"--{flag} names {name} twice: expected each flag once.")
    seen.add(name)
    yield name, value.strip()


def parse_grid(text: str) -> list[Settings]:
  """All combinations of `name=v1,v2;other=v1,v2`, the last name fastest. `1..4` is 1,2,3,4; `(1,2)` is one value."""
  axes = []
  for name, values in _assignments("grid", text):
    texts = []
    for value in split_outside(values, ",", "grid"):
      if found := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", value):
        first, last = map(int, found.groups())
        if last < first:
          raise InputError(f"--grid holds {name}={value}: expected the smaller number first.")
        texts += map(str, range(first, last + 1))
      else:
        texts.append(_unwrap(value))
    axes.append([(name, value) for value in texts])
  return [dict(point) for point in itertools.product(*axes)]


_LAWS = {
  "log": lambda rng, low, high: f"{np.exp(rng.uniform(np.log(low), np.log(high))):.4g}",
  "uniform": lambda rng, low, high: f"{rng.uniform(low, high):.4g}",
  "int": lambda rng, low, high: str(rng.integers(int(low), int(high) + 1)),
}


def draw_settings(text: str, draws: int, seed: int) -> list[Settings]:
  """`draws` random settings of `name=log(a,b);other=int(a,b)`. More draws, or other names, leave the first ones alone.

  log: uniform in the logarithm; uniform; int: both ends included; choice(a,b,c). Real numbers have four digits.
  """
  columns = {}
  for name, law in _assignments("random", text):
    found = re.fullmatch(r"(\w+)\s*\((.*)\)", law)
    kind, options = (found.group(1), split_outside(found.group(2), ",", "random")) if found else ("", [])
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if kind == "choice" and options:
      columns[name] = [_unwrap(options[rng.integers(len(options))]) for _ in range(draws)]
      continue
    try:
      low, high = map(float, options)
      valid = kind in _LAWS and low <= high and math.isfinite(high - low) and (kind != "log" or low > 0)
    except ValueError:
      valid = False
    if not valid:
      laws = "log(low,high) with 0 < low <= high, uniform(low,high), int(low,high) or choice(a,b,c)"
      raise InputError(f"--random holds {name}={law}: expected {laws}.")
    columns[name] = [_LAWS[kind](rng, low, high) for _ in range(draws)]
  return [{name: column[i] for name, column in columns.items()} for i in range(draws)]


def read_list(path: Path) -> list[Settings]:
  """The settings of a .json file (a list of objects) or a .jsonl file (an object a line)."""
  where = ""
  try:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
      rows = []
      for number, line in enumerate(text.splitlines(), 1):
        where = f"line {number}: "
        rows += [json.loads(line)] if line.strip() else []
    else:
      rows = json.loads(text)
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or (where and getattr(error, "msg", "")) or error
    raise InputError(f"--list={path} cannot be read ({where}{reason}): expected JSON.") from error
  if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
    raise InputError(f'--list={path} does not hold a list of objects: expected [{{"learning_rate": 0.001}}, ...].')
  return [{name: _json_text(path, name, value) for name, value in row.items()} for row in rows]


def _json_text(path: Path, name: str, value: Any) -> str:
  if isinstance(value, list):
    return ",".join(_json_text(path, name, part) for part in value)
  if isinstance(value, bool):
    return str(value).lower()
  if not isinstance(value, (str, int, float)):
    raise InputError(f"--list={path} has {name}={json.dumps(value)}: expected a number, a text or a list of them.")
  return str(value)


# -- experiments and their flags ---------------------------------------------------------------------------------------


def load_experiment(name: str) -> ModuleType:
  """The module of an experiment. Raises InputError for one that is not there, or that keeps no results."""
  module = import_experiment(name)
  if "workdir" not in {item.name for item, _, _ in config_fields(module.Config)}:
    raise InputError(f"--experiment={name} has no --workdir: expected an experiment that keeps its results in one.")
  return module


def _label(value: Any) -> str:
  if isinstance(value, bool):
    return str(value).lower()
  return "(" + ",".join(map(_label, value)) + ")" if isinstance(value, tuple) else str(value)


def name_run(settings: Mapping[str, Any]) -> str:
  """A directory's name from the values of its settings: readable, and different for different settings."""
  plain = ",".join(f"{name}={_label(value)}" for name, value in settings.items())
  safe = re.sub(r"[^\w.,=+()-]", "_", plain, flags=re.ASCII)
  if safe == plain and len(safe) <= LONGEST_NAME:
    return safe
  return f"{safe[:LONGEST_NAME]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def make_runs(experiments: Sequence[str], fixed: str, settings: Sequence[Settings], workdir: Path) -> list[Run]:
  """Every experiment with all settings, each checked by its Config; the same run twice counts once.

  Raises InputError for the first flag, value or combination that an experiment rejects.
  """
  try:
    fixed_flags = tuple(shlex.split(fixed))
  except ValueError as error:
    raise InputError(f"--fixed={fixed!r} cannot be split ({error}): expected flags as on a command line.") from error
  runs = {}
  for experiment in experiments:
    config_class = load_experiment(experiment).Config
    try:
      given = read(config_class, fixed_flags, experiment)
    except InputError as error:
      raise InputError(f"--fixed={fixed!r}: {error}") from error
    reserved = [name for name in RESERVED if name in given and given[name].present]
    for point in settings:
      for name in [*reserved, *point]:
        if name in RESERVED:
          raise InputError(f"--{name} is set by the sweep for every run: expected it to be left out.")
        if name not in given:
          raise no_flag(experiment, name, given, command=" ".join(["python", *command_of(experiment)]))
        if given[name].present:
          raise InputError(f"--{name} is in --fixed and varied as well: expected one of the two.")
      run = _make_run(experiment, config_class, fixed_flags, point, workdir)
      runs.setdefault(run.directory, run)
  return list(runs.values())


def _make_run(source, config_class, fixed_flags, point: Settings, workdir: Path) -> Run:
  experiment = experiment_name(config_class)
  arguments = [*fixed_flags, *(f"--{name}={text}" for name, text in point.items())]
  values = read(config_class, arguments, source)
  directory = workdir / experiment
  if point:
    directory /= name_run({name: values[name].value for name in point})
  values["workdir"].value, values["workdir"].using_default_value = str(directory), False
  try:
    return Run(experiment, dict(point), fixed_flags, directory, parse(config_class, values), source)
  except InputError as error:
    raise InputError(f"{source}: {error}") from error


def check_makes(runs: Sequence[Run], data_is_here: bool = True) -> None:
  """Raises InputError for what an experiment refuses when it is made, such as an unknown environment.

  Each set of settings that are not numbers is tried once. Where the runs are for other machines, data that is missing
  on this one is no reason.
  """
  tried = set()
  for run in runs:
    made = [
      value for value in fields_of(run).values() if isinstance(value, bool) or not isinstance(value, (int, float))
    ]
    key = (run.experiment, *map(repr, made))
    if key in tried:
      continue
    tried.add(key)
    try:
      if hasattr(run.module, "make"):
        run.module.make(run.config)
    except InputError as error:
      if isinstance(error, DataError) and not data_is_here:
        continue
      raise InputError(f"{run.experiment}: {error}") from error


def combine(*factors: Sequence[Settings]) -> list[Settings]:
  """Every setting of the first factor with every one of the others. Raises InputError for a flag in two of them."""
  combined = [{}]
  for factor in factors:
    for left, right in itertools.product(combined[:1], factor):
      if both := sorted(left.keys() & right.keys()):
        raise InputError(f"--{both[0]} is varied twice: expected it in one of --grid, --list and --random.")
    combined = [{**left, **right} for left, right in itertools.product(combined, factor)]
  return combined


def fields_of(run: Run) -> dict[str, Any]:
  """The settings of a run's config, without its work directory."""
  return {f.name: getattr(run.config, f.name) for f in dataclasses.fields(run.config) if f.name not in RESERVED}
