"""Which ids are words and which are marks, and rows made of parts and marks."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from mlnotes.sequence.losses import real_places


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The ids of a tokenizer, as objectives need to know them. All are static.

    vocabulary = Vocabulary(tokenizer.vocab_size, special=tuple(tokenizer.special.values()), mask=.., pad=..)

  Attributes:
    size: how many ids there are, 0 ... size - 1.
    special: those that are no words, `mask` and `pad` among them: never hidden, never put in the place of a word.
    mask: what stands in the place of a hidden word; None where no objective hides any.
    pad: what stands behind the end.

  Raises ValueError for an id that is out of range, a mask or pad that is not special, or no word at all.
  """

  size: int
  special: tuple[int, ...]
  mask: int | None = None
  pad: int = 0

  def __post_init__(self):
    outside = [i for i in self.special if not 0 <= i < self.size]
    if outside:
      raise ValueError(f"special holds {outside[0]}, expected ids from 0 to {self.size - 1}")
    for name, value in (("mask", self.mask), ("pad", self.pad)):
      if value is not None and value not in self.special:
        raise ValueError(f"{name} is {value}, expected one of the special ids {self.special}")
    if len(set(self.special)) >= self.size:
      raise ValueError(f"all {self.size} ids are special: expected some words")

  @property
  def words(self) -> Int[np.ndarray, " W"]:
    """The ids that are not special, ascending."""
    return np.setdiff1d(np.arange(self.size, dtype=np.int32), np.array(self.special, np.int32))

  def require_mask(self) -> int:
    """The mask's id. Raises ValueError where there is none."""
    if self.mask is None:
      raise ValueError("mask is None: expected the id of a mask in the vocabulary")
    return self.mask

  def is_word(self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"] | None = None) -> Bool[Array, "B T"]:
    """Which places hold a word: no special id, and no padding behind `lengths`."""
    found = jnp.ones(tokens.shape, bool) if lengths is None else real_places(lengths, tokens.shape[1])
    for i in self.special:
      found &= tokens != i
    return found


def fill_lengths(lengths: Int[Array, " B"] | None, tokens: Int[Array, "B T"]) -> Int[Array, " B"]:
  """The lengths, or those of rows without padding."""
  return jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32) if lengths is None else lengths.astype(jnp.int32)


def join_rows(
  parts: Sequence[int | tuple[Int[Array, "B _"], Int[Array, " B"]]], size: int, pad: int
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
  """(rows of `size` tokens, their lengths): the parts one behind the other, `pad` behind them.

  A part is (tokens, how many of each row are real), or an id that every row gets. What finds no room is dropped.
  Raises ValueError where no part has rows.
  """
  rows = next((len(part[0]) for part in parts if isinstance(part, tuple)), None)
  if rows is None:
    raise ValueError("none of the parts has rows: expected tokens and lengths")
  joined = jnp.full((rows, size), pad, jnp.int32)
  total = jnp.zeros((rows,), jnp.int32)
  for part in parts:
    mark = lambda: (jnp.full((rows, 1), part, jnp.int32), jnp.ones((rows,), jnp.int32))  # noqa: B023
    tokens, lengths = part if isinstance(part, tuple) else mark()
    place = total[:, None] + jnp.arange(tokens.shape[1])[None]
    place = jnp.where(real_places(lengths, tokens.shape[1]), place, size)
    joined = joined.at[jnp.arange(rows)[:, None], place].set(tokens.astype(jnp.int32), mode="drop")
    total = jnp.minimum(total + lengths, size)
  return joined, total
