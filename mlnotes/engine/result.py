"""The end of a run: its result card, its pictures and its final figures.

The card comes first, with what training has left; the report joins its figures to it, seed by seed. What cannot be
drawn or measured is a warning on the card.
"""

import contextlib
import errno
import resource
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.plot import plain_style, plot_curves
from mlnotes.engine.program import Program, seed_state, take_rows
from mlnotes.engine.progress import take_warnings, warn
from mlnotes.engine.record import Record, print_metrics, read_metrics, summarize

# What is wrong with a disk, and not with the program.
DISK_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM, errno.EIO)


def peak_memory_bytes(device: jax.Device) -> int:
  """The device's peak where it keeps one, otherwise the process's peak resident set."""
  stats = device.memory_stats() or {}
  unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes on macOS
  return int(stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))


def describe_devices(program: Program) -> str:
  """What a program runs on, as "8 x cpu in 2 processes, 4 seeds"."""
  devices = program.mesh.devices.flat
  processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
  seeds = f", {program.num_seeds} seeds" if program.num_seeds > 1 else ""
  return f"{len(devices)} x {devices[0].device_kind}{processes}{seeds}"


def finish(run: Any, parts: Sequence[tuple[Record, Any]], experiment: Experiment, started: float) -> None:
  """The result card of each run, whose seeds are its rows of the program's; then its report, and the card again.

  `run` is that of `mlnotes.engine.loop`, whose every process must call this. Raises OSError where the disk is full.
  """
  states = [take_rows(run.state, rows) for _, rows in parts]
  finite = run.finite()
  if not run.record.writes:
    return
  cards = []
  for record, rows in parts:
    cards.append(_training_card(run, record, rows, np.asarray(finite[rows] if finite.ndim else finite), started))
    record.write_result(**cards[-1], reported=False)
  for (record, _), state, card in zip(parts, states, cards):
    start = time.perf_counter()
    with plain_style():
      figures = _report(run, record, state, experiment)
    card["metrics"] = card["metrics"] | {name: summarize(values) for name, values in figures.items()}
    card["timing"] = card["timing"] | {"report_seconds": time.perf_counter() - start}
    card["warnings"] = [*card["warnings"], *take_warnings()]
    record.write_result(**card, reported=True)
    seconds = "  ".join(f"{k} {v:.4g}" for k, v in card["timing"].items() if v is not None)
    print(f"{seconds}  peak_memory {card['memory']['peak_bytes'] / 2**20:.0f} MiB", file=sys.stderr)
    print_metrics(card["metrics"])
    if best := card["best_checkpoint"]:
      chosen = f", chosen on the {card['best_split']} split" if card["best_split"] else ""
      print(f"best checkpoint: step {best['step']}, {run.best_metric} {best['value']:.4g}{chosen}")
    print(f"finished{', with warnings' if card['warnings'] else ''}: {record.result_path}")


def _training_card(run: Any, record: Record, rows: Any, finite: np.ndarray, started: float) -> dict[str, Any]:
  """What is known of a run before its report."""
  program, config, before = run.program, record.config, record.card()
  unit, examples = config.UNIT, config.units_per_update * config.seeds
  step_seconds = float(np.median(run.step_seconds)) if run.step_seconds else None
  timing = {
    "compile_seconds": program.compile_seconds,
    "step_seconds": step_seconds,
    f"{unit}_per_second": examples / step_seconds if step_seconds else None,
    "data_wait_seconds": program.feeds.train.wait_seconds if program.streamed else 0.0,
    "wall_seconds": time.perf_counter() - started,
  }
  memory = {"peak_bytes": peak_memory_bytes(jax.local_devices()[0])}
  if before is not None and not run.step_seconds:  # reported again: the figures of the training stay
    timing, memory = before.get("timing", timing), before.get("memory", memory)
  take_warnings()
  for text in _divergence(record, finite):
    warn(text)
  return {
    "finished": True, "steps": config.steps,
    "metrics": {name: summarize(value[rows]) for name, value in run.evaluation.items()},
    "best_metric": run.best_metric, "best_mode": "min" if run.sign > 0 else "max",
    "best_split": program.feeds.split, "best_checkpoint": run.best_of(record),
    "timing": timing, "memory": memory, "device": describe_devices(program), "data": program.feeds.fingerprint,
    "started_from": run.started_from, "warnings": take_warnings(),
  }  # fmt: skip


# A training loss that has grown to this, and by as much, has learned nothing.
ABSURD_LOSS = 1e6


def _divergence(record: Record, finite: np.ndarray) -> list[str]:
  """Sentences about the seeds that have diverged: parameters that are not finite, a training loss beyond all bounds."""
  said = []
  name = lambda bad: f" of seed {', '.join(str(s) for s, b in zip(record.seeds, bad) if b)}" if np.size(bad) > 1 else ""
  lost = np.atleast_1d(~finite)
  if lost.any():
    said.append(f"the parameters{name(lost)} are not finite")
  lines = [line for line in read_metrics(record.metrics_path) if line.get("train/loss") is not None]
  if lines:
    values = lambda line: np.array(line.get("train/loss/seeds", [line["train/loss"]]), np.float64)  # null: NaN
    first, last = values(lines[0]), values(lines[-1])
    absurd = (last > ABSURD_LOSS) & ~(last <= ABSURD_LOSS * np.abs(first))
    if absurd.any():
      said.append(f"the training loss{name(absurd)} ended at {last[absurd].max():.3g}, from {first[absurd].max():.3g}")
  return [f"{what}: training has diverged; try a lower --learning_rate or --clip_norm=1." for what in said]


def _report(run: Any, record: Record, state: Any, experiment: Experiment) -> dict[str, list[float]]:
  """Pictures and final figures of one run, seed by seed. What cannot be drawn or measured is a warning."""
  config = record.config
  axis = ("update", 1) if config.UNIT == "examples" else (config.UNIT.replace("_", " "), config.units_per_update)
  with _warning(f"{record.directory / 'curves.png'} could not be drawn"):
    plot_curves(record.directory, *axis, first=run.best_metric)
  figures = []
  for i in range(min(config.seeds, config.report_seeds)):
    of_seed = f" of seed {config.seed + i}" if config.seeds > 1 else ""
    directory = record.directory / f"seed_{config.seed + i}" if config.seeds > 1 else record.directory
    directory.mkdir(exist_ok=True)
    run.progress.say(f"report{of_seed} in {directory}")
    figures.append(None)
    with _warning(f"the report{of_seed} in {directory} is not complete"):
      figures[-1] = experiment.report(seed_state(state, i, config.seeds), directory) or {}
  names = dict.fromkeys(name for found in figures if found for name in found)
  # A seed whose report failed keeps its place; a figure that does not exist for a seed is left out.
  return {
    name: [np.nan if found is None else found[name] for found in figures if found is None or name in found]
    for name in names
  }


@contextlib.contextmanager
def _warning(what: str) -> Iterator[None]:
  """Turns an error of the body into a warning that begins with `what`; a disk that is full stays an error."""
  try:
    yield
  except Exception as error:
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
      raise
    frames = traceback.extract_tb(error.__traceback__)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    where = "" if isinstance(error, InputError) else f" ({type(error).__name__}, {frames[-1].name})"
    warn(f"{what}: {reason}{where}; without result.json the same command tries again.")
