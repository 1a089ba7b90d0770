"""Batches for the training loop: drawn on the device from resident arrays, or streamed from the host.

Both visit the examples in the same order, bit for bit, so which of the two feeds an experiment changes nothing but its
speed. A batch is what the split reads, {"image": uint8 (B, H, W, C), "label": int32 (B,)} for images, and `index`:
int32 (B,), the example's position in its split.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Key, PyTree

from mlnotes.data.order import epoch_positions, fixed_subset, order_bits, permute_index, steps_per_epoch
from mlnotes.data.split import Split
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key

# Resident data may take this much where the device does not report its memory.
RESIDENT_LIMIT_BYTES = 2 * 2**30
# A stream has no end of its own; the loop stops. int32 steps cannot count further.
_STREAM_LENGTH = 2**31 - 1


class ResidentFeed(NamedTuple):
  """Data that lives on the device, and the pure function that draws batch number `step` of the run with root key `key`.

  `arrays` is an argument of the compiled loop, never a constant of it.

  whole: every batch is `arrays` as they are, such as one graph: the same for all seeds, and whole on every device.
  """

  arrays: PyTree
  draw: Callable[[PyTree, Key[Array, ""], Int[Array, ""] | int], PyTree]
  whole: bool = False


# For experiments that make their own data.
EMPTY_FEED = ResidentFeed((), lambda arrays, key, step: ())


class EvalBatches(NamedTuple):
  """A split in order, as `num_batches` batches of one size. `draw(arrays, i)` gives batch i, which also holds `mask`:

  float32 (B,), 1 for an example and 0 for the padding that fills up the last batch (copies of the last example).

  whole: the one batch has no leading axis to share: it is whole on every device.
  """

  arrays: PyTree
  draw: Callable[[PyTree, Int[Array, ""] | int], PyTree]
  num_batches: int
  whole: bool = False


def make_whole_feed(arrays: PyTree) -> ResidentFeed:
  """Every batch is `arrays`, resident as a whole: for data that are one object, such as a graph."""
  return ResidentFeed(jax.tree.map(jnp.asarray, arrays), lambda arrays, key, step: arrays, whole=True)


def make_whole_eval(arrays: PyTree) -> EvalBatches:
  """The same as the one batch of an evaluation; `arrays` hold its `mask`."""
  return EvalBatches(jax.tree.map(jnp.asarray, arrays), lambda arrays, i: arrays, 1, whole=True)


def make_resident_feed(split: Split, batch_size: int) -> ResidentFeed:
  """Puts `split` on the device; each epoch draws without replacement, its remainder dropped.

  Raises ValueError if `batch_size` is not in 1 .. len(split).
  """
  size, take = len(split), split.take
  steps_per_epoch(batch_size, size)

  def draw(arrays, key, step):
    epoch, positions = epoch_positions(step, batch_size, size)
    index = permute_index(jnp.asarray(positions), size, order_bits(key, epoch))
    return {**take(arrays, index), "index": index}

  return ResidentFeed({name: jnp.asarray(value) for name, value in split.arrays.items()}, draw)


def make_eval_batches(split: Split, batch_size: int, limit: int | None = None) -> EvalBatches:
  """Every example of `split` once, in order; with `limit`, a fixed pseudo-random subset of that size.

  Raises ValueError if `batch_size` or `limit` is not positive.
  """
  for name, value in (("batch_size", batch_size), ("limit", len(split) if limit is None else limit)):
    if value < 1:
      raise ValueError(f"{name}={value} is out of range: expected at least 1.")
  index = fixed_subset(len(split), len(split) if limit is None else limit)
  num_batches = -(-len(index) // batch_size)
  mask = np.arange(num_batches * batch_size) < len(index)
  index = np.concatenate([index, np.full(len(mask) - len(index), index[-1])])
  arrays = {**split.read(index), "index": index, "mask": mask.astype(np.float32)}

  def draw(arrays, i):
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i * batch_size, batch_size), arrays)

  return EvalBatches(jax.tree.map(jnp.asarray, arrays), draw, num_batches)


class StreamFeed:
  """A host iterator over batches: `next()` gives the NumPy batch of the next step; worker threads read ahead.

  The position in the data is the step, so `seek(step)` and `get_state`/`set_state` (Grain's iterator state, for the
  checkpoint) resume exactly. `wait_seconds` is the time spent blocked in `next` so far.
  """

  def __init__(self, iterator: Any, start_step: int):
    self._iterator = iterator
    self.wait_seconds = 0.0
    self.seek(start_step)

  def next(self) -> Mapping[str, np.ndarray]:
    start = time.perf_counter()
    batch = next(self._iterator)
    self.wait_seconds += time.perf_counter() - start
    return batch

  def seek(self, step: int) -> None:
    """Makes `step` the number of the batch that `next` gives. Raises ValueError if it is negative."""
    import grain

    if step < 0:
      raise ValueError(f"step={step} is out of range: expected 0 or more.")
    grain.experimental.set_next_index(self._iterator, step)

  @property
  def step(self) -> int:
    """The number of the batch that `next` gives."""
    import grain

    return grain.experimental.get_next_index(self._iterator)

  def get_state(self) -> Mapping[str, Any]:
    return self._iterator.get_state()

  def set_state(self, state: Mapping[str, Any]) -> None:
    self._iterator.set_state(state)

  def close(self) -> None:
    """Stops the worker threads. `next` raises afterwards."""
    self._iterator.close()


class _BatchSource:
  """Random access to batches by step, as Grain reads them. Threads share it: reading changes nothing but a cache."""

  def __init__(self, split: Split, batch_size: int, seeds: Sequence[int], seed_axis: bool, rows: slice):
    self._split, self._batch_size, self._seeds = split, batch_size, seeds
    self._seed_axis, self._rows = seed_axis, rows
    self._order_bits = functools.lru_cache(maxsize=4 * len(seeds))(_host_order_bits)

  def __len__(self) -> int:
    return _STREAM_LENGTH

  def __getitem__(self, step: int) -> Mapping[str, np.ndarray]:
    size = len(self._split)
    epoch, positions = epoch_positions(int(step), self._batch_size, size)
    positions = positions[self._rows]
    index = np.stack([permute_index(positions, size, self._order_bits(seed, epoch)) for seed in self._seeds])
    examples = self._split.read(index.reshape(-1))
    shape = index.shape if self._seed_axis else index.shape[1:]
    return {name: x.reshape(*shape, *x.shape[1:]) for name, x in {**examples, "index": index.reshape(-1)}.items()}


def on_cpu() -> AbstractContextManager:
  """What is computed inside is computed on the first CPU of this process, as far as JAX has one."""
  try:
    cpu = jax.local_devices(backend="cpu")[0]
  except RuntimeError:  # JAX_PLATFORMS may leave the CPU out.
    cpu = None
  return jax.default_device(cpu)


def _host_order_bits(seed: int, epoch: int) -> np.ndarray:
  """The words of `order_bits` for the run of `seed`."""
  with on_cpu():  # the accelerator may be busy with a long step
    return np.asarray(order_bits(root_key(seed), epoch))


def make_stream_feed(
  split: Split,
  batch_size: int,
  seeds: int | Sequence[int],
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int | None = None,
) -> StreamFeed:
  """Streams the batches that `make_resident_feed` draws for the root key of `seed`.

  One seed (an int) gives batches of B examples; a sequence of S seeds gives S x B, one order for each seed. Process
  `process_index` of `process_count` reads only its rows of the global batch, B / process_count of them.

  Raises ValueError if `batch_size` is not in 1 .. len(split) or not divisible by `process_count`.
  """
  import grain

  steps_per_epoch(batch_size, len(split))
  if not 0 <= process_index < process_count:
    raise ValueError(f"process_index={process_index} is out of range: expected 0 to {process_count - 1}.")
  if batch_size % process_count:
    raise ValueError(f"batch_size={batch_size} is not divisible: expected a multiple of {process_count} processes.")
  seed_axis = not isinstance(seeds, int)
  seeds = tuple(seeds) if seed_axis else (seeds,)
  if not seeds:
    raise ValueError("seeds is empty: expected at least one seed.")
  local = batch_size // process_count
  rows = slice(process_index * local, (process_index + 1) * local)
  if num_threads is None:
    # Copying from a memory map needs little; decoding needs every core.
    num_threads = 2 if split.arrays is not None else os.cpu_count() or 1
  source = _BatchSource(split, batch_size, seeds, seed_axis, rows)
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
  return StreamFeed(iter(grain.MapDataset.source(source).to_iter_dataset(options)), start_step)


def choose_placement(
  split: Split, placement: Literal["auto", "device", "stream"], limit_bytes: int | None = None
) -> Literal["device", "stream"]:
  """Where the training data lives. "auto" is the device if the data takes at most `limit_bytes` there.

  The limit defaults to a quarter of the device's memory; where the device does not tell, as on a CPU, whose simulated
  devices have a copy each, to 2 GiB, or to an equal share of a quarter of the machine's memory where that is less.
  Raises InputError for "device" if the data was too large to decode.
  """
  if split.arrays is not None:
    if placement != "auto":
      return placement
    return "device" if split.nbytes <= (_resident_limit() if limit_bytes is None else limit_bytes) else "stream"
  if placement == "device":
    raise InputError(
      f"--data_placement=device: found {split.nbytes / 2**30:.1f} GiB of files that are decoded as they are read,"
      " expected stream or auto for them."
    )
  return "stream"


def _resident_limit() -> int:
  stats = jax.local_devices()[0].memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"] // 4
  machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return min(RESIDENT_LIMIT_BYTES, machine // 4 // jax.local_device_count())
