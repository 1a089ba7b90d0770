"""Recurrent networks, sequences to sequences and what reads and writes them (notes: 循环神经网络, 序列模型)."""

from mlnotes.sequence.cells import (
  ClockworkCell as ClockworkCell,
  ElmanCell as ElmanCell,
  GRUCell as GRUCell,
  JordanCell as JordanCell,
  LSTMCell as LSTMCell,
  SCRNCell as SCRNCell,
)
from mlnotes.sequence.ctc import (
  Alignment as Alignment,
  CtcLoss as CtcLoss,
  Prefixes as Prefixes,
  ctc_align as ctc_align,
  ctc_collapse as ctc_collapse,
  ctc_feasible as ctc_feasible,
  ctc_greedy as ctc_greedy,
  ctc_loss as ctc_loss,
  ctc_prefix_beam as ctc_prefix_beam,
)
from mlnotes.sequence.features import (
  count_frames as count_frames,
  log_mel as log_mel,
  mask_features as mask_features,
  mel_filters as mel_filters,
)
from mlnotes.sequence.frame_classifier import FrameClassifier as FrameClassifier
from mlnotes.sequence.metrics import edit_distance as edit_distance
from mlnotes.sequence.minimal import (
  MinGRUCell as MinGRUCell,
  MinLSTMCell as MinLSTMCell,
  scan_linear as scan_linear,
)
from mlnotes.sequence.recurrent import (
  Recurrent as Recurrent,
  RecurrentBlocks as RecurrentBlocks,
  RecurrentStack as RecurrentStack,
)
from mlnotes.sequence.registry import CELLS as CELLS, make_cell as make_cell
from mlnotes.sequence.strings import (
  draw_line as draw_line,
  draw_utterance as draw_utterance,
  line_width as line_width,
  utterance_samples as utterance_samples,
)
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
