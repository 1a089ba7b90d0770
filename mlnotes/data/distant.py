"""Windows of a text, each with a stretch from elsewhere in it behind: what does not follow, for who is to tell."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Integer

from mlnotes.data.order import mix_bits
from mlnotes.data.text import Windows, cut_windows

# Of a text: other documents that are less than this part of it are too few to draw from; what is nearer is not far.
_NEAR = 8


class DistantWindows(Windows):
  """`windows` with a stretch of the same text behind each, from another place.

    {"tokens": int32 (B, length + 1 + length // 2)}     the window, then the stretch

  The stretch lies in documents that the window's two halves have no token of, at every place with equal chance; where
  those are less than an eighth of the text, an eighth of it or more away from the window. The window's number alone
  decides where: batches, seeds and epochs change nothing. `end` is the token that ends a document, -1 where none does.
  Raises ValueError for a text that is too short to be far away in.
  """

  def __init__(self, windows: Windows, end: int):
    tokens = windows.arrays["tokens"]
    super().__init__(tokens, windows.length, windows.stride)
    size, half = len(tokens), windows.length // 2
    if half < 1 or size - 2 * (size // _NEAR) - 4 * half + 1 < 0:
      raise ValueError(
        f"length={windows.length} is out of range: expected 2 or more, and a text of about {3 * windows.length} tokens "
        f"or more, found {size}."
      )
    starts = np.unique(np.concatenate([[0], np.flatnonzero(tokens == end) + 1, [size]])).astype(np.int32)
    self.arrays = {**self.arrays, "starts": starts}
    self.take = partial(cut_distant, length=windows.length, stride=windows.stride)

  @property
  def nbytes(self) -> int:
    return sum(array.nbytes for array in self.arrays.values())

  def read(self, index: Int[np.ndarray, " B"]) -> Mapping[str, np.ndarray]:
    tokens = self.arrays["tokens"]
    place = find_distant(np.asarray(index, np.int32), self.arrays["starts"], self.length, self.stride)
    stretch = tokens[place[:, np.newaxis] + np.arange(self.length // 2)].astype(np.int32)
    return {"tokens": np.concatenate([super().read(index)["tokens"], stretch], 1)}


def cut_distant(
  arrays: Mapping[str, Integer[Array, " _"]], index: Int[Array, " B"], length: int, stride: int
) -> dict[str, Int32[Array, "B L"]]:
  """The rows number `index` of `DistantWindows`, on the device."""
  place = find_distant(index, arrays["starts"], length, stride)
  place = place[:, jnp.newaxis] + jnp.arange(length // 2, dtype=jnp.int32)[jnp.newaxis]
  stretch = arrays["tokens"].at[place].get(mode="promise_in_bounds").astype(jnp.int32)
  return {"tokens": jnp.concatenate([cut_windows(arrays, index, length, stride)["tokens"], stretch], 1)}


def find_distant(index: Any, starts: Any, length: int, stride: int) -> Any:
  """Where the stretch of each window begins, int32 (B,). NumPy in, NumPy out, and the same from both.

  `starts` rise: where each document begins, and the number of all tokens.
  """
  np_ = np if isinstance(index, np.ndarray) else jnp
  half, size = length // 2, starts[-1]
  first = index * stride
  behind = first + 2 * half

  def room(begin, end):
    """Places before `begin` and from `end` on."""
    return np_.maximum(begin - half + 1, 0), np_.maximum(size - half - end + 1, 0)

  begin = starts[np_.searchsorted(starts, first, side="right") - 1]
  end = starts[np_.searchsorted(starts, behind - 1, side="right")]
  alone = sum(room(begin, end)) < np_.maximum(size // _NEAR, 1)
  end = np_.where(alone, behind + size // _NEAR, end)
  before, after = room(np_.where(alone, first - size // _NEAR, begin), end)
  drawn = mix_bits(index.astype(np.uint32) + np.uint32(1)) % (before + after).astype(np.uint32)
  drawn = drawn.astype(np.int32)
  return np_.where(drawn < before, drawn, end + drawn - before).astype(np.int32)
