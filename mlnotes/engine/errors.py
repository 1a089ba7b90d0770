"""The one exception that is meant for the person at the terminal, and what its sentences share."""

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
  """A flag, file or argument cannot be used. The message is one sentence: what was found, what was expected.

  Entrypoints print the sentence and exit with code 2; any other exception is a bug and keeps its traceback.
  """


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
  """The end of a sentence about an unknown name: the nearest known one, else `otherwise` or all that are known.

  Of names with dots the last part counts as near: ppo is near to rl.ppo. Capitals count for nothing.
  """
  known = list(known)
  last = lambda text: text.rpartition(".")[2]
  folded = {k.lower(): k for k in reversed(known)}
  close = [folded[k] for k in difflib.get_close_matches(name.lower(), folded, n=1)]
  close = close or [k for k in known if last(k) == last(name)]
  return f"did you mean {close[0]}?" if close else otherwise or f"expected one of {', '.join(known)}."


def require(condition: bool, flag: str, found: Any, expected: str) -> None:
  """Raises the one-sentence ValueError of a flag whose value is out of range."""
  if not condition:
    raise InputError(f"--{flag}={found} is out of range: expected {expected}.")
