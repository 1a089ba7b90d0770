"""The one training loop: logging, evaluation, checkpoints, exact resume, clean stops, the result card.

    def main(config: Config) -> int:
      return train(make(config), make_feeds(config), config)

Run the same command again and it goes on where it stopped, or says that it is finished.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from mlnotes.engine import distributed
from mlnotes.engine.cache import cache_directory
from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import BaseConfig, experiment_name, field
from mlnotes.engine.layout import Layout, choose_layout
from mlnotes.engine.program import Feeds, Program, all_finite, make_mesh, take_rows, window_finite, window_means
from mlnotes.engine.progress import Progress
from mlnotes.engine.record import Record, config_dict, free_fields
from mlnotes.engine.result import DISK_ERRORS, describe_devices, finish
from mlnotes.engine.rows import BestRows, RowsRecord, count_rows
from mlnotes.engine.sharding import count_cores
from mlnotes.engine.start_from import find_learned
from mlnotes.engine.summary import Score, format_summary, is_better, make_score, over_seeds

# A dispatch runs as many updates as fit into about this many seconds, so that a signal is answered soon.
SECONDS_PER_DISPATCH = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(BaseConfig):
  """The flags of every experiment that runs in the loop.

  Throughput counts `UNIT`s, of which one update of one seed consumes `units_per_update`. `fills_cores` says whether the
  update of one seed has work for all cores of a CPU, as large products and convolutions have, or is fastest on one;
  `parts_batches`, whether each core is better given a part of the batch.
  """

  UNIT: ClassVar[str] = "examples"
  fills_cores: ClassVar[bool] = True
  parts_batches: ClassVar[bool] = False

  many_processes: ClassVar[bool] = True

  workdir: str = field("", "directory of the run; empty: runs/<experiment>-<hash of the settings>", free=True)
  start_from: str = field("", "work directory of a run whose last checkpoint gives what the first state has learned")
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
  devices: int = field(
    0, "how many of the local devices to use, or of a CPU's cores to make devices of; 0: all, or what suits", free=True
  )
  threads: int = field(0, "threads of the CPU for each operation; 0: what suits", free=True)
  fsdp: int = field(1, "spread the large arrays of the state over groups of this many devices; 1: not", free=True)
  report_seeds: int = field(3, "how many of the seeds get pictures and final figures of their own", free="report")
  tensorboard: bool = field(True, "write TensorBoard events beside metrics.jsonl", free=True)
  wandb: str = field("", "project of Weights & Biases to send the metrics to as well; empty: none", free=True)

  def __post_init__(self):
    super().__post_init__()
    for name in ("seeds", "steps", "log_every", "fsdp"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("seed", "eval_every", "checkpoint_every", "devices", "threads", "report_seeds"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    require(self.threads <= 1024, "threads", self.threads, "at most 1024")
    require(self.seeds <= 2**16, "seeds", self.seeds, "at most 65536")
    require(self.steps < 2**31, "steps", self.steps, "fewer than 2^31")
    require(self.seed + self.seeds <= 2**32, "seed", self.seed, "seeds below 2^32")

  @property
  def units_per_update(self) -> int:
    return getattr(self, "batch_size", 1)

  def idle_flags(self):
    apart = distributed.find_peers(os.environ) is not None
    return super().idle_flags() | ({"threads": "several processes have JAX's own"} if apart else {})

  def cpu_layout(self, cores: int) -> Layout | None:
    if self.fsdp > 1:
      devices = min(self.devices or self.fsdp, cores)
      return Layout(devices, self.threads or cores // devices)
    batch_size = self.units_per_update if self.parts_batches else 0
    chosen = choose_layout(self.seeds * count_rows(self.rows), cores, self.fills_cores, batch_size)
    devices = min(self.devices, cores) or chosen.devices
    threads = chosen.threads if devices == chosen.devices or not self.fills_cores else max(1, cores // devices)
    return chosen._replace(devices=devices, threads=self.threads or threads)


def enable_compilation_cache() -> None:
  """Keeps compiled programs between processes, unless the user has chosen a place already."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@contextlib.contextmanager
def usual_jax(*, quiet: bool = False) -> Iterator[None]:
  """Within it programs are compiled and dtypes promoted as usual, whatever the environment asks for; says so."""
  strict = jax.config.jax_numpy_dtype_promotion != "standard"
  if jax.config.jax_disable_jit and not quiet:
    print(
      "note: JAX_DISABLE_JIT has no effect: updates are compiled; call make(config).step to debug.", file=sys.stderr
    )
  if strict and not quiet:
    print("note: JAX_NUMPY_DTYPE_PROMOTION=strict has no effect: optax counts on promotion.", file=sys.stderr)
  with jax.disable_jit(False), jax.numpy_dtype_promotion("standard"):
    yield


