"""What a run leaves in its work directory: config, metrics, TensorBoard events, curves and the result card."""

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import mlnotes
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import PRNG_IMPL
from mlnotes.engine.flags import config_fields
from mlnotes.engine.hold import Hold
from mlnotes.engine.revision import Revision, find_revision
from mlnotes.engine.summary import format_summary, over_seeds


def write_atomically(path: Path, text: str) -> None:
  """Replaces the file in one step: a reader, or a crash of the machine, never sees half of it."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def to_json(value: Any) -> Any:
  """Arrays as lists, numbers as floats, what is not finite as null."""
  if isinstance(value, Mapping):
    return {str(k): to_json(v) for k, v in value.items()}
  if isinstance(value, np.ndarray):
    return to_json(value.tolist())
  if isinstance(value, (list, tuple)):
    return [to_json(v) for v in value]
  if isinstance(value, (float, np.floating)):
    return float(value) if np.isfinite(value) else None
  return value.item() if isinstance(value, np.generic) else value


def summarize(values: Any) -> dict[str, Any]:
  """A figure as the result card has it: {"mean", "std", "finite", "seeds"}; `mlnotes.engine.summary` has the rule."""
  figure, seeds = over_seeds(values), np.atleast_1d(np.asarray(values, np.float64))
  return {"mean": figure.mean, "std": figure.std, "finite": figure.finite, "seeds": seeds}


def print_metrics(metrics: Mapping[str, Mapping[str, Any]], notes: Mapping[str, str] = {}) -> None:
  """One line per figure of `summarize`: mean, the spread where there are several seeds, and what `notes` say of it."""
  for name, value in metrics.items():
    note = f"  {notes[name]}" if name in notes else ""
    print(f"{name:>32} {format_summary(over_seeds(value['seeds']))}{note}")


def config_dict(config: Any) -> dict[str, Any]:
  """The settings as JSON has them, with the paths of files that are read made absolute."""
  return _absolute(json.loads(json.dumps(dataclasses.asdict(config))))


# What is written, and where: one may call it by another name, from another directory.
_WRITTEN = ("workdir", "rows", "out")


def _absolute(settings: Mapping[str, Any]) -> dict[str, Any]:
  """`settings` with the names of files and directories that are there made absolute: a run may go on from elsewhere."""

  def one(name, value):
    if name in _WRITTEN or not isinstance(value, str) or not (os.sep in value or value.endswith(".npz")):
      return value
    try:
      path = Path(value).expanduser()
      return str(path.absolute()) if path.exists() and not _is_prepared(path) else value
    except (OSError, RuntimeError):
      return value

  return {name: one(name, value) for name, value in settings.items()}


def _is_prepared(path: Path) -> bool:
  """Whether this is a TFDS data set, whose name is relative to --data_dir and may be that of a directory here."""
  return any(path.glob("dataset_info.json")) or any(path.glob("*/dataset_info.json"))


def read_json(path: Path) -> dict[str, Any]:
  """The JSON object in a file. Raises OSError where it cannot be read, ValueError where it is something else."""
  value = json.loads(path.read_text(encoding="utf-8"))
  if not isinstance(value, dict):
    raise ValueError("not a JSON object")
  return value


def free_fields(config_class: type, *kinds: Any) -> set[str]:
  """The names of the fields whose `free` is one of `kinds` (`flags.field`); of any where none is given."""
  found = {item.name: info.get("free", False) for item, _, info in config_fields(config_class)}
  return {name for name, kind in found.items() if (kind in kinds if kinds else kind)}


class Record:
  """The files of one run. Only one process of a job writes; the others hold a Record with `writes=False`.

  Nothing is written before `hold`. Raises InputError where the directory belongs to a run with other settings.
  `judged_by` (metric, "min" or "max") stands beside the settings, for readers of a run that has no result card yet.
  """

  def __init__(
    self,
    directory: Path,
    experiment: str,
    config: Any,
    *,
    writes: bool = True,
    tensorboard: bool = True,
    command: str = "",
    judged_by: tuple[str, str] | None = None,
  ):
    self.directory = directory
    self.command = command or command_line()
    self.experiment = experiment
    self.config = config
    self.writes = writes
    self._judged_by = judged_by
    self._revision = find_revision() if writes else Revision("", None)  # now: the files may change while it trains
    self._tensorboard = tensorboard
    self._metrics_file = None
    self._events = None
    self._hold: Hold | None = None
    self._made: list[Path] = []
    self._wandb = None
    self._notes = self._check_config()

  def hold(self) -> None:
    """Takes the directory for this process until `close`, and leaves config.json in it.

    Raises InputError where another process has it, where it belongs to other settings, where it cannot be written.
    """
    if not self.writes:
      return
    made = [] if self.directory.exists() else [self.directory]
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
      self._hold = Hold(self.directory)
      self._check_config()  # another one may have come and gone
      ours = [self.directory / name for name in ("config.json", "checkpoints", "tensorboard")]
      self._made = made + [path for path in ours if not path.exists()]
      if self.card() is None:
        self.write_config()
    except OSError as error:
      raise InputError(f"--workdir={self.directory} cannot be written: {error.strerror or error}.") from error
    except InputError:
      self.close()
      raise
    for note in self._notes:
      print(f"note: {note}", file=sys.stderr)

  def write_config(self) -> None:
    judged = dict(zip(("best_metric", "best_mode"), self._judged_by or ()))
    whole = {"experiment": self.experiment, **judged, "config": config_dict(self.config)}
    write_atomically(self.directory / "config.json", json.dumps(whole, indent=2) + "\n")

  def _check_config(self) -> list[str]:
    """Raises InputError where config.json is not that of this run; returns what is to be said about it."""
    path = self.directory / "config.json"
    try:
      found = read_json(path)
      theirs = found.get("config", {})
      if not isinstance(theirs, dict):
        raise ValueError("its config is not a JSON object")
    except (FileNotFoundError, NotADirectoryError):
      if (self.directory / "metrics.jsonl").exists() or (self.directory / "checkpoints").exists():
        raise InputError(f"--workdir={self.directory} holds a run without its config.json: expected both.") from None
      return []
    except (OSError, ValueError) as error:
      raise InputError(f"{path} cannot be read ({error}): use another --workdir.") from error
    if found.get("experiment") != self.experiment:
      raise InputError(
        f"--workdir={self.directory} belongs to {found.get('experiment')}, not to {self.experiment}: use another one."
      )
    free = free_fields(type(self.config))
    ours, theirs = config_dict(self.config), _absolute(theirs)
    # Code that has gained a flag goes on with a run that has not known it, as if by its default.
    defaults = {item.name: item.default for item in dataclasses.fields(self.config) if item.name not in theirs}
    theirs |= json.loads(json.dumps(defaults, default=str))
    names = sorted(name for name in ours.keys() | theirs.keys() if name not in free)
    differ = {name: f"--{name}={ours.get(name)} (there: {theirs.get(name)})" for name in names}
    differ = {name: text for name, text in differ.items() if ours.get(name) != theirs.get(name)}
    if differ:
      longer = ""
      if differ.keys() == {"steps"} and hasattr(self.config, "start_from"):
        longer = f"; to train on from what it has learned, give another --workdir and --start_from={self.directory}"
      raise InputError(
        f"--workdir={self.directory} belongs to a run with other settings: found {', '.join(differ.values())}; "
        f"expected the same flags, or another --workdir{longer}."
      )
    return [
      f"{path} was written by code without --{name}: its default {defaults[name]!r} is taken."
      for name in sorted(defaults.keys() - free)
    ]

  # -- the rows of the program: one run has them all, as `mlnotes.engine.rows.RowsRecord` has those of several --------

  @property
  def seeds(self) -> range:
    return range(self.config.seed, self.config.seed + self.config.seeds)

  def parts(self) -> "Iterator[tuple[Record, Any]]":
    """(record, index of its rows): one pair for each run in the program."""
    yield self, ...

  def place(self, state: Any) -> Any:
    """The program's first state as the run's."""
    return state

  # -- the beginning -----------------------------------------------------------------------------------------------

  def forget(self) -> None:
    """Gives the directory back where nothing has been learned in it yet, so that other settings can have it.

    Only what this process has made is removed.
    """
    learned = read_metrics(self.metrics_path) or any((self.directory / "checkpoints").glob("[0-9]*")) or self.card()
    if self._metrics_file is not None:
      self._made.append(self.metrics_path)
    if self._events is not None and self._events.path is not None:
      self._made.append(self._events.path)
    made, self._made = self._made, []
    self._close_files()
    # While the directory is held: what stands there afterwards may be another's.
    for path in () if learned else reversed(made):
      with contextlib.suppress(OSError):
        if path == self.directory:
          continue
        elif path.name == "checkpoints":
          shutil.rmtree(path)
        elif path.is_dir():
          path.rmdir()  # unless somebody else has put something there
        else:
          path.unlink()
    self.close()
    if self.directory in made and not learned:
      with contextlib.suppress(OSError):
        self.directory.rmdir()

  # -- metrics -----------------------------------------------------------------------------------------------------

  @property
  def metrics_path(self) -> Path:
    return self.directory / "metrics.jsonl"

  def open(self, step: int) -> None:
    """Starts appending after update `step`: what an interrupted run wrote beyond it is dropped."""
    if not self.writes:
      return
    kept = [line for line in read_metrics(self.metrics_path) if line["step"] <= step]
    write_atomically(self.metrics_path, "".join(json.dumps(line) + "\n" for line in kept))
    self._metrics_file = self.metrics_path.open("a", encoding="utf-8")
    if project := getattr(self.config, "wandb", ""):
      from mlnotes.engine.wandb_sink import WandbSink

      self._wandb = WandbSink(project, self.experiment, self.directory, config_dict(self.config))
    if self._tensorboard:
      self._events = _Events(self.directory / "tensorboard", step + 1)

  def log(self, step: int, split: str, values: Mapping[str, np.ndarray]) -> None:
    """Appends one line: {"step": .., "<split>/<name>": mean, and with several seeds ".../std" and ".../seeds"}.

    A seed whose value is not finite, or that has none, is null among the seeds; ".../finite" then counts the others.
    """
    if not self.writes:
      return
    line = {"step": step}
    for name, value in values.items():
      figure = over_seeds(value)
      line[f"{split}/{name}"] = figure.mean
      if np.ndim(value):
        line[f"{split}/{name}/std"] = figure.std
        if figure.lost:
          line[f"{split}/{name}/finite"] = figure.finite
        line[f"{split}/{name}/seeds"] = value
    self._metrics_file.write(json.dumps(to_json(line)) + "\n")
    self._metrics_file.flush()
    self.log_events(step, {k: v for k, v in line.items() if k != "step" and not k.endswith("/seeds")})

  def log_events(self, step: int, values: Mapping[str, float]) -> None:
    """TensorBoard and the like alone: figures that differ from run to run, such as throughput."""
    if self._wandb is not None:
      self._wandb.log(step, values)
    if self._events is not None:
      self._events.write(step, values)

  def sync(self) -> None:
    """Has the metrics on disk, as a checkpoint that comes after them will be."""
    if self._metrics_file is not None:
      os.fsync(self._metrics_file.fileno())

  def close(self) -> None:
    """Lets go of the files and of the directory."""
    self._close_files()
    if self._hold is not None:
      self._hold.release()
    self._hold = None

  def _close_files(self) -> None:
    for file in (self._metrics_file, self._events):
      if file is not None:
        with contextlib.suppress(OSError):  # a full disk has been spoken of already
          file.close()
    if self._wandb is not None:
      self._wandb.close()
    self._metrics_file = self._events = self._wandb = None

  # -- the end -----------------------------------------------------------------------------------------------------

  @property
  def result_path(self) -> Path:
    return self.directory / "result.json"

  def card(self) -> Mapping[str, Any] | None:
    """The result card, where training is complete; the report's figures may be those of other flags, or missing."""
    try:
      card = read_json(self.result_path)
    except (OSError, ValueError):
      return None
    return card if card.get("finished") is True else None

  def finished(self) -> Mapping[str, Any] | None:
    """The result card, where this run is complete and reported as the flags ask for it."""
    card = self.card()
    if card is None or card.get("reported") is False:
      return None
    ours, theirs = config_dict(self.config), card.get("config")
    theirs = theirs if isinstance(theirs, dict) else {}
    same = all(
      theirs.get(name, ours[name]) == ours[name] for name in free_fields(type(self.config), "report", "pictures")
    )
    return card if same else None

  def write_result(self, **fields: Any) -> None:
    """Writes config.json and result.json: who ran what, with which figures, on which machine and versions."""
    if not self.writes:
      return
    card = {
      "experiment": self.experiment,
      "command": self.command,
      **fields,
      **self._revision._asdict(),
      "prng": PRNG_IMPL,
      "versions": versions("jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
      "config": config_dict(self.config),
    }
    self.write_config()
    write_atomically(self.result_path, json.dumps(to_json(card), indent=2) + "\n")


class _Events:
  """TensorBoard's events, written by whoever calls: an error is seen where it happens, not in a thread of its own.

  What earlier files hold from update `first` on is hidden, as of a run that goes on from a checkpoint before it.
  """

  def __init__(self, directory: Path, first: int):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    directory.mkdir(parents=True, exist_ok=True)
    before = set(directory.iterdir())
    self._event = Event
    self._writer = EventsWriter(str(directory / "events"), f".{os.getpid()}.{first}")  # two may begin in one second
    self.path = next((path for path in directory.iterdir() if path not in before), None)
    self._writer.write_event(Event(step=first, wall_time=time.time(), file_version="brain.Event:2"))
    start = SessionLog(status=SessionLog.START)
    self._writer.write_event(Event(step=first, wall_time=time.time(), session_log=start))
    self._writer.flush()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    from tensorboardX.summary import scalar

    for name, value in values.items():
      self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=scalar(name, value)))
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


