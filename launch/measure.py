"""What a benchmark says about one experiment: compilation, time, arithmetic, memory."""

import contextlib
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax

from launch.flops import Peak, find_peak
from launch.timing import Stepper, summarize_times
from launch.traffic import count_traffic
from mlnotes.engine.arithmetic import count_flops
from mlnotes.engine.loop import LoopConfig
from mlnotes.engine.program import Program, make_mesh
from mlnotes.engine.record import versions
from mlnotes.engine.result import peak_memory_bytes
from mlnotes.engine.sharding import count_cores


@contextlib.contextmanager
def record_compilation() -> Iterator[Counter[str]]:
  """Seconds that JAX spends lowering and in the backend's compiler, and how many programs came from its cache."""
  names = {
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower_seconds",
    "/jax/core/compile/backend_compile_duration": "backend_seconds",
  }
  found = Counter()

  def on_duration(event, seconds, **_):
    if event in names:
      found[names[event]] += seconds

  def on_event(event, **_):
    found["cached"] += event == "/jax/compilation_cache/cache_hits"

  jax.monitoring.register_event_duration_secs_listener(on_duration)
  jax.monitoring.register_event_listener(on_event)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(on_duration)
    jax.monitoring.unregister_event_listener(on_event)


def compile_update(program: Program) -> dict[str, Any]:
  """Compiles the update; {"trace_seconds", "lower_seconds", "backend_seconds", "seconds", "cached"}."""
  with record_compilation() as found:
    start = time.perf_counter()
    program.compile()
    seconds = time.perf_counter() - start
  parts = {name: float(found[name]) for name in ("lower_seconds", "backend_seconds")}
  trace = max(0.0, seconds - sum(parts.values()))
  return {"trace_seconds": trace, **parts, "seconds": seconds, "cached": bool(found["cached"])}


def describe_machine() -> dict[str, Any]:
  device = jax.devices()[0]
  return {
    "device": device.device_kind,
    "devices": jax.device_count(),
    "processor": _processor(),
    "cores": os.cpu_count(),
    "versions": versions("jax", "jaxlib"),
  }


def _processor() -> str:
  with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
    for line in file:
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def make_stepper(module: ModuleType, config: LoopConfig) -> Stepper:
  """The experiment's program with its state, nothing of the update compiled yet."""
  seeds = range(config.seed, config.seed + config.seeds)
  return Stepper(Program(module.make(config), module.make_feeds(config), seeds, make_mesh(config.devices, config.fsdp)))


def updates_before_learning(config: LoopConfig) -> int:
  """Updates of an agent that only fills its replay: what comes after them takes longer."""
  return -(-getattr(config, "learning_starts", 0) // config.units_per_update)


def measure(name: str, stepper: Stepper, config: LoopConfig, measurements: int, seconds: float) -> dict[str, Any]:
  """One row of the benchmark, all times in seconds, all sizes in bytes."""
  program = stepper.program
  compilation = compile_update(program)
  times = stepper.measure(measurements, seconds, warm_up=1 + updates_before_learning(config))
  step = summarize_times(times.step_seconds)
  devices = list(program.mesh.devices.flat)
  units = config.units_per_update * config.seeds
  return {
    "experiment": name,
    "compile": compilation,
    "init_seconds": program.compile_seconds - compilation["seconds"],
    "dispatch": program.dispatch,
    "seeds_in_turn": program.seeds_in_turn,
    "threads": count_cores() if devices[0].platform == "cpu" else None,
    "step_seconds": step,
    "measurements": measurements,
    "updates_each": times.updates_each,
    "unit": config.UNIT,
    "units_per_update": units,
    f"{config.UNIT}_per_second": units / step["median"],
    **_arithmetic(program, step["median"], find_peak(devices, config.precision)),
    "memory": _memory(program, devices[0]),
    "traffic": {name: found._asdict() for name, found in count_traffic(program.compiled_update.as_text()).items()},
    "data_wait_seconds": times.data_wait_seconds,
    "seeds": config.seeds,
    "devices": len(devices),
    "precision": config.precision,
  }


def _arithmetic(program: Program, step_seconds: float, peak: Peak) -> dict[str, Any]:
  work = count_flops(program.trace_update())
  cost = program.compiled_update.cost_analysis() or {}
  rate = work.flops / step_seconds
  return {
    "flops": work.flops,
    "matrix_flops": work.matrix_flops,
    "flops_exact": work.exact,
    # XLA counts the body of every loop once, that of the updates in a stretch as well as those within an update.
    "xla_flops": cost.get("flops", 0.0) + cost.get("transcendentals", 0.0),
    "xla_bytes": cost.get("bytes accessed", 0.0),
    "flops_per_second": rate,
    "peak_flops_per_second": peak.flops_per_second,
    "peak_source": peak.source,
    "utilization": rate / peak.flops_per_second if peak.flops_per_second else None,
  }


def _memory(program: Program, device: jax.Device) -> dict[str, int]:
  """Bytes on one device: what the compiled update needs, and the most that was in use so far."""
  found = program.compiled_update.memory_analysis()
  parts = {name: getattr(found, f"{name}_size_in_bytes", 0) for name in ("argument", "output", "alias", "temp")}
  total = parts["argument"] + parts["output"] - parts["alias"] + parts["temp"]
  return {"program_bytes": int(total), "temporary_bytes": int(parts["temp"]), "peak_bytes": peak_memory_bytes(device)}
