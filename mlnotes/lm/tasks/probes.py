"""Questions that a text answers by itself: what a language model is tuned to where nobody has labelled anything.

    starts = draw_starts(rng, tokens, 64, 1000, end)          # windows of the training text, or of the test text
    rows = move_spans(rng, tokens, starts, 64, 8, 24)

In NumPy: rows are made once, before training. Of two classes each is half of the rows, so that a guess is right for
half of them.
"""

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer

# Draws until a row is what was asked for; a text where none of them is cannot be asked this.
_TRIES = 1000


def draw_starts(
  rng: np.random.Generator, tokens: Integer[np.ndarray, " T"], length: int, count: int, end: int = -1, step: int = 1
) -> Int[np.ndarray, " N"]:
  """Where distinct windows of `length` tokens begin that have no `end` in them: `count`, or all if these are fewer.

  Of places that are multiples of `step`: so windows share no more than `length` - `step` tokens.

  Raises ValueError where there is none.
  """
  ends = np.concatenate([[0], np.cumsum(tokens == end)])
  inside = ends[length:] - ends[:-length] if len(tokens) >= length else np.zeros(0)
  starts = np.flatnonzero(inside == 0)
  starts = starts[starts % step == 0]
  if not len(starts):
    raise ValueError(f"length is {length}, expected a window of it in {len(tokens)} tokens within a document")
  return rng.permutation(starts)[:count].astype(np.int64)


