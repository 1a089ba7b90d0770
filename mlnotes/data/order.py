"""The order in which an epoch visits its examples: a permutation that is computed, never stored.

Any position of any epoch can be asked for on its own, in time and memory that do not grow with the data set. The
arithmetic is on uint32 alone, so NumPy on the host and XLA on the device give the same order bit for bit.
"""

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Key, UInt32

from mlnotes.data.image import DataError
from mlnotes.engine.experiment import stream_key

# Four rounds make a Feistel network pseudo-random if the round function is (Luby and Rackoff 1988); the integer hash
# below is not a cipher and the halves are small, hence twice as many.
_ROUNDS = 8

Index: TypeAlias = Int[Array, " B"] | Int[np.ndarray, " B"]
KeyBits: TypeAlias = UInt32[Array, " W"] | UInt32[np.ndarray, " W"]


def mix_bits(x: Any) -> Any:
  """A bijection of uint32 arrays in which every input bit moves every output bit: Wellons' `lowbias32` constants."""
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
  return x ^ (x >> np.uint32(16))


def _grid(size: int) -> tuple[int, int]:
  """The nearly square grid (rows, columns) of at least `size` cells; less than one row of cells is left over."""
  columns = math.isqrt(size - 1) + 1
  return -(-size // columns), columns


def _encipher(x, rows: int, columns: int, round_keys):
  """A bijection of range(rows * columns): a Feistel network on the two coordinates, added modulo their ranges."""
  row, column = x // np.uint32(columns), x % np.uint32(columns)
  for i in range(_ROUNDS):
    if i % 2:
      row = (row + mix_bits(column ^ round_keys[i]) % np.uint32(rows)) % np.uint32(rows)
    else:
      column = (column + mix_bits(row ^ round_keys[i]) % np.uint32(columns)) % np.uint32(columns)
  return row * np.uint32(columns) + column


def permute_index(index: Index, size: int, key_bits: KeyBits) -> Index:
  """The pseudo-random permutation of range(size) chosen by `key_bits`, evaluated at `index`.

  A format-preserving cipher: a Feistel network over a grid of a x b >= size cells, applied again to whatever falls
  outside range(size) until nothing does (cycle walking). With a = ceil(sqrt(size)) fewer than a cells are outside, so
  the second round is rarely needed: on an accelerator each one costs a synchronisation. Black and Rogaway 2002,
  "Ciphers with arbitrary finite domains", sections 4 and 5.

  `index` holds integers in range(size) (not checked: it may be traced); NumPy in, NumPy out, and the same bits from
  both. `key_bits` are two or more words, such as `jax.random.key_data` gives. Not for cryptography. Raises ValueError
  if `size` is not in 1 .. 2^31 - 1.
  """
  if not 0 < size < 2**31:
    raise ValueError(f"size={size} is out of range: expected 1 to 2147483647.")
  rows, columns = _grid(size)
  words = key_bits.shape[0]
  counters = mix_bits(np.arange(1, _ROUNDS + 1, dtype=np.uint32))
  round_keys = mix_bits(key_bits[np.arange(_ROUNDS) % words] ^ counters)
  last = np.uint32(size - 1)

  def encipher(x):
    return _encipher(x, rows, columns, round_keys)

  x = encipher(index.astype(np.uint32))
  if isinstance(x, np.ndarray):
    while (x > last).any():
      x = np.where(x > last, encipher(x), x)
  else:
    x = lax.while_loop(lambda x: jnp.any(x > last), lambda x: jnp.where(x > last, encipher(x), x), x)
  return x.astype(np.int32)


def fixed_subset(size: int, count: int) -> Int[np.ndarray, " S"]:
  """`count` distinct positions of range(size), rising: pseudo-random and the same in every run; all where `count` is
  not below `size`.

  For whatever looks at a part of a split: the first ones will not do, because a file may be sorted by class. A smaller
  subset is contained in a larger one of the same `size`. Raises ValueError if `size` or `count` is not positive.
  """
  for name, value in (("size", size), ("count", count)):
    if value < 1:
      raise ValueError(f"{name}={value} is out of range: expected at least 1.")
  index = np.arange(min(size, count), dtype=np.int32)
  return index if count >= size else np.sort(permute_index(index, size, np.zeros(2, np.uint32)))


def hold_out(size: int, flag: str) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " M"]]:
  """(training positions, test positions) of range(size): a fixed pseudo-random tenth, at least one, is for testing.

  Raises DataError that begins with `flag` for fewer than two examples.
  """
  if size < 2:
    raise DataError(f"{flag}: found {size} example, expected at least 2 to set a test split aside.")
  order = permute_index(np.arange(size), size, np.zeros(2, np.uint32))
  num_test = max(1, size // 10)
  return order[num_test:], order[:num_test]


def steps_per_epoch(batch_size: int, size: int) -> int:
  """Full batches in one pass over `size` examples; the remainder of an epoch is dropped.

  Raises ValueError if not even one batch can be filled.
  """
  if not 0 < batch_size <= size:
    raise ValueError(f"batch_size={batch_size} is out of range: expected 1 to {size}, the size of the data set.")
  return size // batch_size


def epoch_positions(
  step: Int[Array, ""] | int, batch_size: int, size: int
) -> tuple[Int[Array, ""] | int, Int[Array, " B"] | Int[np.ndarray, " B"]]:
  """(epoch, positions within the epoch) of the batch that update number `step` sees."""
  steps = steps_per_epoch(batch_size, size)
  return step // steps, (step % steps) * batch_size + np.arange(batch_size, dtype=np.int32)


def order_bits(key: Key[Array, ""], epoch: Int[Array, ""] | int) -> UInt32[Array, " W"]:
  """The words that choose the order of `epoch` for the root key `key` of a run."""
  return jax.random.key_data(stream_key(key, "data", epoch))
