"""Decoded images kept in the cache directory: read once from their files, then memory-mapped."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mlnotes.data.dataset import DataError, RecordSplit, Split, make_array_split
from mlnotes.engine.cache import cache_directory

# A split that takes more than this once decoded is read record by record instead.
DECODE_LIMIT_BYTES = 4 * 2**30
_CHUNK = 512


def decode_once(
  records: RecordSplit, flag: str, stem: str, content: Any, limit_bytes: int = DECODE_LIMIT_BYTES
) -> Split:
  """`records` as arrays, from the cache if they are there; `records` themselves where they take over `limit_bytes`.

  `content` is what the pixels depend on (names, sizes, times of files), anything that JSON takes: another content is
  another entry of the cache, called after `stem`. Raises DataError that begins with `flag` where the cache cannot be
  written or a record cannot be used.
  """
  if records.nbytes > limit_bytes:
    return records
  digest = hashlib.sha256(json.dumps([content, records.image_shape]).encode()).hexdigest()[:16]
  name = re.sub(r"[^\w.]+", "-", stem).strip("-")[:80]
  entry = cache_directory() / "data" / f"{name}-{digest}"
  if not entry.is_dir():
    _decode_to(entry, records, flag)
  image, label = np.load(entry / "image.npy", mmap_mode="r"), np.load(entry / "label.npy")
  return make_array_split(flag, image, label, num_classes=records.num_classes)


def _decode_to(entry: Path, records: RecordSplit, flag: str) -> None:
  """Decodes all records into entry/image.npy and entry/label.npy; `entry` appears complete or not at all."""
  try:
    entry.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
  except OSError as error:
    raise DataError(
      f"{flag}: cannot write the decoded images under {entry.parent} ({error.strerror}),"
      " expected a writable directory in the environment variable MLNOTES_CACHE."
    ) from error
  try:
    size = len(records)
    # In memory first: writing to a memory map on a full disk kills the process, np.save raises.
    image, label = np.empty((size, *records.image_shape), np.uint8), np.empty(size, np.int32)

    def decode(start):
      index = np.arange(start, min(start + _CHUNK, size))
      batch = records.read(index)
      image[index], label[index] = batch["image"], batch["label"]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
      list(pool.map(decode, range(0, size, _CHUNK)))
    np.save(partial / "image.npy", image)
    np.save(partial / "label.npy", label)
    try:
      partial.rename(entry)
    except OSError:
      # Another process was first; its arrays hold the same.
      if not entry.is_dir():
        raise
  except OSError as error:
    raise DataError(
      f"{flag}: decoding to {entry.parent} failed ({error}), expected a writable MLNOTES_CACHE."
    ) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
