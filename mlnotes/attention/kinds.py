"""Every kind of attention by its name, for a sequence that attends to itself."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array

from mlnotes.attention.additive import AdditiveAttention, HardAttention
from mlnotes.attention.blockwise import blockwise_attention
from mlnotes.attention.dot_product import dot_product_attention
from mlnotes.attention.fixed_length import CompressedAttention, LinformerAttention, SynthesizerAttention
from mlnotes.attention.linear import PerformerAttention, linear_attention
from mlnotes.attention.local import global_attention, local_attention, strided_attention
from mlnotes.attention.mask import Bias, Mask
from mlnotes.attention.reformer import ReformerAttention
from mlnotes.attention.routing import RoutingAttention
from mlnotes.attention.sinkhorn import SinkhornAttention

Attend = Callable[..., Array] | nn.Module


class Sizes(NamedTuple):
  """What kinds are made for; each takes what it needs.

  Attributes:
    length: most tokens that there will be.
    window: keys that local and global see, block of Sinkhorn and of blockwise, chunk of Reformer.
    rank: mixed keys of Linformer, random features of Performer.
    rounds: hashes of Reformer.
  """

  length: int
  window: int = 16
  rank: int = 32
  rounds: int = 2

  @property
  def stride(self) -> int:
    return max(1, round(math.sqrt(self.length)))


class Kind(NamedTuple):
  """How to make it, and what it can.

  Attributes:
    make: sizes to a function of (query, key, value, mask, bias) or a module of the same and `train`.
    causal: whether it has a form in which nothing is seen of later tokens.
    decodes: whether a few queries at the end of cached keys get what they get in the whole sequence.
    biased: whether it takes a bias that is a function of positions.
    shared: whether its keys are its queries.
    uses: which of the sizes it uses, beside the length.
  """

  make: Callable[[Sizes], Attend]
  causal: bool = True
  decodes: bool = True
  biased: bool = True
  shared: bool = False
  uses: tuple[str, ...] = ()


def _windowed(attend: Callable[..., Array], window: int, **options) -> Callable[..., Array]:
  def of_window(query: Array, key: Array, value: Array, mask: Mask, bias: Bias | None = None) -> Array:
    own = window if mask.window is None else min(window, mask.window)
    return attend(query, key, value, mask.replace(window=own), bias, **options)

  return of_window


KINDS: dict[str, Kind] = {
  "dense": Kind(lambda sizes: dot_product_attention),
  "blockwise": Kind(lambda sizes: partial(blockwise_attention, block=sizes.window), uses=("window",)),
  "additive": Kind(lambda sizes: AdditiveAttention()),
  "hard": Kind(lambda sizes: HardAttention()),
  "local": Kind(lambda sizes: _windowed(local_attention, sizes.window), uses=("window",)),
  "strided": Kind(lambda sizes: partial(strided_attention, stride=sizes.stride)),
  "global": Kind(lambda sizes: _windowed(global_attention, sizes.window, tokens=1), uses=("window",)),
  "reformer": Kind(
    lambda sizes: ReformerAttention(sizes.window, sizes.rounds),
    decodes=False, biased=False, shared=True, uses=("window", "rounds"),
  ),
  # A causal mask keeps its pairs, but not which pairs there are, from later tokens.
  "routing": Kind(
    lambda sizes: RoutingAttention(max(1, sizes.length // sizes.window)),
    causal=False, decodes=False, biased=False, uses=("window",),
  ),
  "sinkhorn": Kind(
    lambda sizes: SinkhornAttention(-(-sizes.length // sizes.window), sizes.window),
    decodes=False, biased=False, uses=("window",),
  ),
  "linformer": Kind(
    lambda sizes: LinformerAttention(sizes.length, sizes.rank),
    causal=False, decodes=False, biased=False, uses=("rank",),
  ),
  "compressed": Kind(lambda sizes: CompressedAttention(), biased=False),
  "linear": Kind(lambda sizes: linear_attention, biased=False),
  "performer": Kind(lambda sizes: PerformerAttention(sizes.rank), biased=False, uses=("rank",)),
  "synthesizer": Kind(lambda sizes: SynthesizerAttention(sizes.length)),
  "random_synthesizer": Kind(lambda sizes: SynthesizerAttention(sizes.length, "random")),
}  # fmt: skip
