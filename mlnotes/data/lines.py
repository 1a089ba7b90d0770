"""Files of text and of JSON lines, read for the kinds that are made of texts."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlnotes.data.image import DataError


def decode_file(path: str, flag: str) -> str:
  """The text of a file in UTF-8. Raises DataError that begins with `flag`."""
  try:
    return Path(path).expanduser().read_bytes().decode("utf-8-sig")
  except FileNotFoundError as error:
    raise DataError(f"{flag}: no such file, expected a text in UTF-8.") from error
  except OSError as error:
    raise DataError(f"{flag}: not readable ({error.strerror}), expected a text in UTF-8.") from error
  except UnicodeDecodeError as error:
    raise DataError(f"{flag}: byte {error.start} is no UTF-8 ({error.reason}), expected a text in UTF-8.") from error


def json_fields(text: str, flag: str, names: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
  """(line, the strings in the fields `names`) of each line of JSON that is not blank.

  Raises DataError that begins with `flag` and names the line.
  """
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    where = f"{flag}: line {number}"
    try:
      record = json.loads(line)
    except ValueError as error:
      fields = f"the field{'s' * (len(names) > 1)} {' and '.join(names)}"
      raise DataError(f"{where} is no JSON ({error}), expected an object with {fields}.") from error
    yield number, tuple(_field(record, name, where) for name in names)


def _field(record: object, name: str, where: str) -> str:
  if not isinstance(record, dict) or not isinstance(record.get(name), str):
    there = f"the fields {', '.join(record)}" if isinstance(record, dict) else type(record).__name__
    if isinstance(record, dict) and name in record:
      there = f"{type(record[name]).__name__} in the field {name}"
    raise DataError(f"{where}: found {there}, expected an object with a string in the field {name}.")
  try:
    record[name].encode("utf-8")
  except UnicodeEncodeError as error:
    raise DataError(f"{where}: found half a surrogate pair, expected characters.") from error
  return record[name]
