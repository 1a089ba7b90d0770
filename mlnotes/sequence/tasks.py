"""Tasks that only a memory solves, drawn on the device: adding, copying, parity, brackets; and their floors.

Each draws one example from a key, {"inputs": (T, D) float32, "target": ..., "length": steps that count}. A target is a
class for each step, int32 (T,), NOT_ASKED where nothing is asked, or one number, float32, to be said at the end.
Batches are `vmap`s.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

NOT_ASKED = -1


class Task(NamedTuple):
  """A task of sequences.

  Attributes:
    draw: a key to an example.
    length: T, the steps of the longest one.
    features: D.
    classes: how many classes a step has; 0 where the target is a number.
    floor: the loss, in nats for each step that is asked or squared error, of the best answer that knows which step it
      is and what stands there, and nothing before.
    accuracy: the share of steps that the best such answer gets right; NaN of a number.
  """

  draw: Callable[[Key[Array, ""]], dict[str, Array]]
  length: int
  features: int
  classes: int
  floor: float
  accuracy: float


def make_adding(length: int) -> Task:
  """Numbers on [0, 1), of which two are marked, one in each half: what is their sum? Hochreiter & Schmidhuber 1997.

  In the form of Le et al. 2015, sec. 4.1. The floor is the variance of the sum, 1/6, but where the last step is the
  second one marked, once in length - half times: it shows its number, and 1/12 is left. Raises ValueError for a length
  below 2.
  """
  _require(length, 2)
  half = length // 2

  def draw(key):
    of_values, of_first, of_second = jax.random.split(key, 3)
    values = jax.random.uniform(of_values, (length,))
    first = jax.random.randint(of_first, (), 0, half)
    second = jax.random.randint(of_second, (), half, length)
    marks = jnp.zeros(length).at[jnp.stack([first, second])].set(1)
    target = values[first] + values[second]
    return {"inputs": jnp.stack([values, marks], 1), "target": target, "length": jnp.int32(length)}

  return Task(draw, length, 2, 0, 1 / 6 - 1 / (12 * (length - half)), float("nan"))


def make_copying(delay: int, count: int = 10, symbols: int = 8) -> Task:
  """`count` symbols, `delay` blanks of which the last is a mark, then as many steps in which to say the symbols again.

  Before that a blank is to be said. Hochreiter & Schmidhuber 1997, in the form of Arjovsky et al. 2016, sec. 5.1:
  delay + 2 count steps. Without memory count ln(symbols) / (delay + 2 count) nats. Raises ValueError for a delay
  below 1.
  """
  _require(delay, 1)
  length = delay + 2 * count
  blank, mark = symbols, symbols + 1

  def draw(key):
    said = jax.random.randint(key, (count,), 0, symbols)
    blanks = jnp.full(length, blank)
    tokens = blanks.at[:count].set(said).at[count + delay - 1].set(mark)
    inputs = jax.nn.one_hot(tokens, symbols + 2)
    return {"inputs": inputs, "target": blanks.at[-count:].set(said), "length": jnp.int32(length)}

  accuracy = (delay + count + count / symbols) / length
  return Task(draw, length, symbols + 2, symbols + 1, count * float(np.log(symbols)) / length, accuracy)


def make_parity(length: int) -> Task:
  """Bits: at each step, is the number of ones so far odd?

  Without memory that is known at the first step alone. Raises ValueError for a length below 1.
  """
  _require(length, 1)

  def draw(key):
    bits = jax.random.bernoulli(key, shape=(length,)).astype(jnp.int32)
    return {"inputs": jax.nn.one_hot(bits, 2), "target": jnp.cumsum(bits) % 2, "length": jnp.int32(length)}

  return Task(draw, length, 2, 2, float(np.log(2)) * (1 - 1 / length), 0.5 + 0.5 / length)


def make_dyck(length: int, kinds: int = 1, depth: int = 8) -> Task:
  """Brackets that close in order, of `kinds` kinds, at most `depth` open: Dyck-`kinds` (Hewitt et al. 2020).

  Of one kind, how many are open after each step, 0 ... depth; of more, which kind is the last one open, 0 where none
  is. A bracket opens or closes with equal chance where both may be, the kind is drawn evenly. The floors are of the
  distribution at each step behind an opening and behind a closing bracket, exactly. Raises ValueError for a length, a
  depth or kinds below 1.
  """
  for size in (length, kinds, depth):
    _require(size, 1)

  def draw(key):
    of_steps, of_kinds = jax.random.split(key)
    coins = jax.random.bernoulli(of_steps, shape=(length,))
    drawn = jax.random.randint(of_kinds, (length,), 0, kinds)

    def next_bracket(carry, x):
      stack, open_ = carry
      coin, kind = x
      opens = (open_ == 0) | ((open_ < depth) & coin)
      top = stack[jnp.maximum(open_ - 1, 0)]
      stack = jnp.where(opens & (jnp.arange(depth) == open_), kind, stack)
      open_ = open_ + jnp.where(opens, 1, -1)
      last = jnp.where(open_ > 0, stack[jnp.maximum(open_ - 1, 0)] + 1, 0)
      token = jnp.where(opens, kind, kinds + top)
      return (stack, open_), (token, open_ if kinds == 1 else last)

    start = (jnp.zeros(depth, jnp.int32), jnp.int32(0))
    _, (tokens, target) = jax.lax.scan(next_bracket, start, (coins, drawn))
    return {"inputs": jax.nn.one_hot(tokens, 2 * kinds), "target": target, "length": jnp.int32(length)}

  opened, closed = _open_brackets(length, depth)
  if kinds > 1:
    # All kinds are alike: the one that opens is the last one open, behind one that closes it may be any.
    opened = opened.sum(1, keepdims=True) * np.eye(1, kinds + 1, 1)
    closed = np.concatenate([closed[:, :1], np.repeat(closed[:, 1:].sum(1, keepdims=True) / kinds, kinds, 1)], 1)
  chances = np.stack([opened, closed], 1)
  of_token = chances.sum(2, keepdims=True)
  given = np.where(chances > 0, chances / np.where(of_token > 0, of_token, 1), 1)
  floor = -np.sum(chances * np.log(given), (1, 2)).mean()
  return Task(draw, length, 2 * kinds, chances.shape[2], float(floor), float(chances.max(2).sum(1).mean()))


def _open_brackets(length: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
  """Twice (length, depth + 1): the chance that a bracket opens, or closes, and so many are open behind it.

  Of a walk that is reflected at its ends.
  """
  up = np.full(depth + 1, 0.5)
  up[0], up[-1] = 1, 0
  opens, closes = np.diag(up[:-1], 1), np.diag(1 - up[1:], -1)
  before, opened, closed = np.eye(depth + 1)[0], [], []
  for _ in range(length):
    opened.append(before @ opens)
    closed.append(before @ closes)
    before = opened[-1] + closed[-1]
  return np.stack(opened), np.stack(closed)


def _require(size: Any, least: int) -> None:
  if size < least:
    raise ValueError(f"a size of {size}, expected {least} or more")
