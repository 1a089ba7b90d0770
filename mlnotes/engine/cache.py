"""Where results worth keeping between runs are kept: decoded data sets, trained judges, compiled programs."""

import os
from pathlib import Path

from mlnotes.engine.errors import InputError


def cache_directory() -> Path:
  """The directory of the environment variable MLNOTES_CACHE, else ~/.cache/mlnotes. Not created here."""
  try:
    return Path(os.environ.get("MLNOTES_CACHE") or "~/.cache/mlnotes").expanduser()
  except RuntimeError:  # there is no home
    raise InputError("found no home directory for the cache: expected MLNOTES_CACHE=<directory>.") from None
