"""How a run uses the cores of a CPU: simulated devices and threads, set before JAX starts its backend.

XLA's threads share one operation after the other, from which small arrays gain nothing: the threads wait for each other
longer than they compute. Devices of one thread each compute whole updates of seeds of their own. Nothing that is
computed depends on the layout, but for rounding.

The environment has the first word: NPROC says how many cores a process may use, XLA_FLAGS or JAX_NUM_CPU_DEVICES how
many devices there are.
"""

import contextlib
import os
from collections.abc import Mapping
from importlib import util
from typing import NamedTuple

import jax

from mlnotes.engine.errors import InputError

# XLA makes one function of a loop whose turn touches fewer bytes than this; its own threshold is 1 KiB. Agents with
# tables of some hundred states are 2 to 17 times faster so, networks as fast as before.
_SMALL_LOOP = {"xla_backend_extra_options": "xla_cpu_small_while_loop_byte_threshold=16384"}
# XLA ends the process where devices reach the end of an update or an evaluation more than a minute apart. Episodes of
# other seeds may be longer, and other programs may want the core of one device: they wait for each other for a day.
_PATIENCE = {
  "xla_cpu_collective_call_warn_stuck_timeout_seconds": "3600",
  "xla_cpu_collective_call_terminate_timeout_seconds": "86400",
}


class Layout(NamedTuple):
  """Devices that share the seeds, threads for each operation, and whether loops over small arrays are one function."""

  devices: int
  threads: int
  small_loops: bool = False


# Each device has a copy of the data and of the state.
_MOST_PARTS = 8


def choose_layout(seeds: int, cores: int, fills_cores: bool, batch_size: int = 0) -> Layout:
  """A layout for `seeds` seeds whose updates fill the cores, or do not, each.

  Devices share the seeds, no more of them than shorten the work, each with one thread or its share of the cores; a seed
  that is alone keeps to one thread where its arrays are small. With a `batch_size`, the devices of a seed that is alone
  each take a part of every batch, for what gains by it: networks that compute for a second and speak for a millisecond.
  """
  if seeds > 1:
    turns = -(-seeds // cores)
    devices = -(-seeds // turns)
    return Layout(devices, max(1, cores // devices) if fills_cores else 1, not fills_cores)
  most = min(cores, _MOST_PARTS) if batch_size else 1
  devices = max(parts for parts in range(1, most + 1) if batch_size % parts == 0)
  return Layout(devices, cores // devices if fills_cores else 1, not fills_cores)


def runs_on_cpu(environ: Mapping[str, str] = os.environ) -> bool:
  """Whether JAX will compute on the CPU, as far as that can be told before it starts."""
  if platforms := environ.get("JAX_PLATFORMS", ""):
    return platforms.split(",")[0] == "cpu"
  return not any(map(util.find_spec, ("jax_plugins", "libtpu")))


def apply_layout(layout: Layout) -> None:
  """Makes `layout` that of this process; without effect once JAX has started its backend.

  Raises InputError where JAX was told to have no device.
  """
  if jax.config.jax_num_cpu_devices == 0:
    raise InputError("JAX_NUM_CPU_DEVICES=0 leaves no device: expected 1 or more.")
  flags = os.environ.get("XLA_FLAGS", "")
  os.environ["NPROC"] = str(layout.threads)
  wanted = _PATIENCE | (_SMALL_LOOP if layout.small_loops else {})
  more = [f"--{name}={value}" for name, value in wanted.items() if name not in flags]
  os.environ["XLA_FLAGS"] = " ".join([flags, *more]).strip()
  if jax.config.jax_num_cpu_devices < 0 and "xla_force_host_platform_device_count" not in flags:
    with contextlib.suppress(RuntimeError):  # the backend has started
      jax.config.update("jax_num_cpu_devices", layout.devices)
