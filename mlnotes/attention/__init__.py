"""Attention and its many cheaper forms, positions, the Transformer, experts (notes: 注意力, attention)."""

from mlnotes.attention.additive import (
  AdditiveAttention as AdditiveAttention,
  HardAttention as HardAttention,
  sample_hard_attention as sample_hard_attention,
)
from mlnotes.attention.blockwise import (
  Softmax as Softmax,
  blockwise_attention as blockwise_attention,
  merge as merge,
)
from mlnotes.attention.cache import (
  Cache as Cache,
  extend_cache as extend_cache,
  make_cache as make_cache,
  read_cache as read_cache,
)
from mlnotes.attention.dot_product import (
  attend_densely as attend_densely,
  attend_where as attend_where,
  compute_weights as compute_weights,
  dot_product_attention as dot_product_attention,
  masked_softmax as masked_softmax,
  repeat_heads as repeat_heads,
  scaled_scores as scaled_scores,
)
from mlnotes.attention.dropped import DroppedAttention as DroppedAttention
from mlnotes.attention.experts import (
  MixtureOfExperts as MixtureOfExperts,
  Routing as Routing,
  apply_dropless as apply_dropless,
  apply_with_capacity as apply_with_capacity,
  balance_loss as balance_loss,
  expert_loads as expert_loads,
  route as route,
  router_z_loss as router_z_loss,
)
from mlnotes.attention.fixed_length import (
  CompressedAttention as CompressedAttention,
  LinformerAttention as LinformerAttention,
  SynthesizerAttention as SynthesizerAttention,
)
from mlnotes.attention.kinds import KINDS as KINDS, Kind as Kind, Sizes as Sizes
from mlnotes.attention.linear import (
  PerformerAttention as PerformerAttention,
  draw_projection as draw_projection,
  elu_features as elu_features,
  linear_attention as linear_attention,
  softmax_features as softmax_features,
)
from mlnotes.attention.local import (
  global_attention as global_attention,
  local_attention as local_attention,
  strided_attention as strided_attention,
)
from mlnotes.attention.mask import EVERYTHING as EVERYTHING, Bias as Bias, Mask as Mask, Tokens as Tokens
from mlnotes.attention.multi_head import MultiHeadAttention as MultiHeadAttention
from mlnotes.attention.perceiver import Perceiver as Perceiver, fourier_positions as fourier_positions
from mlnotes.attention.position import (
  alibi_slopes as alibi_slopes,
  apply_rotary as apply_rotary,
  make_alibi as make_alibi,
  make_relative as make_relative,
  relative_buckets as relative_buckets,
  sinusoidal_positions as sinusoidal_positions,
)
from mlnotes.attention.reformer import (
  ReformerAttention as ReformerAttention,
  hash_tokens as hash_tokens,
  lsh_attention as lsh_attention,
)
from mlnotes.attention.ring import ring_attention as ring_attention
from mlnotes.attention.routing import (
  RoutingAttention as RoutingAttention,
  routed_attention as routed_attention,
  update_centroids as update_centroids,
)
from mlnotes.attention.sinkhorn import SinkhornAttention as SinkhornAttention, sinkhorn as sinkhorn
from mlnotes.attention.tasks import (
  Task as Task,
  make_copying as make_copying,
  make_induction as make_induction,
  make_listops as make_listops,
  make_recall as make_recall,
  make_sorting as make_sorting,
)
from mlnotes.attention.token_model import TokenModel as TokenModel
from mlnotes.attention.transformer import (
  FeedForward as FeedForward,
  Transformer as Transformer,
  TransformerBlock as TransformerBlock,
)
