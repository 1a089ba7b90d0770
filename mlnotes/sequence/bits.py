"""Tasks of binary vectors that ask for a memory, drawn on the device: copy, repeat copy, associative recall.

Graves et al. 2014, sec. 4.1 to 4.3. Each draws one example from a key; batches are `vmap`s. Examples of different
lengths stand in arrays of one length: what comes behind is 0 and not asked.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class BitExample(NamedTuple):
  """What is seen and what is to be said at each of T steps.

  Attributes:
    inputs: bits, then channels that say what to do.
    targets: bits, 0 where nothing is asked.
    asked: 1 at the steps that are answers.
  """

  inputs: Float[Array, "*B T D"]
  targets: Float[Array, "*B T K"]
  asked: Float[Array, "*B T"]


class BitTask(NamedTuple):
  """A task of bits.

  Attributes:
    draw: a key to one example.
    length: T, steps of every example.
    inputs, targets: D and K, channels in and out.
  """

  draw: Callable[[Key[Array, ""]], BitExample]
  length: int
  inputs: int
  targets: int


def make_copy(bits: int = 8, least: int = 1, most: int = 20) -> BitTask:
  """`least` to `most` random vectors, then a mark on a channel of its own: say them in their order. Sec. 4.1.

  Raises ValueError unless 1 <= least <= most.
  """
  _check_range("copy", "vectors", least, most)
  length = 2 * most + 1

  def draw(key):
    of_length, of_bits = jax.random.split(key)
    count = jax.random.randint(of_length, (), least, most + 1)
    said = _random_bits(of_bits, (most, bits), count)
    inputs = jnp.zeros((length, bits + 1)).at[:most, :bits].set(said).at[count, bits].set(1)
    targets = jax.lax.dynamic_update_slice(jnp.zeros((length, bits)), said, (count + 1, 0))
    return BitExample(inputs, targets, _between(length, count + 1, 2 * count + 1))

  return BitTask(draw, length, bits + 1, bits)


def make_repeat_copy(
  bits: int = 8,
  least: int = 1,
  most: int = 10,
  fewest: int = 1,
  often: int = 10,
  scale: tuple[int, int] | None = None,
) -> BitTask:
  """As `make_copy`, but the mark says how often: `fewest` to `often` times, then a mark is to be said. Sec. 4.2.

  The number is given less the mean, over the standard deviation (1 where that is less), of those of `scale`, (fewest,
  often) where it is None: longer tests need that of training. The last channel said is that of the mark.
  Raises ValueError unless 1 <= least <= most and 1 <= fewest <= often.
  """
  _check_range("repeat copy", "vectors", least, most)
  _check_range("repeat copy", "repeats", fewest, often)
  length = most + 1 + most * often + 1
  low, high = scale or (fewest, often)
  mean, deviation = (low + high) / 2, max(((high - low + 1) ** 2 - 1) / 12, 1) ** 0.5

  def draw(key):
    of_length, of_repeats, of_bits = jax.random.split(key, 3)
    count = jax.random.randint(of_length, (), least, most + 1)
    repeats = jax.random.randint(of_repeats, (), fewest, often + 1)
    said = _random_bits(of_bits, (most, bits), count)
    inputs = jnp.zeros((length, bits + 2)).at[:most, :bits].set(said)
    inputs = inputs.at[count, bits].set(1).at[count, bits + 1].set((repeats - mean) / deviation)
    place = jnp.arange(length) - count - 1
    end = count * repeats
    answers = jnp.where(((place >= 0) & (place < end))[:, None], said[place % count], 0)
    targets = jnp.concatenate([answers, (place == end).astype(jnp.float32)[:, None]], 1)
    return BitExample(inputs, targets, _between(length, count + 1, count + 1 + end + 1))

  return BitTask(draw, length, bits + 2, bits + 1)


def make_associative_recall(bits: int = 6, fewest: int = 2, most: int = 6, rows: int = 3) -> BitTask:
  """`fewest` to `most` items of `rows` vectors, then one of them again: say the item that came after it. Sec. 4.3.

  A mark stands before each item, another before and behind the one that is asked about. Items are distinct with all
  but 2^-(bits rows) of the pairs. Raises ValueError unless 2 <= fewest <= most.
  """
  _check_range("associative recall", "items", fewest, most, 2)
  item = rows + 1
  length = most * item + 1 + rows + 1 + rows

  def draw(key):
    of_count, of_place, of_bits = jax.random.split(key, 3)
    count = jax.random.randint(of_count, (), fewest, most + 1)
    items = _random_bits(of_bits, (most, rows, bits), count)
    place = jax.random.randint(of_place, (), 0, count - 1)
    shown = jnp.concatenate([jnp.zeros((most, 1, bits)), items], 1).reshape(-1, bits)
    starts = (jnp.arange(most * item) % item == 0) & (jnp.arange(most * item) < count * item)
    query = count * item  # its mark; then its rows, then the mark behind it
    inputs = jnp.zeros((length, bits + 2)).at[: most * item, :bits].set(shown)
    inputs = inputs.at[: most * item, bits].set(starts.astype(jnp.float32))
    inputs = jax.lax.dynamic_update_slice(inputs, jnp.pad(items[place], ((0, 0), (0, 2))), (query + 1, 0))
    inputs = inputs.at[query, bits + 1].set(1).at[query + rows + 1, bits + 1].set(1)
    first = query + rows + 2
    targets = jax.lax.dynamic_update_slice(jnp.zeros((length, bits)), items[place + 1], (first, 0))
    return BitExample(inputs, targets, _between(length, first, first + rows))

  return BitTask(draw, length, bits + 2, bits)


def _random_bits(key: Key[Array, ""], shape: tuple[int, ...], count: Array) -> Float[Array, "..."]:
  """Bits, 0 from entry `count` of the first axis on."""
  there = jnp.arange(shape[0]) < count
  bits = jax.random.bernoulli(key, shape=shape).astype(jnp.float32)
  return jnp.where(there.reshape(-1, *(1,) * (len(shape) - 1)), bits, 0)


def _between(length: int, first: Array, end: Array) -> Float[Array, " T"]:
  place = jnp.arange(length)
  return ((place >= first) & (place < end)).astype(jnp.float32)


def _check_range(task: str, what: str, least: int, most: int, smallest: int = 1) -> None:
  if not smallest <= least <= most:
    raise ValueError(f"{task} of {least} to {most} {what}: expected {smallest} or more, and no more than the second")
