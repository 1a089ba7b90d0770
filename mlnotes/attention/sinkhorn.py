"""Attention to one's own block and to one that a learned sorting brings there. Tay et al. 2020 (Sinkhorn)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mlnotes.attention.dot_product import NOT_SEEN, masked_softmax, repeat_heads, require_heads
from mlnotes.attention.local import block_scores, require_self, split_blocks
from mlnotes.attention.mask import EVERYTHING, Bias, Mask, Tokens


def sinkhorn(
  logits: Float[Array, "... M M"],
  iterations: int = 8,
  allowed: Bool[Array, "... M M"] | None = None,
  rows_only: bool = False,
) -> Float[Array, "... M M"]:
  """exp(logits) with rows and columns normalised in turn, in log space: towards a doubly stochastic matrix. Eq. 3-4.

  Where `allowed` is False the result is 0, and a row that allows nothing is 0. `rows_only` normalises rows, once:
  columns of a causal matrix would tell earlier rows of later ones.
  """
  allowed = jnp.ones(logits.shape, bool) if allowed is None else jnp.broadcast_to(allowed, logits.shape)
  log = jnp.where(allowed, logits, NOT_SEEN)

  def normalize(log: Array, axis: int) -> Array:
    return jnp.where(allowed, log - jax.nn.logsumexp(log, axis=axis, keepdims=True), NOT_SEEN)

  for _ in range(1 if rows_only else iterations):
    log = normalize(log, -1)
    if not rows_only:
      log = normalize(log, -2)
  return jnp.where(allowed, jnp.exp(log), 0)


class SinkhornAttention(nn.Module):
  """Blocks of keys are sorted softly; each block of queries sees its own block and the one sorted to its place. Sec. 3.

  A matrix turns the sum of each block's keys into its logits for each place; Gumbel noise in training where rngs has
  "sorting"; `temperature`; `iterations` normalisations. The causal form has sums of the blocks before, lets only those
  be sorted to a place and normalises rows alone. Padding is zeroed, and a block of padding alone is never sorted.
  Raises ValueError for more than `blocks` blocks of `block` tokens, a window, segments, a bias, a causal mask with
  positions of its own, or keys of another number than queries.
  """

  blocks: int
  block: int = 16
  temperature: float = 0.75
  iterations: int = 8

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
    require_self("Sinkhorn", query, key)
    if mask.window is not None or mask.key_segments is not None or bias is not None:
      raise ValueError("Sinkhorn attention takes no window, segments or bias")
    if mask.causal and not mask.is_in_order:
      raise ValueError("causal Sinkhorn attention goes by the places in the arrays: the mask has positions of its own")
    if length > self.blocks * self.block:
      raise ValueError(f"Sinkhorn attention was built for up to {self.blocks * self.block} tokens, found {length}")
    heads = query.shape[2]
    ask, offer = mask.tokens(batch, length, length)
    real = offer.real[..., None, None]
    cut = lambda x: split_blocks(x, self.block)
    k, v = (cut(jnp.where(real, repeat_heads(x, heads), 0)) for x in (key, value))
    order = self._sort(k, cut(offer.real), mask.causal, train)

    bring = lambda x: jnp.einsum("bnij,bjwnd->biwnd", order.astype(x.dtype), x)
    scores = jnp.concatenate([block_scores(cut(query), k), block_scores(cut(query), bring(k))], -1)
    asks, near = Tokens(*map(cut, ask)), Tokens(*map(cut, offer))
    brought = jnp.einsum("bnij,bjw->bniw", order, near.real.astype(order.dtype)) > 1e-6
    brought = brought[:, :, :, None, :] & asks.real[:, None, :, :, None]
    own = jnp.broadcast_to(mask.pairs(asks, near)[:, None], brought.shape)
    weights = masked_softmax(scores, jnp.concatenate([own, brought], -1)).astype(v.dtype)
    out = jnp.einsum("bnmwv,bmvnd->bmwnd", weights, jnp.concatenate([v, bring(v)], axis=2))
    return out.reshape(batch, -1, heads, v.shape[-1])[:, :length]

  def _sort(self, k: Array, real: Array, causal: bool, train: bool) -> Float[Array, "B N M M"]:
    """How much of each block (last axis) comes to each place."""
    sums = jnp.sum(k, 2).astype(jnp.promote_types(k.dtype, jnp.float32))
    if causal:
      # Not the sums with a block's own less that one: its rounding would tell of it.
      sums = jnp.cumsum(jnp.pad(sums, [(0, 0), (1, 0), (0, 0), (0, 0)])[:, :-1], 1)
    logits = nn.DenseGeneral(self.blocks, dtype=sums.dtype, name="sort")(sums)
    logits = jnp.moveaxis(logits, 2, 1)[..., : k.shape[1]]
    if train and self.has_rng("sorting"):
      logits = logits + jax.random.gumbel(self.make_rng("sorting"), logits.shape, logits.dtype)
    exists = jnp.any(real, -1)[:, None, None, :]
    places = jnp.arange(k.shape[1])
    allowed = (
      exists & (places[None, :] < places[:, None])[None, None] if causal else exists & jnp.swapaxes(exists, 2, 3)
    )
    return sinkhorn(logits / self.temperature, self.iterations, allowed, rows_only=causal)
