"""What one update of any experiment costs: compilation, time, throughput, arithmetic, memory.

  python -m launch.bench --experiment=rl.ppo
  python -m launch.bench --experiment=contrastive.simclr --width=16 --batch_size=64 --json=before.json
  python -m launch.bench --experiment=contrastive.simclr --width=16 --batch_size=64 --compare=before.json
  python -m launch.bench --experiment=rl.ppo,rl.a2c --seeds=8
  python -m launch.bench --experiment=softmax_regression.py
  python -m launch.bench --experiment=all

The flags of the experiment follow those of the benchmark; what is not given has the experiment's own default. Several
experiments run one after the other, each in a process of its own. Times are the host's, blocking on the results; no
work directory is written. An update that learns from a replay is timed once there is something to learn from.
"""

import dataclasses
import importlib
import json
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from experiments import catalogue, import_experiment
from launch.jobs import error_line
from launch.measure import describe_machine, make_stepper, measure
from launch.profiler import compare_with_profiler, write_trace
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field, parse, read, run
from mlnotes.engine.loop import SECONDS_PER_DISPATCH, enable_compilation_cache
from mlnotes.engine.record import check_writable, config_dict, to_json, write_atomically


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig(BaseConfig):
  """The benchmark's own flags."""

  experiment: tuple[str, ...] = field(
    (), "<chapter>.<method>, or a module or a .py file of one's own; several with commas, or all"
  )
  measurements: int = field(20, "how many times are taken, for the median and the percentiles")
  seconds: float = field(0.2, "least duration of a measurement, > 0: short updates are timed many at a time")
  json: str = field("", "file for the figures")
  compare: str = field("", "file of an earlier --json: prints the ratios to it")
  trace: str = field("", "directory for a trace of a few updates, to be opened in Perfetto or TensorBoard")
  check_profiler: bool = field(False, "compare the clock with the profiler's own durations: exit code 1 above 5 %")
  cached: bool = field(False, "let compiled programs come from the cache; otherwise compilation is measured afresh")

  def __post_init__(self):
    super().__post_init__()
    require(self.measurements >= 1, "measurements", self.measurements, "1 or more")
    require(self.seconds > 0, "seconds", self.seconds, "a number above 0")
    for name in ("json", "trace"):
      if text := getattr(self, name):
        parent = Path(text).expanduser().absolute().parent
        require(parent.is_dir(), name, text, "a path in a directory that exists")
        found = Path(text).expanduser()
        if name == "json":
          require(not found.is_dir(), name, text, "a file")
        else:
          require(found.is_dir() or not found.exists(), name, text, "a directory")
        check_writable(parent, name, text)


def import_method(name: str) -> ModuleType:
  """The module of an experiment that has updates. Raises InputError for any other."""
  module = import_experiment(name)
  if not hasattr(module, "make"):
    raise InputError(f"--experiment={name} is a study, one computation without a training loop: expected a method.")
  if not hasattr(module, "make_feeds"):
    raise InputError(f"--experiment={name} has no make_feeds(config): expected it beside make(config).")
  return module


def settings_class(name: str) -> type:
  """The flags of the benchmark and of the experiment as one config. Raises InputError as `import_method` does."""
  module = import_method(name)
  try:
    merged = type("Settings", (BenchConfig, module.Config), {"__module__": __name__})
  except TypeError as error:  # one's own flag with the name of one of the benchmark's
    raise InputError(f"--experiment={name} cannot be measured: {error}") from error
  return dataclasses.dataclass(frozen=True, kw_only=True)(merged)


# -- the table -------------------------------------------------------------------------------------------------------


def scaled(value: float | None, unit: str = "") -> str:
  """Three digits and a prefix: 12.3 G. "-" for None."""
  return "-" if value is None else _with_prefix(value, ["", "k", "M", "G", "T", "P"], 1000) + unit


def binary(size: float) -> str:
  """Bytes: 12.3 MiB."""
  return _with_prefix(size, ["", "Ki", "Mi", "Gi", "Ti"], 1024) + "B"


def _with_prefix(value: float, prefixes: Sequence[str], base: int) -> str:
  power = 0
  while abs(value) >= base and power < len(prefixes) - 1:
    value, power = value / base, power + 1
  return f"{value:.3g} {prefixes[power]}" if abs(value) < 999.5 else f"{value:.0f} {prefixes[power]}"


def duration(seconds: float) -> str:
  """12.3 ms and the like."""
  for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
    if seconds * factor >= 1 or unit == "µs":
      return f"{seconds * factor:.3g} {unit}"


