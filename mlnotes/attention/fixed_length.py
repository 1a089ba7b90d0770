"""Kinds that are made for sequences of up to one length: Linformer, compressed keys, Synthesizer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.attention.dot_product import attend_densely, attend_where, require_heads
from mlnotes.attention.local import require_places
from mlnotes.attention.mask import EVERYTHING, Bias, Mask, bias_matrix


class LinformerAttention(nn.Module):
  """Keys and values mixed down from `length` places to `rank`, then dense attention. Wang et al. 2020, eq. 7.

    softmax(q (E k)^T / sqrt(H)) F v           E and F, (rank, length), shared between heads

  Padding is zeroed before it is mixed. Raises ValueError for another number of keys than `length`, and for a causal
  mask, a window, segments or a bias: each mixed key holds all places.
  """

  length: int
  rank: int = 32

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
    batch, queries, keys = require_heads(query, key, value)
    if keys != self.length:
      raise ValueError(f"Linformer attention was built for {self.length} keys, found {keys}")
    if mask.causal or mask.window is not None or mask.key_segments is not None or bias is not None:
      raise ValueError("Linformer attention has no causal form, and takes no window, segments or bias")
    ask, offer = mask.tokens(batch, queries, keys)
    init = nn.initializers.normal(self.rank**-0.5)
    real = offer.real[..., None, None]
    mixed = [
      jnp.einsum("rs,bskh->brkh", self.param(name, init, (self.rank, keys)).astype(x.dtype), jnp.where(real, x, 0))
      for name, x in (("E", key), ("F", value))
    ]
    seen = ask.real[:, None, :, None] & jnp.any(offer.real, -1)[:, None, None, None]
    seen = jnp.broadcast_to(seen, (batch, 1, queries, self.rank))
    return attend_where(query, *mixed, seen)


class CompressedAttention(nn.Module):
  """Keys and values convolved down by `stride`, then dense attention. Liu et al. 2018, sec. 4.2.3.

  With kernels as long as the stride, each compressed key stands for `stride` places; a causal query sees it once all of
  these are at its position or before, so that the first ones see nothing. Padding is zeroed before. Fewer queries than
  keys go by their positions. Values of another width than the keys, such as the unit vectors of `compute_weights`, are
  averaged in place of convolved. Raises ValueError for a window, segments, a bias, or an order of the mask's own.
  """

  stride: int = 3

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
    batch, queries, keys = require_heads(query, key, value)
    if mask.window is not None or mask.key_segments is not None or bias is not None:
      raise ValueError("attention to compressed keys takes no window, segments or bias")
    require_places(mask, "compressed")
    ask, offer = mask.tokens(batch, queries, keys)
    short, width = -keys % self.stride, key.shape[-1]

    def compress(name: str, x: Array) -> Array:
      x = jnp.pad(jnp.where(offer.real[..., None, None], x, 0), [(0, 0), (0, short), (0, 0), (0, 0)])
      parts = x.reshape(batch, -1, self.stride, *x.shape[2:])
      if x.shape[-1] != width:
        return jnp.mean(parts, 2)
      kernel = self.param(name, nn.initializers.lecun_normal(), (self.stride, width, width)).astype(x.dtype)
      return jnp.einsum("bmskh,shd->bmkd", parts, kernel)

    grouped = lambda x, fill: jnp.pad(x, [(0, 0), (0, short)], constant_values=fill).reshape(batch, -1, self.stride)
    last = jnp.max(jnp.where(grouped(offer.real, False), grouped(offer.position, 0), -1), -1)
    # A part that is not full yet may still change: what follows it in a cache would.
    full = jnp.all(grouped(offer.real, False), -1)
    some = full if mask.causal else jnp.any(grouped(offer.real, False), -1)
    seen = ask.real[:, :, None] & some[:, None, :]
    if mask.causal:
      seen &= last[:, None, :] <= ask.position[:, :, None]
    return attend_where(query, compress("key", key), compress("value", value), seen[:, None])


class SynthesizerAttention(nn.Module):
  """Weights without products of queries and keys. Tay et al. 2021, eq. 2-6.

    dense:    softmax(W_2 relu(W_1 q_i)) v, a row of `length` scores from each query by itself
    random:   softmax(R) v, with a matrix R of `length` x `length` for each head, learned where `learned`

  Differences from the paper: the dense form acts on each head's query, not on the input before it.
  Positions of `length` or more, which have no scores, give NaN, so that it shows.
  Raises ValueError for more keys than `length`.
  """

  length: int
  form: str = "dense"
  learned: bool = True

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
    batch, queries, keys = require_heads(query, key, value)
    if keys > self.length:
      raise ValueError(f"Synthesizer attention was built for up to {self.length} keys, found {keys}")
    if self.form not in ("dense", "random"):
      raise ValueError(f"form is {self.form!r}, expected dense or random")
    ask, offer = mask.tokens(batch, queries, keys)
    heads = query.shape[2]
    if self.form == "dense":
      hidden = nn.relu(nn.Dense(query.shape[-1], dtype=query.dtype, name="widen")(query))
      rows = jnp.moveaxis(nn.Dense(self.length, dtype=query.dtype, name="scores")(hidden), 2, 1)
    else:
      matrix = self.param("matrix", nn.initializers.normal(1.0), (heads, self.length, self.length))
      matrix = matrix if self.learned else jax.lax.stop_gradient(matrix)
      rows = jnp.moveaxis(jnp.take(matrix, ask.position, axis=1, mode="fill", fill_value=jnp.nan), 1, 0)
    places = jnp.broadcast_to(offer.position[:, None, None, :], (*rows.shape[:3], keys))
    scores = jnp.take_along_axis(rows, places, axis=-1, mode="fill").astype(jnp.promote_types(rows.dtype, jnp.float32))
    extra = bias_matrix(bias, ask, offer)
    scores = scores if extra is None else scores + extra
    return attend_densely(scores, mask.pairs(ask, offer)[:, None], value)
