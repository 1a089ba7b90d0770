"""Attention to what is near, at a stride, or marked as global: memory and time linear in the length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mlnotes.attention.dot_product import (
  attend_where,
  dot_product_attention,
  masked_softmax,
  repeat_heads,
  require_heads,
)
from mlnotes.attention.mask import Bias, Mask, Tokens, bias_matrix


def pad_length(x: Array, block: int) -> Array:
  """With zeros behind axis 1, up to a multiple of `block`."""
  return jnp.pad(x, [(0, 0), (0, -x.shape[1] % block), *[(0, 0)] * (x.ndim - 2)])


def split_blocks(x: Array, block: int) -> Array:
  """(B, T, ...) -> (B, T / block, block, ...), padded with zeros."""
  x = pad_length(x, block)
  return x.reshape(x.shape[0], -1, block, *x.shape[2:])


def with_neighbours(x: Array, before: int, after: int) -> Array:
  """(B, M, W, ...) -> (B, M, (before + 1 + after) W, ...): each block beside those around it, zeros beyond the ends."""
  around = [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)]
  padded = jnp.pad(x, around)
  return jnp.concatenate([padded[:, i : i + x.shape[1]] for i in range(before + 1 + after)], axis=2)


def require_self(name: str, query: Array, key: Array) -> None:
  if query.shape[1] != key.shape[1]:
    raise ValueError(
      f"{name} attention is of a sequence to itself: found {query.shape[1]} queries, {key.shape[1]} keys"
    )


def block_scores(query: Float[Array, "B M W N H"], key: Float[Array, "B M V N H"]) -> Float[Array, "B N M W V"]:
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  product = jnp.einsum("bmwnh,bmvnh->bnmwv", query, key, preferred_element_type=dtype)
  return product / jnp.sqrt(jnp.asarray(query.shape[-1], dtype))


def require_function(bias: Bias | None, name: str) -> None:
  """Raises ValueError for a bias that is an array: blocks have one without the whole matrix from a function only."""
  if bias is not None and not callable(bias):
    raise ValueError(f"{name} attention takes a bias as a function of positions, found an array of shape {bias.shape}")


def require_places(mask: Mask, name: str) -> None:
  """Raises ValueError for an order that is not that of the positions: these kinds find what is near by its place."""
  if mask.has_order:
    raise ValueError(f"{name} attention is causal by positions: the mask has an order of its own, expected none")


def block_bias(bias: Bias | None, queries: Tokens, keys: Tokens, name: str) -> Array | float:
  """A bias for blocks."""
  if bias is None:
    return 0.0
  require_function(bias, name)
  return jax.vmap(bias, 1, 2)(queries.position, keys.position)


def local_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K D"],
  mask: Mask,
  bias: Bias | None = None,
) -> Float[Array, "B T N D"]:
  """Only keys within the mask's window: dense attention with that window, in blocks. Beltagy et al. 2020, sec. 3.1.

  Blocks are as long as the window; each sees itself and its neighbours. Neighbours in the arrays are taken for
  neighbours in position. Fewer queries than keys, as in decoding, are computed densely. A bias is a function.
  Raises ValueError where the mask has no window, or an order of its own.
  """
  if mask.window is None:
    raise ValueError("local attention needs a window: the mask has none")
  require_places(mask, "local")
  batch, queries, keys = require_heads(query, key, value)
  if queries != keys:
    return dot_product_attention(query, key, value, mask, bias)
  block = min(mask.window, queries)
  cut = lambda x: split_blocks(x, block)
  near = lambda x: with_neighbours(cut(x), 1, 0 if mask.causal else 1)
  ask, offer = mask.tokens(batch, queries, keys)
  ask, offer = Tokens(*map(cut, ask)), Tokens(*map(near, offer))
  scores = block_scores(cut(query), near(repeat_heads(key, query.shape[2]))) + block_bias(bias, ask, offer, "local")
  return _weigh(scores, mask.pairs(ask, offer), near(repeat_heads(value, query.shape[2])), queries)


def _weigh(scores: Float[Array, "B N M W V"], seen: Bool[Array, "B M W V"], value: Array, length: int) -> Array:
  weights = masked_softmax(scores, seen[:, None]).astype(value.dtype)
  out = jnp.einsum("bnmwv,bmvnd->bmwnd", weights, value)
  return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length]


def strided_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K D"],
  mask: Mask,
  bias: Bias | None = None,
  *,
  stride: int,
) -> Float[Array, "B T N D"]:
  """Even heads see the keys less than `stride` away, odd heads those at a multiple of `stride`. Child et al. 2019, 4.3.

  With a stride of about sqrt(T) two layers connect all places, at sqrt(T) products for each query. Neighbours in the
  arrays are taken for neighbours in position. Fewer queries than keys are computed densely. A bias is a function.
  Difference from the paper: there a near key may be `stride` away.
  Raises ValueError for a stride below 1, a single head, or a mask with a window or an order of its own.
  """
  if stride < 1:
    raise ValueError(f"strided attention: stride is {stride}, expected 1 or more")
  if mask.window is not None:
    raise ValueError(f"strided attention has its own pattern: window of the mask is {mask.window}, expected none")
  if query.shape[2] < 2:
    raise ValueError("strided attention needs two heads or more, as these alternate between near keys and far ones")
  require_places(mask, "strided")
  batch, queries, keys = require_heads(query, key, value)
  if queries == keys:
    require_function(bias, "strided")
  key, value = repeat_heads(key, query.shape[2]), repeat_heads(value, query.shape[2])
  heads = query.shape[2]
  of = lambda x, odd: x[:, :, odd::2]
  own = lambda odd: None if bias is None else _heads_of(bias, odd)
  near = local_attention(*(of(x, 0) for x in (query, key, value)), mask.replace(window=stride), own(0))
  far = _columns(*(of(x, 1) for x in (query, key, value)), mask, own(1), stride, (batch, queries, keys))
  out = jnp.stack([near, jnp.pad(far, [(0, 0), (0, 0), (0, near.shape[2] - far.shape[2]), (0, 0)])], axis=3)
  return out.reshape(batch, queries, -1, value.shape[-1])[:, :, :heads]


def _heads_of(bias: Bias, odd: int) -> Bias:
  take = lambda x: x if x.shape[1] == 1 else x[:, odd::2]
  return (lambda queries, keys: take(bias(queries, keys))) if callable(bias) else take(bias)


def _columns(query, key, value, mask, bias, stride, sizes):
  """Attention between places that are a multiple of the stride apart."""
  batch, queries, keys = sizes
  ask, offer = mask.tokens(batch, queries, keys)
  if queries != keys:
    apart = ask.position[:, :, None] - offer.position[:, None, :]
    seen = mask.pairs(ask, offer) & (apart % stride == 0)
    return attend_where(query, key, value, seen[:, None], bias_matrix(bias, ask, offer))
  columns = lambda x: jnp.swapaxes(split_blocks(x, min(stride, queries)), 1, 2)
  ask, offer = Tokens(*map(columns, ask)), Tokens(*map(columns, offer))
  scores = block_scores(columns(query), columns(key)) + block_bias(bias, ask, offer, "strided")
  weights = masked_softmax(scores, mask.pairs(ask, offer)[:, None]).astype(value.dtype)
  out = jnp.einsum("bnmwv,bmvnd->bwmnd", weights, columns(value))
  return out.reshape(batch, -1, *out.shape[3:])[:, :queries]


def global_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K D"],
  mask: Mask,
  bias: Bias | None = None,
  *,
  tokens: int = 1,
) -> Float[Array, "B T N D"]:
  """A window, and the first `tokens` keys, which all see and which see all. Beltagy et al. 2020, sec. 3.1.

  The mask's window is not that of these tokens. As they come first, a causal mask stays causal. Differences from the
  paper: they have no projections of their own.
  Raises ValueError for fewer than 1 token, a mask without a window, or one with an order of its own.
  """
  if tokens < 1 or mask.window is None:
    raise ValueError(f"global attention: {tokens} tokens, window {mask.window}: expected 1 or more, and a window")
  require_places(mask, "global")
  batch, queries, keys = require_heads(query, key, value)
  key, value = repeat_heads(key, query.shape[2]), repeat_heads(value, query.shape[2])
  ask, offer = mask.tokens(batch, queries, keys)
  everywhere, tokens = mask.replace(window=None), min(tokens, keys)
  first = jnp.arange(keys)[None, :] < tokens
  if queries != keys:
    is_global = (ask.position < tokens)[:, :, None] | first[:, None, :]
    seen = mask.pairs(ask, offer) | (everywhere.pairs(ask, offer) & is_global)
    return attend_where(query, key, value, seen[:, None], bias_matrix(bias, ask, offer))
  block = min(mask.window, queries)
  cut = lambda x: split_blocks(x, block)
  near = lambda x: with_neighbours(cut(x), 1, 0 if mask.causal else 1)
  blocks = cut(query).shape[1]
  shared = lambda x: jnp.broadcast_to(x[:, None, :tokens], (x.shape[0], blocks, tokens, *x.shape[2:]))
  beside = lambda x: jnp.concatenate([shared(x), near(x)], axis=2)
  local = offer._replace(real=offer.real & ~first)  # a global key counts once
  asks, near_keys, shared_keys = Tokens(*map(cut, ask)), Tokens(*map(near, local)), Tokens(*map(shared, offer))
  seen = jnp.concatenate([everywhere.pairs(asks, shared_keys), mask.pairs(asks, near_keys)], -1)
  both = Tokens(*map(beside, offer))
  scores = block_scores(cut(query), beside(key)) + block_bias(bias, asks, both, "global")
  out = _weigh(scores, seen, beside(value), queries)
  # The global tokens' own rows see everything.
  head = Mask(mask.causal, None, mask.key_lengths, None, mask.key_segments, _first(mask.query_segments, tokens))
  head = head.replace(key_positions=offer.position, query_positions=ask.position[:, :tokens])
  rows = dot_product_attention(query[:, :tokens], key, value, head, bias)
  rows = jnp.where(ask.real[:, :tokens, None, None], rows, 0)
  return jnp.concatenate([rows, out[:, tokens:]], axis=1)


def _first(x: Array | None, count: int) -> Array | None:
  return None if x is None else x[:, :count]
