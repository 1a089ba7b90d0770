"""Tables: rows of numbers `x` and what is to be predicted from them, `y`: a number, or a class.

Scikit-learn's small ones need no file; a .csv file has a line of names at its head; an .npz file has `x` and `y`.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mlnotes.data.dataset import name_classes
from mlnotes.data.image import DataError
from mlnotes.data.npz import Arrays, read_npz
from mlnotes.data.order import hold_out
from mlnotes.data.split import Expected, NamedArrays, check_arrays

BUILT_IN = ("diabetes", "iris", "wine", "breast_cancer")
# What a split holds, as it is read; `y` is absent where there is no target.
X = Expected("ND", "fiub", np.float64)
NUMBER = Expected("N", "fiub", np.float64)
CLASS = Expected("N", "iu", np.int32, low=0)
# What `x` and `y` are called in the files of others.
_X_NAMES, _Y_NAMES = ("x", "X", "feature", "features", "data"), ("y", "label", "labels", "target")
_NAMES = [f"{name}{end}" for name in (*_X_NAMES, *_Y_NAMES) for end in ("", "_test")]
_MISSING = ("", "na", "n/a", "nan", "null", "none", "?")


class Table(NamedTuple):
  """Two splits {"x": float32 (N, D), "y": float32 or int32 (N,)} and what their columns are called.

  `class_names` is empty where `y` is a number. `categories` are the words behind the whole numbers of a column. What
  was read is `x * x_scale + x_mean`, and `y * y_scale + y_mean` for a number.
  """

  name: str
  train: NamedArrays
  test: NamedArrays
  feature_names: tuple[str, ...]
  class_names: tuple[str, ...] = ()
  categories: Mapping[str, tuple[str, ...]] = {}
  x_mean: Any = 0.0
  x_scale: Any = 1.0
  y_mean: float = 0.0
  y_scale: float = 1.0

  @property
  def num_classes(self) -> int:
    """0 where `y` is a number."""
    return len(self.class_names)


def load_table(
  dataset: str,
  test_dataset: str = "",
  target: str = "",
  target_kind: Literal["auto", "number", "class"] = "auto",
  categories: Literal["refuse", "encode"] = "refuse",
  standardize: Literal["none", "x", "xy"] = "none",
) -> Table:
  """Reads the table that `--dataset` names.

  "diabetes" (a number), "iris", "wine", "breast_cancer" (classes): scikit-learn's, a fixed fifth for testing.
  "path.csv":  a column for each name in its first line. `target` names that of `y`; empty: the last, "none": no one.
  "path.npz":  arrays `x` and `y` (or `label`) and, optionally, `x_test` and `y_test`.

  The rows of `test_dataset` are the test split of a file; without one a fixed pseudo-random tenth is set aside.
  `target_kind`: "auto" takes words (of a .csv), whole numbers and truth values (of an .npz) for classes. `categories`:
  columns of words are refused, or encoded as whole numbers in the order of their words. `standardize` brings `x`, or
  `x` and a number `y`, to mean 0 and standard deviation 1 over the training split, whatever the test split is.

  Raises DataError, one sentence, if there is no such table or it cannot be used.
  """
  if dataset in BUILT_IN:
    read = _load_built_in(dataset, target_kind)
  elif dataset.endswith(".csv"):
    read = _load_csv(dataset, test_dataset, target, target_kind, categories)
  elif dataset.endswith(".npz"):
    read = _load_npz(dataset, test_dataset, target_kind)
  else:
    raise DataError(f"--dataset={dataset}: no such table, expected {', '.join(BUILT_IN)}, a file.csv or a file.npz.")
  return _make_table(read, standardize)


def standardize(
  train: np.ndarray, *others: np.ndarray
) -> tuple[tuple[np.ndarray, ...], np.ndarray | float, np.ndarray | float]:
  """((train, *others) less the mean over `train`, divided by its standard deviation; that mean; that scale).

  A column that does not vary in `train`, to a millionth of a millionth of its mean, is not divided. Arithmetic in 64
  bits, results in 32.
  """
  first = train[0].astype(np.float64)  # less this one, a column that does not vary is 0 without rounding
  mean, scale = first + (train - first).mean(axis=0), (train - first).std(axis=0)
  scale = np.where(scale > 1e-12 * np.abs(mean), scale, 1.0)
  return tuple(((value - mean) / scale).astype(np.float32) for value in (train, *others)), mean, scale


class _Read(NamedTuple):
  """What a table holds and how it is called; the numbers of both splits are still in 64 bits."""

  flag: str
  name: str
  splits: Sequence[Mapping[str, np.ndarray]]
  feature_names: tuple[str, ...]
  class_names: tuple[str, ...]
  categories: Mapping[str, tuple[str, ...]]


def _make_table(read: _Read, which: Literal["none", "x", "xy"]) -> Table:
  """The table in 32 bits, `which` of its arrays standardised before it is rounded."""
  (train, test), moments = map(dict, read.splits), {}
  try:
    splits = NamedArrays(train), NamedArrays(test)  # which refuses what is not finite in 32 bits
  except DataError as error:
    raise DataError(f"{read.flag}: {error}") from error
  if which != "none":
    (train["x"], test["x"]), moments["x_mean"], moments["x_scale"] = standardize(train["x"], test["x"])
    if which == "xy" and "y" in train and not read.class_names:
      (train["y"], test["y"]), mean, scale = standardize(train["y"], test["y"])
      moments |= {"y_mean": float(mean), "y_scale": float(scale)}
    splits = NamedArrays(train), NamedArrays(test)
  return Table(read.name, *splits, read.feature_names, read.class_names, read.categories, **moments)


def _check(
  flag: str,
  name: str,
  parts: Sequence[tuple[Any, Any]],
  feature_names: Sequence[str],
  is_class: bool,
  class_names: Sequence[str] = (),
  categories: Mapping[str, tuple[str, ...]] = {},
) -> _Read:
  """The table of the (x, y) of both splits, or of one that is divided; `y` is None where there is no target."""
  if is_class and not class_names:
    labels, class_names = name_classes(flag, *(y for _, y in parts), of="row")
    parts = [(x, label) for (x, _), label in zip(parts, labels)]
  expected = {"x": X} | ({} if parts[0][1] is None else {"y": CLASS if is_class else NUMBER})
  checked = []
  for (x, y), where in zip(parts, (flag, f"{flag} (test)")):
    checked.append(check_arrays(where, {"x": x} | ({} if y is None else {"y": y}), expected))
    if not checked[-1]["x"].size:
      raise DataError(f"{where}: x has shape {checked[-1]['x'].shape}, expected a row and a column or more.")
  if len(checked) == 1:
    checked = [{n: value[index] for n, value in checked[0].items()} for index in hold_out(len(checked[0]["x"]), flag)]
  train, test = (arrays["x"].shape[1] for arrays in checked)
  if train != test:
    raise DataError(f"{flag}: x has {test} columns in the test split, expected {train}.")
  names = tuple(feature_names) or tuple(f"x{i}" for i in range(train))
  return _Read(flag, name, checked, names, tuple(class_names), categories)


def _load_built_in(dataset: str, target_kind: str) -> _Read:
  from sklearn import datasets
  from sklearn.model_selection import train_test_split

  is_class = dataset != "diabetes"
  if target_kind not in ("auto", "class" if is_class else "number"):
    raise DataError(f"--target_kind={target_kind}: the target of {dataset} is a {'class' if is_class else 'number'}.")
  bunch = getattr(datasets, f"load_{dataset}")(**({} if is_class else {"scaled": False}))
  index = np.arange(len(bunch.target))
  parts = train_test_split(index, test_size=0.2, stratify=bunch.target if is_class else None, random_state=0)
  names = tuple(map(str, bunch.target_names)) if is_class else ()
  pairs = [(bunch.data[i], bunch.target[i]) for i in parts]
  return _check(f"--dataset={dataset}", dataset, pairs, list(map(str, bunch.feature_names)), is_class, names)


# -- files -------------------------------------------------------------------------------------------------------------


def _load_npz(path: str, test_path: str, target_kind: str) -> _Read:
  flag = f"--dataset={path}"
  archives = [(flag, read_npz(path, flag, "x and y", _NAMES))]
  x, y = _pick(*archives[0], "")
  parts = [(x, y)]
  if test_path:
    test_flag = f"--test_dataset={test_path}"
    parts.append(_pick(test_flag, read_npz(test_path, test_flag, "x and y", _NAMES), ""))
  elif any(f"{name}_test" in archives[0][1] for name in _X_NAMES):
    parts.append(_pick(*archives[0], "_test"))
  if len({y is None for _, y in parts}) > 1:
    raise DataError(f"{flag}: found y in one of the two splits, expected it in both or in neither.")
  is_class = y is not None and (target_kind == "class" or (target_kind == "auto" and y.dtype.kind in "iubU"))
  if is_class:
    parts = [(x, y.astype(np.int32) if y.dtype.kind == "b" else y) for x, y in parts]
  return _check(flag, Path(path).stem, parts, (), is_class)


def _pick(flag: str, arrays: Arrays, suffix: str) -> tuple[np.ndarray, np.ndarray | None]:
  x, y = (next((name + suffix for name in names if name + suffix in arrays), "") for names in (_X_NAMES, _Y_NAMES))
  if not x:
    raise DataError(f"{flag}: found the arrays {arrays.listed}, expected x{suffix} and y{suffix}.")
  return arrays[x], arrays[y] if y else None


class _Column(NamedTuple):
  """A column of a .csv: its cells as text, and where they stand."""

  where: str
  name: str
  cells: Sequence[str]
  lines: Sequence[int]

  def is_number(self) -> list[bool]:
    return [_is_number(cell) for cell in self.cells]

  def is_missing(self) -> list[bool]:
    return [cell.lower() in _MISSING for cell in self.cells]

  def is_words(self) -> bool:
    return not any(self.is_number()) and not any(self.is_missing())

  def refuse(self, i: int, expected: str) -> DataError:
    cell = self.cells[i]
    found = f"found {cell!r}" if cell else "found an empty cell"
    return DataError(f"{self.where}: line {self.lines[i]}, column {self.name!r}: {found}, expected {expected}.")

  def as_numbers(self) -> np.ndarray:
    known, missing = self.is_number(), self.is_missing()
    if not any(known) and any(missing):  # words, of which some are missing
      raise self.refuse(missing.index(True), "a word")
    if not all(known):
      raise self.refuse(known.index(False), "a number")
    return np.array([float(cell) for cell in self.cells])

  def as_classes(self) -> np.ndarray:
    """Words, or whole numbers where all of them are."""
    if any(missing := self.is_missing()):
      raise self.refuse(missing.index(True), "a class")
    whole = [cell.removeprefix("+").isdecimal() for cell in self.cells]
    return np.array([int(cell) for cell in self.cells] if all(whole) else list(self.cells))


def _are_words(columns: Sequence[_Column]) -> bool:
  """Whether a column is one of words in every file. Raises DataError where it is in --dataset alone."""
  first, *others = columns
  if not first.is_words():
    return False
  for other in others:
    if not other.is_words():
      known = [number or missing for number, missing in zip(other.is_number(), other.is_missing())]
      raise other.refuse(known.index(True), "a word, as in --dataset")
  return True


def _is_number(cell: str) -> bool:
  try:
    return bool(np.isfinite(float(cell))) and "_" not in cell
  except ValueError:
    return False


def _load_csv(path: str, test_path: str, target: str, target_kind: str, categories: str) -> _Read:
  flags = [f"--dataset={path}"] + ([f"--test_dataset={test_path}"] if test_path else [])
  files = [_read_csv(name, flag) for name, flag in zip((path, test_path), flags)]
  names = [column.name for column in files[0]]
  if len(files) == 2 and [column.name for column in files[1]] != names:
    there = ", ".join(column.name for column in files[1])
    raise DataError(f"{flags[1]}: found the columns {there}, expected those of --dataset: {', '.join(names)}.")
  target = target or names[-1]
  if target not in (*names, "none"):
    raise DataError(f"--target={target}: {path} has no such column, expected one of {', '.join(names)}, or none.")
  features = [name for name in names if name != target]
  if not features:
    raise DataError(f"{flags[0]}: found the column {target} alone, expected one or more beside the target.")
  by_name = [{column.name: column for column in columns} for columns in files]
  encoded, xs = {}, [[] for _ in files]
  for name in features:
    columns = [table[name] for table in by_name]
    if _are_words(columns):
      encoded[name] = tuple(sorted({cell for column in columns for cell in column.cells}))
      values = [np.searchsorted(encoded[name], column.cells).astype(np.float64) for column in columns]
    else:
      values = [column.as_numbers() for column in columns]
    for x, value in zip(xs, values):
      x.append(value)
  if encoded and categories == "refuse":
    spell = lambda words: ", ".join(words[:4]) + (", ..." if len(words) > 4 else "")
    found = "; ".join(f"{name!r} ({spell(words)})" for name, words in encoded.items())
    raise DataError(
      f"{flags[0]}: found words in the column{'s' * (len(encoded) > 1)} {found}, expected numbers, or "
      "--categories=encode to count the words of each from 0."
    )
  ys, is_class = [None for _ in files], False
  if target != "none":
    goals = [table[target] for table in by_name]
    is_class = target_kind == "class" or (target_kind == "auto" and _are_words(goals))
    ys = [goal.as_classes() if is_class else goal.as_numbers() for goal in goals]
  parts = [(np.stack(x, axis=1), y) for x, y in zip(xs, ys)]
  return _check(flags[0], Path(path).stem, parts, features, is_class, categories=encoded)


def _read_csv(path: str, flag: str) -> list[_Column]:
  """The columns of a file with a line of names at its head; lines without anything are passed over."""
  try:
    with open(Path(path).expanduser(), encoding="utf-8-sig", newline="") as file:
      reader = csv.reader(file, strict=True)
      rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
  except FileNotFoundError as error:
    raise DataError(f"{flag}: no such file, expected a .csv with a line of names at its head.") from error
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise DataError(f"{flag}: not readable ({error}), expected lines of cells with commas, in UTF-8.") from error
  if len(rows) < 2:
    raise DataError(f"{flag}: found {len(rows)} lines, expected one of names and one or more of cells.")
  (_, names), *body = rows
  if all(_is_number(name) for name in names):
    raise DataError(f"{flag}: found numbers in the first line ({', '.join(names[:3])}), expected the columns' names.")
  for i, name in enumerate(names):
    if not name or name in names[:i]:
      raise DataError(f"{flag}: column {i + 1} is called {name!r}, expected a name of its own for each.")
  for line, cells in body:
    if len(cells) != len(names):
      raise DataError(f"{flag}: line {line} has {len(cells)} cells, expected {len(names)}: {', '.join(names)}.")
  lines = [line for line, _ in body]
  return [_Column(flag, name, [cells[i] for _, cells in body], lines) for i, name in enumerate(names)]
