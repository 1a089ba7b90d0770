"""What the devices of a compiled program say to each other."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# One that does not wait has two lines, of which that of its end has the result.
_CALL = re.compile(rf"^\s*(?:ROOT )?\S+ = (.+?) ({'|'.join(COLLECTIVES)})(?:-done)?\(", re.MULTILINE)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]")


class Traffic(NamedTuple):
  """How many collectives, and the bytes of their results on one device."""

  count: int
  bytes: int


def count_traffic(hlo: str) -> Mapping[str, Traffic]:
  """{collective: Traffic} of a program as XLA compiled it (`compiled.as_text()`); what is in a loop counts once."""
  found: dict[str, Traffic] = {}
  for result, name in _CALL.findall(hlo):
    count, total = found.get(name, Traffic(0, 0))
    found[name] = Traffic(count + 1, total + sum(_size(*array) for array in _ARRAY.findall(result)))
  return found


def _size(kind: str, shape: str) -> int:
  bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
  return int(np.prod([int(size) for size in shape.split(",") if size], dtype=np.int64)) * bits // 8