def describe_row(row: Mapping[str, Any]) -> list[tuple[str, str]]:
  """(name, value) of each line about one experiment."""
  compilation, step, memory = row["compile"], row["step_seconds"], row["memory"]
  parts = ", ".join(f"{p} {duration(compilation[f'{p}_seconds'])}" for p in ("trace", "lower", "backend"))
  at_least = "" if row["flops_exact"] else " at least: a loop's turns depend on the data"
  used = row["utilization"]
  peak = scaled(row["peak_flops_per_second"], "FLOP/s")
  share = f"{100 * used:.3g} % of {peak} ({row['peak_source']})" if used is not None else row["peak_source"]
  waited = row["data_wait_seconds"]
  return [
    ("layout", describe_layout(row)),
    ("compile", f"{duration(compilation['seconds'])} ({parts}{', from the cache' if compilation['cached'] else ''})"),
    ("first state", f"{duration(row['init_seconds'])}, compilation included"),
    ("update", f"{duration(step['median'])} (10 % {duration(step['p10'])}, 90 % {duration(step['p90'])})"),
    ("measured", f"{row['measurements']} times, {row['updates_each']} updates each, dispatched by {row['dispatch']}"),
    ("throughput", f"{scaled(row[row['unit'] + '_per_second'])} {row['unit'].replace('_', ' ')}/s"),
    (
      "arithmetic",
      f"{scaled(row['flops'], 'FLOP')} per update{at_least}, {100 * _share(row):.0f} % in matrix products",
    ),
    ("utilization", f"{scaled(row['flops_per_second'], 'FLOP/s')}: {share}"),
    ("XLA's count", f"{scaled(row['xla_flops'], 'FLOP')}, {scaled(row['xla_bytes'], 'B')} moved; every loop once"),
    ("memory", f"{binary(memory['program_bytes'])}, of which {binary(memory['temporary_bytes'])} temporary"),
    ("peak memory", binary(memory["peak_bytes"])),
    ("exchanged", describe_traffic(row["traffic"])),
    ("data wait", f"{duration(waited)} per update, {100 * waited / step['median']:.1f} %" if waited else "none"),
  ]


def describe_layout(row: Mapping[str, Any]) -> str:
  """Devices, threads and seeds: "2 devices of 1 thread, 8 seeds side by side"."""
  many = lambda count, noun: f"{count} {noun}{'' if count == 1 else 's'}"
  devices, seeds = row["devices"], row["seeds"]
  text = many(devices, "device") + (f" of {many(row['threads'], 'thread')}" if row["threads"] else "")
  if seeds == 1:
    return text
  order = "in turn" if row["seeds_in_turn"] and seeds > devices else "side by side"
  return f"{text}, {seeds} seeds {order}"


def describe_traffic(traffic: Mapping[str, Mapping[str, int]]) -> str:
  """What a device gets from the others in an update: "13 all-reduce of 66.4 KiB, 4 all-gather of 128 KiB"."""
  parts = [f"{found['count']} {name} of {binary(found['bytes'])}" for name, found in traffic.items()]
  return ", ".join(parts) or "nothing between devices"


def _share(row: Mapping[str, Any]) -> float:
  return row["matrix_flops"] / row["flops"] if row["flops"] else 0.0


_COLUMNS = (
  "experiment", "compile", "update", "10 %", "90 %", "throughput", "per update", "utilization", "memory", "wait",
)  # fmt: skip


def summary_line(row: Mapping[str, Any]) -> list[str]:
  """One line of the table of several experiments."""
  if "error" in row:
    return [row["experiment"], row["error"]]
  step = row["step_seconds"]
  used = row["utilization"]
  return [
    row["experiment"],
    duration(row["compile"]["seconds"]),
    *(duration(step[name]) for name in ("median", "p10", "p90")),
    f"{scaled(row[row['unit'] + '_per_second'])} {row['unit'].replace('_', ' ')}/s",
    ("" if row["flops_exact"] else ">= ") + scaled(row["flops"], "FLOP"),
    f"{100 * used:.2g} %" if used is not None else "-",
    binary(row["memory"]["program_bytes"]),
    duration(row["data_wait_seconds"]) if row["data_wait_seconds"] else "none",
  ]


def format_table(lines: Sequence[Sequence[str]]) -> str:
  """Columns side by side; a line that is shorter than the first one ends in free text."""
  full = [line for line in lines if len(line) == len(lines[0])]
  widths = [max(len(line[i]) for line in full) for i in range(len(lines[0]))]
  return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths)).rstrip() for line in lines)


