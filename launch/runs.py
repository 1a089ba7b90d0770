"""What many runs have left in their work directories; those that differ only in their seed are one group."""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import import_experiment
from mlnotes.data.flags import DataConfig
from mlnotes.engine.errors import InputError
from mlnotes.engine.loop import LoopConfig
from mlnotes.engine.record import free_fields, read_json, read_metrics
from mlnotes.engine.summary import Summary, order_key, over_seeds

PICTURES = (".png", ".gif", ".jpg", ".jpeg")
# Metrics that are better the lower they are, for those that no run is judged by.
_LOWER_IS_BETTER = ("loss", "error", "bits_per_dim", "distance", "divergence", "perplexity", "regret", "gap")

# Settings that say what is to be learned: figures for different values of one of them are not compared.
_TASK = ("env", "tasks", "dataset", "train_split", "test_split", "ways", "shots")
_MOST_SEEDS = 2**16  # as many as a run can have


class Curve(NamedTuple):
  """A metric over updates: one row of `values` per seed, NaN where a seed has none."""

  steps: np.ndarray
  values: np.ndarray

  @property
  def mean(self) -> np.ndarray:
    return _mean(self.values)

  @property
  def std(self) -> np.ndarray:
    """The sample standard deviation over seeds; 0 where there is one."""
    count = np.sum(np.isfinite(self.values), axis=0)
    return np.where(count > 1, np.sqrt(_mean((self.values - self.mean) ** 2) * count / np.maximum(count - 1, 1)), 0.0)