def halve(rng: np.random.Generator, count: int) -> Int[np.ndarray, " N"]:
  """1 for half of the rows, the smaller half of an odd number, in any order."""
  return rng.permutation(np.arange(count) < count // 2).astype(np.int32)


def cut_words(text: str) -> str:
  """The text without what of its first and last words may have been cut off, and the spaces around."""
  return re.sub(r"(^|\s+)\S*\Z", "", re.sub(r"^\S*\s+", "", text)).strip()


class Exchanged(NamedTuple):
  """Texts, in half of which two neighbouring words stand in the other order.

  Attributes:
    label: 1 where they do.
    place: the number of the first of the two words, -1 where none were exchanged.
  """

  texts: tuple[str, ...]
  label: Int[np.ndarray, " N"]
  place: Int[np.ndarray, " N"]


def exchange_words(rng: np.random.Generator, text: str) -> tuple[str, int]:
  """The text with two neighbouring words that differ in each other's place, and the number of the first.

  Words are what spaces part, and these stay where they are. Raises ValueError where no two neighbours differ.
  """
  parts = re.split(r"(\s+)", text)
  words = [i for i in range(0, len(parts), 2) if parts[i]]
  places = [n for n, (i, j) in enumerate(pairwise(words)) if parts[i] != parts[j]]
  if not places:
    raise ValueError(f"text is {text[:40]!r}, expected two neighbouring words that differ")
  place = int(rng.choice(places))
  i, j = words[place], words[place + 1]
  parts[i], parts[j] = parts[j], parts[i]
  return "".join(parts), place


def shift_words(rng: np.random.Generator, texts: Sequence[str]) -> Exchanged:
  """Were two neighbouring words exchanged? Conneau et al. 2018, sec. 2 (bigram shift).

  Texts without two neighbours that differ are left out. Raises ValueError where fewer than two have them.
  """
  found = [text for text in texts if len(set(text.split())) > 1]
  if len(found) < 2:
    raise ValueError(f"{len(found)} of {len(texts)} texts have two words that differ, expected 2 or more")
  label = halve(rng, len(found))
  rows = [exchange_words(rng, text) if shifted else (text, -1) for text, shifted in zip(found, label)]
  return Exchanged(tuple(text for text, _ in rows), label, np.array([place for _, place in rows], np.int32))


class Followed(NamedTuple):
  """Two passages of a text in each row, of as many tokens.

  Attributes:
    label: 1 where the second goes on where the first one ends.
    place: where in the text the second stands.
  """

  tokens: Int[np.ndarray, "N T"]
  label: Int[np.ndarray, " N"]
  place: Int[np.ndarray, " N"]


def follow_passages(
  rng: np.random.Generator, tokens: Integer[np.ndarray, " T"], starts: Int[np.ndarray, " N"], half: int
) -> Followed:
  """Does the second passage follow the first? After Devlin et al. 2019, sec. 3.1, task 2 (next sentence prediction).

  Row i has the passage at `starts[i]` and the one behind it, or the one behind another row's. So the second passages
  of both classes are of the same kind: alone they tell nothing. One from elsewhere is no part of what follows, and
  reads otherwise. Differences from the paper: passages of `half` tokens, whatever begins or ends with them.
  Raises ValueError where no other row's will do.
  """
  label = halve(rng, len(starts))
  place = starts + half
  read = lambda at: tokens[np.asarray(at)[..., None] + np.arange(half)]
  for i in np.flatnonzero(label == 0):
    for _ in range(_TRIES):
      other = int(rng.choice(starts)) + half
      if abs(other - starts[i] - half) >= half and not np.array_equal(read(other), read(starts[i] + half)):
        break
    else:
      raise ValueError(f"starts are {len(starts)} places, expected one {half} tokens away that reads otherwise")
    place[i] = other
  return Followed(np.concatenate([read(starts), read(place)], 1).astype(np.int32), label, place)


class Moved(NamedTuple):
  """Passages with a span that is of another place: its first and its last token."""

  tokens: Int[np.ndarray, "N T"]
  start: Int[np.ndarray, " N"]
  end: Int[np.ndarray, " N"]


def move_spans(
  rng: np.random.Generator,
  tokens: Integer[np.ndarray, " T"],
  starts: Int[np.ndarray, " N"],
  length: int,
  shortest: int,
  longest: int,
) -> Moved:
  """Where does what was put in begin and end? A span, as Rajpurkar et al. 2016 (SQuAD) ask for one.

  A span of `shortest` to `longest` tokens of each window gives way to as many of another row's window. Both ends differ
  from what stood there, so that they can be told. Raises ValueError where nothing of another row will do, or the sizes
  do not fit.
  """
  if not 1 <= shortest <= longest <= length:
    raise ValueError(f"shortest is {shortest}, longest {longest}, expected 1 <= shortest <= longest <= {length}")
  rows = tokens[starts[:, None] + np.arange(length)].astype(np.int32)
  first, last = (np.zeros(len(starts), np.int32) for _ in range(2))
  for i, begin in enumerate(starts):
    for _ in range(_TRIES):
      size = int(rng.integers(shortest, longest + 1))
      start = int(rng.integers(0, length - size + 1))
      other = int(rng.choice(starts)) + int(rng.integers(0, length - size + 1))
      moved, stood = tokens[other : other + size], rows[i, start : start + size]
      if abs(other - begin) >= length and moved[0] != stood[0] and moved[-1] != stood[-1]:
        break
    else:
      raise ValueError(f"starts are {len(starts)} places, expected one {length} tokens away that reads otherwise")
    rows[i, start : start + size] = moved
    first[i], last[i] = start, start + size - 1
  return Moved(rows, first, last)


class Lowered(NamedTuple):
  """A text in lower case, and of each of its characters whether it was a capital; weight 1 for letters that can be."""

  text: str
  label: Int[np.ndarray, " T"]
  weight: Float[np.ndarray, " T"]


def lower_case(text: str, known: Collection[str] | None = None) -> Lowered:
  """Which letters were capitals? Truecasing, Lita et al. 2003; of each letter by itself as Susanto et al. 2016.

  A letter whose two cases are not one character each, or not both among the `known` ones, stays as it is and has no
  weight.
  """

  def can(letter: str) -> bool:
    both = (letter.lower(), letter.upper())
    return both[0] != both[1] and max(map(len, both)) == 1 and (known is None or all(x in known for x in both))

  fits = [can(letter) for letter in text]
  lowered = "".join(letter.lower() if fit else letter for letter, fit in zip(text, fits))
  label = np.array([fit and letter != low for letter, low, fit in zip(text, lowered, fits)], np.int32)
  return Lowered(lowered, label, np.array(fits, np.float32))
