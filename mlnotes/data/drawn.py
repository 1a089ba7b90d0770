"""Examples that are made, not read: new ones for every update, the same frozen ones for every evaluation."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from mlnotes.data.feed import EvalBatches, ResidentFeed
from mlnotes.engine.experiment import example_keys, root_key, stream_key

# (key, arrays) -> one example. `arrays` is what examples are made from, () where that is nothing.
DrawExample: TypeAlias = Callable[[Key[Array, ""], Any], Any]


def make_drawn_feed(draw_one: DrawExample, arrays: Any, batch_size: int, name: str = "examples") -> ResidentFeed:
  """`batch_size` new examples for every update, with that leading axis; `name` is their stream of random numbers."""

  def draw(arrays, key, step):
    keys = jax.random.split(stream_key(key, name, step), batch_size)
    return jax.vmap(lambda key: draw_one(key, arrays))(keys)

  return ResidentFeed(arrays, draw)


def make_drawn_eval(draw_one: DrawExample, arrays: Any, seed: int, count: int, batch_size: int) -> EvalBatches:
  """`count` examples that `seed` alone determines: number i has the key fold_in(key(seed), i), whatever `batch_size`.

  `draw_one` gives a dict. To a batch of them `index` is added, the examples' numbers, and `mask`: 1 where there is
  one, 0 for the copies of the last one that fill up the last batch.
  """

  def draw(arrays, i):
    number = i * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    index = jnp.minimum(number, count - 1)
    drawn = jax.vmap(lambda key: draw_one(key, arrays))(example_keys(root_key(seed), index))
    return {**drawn, "index": index, "mask": (number < count).astype(jnp.float32)}

  return EvalBatches(arrays, draw, -(-count // batch_size))
