"""Recurrent networks, sequences to sequences and what reads and writes them (notes: 循环神经网络, 序列模型)."""

from mlnotes.sequence.bits import (
  BitExample as BitExample,
  BitTask as BitTask,
  make_associative_recall as make_associative_recall,
  make_copy as make_copy,
  make_repeat_copy as make_repeat_copy,
)
from mlnotes.sequence.cells import (
  ClockworkCell as ClockworkCell,
  ElmanCell as ElmanCell,
  GRUCell as GRUCell,
  JordanCell as JordanCell,
  LSTMCell as LSTMCell,
  SCRNCell as SCRNCell,
)
from mlnotes.sequence.geometry import (
  NO_POINT as NO_POINT,
  Polygon as Polygon,
  convex_hull as convex_hull,
  is_simple as is_simple,
  nearest_neighbor_tour as nearest_neighbor_tour,
  same_polygon as same_polygon,
  sample_points as sample_points,
  shortest_tour as shortest_tour,
  signed_area as signed_area,
  tour_length as tour_length,
)
from mlnotes.sequence.minimal import (
  MinGRUCell as MinGRUCell,
  MinLSTMCell as MinLSTMCell,
  scan_linear as scan_linear,
)
from mlnotes.sequence.ntm import (
  HeadParameters as HeadParameters,
  NeuralTuringMachine as NeuralTuringMachine,
  NTMCarry as NTMCarry,
  NTMCell as NTMCell,
  address as address,
  content_weights as content_weights,
  read as read,
  sharpen as sharpen,
  shift_weights as shift_weights,
  write as write,
)
from mlnotes.sequence.pointer import (
  Decoding as Decoding,
  PointerNetwork as PointerNetwork,
  Pointing as Pointing,
  advance as advance,
)
from mlnotes.sequence.recurrent import (
  Recurrent as Recurrent,
  RecurrentBlocks as RecurrentBlocks,
  RecurrentStack as RecurrentStack,
)
from mlnotes.sequence.registry import CELLS as CELLS, make_cell as make_cell
from mlnotes.sequence.tagging import (
  count_entities as count_entities,
  make_slots as make_slots,
)
from mlnotes.sequence.tasks import (
  Task as Task,
  make_adding as make_adding,
  make_copying as make_copying,
  make_dyck as make_dyck,
  make_parity as make_parity,
)
