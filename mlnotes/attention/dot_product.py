"""Attention by scaled dot products, and what every kind of attention shares."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mlnotes.attention.mask import EVERYTHING, Bias, Mask, bias_matrix

# Scores of keys that are not seen: exp of it is 0 beside any other, and it is finite in float32, in which scores are.
NOT_SEEN = -1e30


def require_heads(
  query: Float[Array, "B T N H"], key: Float[Array, "B S K H"], value: Float[Array, "B S K D"]
) -> tuple[int, int, int]:
  """(batch, queries, keys) of arrays as every kind takes them.

  Raises ValueError where they do not fit each other, or the query heads are no multiple of the key heads.
  """
  for name, x in (("query", query), ("key", key), ("value", value)):
    if x.ndim != 4:
      raise ValueError(f"{name} has shape {x.shape}, expected (batch, length, heads, features)")
  if key.shape[:3] != value.shape[:3] or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
    raise ValueError(f"query {query.shape}, key {key.shape} and value {value.shape} do not fit each other")
  if query.shape[2] % key.shape[2]:
    raise ValueError(f"{query.shape[2]} query heads share {key.shape[2]} key heads: expected a multiple of these")
  return query.shape[0], query.shape[1], key.shape[1]


def repeat_heads(x: Float[Array, "B S K H"], heads: int) -> Float[Array, "B S N H"]:
  """What each of `heads` query heads sees: head h uses key head h // (N / K). Ainslie et al. 2023, sec. 2.2."""
  return jnp.repeat(x, heads // x.shape[2], axis=2)


def masked_softmax(scores: Float[Array, "... S"], seen: Bool[Array, "... S"]) -> Float[Array, "... S"]:
  """Softmax in float32 over what is seen; 0 everywhere, with a gradient of 0, where nothing is."""
  return softmax_part(scores, seen)[0]


def softmax_part(
  scores: Float[Array, "... S"], seen: Bool[Array, "... S"]
) -> tuple[Float[Array, "... S"], Float[Array, "..."]]:
  """(`masked_softmax`, log of the sum of the exponentiated scores, `NOT_SEEN` where nothing is seen).

  With these sums, results over parts of the keys are merged into that over all.
  """
  scores = jnp.where(seen, scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), NOT_SEEN)
  top = jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True))
  powers = jnp.where(seen, jnp.exp(scores - top), 0)
  total = jnp.sum(powers, -1, keepdims=True)
  safe = jnp.where(total == 0, 1, total)
  return powers / safe, jnp.where(total == 0, NOT_SEEN, top + jnp.log(safe))[..., 0]


def dot_product_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K D"],
  mask: Mask = EVERYTHING,
  bias: Bias | None = None,
) -> Float[Array, "B T N D"]:
  """Each query's mean of the values, weighted by the softmax of its products with the keys.

    softmax(q k^T / sqrt(H) + bias) v                                                  Vaswani et al. 2017, eq. 1

  N query heads share K heads of keys and values: multi-head attention where K = N, multi-query where K = 1 (Shazeer
  2019), grouped-query between (Ainslie et al. 2023). Cross attention is the same with keys of another sequence.

  `jax.nn.dot_product_attention` does the work: cuDNN's kernel where the default device is a GPU, the inputs are half
  precision, there is no bias and it takes the shapes, XLA's otherwise; scores are float32 whatever the inputs.
  Differences from it: rows that see nothing are 0 (there the mean of all values), and a causal mask of fewer queries
  than keys stands at the bottom right.

  Raises ValueError where the arrays or the mask do not fit each other.
  """
  batch, queries, keys = require_heads(query, key, value)
  ask, offer = mask.tokens(batch, queries, keys)
  bias = bias_matrix(bias, ask, offer)
  if value.shape[-1] != key.shape[-1]:  # not among what jax.nn takes
    return attend_where(query, key, value, mask.pairs(ask, offer)[:, None], bias)
  # Without a bias: cuDNN gives NaN for one of float32, https://github.com/jax-ml/jax/issues/32242.
  fits = query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
  implementation = "cudnn" if fits and bias is None and jax.default_backend() == "gpu" else None
  if mask.is_trivial:
    return jax.nn.dot_product_attention(query, key, value, bias, implementation=implementation)
  if mask.is_plain_causal and queries == keys:
    return jax.nn.dot_product_attention(query, key, value, bias, is_causal=True, implementation=implementation)
  if queries % 2 or keys % 2:  # cuDNN has no gradient then: it takes a mask for a bias
    implementation = None
  seen = mask.pairs(ask, offer)
  full = jnp.broadcast_to(seen[:, None], (batch, query.shape[2] if implementation else 1, queries, keys))
  out = jax.nn.dot_product_attention(query, key, value, bias, full, implementation=implementation)
  return jnp.where(jnp.any(seen, -1)[..., None, None], out, 0)


def attend_densely(
  scores: Float[Array, "B N T S"], seen: Bool[Array, "B #N T S"], value: Float[Array, "B S K D"]
) -> Float[Array, "B T N D"]:
  """Values weighted by the softmax of any scores over what is seen, the weights cast to the values' dtype."""
  weights = masked_softmax(scores, jnp.broadcast_to(seen, scores.shape)).astype(value.dtype)
  return jnp.einsum("bnts,bsnd->btnd", weights, repeat_heads(value, scores.shape[1]))


def scaled_scores(
  query: Float[Array, "B T N H"], key: Float[Array, "B S K H"], bias: Float[Array, "#B #N #T #S"] | None = None
) -> Float[Array, "B N T S"]:
  """q k^T / sqrt(H) + bias, at least in float32."""
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  product = jnp.einsum("btnh,bsnh->bnts", query, repeat_heads(key, query.shape[2]), preferred_element_type=dtype)
  scores = product / jnp.sqrt(jnp.asarray(query.shape[-1], dtype))
  return scores if bias is None else scores + bias.astype(dtype)


def attend_where(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K D"],
  seen: Bool[Array, "B #N T S"],
  bias: Float[Array, "#B #N #T #S"] | None = None,
) -> Float[Array, "B T N D"]:
  """Dot-product attention over the pairs that a matrix allows."""
  return attend_densely(scaled_scores(query, key, bias), seen, value)


def compute_weights(
  attend,
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  mask: Mask = EVERYTHING,
  bias: Bias | None = None,
) -> Float[Array, "B N T S"]:
  """The weight that any kind of attention gives to each value: what it makes of the unit vectors as values.

  Every kind is linear in the values, so that its output is these weights times the values. For pictures and tests: of
  kinds that never make this matrix, too. Raises what `attend` raises.
  """
  keys = key.shape[1]
  # Never as wide as the keys: `CompressedAttention` would convolve them.
  units = jnp.eye(keys, keys + (keys == key.shape[-1]), dtype=key.dtype)
  units = jnp.broadcast_to(units[None, :, None], (*key.shape[:3], units.shape[-1]))
  return jnp.swapaxes(attend(query, key, units, mask, bias)[..., :keys], 1, 2)
