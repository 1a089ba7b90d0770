"""Prompts and what is to be answered: of Python's library, or of a file of JSON lines."""

from typing import NamedTuple

from mlnotes.data.docstrings import read_docstrings, read_summaries
from mlnotes.data.image import DataError
from mlnotes.data.lines import decode_file, json_fields
from mlnotes.data.order import hold_out

BUILT_IN = "docstrings"

Rows = tuple[tuple[str, str], ...]


class Instructions(NamedTuple):
  """Two splits of (prompt, answer)."""

  train: Rows
  test: Rows


def read_instructions(
  path: str, test_path: str = "", fields: tuple[str, str] = ("prompt", "answer"), flag: str = "instructions"
) -> Instructions:
  """The prompts and answers that a file names, those of `test_path` for testing.

  "docstrings":  a function of Python's library as it is called, and the first line of its docstring. Those of modules
                 that the text of that name sets aside are for testing: who has read the others has not read these.
  "path.jsonl":  the two `fields` of each line. A fixed pseudo-random tenth of the distinct prompts is for testing,
                 where there is no `test_path`.

  Raises DataError, one sentence that begins with `--flag` or `--test_flag`.
  """
  if path == BUILT_IN:
    if test_path:
      raise DataError(f"--test_{flag}={test_path}: --{flag}={BUILT_IN} has tests of its own, expected none.")
    texts, modules = list(dict.fromkeys(read_docstrings())), dict(zip(read_docstrings(), read_summaries()))
    tested = {texts[i] for i in hold_out(len(texts), f"--dataset={BUILT_IN}")[1]}
    train, test = (
      tuple(row for text, rows in modules.items() if (text in tested) == of for row in rows) for of in (False, True)
    )
    learned = {answer for _, answer in train}
    return Instructions(train, tuple(row for row in test if row[1] not in learned))
  rows = _read(path, f"--{flag}={path}", fields)
  if test_path:
    return Instructions(rows, _read(test_path, f"--test_{flag}={test_path}", fields))
  prompts = list(dict.fromkeys(prompt for prompt, _ in rows))
  if len(prompts) < 2:
    raise DataError(f"--{flag}={path}: found one prompt, expected two or more, or --test_{flag}: one is for testing.")
  tested = {prompts[i] for i in hold_out(len(prompts), f"--{flag}={path}")[1]}
  return Instructions(*(tuple(row for row in rows if (row[0] in tested) == test) for test in (False, True)))


def _read(path: str, flag: str, fields: tuple[str, str]) -> Rows:
  if not path.endswith(".jsonl"):
    raise DataError(f"{flag}: no such instructions, expected {BUILT_IN} or a file.jsonl.")
  rows = []
  for number, (prompt, answer) in json_fields(decode_file(path, flag), flag, fields):
    if not prompt.strip() or not answer.strip():
      raise DataError(
        f"{flag}: line {number}: found an empty {'answer' if prompt.strip() else 'prompt'}, expected both."
      )
    rows.append((prompt.strip(), answer.strip()))
  if not rows:
    raise DataError(f"{flag}: found no prompt, expected one or more.")
  return tuple(rows)
