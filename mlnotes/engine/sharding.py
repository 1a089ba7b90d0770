"""Which device holds what: arrays over the devices of one or many processes, and fully sharded states (FSDP)."""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from mlnotes.engine.errors import InputError

# Fewer elements than these are not worth a message per update: every device keeps such an array whole.
SMALLEST_SHARDED = 4096


def count_cores(environ: Mapping[str, str] = os.environ) -> int:
  """The cores that this process may use, which is as many threads as XLA has: NPROC, else those of its affinity.

  Raises InputError where NPROC is no such number.
  """
  if given := environ.get("NPROC"):
    if not given.isdecimal() or not 1 <= int(given) <= 1024:
      raise InputError(f"NPROC={given} cannot be used: expected the cores that a process may use, 1 to 1024.")
    return int(given)
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_mesh(count: int = 0, fsdp: int = 1) -> jax.sharding.Mesh:
  """A mesh over the first `count` devices, or all of them for 0: one axis `data`, and `fsdp` where that is above 1.

  Devices of one process stand together, so that its rows of a batch do.
  """
  devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  if count < 0 or count > len(devices):
    raise InputError(f"--devices={count} is out of range: expected 0 (all) to {len(devices)}, the devices found.")
  if jax.process_count() > 1 and count not in (0, len(devices)):
    raise InputError(f"--devices={count} leaves some of the {jax.process_count()} processes without: expected 0 (all).")
  devices = np.asarray(devices[: count or None])
  if fsdp < 1 or devices.size % fsdp:
    raise InputError(f"--fsdp={fsdp} is out of range: expected a divisor of the {devices.size} devices in use.")
  if fsdp == 1:
    return jax.sharding.Mesh(devices, ("data",))
  return jax.sharding.Mesh(devices.reshape(-1, fsdp), ("data", "fsdp"))


def shares_seeds(num_seeds: int, num_devices: int, fsdp: int = 1) -> bool:
  """Whether each device trains whole seeds of its own; otherwise each trains on a part of every batch."""
  return num_seeds > 1 and num_seeds % num_devices == 0 and fsdp == 1


def fsdp_spec(shape: tuple[int, ...], count: int, first_axis: int = 0) -> PartitionSpec:
  """How an array of the state is split over `count` devices: along its largest axis that `count` divides.

  Axes before `first_axis` stay whole, and so does a small array. Rajbhandari et al. 2020 (ZeRO, stage 3), by axes.
  """
  divisible = [axis for axis in range(first_axis, len(shape)) if shape[axis] and shape[axis] % count == 0]
  if not divisible or math.prod(shape) < SMALLEST_SHARDED:
    return PartitionSpec()
  axis = max(divisible, key=lambda axis: shape[axis])
  return PartitionSpec(*(None for _ in range(axis)), "fsdp")


def one_by_one_on_cpu(f: Callable[..., Any]) -> Callable[..., Any]:
  """`f`, whose `jax.vmap` on the CPU computes one row after the other: for `jnp.linalg.solve`, `svd` and the like.

  jaxlib's kernel for many matrices shares them among XLA's threads and waits for these in one of them. With as many
  devices as there are threads all may wait at once, for good. For one matrix it does not share. Other platforms keep
  their kernels for many. Has no derivative in reverse.
  """
  # Of `f` itself it would trace defaults, such as whether svd is to give vectors.
  in_turn = jax.custom_batching.sequential_vmap(lambda *args: f(*args))
  return lambda *args: jax.lax.platform_dependent(*args, cpu=in_turn, default=f)


def place(tree: Any, sharding: Sharding) -> Any:
  """`tree`, the same in every process, on the devices of `sharding`. Each process places its own part: no messages."""
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)

  def one(x):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(one, tree)


def fetch(tree: Any) -> Any:
  """`tree` whole on this process's first device. Every process must call it."""
  device = jax.local_devices()[0]
  if all(x.is_fully_addressable for x in jax.tree.leaves(tree)):
    return jax.device_put(tree, device)
  mesh = next(x.sharding.mesh for x in jax.tree.leaves(tree) if isinstance(x.sharding, NamedSharding))
  whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
  return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), device), whole)
