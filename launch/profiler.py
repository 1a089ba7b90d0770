"""The profiler: traces for people, and its own clock as a second opinion on the benchmark's."""

import math
import shlex
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax

from launch.timing import Stepper
from mlnotes.engine.errors import InputError

# Of a recording that is compared with the clock: a million take about a gigabyte and seconds to read.
_MOST_EVENTS = 1_000_000


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
    f"  pip install xprof tensorboard && tensorboard --logdir={shlex.quote(str(directory))}"
  )


class Comparison(NamedTuple):
  """Seconds of one update: by the host's clock and by the profiler's, of the same updates."""

  clock: float
  profiler: float

  @property
  def difference(self) -> float:
    return self.clock / self.profiler - 1


def compare_with_profiler(stepper: Stepper, calls: int, updates_each: int) -> Comparison:
  """Times `calls` stretches of updates by the clock of the benchmark while the profiler records their execution.

  The stretches are shorter where updates have so many operations that their trace could not be held in memory.
  """
  trial = max(1, updates_each // 50)
  _, data = _record(stepper, 1, trial)
  events = sum(1 for plane in data.planes for line in plane.lines for _ in line.events)
  updates_each = max(1, min(updates_each, trial * _MOST_EVENTS // (calls * max(1, events))))
  clock, data = _record(stepper, calls, updates_each)
  updates = calls * updates_each
  return Comparison(clock / updates, execution_seconds(data) / updates)


def _record(stepper: Stepper, calls: int, updates_each: int) -> tuple[float, jax.profiler.ProfileData]:
  """(seconds by the clock, what the profiler has recorded meanwhile)."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # The host's Python code would be most of the trace, and slow.
  options.host_tracer_level = 1
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory, profiler_options=options):
      clock = sum(stepper(updates_each) for _ in range(calls))
    (path,) = Path(directory).rglob("*.xplane.pb")
    return clock, jax.profiler.ProfileData.from_file(str(path))


def execution_seconds(data: jax.profiler.ProfileData) -> float:
  """For how long programs were executed by the profiler, on the first device.

  Accelerators have a line of their programs ("XLA Modules"). On the CPU it is the time in which any of the runtime's
  threads executes an operation or waits for another one to. Raises InputError where there is neither.
  """
  planes = {plane.name: plane for plane in data.planes}
  device = next((planes[name] for name in sorted(planes) if name.startswith("/device:") and ":0" in name), None)
  if device is not None:
    events = [event for line in device.lines if line.name == "XLA Modules" for event in line.events]
  else:
    threads = [line for line in planes["/host:CPU"].lines if line.name.startswith("tf_XLA")]
    events = [event for line in threads for event in line.events if event.duration_ns > 0]
  if not events:
    raise InputError("--check_profiler: the profiler recorded no execution of a program on this kind of device.")
  total, end = 0.0, -math.inf
  for event in sorted(events, key=lambda event: event.start_ns):
    stop = event.start_ns + event.duration_ns
    total += max(0.0, stop - max(end, event.start_ns))
    end = max(end, stop)
  return 1e-9 * total
