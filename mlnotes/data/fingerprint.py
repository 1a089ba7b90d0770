"""A short text that changes when the data do, so that a run does not go on with other data unnoticed."""

import hashlib
from typing import Any

import numpy as np

from mlnotes.data.dataset import DataSet

# Hashing reads about a gigabyte per second, decoding images a few megabytes.
_WHOLE_BYTES = 2**28
_ROWS = 4096
_DECODED_ROWS = 64


def fingerprint(data: DataSet) -> str:
  """ "<training examples>x<shape>+<test examples>-<hash>" of a data set.

  The hash is of every byte up to 256 MB a split; of larger ones of 4,096 examples spread evenly, or of 64 where they
  have to be decoded. The same data give the same text wherever they are kept.
  """
  return fingerprint_splits(data.train, data.test, "x" + "x".join(map(str, data.image_shape)))


def fingerprint_splits(train: Any, test: Any, shape: str = "") -> str:
  """The same of two splits, which have a length, `nbytes` and `read`, whatever their `arrays` are."""
  digest = hashlib.blake2b(digest_size=8)
  for split in (train, test):
    _add(digest, split)
  return f"{len(train)}{shape}+{len(test)}-{digest.hexdigest()}"


def _add(digest: "hashlib._Hash", split: Any) -> None:
  if split.arrays is None:
    rows = _spread(len(split), _DECODED_ROWS)
    for name, array in sorted(split.read(rows).items()):
      _add_rows(digest, name, len(split), array)
    return
  for name, array in sorted(split.arrays.items()):
    rows = _spread(len(array), len(array) if split.nbytes <= _WHOLE_BYTES else _ROWS)
    _add_rows(digest, name, len(array), array[rows])


def _spread(size: int, count: int) -> np.ndarray:
  return np.unique(np.linspace(0, size - 1, min(count, size)).astype(np.int64))


def _add_rows(digest: "hashlib._Hash", name: str, size: int, rows: np.ndarray) -> None:
  digest.update(f"{name} {rows.dtype} {size} {rows.shape[1:]}".encode())
  digest.update(np.ascontiguousarray(rows))
