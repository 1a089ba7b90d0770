"""Dense attention without its matrix: memory linear in the length, forward and backward. Dao et al. 2022; Dao 2023."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.attention.dot_product import NOT_SEEN, repeat_heads, require_heads
from mlnotes.attention.local import pad_length
from mlnotes.attention.mask import EVERYTHING, Bias, Mask, Tokens


class Softmax(NamedTuple):
  """Part of a softmax-weighted sum of values, over some of the keys.

  Attributes:
    out: (B, N, T, D) the weighted mean of these keys' values, 0 where none is seen.
    log_sum: (B, N, T) log of the sum of their exponentiated scores, `NOT_SEEN` where none is seen.
  """

  out: Float[Array, "B N T D"]
  log_sum: Float[Array, "B N T"]


def merge(a: Softmax, b: Softmax) -> Softmax:
  """The softmax over the keys of both. In float32."""
  top = jax.lax.stop_gradient(jnp.maximum(a.log_sum, b.log_sum))
  first, second = (jnp.where(x.log_sum > NOT_SEEN / 2, jnp.exp(x.log_sum - top), 0) for x in (a, b))
  total = first + second
  safe = jnp.where(total == 0, 1, total)
  out = a.out * (first / safe)[..., None] + b.out * (second / safe)[..., None]
  return Softmax(out, jnp.where(total == 0, NOT_SEEN, top + jnp.log(safe)))


def blockwise_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K D"],
  mask: Mask = EVERYTHING,
  bias: Bias | None = None,
  *,
  block: int = 512,
) -> Float[Array, "B T N D"]:
  """Scaled dot-product attention a block of queries and of keys at a time.

  Running maximum and sum of each query's scores, what was added rescaled as they change, divided once at the end: Dao
  et al. 2022, algorithm 1. Backward makes the scores again from the saved log-sum-exp: Dao 2023, algorithm 2. Blocks
  that a causal mask or a window hides whole, by their places in the arrays, are skipped where the mask has no
  positions of its own. A bias is a function of positions and gets no gradient.
  Raises ValueError for a bias that is an array: that would be the matrix.
  """
  batch, queries, keys = require_heads(query, key, value)
  if bias is not None and not callable(bias):
    raise ValueError(
      f"blockwise attention takes a bias as a function of positions, found an array of shape {bias.shape}"
    )
  ask, offer = mask.tokens(batch, queries, keys)
  size = min(block, max(queries, keys))
  rows = lambda x: jnp.moveaxis(pad_length(x, size), 2, 1)
  padded = lambda tokens: Tokens(*(pad_length(x, size) for x in tokens))
  key, value = repeat_heads(key, query.shape[2]), repeat_heads(value, query.shape[2])
  in_order = mask.key_positions is None and mask.query_positions is None
  plan = _Plan(
    size, mask.replace(**dict.fromkeys(_ARRAYS)), mask.key_segments is not None, bias, in_order, keys - queries
  )
  out = _attend(plan, rows(query), rows(key), rows(value), padded(ask), padded(offer))
  return jnp.moveaxis(out, 1, 2)[:, :queries].astype(query.dtype)


_ARRAYS = ("key_lengths", "query_lengths", "key_segments", "query_segments", "key_positions", "query_positions")


class _Plan(NamedTuple):
  """What is known when the program is made."""

  size: int
  words: Mask  # without arrays
  segments: bool
  bias: Callable[[Array, Array], Array] | None
  in_order: bool  # whether places in the arrays are positions, but for `offset`
  offset: int

  def scores(self, q: Array, k: Array, ask: Tokens, offer: Tokens) -> tuple[Array, Array]:
    """(scaled scores in float32, NOT_SEEN where nothing is to be seen; what is seen) of a block."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bnth,bnsh->bnts", q, k, preferred_element_type=dtype) * q.shape[-1] ** -0.5
    if self.bias is not None:
      scores = scores + self.bias(ask.position, offer.position)
    seen = self.words.pairs(ask, offer)
    if self.segments:
      seen &= ask.segment[:, :, None] == offer.segment[:, None, :]
    return jnp.where(seen[:, None], scores, NOT_SEEN), seen[:, None]

  def keys_of(self, i: Array, blocks: int) -> tuple[Any, Any]:
    """First and one past the last block of keys that block i of the queries may see."""
    first, last = 0, blocks
    if self.in_order and self.words.causal:
      last = jnp.clip(((i + 1) * self.size - 1 + self.offset) // self.size + 1, 0, blocks)
    if self.in_order and self.words.window is not None:
      reach = self.words.window - 1
      first = jnp.clip((i * self.size + self.offset - reach) // self.size, 0, blocks)
      if not self.words.causal:
        last = jnp.clip(((i + 1) * self.size - 1 + self.offset + reach) // self.size + 1, 0, blocks)
    return first, last

  def queries_of(self, j: Array, blocks: int) -> tuple[Any, Any]:
    """First and one past the last block of queries that may see block j of the keys."""
    first, last = 0, blocks
    if self.in_order and self.words.causal:
      first = jnp.clip((j * self.size - self.offset) // self.size, 0, blocks)
    if self.in_order and self.words.window is not None:
      reach = self.words.window - 1
      last = jnp.clip(((j + 1) * self.size - 1 - self.offset + reach) // self.size + 1, 0, blocks)
      if not self.words.causal:
        first = jnp.clip((j * self.size - self.offset - reach) // self.size, 0, blocks)
    return first, last


def _block(x: Array, i: Array, size: int, axis: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, i * size, size, axis)


def _tokens_block(tokens: Tokens, i: Array, size: int) -> Tokens:
  return Tokens(*(_block(x, i, size, 1) for x in tokens))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q, k, v, ask, offer):
  return _forward(plan, q, k, v, ask, offer).out


def _forward(plan: _Plan, q, k, v, ask: Tokens, offer: Tokens) -> Softmax:
  size, dtype = plan.size, jnp.promote_types(q.dtype, jnp.float32)
  blocks = k.shape[2] // size

  def of_queries(i):
    q_i, ask_i = _block(q, i, size, 2), _tokens_block(ask, i, size)

    def step(j, carry):
      top, total, out = carry
      scores, seen = plan.scores(q_i, _block(k, j, size, 2), ask_i, _tokens_block(offer, j, size))
      new = jnp.maximum(top, jnp.max(scores, -1))
      powers = jnp.where(seen, jnp.exp(scores - new[..., None]), 0)
      shrink = jnp.exp(top - new)
      v_j = _block(v, j, size, 2)
      added = jnp.einsum("bnts,bnsd->bntd", powers.astype(v.dtype), v_j, preferred_element_type=dtype)
      return new, total * shrink + jnp.sum(powers, -1), out * shrink[..., None] + added

    shape = q_i.shape[:3]
    start = (jnp.full(shape, NOT_SEEN, dtype), jnp.zeros(shape, dtype), jnp.zeros((*shape, v.shape[-1]), dtype))
    top, total, out = jax.lax.fori_loop(*plan.keys_of(i, blocks), step, start)
    safe = jnp.where(total == 0, 1, total)
    return out / safe[..., None], jnp.where(total == 0, NOT_SEEN, top + jnp.log(safe))

  out, log_sum = jax.lax.map(of_queries, jnp.arange(q.shape[2] // size))
  join = lambda x: jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, *x.shape[4:])
  return Softmax(join(out), join(log_sum))


def _attend_forward(plan, q, k, v, ask, offer):
  found = _forward(plan, q, k, v, ask, offer)
  return found.out, (q, k, v, ask, offer, found)


def _attend_backward(plan: _Plan, saved, d_out):
  q, k, v, ask, offer, found = saved
  size, dtype = plan.size, found.out.dtype
  delta = jnp.sum(d_out * found.out, -1)  # row sums of dO * O
  product = partial(jnp.einsum, preferred_element_type=dtype)

  def weights(i, j):
    """(weights, gradient of the scores) of a block."""
    q_i, k_j = _block(q, i, size, 2), _block(k, j, size, 2)
    scores, seen = plan.scores(q_i, k_j, _tokens_block(ask, i, size), _tokens_block(offer, j, size))
    p = jnp.where(seen, jnp.exp(scores - _block(found.log_sum, i, size, 2)[..., None]), 0)
    d_p = product("bntd,bnsd->bnts", _block(d_out, i, size, 2).astype(v.dtype), _block(v, j, size, 2))
    return p, p * (d_p - _block(delta, i, size, 2)[..., None]) * q.shape[-1] ** -0.5

  def of_keys(d_q, j):
    def step(i, carry):
      d_q, d_k, d_v = carry
      p, d_s = weights(i, j)
      d_v += product("bnts,bntd->bnsd", p.astype(v.dtype), _block(d_out, i, size, 2).astype(v.dtype))
      d_k += product("bnts,bnth->bnsh", d_s.astype(q.dtype), _block(q, i, size, 2))
      more = _block(d_q, i, size, 2) + product("bnts,bnsh->bnth", d_s.astype(k.dtype), _block(k, j, size, 2))
      return jax.lax.dynamic_update_slice_in_dim(d_q, more, i * size, 2), d_k, d_v

    zeros = lambda x: jnp.zeros((*x.shape[:2], size, x.shape[3]), dtype)
    d_q, d_k, d_v = jax.lax.fori_loop(*plan.queries_of(j, q.shape[2] // size), step, (d_q, zeros(k), zeros(v)))
    return d_q, (d_k, d_v)

  d_q, (d_k, d_v) = jax.lax.scan(of_keys, jnp.zeros(q.shape, dtype), jnp.arange(k.shape[2] // size))
  join = lambda x, like: jnp.moveaxis(x, 0, 2).reshape(like.shape).astype(like.dtype)
  return d_q.astype(q.dtype), join(d_k, k), join(d_v, v), None, None


_attend.defvjp(_attend_forward, _attend_backward)
