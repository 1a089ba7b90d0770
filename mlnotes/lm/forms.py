"""The published forms of language models: GPT-2, Llama, BERT, T5, BART."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from mlnotes.attention.experts import MixtureOfExperts
from mlnotes.attention.transformer import Order, Transformer
from mlnotes.lm.model import EncoderDecoder, LanguageModel
from mlnotes.nn.dense import Dense
from mlnotes.nn.norm import LayerNorm, RMSNorm


def make_gpt2(
  vocabulary: int = 50257,
  length: int = 1024,
  depth: int = 12,
  heads: int = 12,
  width: int = 768,
  *,
  hidden: int | None = None,
  epsilon: float = 1e-5,
  activation: str = "gelu",
  tied: bool = True,
  dropout: float = 0.0,
  attention_dropout: float = 0.0,
  experts: int = 0,
  experts_per_token: int = 2,
  capacity_factor: float | None = None,
  remat: bool = False,
  dtype: DTypeLike | None = None,
) -> LanguageModel:
  """Learned positions, pre-norm and a last norm, tanh GELU, tied head. Radford et al. 2019; the defaults: 124M.

  Weights start with a deviation of .02, those of matrices in front of a residual sum of .02 / sqrt(2 depth). Experts in
  the place of each feed-forward network where `experts` is not 0.
  """
  small = nn.initializers.normal(0.02)
  transformer = Transformer(
    depth, heads, width, hidden=hidden, norm=partial(LayerNorm, epsilon=epsilon), activation=activation,
    dropout=dropout,
    attention_dropout=attention_dropout,
    kernel_init=small, out_init=nn.initializers.normal(0.02 / (2 * depth) ** 0.5), dense=Dense,
    remat=remat, make_feed_forward=_experts(experts, experts_per_token, hidden, capacity_factor, dtype), dtype=dtype,
  )  # fmt: skip
  return LanguageModel(vocabulary, length, transformer, tied=tied, dropout=dropout, dtype=dtype)


def make_llama(
  vocabulary: int = 32000,
  length: int = 2048,
  depth: int = 12,
  heads: int = 12,
  width: int = 768,
  *,
  kv_heads: int | None = None,
  head_dim: int | None = None,
  hidden: int | None = None,
  rotary_base: float = 10000.0,
  epsilon: float = 1e-5,
  tied: bool = True,
  dropout: float = 0.0,
  attention_dropout: float = 0.0,
  experts: int = 0,
  experts_per_token: int = 2,
  capacity_factor: float | None = None,
  remat: bool = False,
  dtype: DTypeLike | None = None,
) -> LanguageModel:
  """Rotary positions, RMS norms, SwiGLU, no biases. Touvron et al. 2023; `kv_heads` shared by groups as in Llama 2.

  Weights start as in `make_gpt2`. Experts (of GELU) in the place of each feed-forward network where `experts` is not 0.
  """
  transformer = Transformer(
    depth, heads, width, kv_heads, head_dim, hidden, norm=partial(RMSNorm, epsilon=epsilon), activation="swiglu",
    rotary_base=rotary_base, use_bias=False, dropout=dropout,
    attention_dropout=attention_dropout, kernel_init=nn.initializers.normal(0.02),
    out_init=nn.initializers.normal(0.02 / (2 * depth) ** 0.5), dense=Dense,
    remat=remat, make_feed_forward=_experts(experts, experts_per_token, hidden, capacity_factor, dtype), dtype=dtype,
  )  # fmt: skip
  return LanguageModel(vocabulary, length, transformer, position="none", tied=tied, dropout=dropout, dtype=dtype)


def make_bert(
  vocabulary: int = 30522,
  length: int = 512,
  depth: int = 12,
  heads: int = 12,
  width: int = 768,
  *,
  hidden: int | None = None,
  types: int = 2,
  epsilon: float = 1e-12,
  activation: str = "gelu_erf",
  head: bool = True,
  pooler: bool = True,
  dropout: float = 0.0,
  attention_dropout: float = 0.0,
  remat: bool = False,
  dtype: DTypeLike | None = None,
) -> LanguageModel:
  """Post-norm, exact GELU, token types, a head with a layer of its own, a pooler. Devlin et al. 2019.

  Without `head` the logits are products with the embeddings alone, for models that were kept without one.
  """
  norm = partial(LayerNorm, epsilon=epsilon)
  transformer = Transformer(
    depth, heads, width, hidden=hidden, order="post", norm=norm, activation=activation, dropout=dropout,
    attention_dropout=attention_dropout,
    kernel_init=nn.initializers.normal(0.02), remat=remat, dense=Dense, dtype=dtype,
  )  # fmt: skip
  transform = partial(jax.nn.gelu, approximate=activation == "gelu") if head else None
  return LanguageModel(
    vocabulary, length, transformer, causal=False, types=types, embed_norm=norm, transform=transform, pooler=pooler,
    dropout=dropout, dtype=dtype,
  )  # fmt: skip


def make_t5(
  vocabulary: int = 32128,
  depth: int = 6,
  heads: int = 8,
  width: int = 512,
  *,
  decoder_depth: int | None = None,
  head_dim: int = 64,
  hidden: int | None = None,
  activation: str = "relu",
  buckets: int = 32,
  furthest: int = 128,
  epsilon: float = 1e-6,
  tied: bool = True,
  divided: bool | None = None,
  dropout: float = 0.0,
  attention_dropout: float = 0.0,
  remat: bool = False,
  dtype: DTypeLike | None = None,
) -> EncoderDecoder:
  """RMS norms ahead of each step, buckets of distances, scores without 1 / sqrt(d), no biases. Raffel et al. 2020.

  The defaults: t5-small. T5 1.1 is `activation="geglu", tied=False`. Weights start as in the authors' code: queries'
  with the root that the scores lack.
  """
  fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
  sides = partial(
    Transformer, heads=heads, width=width, head_dim=head_dim, hidden=hidden or 4 * width, activation=activation,
    norm=partial(RMSNorm, epsilon=epsilon), use_bias=False, scale=1.0, dropout=dropout,
    attention_dropout=attention_dropout, kernel_init=fan_in,
    query_init=nn.initializers.normal((width * head_dim) ** -0.5), remat=remat, dense=Dense, dtype=dtype,
  )  # fmt: skip
  encoder, decoder = sides(depth), sides(decoder_depth or depth, cross=True)
  return EncoderDecoder(vocabulary, encoder, decoder, tied, divided, buckets, furthest, dropout, dtype=dtype)


def make_bart(
  vocabulary: int = 50265,
  length: int = 1024,
  depth: int = 6,
  heads: int = 12,
  width: int = 768,
  *,
  decoder_depth: int | None = None,
  hidden: int | None = None,
  order: Order = "post",
  activation: str = "gelu_erf",
  epsilon: float = 1e-5,
  tied: bool = True,
  dropout: float = 0.0,
  attention_dropout: float = 0.0,
  remat: bool = False,
  dtype: DTypeLike | None = None,
) -> EncoderDecoder:
  """Learned positions for each side, norms of the embeddings, exact GELU, post-norm. Lewis et al. 2020, sec. 2.1.

  The defaults: BART base. `order="pre"` is mBART's, with a last norm for each side. Weights start with a deviation of
  .02.
  """
  small, norm = nn.initializers.normal(0.02), partial(LayerNorm, epsilon=epsilon)
  sides = partial(
    Transformer, heads=heads, width=width, hidden=hidden, order=order, norm=norm, activation=activation,
    dropout=dropout, attention_dropout=attention_dropout, kernel_init=small, remat=remat, dense=Dense, dtype=dtype,
  )  # fmt: skip
  encoder, decoder = sides(depth), sides(decoder_depth or depth, cross=True)
  return EncoderDecoder(
    vocabulary, encoder, decoder, tied, False, dropout=dropout, embed_init=small, position="learned", length=length,
    embed_norm=norm, dtype=dtype,
  )  # fmt: skip


def _experts(count: int, k: int, hidden: int | None, capacity_factor: float | None, dtype: Any) -> Any:
  if not count:
    return None
  if not 1 <= k <= count:
    raise ValueError(f"experts_per_token is {k}, expected 1 to experts={count}")
  return lambda layer: MixtureOfExperts(count, k, hidden, capacity_factor=capacity_factor, dtype=dtype)
