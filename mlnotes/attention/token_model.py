"""A Transformer over tokens, with positions of any kind."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mlnotes.attention.cache import Cache
from mlnotes.attention.mask import EVERYTHING, Mask
from mlnotes.attention.position import make_alibi, sinusoidal_positions
from mlnotes.attention.transformer import Transformer

Position = Literal["learned", "sinusoidal", "alibi", "none"]


class TokenModel(nn.Module):
  """Logits of a token at every place, from a Transformer over embedded tokens.

  `position` says how places are told apart: an embedding of each (up to `length` of them), sines added, a bias of the
  scores, or not at all, as where the transformer's `rotary_base` turns queries and keys. The embeddings are scaled by
  sqrt(width) where sines are added to them, Vaswani et al. 2017, 3.4.

  Raises ValueError for more tokens than `length` where positions are learned; decoding beyond them gives NaN.
  """

  vocabulary: int
  length: int
  transformer: Transformer
  position: Position = "learned"
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B T"],
    mask: Mask = EVERYTHING,
    train: bool = False,
    cache: tuple[Cache, ...] | None = None,
  ) -> Any:
    """(B, T, vocabulary) in float32; with caches also these with what the tokens add."""
    width = self.transformer.width
    embed = nn.Embed(
      self.vocabulary, width, embedding_init=nn.initializers.normal(0.02), dtype=self.dtype, name="embed"
    )
    x: Float[Array, "B T D"] = embed(tokens)
    places = jnp.arange(tokens.shape[1])[None]
    if cache is not None:
      places = places + cache[0].length
    if mask.query_positions is not None:
      places = jnp.atleast_2d(mask.query_positions)
    if self.position == "learned":
      if tokens.shape[1] > self.length:
        raise ValueError(f"positions were learned for {self.length} tokens, found {tokens.shape[1]}")
      table = self.param("places", nn.initializers.normal(0.02), (self.length, width))
      x = x + jnp.take(table, places, axis=0, mode="fill").astype(x.dtype)
    if self.position == "sinusoidal":
      x = x * jnp.sqrt(width).astype(x.dtype) + sinusoidal_positions(places, width).astype(x.dtype)
    bias = make_alibi(self.transformer.heads) if self.position == "alibi" else None
    found = self.transformer(x, mask=mask, bias=bias, train=train, cache=cache)
    x, cache = found if cache is not None else (found, None)
    head = nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype, name="head")
    logits = head(x).astype(jnp.float32)
    return logits if cache is None else (logits, cache)
