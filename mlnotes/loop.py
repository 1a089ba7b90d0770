"""The one training loop: logging, evaluation, checkpoints, exact resume, clean stops, the result card.

    def main(config: Config) -> int:
      return train(make(config), make_feeds(config), config)

Run the same command again and it goes on where it stopped, or says that it is finished.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from mlnotes import distributed
from mlnotes.cache import cache_directory
from mlnotes.checkpoint import Checkpoints
from mlnotes.errors import InputError
from mlnotes.experiment import Experiment
from mlnotes.flags import BaseConfig, experiment_name, field, require
from mlnotes.plot import plot_curves
from mlnotes.program import Feeds, Program, all_finite, make_mesh, seed_state, take_rows, window_finite, window_means
from mlnotes.progress import Progress
from mlnotes.record import Record, config_dict, print_metrics, summarize
from mlnotes.rows import BestRows, RowsRecord
from mlnotes.summary import Score, format_summary, is_better, make_score, over_seeds

# A dispatch runs as many updates as fit into about this many seconds, so that a signal is answered soon.
SECONDS_PER_DISPATCH = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(BaseConfig):
  """The flags of every experiment that runs in the loop.

  Throughput counts `UNIT`s, of which one update of one seed consumes `units_per_update`.
  """

  UNIT: ClassVar[str] = "examples"

  many_processes: ClassVar[bool] = True

  workdir: str = field("", "directory of the run; empty: runs/<experiment>-<hash of the settings>", free=True)
  rows: str = field("", "file of runs to train side by side, as launch.sweep --vectorize writes it", free=True)
  seed: int = field(0, "first seed, >= 0")
  seeds: int = field(1, "how many seeds to train side by side in one program, from --seed on")
  steps: int = field(1000, "updates to train for")
  precision: Literal["float32", "bfloat16"] = field("float32", "arithmetic of the network; parameters are float32")
  log_every: int = field(50, "updates between two lines of metrics, which are means over them")
  eval_every: int = field(500, "updates between two evaluations; 0: only at the end")
  checkpoint_every: int = field(
    500, "updates between two checkpoints, beside those of a new best; 0: only at the end", free=True
  )
  devices: int = field(0, "how many of the local devices to use; 0: all", free=True)
  fsdp: int = field(1, "spread the large arrays of the state over groups of this many devices; 1: not", free=True)
  report_seeds: int = field(3, "how many of the seeds get pictures and final figures of their own", free=True)
  tensorboard: bool = field(True, "write TensorBoard events beside metrics.jsonl", free=True)
  wandb: str = field("", "project of Weights & Biases to send the metrics to as well; empty: none", free=True)

  def __post_init__(self):
    super().__post_init__()
    for name in ("seeds", "steps", "log_every", "fsdp"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("seed", "eval_every", "checkpoint_every", "devices", "report_seeds"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    require(self.seeds <= 2**16, "seeds", self.seeds, "at most 65536")
    require(self.steps < 2**31, "steps", self.steps, "fewer than 2^31")
    require(self.seed + self.seeds <= 2**32, "seed", self.seed, "seeds below 2^32")

  @property
  def units_per_update(self) -> int:
    return getattr(self, "batch_size", 1)


def enable_compilation_cache() -> None:
  """Keeps compiled programs between processes, unless the user has chosen a place already."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def default_workdir(experiment: str, config: LoopConfig) -> Path:
  """runs/<experiment>-<hash>: the same settings find the same directory again."""
  digest = hashlib.sha256(json.dumps(config_dict(config), sort_keys=True).encode()).hexdigest()
  return Path("runs") / f"{experiment}-{digest[:8]}"


class _Signals:
  """Turns SIGTERM, SIGUSR2 (Slurm's warning) and Ctrl-C into a request to stop; a further Ctrl-C stops at once."""

  def __init__(self):
    self.received: int | None = None
    self._previous = {}

  def _handle(self, number, frame):
    if self.received is not None:
      if number == signal.SIGINT:
        raise KeyboardInterrupt
      return  # a scheduler may send one signal after the other
    self.received = number
    print("stopping after the updates (or the compilation) in progress; Ctrl-C to stop at once", file=sys.stderr)

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)


