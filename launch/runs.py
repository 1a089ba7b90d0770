"""What many runs have left in their work directories; those that differ only in their seed are one group."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlnotes.errors import InputError
from mlnotes.flags import config_fields
from mlnotes.loop import LoopConfig
from mlnotes.record import read_metrics

PICTURES = (".png", ".gif", ".jpg", ".jpeg")
# Metrics that are better the lower they are, for experiments whose result card does not say.
_LOWER_IS_BETTER = ("loss", "error", "bits_per_dim", "distance", "divergence", "perplexity", "regret", "gap")


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
  called train/<name>. `best` is (metric, "min" or "max") where the card says it.
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

  @property
  def seeds(self) -> list[int]:
    first = self.config.get("seed", 0)
    return list(range(first, first + self.config.get("seeds", 1)))


@functools.cache
def free_settings() -> frozenset[str]:
  """Settings that change no number of a run, and those that say which seeds it has."""
  return frozenset(item.name for item, _, info in config_fields(LoopConfig) if info.get("free")) | {"seed", "seeds"}


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


def _load_json(path: Path) -> dict[str, Any]:
  value = json.loads(path.read_text(encoding="utf-8"))
  if not isinstance(value, dict):
    raise ValueError("not an object")
  return value


def read_run(directory: Path, problems: list[str]) -> Run:
  """One work directory. What is wrong with the files that a run can do without is added to `problems`.

  Raises InputError where config.json is not that of a run.
  """
  try:
    saved = _load_json(directory / "config.json")
    experiment, config = saved["experiment"], saved["config"]
    if not isinstance(experiment, str) or not isinstance(config, dict):
      raise ValueError("other types than expected")
    if not all(isinstance(config.get(name, 1), int) for name in ("seed", "seeds")):
      raise ValueError("seeds that are no numbers")
  except (OSError, ValueError, KeyError) as error:
    raise InputError(f"{directory / 'config.json'} is not that of a run ({_reason(error)}): skipped.") from error
  curves, step = _read_curves(directory, problems)
  card = _read_card(directory, problems)
  timing = card.get("timing")
  best = (card["best_metric"], card["best_mode"]) if "best_metric" in card and "best_mode" in card else None
  folders = [directory, *sorted(d for d in directory.glob("seed_*") if d.is_dir())]
  return Run(
    directory=directory,
    experiment=experiment,
    config=config,
    finished=bool(card.get("finished")),
    step=int(card.get("steps") or step),
    final=_final_values(curves, card, directory, problems),
    curves=curves,
    wall_seconds=timing.get("wall_seconds") if isinstance(timing, dict) else None,
    device=str(card.get("device", "")),
    command=str(card.get("command", "")),
    pictures=[p for d in folders for p in sorted(d.iterdir()) if p.suffix.lower() in PICTURES and p.is_file()],
    best=best,
  )


def _reason(error: Exception) -> str:
  if isinstance(error, OSError):
    return error.strerror or type(error).__name__
  return f"no {error}" if isinstance(error, KeyError) else str(error)


def _read_card(directory: Path, problems: list[str]) -> dict[str, Any]:
  path = directory / "result.json"
  try:
    return _load_json(path)
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    problems.append(f"{path} cannot be read ({_reason(error)}): the run counts as unfinished.")
    return {}


def _final_values(curves, card, directory, problems) -> dict[str, list[float]]:
  final = {}
  for name, curve in curves.items():
    split, _, metric = name.partition("/")
    final[metric if split == "eval" else name] = [row[np.isfinite(row)][-1:].tolist() for row in curve.values]
  final = {name: [value for seed in rows for value in seed] for name, rows in final.items()}
  try:
    for name, summary in (card.get("metrics") or {}).items():
      final[name] = [float(v) for v in summary["seeds"] if v is not None]
  except (AttributeError, KeyError, TypeError, ValueError):
    problems.append(f"{directory / 'result.json'} holds no figures that can be read: those of metrics.jsonl count.")
  return {name: values for name, values in final.items() if values}


def _read_curves(directory: Path, problems: list[str]) -> tuple[dict[str, Curve], int]:
  """({"train/loss": Curve, ..}, last update that was logged)."""
  path = directory / "metrics.jsonl"
  try:
    lines = read_metrics(path)
    points: dict[str, list[tuple[int, list[float]]]] = {}
    for line in lines:
      for name, value in line.items():
        if name.startswith(("train/", "eval/")) and name.count("/") == 1 and value is not None:
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
  def final(self) -> dict[str, tuple[float, float, int]]:
    """{metric: (mean, sample standard deviation, number of seeds)}, of the finished runs where there are any."""
    counted = [run for run in self.runs if run.finished] or self.runs
    values: dict[str, list[float]] = {}
    for run in counted:
      for name, found in run.final.items():
        values.setdefault(name, []).extend(found)
    # Of equal numbers the computed deviation need not be 0.
    spread = lambda v: float(np.std(v, ddof=1)) if len(set(v)) > 1 else 0.0
    return {name: (float(np.mean(v)), spread(v), len(v)) for name, v in values.items()}

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
  """(groups, one sentence about each run that repeats the seeds of another). Of two such runs the longer one counts."""
  found: dict[str, list[Run]] = {}
  for run in runs:
    settings = {name: value for name, value in run.config.items() if name not in free_settings()}
    found.setdefault(json.dumps([run.experiment, settings], sort_keys=True), []).append(run)
  groups, problems = [], []
  for key, members in found.items():
    experiment, settings = json.loads(key)
    kept: list[Run] = []
    for run in sorted(members, key=lambda run: (not run.finished, -run.step)):
      twice = [other for other in kept if set(other.seeds) & set(run.seeds)]
      if twice:
        problems.append(f"{run.directory} repeats seeds of {twice[0].directory}: left out.")
      else:
        kept.append(run)
    groups.append(Group(experiment, settings, sorted(kept, key=lambda run: run.seeds)))
  return groups, problems


def split_settings(groups: Sequence[Group]) -> tuple[dict[str, Any], list[str]]:
  """(settings that all groups share, names of the others) of groups of one experiment."""
  names = dict.fromkeys(name for group in groups for name in group.settings)
  missing = object()
  differ = [n for n in names if any(g.settings.get(n, missing) != groups[0].settings.get(n, missing) for g in groups)]
  return {name: groups[0].settings[name] for name in names if name not in differ}, differ


def choose_metric(groups: Sequence[Group]) -> tuple[str, str]:
  """(metric, "min" or "max") that most groups are judged by."""
  votes: dict[tuple[str, str], int] = {}
  for group in groups:
    for best in dict.fromkeys(run.best for run in group.runs if run.best):
      if best[0] in group.final:
        votes[best] = votes.get(best, 0) + 1
  if votes:
    return max(votes, key=votes.get)
  counts = {name: sum(name in group.final for group in groups) for group in groups for name in group.final}
  if not counts:
    return "loss", "min"
  name = max(counts, key=lambda name: (counts[name], not name.startswith("train/"), name == "loss"))
  return name, guess_mode(name)


def guess_mode(metric: str) -> str:
  return "min" if any(word in metric for word in _LOWER_IS_BETTER) else "max"


def find_mode(groups: Sequence[Group], metric: str) -> str:
  """Which way `metric` is better: as a result card says, or by its name."""
  stated = [run.best[1] for group in groups for run in group.runs if run.best and run.best[0] == metric]
  return stated[0] if stated else guess_mode(metric)


def rank(groups: Iterable[Group], metric: str, mode: str) -> list[Group]:
  """Best first, of equals the finished and the one with more seeds; without the metric, or with NaN, last."""
  sign = 1 if mode == "min" else -1

  def key(group: Group):
    mean = group.final.get(metric, (np.nan,))[0]
    known = bool(np.isfinite(mean))
    return (not known, sign * mean if known else 0.0, not group.finished, -len(group.seeds))

  return sorted(groups, key=key)
