"""Attention within clusters of queries and keys that k-means finds. Roy et al. 2021."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.attention.dot_product import masked_softmax, repeat_heads, require_heads
from mlnotes.attention.local import require_self
from mlnotes.attention.mask import EVERYTHING, Bias, Mask, Tokens


def unit_scale(x: Float[Array, "... H"]) -> Float[Array, "... H"]:
  """Layer normalisation without scale and shift: every vector has norm sqrt(H). Sec. 4.1."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  wide = wide - jnp.mean(wide, -1, keepdims=True)
  return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)).astype(x.dtype)


def routed_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B T N H"],
  value: Float[Array, "B T N D"],
  centroids: Float[Array, "N C H"],
  mask: Mask = EVERYTHING,
  *,
  size: int,
) -> Float[Array, "B T N D"]:
  """Each of C centroids takes the `size` queries and the `size` keys nearest to it; these attend. Algorithm 1.

  A query that several centroids take gets the mean of what it finds there, one that none takes gets 0. Which queries
  and keys a centroid takes hangs on ALL places: later tokens decide what earlier ones see, also where the mask is
  causal.
  """
  batch, length = query.shape[:2]
  size = min(size, length)
  heads, count = centroids.shape[:2]
  ask, offer = mask.tokens(batch, length, length)

  def nearest(x: Array, tokens: Tokens) -> Array:
    likeness = jnp.einsum("btnh,nch->bnct", x, centroids.astype(x.dtype))
    likeness = jnp.where(tokens.real[:, None, None], likeness, -jnp.inf)
    # In the order of their positions, which a causal mask then reads like any other.
    return jnp.sort(jax.lax.top_k(jax.lax.stop_gradient(likeness), size)[1], -1)

  def gather(x: Array, index: Array) -> Array:  # (B, T, N, D) -> (B, N, C, W, D)
    x = jnp.moveaxis(x, 2, 1)[:, :, None]
    return jnp.take_along_axis(x, index[..., None], axis=3)

  def tokens_at(tokens: Tokens, index: Array) -> Tokens:
    return Tokens(*(jnp.take_along_axis(x[:, None, None], index, axis=3) for x in tokens))

  dtype = jnp.promote_types(query.dtype, jnp.float32)
  asked, offered = nearest(query, ask), nearest(key, offer)
  q, k, v = gather(query, asked), gather(key, offered), gather(value, offered)
  scores = jnp.einsum("bncwh,bncvh->bncwv", q, k, preferred_element_type=dtype) * query.shape[-1] ** -0.5
  seen = mask.pairs(tokens_at(ask, asked), tokens_at(offer, offered))
  out = jnp.einsum("bncwv,bncvd->bncwd", masked_softmax(scores, seen).astype(v.dtype), v)
  where = (jnp.arange(batch)[:, None, None], jnp.arange(heads)[None, :, None], asked.reshape(batch, heads, -1))
  total = jnp.zeros((batch, heads, length, v.shape[-1]), v.dtype)
  total = total.at[where].add(out.reshape(batch, heads, count * size, -1))
  times = jnp.zeros((batch, heads, length), v.dtype).at[where].add(1)
  return jnp.moveaxis(total / jnp.maximum(times, 1)[..., None], 1, 2)


def update_centroids(
  centroids: Float[Array, "N C H"], x: Float[Array, "B T N H"], real: Any, decay: float = 0.999
) -> Float[Array, "N C H"]:
  """Moves each centroid a step of 1 - `decay` towards the mean of the vectors nearest to it; one without any stays."""
  nearest = jnp.argmax(jnp.einsum("btnh,nch->btnc", x, centroids), -1)
  belongs = jax.nn.one_hot(nearest, centroids.shape[1]) * real[..., None, None]
  count = jnp.einsum("btnc->nc", belongs)[..., None]
  mean = jnp.einsum("btnc,btnh->nch", belongs, x) / jnp.maximum(count, 1)
  return jnp.where(count > 0, decay * centroids + (1 - decay) * mean, centroids)


class RoutingAttention(nn.Module):
  """`routed_attention` of normalised queries and keys, its centroids in the collection "centroids".

  They move in training where that collection is mutable. `size` tokens for each of `clusters`; None: T / clusters.
  Raises ValueError for a bias, or for another number of keys than of queries.
  """

  clusters: int = 4
  size: int | None = None
  decay: float = 0.999

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
    batch, length, _ = require_heads(query, key, value)
    require_self("Routing", query, key)
    if bias is not None:
      raise ValueError("Routing attention takes no bias")
    heads, width = query.shape[2:]
    start = lambda: unit_scale(jax.random.normal(self.make_rng("params"), (heads, self.clusters, width)))
    centroids = self.variable("centroids", "centroids", start)
    query, key = unit_scale(query), unit_scale(repeat_heads(key, heads))
    size = self.size or -(-length // self.clusters)
    out = routed_attention(query, key, repeat_heads(value, heads), centroids.value, mask, size=size)
    if train and self.is_mutable_collection("centroids") and not self.is_initializing():
      ask, offer = mask.tokens(batch, length, length)
      both = jax.lax.stop_gradient(jnp.concatenate([query, key], 1)).astype(jnp.float32)
      real = jnp.concatenate([ask.real, offer.real], 1)
      centroids.value = update_centroids(centroids.value, both, real, self.decay)
    return out