def default_workdir(experiment: str, config: LoopConfig) -> Path:
  """runs/<experiment>-<hash>: the same settings, but for those that are free to change, find it again."""
  free = free_fields(type(config))
  settings = {name: value for name, value in config_dict(config).items() if name not in free}
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
  return Path("runs") / f"{experiment}-{digest[:8]}"


class _Signals:
  """Turns SIGTERM, SIGUSR2 (Slurm's warning), SIGHUP (a closed terminal) and Ctrl-C into a request to stop.

  A further Ctrl-C stops at once. In a thread, which no signal reaches, it does nothing.
  """

  def __init__(self):
    self.received: int | None = None
    self._previous = {}

  def _handle(self, number, frame):
    if self.received is not None:
      if number == signal.SIGINT:
        raise KeyboardInterrupt
      return  # a scheduler may send one signal after the other
    self.received = number
    with contextlib.suppress(OSError):  # by the descriptor: the interrupted code may be printing
      os.write(2, b"stopping after the updates (or the compilation) in progress; Ctrl-C to stop at once\n")

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
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
    self._has_evaluated = False
    self.step_seconds: list[float] = []
    self.evaluation: Mapping[str, np.ndarray] = {}
    self.started_from: Mapping[str, Any] | None = None
    self.best: tuple[int, Score] | None = None
    # Several runs keep the best state of each; they have the last one of all in common.
    self.best_rows = BestRows(len(self.parts)) if record.config.rows else None

  @contextlib.contextmanager
  def compiling(self, what: str) -> Iterator[None]:
    before = self.program.compile_seconds
    self.progress.say(f"compiling {what} ...")
    yield
    self.progress.say(f"compiled in {self.program.compile_seconds - before:.1f} s")

  def start(self) -> None:
    """Restores the last checkpoint, or makes the first state."""
    latest = self.checkpoints.latest_step()
    if latest != self.config.steps and self.record.card() is not None:
      raise InputError(
        f"--workdir={self.record.directory} is finished, but its last checkpoint is gone, and another report needs it: "
        "expected the flags that it was reported with, or another --workdir."
      )
    if latest is None:
      self.step, given = 0, self.config.start_from
      learned = find_learned(given, self.program.abstract_state, self.program.num_seeds) if given else None
      with self.compiling("the first state"):
        self.state, self.window = self.record.place(self.program.init()), self.program.empty_window()
      if learned:
        self.state = learned.put_into(self.state)
        self.started_from = {"run": config_dict(self.config)["start_from"], "step": learned.step}
        self.progress.say(f"starts from step {learned.step} of {given}")
      if self.best_rows:
        self.best_rows.start({"state": self.state, "window": self.window})
    else:
      like = {"state": self.program.abstract_state, "window": self.program.abstract_window}
      restored, metadata = self.checkpoints.restore(latest, like | ({"best": like} if self.best_rows else {}))
      self.step, self.state, self.window = latest, restored["state"], restored["window"]
      self.saved_step = latest
      self.started_from = metadata.get("started_from")
      check_data(self.record.directory, metadata.get("data"), self.program.feeds.fingerprint)
      if self.best_rows:
        self.best_rows.resume(restored["best"], metadata["best"])
      elif (score := self.checkpoints.best_score()) is not None:
        self.best = (self.checkpoints.best_step(), score)
      self.progress.say(f"resumed from step {latest}")
    if self.program.streamed:
      self.program.feeds.train.seek(self.step)  # as in resident data, the step is the position
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
    self.checkpoints.check()
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

  def measure(self) -> None:
    """Evaluates the state."""
    first = contextlib.nullcontext() if self._has_evaluated else self.compiling("the evaluation")
    self._has_evaluated = True
    with first:
      self.evaluation = self.program.evaluate(self.state)

  def evaluate(self) -> None:
    self.measure()
    for record, rows in self.parts:
      record.log(self.step, "eval", {name: np.asarray(value[rows]) for name, value in self.evaluation.items()})
    self.progress.say(f"step {self.step}: evaluation {_brief(self.evaluation)}")

  def save(self, score: Score | None = None) -> None:
    """Saves the state unless no seed's parameters are finite."""
    if self.saved_step == self.step:
      return
    if not np.any(self.finite()):
      self._check_finite({"params": np.array(False)})
    for record, _ in self.parts:
      record.sync()
    tree, metadata = {"state": self.state, "window": self.window}, self._metadata(self.config)
    if self.best_rows:
      tree, metadata = tree | {"best": self.best_rows.tree}, metadata | {"best": self.best_rows.found}
    self.checkpoints.save(self.step, tree, metadata, score)
    self.saved_step = self.step
    if is_better(score, self.best and self.best[1]):
      self.best = (self.step, score)

  def _metadata(self, config: LoopConfig) -> dict[str, Any]:
    return {"config": config_dict(config), "data": self.program.feeds.fingerprint, "started_from": self.started_from}

  def finite(self) -> np.ndarray:
    """Whether the parameters are: (), or (seeds,)."""
    params = getattr(self.state, "params", ())
    return all_finite(params, self.program.num_seeds > 1) if jax.tree.leaves(params) else np.array(True)

  def hand_over(self) -> list[tuple[Record, Any]]:
    """Saves the last state of each of several runs in its own work directory, and its best.

    Returns those whose last state is finite.
    """
    finite = self.finite()
    parts = [(record, rows) for record, rows in self.parts if np.any(finite[rows] if finite.ndim else finite)]
    for record, rows in parts:
      checkpoints = Checkpoints(record.directory / "checkpoints")
      metadata, there = self._metadata(record.config), checkpoints.latest_step()  # of an earlier report
      best = self.best_rows.found[self.parts.index((record, rows))] if self.best_rows else None
      if best and best[0] < self.step and there is None:
        checkpoints.save(best[0], take_rows(self.best_rows.tree, rows), metadata, Score(*best[1:]))
      own = {"state": take_rows(self.state, rows), "window": take_rows(self.window, rows)}
      if there != self.step:
        checkpoints.save(self.step, own, metadata, self.score(rows) if self.evaluation else None)
      checkpoints.wait()
      checkpoints.close()
    return parts


