"""A first-in first-out queue of keys from earlier batches: negatives without a large batch."""

from typing import NamedTuple

import jax.numpy as jnp
import jax.random
from jaxtyping import Array, Float, Int, Key

from mlnotes.contrastive.loss import normalize


class Queue(NamedTuple):
  """`pointer` is the row that the next key goes to; the oldest keys stand there, the newest right before it."""

  keys: Float[Array, "K D"]
  pointer: Int[Array, ""]


def init_queue(key: Key[Array, ""], size: int, features: int) -> Queue:
  """A queue of `size` random unit vectors, which the first batches push out. Raises ValueError for size < 1."""
  if size < 1:
    raise ValueError(f"size={size} is out of range: expected 1 or more keys")
  return Queue(normalize(jax.random.normal(key, (size, features))), jnp.zeros([], jnp.int32))


def enqueue(queue: Queue, keys: Float[Array, "B D"]) -> Queue:
  """The queue with the B newest keys in order in place of the B oldest; B need not divide K.

  He et al. 2020, section 3.2. Raises ValueError where B > K or D differs.
  """
  size, count = len(queue.keys), len(keys)
  if keys.shape[1] != queue.keys.shape[1]:
    raise ValueError(f"keys have {keys.shape[1]} features, expected {queue.keys.shape[1]} as in the queue")
  if count > size:
    raise ValueError(f"a queue of {size} keys cannot take {count} at once: expected at most as many as it holds")
  rows = (queue.pointer + jnp.arange(count)) % size
  stored = queue.keys.at[rows].set(keys.astype(queue.keys.dtype), unique_indices=True)
  return Queue(stored, (queue.pointer + count) % size)
