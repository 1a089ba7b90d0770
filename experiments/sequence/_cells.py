"""What the chapter's experiments on recurrent cells share: the flags of a stack, and the stack that they describe."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field
from mlnotes.sequence import CELLS, RecurrentStack, make_cell

# The cells that a flag is of.
CELL_FLAGS = {
  "forget_bias": ("lstm", "minlstm"),
  "longest": ("lstm",),
  "periods": ("clockwork",),
  "learn_alpha": ("scrn",),
  "reset": ("gru",),
  "positive": ("mingru", "minlstm"),
  "recurrent_dropout": tuple(name for name in CELLS if not name.startswith("min")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellConfig(BaseConfig):
  """The flags of recurrent layers on top of each other."""

  cell: Literal[tuple(CELLS)] = field("lstm", "kind of recurrent cell")
  depth: int = field(1, "layers")
  width: int = field(64, "units of a layer, in each direction; features of a token where tokens are embedded")
  bidirectional: bool = field(False, "also read from the end of the sequence")
  dropout: float = field(0.0, "of what goes from a layer into the next, in [0, 1)")
  shared_dropout: bool = field(False, "drop the same units at all steps, of the input too")
  recurrent_dropout: float = field(0.0, "of h_{t-1} before the recurrent matrix, the same at all steps, in [0, 1)")
  residual: bool = field(False, "add what goes into a layer to what comes out of it")
  forget_bias: float = field(1.0, "of lstm and minlstm: where the forget gate's bias starts")
  longest: int = field(0, "of lstm: draw that bias for memories of up to so many steps (chrono); 0: --forget_bias")
  periods: tuple[int, ...] = field((1, 2, 4, 8, 16, 32, 64, 128), "of clockwork: steps between a module's ticks")
  learn_alpha: bool = field(False, "of scrn: learn how fast each slow unit fades, which is .95 otherwise")
  reset: Literal["after", "before"] = field("after", "of gru: where the reset gate stands, by the recurrent matrix")
  positive: bool = field(True, "of mingru and minlstm: keep the state above 0")

  def __post_init__(self):
    super().__post_init__()
    for name in ("depth", "width"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("dropout", "recurrent_dropout"):
      require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
    if self.recurrent_dropout and self.cell not in CELL_FLAGS["recurrent_dropout"]:
      raise InputError(f"--recurrent_dropout is before a recurrent matrix, which --cell={self.cell} does not have.")
    build_cell(self)

  @property
  def units(self) -> int:
    """Units of a layer's cell."""
    return self.width

  def idle_flags(self):
    idle = [name for name, cells in CELL_FLAGS.items() if self.cell not in cells]
    idle = dict.fromkeys(idle, f"--cell={self.cell} does not use it")
    if self.cell == "lstm" and self.longest:
      idle["forget_bias"] = "--longest draws it"
    if not self.dropout:
      idle["shared_dropout"] = "--dropout=0 drops nothing"
    return super().idle_flags() | idle


def build_cell(config: CellConfig) -> Any:
  """The cell of the flags. Raises InputError for what it refuses."""
  names = [name for name, cells in CELL_FLAGS.items() if config.cell in cells]
  try:
    return make_cell(config.cell, config.units, dtype=_dtype(config), **{name: getattr(config, name) for name in names})
  except ValueError as error:
    raise InputError(f"--cell={config.cell}: {error}.") from error


def build_stack(config: CellConfig) -> RecurrentStack:
  return RecurrentStack(
    build_cell(config), config.depth, config.bidirectional, config.dropout, config.shared_dropout, config.residual
  )


def _dtype(config: Any) -> Any:
  return jnp.dtype(getattr(config, "precision", "float32"))
