"""Dense attention without its matrix: memory linear in the length, forward and backward. Dao et al. 2022; Dao 2023."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.attention.dot_product import NOT_SEEN, repeat_heads, require_heads
from mlnotes.attention.local import pad_length, require_function
from mlnotes.attention.mask import EVERYTHING, Bias, Mask, Tokens, Words


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
  require_function(bias, "blockwise")
  ask, offer = mask.tokens(batch, queries, keys)
  rows, columns = min(block, queries), min(block, keys)
  laid = lambda x, size: jnp.moveaxis(pad_length(x, size), 2, 1)
  padded = lambda tokens, size: Tokens(*(pad_length(x, size) for x in tokens))
  key, value = repeat_heads(key, query.shape[2]), repeat_heads(value, query.shape[2])
  plan = _Plan(
    rows, columns, mask.words, bias, mask.is_in_order, keys - queries, mask.is_trivial and keys % columns == 0
  )
  arrays = (laid(query, rows), laid(key, columns), laid(value, columns))
  out = _attend(plan, *arrays, padded(ask, rows), padded(offer, columns))
  return jnp.moveaxis(out, 1, 2)[:, :queries].astype(query.dtype)


class _Plan(NamedTuple):
  """What is known when the program is made."""

  rows: int  # queries of a block
  columns: int  # keys of a block
  words: Words
  bias: Callable[[Array, Array], Array] | None
  in_order: bool  # whether places in the arrays are positions, but for `offset`
  offset: int
  all_seen: bool

  def look(self, scores: Array, ask: Tokens, offer: Tokens, flip: bool = False) -> tuple[Array, Array | None]:
    """(scores with the bias, NOT_SEEN where nothing is to be seen; what is seen, None: all); `flip`: (B, N, S, T)."""
    turn = (lambda x: jnp.swapaxes(x, -1, -2)) if flip else lambda x: x
    if self.bias is not None:
      scores = scores + turn(self.bias(ask.position, offer.position))
    if self.all_seen:
      return scores, None
    seen = turn(self.words.pairs(ask, offer))[:, None]
    return jnp.where(seen, scores, NOT_SEEN), seen

  def keys_of(self, i: Array, blocks: int) -> tuple[Any, Any]:
    """First and one past the last block of keys that block i of the queries may see."""
    return self._within(i * self.rows + self.offset, self.rows, self.columns, blocks, self.words.causal)

  def queries_of(self, j: Array, blocks: int) -> tuple[Any, Any]:
    """First and one past the last block of queries that may see block j of the keys."""
    return self._within(j * self.columns - self.offset, self.columns, self.rows, blocks, False, self.words.causal)

  def _within(self, start: Array, size: int, of: int, blocks: int, none_after: bool, none_before: bool = False):
    """Blocks of `of` places that `size` places from `start` on meet: up to the window away, on the sides that count."""
    reach = None if self.words.window is None else self.words.window - 1
    before, after = (0 if none_before else reach), (0 if none_after else reach)
    first, last = 0, blocks
    if self.in_order and before is not None:
      first = jnp.clip((start - before) // of, 0, blocks)
    if self.in_order and after is not None:
      last = jnp.clip((start + size - 1 + after) // of + 1, 0, blocks)
    return first, last


def _keep(seen: Array | None, x: Array) -> Array:
  return x if seen is None else jnp.where(seen, x, 0)


def _block(x: Array, i: Array, size: int, axis: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, i * size, size, axis)


def _tokens_block(tokens: Tokens, i: Array, size: int) -> Tokens:
  return Tokens(*(_block(x, i, size, 1) for x in tokens))


def _scaled(q: Array) -> Array:
  """q / sqrt(H), so that scores need no pass of their own for it."""
  return (q.astype(jnp.promote_types(q.dtype, jnp.float32)) * q.shape[-1] ** -0.5).astype(q.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q, k, v, ask, offer):
  return _forward(plan, q, k, v, ask, offer).out


def _forward(plan: _Plan, q, k, v, ask: Tokens, offer: Tokens) -> Softmax:
  rows, columns, dtype = plan.rows, plan.columns, jnp.promote_types(q.dtype, jnp.float32)
  product = partial(jnp.einsum, preferred_element_type=dtype)
  blocks = k.shape[2] // columns
  q = _scaled(q)

  def of_queries(i):
    q_i, ask_i = _block(q, i, rows, 2), _tokens_block(ask, i, rows)

    def step(j, carry):
      top, total, out = carry
      scores = product("bnth,bnsh->bnts", q_i, _block(k, j, columns, 2))
      scores, seen = plan.look(scores, ask_i, _tokens_block(offer, j, columns))
      new = jnp.maximum(top, jnp.max(scores, -1))
      powers = _keep(seen, jnp.exp(scores - new[..., None]))
      shrink = jnp.exp(top - new)
      added = product("bnts,bnsd->bntd", powers.astype(v.dtype), _block(v, j, columns, 2))
      return new, total * shrink + jnp.sum(powers, -1), out * shrink[..., None] + added

    shape = q_i.shape[:3]
    start = (jnp.full(shape, NOT_SEEN, dtype), jnp.zeros(shape, dtype), jnp.zeros((*shape, v.shape[-1]), dtype))
    top, total, out = jax.lax.fori_loop(*plan.keys_of(i, blocks), step, start)
    safe = jnp.where(total == 0, 1, total)
    return out / safe[..., None], jnp.where(total == 0, NOT_SEEN, top + jnp.log(safe))

  out, log_sum = jax.lax.map(of_queries, jnp.arange(q.shape[2] // rows))
  join = lambda x: jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, *x.shape[4:])
  return Softmax(join(out), join(log_sum))


def _attend_forward(plan, q, k, v, ask, offer):
  found = _forward(plan, q, k, v, ask, offer)
  return found.out, (q, k, v, ask, offer, found)


def _attend_backward(plan: _Plan, saved, d_out):
  q, k, v, ask, offer, found = saved
  rows, columns, dtype = plan.rows, plan.columns, found.out.dtype
  delta = jnp.sum(d_out * found.out, -1)[:, :, None]  # row sums of dO * O
  log_sum = found.log_sum[:, :, None]
  product = partial(jnp.einsum, preferred_element_type=dtype)
  scaled, d_out = _scaled(q), d_out.astype(v.dtype)

  # Scores stand keys first, (B, N, S, T): sums over queries are then plain matrix products, and for the one over keys
  # it is the thin block of keys that is turned. On CPUs a product with a wide factor turned takes twice the time.
  def of_keys(d_q, j):
    k_j, v_j, offer_j = _block(k, j, columns, 2), _block(v, j, columns, 2), _tokens_block(offer, j, columns)
    turned = jax.lax.optimization_barrier(jnp.swapaxes(k_j, 2, 3))

    def step(i, carry):
      d_q, d_k, d_v = carry
      q_i, d_out_i, ask_i = _block(scaled, i, rows, 2), _block(d_out, i, rows, 2), _tokens_block(ask, i, rows)
      scores, seen = plan.look(product("bnsh,bnth->bnst", k_j, q_i), ask_i, offer_j, flip=True)
      p = _keep(seen, jnp.exp(scores - _block(log_sum, i, rows, 3)))
      d_s = p * (product("bnsd,bntd->bnst", v_j, d_out_i) - _block(delta, i, rows, 3))
      d_v += product("bnst,bntd->bnsd", p.astype(v.dtype), d_out_i)
      d_s = d_s.astype(q.dtype)
      d_k += product("bnst,bnth->bnsh", d_s, q_i)
      more = _block(d_q, i, rows, 3) + product("bnhs,bnst->bnht", turned, d_s)
      return jax.lax.dynamic_update_slice_in_dim(d_q, more, i * rows, 3), d_k, d_v

    zeros = lambda x: jnp.zeros(x.shape, dtype)
    start = (d_q, zeros(k_j), zeros(v_j))
    d_q, d_k, d_v = jax.lax.fori_loop(*plan.queries_of(j, q.shape[2] // rows), step, start)
    return d_q, (d_k, d_v)

  d_q = jnp.zeros((*q.shape[:2], q.shape[3], q.shape[2]), dtype)
  d_q, (d_k, d_v) = jax.lax.scan(of_keys, d_q, jnp.arange(k.shape[2] // columns))
  d_q = jnp.swapaxes(d_q, 2, 3) * q.shape[-1] ** -0.5
  join = lambda x, like: jnp.moveaxis(x, 0, 2).reshape(like.shape).astype(like.dtype)
  return d_q.astype(q.dtype), join(d_k, k), join(d_v, v), None, None


_attend.defvjp(_attend_forward, _attend_backward)