def _brief(values: Mapping[str, Any]) -> str:
  return "  ".join(f"{name} {format_summary(over_seeds(value))}" for name, value in values.items())


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
  options = {"writes": writes, "tensorboard": config.tensorboard, "judged_by": (best_metric, best_mode)}
  record = RowsRecord(name, config, **options) if config.rows else Record(workdir, name, config, **options)
  directory = record.directory
  try:
    if _is_finished(record, feeds.fingerprint):
      return 0
    _hold(record)
    if _is_finished(record, feeds.fingerprint):  # another process has been at it meanwhile
      return 0
    with usual_jax(quiet=not writes):
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
    if error.errno not in DISK_ERRORS:
      raise
    raise InputError(
      f"--workdir={directory} cannot be written: {os.strerror(error.errno)}; what was saved before is intact, "
      "and the same command goes on from there."
    ) from error
  finally:
    record.close()


def check_data(directory: Path, found: Any, ours: str) -> None:
  """Raises InputError where the run in `directory` has learned from data of another fingerprint, as far as is known."""
  if isinstance(found, str) and found and ours and found != ours:
    raise InputError(
      f"--workdir={directory}: the data are not those that this run has learned from (found {ours}, there: {found}); "
      "expected the same data, or another --workdir."
    )


def _is_finished(record: Record | RowsRecord, data: str) -> bool:
  card = record.finished()
  if card is not None:
    check_data(record.directory, card.get("data"), data)
  finished, _ = distributed.agree(int(card is not None), 0)
  if finished and record.writes:
    print(
      f"{record.directory} is finished ({card['steps']} steps): see {record.result_path}. Without that file the same "
      "command redoes the report; without the directory it trains anew."
    )
  return bool(finished)


def _hold(record: Record | RowsRecord) -> None:
  """Takes the work directory, in one process for all of them."""
  refused = None
  try:
    record.hold()
  except InputError as error:
    refused = error
  if distributed.agree(0, int(refused is not None))[1]:
    raise refused or InputError(f"--workdir={record.directory} could not be taken by process 0 of this run.")


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
      count = count_cores()
      threads = f", {count} thread{'s' * (count > 1)} for each operation" if jax.default_backend() == "cpu" else ""
      progress.say(f"{record.experiment} in {directory} on {describe_devices(program)}{threads}")
      run.start()
      if run.step < config.steps:
        with run.compiling("the update"):
          program.compile()
        distributed.wait_for_all("compiled")  # a collective does not wait long for a process that still compiles
      while True:
        going = run.step < config.steps
        # Each process has its own clock, and the signal may have reached only one.
        count, received = distributed.agree(run.next_count() if going else 0, signals.received or 0)
        if received:
          run.save()
          checkpoints.wait()
          progress.say(
            f"stopped by {signal.Signals(received).name} at step {run.step}: the state is saved in {directory}, "
            "the same command goes on from there"
          )
          return 128 + received
        if not going:
          break
        run.advance(count)
    if not run.evaluation:
      run.measure()
    checkpoints.wait()
    progress.close()
    parts = run.hand_over() if config.rows else run.parts
    finish(run, parts, experiment, started)
    if lost := [str(part.directory) for part, rows in run.parts if (part, rows) not in parts]:
      raise InputError(f"parameters not finite: {', '.join(lost)}; try a lower --learning_rate or --clip_norm=1.")
    distributed.wait_for_all("finished")
  return 0