def command_line() -> str:
  """The command that started this process, as one would type it."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  if spec is None:
    return shlex.join(["python", *sys.argv])
  return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])


def versions(*names: str) -> dict[str, str]:
  found = {"python": sys.version.split()[0], "mlnotes": mlnotes.__version__}
  for name in names:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return found


def check_writable(directory: Path, flag: str, text: str | Path) -> None:
  """Raises InputError about `--flag=text` where nothing could be written below `directory`; creates nothing."""
  existing = next(path for path in [directory, *directory.absolute().parents] if path.exists() or path.is_symlink())
  try:
    with tempfile.TemporaryFile(dir=existing):
      pass
    if not os.access(existing, os.W_OK | os.X_OK):
      raise PermissionError(13, "Permission denied")
  except OSError as error:
    raise InputError(f"--{flag}={text} cannot be written: {existing}: {error.strerror or error}.") from error


def read_metrics(path: Path, *, strict: bool = False) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl up to one that is none, such as a last one that a crash cut short. [] without a file.

  strict: raises ValueError for a whole line that is none.
  """
  lines = []
  try:
    with path.open(encoding="utf-8", errors="replace") as file:
      for text in file:
        try:
          line = json.loads(text)
        except ValueError:
          line = None
        if not (isinstance(line, dict) and isinstance(line.get("step"), int)):
          if strict and text.endswith("\n"):
            raise ValueError(f"found {text.strip()[:40]!r}, expected a JSON object with a step")
          break
        lines.append(line)
  except (FileNotFoundError, NotADirectoryError):
    pass
  return lines


class Curve(NamedTuple):
  """A metric over the updates."""

  step: np.ndarray
  value: np.ndarray


def read_curves(directory: Path, config: Any) -> dict[str, Curve]:
  """{"train/loss": ...} of the run whose report goes into `directory`, or of the seed that it is the directory of.

  A run of several seeds, by `config.seeds` from `config.seed` on, reports each into seed_<number>. Values that are not
  finite are left out.
  """
  alone = config.seeds == 1
  curves: dict[str, list[tuple[int, float]]] = {}
  for line in read_metrics((directory if alone else directory.parent) / "metrics.jsonl"):
    for name in [name for name in line if name.count("/") == 1]:
      if alone:
        value = line[name]
      else:
        values = line.get(f"{name}/seeds")
        value = None if values is None else values[int(directory.name.rpartition("_")[2]) - config.seed]
      if value is not None:
        curves.setdefault(name, []).append((line["step"], value))
  return {name: Curve(*np.array(points, float).T) for name, points in curves.items()}
