"""Attention of several heads with its projections, by any kind of attention."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mlnotes.attention.cache import Cache, extend_cache, read_cache
from mlnotes.attention.dot_product import compute_weights, dot_product_attention
from mlnotes.attention.mask import EVERYTHING, Bias, Mask
from mlnotes.attention.position import RotaryForm, apply_rotary


class MultiHeadAttention(nn.Module):
  """Queries, keys and values of `heads` heads by a matrix each, a kind of attention, and a matrix behind it.

    [head_1 ... head_N] W_o,   head_i = attend(x W_q^i, c W_k^i, c W_v^i)            Vaswani et al. 2017, sec. 3.2.2

  for c = x where no `context` is given. `kind` is a function of (query, key, value, mask, bias) or a module of the
  same arguments and `train`. With `kv_heads` below `heads`, groups of heads share keys and values.

  Where the collection "weights" is mutable, `compute_weights` of this layer are sown into it, and nothing else changes.
  Kinds that draw in training draw once more for them: take them without `train`.

  Attributes:
    head_dim: features of each head; None: those of x / heads.
    rotary_base: queries and keys are turned by their positions, Su et al. 2021; 0: not.
    shared_query_key: keys are the queries, Kitaev et al. 2020, sec. 2.
    query_init: of the queries' matrix; None: `kernel_init`.
    scale: what the products of queries and keys are multiplied by, in the place of 1 / sqrt(head_dim): 1 for T5.
    dense: makes the layers of the four matrices: `mlnotes.nn.dense.Dense` is faster on a CPU.

  Raises ValueError where `heads` does not divide the features of x, or is no multiple of `kv_heads`, and for a context
  with a cache.
  """

  heads: int
  kv_heads: int | None = None
  head_dim: int | None = None
  kind: Callable[..., Array] | nn.Module = dot_product_attention
  rotary_base: float = 0.0
  rotary_form: RotaryForm = "halves"
  shared_query_key: bool = False
  use_bias: bool = False
  kernel_init: Callable[..., Any] = nn.initializers.xavier_uniform()
  out_init: Callable[..., Any] | None = None
  query_init: Callable[..., Any] | None = None
  scale: float | None = None
  dense: Callable[..., nn.Module] = nn.Dense
  dtype: DTypeLike | None = None

  def __post_init__(self):
    if self.heads < 1 or self.heads % (self.kv_heads or self.heads):
      raise ValueError(f"heads is {self.heads}, expected a multiple of kv_heads={self.kv_heads}")
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    context: Float[Array, "B S E"] | None = None,
    mask: Mask = EVERYTHING,
    bias: Bias | None = None,
    train: bool = False,
    cache: Cache | None = None,
  ) -> Any:
    """(B, T, D); with a cache (that, the cache with the keys and values of x as well)."""
    if self.head_dim is None and x.shape[-1] % self.heads:
      raise ValueError(f"heads is {self.heads}, expected a divisor of the {x.shape[-1]} features")
    if context is not None and cache is not None:
      raise ValueError("a cache is of a sequence that attends to itself: expected no context")
    width = self.head_dim or x.shape[-1] // self.heads

    def project(name: str, x: Array, heads: int) -> Array:
      init = (name == "query" and self.query_init) or self.kernel_init
      dense = self.dense(heads * width, self.use_bias, self.dtype, kernel_init=init, name=name)
      return dense(x).reshape(*x.shape[:2], heads, width)

    source = x if context is None else context
    query = project("query", x, self.heads)
    key = query if self.shared_query_key else project("key", source, self.kv_heads or self.heads)
    value = project("value", source, self.kv_heads or self.heads)
    if cache is not None:
      mask = in_cache(mask, cache, x.shape[1])
    if self.rotary_base:
      old = source.shape[1] if cache is None else cache.key.shape[1]
      ask, offer = mask.tokens(x.shape[0], x.shape[1], old)
      query = apply_rotary(query, ask.position, self.rotary_base, self.rotary_form)
      places = offer.position if cache is None else ask.position
      key = apply_rotary(key, places, self.rotary_base, self.rotary_form)
    if self.scale is not None:  # every kind divides by the root
      query = query * jnp.asarray(self.scale * width**0.5, query.dtype)
    if cache is not None:
      cache = extend_cache(cache, key, value)
      key, value = read_cache(cache, key.dtype)
    more = (train,) if isinstance(self.kind, nn.Module) else ()
    attend = lambda *arrays: self.kind(*arrays, *more)
    out = attend(query, key, value, mask, bias)
    if self.is_mutable_collection("weights") and not self.is_initializing():
      self.sow("weights", "weights", compute_weights(attend, query, key, mask, bias))
    init = self.out_init or self.kernel_init
    dense = self.dense(x.shape[-1], self.use_bias, self.dtype, kernel_init=init, name="out")
    y = dense(out.reshape(*out.shape[:2], -1))
    return y if cache is None else (y, cache)


def in_cache(mask: Mask, cache: Cache, tokens: int) -> Mask:
  """The mask of `tokens` queries that follow what the cache holds: room that is not filled is not seen."""
  batch = cache.key.shape[0]
  positions = mask.query_positions
  if positions is None:
    positions = cache.length + jnp.arange(tokens)
  filled = jnp.broadcast_to(cache.length + tokens, (batch,))
  if mask.key_lengths is not None:
    filled = jnp.minimum(filled, mask.key_lengths)
  return mask.replace(query_positions=positions, key_lengths=filled)