def _next_stop(step: int, config: LoopConfig) -> int:
  """The first update after `step` at which something is due."""
  periods = (config.log_every, config.eval_every, config.checkpoint_every)
  return min([config.steps, *((step // period + 1) * period for period in periods if period)])


def _due(step: int, period: int, config: LoopConfig) -> bool:
  return step == config.steps or (period > 0 and step % period == 0)


class _Run:
  """One training run in progress: the program and its state on one side, the work directory on the other."""

  def __init__(
    self, program: Program, record: Record | RowsRecord, checkpoints: Checkpoints, progress: Progress, best_metric, sign
  ):
    self.program = program
    self.record = record
    self.parts = tuple(record.parts())
    self.checkpoints = checkpoints
    self.progress = progress
    self.config = record.config
    self.best_metric = best_metric
    self.sign = sign
    self.saved_step: int | None = None
    self.step_seconds: list[float] = []
    self.evaluation: Mapping[str, np.ndarray] = {}
    self.best: tuple[int, Score] | None = None
    # Several runs keep the best state of each; they have the last one of all in common.
    self.best_rows = BestRows(len(self.parts)) if record.config.rows else None

  def start(self) -> None:
    """Restores the last checkpoint, or makes the first state."""
    latest = self.checkpoints.latest_step()
    if latest is None:
      self.step, self.window = 0, self.program.empty_window()
      self.state = self.record.place(self.program.init())
      if self.best_rows:
        self.best_rows.start({"state": self.state, "window": self.window})
    else:
      like = {"state": self.program.abstract_state, "window": self.program.abstract_window}
      restored, metadata = self.checkpoints.restore(latest, like | ({"best": like} if self.best_rows else {}))
      self.step, self.state, self.window = latest, restored["state"], restored["window"]
      self.saved_step = latest
      if self.best_rows:
        self.best_rows.resume(restored["best"], metadata["best"])
      elif (score := self.checkpoints.best_score()) is not None:
        self.best = (self.checkpoints.best_step(), score)
      if self.program.streamed:
        self.program.feeds.train.set_state(metadata["data"])
      self.progress.say(f"resumed from step {latest}")
    self.record.open(self.step)

  def next_count(self) -> int:
    """How many updates reach the next stop, or take about a second by this process's clock."""
    stop = _next_stop(self.step, self.config)
    guess = SECONDS_PER_DISPATCH / max(self.step_seconds[-1], 1e-9) if self.step_seconds else 1
    return max(1, min(stop - self.step, int(guess)))

  def advance(self, count: int) -> None:
    """`count` updates; then what is due after them."""
    start = time.perf_counter()
    self.state, self.window = jax.block_until_ready(self.program.update(self.state, self.window, count))
    self.step_seconds.append((time.perf_counter() - start) / count)
    self.step += count
    if _due(self.step, self.config.log_every, self.config):
      self._log()
    else:
      self._check_finite(window_finite(self.window))
      self.progress.update(self.step, {}, self.step_seconds[-1])
    score, is_best = None, False
    if _due(self.step, self.config.eval_every, self.config):
      self.evaluate()
      keeps_best = self.config.checkpoint_every > 0 or self.step == self.config.steps
      if self.best_rows and keeps_best:
        scores = [self.score(rows) for _, rows in self.parts]
        self.best_rows.update(self.step, {"state": self.state, "window": self.window}, scores)
      elif not self.best_rows:
        score = self.score()
        is_best = keeps_best and is_better(score, self.best and self.best[1])
    if is_best or _due(self.step, self.config.checkpoint_every, self.config):
      self.save(score)

  def _log(self) -> None:
    means = window_means(self.window)
    self._check_finite(window_finite(self.window))
    for record, rows in self.parts:
      record.log(self.step, "train", window_means(self.window, rows))
    self.window = self.program.empty_window()
    self.progress.update(self.step, means, self.step_seconds[-1])
    self.record.log_events(self.step, {"timing/step_seconds": self.step_seconds[-1]})

  def _check_finite(self, finite: Mapping[str, np.ndarray]) -> None:
    """Raises InputError where every seed has something that is not finite."""
    if finite and not np.any(np.logical_and.reduce(list(finite.values()))):
      bad = sorted(name for name, seeds in finite.items() if not np.all(seeds))
      self.checkpoints.wait()
      where = f"in {self.record.directory}"
      kept = f"the state of step {self.saved_step} is {where}" if self.saved_step else f"no state is saved {where}"
      raise InputError(
        f"{', '.join(bad)} not finite at or before step {self.step}: the run stopped, {kept}; try a lower "
        "--learning_rate or --clip_norm=1."
      )

  def score(self, rows: Any = ...) -> Score | None:
    """What the last evaluation says of the seeds, or of some of them; None where none is finite."""
    return make_score(self.evaluation[self.best_metric][rows], "min" if self.sign > 0 else "max")

  def best_of(self, record: Record) -> dict[str, Any] | None:
    """The best checkpoint of a run for its result card."""
    if self.best_rows:
      (found,) = [found for found, (own, _) in zip(self.best_rows.found, self.parts) if own is record]
    else:
      found = self.best and [self.best[0], *self.best[1]]
    return found and {"step": found[0], "value": self.sign * found[2], "lost_seeds": found[1]}

  def evaluate(self) -> None:
    self.evaluation = self.program.evaluate(self.state)
    for record, rows in self.parts:
      record.log(self.step, "eval", {name: np.asarray(value[rows]) for name, value in self.evaluation.items()})
    self.progress.say(f"step {self.step}: evaluation {_brief(self.evaluation)}")

  def save(self, score: Score | None = None) -> None:
    """Saves the state unless no seed's parameters are finite."""
    if self.saved_step == self.step:
      return
    params = getattr(self.state, "params", ())
    if jax.tree.leaves(params) and not np.any(all_finite(params, self.program.num_seeds > 1)):
      self._check_finite({"params": np.array(False)})
    data = self.program.feeds.train.get_state() if self.program.streamed else None
    metadata = {"config": config_dict(self.config), "data": data}
    tree = {"state": self.state, "window": self.window}
    if self.best_rows:
      tree, metadata = tree | {"best": self.best_rows.tree}, metadata | {"best": self.best_rows.found}
    self.checkpoints.save(self.step, tree, metadata, score)
    self.saved_step = self.step
    if is_better(score, self.best and self.best[1]):
      self.best = (self.step, score)

  def hand_over(self) -> list[tuple[Record, Any]]:
    """Saves the last state of each of several runs in its own work directory, and its best.

    Returns those whose last state is finite.
    """
    params = getattr(self.state, "params", ())
    finite = all_finite(params, self.program.num_seeds > 1) if jax.tree.leaves(params) else np.array(True)
    parts = [(record, rows) for record, rows in self.parts if np.any(finite[rows] if finite.ndim else finite)]
    for record, rows in parts:
      checkpoints = Checkpoints(record.directory / "checkpoints")
      metadata = {"config": config_dict(record.config), "data": None}
      best = self.best_rows.found[self.parts.index((record, rows))] if self.best_rows else None
      if best and best[0] < self.step:
        checkpoints.save(best[0], take_rows(self.best_rows.tree, rows), metadata, Score(*best[1:]))
      own = {"state": take_rows(self.state, rows), "window": take_rows(self.window, rows)}
      checkpoints.save(self.step, own, metadata, self.score(rows) if self.evaluation else None)
      checkpoints.wait()
      checkpoints.close()
    return parts


def _brief(values: Mapping[str, Any]) -> str:
  return "  ".join(f"{name} {format_summary(over_seeds(value))}" for name, value in values.items())


def peak_memory_bytes(device: jax.Device) -> int:
  """The device's peak where it keeps one, otherwise the process's peak resident set."""
  stats = device.memory_stats() or {}
  return int(stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def train(
  experiment: Experiment,
  feeds: Feeds,
  config: LoopConfig,
  *,
  name: str = "",
  best_metric: str = "loss",
  best_mode: Literal["min", "max"] = "min",
) -> int:
  """Trains to `config.steps` updates in the work directory, resuming what is there; returns the exit code.

  Args:
    name: "<chapter>.<method>"; empty: that of the module that defines the config.
    best_metric: the evaluation metric whose best checkpoint is kept beside the last one. An evaluation that is better
      than all before it saves its state, whether a checkpoint is due or not.

  Returns:
    0 when finished, 128 + n when stopped by signal n (the state is saved).

  Raises:
    InputError: a work directory of another run, one that cannot be written, a corrupt checkpoint, a loss that is
      not finite. What was saved before stays.
  """
  name = name or experiment_name(type(config))
  workdir = Path(config.workdir).expanduser() if config.workdir else default_workdir(name, config)
  make_mesh(config.devices, config.fsdp)  # before there is a directory, what the machine lacks is said
  writes = jax.process_index() == 0
  options = {"writes": writes, "tensorboard": config.tensorboard}
  record = RowsRecord(name, config, **options) if config.rows else Record(workdir, name, config, **options)
  directory = record.directory
  card = record.finished()
  finished, _ = distributed.agree(int(card is not None), 0)
  if finished:
    if writes:
      print(f"{directory} is finished ({card['steps']} steps): see {record.result_path}; remove it to run again.")
    return 0
  try:
    return _train(record, experiment, feeds, config, best_metric, best_mode)
  except InputError:
    record.forget()
    raise
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    record.forget()
    raise InputError(
      f"--workdir={directory}: the run does not fit into memory ({str(error).splitlines()[0]}); expected fewer --seeds "
      "or smaller sizes."
    ) from error
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM):
      raise
    raise InputError(
      f"--workdir={directory} cannot be written: {os.strerror(error.errno)}; what was saved before is intact, "
      "and the same command goes on from there."
    ) from error
  finally:
    record.close()


def _train(record, experiment, feeds, config, best_metric, best_mode) -> int:
  started = time.perf_counter()
  enable_compilation_cache()
  directory = record.directory
  program = Program(experiment, feeds, record.seeds, make_mesh(config.devices, config.fsdp))
  if best_metric not in program.evaluation_names:
    found = ", ".join(program.evaluation_names) or "none"
    raise InputError(f"{record.experiment}: best_metric is {best_metric!r}: expected one that is evaluated ({found}).")
  require(not (config.rows and program.streamed), "rows", config.rows, "data that stays on the device")
  require(not config.rows or jax.process_count() == 1, "rows", config.rows, "a single process")
  examples = config.units_per_update * config.seeds
  sign = 1.0 if best_mode == "min" else -1.0
  progress = Progress(config.steps, examples, config.UNIT, quiet=not record.writes)
  with contextlib.closing(progress), Checkpoints(directory / "checkpoints") as checkpoints:
    run = _Run(program, record, checkpoints, progress, best_metric, sign)
    with _Signals() as signals:
      progress.say(f"{record.experiment} in {directory} on {_describe(program)}")
      run.start()
      if run.step < config.steps:
        program.compile()
        distributed.wait_for_all("compiled")  # a collective does not wait long for a process that still compiles
      while run.step < config.steps:
        # Each process has its own clock, and the signal may have reached only one.
        count, received = distributed.agree(run.next_count(), signals.received or 0)
        if received:
          run.save()
          checkpoints.wait()
          progress.say(
            f"stopped by {signal.Signals(received).name} at step {run.step}: the state is saved in {directory}, "
            "the same command goes on from there"
          )
          return 128 + received
        run.advance(count)
    if not run.evaluation:
      run.evaluation = program.evaluate(run.state)
    checkpoints.wait()
    progress.close()
    parts = run.hand_over() if config.rows else run.parts
    for part, rows in parts:
      _finish(run, part, rows, experiment, started)
    if lost := [str(part.directory) for part, rows in run.parts if (part, rows) not in parts]:
      raise InputError(f"parameters not finite: {', '.join(lost)}; try a lower --learning_rate or --clip_norm=1.")
    distributed.wait_for_all("finished")
  return 0


def _describe(program: Program) -> str:
  devices = program.mesh.devices.flat
  processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
  seeds = f", {program.num_seeds} seeds" if program.num_seeds > 1 else ""
  return f"{len(devices)} x {devices[0].device_kind}{processes}{seeds}"


def _finish(run: _Run, record: Record, rows: Any, experiment: Experiment, started: float) -> None:
  """Pictures, final figures and the result card of one run, whose seeds are `rows` of the program's."""
  program, config, state = run.program, record.config, take_rows(run.state, rows)
  if not record.writes:
    return
  unit, examples = config.UNIT, config.units_per_update * config.seeds
  figures: dict[str, list[float]] = {}
  axis = ("update", 1) if unit == "examples" else (unit.replace("_", " "), config.units_per_update)
  plot_curves(record.directory, *axis, first=run.best_metric)
  for i in range(min(config.seeds, config.report_seeds)):
    directory = record.directory / f"seed_{config.seed + i}" if config.seeds > 1 else record.directory
    directory.mkdir(exist_ok=True)
    run.progress.say(f"report {f'of seed {config.seed + i} ' if config.seeds > 1 else ''}in {directory}")
    for name, value in (experiment.report(seed_state(state, i, config.seeds), directory) or {}).items():
      figures.setdefault(name, []).append(value)
  evaluation = {name: value[rows] for name, value in run.evaluation.items()}
  metrics = {name: summarize(v) for name, v in {**evaluation, **figures}.items()}
  step_seconds = float(np.median(run.step_seconds)) if run.step_seconds else None
  timing = {
    "compile_seconds": program.compile_seconds,
    "step_seconds": step_seconds,
    f"{unit}_per_second": examples / step_seconds if step_seconds else None,
    "data_wait_seconds": program.feeds.train.wait_seconds if program.streamed else 0.0,
    "wall_seconds": time.perf_counter() - started,
  }
  peak = peak_memory_bytes(jax.local_devices()[0])
  best, split = run.best_of(record), program.feeds.split
  record.write_result(
    finished=True, steps=config.steps, metrics=metrics, best_metric=run.best_metric,
    best_mode="min" if run.sign > 0 else "max", best_split=split, best_checkpoint=best, timing=timing,
    memory={"peak_bytes": peak}, device=_describe(program),
  )  # fmt: skip
  seconds = "  ".join(f"{k} {v:.4g}" for k, v in timing.items() if v is not None)
  print(f"{seconds}  peak_memory {peak / 2**20:.0f} MiB", file=sys.stderr)
  print_metrics(metrics)
  if best:
    chosen = f", chosen on the {split} split" if split else ""
    print(f"best checkpoint: step {best['step']}, {run.best_metric} {best['value']:.4g}{chosen}")
  print(f"finished: {record.result_path}")
