"""Every cell by a name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn

from mlnotes.sequence.cells import ClockworkCell, ElmanCell, GRUCell, JordanCell, LSTMCell, SCRNCell
from mlnotes.sequence.minimal import MinGRUCell, MinLSTMCell

CELLS: Mapping[str, Any] = MappingProxyType(
  {
    "elman": ElmanCell,
    "jordan": JordanCell,
    "lstm": LSTMCell,
    "gru": GRUCell,
    "clockwork": ClockworkCell,
    "scrn": SCRNCell,
    "mingru": MinGRUCell,
    "minlstm": MinLSTMCell,
  }
)


def make_cell(name: str, features: int, **options: Any) -> nn.RNNCellBase:
  """The cell of a name, with `features` outputs; `options` are fields of its class.

  Raises ValueError for another name, or what the cell refuses.
  """
  if name not in CELLS:
    raise ValueError(f"cell is {name!r}, expected one of {', '.join(CELLS)}")
  return CELLS[name](features, **options)
