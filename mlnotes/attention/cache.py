"""Keys and values of what was already read, for decoding a few tokens at a time; as floats, or as bytes with scales."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mlnotes.nn.int8 import Quantized, dequantize, quantize


class Cache(NamedTuple):
  """Room for S tokens of one layer, of which the first `length` are filled, the same number in every example.

  Where prompts are of unequal lengths, pad them on the left and say so by the mask's `key_segments` or positions.
  Of int8 each head's features of a token share a scale; None otherwise.
  """

  key: Array
  value: Array
  length: Int[Array, ""]
  key_scale: Float[Array, "B S K 1"] | None = None
  value_scale: Float[Array, "B S K 1"] | None = None


def make_cache(batch: int, size: int, kv_heads: int, head_dim: int, dtype: DTypeLike = jnp.float32) -> Cache:
  """An empty one. A float32 one of a layer takes 8 * batch * size * kv_heads * head_dim bytes, int8 a quarter or so."""
  empty = jnp.zeros((batch, size, kv_heads, head_dim), dtype)
  zero = jnp.zeros([], jnp.int32)
  if empty.dtype != jnp.int8:
    return Cache(empty, jnp.copy(empty), zero)
  scale = jnp.ones((batch, size, kv_heads, 1), jnp.float32)
  return Cache(empty, jnp.copy(empty), zero, scale, jnp.copy(scale))


def extend_cache(cache: Cache, key: Float[Array, "B T K H"], value: Float[Array, "B T K H"]) -> Cache:
  """With T more tokens. There must be room: where it ends, NaN stands in the place of all T, so that it shows."""
  fits = cache.length + key.shape[1] <= cache.key.shape[1]

  def write(old: Array, new: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), cache.length, axis=1)

  new = [jnp.where(fits, x, jnp.nan) for x in (key, value)]
  length = cache.length + key.shape[1]
  if cache.key_scale is None:
    return Cache(write(cache.key, new[0]), write(cache.value, new[1]), length)
  (keys, key_scale), (values, value_scale) = (quantize(x, -1) for x in (key, value))
  whole = lambda scale: jnp.where(fits, scale, jnp.nan)
  return Cache(
    write(cache.key, keys), write(cache.value, values), length,
    write(cache.key_scale, whole(key_scale)), write(cache.value_scale, whole(value_scale)),
  )  # fmt: skip


def read_cache(cache: Cache, dtype: DTypeLike) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
  """(keys, values) of all slots, those that are not filled too."""
  if cache.key_scale is None:
    return cache.key.astype(dtype), cache.value.astype(dtype)
  of = lambda values, scale: dequantize(Quantized(values, scale), dtype)
  return of(cache.key, cache.key_scale), of(cache.value, cache.value_scale)
