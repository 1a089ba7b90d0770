"""Which runs of a sweep can be rows of one program: those whose programs are the same and only start differently.

A field of a config is a number of the state where changing it leaves the compiled update, the compiled evaluation and
the rest of the first state as they were, and puts its value into `state.hparams` or the optimizer's hyper-parameters.
That is found by lowering the programs and comparing them, not by names: a weight decay of 0, which leaves the decay out
of the program, is told from one of 0.1. The report of such runs is that of the first: it reads the state.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from launch.plan import Run, fields_of
from mlnotes.data import StreamFeed
from mlnotes.engine.experiment import is_hparam, root_key
from mlnotes.engine.loop import LoopConfig
from mlnotes.engine.program import Program, make_mesh

# How many values of a field are looked at besides the first: the ends, zero, and some between.
MOST_VALUES = 5


class Group(NamedTuple):
  """Runs for one program; `state` says for each of them where the state holds which number."""

  runs: tuple[Run, ...]
  state: tuple[Mapping[str, float], ...]


class _Facts(NamedTuple):
  program: str
  start: str
  held: Mapping[str, float]


def _examine(run: Run, config: Any) -> _Facts | None:
  """The program of a config, its first state without the hyper-parameters, and those; None where data is streamed."""
  module = run.module
  feeds = module.make_feeds(config)
  if isinstance(feeds.train, StreamFeed):
    return None
  experiment = module.make(config)

  def leaves(key, hparams: bool):
    state = experiment.init(key, feeds.train.draw(feeds.train.arrays, key, 0))
    found, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in found if is_hparam(path) == hparams}

  key = root_key(config.seed)
  start = jax.jit(leaves, static_argnums=1).lower(key, False).as_text()
  held = jax.jit(leaves, static_argnums=1)(key, True)
  digest = lambda text: hashlib.sha256(text.encode()).hexdigest()
  scalars = {path: float(leaf) for path, leaf in held.items() if leaf.ndim == 0}
  return _Facts(digest(Program(experiment, feeds, [0], make_mesh(1)).lower()), digest(start), scalars)


def _paths(one: _Facts, other: _Facts | None, value: float, other_value: float) -> list[str]:
  """Where the state holds what differs between two values of a field; [] where more differs than that."""
  if other is None or (one.program, one.start, one.held.keys()) != (other.program, other.start, other.held.keys()):
    return []
  differ = [path for path in one.held if one.held[path] != other.held[path]]
  right = all((one.held[p], other.held[p]) == (np.float32(value), np.float32(other_value)) for p in differ)
  return differ if right else []


def _typical(values: Sequence[float]) -> list[float]:
  """The ends, zero and some between of sorted values: where a program changes its shape, one of them tells."""
  if len(values) <= MOST_VALUES:
    return list(values)
  chosen = {values[round(i)] for i in np.linspace(0, len(values) - 1, MOST_VALUES)}
  return sorted(chosen | ({0.0} & set(values)))


def _find_held(runs: Sequence[Run], fields: Sequence[str]) -> dict[str, list[str]]:
  """{field: where the state holds it} of those `fields` that are numbers of the state for all `runs`."""
  base = runs[0].config
  first = _examine(runs[0], base) if fields else None
  held = {}
  for name in fields if first is not None else ():
    own = getattr(base, name)
    values = sorted({getattr(run.config, name) for run in runs} - {own})
    places = [
      _paths(first, _examine(runs[0], dataclasses.replace(base, **{name: value})), own, value)
      for value in _typical(values)
    ]
    if places and places[0] and all(place == places[0] for place in places):
      held[name] = places[0]
  return held


def _shape(run: Run) -> str:
  """The same text for runs whose programs may be the same: all settings but seeds and real numbers."""
  module = run.module
  if not (isinstance(run.config, LoopConfig) and hasattr(module, "make") and hasattr(module, "make_feeds")):
    return str(run.directory)
  fixed = {name: v for name, v in fields_of(run).items() if name != "seed" and not isinstance(v, float)}
  return json.dumps([run.experiment, fixed], sort_keys=True)


def _varied(runs: Sequence[Run], kind: type = object) -> list[str]:
  """The fields, of one kind, that differ between runs of an experiment."""
  values = [fields_of(run) for run in runs]
  return [n for n, first in values[0].items() if isinstance(first, kind) and any(v[n] != first for v in values)]


def _bucket(runs: Sequence[Run], key: Callable[[Run], Any]) -> list[list[Run]]:
  buckets = {}
  for run in runs:
    buckets.setdefault(key(run), []).append(run)
  return list(buckets.values())


def group_runs(runs: Sequence[Run], most: int) -> tuple[list[Group], list[str]]:
  """(groups of at most `most` rows, the varied flags that need a program for each of their values).

  Raises InputError as the experiments' `make` and `make_feeds` do.
  """
  groups, apart = [], set()
  for alike in _bucket(runs, _shape):
    numbers = _varied(alike, float)
    held = _find_held(alike, numbers)
    outside = [name for name in numbers if name not in held]
    size = max(1, most // getattr(alike[0].config, "seeds", 1))
    for rows in _bucket(alike, lambda run: tuple(getattr(run.config, name) for name in outside)):  # noqa: B023
      groups += [_make_group(rows[i : i + size], held) for i in range(0, len(rows), size)]
  for own in _bucket(runs, lambda run: run.experiment):
    together = {name for group in groups if group.runs[0] in own for name in _varied(group.runs)}
    apart |= set(_varied(own)) - together - {"seed"}
  return groups, sorted(apart)


def _make_group(runs: Sequence[Run], held: Mapping[str, Sequence[str]]) -> Group:
  state = [{path: float(getattr(r.config, name)) for name, paths in held.items() for path in paths} for r in runs]
  return Group(tuple(runs), tuple(state))


def rows_text(group: Group) -> tuple[str, str]:
  """(the file that `--rows` reads (`mlnotes.engine.rows`), a digest of the runs, however their command is spelled)."""
  names = _varied(group.runs)
  runs = [
    {
      "workdir": str(run.directory.absolute()),
      "settings": {name: getattr(run.config, name) for name in names},
      "state": state,
      "command": shlex.join(["python", *run.program, *run.flags, f"--workdir={run.directory}"]),
    }
    for run, state in zip(group.runs, group.state)
  ]
  named = {"experiment": group.runs[0].experiment, "runs": runs}
  plain = {**named, "runs": [{name: value for name, value in run.items() if name != "command"} for run in runs]}
  return json.dumps(named, indent=1) + "\n", hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:8]
