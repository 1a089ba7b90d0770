"""Keys and values of what was already read, for decoding a few tokens at a time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


class Cache(NamedTuple):
  """Room for S tokens of one layer, of which the first `length` are filled, the same number in every example.

  Where prompts are of unequal lengths, pad them on the left and say so by the mask's `key_segments` or positions.
  """

  key: Float[Array, "B S K H"]
  value: Float[Array, "B S K H"]
  length: Int[Array, ""]


def make_cache(batch: int, size: int, kv_heads: int, head_dim: int, dtype: DTypeLike = jnp.float32) -> Cache:
  """An empty one. A float32 one of a layer takes 8 * batch * size * kv_heads * head_dim bytes."""
  empty = jnp.zeros((batch, size, kv_heads, head_dim), dtype)
  return Cache(empty, jnp.copy(empty), jnp.zeros([], jnp.int32))


def extend_cache(cache: Cache, key: Float[Array, "B T K H"], value: Float[Array, "B T K H"]) -> Cache:
  """With T more tokens. There must be room: where it ends, NaN stands in the place of all T, so that it shows."""
  fits = cache.length + key.shape[1] <= cache.key.shape[1]

  def write(old: Array, new: Array) -> Array:
    new = jnp.where(fits, new, jnp.nan).astype(old.dtype)
    return jax.lax.dynamic_update_slice_in_dim(old, new, cache.length, axis=1)

  return Cache(write(cache.key, key), write(cache.value, value), cache.length + key.shape[1])
