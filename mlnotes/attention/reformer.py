"""Attention within buckets of a locality-sensitive hash. Kitaev et al. 2020."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mlnotes.attention.dot_product import NOT_SEEN, repeat_heads, require_heads, softmax_part
from mlnotes.attention.local import require_places, require_self, with_neighbours
from mlnotes.attention.mask import EVERYTHING, Bias, Mask, Tokens
from mlnotes.engine.experiment import root_key

# A token's own score: below every other one, so that it counts only where nothing else is seen. Sec. 2.
ITSELF = -1e5


def hash_tokens(key: Key[Array, ""], x: Float[Array, "B T N H"], buckets: int, rounds: int) -> Int[Array, "R B N T"]:
  """argmax([x R; -x R]) for a random R of each round: alike directions share buckets. Sec. 2.

  Raises ValueError where `buckets` is neither 1 nor even.
  """
  if buckets != 1 and buckets % 2:
    raise ValueError(f"buckets is {buckets}, expected 1 or an even number")
  if buckets == 1:
    return jnp.zeros((rounds, x.shape[0], x.shape[2], x.shape[1]), jnp.int32)
  rotation = jax.random.normal(key, (rounds, x.shape[-1], buckets // 2), x.dtype)
  turned = jnp.einsum("btnh,rhf->rbntf", x, rotation)
  return jnp.argmax(jnp.concatenate([turned, -turned], -1), -1)


def lsh_attention(
  query: Float[Array, "B T N H"],
  value: Float[Array, "B T N D"],
  buckets: Int[Array, "R B N T"],
  mask: Mask = EVERYTHING,
  *,
  chunk: int,
) -> Float[Array, "B T N D"]:
  """Queries that are their own keys, of unit norm, see each other where a round has them in a bucket and in reach.

    softmax(q_i . q_j / |q_j|) over all pairs that some round allows

  What several rounds show counts once, and where a token sees nothing else it sees itself: eq. 2-6, the rounds combined
  by their log-sum-exp. Tokens are sorted by (segment, bucket, position), padding behind everything, and cut into
  chunks; each chunk reaches itself and the one before. Where a chunk begins hangs on all tokens, so that in a causal
  mask a token reaches the `chunk` tokens of its bucket before it instead, which hangs on earlier ones alone.

  Scores are not divided by sqrt(H) once more: so it is in the authors' code, which divides keys of norm sqrt(H).
  Difference from it: that cuts chunks alike where it is causal, and then shows by what is seen what comes later.
  """
  rounds, batch, heads, length = buckets.shape
  ask, offer = mask.tokens(batch, length, length)
  chunk = min(chunk, length)
  pad = -length % chunk
  buckets = jnp.pad(buckets, [(0, 0), (0, 0), (0, 0), (0, pad)]).reshape(rounds, batch * heads, -1)

  def rows(x: Array) -> Array:
    x = jnp.pad(x, [(0, 0), (0, pad), (0, 0), (0, 0)])
    return jnp.moveaxis(x, 2, 1).reshape(batch * heads, -1, x.shape[-1])

  ask, offer = (Tokens(*(jnp.repeat(jnp.pad(x, [(0, 0), (0, pad)]), heads, axis=0) for x in y)) for y in (ask, offer))
  order = jnp.stack([jnp.lexsort((offer.position, bucket, offer.segment, ~offer.real)) for bucket in buckets])
  places = jnp.argsort(order, axis=-1)
  q, v = rows(query), rows(value)
  wide = q.astype(jnp.promote_types(q.dtype, jnp.float32))
  key = (wide * jax.lax.rsqrt(jnp.sum(wide * wide, -1, keepdims=True) + 1e-12)).astype(q.dtype)
  of_round = lambda x: _attend_in_round(q, key, v, *x, buckets, places, ask, offer, mask, chunk)
  # One round after the other, scores made again for the gradient: memory of one.
  out, log_sum = jax.lax.map(jax.checkpoint(of_round), (order, buckets, places))
  out = jnp.sum(out * jax.nn.softmax(log_sum, axis=0)[..., None].astype(out.dtype), 0)[:, :length]
  return jnp.moveaxis(out.reshape(batch, heads, length, -1), 1, 2)


def _attend_in_round(q, key, v, order, bucket, place, all_buckets, all_places, ask, offer, mask: Mask, chunk: int):
  """(output, log of the sum of the weights) of each token in one round, in the order of the tokens."""
  rows, length = order.shape
  like = lambda x: order.reshape(*order.shape, *(1,) * (x.ndim - 2))
  cut = lambda x: jnp.take_along_axis(x, like(x), axis=1).reshape(rows, -1, chunk, *x.shape[2:])
  near = lambda x: with_neighbours(cut(x), 1, 0)
  pairs = lambda x: (cut(x)[..., :, None], near(x)[..., None, :])

  def meet(bucket: Array, place: Array) -> Array:
    (a, b), (c, d) = pairs(bucket), pairs(place)
    within = (d <= c) & (c <= d + chunk) if mask.causal else (c // chunk == d // chunk) | (c // chunk == d // chunk + 1)
    return (a == b) & within

  dtype = jnp.promote_types(q.dtype, jnp.float32)
  scores = jnp.einsum("gmwh,gmvh->gmwv", cut(q), near(key), preferred_element_type=dtype)
  index, other = pairs(jnp.broadcast_to(jnp.arange(length)[None], order.shape))
  # Before the first chunk there is none: what stands there is not real.
  seen = mask.pairs(Tokens(*map(cut, ask)), Tokens(*map(near, offer))) & meet(bucket, place)
  met = sum(meet(*x).astype(dtype) for x in zip(all_buckets, all_places))
  scores = jnp.where(index == other, ITSELF, scores) - jnp.log(jnp.maximum(met, 1))
  weights, log_sum = softmax_part(jnp.where(seen, scores, NOT_SEEN), seen)
  out = jnp.einsum("gmwv,gmvd->gmwd", weights.astype(v.dtype), near(v))
  restored = jnp.take_along_axis(out.reshape(rows, length, -1), place[..., None], axis=1)
  return restored, jnp.take_along_axis(log_sum.reshape(rows, length), place, axis=1)


class ReformerAttention(nn.Module):
  """`lsh_attention` with hashes of the queries: what is given as keys is not used.

  Buckets hold half a chunk in the mean: 2 T / `chunk` of them, rounded to an even number. Rotations come from
  `seed`; in training with rngs={"hash": key} new ones are drawn with each call.
  Raises ValueError for a bias, an order of the mask's own, or another number of keys than of queries.
  """

  chunk: int = 16
  rounds: int = 2
  buckets: int | None = None
  seed: int = 0

  @nn.compact
  def __call__(
    self,
    query: Any,
    key: Any,
    value: Any,
    mask: Mask = EVERYTHING,
    bias: Bias | None = None,
    train: bool = False,
  ) -> Float[Array, "B T N D"]:
    require_heads(query, key, value)
    require_self("Reformer", query, key)
    require_places(mask, "Reformer")
    if bias is not None:
      raise ValueError("Reformer attention takes no bias")
    redraw = train and self.has_rng("hash")
    rng = self.make_rng("hash") if redraw else root_key(self.seed)
    buckets = self.buckets or max(2, 2 * (query.shape[1] // self.chunk))
    found = hash_tokens(rng, jax.lax.stop_gradient(query), buckets, self.rounds)
    value = repeat_heads(value, query.shape[2])
    return lsh_attention(query, value, found, mask, chunk=self.chunk)
