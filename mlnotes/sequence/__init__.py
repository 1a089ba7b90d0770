"""Recurrent cells and layers, CTC, sequence to sequence, pointers, memory (notes: 循环神经网络, 序列模型)."""

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
from mlnotes.sequence.metrics import edit_distance as edit_distance