# -- comparison ------------------------------------------------------------------------------------------------------

# What is compared, and whether less of it is better.
_COMPARED = {
  "compile": lambda row: row["compile"]["seconds"],
  "update": lambda row: row["step_seconds"]["median"],
  "90th percentile": lambda row: row["step_seconds"]["p90"],
  "throughput": lambda row: row[row["unit"] + "_per_second"],
  "arithmetic": lambda row: row["flops"],
  "memory": lambda row: row["memory"]["program_bytes"],
  "peak memory": lambda row: row["memory"]["peak_bytes"],
}


def load_report(path: Path) -> dict[str, Any]:
  """The file that --json wrote. Raises InputError for any other."""
  try:
    report = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(report["machine"], dict) or not all(row["experiment"] for row in report["rows"]):
      raise ValueError("no rows")
    for row in report["rows"]:
      if "error" not in row:
        dict(row["config"]), [float(figure(row)) for figure in _COMPARED.values()]
  except OSError as error:
    raise InputError(f"--compare={path} cannot be read: {error.strerror}.") from error
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"--compare={path} is not a report of this benchmark: expected a file that --json wrote."
    ) from error
  return report


def compare_reports(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
  """Lines: what differs between the machines and settings, then the ratio now / before of each figure."""
  lines = [
    f"warning: {name} differs: {now['machine'].get(name)} now, {before['machine'].get(name)} before"
    for name in sorted(now["machine"].keys() | before["machine"].keys())
    if now["machine"] and now["machine"].get(name) != before["machine"].get(name)
  ]
  earlier = {row["experiment"]: row for row in before["rows"] if "error" not in row}
  table = [["now / before", *_COMPARED]]
  for row in now["rows"]:
    old = earlier.get(row["experiment"])
    if old is None or "error" in row:
      table.append([row["experiment"], "not measured before" if old is None else "failed now"])
      continue
    ours, theirs = row["config"], old["config"]
    differ = [
      f"--{name}={ours.get(name)} now, {theirs.get(name)} before"
      for name in sorted(ours | theirs)
      if ours.get(name) != theirs.get(name)
    ]
    lines += [f"warning: {row['experiment']} ran with other settings: {', '.join(differ)}"] if differ else []
    table.append([row["experiment"], *(_ratio(figure(row), figure(old)) for figure in _COMPARED.values())])
  return [*lines, format_table(table)]


def _ratio(now: float, before: float) -> str:
  return f"{now / before:.3f}" if before else "-"


# -- running ---------------------------------------------------------------------------------------------------------


def experiment_settings(config: Any) -> dict[str, Any]:
  """The settings that are the experiment's, as JSON has them."""
  own = {item.name for item in dataclasses.fields(BenchConfig)}
  return {name: value for name, value in config_dict(config).items() if name not in own}


def bench_one(name: str, config: Any) -> dict[str, Any]:
  """The row of one experiment; writes the trace and checks against the profiler where that is asked for."""
  jax.config.update("jax_enable_compilation_cache", config.cached)
  if config.cached:
    enable_compilation_cache()
  stepper = make_stepper(import_experiment(name), config)
  row = measure(name, stepper, config, config.measurements, config.seconds)
  row["config"] = experiment_settings(config)
  if config.trace:
    print(write_trace(stepper, min(row["updates_each"], 10), Path(config.trace).expanduser()), file=sys.stderr)
  if config.check_profiler:
    # Calls as long as those of a training run: on a busy machine the host's part of a short one is not small.
    each = max(row["updates_each"], math.ceil(SECONDS_PER_DISPATCH / row["step_seconds"]["median"]))
    clock, profiler = compare_with_profiler(stepper, 5, each)
    row["profiler"] = {"clock_seconds": clock, "profiler_seconds": profiler, "difference": clock / profiler - 1}
  return row


def own_arguments(name: str, arguments: Sequence[str], path: Path) -> list[str]:
  """The command line of one experiment out of several. Of a flag given twice the last counts."""
  return [*arguments, f"--experiment={name}", f"--json={path}", "--compare="]


def bench_apart(name: str, arguments: Sequence[str]) -> dict[str, Any]:
  """The report of one experiment measured in another process, so that memory and compilation are its own."""
  with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "row.json"
    command = [sys.executable, "-m", "launch.bench", *own_arguments(name, arguments, path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if path.exists():
      return load_report(path)
  error = error_line(done.stderr.splitlines()) or f"exit code {done.returncode}"
  return {"machine": {}, "rows": [{"experiment": name, "error": error}]}


def save_report(report: Mapping[str, Any], config: BenchConfig) -> None:
  if config.json:
    write_atomically(Path(config.json).expanduser(), json.dumps(to_json(report), indent=2) + "\n")


def finish(report: Mapping[str, Any], config: BenchConfig) -> int:
  """JSON, comparison, exit code."""
  save_report(report, config)
  if config.compare:
    print("\n".join(compare_reports(report, load_report(Path(config.compare).expanduser()))))
  for row in report["rows"]:
    if "profiler" in row:
      clock, profiler, difference = row["profiler"].values()
      print(
        f"{row['experiment']}: {duration(clock)} by the clock, {duration(profiler)} by the profiler for the same "
        f"updates ({100 * difference:+.1f} %); {duration(row['step_seconds']['median'])} without the profiler"
      )
  disagree = [row for row in report["rows"] if abs(row.get("profiler", {}).get("difference", 0.0)) > 0.05]
  return 1 if disagree or any("error" in row for row in report["rows"]) else 0


def main(config: Any) -> int:
  """One experiment, in this process."""
  if config.compare:
    load_report(Path(config.compare).expanduser())  # before any work
  (name,) = config.experiment
  row = bench_one(name, config)
  machine = describe_machine()
  print(f"{name} on {machine['devices']} x {machine['device']} ({machine['processor']}, {machine['cores']} cores)")
  for label, text in describe_row(row):
    print(f"{label:>12}  {text}")
  return finish({"machine": machine, "rows": [row]}, config)


def bench_several(names: Sequence[str], arguments: Sequence[str]) -> int:
  """A line for each experiment, measured in processes of their own; --json has what is measured so far.

  This process touches no device, which would take the others' memory. Raises InputError before any starts.
  """
  own, *_ = [parse_flags(name, arguments) for name in names]
  if own.trace:
    raise InputError(f"--trace={own.trace} is for one experiment: found {len(names)} of them.")
  if own.compare:
    load_report(Path(own.compare).expanduser())
  machine, rows, code = {}, [], 0
  try:
    for i, name in enumerate(names):
      print(f"{i + 1} of {len(names)}: {name} ", end="", file=sys.stderr, flush=True)
      found = bench_apart(name, arguments)
      machine = machine or found["machine"]
      rows += found["rows"]
      print(rows[-1].get("error") or f"{duration(rows[-1]['step_seconds']['median'])} an update", file=sys.stderr)
      save_report({"machine": machine, "rows": rows}, own)
  except KeyboardInterrupt:
    print(f"\nstopped after {len(rows)} of {len(names)} experiments", file=sys.stderr)
    code = 128 + signal.SIGINT
    if not rows:
      return code
  print(format_table([_COLUMNS, *map(summary_line, rows)]))
  return code or finish({"machine": machine, "rows": rows}, own)


def parse_flags(name: str, arguments: Sequence[str]) -> Any:
  """The settings of one experiment, checked. Raises InputError naming what does not fit, with the nearest flag."""
  config_class = settings_class(name)
  return parse(config_class, read(config_class, arguments, "launch.bench"))


def named_experiments(arguments: Sequence[str]) -> list[str]:
  """The names in --experiment. Raises InputError where one does not run in the loop, or none is there."""
  names = list(read(BenchConfig, arguments, "launch.bench", known_only=True)["experiment"].value)
  if not names:
    raise InputError("--experiment is missing: expected a name that `python -m experiments` lists, or all.")
  if names == ["all"]:
    return experiments_in_loop()
  for name in names:
    import_method(name)
  return names


def experiments_in_loop() -> list[str]:
  return [name for name, _ in catalogue() if hasattr(importlib.import_module(f"experiments.{name}"), "make")]


def start(arguments: Sequence[str]) -> None:
  """Runs the command line and exits."""
  asks = [argument for argument in arguments if argument.lstrip("-").startswith("help")]
  if asks and not any("experiment" in argument for argument in arguments):
    run(main, BenchConfig)
  try:
    names = named_experiments([argument for argument in arguments if argument not in asks])
    if asks and len(names) > 1:
      raise InputError("--help is for one experiment: found several.")
    if len(names) > 1:
      sys.exit(bench_several(names, arguments))
    config_class = settings_class(names[0])
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
  run(main, config_class)


if __name__ == "__main__":
  sys.argv = [argument for argument in sys.argv if argument != "--"]
  start(sys.argv[1:])
