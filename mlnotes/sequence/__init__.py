"""Recurrent networks, sequences to sequences and what reads and writes them (notes: 循环神经网络, 序列模型)."""

from mlnotes.sequence.cells import (
  ClockworkCell as ClockworkCell,
  ElmanCell as ElmanCell,
  GRUCell as GRUCell,
  JordanCell as JordanCell,
  LSTMCell as LSTMCell,
  SCRNCell as SCRNCell,
)
from mlnotes.sequence.minimal import (
  MinGRUCell as MinGRUCell,
  MinLSTMCell as MinLSTMCell,
  scan_linear as scan_linear,
)
from mlnotes.sequence.recurrent import Recurrent as Recurrent, RecurrentStack as RecurrentStack
from mlnotes.sequence.registry import CELLS as CELLS, make_cell as make_cell
