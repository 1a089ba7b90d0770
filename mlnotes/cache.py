"""Where results worth keeping between runs are kept: decoded data sets, trained judges, compiled programs."""

import os
from pathlib import Path


def cache_directory() -> Path:
  """The directory of the environment variable MLNOTES_CACHE, else ~/.cache/mlnotes. Not created here."""
  return Path(os.environ.get("MLNOTES_CACHE") or "~/.cache/mlnotes").expanduser()
