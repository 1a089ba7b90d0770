"""Sentences with a label: files of two columns, of JSON lines, or a folder with a file of sentences for each class."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from mlnotes.data.dataset import name_classes
from mlnotes.data.image import DataError
from mlnotes.data.lines import decode_file, json_fields
from mlnotes.data.order import hold_out


class LabelledTexts(NamedTuple):
  """Two splits of texts, each with the number of its class in `classes`."""

  train: tuple[str, ...]
  train_label: Int[np.ndarray, " N"]
  test: tuple[str, ...]
  test_label: Int[np.ndarray, " M"]
  classes: tuple[str, ...]


def read_labelled(dataset: str, test_dataset: str = "", flag: str = "dataset") -> LabelledTexts:
  """The labelled texts that a file names, those of `test_dataset` for testing.

  "path.tsv":    a text and its label in each line that is not blank, a tab between them; quotes mean nothing. UTF-8.
  "path.jsonl":  the field `text`, and a word or whole number in the field `label`, of each line.
  a folder:      files pos.txt, neg.txt, ..., called after their classes, with a text in each line that is not blank.

  Labels are words or whole numbers. Without `test_dataset` a fixed pseudo-random tenth of the distinct texts of each
  class is set aside; a text that is tested is in no training split. Raises DataError, one sentence that begins with
  `--flag` or `--test_flag`.
  """
  train = _read(dataset, f"--{flag}={dataset}")
  if test_dataset:
    test = _read(test_dataset, f"--test_{flag}={test_dataset}")
  else:
    train, test = _set_aside(train, f"--{flag}={dataset}")
  labels = [np.array([label for _, label in rows]) for rows in (train, test)]
  (train_label, test_label), classes = name_classes(f"--{flag}={dataset}", *labels, of="text")
  missing = sorted(set(range(len(classes))) - set(train_label.tolist()))
  if len(classes) < 2 or missing:
    found = f"the class {classes[missing[0]]} in the test texts alone" if missing else f"the class {classes[0]} alone"
    raise DataError(f"--{flag}={dataset}: found {found}, expected two classes or more, all to learn from.")
  return LabelledTexts(tuple(x for x, _ in train), train_label, tuple(x for x, _ in test), test_label, classes)


Rows = list[tuple[str, str]]


def _set_aside(rows: Rows, flag: str) -> tuple[Rows, Rows]:
  tested: set[str] = set()
  for label in sorted({label for _, label in rows}):
    distinct = list(dict.fromkeys(text for text, other in rows if other == label))
    tested |= {distinct[i] for i in hold_out(len(distinct), f"{flag}: class {label}")[1]}
  return [row for row in rows if row[0] not in tested], [row for row in rows if row[0] in tested]


def _read(path: str, flag: str) -> Rows:
  if path.endswith(".tsv"):
    found = _columns(decode_file(path, flag), flag)
  elif path.endswith(".jsonl"):
    found = _records(decode_file(path, flag), flag)
  elif Path(path).expanduser().is_dir():
    found = _folder(Path(path).expanduser(), flag)
  else:
    raise DataError(f"{flag}: no such texts, expected a file.tsv, a file.jsonl or a folder with a .txt for each class.")
  rows = []
  for where, text, label in found:
    if not text.strip() or not label.strip():
      raise DataError(f"{flag}: {where}: found an empty {'label' if text.strip() else 'text'}, expected both.")
    rows.append((text.strip(), label.strip()))
  if not rows:
    raise DataError(f"{flag}: found no text, expected one or more.")
  return rows


Found = Iterator[tuple[str, str, str]]


def _columns(content: str, flag: str) -> Found:
  for number, line in enumerate(content.replace("\r\n", "\n").split("\n"), 1):
    cells = line.split("\t")
    if len(cells) == 1 and not line.strip():
      continue
    if len(cells) != 2:
      raise DataError(
        f"{flag}: line {number} has {len(cells)} column{'s' * (len(cells) > 1)}, expected 2, a text and its label."
      )
    yield f"line {number}", *cells


def _records(content: str, flag: str) -> Found:
  lines = content.split("\n")
  for number, (text,) in json_fields(content, flag, ("text",)):
    label = json.loads(lines[number - 1]).get("label")
    if isinstance(label, bool) or not isinstance(label, (str, int)):
      found = "nothing" if label is None else type(label).__name__
      raise DataError(f"{flag}: line {number}: found {found} in the field label, expected a word or a whole number.")
    yield f"line {number}", text, str(label)


def _folder(folder: Path, flag: str) -> Found:
  files = sorted(folder.glob("*.txt"))
  if len(files) < 2:
    raise DataError(f"{flag}: found {len(files)} .txt in the folder, expected one for each of two classes or more.")
  for path in files:
    for number, line in enumerate(decode_file(str(path), f"{flag}: {path.name}").splitlines(), 1):
      if line.strip():
        yield f"{path.name}, line {number}", line, path.stem
