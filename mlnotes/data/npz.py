"""The arrays of an .npz file."""

import difflib
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from mlnotes.data.image import DataError

# As alike as two names of six letters of which two have changed places; feature_names is no feature_test.
_NEAR = 0.82


def read_npz(path: str, flag: str, expected: str, names: Collection[str]) -> dict[str, np.ndarray]:
  """The arrays called `names` as far as they are there; all where none is.

  Raises DataError that begins with `flag` for a file that cannot be read, and for a name that is nearly one of `names`,
  so that none that is optional is passed over; `expected` is what it should hold.
  """
  try:
    with open(Path(path).expanduser(), "rb") as file:
      if not zipfile.is_zipfile(file):
        raise DataError(f"{flag}: not an .npz archive or cut short, expected a file written by np.savez.")
      file.seek(0)
      with np.load(file, allow_pickle=False) as archive:
        lacking = set(names).difference(archive.files)
        for name in set(archive.files).difference(names):
          if near := difflib.get_close_matches(name, lacking, 1, _NEAR):
            raise DataError(f"{flag}: found an array {name!r}, which nothing reads: did you mean {near[0]!r}?")
        return {name: archive[name] for name in set(names).intersection(archive.files) or archive.files}
  except FileNotFoundError as error:
    raise DataError(f"{flag}: no such file, expected an .npz with {expected}.") from error
  except DataError:
    raise
  except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
    raise DataError(f"{flag}: not readable ({error}), expected plain arrays written by np.savez.") from error
