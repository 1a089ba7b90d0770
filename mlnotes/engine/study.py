"""Experiments that are one computation instead of a training run: exact solutions, figures over many runs."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.engine.loop import enable_compilation_cache, usual_jax
from mlnotes.engine.plot import plain_style
from mlnotes.engine.progress import take_warnings
from mlnotes.engine.record import Record, print_metrics, summarize


def run_study(name: str, config: Any, study: Callable[[Path], Mapping[str, Any]], suffix: str = "") -> int:
  """Runs `study(directory)`, which writes its pictures there and returns {figure: one value per run, or a number}.

  Leaves config.json and the result card in `config.workdir`, or in runs/<name><suffix> where that is empty; prints the
  figures and returns the exit code. Raises InputError as `Record` and `study` do; the directory is then free again.
  """
  directory = Path(config.workdir or f"runs/{name}{suffix}").expanduser()
  record = Record(directory, name, config, tensorboard=False)
  enable_compilation_cache()
  record.hold()
  started = time.perf_counter()
  try:
    with usual_jax(), plain_style():
      metrics = {figure: summarize(values) for figure, values in study(directory).items()}
    timing = {"wall_seconds": time.perf_counter() - started}
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    record.write_result(finished=True, metrics=metrics, timing=timing, device=device, warnings=take_warnings())
  except InputError:
    record.forget()
    raise
  finally:
    record.close()
  print_metrics(metrics)
  print(f"finished: {record.result_path}")
  return 0


def each_seed(f: Callable[..., Any], seeds: range) -> Any:
  """`f(root key)` of each seed, results stacked on the host; devices share the seeds where their numbers allow it."""
  return compile_seeds(f, seeds)()


def compile_seeds(f: Callable[..., Any], seeds: range) -> Callable[[], Any]:
  """`each_seed`, compiled but not yet run."""
  count = max(n for n in range(1, min(len(seeds), jax.local_device_count()) + 1) if len(seeds) % n == 0)
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:count]), ("seeds",))
  spec = jax.sharding.PartitionSpec("seeds")
  # Each device has a program of its own: nothing is shared, so nothing is waited for.
  each = jax.shard_map(jax.vmap(f), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  keys = jax.vmap(root_key)(jnp.asarray(seeds))
  compiled = jax.jit(each).lower(keys).compile()
  return lambda: jax.tree.map(lambda x: np.asarray(x, np.float64), compiled(keys))
