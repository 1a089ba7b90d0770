"""Dot-product attention that drops some of its weights while it learns."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.attention.dot_product import (
  dot_product_attention,
  masked_softmax,
  repeat_heads,
  require_heads,
  scaled_scores,
)
from mlnotes.attention.mask import EVERYTHING, Bias, Mask, bias_matrix
from mlnotes.nn.dropout import Dropout


class DroppedAttention(nn.Module):
  """`dot_product_attention` whose weights go through dropout in training, as in the code of Vaswani et al. 2017.

  What is left of a query's weights is scaled by 1 / (1 - rate) and no longer sums to 1. In training the matrix of
  weights is made, T S numbers for each head; otherwise it is `dot_product_attention` itself. Needs
  rngs={"dropout": key} in training.
  """

  rate: float

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
    if not train or not self.rate:
      return dot_product_attention(query, key, value, mask, bias)
    ask, offer = mask.tokens(*require_heads(query, key, value))
    scores = scaled_scores(query, key, bias_matrix(bias, ask, offer))
    weights = masked_softmax(scores, mask.pairs(ask, offer)[:, None]).astype(value.dtype)
    weights = Dropout(self.rate)(weights, deterministic=False)
    return jnp.einsum("bnts,bsnd->btnd", weights, repeat_heads(value, query.shape[2]))
