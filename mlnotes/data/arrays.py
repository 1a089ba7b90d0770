"""Data that are no images: any named arrays with one leading axis, in memory."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mlnotes.data.dataset import DataError
from mlnotes.data.feed import ResidentFeed, _take, make_eval_batches
from mlnotes.data.feeds import Feeds
from mlnotes.data.fingerprint import fingerprint_splits
from mlnotes.data.order import epoch_positions, order_bits, permute_index
from mlnotes.engine.errors import require


class NamedArrays:
  """A split as named arrays, examples along the first axis; real numbers become float32, whole ones int32.

  Raises DataError for arrays of different lengths, none at all, what is no number, and numbers that are not finite in
  float32: fill in or leave out rows with missing values first.
  """

  def __init__(self, arrays: Mapping[str, Any]):
    self.arrays = {name: _as_numbers(name, np.asarray(value)) for name, value in arrays.items()}
    lengths = {name: len(value) for name, value in self.arrays.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
      raise DataError(f"found arrays of lengths {lengths}: expected one length for all, 1 or more.")

  def __len__(self) -> int:
    return len(next(iter(self.arrays.values())))

  @property
  def nbytes(self) -> int:
    return sum(value.nbytes for value in self.arrays.values())

  def read(self, index: np.ndarray) -> dict[str, np.ndarray]:
    return {name: value[index] for name, value in self.arrays.items()}


def _as_numbers(name: str, value: np.ndarray) -> np.ndarray:
  if value.dtype.kind not in "fiub" or value.ndim == 0:
    raise DataError(f"the array {name!r} has shape {value.shape} and dtype {value.dtype}: expected rows of numbers.")
  if name in ("index", "mask"):
    raise DataError(f"an array is called {name!r}, which every batch has of its own: expected another name.")
  if value.dtype.kind in "iu" and value.dtype.itemsize > 2:
    if value.size and (value.min() < -(2**31) or value.max() >= 2**31):
      raise DataError(f"the array {name!r} holds numbers beyond 32 bits: expected smaller ones.")
    return value.astype(np.int32)
  return _as_float32(name, value) if value.dtype.kind == "f" else value


def _as_float32(name: str, value: np.ndarray) -> np.ndarray:
  with np.errstate(over="ignore"):
    value = value.astype(np.float32)
  bad = np.argwhere(~np.isfinite(value))
  if len(bad):
    place = tuple(map(int, bad[0]))
    number = "NaN" if np.isnan(value[place]) else str(value[place])
    count = "1 number that is" if len(bad) == 1 else f"{len(bad)} numbers that are"
    raise DataError(
      f"the array {name!r} holds {count} not finite ({number} at {place}): expected finite ones of float32; fill in "
      "or leave out the rows that lack them."
    )
  return value


def make_array_feeds(train: Mapping[str, Any], test: Mapping[str, Any], config: Any) -> Feeds:
  """Training batches of `config.batch_size` drawn on the device, without replacement within an epoch; the test split
  in order, under the names of `train`. A batch also holds `index` and, in evaluations, `mask`.

  Raises InputError for a batch size that the training data cannot fill, DataError as `NamedArrays` does.
  """
  train, test = NamedArrays(train), NamedArrays(test)
  shapes = [{n: (x.shape[1:], x.dtype) for n, x in split.arrays.items()} for split in (train, test)]
  if shapes[0] != shapes[1]:
    raise DataError(f"the test arrays differ from those to learn from (found {shapes[1]}): expected {shapes[0]}.")
  size, batch_size = len(train), config.batch_size
  require(1 <= batch_size <= size, "batch_size", batch_size, f"1 to {size} examples")

  def draw(arrays, key, step):
    epoch, positions = epoch_positions(step, batch_size, size)
    index = permute_index(jnp.asarray(positions), size, order_bits(key, epoch))
    return {**_take(arrays, index), "index": index}

  arrays = {name: jnp.asarray(value) for name, value in train.arrays.items()}
  evaluate = make_eval_batches(test, min(batch_size, len(test)))
  return Feeds(ResidentFeed(arrays, draw), evaluate, split="test", fingerprint=fingerprint_splits(train, test))
