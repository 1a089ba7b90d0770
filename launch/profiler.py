"""The profiler: traces for people, and its own clock as a second opinion on the benchmark's."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from launch.timing import Stepper
from mlnotes.errors import InputError


def write_trace(stepper: Stepper, updates: int, directory: Path) -> str:
  """Traces `updates` updates; returns how to open what was written."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(str(directory), create_perfetto_trace=True):
      stepper(updates)
  except OSError as error:
    raise InputError(f"--trace={directory} cannot be written: {error.strerror or error}.") from error
  newest = max(directory.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
  return (
    f"trace of {updates} updates: open {newest} at https://ui.perfetto.dev, or\n"
    f"  pip install xprof tensorboard && tensorboard --logdir={directory}"
  )


class Comparison(NamedTuple):
  """Seconds of one update: by the host's clock and by the profiler's, of the same updates."""

  clock: float
  profiler: float

  @property
  def difference(self) -> float:
    return self.clock / self.profiler - 1


def compare_with_profiler(stepper: Stepper, calls: int, updates_each: int) -> Comparison:
  """Times `calls` stretches of updates by the clock of the benchmark while the profiler records their execution."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # The host's Python code would be most of the trace, and slow.
  options.host_tracer_level = 1
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory, profiler_options=options):
      clock = sum(stepper(updates_each) for _ in range(calls))
    (path,) = Path(directory).rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
  updates = calls * updates_each
  return Comparison(clock / updates, sum(execution_seconds(data)) / updates)


def execution_seconds(data: jax.profiler.ProfileData) -> Iterator[float]:
  """How long each execution of a program took by the profiler, on the first device.

  Accelerators have a line of their programs ("XLA Modules"). On the CPU the runtime's own thread waits for the threads
  that execute: from the start of the program to the end of that wait. Raises InputError where there is neither.
  """
  planes = {plane.name: plane for plane in data.planes}
  device = next((planes[name] for name in sorted(planes) if name.startswith("/device:") and ":0" in name), None)
  found = False
  if device is not None:
    for line in device.lines:
      if line.name == "XLA Modules":
        for event in line.events:
          found = True
          yield event.duration_ns * 1e-9
  else:
    for line in planes["/host:CPU"].lines:
      if "XLAPjRtCpuClient" in line.name:
        for event in line.events:
          if event.name == "ThunkExecutor::Execute (wait for completion)":
            found = True
            yield event.duration_ns * 1e-9
  if not found:
    raise InputError("--check_profiler: the profiler recorded no execution of a program on this kind of device.")