def _mean(values: np.ndarray) -> np.ndarray:
  """Over seeds, those with a finite value; NaN where there is none."""
  finite = np.isfinite(values)
  count = finite.sum(axis=0)
  return np.where(count > 0, np.where(finite, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


@dataclasses.dataclass(frozen=True)
class Run:
  """One work directory.

  `final` holds per metric one value per seed: of the result card, or the last that was logged; training metrics are
  called train/<name>. `best` is (metric, "min" or "max") where the run says what it is judged by, `split` the part of
  the data that it was measured on, `revision` the commit of the code, with a + where files had been changed; "" where
  these are unknown.
  """

  directory: Path
  experiment: str
  config: Mapping[str, Any]
  finished: bool
  step: int
  final: Mapping[str, Sequence[float]]
  curves: Mapping[str, Curve]
  wall_seconds: float | None
  device: str
  command: str
  pictures: Sequence[Path]
  best: tuple[str, str] | None
  split: str = ""
  revision: str = ""

  @property
  def seeds(self) -> list[int]:
    first = self.config.get("seed", 0)
    return list(range(first, first + self.config.get("seeds", 1)))


@functools.cache
def free_settings(experiment: str) -> frozenset[str]:
  """Settings of an experiment that change no number of a run, and those that say which seeds it has."""
  classes = [LoopConfig, DataConfig]
  with contextlib.suppress(InputError):  # of one that is not here: what all have in common must do
    classes.append(import_experiment(experiment).Config)
  return frozenset({"seed", "seeds"}.union(*(free_fields(known, True, "pictures") for known in classes)))


# -- reading ---------------------------------------------------------------------------------------------------------


def find_runs(directories: Iterable[str]) -> tuple[list[Run], list[str]]:
  """(runs found in the directories and below, one sentence about each that could not be read).

  Raises InputError for a directory that does not exist, and where there is no run at all.
  """
  paths, problems = {}, []
  directories = list(directories)
  for name in directories:
    root = Path(name).expanduser()
    if not root.is_dir():
      raise InputError(f"found {name}, which is not a directory: expected work directories, or directories of them.")
    for where, below, files in os.walk(root):
      below[:] = sorted(d for d in below if d not in ("checkpoints", "tensorboard") and not d.startswith("."))
      if "config.json" in files:
        paths.setdefault(Path(where).resolve(), Path(where))
      elif "metrics.jsonl" in files or "result.json" in files:
        problems.append(f"{where} has no config.json: skipped.")
  runs = []
  for path in paths.values():
    try:
      runs.append(read_run(path, problems))
    except InputError as error:
      problems.append(str(error))
  if not runs:
    reasons = f" ({problems[0]})" if problems else ""
    raise InputError(f"found no run in {', '.join(directories)}{reasons}: expected directories with a config.json.")
  return runs, problems


def read_run(directory: Path, problems: list[str]) -> Run:
  """One work directory. What is wrong with the files that a run can do without is added to `problems`.

  Raises InputError where config.json is not that of a run.
  """
  try:
    saved = read_json(directory / "config.json")
    experiment, config = saved["experiment"], saved["config"]
    if not isinstance(experiment, str) or not isinstance(config, dict):
      raise ValueError("other types than expected")
    if not all(type(config.get(name, 1)) is int for name in ("seed", "seeds")):
      raise ValueError("seeds that are no numbers")
    if not 1 <= config.get("seeds", 1) <= _MOST_SEEDS:
      raise ValueError(f"{config['seeds']} seeds")
  except (OSError, ValueError, KeyError) as error:
    raise InputError(f"{directory / 'config.json'} is not that of a run ({_reason(error)}): skipped.") from error
  curves, step = _read_curves(directory, problems)
  card = _read_card(directory, problems)
  # Before there is a card, config.json has it.
  best = next((b for b in map(_read_best, (card, saved)) if b), None)
  revision = _text(card, "revision")[:10]
  return Run(
    directory=directory,
    experiment=experiment,
    config=config,
    finished=bool(card.get("finished")),
    step=int(_number(card.get("steps")) or step),
    final=_final_values(curves, card, directory, problems),
    curves=curves,
    wall_seconds=_number(card["timing"].get("wall_seconds")) if isinstance(card.get("timing"), dict) else None,
    device=_text(card, "device"),
    command=_text(card, "command"),
    pictures=_find_pictures(directory),
    best=best,
    split=_text(card, "best_split"),
    revision=revision + ("+" if revision and card.get("clean") is False else ""),
  )


def _read_best(saved: Mapping[str, Any]) -> tuple[str, str] | None:
  metric, mode = _text(saved, "best_metric"), _text(saved, "best_mode")
  return (metric, mode) if metric and mode in ("min", "max") else None


def _text(card: Mapping[str, Any], name: str) -> str:
  return card[name] if isinstance(card.get(name), str) else ""


def _number(value: Any) -> float | None:
  real = isinstance(value, (int, float)) and not isinstance(value, bool)
  return float(value) if real and abs(value) < 1e300 else None


def _find_pictures(directory: Path) -> list[Path]:
  folders = [directory, *sorted(d for d in directory.glob("seed_*") if d.is_dir())]
  try:
    return [p for d in folders for p in sorted(d.iterdir()) if p.suffix.lower() in PICTURES and p.is_file()]
  except OSError:
    return []


def _reason(error: Exception) -> str:
  if isinstance(error, OSError):
    return error.strerror or type(error).__name__
  return f"no {error}" if isinstance(error, KeyError) else str(error)


def _read_card(directory: Path, problems: list[str]) -> dict[str, Any]:
  path = directory / "result.json"
  try:
    return read_json(path)
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    problems.append(f"{path} cannot be read ({_reason(error)}): the run counts as unfinished.")
    return {}


def _final_values(curves, card, directory, problems) -> dict[str, list[float]]:
  """One value per seed, NaN for one that diverged."""
  final = {}
  for name, curve in curves.items():
    split, _, metric = name.partition("/")
    if split == "eval":
      final[metric] = curve.values[:, -1].tolist()
    else:  # not every update has one, such as the return of the episodes that ended in it
      final[name] = [next(iter(row[np.isfinite(row)][::-1].tolist()), np.nan) for row in curve.values]
  try:
    for name, figure in (card.get("metrics") or {}).items():
      final[name] = [np.nan if v is None else float(v) for v in figure["seeds"]]
  except (AttributeError, KeyError, TypeError, ValueError):
    problems.append(f"{directory / 'result.json'} holds no figures that can be read: those of metrics.jsonl count.")
  return {name: values for name, values in final.items() if values}


def _read_curves(directory: Path, problems: list[str]) -> tuple[dict[str, Curve], int]:
  """({"train/loss": Curve, ..}, last update that was logged)."""
  path = directory / "metrics.jsonl"
  try:
    lines = read_metrics(path, strict=True)
    points: dict[str, list[tuple[int, list[float]]]] = {}
    for line in lines:
      for name, value in line.items():
        if name.startswith(("train/", "eval/")) and name.count("/") == 1:
          values = line.get(f"{name}/seeds") or [value]
          points.setdefault(name, []).append((int(line["step"]), [np.nan if v is None else float(v) for v in values]))
    curves = {
      name: Curve(np.array([s for s, _ in found]), np.array([v for _, v in found], np.float64).T)
      for name, found in points.items()
    }
    return curves, int(lines[-1]["step"]) if lines else 0
  except OSError as error:
    problems.append(f"{path} cannot be read ({_reason(error)}): no curves of this run.")
  except (ValueError, TypeError, KeyError, AttributeError):
    problems.append(f"{path} is damaged, its lines are not those of a run: no curves of this run.")
  return {}, 0


# -- groups ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs of one experiment with the same settings but for the seed. `settings` are those without the seeds."""

  experiment: str
  settings: Mapping[str, Any]
  runs: Sequence[Run]

  @property
  def finished(self) -> bool:
    return all(run.finished for run in self.runs)

  @property
  def seeds(self) -> list[int]:
    return sorted(seed for run in self.runs for seed in run.seeds)

  @functools.cached_property
  def final(self) -> dict[str, Summary]:
    """Of the finished runs where there are any."""
    counted = [run for run in self.runs if run.finished] or self.runs
    values: dict[str, list[float]] = {}
    for run in counted:
      for name, found in run.final.items():
        values.setdefault(name, []).extend(found)
    return {name: over_seeds(found) for name, found in values.items()}

  @property
  def task(self) -> str:
    """What was to be learned: figures of different tasks are not compared."""
    chapter = self.experiment.partition(".")[0]
    return " ".join([chapter, *(f"{name}={self.settings[name]}" for name in _TASK if name in self.settings)])

  @property
  def split(self) -> str:
    """The part of the data that the runs were judged on; "" where it is unknown or not the same."""
    return self.runs[0].split if len({run.split for run in self.runs}) == 1 else ""

  @functools.cached_property
  def curves(self) -> dict[str, Curve]:
    names = {name: None for run in self.runs for name in run.curves}
    return {name: join_curves([run.curves[name] for run in self.runs if name in run.curves]) for name in names}

  @property
  def wall_seconds(self) -> float | None:
    """Of one run, on average."""
    known = [run.wall_seconds for run in self.runs if run.wall_seconds is not None]
    return float(np.mean(known)) if known else None

  @property
  def devices(self) -> str:
    # The card's text goes on with the number of seeds.
    return ", ".join(dict.fromkeys(run.device.partition(", ")[0] for run in self.runs if run.device))

  @property
  def state(self) -> str:
    """ "finished", or how many of the runs are and how far the others have come."""
    done = sum(run.finished for run in self.runs)
    if done == len(self.runs):
      return "finished"
    steps = [run.step for run in self.runs if not run.finished]
    share = "" if len(self.runs) == 1 else f"{done} of {len(self.runs)} finished, "
    return f"{share}at update {min(steps)}"


def join_curves(curves: Sequence[Curve]) -> Curve:
  """The seeds of several runs together, over all the updates at which any of them logged."""
  steps = np.unique(np.concatenate([curve.steps for curve in curves]))
  values = np.full((sum(len(curve.values) for curve in curves), len(steps)), np.nan)
  row = 0
  for curve in curves:
    values[row : row + len(curve.values), np.searchsorted(steps, curve.steps)] = curve.values
    row += len(curve.values)
  return Curve(steps, values)


def group_runs(runs: Iterable[Run]) -> tuple[list[Group], list[str]]:
  """(groups, one sentence about each run that repeats the seeds of another). Of two such runs the longer one counts.

  Runs of different revisions of the code are different groups. Where a revision is known, it is among the settings.
  """
  found: dict[str, list[Run]] = {}
  for run in runs:
    free = free_settings(run.experiment)
    settings = {name: value for name, value in run.config.items() if name not in free}
    found.setdefault(json.dumps([run.experiment, settings], sort_keys=True), []).append(run)
  groups, problems = [], []
  for key, alike in found.items():
    experiment, settings = json.loads(key)
    revisions = sorted({run.revision for run in alike if run.revision})
    # A run on its way has no card yet: it belongs to the others where these are of one revision.
    own = lambda run: run.revision or (revisions[0] if len(revisions) == 1 else "")  # noqa: B023
    for revision in sorted({own(run) for run in alike}):
      members = [run for run in alike if own(run) == revision]
      kept: list[Run] = []
      for run in sorted(members, key=lambda run: (not run.finished, -run.step)):
        twice = [other for other in kept if set(other.seeds) & set(run.seeds)]
        if twice:
          problems.append(f"{run.directory} repeats seeds of {twice[0].directory}: left out.")
        else:
          kept.append(run)
      named = {**settings, "revision": revision} if revision else settings
      groups.append(Group(experiment, named, sorted(kept, key=lambda run: run.seeds)))
  return groups, problems


def by_task(groups: Iterable[Group]) -> dict[str, list[Group]]:
  """The groups of each task, in their order."""
  found: dict[str, list[Group]] = {}
  for group in groups:
    found.setdefault(group.task, []).append(group)
  return found


def split_settings(groups: Sequence[Group]) -> tuple[dict[str, Any], list[str]]:
  """(settings that all groups share, names of the others) of groups of one experiment."""
  names = dict.fromkeys(name for group in groups for name in group.settings)
  missing = object()
  differ = [n for n in names if any(g.settings.get(n, missing) != groups[0].settings.get(n, missing) for g in groups)]
  return {name: groups[0].settings[name] for name in names if name not in differ}, differ


def choose_metric(groups: Sequence[Group]) -> tuple[str, str]:
  """(metric, "min" or "max") that most groups are judged by.

  Where none says by which: the one that most of them have, in no order (""), for a guess may rank the worst first.
  """
  votes: dict[tuple[str, str], int] = {}
  for group in groups:
    for best in dict.fromkeys(run.best for run in group.runs if run.best):
      if best[0] in group.final:
        votes[best] = votes.get(best, 0) + 1
  if votes:
    return max(votes, key=votes.get)
  counts = {name: sum(name in group.final for group in groups) for group in groups for name in group.final}
  if not counts:
    return "loss", ""
  return max(counts, key=lambda name: (counts[name], not name.startswith("train/"), name == "loss")), ""


def guess_mode(metric: str) -> str:
  return "min" if any(word in metric for word in _LOWER_IS_BETTER) else "max"


def find_mode(groups: Sequence[Group], metric: str) -> str:
  """Which way `metric`, which somebody has asked for, is better: as a run says, or by its name."""
  stated = [run.best[1] for group in groups for run in group.runs if run.best and run.best[0] == metric]
  return stated[0] if stated else guess_mode(metric)


def rank(groups: Iterable[Group], metric: str, mode: str) -> list[Group]:
  """Best first, of equals the finished and the one with more seeds; what lost seeds after all that lost fewer.

  Without the metric, or where no seed is finite: last. Where it is not known which way is better ("") as they were.
  """
  if not mode:
    return list(groups)
  return sorted(groups, key=lambda g: (*order_key(g.final.get(metric), mode), not g.finished, -len(g.seeds)))


def judge(groups: Sequence[Group], metric: str, mode: str) -> tuple[str, str]:
  """(`metric`, `mode`) for groups of which one has it; for others what they were judged by."""
  return (metric, mode) if any(metric in group.final for group in groups) else choose_metric(groups)


def choose_best(groups: Iterable[Group], metric: str, mode: str) -> dict[str, tuple[Group, str, str]]:
  """{task: (its best group, the metric that says so, "min" or "max")}, as `judge` has it; none where it is unknown."""
  found = {}
  for task, own in by_task(groups).items():
    name, way = judge(own, metric, mode)
    first = rank(own, name, way)[0]
    if way and name in first.final and first.final[name].finite:
      found[task] = (first, name, way)
  return found
