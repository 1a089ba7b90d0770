"""Attention by a small network instead of a product, and attention that looks at one place only."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from mlnotes.attention.dot_product import NOT_SEEN, attend_densely, repeat_heads, require_heads, scaled_scores
from mlnotes.attention.mask import EVERYTHING, Bias, Mask, bias_matrix


class AdditiveAttention(nn.Module):
  """Scores v . tanh(W q + U k) of a query and a key. Bahdanau et al. 2015, eq. 6 and A.1.2.

  In a recurrent decoder the query is the state BEFORE the step. U k is computed once for all queries; W, U and v are
  shared between heads. Memory grows with T S `features`.
  """

  features: int | None = None
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K D"],
    mask: Mask = EVERYTHING,
    bias: Bias | None = None,
    train: bool = False,
  ) -> Float[Array, "B T N D"]:
    ask, offer = mask.tokens(*require_heads(query, key, value))
    features = self.features or query.shape[-1]
    asked = nn.Dense(features, use_bias=False, dtype=self.dtype, name="query")(query)
    offered = nn.Dense(features, use_bias=False, dtype=self.dtype, name="key")(repeat_heads(key, query.shape[2]))
    v = self.param("v", nn.initializers.normal(features**-0.5), (features,))
    hidden = jnp.tanh(jnp.moveaxis(asked, 2, 1)[:, :, :, None] + jnp.moveaxis(offered, 2, 1)[:, :, None])
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    scores = jnp.einsum("bntsf,f->bnts", hidden, v.astype(hidden.dtype), preferred_element_type=dtype)
    extra = bias_matrix(bias, ask, offer)
    scores = scores if extra is None else scores + extra
    return attend_densely(scores, mask.pairs(ask, offer)[:, None], value)


def sample_hard_attention(
  rng: Key[Array, ""] | None,
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K D"],
  mask: Mask = EVERYTHING,
  bias: Bias | None = None,
) -> tuple[Float[Array, "B T N D"], Float[Array, "B T N"]]:
  """The value at one place for each query, drawn with the soft weights, and the logarithm of its probability.

  Xu et al. 2015 (Show, Attend and Tell), sec. 4.1. Without a key the likeliest place. The draw has no gradient: train
  by REINFORCE, (reward - baseline) * log-probability. Where nothing is seen, 0 and 0.
  """
  ask, offer = mask.tokens(*require_heads(query, key, value))
  seen = mask.pairs(ask, offer)[:, None]
  scores = scaled_scores(query, key, bias_matrix(bias, ask, offer))
  scores = jnp.where(seen, scores, NOT_SEEN)
  logits = jax.nn.log_softmax(scores)
  place: Int[Array, "B N T"] = jnp.argmax(scores, -1) if rng is None else jax.random.categorical(rng, scores)
  any_seen = jnp.any(seen, -1)
  log_probability = jnp.where(any_seen, jnp.take_along_axis(logits, place[..., None], -1)[..., 0], 0)
  chosen = jax.nn.one_hot(place, key.shape[1], dtype=value.dtype) * any_seen[..., None]
  out = jnp.einsum("bnts,bsnd->btnd", chosen, repeat_heads(value, query.shape[2]))
  return out, jnp.moveaxis(log_probability, 1, 2)


class HardAttention(nn.Module):
  """Hard attention as a kind: draws in training with rngs={"attention": key}, takes the likeliest place otherwise.

  Sows "log_probability", (B, T, N), into "intermediates" for the loss.
  """

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
    rng = self.make_rng("attention") if train else None
    out, log_probability = sample_hard_attention(rng, query, key, value, mask, bias)
    self.sow("intermediates", "log_probability", log_probability)
    return out
