"""Recurrent networks, sequences to sequences and what reads and writes them (notes: 循环神经网络, 序列模型)."""

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
from mlnotes.sequence.decoding import (
  Decoded as Decoded,
  Decoder as Decoder,
  beam_search as beam_search,
  greedy as greedy,
  length_normalizer as length_normalizer,
  sample as sample,
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
from mlnotes.sequence.minimal import (
  MinGRUCell as MinGRUCell,
  MinLSTMCell as MinLSTMCell,
  scan_linear as scan_linear,
)
from mlnotes.sequence.recurrent import Recurrent as Recurrent, RecurrentStack as RecurrentStack
from mlnotes.sequence.registry import CELLS as CELLS, make_cell as make_cell
from mlnotes.sequence.seq2seq import RecurrentSeq2Seq as RecurrentSeq2Seq, Scored as Scored, mix_copied as mix_copied
from mlnotes.sequence.transformer_seq2seq import TransformerSeq2Seq as TransformerSeq2Seq
