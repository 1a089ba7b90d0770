"""A split of any kind of data: named arrays with one leading axis; and what a kind asks of each of its arrays."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree

from mlnotes.data.image import DataError

# Every batch has these of its own.
_TAKEN = ("index", "mask")


@runtime_checkable
class Split(Protocol):
  """Examples by position, as feeds, evaluation batches and fingerprints read them, whatever they are.

  One whose `arrays` are not None also has `take(arrays, index)`, a pure function that gives what `read` gives, from
  arrays that live on the device.
  """

  def __len__(self) -> int: ...

  @property
  def nbytes(self) -> int:
    """Bytes of all examples as arrays."""
    ...

  @property
  def arrays(self) -> Mapping[str, np.ndarray] | None:
    """What examples are taken from; None where each is decoded as it is read."""
    ...

  def read(self, index: Int[np.ndarray, " B"]) -> Mapping[str, np.ndarray]:
    """The examples at `index`, on the host. Safe to call from many threads."""
    ...


class Rows:
  """A split whose examples are the rows of its `arrays`, in memory or memory-mapped."""

  arrays: Mapping[str, np.ndarray]

  def __len__(self) -> int:
    return len(next(iter(self.arrays.values())))

  @property
  def nbytes(self) -> int:
    return sum(value.nbytes for value in self.arrays.values())

  def read(self, index: Int[np.ndarray, " B"]) -> Mapping[str, np.ndarray]:
    return {name: value[index] for name, value in self.arrays.items()}

  @staticmethod
  def take(arrays: PyTree, index: Int[Array, " B"]) -> PyTree:
    """The rows at `index` of every array on the device."""
    return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), arrays)


class NamedArrays(Rows):
  """A split as named arrays, examples along the first axis; real numbers become float32, whole ones int32.

  Raises DataError for arrays of different lengths, none at all, what is no number, and numbers that are not finite in
  float32: fill in or leave out rows with missing values first.
  """

  def __init__(self, arrays: Mapping[str, Any]):
    self.arrays = {name: _as_numbers(name, np.asarray(value)) for name, value in arrays.items()}
    lengths = {name: len(value) for name, value in self.arrays.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
      raise DataError(f"found arrays of lengths {lengths}: expected one length for all, 1 or more.")


def _as_numbers(name: str, value: np.ndarray) -> np.ndarray:
  if value.dtype.kind not in "fiub" or value.ndim == 0:
    raise DataError(f"the array {name!r} has shape {value.shape} and dtype {value.dtype}: expected rows of numbers.")
  if name in _TAKEN:
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


class Expected(NamedTuple):
  """What a kind of data asks of one array, and what it becomes behind the door.

  axes:   a letter for each axis; arrays that share a letter share that size.
  kinds:  NumPy's kinds of dtype that are taken: f real, iu whole, b truth.
  dtype:  what it becomes. Real numbers must be finite.
  low, high: the least and the greatest value; None for any that `dtype` holds.
  """

  axes: Sequence[str]
  kinds: str
  dtype: Any
  low: int | None = None
  high: int | None = None


_KINDS = {"fiub": "numbers", "fiu": "numbers", "iu": "whole numbers", "b": "truth values", "iub": "whole numbers"}


def check_arrays(where: str, arrays: Mapping[str, Any], expected: Mapping[str, Expected]) -> dict[str, np.ndarray]:
  """`arrays` as `expected` has them, each checked; arrays that `expected` does not name are refused.

  Raises DataError, one sentence that begins with `where` and names the array, the place in it, what was found there
  and what was expected.
  """
  if arrays.keys() != expected.keys():
    found, wanted = (", ".join(sorted(names)) or "none" for names in (arrays, expected))
    raise DataError(f"{where}: found the arrays {found}, expected {wanted}.")
  sizes: dict[str, tuple[str, int]] = {}
  checked = {}
  for name, ask in expected.items():
    value = np.asarray(arrays[name])
    if value.dtype.kind not in ask.kinds:
      raise DataError(f"{where}: {name} has dtype {value.dtype}, expected {_KINDS[ask.kinds]}.")
    if value.ndim != len(ask.axes):
      raise DataError(f"{where}: {name} has shape {value.shape}, expected {' '.join(ask.axes)}.")
    for axis, size in zip(ask.axes, value.shape):
      first, other = sizes.setdefault(axis, (name, size))
      if size != other:
        raise DataError(f"{where}: {name} has shape {value.shape}, expected {axis} = {other} as in {first}.")
    _check_values(f"{where}: {name}", value, ask)
    checked[name] = value.astype(ask.dtype, copy=False)
  return checked


def _check_values(where: str, value: np.ndarray, ask: Expected) -> None:
  if value.dtype.kind == "f":
    _refuse_any(where, value, ~np.isfinite(value), "finite numbers")
  if np.dtype(ask.dtype).kind == "i":
    low, high = np.iinfo(ask.dtype).min, np.iinfo(ask.dtype).max
    low, high = low if ask.low is None else ask.low, high if ask.high is None else ask.high
    endless = ask.high is None and np.dtype(ask.dtype).itemsize == 8
    _refuse_any(where, value, (value < low) | (value > high), f"{low} or more" if endless else f"{low} to {high}")


def _refuse_any(where: str, value: np.ndarray, bad: np.ndarray, expected: str) -> None:
  if bad.any():
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    raise DataError(f"{where}{list(place)} is {value[place]}, expected {expected}.")
