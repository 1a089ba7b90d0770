"""Standard output and error that cannot end a run: closed ones, broken pipes, terminals that know ASCII alone."""

import codecs
import contextlib
import io
import os
import sys
from typing import Any

_ASCII = {"±": "+-", "×": "x", "–": "-", "…": "...", "λ": "lambda", "α": "alpha"}


def _spell(error: UnicodeError) -> tuple[str, int]:
  if not isinstance(error, UnicodeEncodeError):
    raise error
  return "".join(_ASCII.get(c, "?") for c in error.object[error.start : error.end]), error.end


class _LastingStream(io.TextIOWrapper):
  """Goes on where its reader has gone away (`| head`, a closed terminal, a full disk): what is written then is lost."""

  def _lose(self) -> None:
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
      os.dup2(nowhere.fileno(), self.fileno())

  def write(self, text: str) -> int:
    try:
      return super().write(text)
    except OSError:
      self._lose()
      return len(text)

  def flush(self) -> None:
    try:
      super().flush()
    except OSError:
      self._lose()


def prepare_streams() -> None:
  """Makes sys.stdout and sys.stderr such streams; leaves alone what is no stream of the operating system's."""
  codecs.register_error("mlnotes", _spell)
  for descriptor in (0, 1, 2):  # a file that is opened later must not be taken for one of them
    try:
      os.fstat(descriptor)
    except OSError:
      os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
  sys.stdout, sys.stderr = (_lasting(getattr(sys, name), i) for name, i in (("stdout", 1), ("stderr", 2)))


def _lasting(stream: Any, descriptor: int) -> Any:
  if stream is None:  # it was closed
    return io.TextIOWrapper(open(os.devnull, "wb"), encoding="utf-8")
  if type(stream) is not io.TextIOWrapper or stream.fileno() != descriptor:
    return stream
  stream.flush()
  binary = os.fdopen(descriptor, "wb", buffering=0 if descriptor == 2 else -1, closefd=False)
  return _LastingStream(
    binary, encoding=stream.encoding, errors="mlnotes", line_buffering=stream.line_buffering,
    write_through=descriptor == 2,
  )  # fmt: skip
