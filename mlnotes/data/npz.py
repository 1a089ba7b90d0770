"""The arrays of an .npz file."""

import difflib
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from mlnotes.data.image import DataError

# Two names this alike are one misspelt, and two of the same letters; feature_names is no feature_test.
_NEAR = 0.82


class Arrays(dict[str, np.ndarray]):
  """The arrays of a file that are read, and in words the names of all that it has."""

  listed: str = ""


def _misspelt(name: str, names: Collection[str]) -> str | None:
  """Which of `names` was probably meant."""
  same_letters = [other for other in names if sorted(other) == sorted(name)]
  return next(iter(same_letters or difflib.get_close_matches(name, names, 1, _NEAR)), None)


def read_npz(path: str, flag: str, expected: str, names: Collection[str]) -> Arrays:
  """The arrays called `names` as far as they are there.

  Raises DataError that begins with `flag` for a file that cannot be read, and for a name that is nearly one of `names`,
  so that none that is optional is passed over; `expected` is what it should hold.
  """
  try:
    with open(Path(path).expanduser(), "rb") as file:
      if not zipfile.is_zipfile(file):
        raise DataError(f"{flag}: not an .npz archive or cut short, expected a file written by np.savez.")
      file.seek(0)
      with np.load(file, allow_pickle=False) as archive:
        lacking = [name for name in names if name not in archive.files]
        for name in sorted(set(archive.files).difference(names)):
          if near := _misspelt(name, lacking):
            raise DataError(f"{flag}: found an array {name!r}, which nothing reads: did you mean {near!r}?")
        arrays = Arrays({name: archive[name] for name in set(names).intersection(archive.files)})
        arrays.listed = ", ".join(sorted(archive.files)) or "none"
        return arrays
  except FileNotFoundError as error:
    raise DataError(f"{flag}: no such file, expected an .npz with {expected}.") from error
  except DataError:
    raise
  except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
    raise DataError(f"{flag}: not readable ({error}), expected plain arrays written by np.savez.") from error
