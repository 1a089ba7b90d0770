"""Files in folders called after their classes: FOLDER/cat/1.png, or FOLDER/train/cat/1.png, FOLDER/test/cat/2.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlnotes.data.image import DataError
from mlnotes.engine.errors import nearest


class ClassFiles(NamedTuple):
  """The files of a split, relative to the folder, and their labels."""

  names: tuple[str, ...]
  labels: tuple[int, ...]


def find_class_files(
  folder: str, train_split: str, test_split: str, suffixes: Sequence[str], what: str
) -> tuple[Path, list[ClassFiles], tuple[str, ...]]:
  """(the folder, the files of each split, the names of the classes); one split where the folder has no two.

  `folder` may hold the sub-folders `train_split` and `test_split` with the classes in them. Other files than those of
  `suffixes` and hidden ones are passed over. Raises DataError, one sentence, in which `what` is what a file is.
  """
  root, flag = Path(folder).expanduser(), f"--dataset={folder}"
  if not root.is_dir():
    others = [path.name for path in root.parent.glob("*/")] if root.parent.is_dir() else []
    hint = nearest(root.name, others, f"expected one with a folder of {what}s for each class.")
    raise DataError(f"{flag}: no such folder: {hint}")
  parts = _find_parts(root, train_split, test_split, suffixes, flag)
  classes = tuple(sorted({path.name for part in parts for path in _folders(part)}))
  return root, [_list_files(root, part, classes, suffixes, what, flag) for part in parts], classes


def _folders(root: Path) -> list[Path]:
  return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path, suffixes: Sequence[str]) -> list[Path]:
  shown = (path for path in root.iterdir() if not path.name.startswith("."))
  return sorted(path for path in shown if path.suffix.lower() in suffixes and path.is_file())


def _find_parts(root: Path, train_split: str, test_split: str, suffixes: Sequence[str], flag: str) -> list[Path]:
  """The folders that hold those of the classes: for both splits, or for all files together."""
  train, test = root / train_split, root / test_split
  # A folder with files is a class, even if it is called train.
  is_part = lambda path: path != root and path.is_dir() and bool(_folders(path)) and not _files(path, suffixes)
  if is_part(train):
    if is_part(test):
      return [train, test]
    if test_split == "test":
      return [train]
  elif (train_split, test_split) == ("train", "test") and not is_part(test):
    return [root]
  name, flagged = (train_split, "train_split") if not is_part(train) else (test_split, "test_split")
  there = ", ".join(path.name for path in _folders(root)) or "none"
  raise DataError(f"{flag}: found the folders {there}, expected --{flagged}={name} with the folders of the classes.")


def _list_files(
  root: Path, part: Path, classes: Sequence[str], suffixes: Sequence[str], what: str, flag: str
) -> ClassFiles:
  names, labels = [], []
  for folder in _folders(part):
    files = _files(folder, suffixes)
    if not files:
      raise DataError(
        f"{flag}: found no {what} in {folder.relative_to(root)}, expected {', '.join(s[1:] for s in suffixes)} files "
        "in the folder of each class."
      )
    names += [str(path.relative_to(root)) for path in files]
    labels += [classes.index(folder.name)] * len(files)
  if not names:
    raise DataError(
      f"{flag}: found no folder in {part}, expected one for each class, with its {what}s, in it or in train/ and test/."
    )
  return ClassFiles(tuple(names), tuple(labels))
