"""Recurrent networks, sequences to sequences and what reads and writes them (notes: 循环神经网络, 序列模型)."""

from mlnotes.sequence.bits import (
  BitExample as BitExample,
  BitTask as BitTask,
  make_associative_recall as make_associative_recall,
  make_copy as make_copy,
  make_repeat_copy as make_repeat_copy,
)
from mlnotes.sequence.bleu import (
  bleu_of_counts as bleu_of_counts,
  count_ngrams as count_ngrams,
  sentence_bleu as sentence_bleu,
)
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
from mlnotes.sequence.decoding import (
  Decoded as Decoded,
  Decoder as Decoder,
  beam_search as beam_search,
  greedy as greedy,
  length_normalizer as length_normalizer,
  sample as sample,
)
from mlnotes.sequence.features import (
  count_frames as count_frames,
  log_mel as log_mel,
  mask_features as mask_features,
  mel_filters as mel_filters,
)
from mlnotes.sequence.frame_classifier import (
  FrameClassifier as FrameClassifier,
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
from mlnotes.sequence.losses import (
  coverage_loss as coverage_loss,
  draw_coins as draw_coins,
  draw_inputs as draw_inputs,
  guided_attention_loss as guided_attention_loss,
  inverse_sigmoid_decay as inverse_sigmoid_decay,
  minimum_risk_loss as minimum_risk_loss,
  self_critical_loss as self_critical_loss,
)
from mlnotes.sequence.mask_predict import (
  MaskedSeq2Seq as MaskedSeq2Seq,
  draw_masked as draw_masked,
  mask_predict as mask_predict,
  refine as refine,
)
from mlnotes.sequence.metrics import (
  edit_distance as edit_distance,
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
from mlnotes.sequence.registry import (
  CELLS as CELLS,
  make_cell as make_cell,
)
from mlnotes.sequence.seq2seq import (
  RecurrentSeq2Seq as RecurrentSeq2Seq,
  Scored as Scored,
  mix_copied as mix_copied,
)
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
from mlnotes.sequence.transformer_seq2seq import (
  TransformerSeq2Seq as TransformerSeq2Seq,
)
