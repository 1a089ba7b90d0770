"""What a run leaves in its work directory: config, metrics, TensorBoard events, curves and the result card."""

import dataclasses
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import mlnotes
from mlnotes.errors import InputError
from mlnotes.experiment import PRNG_IMPL
from mlnotes.flags import config_fields
from mlnotes.revision import Revision, find_revision
from mlnotes.summary import format_summary, over_seeds


def write_atomically(path: Path, text: str) -> None:
  """Replaces the file in one step: a reader, or a crash, never sees half of it."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    temporary.write_text(text)
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
  """A figure as the result card has it: {"mean", "std", "finite", "seeds"}; see `mlnotes.summary` for the rule."""
  figure, seeds = over_seeds(values), np.atleast_1d(np.asarray(values, np.float64))
  return {"mean": figure.mean, "std": figure.std, "finite": figure.finite, "seeds": seeds}


def print_metrics(metrics: Mapping[str, Mapping[str, Any]], notes: Mapping[str, str] = {}) -> None:
  """One line per figure of `summarize`: mean, the spread where there are several seeds, and what `notes` say of it."""
  for name, value in metrics.items():
    note = f"  {notes[name]}" if name in notes else ""
    print(f"{name:>32} {format_summary(over_seeds(value['seeds']))}{note}")


def config_dict(config: Any) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(config)))


class Record:
  """The files of one run. Only one process of a job writes; the others hold a Record with `writes=False`.

  Raises InputError where the directory belongs to a run with other settings or cannot be written.
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
  ):
    self.directory = directory
    self.command = command or command_line()
    self.experiment = experiment
    self.config = config
    self.writes = writes
    self._revision = find_revision() if writes else Revision("", None)  # now: the files may change while it trains
    self._tensorboard = tensorboard
    self._metrics_file = None
    self._events = None
    self._wandb = None
    self._check_config()
    if writes:
      try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(
          directory / "config.json",
          json.dumps({"experiment": experiment, "config": config_dict(config)}, indent=2) + "\n",
        )
      except OSError as error:
        raise InputError(f"--workdir={directory} cannot be written: {error.strerror or error}.") from error

  def _check_config(self) -> None:
    path = self.directory / "config.json"
    try:
      found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
      if (self.directory / "metrics.jsonl").exists() or (self.directory / "checkpoints").exists():
        raise InputError(f"--workdir={self.directory} holds a run without its config.json: expected both.") from None
      return
    except (OSError, ValueError) as error:
      raise InputError(f"{path} cannot be read ({error}): use another --workdir.") from error
    if found.get("experiment") != self.experiment:
      raise InputError(
        f"--workdir={self.directory} belongs to {found.get('experiment')}, not to {self.experiment}: use another one."
      )
    free = {item.name for item, _, info in config_fields(type(self.config)) if info.get("free")}
    ours, theirs = config_dict(self.config), found.get("config", {})
    names = sorted(name for name in ours.keys() | theirs.keys() if name not in free)
    differ = [f"--{n}={ours.get(n)} (there: {theirs.get(n)})" for n in names if ours.get(n) != theirs.get(n)]
    if differ:
      raise InputError(
        f"--workdir={self.directory} belongs to a run with other settings: found {', '.join(differ)}; "
        "expected the same flags, or another --workdir."
      )

  # -- the rows of the program: one run has them all, as `mlnotes.rows.RowsRecord` has those of several ---------------

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
    """Gives the directory back where nothing has been learned in it yet, so that other settings can have it."""
    self.close()
    checkpoints = self.directory / "checkpoints"
    learned = read_metrics(self.metrics_path) or any(checkpoints.glob("[0-9]*")) or self.result_path.exists()
    if self.writes and not learned:
      for name in ("config.json", "metrics.jsonl"):
        (self.directory / name).unlink(missing_ok=True)
      for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(self.directory / name, ignore_errors=True)

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
    self._metrics_file = self.metrics_path.open("a")
    if project := getattr(self.config, "wandb", ""):
      from mlnotes.wandb_sink import WandbSink

      self._wandb = WandbSink(project, self.experiment, self.directory, config_dict(self.config))
    if self._tensorboard:
      from tensorboardX import SummaryWriter

      self._events = SummaryWriter(str(self.directory / "tensorboard"), purge_step=step + 1)

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
      for name, value in values.items():
        self._events.add_scalar(name, value, step)

  def close(self) -> None:
    if self._metrics_file is not None:
      self._metrics_file.close()
    if self._events is not None:
      self._events.close()
    if self._wandb is not None:
      self._wandb.close()
    self._wandb = None

  # -- the end -----------------------------------------------------------------------------------------------------

  @property
  def result_path(self) -> Path:
    return self.directory / "result.json"

  def finished(self) -> Mapping[str, Any] | None:
    """The result card, where this run is complete."""
    try:
      card = json.loads(self.result_path.read_text())
    except (OSError, ValueError):
      return None
    return card if card.get("finished") else None

  def write_result(self, **fields: Any) -> None:
    """Writes result.json: who ran what, with which figures, on which machine and versions."""
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
    write_atomically(self.result_path, json.dumps(to_json(card), indent=2) + "\n")


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


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl; a last line that a crash cut short is left out. [] where there is no file."""
  lines = []
  try:
    with path.open() as file:
      for text in file:
        try:
          lines.append(json.loads(text))
        except ValueError:
          break
  except FileNotFoundError:
    pass
  return lines
