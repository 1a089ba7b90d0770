"""The Transformer's block and stack, with any kind of attention, any order of norms and a cache for decoding."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mlnotes.attention.cache import Cache, make_cache
from mlnotes.attention.dot_product import dot_product_attention
from mlnotes.attention.dropped import DroppedAttention
from mlnotes.attention.mask import EVERYTHING, Bias, Mask
from mlnotes.attention.multi_head import MultiHeadAttention
from mlnotes.attention.position import RotaryForm
from mlnotes.nn.norm import LayerNorm

Order = Literal["pre", "post", "rezero", "layerscale"]
Activation = Literal["relu", "gelu", "gelu_erf", "swiglu", "geglu"]
_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
  "relu": jax.nn.relu,
  "gelu": jax.nn.gelu,
  "gelu_erf": partial(jax.nn.gelu, approximate=False),
  "swiglu": jax.nn.silu,
  "geglu": jax.nn.gelu,
}


class FeedForward(nn.Module):
  """Two matrices and what is between them, at each position by itself.

    relu, gelu, gelu_erf:   W_2 f(W_1 x)                                             Vaswani et al. 2017, eq. 2
    swiglu, geglu:          W_2 (f(W_1 x) * V x), f silu or gelu                     Shazeer 2020, eq. 6

  gelu is its tanh form, as GPT-2's and T5's (there "gelu_new"); gelu_erf the exact one, as BERT's and torch's default.
  `hidden` features between them; None: four times those of x, of gated ones 8/3 times, so that they have as many
  parameters. Raises ValueError for another activation.
  """

  hidden: int | None = None
  activation: Activation = "gelu"
  use_bias: bool = True
  kernel_init: Callable[..., Any] = nn.initializers.xavier_uniform()
  out_init: Callable[..., Any] | None = None
  dense: Callable[..., nn.Module] = nn.Dense
  dtype: DTypeLike | None = None

  def __post_init__(self):
    if self.activation not in _FUNCTIONS:
      raise ValueError(f"activation is {self.activation!r}, expected one of {', '.join(_FUNCTIONS)}")
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: Float[Array, "... D"], train: bool = False, real: Bool[Array, "..."] | None = None
  ) -> Float[Array, "... D"]:
    gated = self.activation in ("swiglu", "geglu")
    hidden = self.hidden or (8 * x.shape[-1] // 3 if gated else 4 * x.shape[-1])

    def dense(features: int, name: str, init=self.kernel_init) -> nn.Module:
      return self.dense(features, self.use_bias, self.dtype, kernel_init=init, name=name)

    y = _FUNCTIONS[self.activation](dense(hidden, "widen")(x))
    if gated:
      y = y * dense(hidden, "gate")(x)
    return dense(x.shape[-1], "narrow", self.out_init or self.kernel_init)(y)


class TransformerBlock(nn.Module):
  """Self-attention, with `cross` attention to a context, and a network at each position: a residual step each.

    pre:         x + f(norm(x))                                          Xiong et al. 2020, table 1 right
    post:        norm(x + f(x))                                          Vaswani et al. 2017, sec. 3.1
    rezero:      x + a f(x), the number a starting at 0                  Bachlechner et al. 2021, eq. 1
    layerscale:  x + a * f(norm(x)), a for each feature, at 1e-4         Touvron et al. 2021 (CaiT), where it
    starts at 0.1 to 1e-6, the lower the deeper

  `attention`, `cross_attention` and `feed_forward` are modules; None for `cross_attention` leaves it out. A module in
  the place of `feed_forward` takes (x, train, real), `real` being False at padding: experts, for one. `dropout` is of
  what a step adds.

  Raises ValueError for another `order`.
  """

  attention: nn.Module
  feed_forward: nn.Module
  cross_attention: nn.Module | None = None
  order: Order = "pre"
  norm: Callable[..., nn.Module] = LayerNorm
  dropout: float = 0.0
  dtype: DTypeLike | None = None

  def __post_init__(self):
    if self.order not in ("pre", "post", "rezero", "layerscale"):
      raise ValueError(f"order is {self.order!r}, expected pre, post, rezero or layerscale")
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    context: Float[Array, "B C E"] | None = None,
    mask: Mask = EVERYTHING,
    context_mask: Mask = EVERYTHING,
    bias: Bias | None = None,
    train: bool = False,
    cache: Cache | None = None,
  ) -> Any:
    """(B, T, D), with a cache also that cache with what x adds to it. Raises ValueError where a context is missing."""

    def step(name: str, x: Array, f: Callable[[Array], Any]) -> tuple[Array, Any]:
      normed = self.norm(dtype=self.dtype, name=f"{name}_norm") if self.order != "rezero" else lambda x: x
      found = f(x if self.order == "post" else normed(x))
      y, more = found if isinstance(found, tuple) else (found, None)
      y = nn.Dropout(self.dropout, deterministic=not train, name=f"{name}_dropout")(y)
      if self.order == "rezero":
        y = y * self.param(f"{name}_weight", nn.initializers.zeros, ()).astype(y.dtype)
      if self.order == "layerscale":
        weight = self.param(f"{name}_weight", nn.initializers.constant(1e-4), (x.shape[-1],))
        y = y * jnp.expand_dims(weight, (0, 1)).astype(y.dtype)
      return (normed(x + y) if self.order == "post" else x + y), more

    x, cache = step("attention", x, lambda x: self.attention(x, None, mask, bias, train, cache))
    if self.cross_attention is not None:
      if context is None:
        raise ValueError("the block has cross attention: expected a context")
      x, _ = step("cross_attention", x, lambda x: self.cross_attention(x, context, context_mask, None, train))
    real = None
    if mask.query_lengths is not None:
      real = jnp.arange(x.shape[1])[None, :] < mask.query_lengths[:, None]
    x, _ = step("feed_forward", x, lambda x: self.feed_forward(x, train, real))
    return x if cache is None else (x, cache)


class Transformer(nn.Module):
  """`depth` blocks, and one more norm behind those of `pre` and `layerscale`.

  An encoder with `Mask.of_self(lengths=...)`, a decoder with `Mask.of_self(causal=True)`, with `cross` one that also
  attends to a context. It embeds nothing and adds no positions but rotary ones: what goes in is (B, T, D).

    cache = transformer.make_cache(batch, 128)
    y, cache = transformer.apply(variables, x, mask=Mask(causal=True), cache=cache)   # prompt, then token for token

  `make_kind` gives the kind of attention of each layer, from its number: a function of (query, key, value, mask, bias)
  or a module, see `MultiHeadAttention`, which `scale`, `query_init`, `dense` are of; None: dot products, whose weights
  are dropped at the rate `attention_dropout`, of cross attention too. `make_feed_forward` gives likewise what stands in
  the place of `FeedForward`. With `remat` only what goes into a block is kept, and it is computed again backward.
  """

  depth: int
  heads: int
  width: int
  kv_heads: int | None = None
  head_dim: int | None = None
  hidden: int | None = None
  make_kind: Callable[[int], Callable[..., Array] | nn.Module] | None = None
  make_feed_forward: Callable[[int], nn.Module] | None = None
  cross: bool = False
  order: Order = "pre"
  norm: Callable[..., nn.Module] = LayerNorm
  activation: Activation = "gelu"
  rotary_base: float = 0.0
  rotary_form: RotaryForm = "halves"
  shared_query_key: bool = False
  use_bias: bool = True
  dropout: float = 0.0
  attention_dropout: float = 0.0
  kernel_init: Callable[..., Any] = nn.initializers.xavier_uniform()
  out_init: Callable[..., Any] | None = None
  query_init: Callable[..., Any] | None = None
  scale: float | None = None
  dense: Callable[..., nn.Module] = nn.Dense
  remat: bool = False
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    context: Float[Array, "B C E"] | None = None,
    mask: Mask = EVERYTHING,
    context_mask: Mask = EVERYTHING,
    bias: Bias | None = None,
    train: bool = False,
    cache: Sequence[Cache] | None = None,
  ) -> Any:
    """(B, T, D), with caches, one for each layer, also these with what x adds. Raises ValueError for D not `width`."""
    if x.shape[-1] != self.width:
      raise ValueError(f"width is {self.width}, found {x.shape[-1]} features")
    if self.make_kind and self.attention_dropout:
      raise ValueError(f"attention_dropout is {self.attention_dropout}, expected 0 for kinds of attention of your own")
    matrices = {
      "kernel_init": self.kernel_init, "out_init": self.out_init, "use_bias": self.use_bias, "dense": self.dense
    }  # fmt: skip
    scores = {"query_init": self.query_init, "scale": self.scale, "dtype": self.dtype, "parent": None}
    # A bias that is a function is none of the arrays that a block is computed again from.
    fixed = (5, 6) if callable(bias) else (6,)
    make_block = nn.remat(TransformerBlock, static_argnums=fixed) if self.remat else TransformerBlock
    new = []
    dots = DroppedAttention(self.attention_dropout, parent=None) if self.attention_dropout else dot_product_attention
    for layer in range(self.depth):
      kind = self.make_kind(layer) if self.make_kind else dots
      attention = MultiHeadAttention(
        self.heads, self.kv_heads, self.head_dim, _free(kind), self.rotary_base, self.rotary_form,
        self.shared_query_key, **scores, **matrices,
      )  # fmt: skip
      cross = None
      if self.cross:
        cross = MultiHeadAttention(self.heads, self.kv_heads, self.head_dim, _free(dots), **scores, **matrices)
      if self.make_feed_forward:
        feed_forward = _free(self.make_feed_forward(layer))
      else:
        feed_forward = FeedForward(self.hidden, self.activation, dtype=self.dtype, parent=None, **matrices)
      block = make_block(
        attention, feed_forward, cross, self.order, self.norm, self.dropout, self.dtype, name=f"block{layer}"
      )
      found = block(x, context, mask, context_mask, bias, train, None if cache is None else cache[layer])
      x, more = (found, None) if cache is None else found
      new.append(more)
    if self.order in ("pre", "layerscale"):
      x = self.norm(dtype=self.dtype, name="last_norm")(x)
    return x if cache is None else (x, tuple(new))

  @nn.nowrap
  def make_cache(self, batch: int, size: int, dtype: DTypeLike | None = None) -> tuple[Cache, ...]:
    """Empty caches with room for `size` tokens, one for each layer."""
    heads, width = self.kv_heads or self.heads, self.head_dim or self.width // self.heads
    kept = dtype or self.dtype or jnp.float32
    return tuple(make_cache(batch, size, heads, width, kept) for _ in range(self.depth))


def _free(part: Any) -> Any:
  """A module that belongs to none yet: its parameters will stand in the block's."""
  return part.clone(parent=None, name=None) if isinstance(part, nn.Module) else part
