"""Attention whose weights are products of positive features: time linear in the length, a state of fixed size."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mlnotes.attention.dot_product import NOT_SEEN, repeat_heads, require_heads
from mlnotes.attention.local import split_blocks
from mlnotes.attention.mask import EVERYTHING, Bias, Mask
from mlnotes.engine.experiment import root_key
from mlnotes.nn.initializers import orthogonal as draw_orthogonal


def elu_features(x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
  """elu(x) + 1. Katharopoulos et al. 2020, eq. 7."""
  return jax.nn.elu(x) + 1


def linear_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K D"],
  mask: Mask = EVERYTHING,
  bias: Bias | None = None,
  *,
  features: Callable[[Array], Array] = elu_features,
  chunk: int = 64,
) -> Float[Array, "B T N D"]:
  """sum_j phi(q_i) . phi(k_j) v_j / sum_j phi(q_i) . phi(k_j). Katharopoulos et al. 2020, eq. 4-5, causal eq. 8-12.

  The causal form carries sum_j phi(k_j) v_j^T from chunk to chunk and computes within one densely. Sums are float32.
  Fewer queries than keys, as in decoding, and a causal mask with positions of its own are computed densely.
  Raises ValueError for a bias, a window or segments: its weights are no softmax of scores.
  """
  batch, queries, keys = require_heads(query, key, value)
  if bias is not None or mask.window is not None or mask.key_segments is not None:
    raise ValueError("linear attention takes neither a bias nor a window nor segments")
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  ask, offer = mask.tokens(batch, queries, keys)
  key, value = (repeat_heads(x, query.shape[2]).astype(dtype) for x in (key, value))
  # Zeroed before and behind: the features of what stands in padding may be infinite.
  asks, offers = ask.real[..., None, None], offer.real[..., None, None]
  q = jnp.where(asks, features(jnp.where(asks, query, 0).astype(dtype)), 0)
  k = jnp.where(offers, features(jnp.where(offers, key, 0)), 0)
  value = jnp.where(offers, value, 0)
  if not mask.causal:
    total = jnp.einsum("bsnf,bsnd->bnfd", k, value)
    out, norm = jnp.einsum("btnf,bnfd->btnd", q, total), jnp.einsum("btnf,bnf->btn", q, jnp.sum(k, 1))
  elif queries != keys or not mask.is_in_order:
    weights = jnp.einsum("btnf,bsnf->bnts", q, k) * mask.pairs(ask, offer)[:, None]
    out, norm = jnp.einsum("bnts,bsnd->btnd", weights, value), jnp.moveaxis(jnp.sum(weights, -1), 1, 2)
  else:
    out, norm = _causal(q, k, value, chunk)
  return (out / jnp.where(norm == 0, 1, norm)[..., None]).astype(query.dtype)


def _causal(q: Array, k: Array, value: Array, chunk: int) -> tuple[Array, Array]:
  """(sum over j <= i of q_i . k_j v_j, the same without v)."""
  length = q.shape[1]
  q, k, value = (jnp.moveaxis(split_blocks(x, min(chunk, length)), 1, 0) for x in (q, k, value))
  size = q.shape[2]
  below = jnp.tril(jnp.ones((size, size), q.dtype))[None, None]

  def step(carry, x):
    state, sums = carry
    q, k, v = x
    weights = jnp.einsum("btnf,bsnf->bnts", q, k) * below
    out = jnp.einsum("btnf,bnfd->btnd", q, state) + jnp.einsum("bnts,bsnd->btnd", weights, v)
    norm = jnp.einsum("btnf,bnf->btn", q, sums) + jnp.moveaxis(jnp.sum(weights, -1), 1, 2)
    return (state + jnp.einsum("bsnf,bsnd->bnfd", k, v), sums + jnp.sum(k, 1)), (out, norm)

  _, batch, _, heads, width = q.shape
  start = (jnp.zeros((batch, heads, width, value.shape[-1]), q.dtype), jnp.zeros((batch, heads, width), q.dtype))
  _, (out, norm) = jax.lax.scan(step, start, (q, k, value))
  joined = lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, -1, *x.shape[3:])[:, :length]
  return joined(out), joined(norm)


def draw_projection(key: Key[Array, ""], features: int, width: int, orthogonal: bool = True) -> Float[Array, "M H"]:
  """Directions for the random features of a Gaussian kernel, each with the norm of a Gaussian vector.

  `orthogonal` ones are at right angles in blocks of `width`: the same mean, less variance. Choromanski et al. 2021,
  sec. 2.4 and theorem 2.
  """
  of_blocks, of_norms = jax.random.split(key)
  if not orthogonal:
    return jax.random.normal(of_blocks, (features, width))
  blocks = -(-features // width)
  of_block = lambda key: draw_orthogonal()(key, (width, width))
  directions = jax.vmap(of_block)(jax.random.split(of_blocks, blocks)).reshape(-1, width)[:features]
  norms = jnp.linalg.norm(jax.random.normal(of_norms, (features, width)), axis=1, keepdims=True)
  return directions * norms


def softmax_features(
  x: Float[Array, "B T N H"],
  projection: Float[Array, "M H"],
  stabilizer: Float[Array, "#B #T #N 1"] | float = 0.0,
  epsilon: float = 1e-4,
) -> Float[Array, "B T N M"]:
  """Positive features whose products have the mean exp(q . k / sqrt(H)). Choromanski et al. 2021, lemma 1.

    exp(w . x - |x|^2 / 2 - stabilizer) / sqrt(M) + epsilon        for x scaled by H^(-1/4)

  A stabilizer that is the same for all features of a query, or for all keys that it sees, cancels but for epsilon.
  """
  return jnp.exp(_exponents(x, projection) - stabilizer) * projection.shape[0] ** -0.5 + epsilon


class PerformerAttention(nn.Module):
  """Linear attention with the random features of the softmax kernel ("FAVOR+"). Choromanski et al. 2021.

  Projections come from `seed`; in training with rngs={"features": key} new ones are drawn with each call. The
  stabilizer is each query's largest exponent; of keys their largest, or nothing where the mask is causal, as it
  would tell of later ones.
  """

  features: int = 64
  orthogonal: bool = True
  seed: int = 0
  chunk: int = 64

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
    _, _, keys = require_heads(query, key, value)
    redraw = train and self.has_rng("features")
    rng = self.make_rng("features") if redraw else root_key(self.seed)
    projection = draw_projection(rng, self.features, query.shape[-1], self.orthogonal)
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    ask, offer = mask.tokens(query.shape[0], query.shape[1], keys)
    query_real, key_real = ask.real[..., None, None], offer.real[..., None, None]
    q, k = jnp.where(query_real, query, 0).astype(dtype), jnp.where(key_real, key, 0).astype(dtype)
    top = 0.0
    if not mask.causal:
      top = jnp.maximum(_largest(jnp.where(key_real, _exponents(k, projection), NOT_SEEN), (1, 3)), NOT_SEEN / 2)
    q = softmax_features(q, projection, _largest(_exponents(q, projection), (3,)))
    k = softmax_features(k, projection, top)
    return linear_attention(q, k, value, mask, bias, features=lambda x: x, chunk=self.chunk).astype(query.dtype)


def _exponents(x: Float[Array, "B T N H"], projection: Float[Array, "M H"]) -> Float[Array, "B T N M"]:
  x = x * x.shape[-1] ** -0.25
  return jnp.einsum("btnh,mh->btnm", x, projection) - jnp.sum(x * x, -1, keepdims=True) / 2


def _largest(x: Array, axes: tuple[int, ...]) -> Array:
  return jax.lax.stop_gradient(jnp.max(x, axes, keepdims=True))
