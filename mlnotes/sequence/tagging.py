"""Slot filling: requests for flights from a small grammar, a tag for each word, and the F1 of what is tagged.

Tags are in BIO form: 0 outside, 1 + 2 k the first word of an entity of kind k, 2 + 2 k the words after it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from mlnotes.sequence.tasks import Task

KINDS = ("from", "to", "leave_day", "return_day", "time", "airline")

_CITIES = ("boston", "denver", "new york", "san francisco", "san diego", "new orleans", "salt lake city", "dallas",
           "atlanta", "washington", "kansas city", "miami")  # fmt: skip
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_TIMES = ("morning", "afternoon", "evening", "late night", "early morning")
_AIRLINES = ("delta", "united", "american airlines", "air canada", "new air", "washington air")
# Each is a choice of phrases for one place in a request: in brackets an entity, its kind and what it may be. Which of
# two kinds it is may stand behind it.
_OPENINGS = ("show me flights", "i need a flight", "find flights please", "i want to fly", "any flights", "list fares")
_PLACES = (
  (("from [from city]", "leaving [from city]", "[from city] departures"),),
  (("to [to city]", "into [to city]", "[to city] arrivals"),),
  (("on [leave_day day]", "[leave_day day] going out", "going out [leave_day day]"),),
  (("back on [return_day day]", "[return_day day] coming back", "coming back [return_day day]"),),
  (("in the [time time]", "[time time] flights only"),),
  (("with [airline airline]", "on [airline airline] planes", "by [airline airline]"),),
)
_VALUES = {"city": _CITIES, "day": _DAYS, "time": _TIMES, "airline": _AIRLINES}


def _expand(phrase: str) -> list[tuple[list[str], list[int]]]:
  """(words, tags) of a phrase with every value that its entity may have."""
  before, bracket, rest = phrase.partition("[")
  if not bracket:
    return [(before.split(), [0] * len(before.split()))]
  inside, _, after = rest.partition("]")
  name, values = inside.split()
  kind, found = KINDS.index(name), []
  for value in _VALUES[values]:
    words, left, right = value.split(), before.split(), after.split()
    tags = [0] * len(left) + [1 + 2 * kind] + [2 + 2 * kind] * (len(words) - 1) + [0] * len(right)
    found.append((left + words + right, tags))
  return found


_CHOICES = [[phrase for text in _OPENINGS for phrase in _expand(text)]] + [
  [phrase for text in texts for phrase in _expand(text)] for (texts,) in _PLACES
]
WORDS = tuple(sorted({word for choice in _CHOICES for words, _ in choice for word in words}))
TAGS = ("O", *(f"{mark}-{kind}" for kind in KINDS for mark in "BI"))


def make_slots() -> Task:
  """An opening, then two to six phrases in any order, one for each place that is asked for; a tag for each word.

  Inputs are one-hot words of `WORDS`, targets numbers of `TAGS`. Two words, such as `new`, begin entities of several
  kinds, and a city or a day may be told by the words behind it alone, which a network that reads forward has not seen.
  No floor is said: `tags_of_words` gives what a tagger without memory would say.
  """
  longest = [max(len(words) for words, _ in choice) for choice in _CHOICES]
  size = max(len(choice) for choice in _CHOICES)
  width = max(longest)
  words = np.zeros((len(_CHOICES), size, width), np.int32)
  tags, sizes = np.zeros_like(words), np.zeros((len(_CHOICES), size), np.int32)
  for place, choice in enumerate(_CHOICES):
    for i, (said, marked) in enumerate(choice):
      words[place, i, : len(said)] = [WORDS.index(word) for word in said]
      tags[place, i, : len(said)], sizes[place, i] = marked, len(said)
  counts = np.array([len(choice) for choice in _CHOICES])
  length = sum(longest)

  def draw(key):
    of_choice, of_order, of_number = jax.random.split(key, 3)
    chosen = jnp.floor(jax.random.uniform(of_choice, (len(counts),)) * counts).astype(jnp.int32)
    asked = jax.random.permutation(of_order, len(_PLACES)) + 1
    number = jax.random.randint(of_number, (), 2, len(_PLACES) + 1)
    places = jnp.concatenate([jnp.zeros(1, jnp.int32), asked])
    pick = lambda table: jnp.asarray(table)[places, chosen[places]]
    there = jnp.arange(width)[None] < pick(sizes)[:, None]
    there &= (jnp.arange(len(places)) <= number)[:, None]
    order = jnp.argsort(~there.reshape(-1), stable=True)[:length]
    said, marked = (pick(table).reshape(-1)[order] for table in (words, tags))
    total = jnp.sum(there).astype(jnp.int32)
    real = jnp.arange(length) < total
    inputs = jax.nn.one_hot(said, len(WORDS)) * real[:, None]
    return {"inputs": inputs, "target": jnp.where(real, marked, -1), "length": total}

  return Task(draw, length, len(WORDS), len(TAGS), float("nan"), float("nan"))


def count_entities(
  target: Int[Array, "B T"], predicted: Int[Array, "B T"], real: Bool[Array, "B T"]
) -> tuple[Int[Array, " B"], Int[Array, " B"], Int[Array, " B"]]:
  """Of each row: entities found with the right kind, first and last word; said; there. F1 = 2 found / (said + there).

  As conlleval counts (Tjong Kim Sang & Buchholz 2000): an inner tag that follows no entity of its kind begins one.
  """
  first, end, kind = _spans(jnp.where(real, target, 0))
  other_first, other_end, other_kind = _spans(jnp.where(real, predicted, 0))
  same = first & other_first & (kind == other_kind) & (end == other_end)
  return tuple(jnp.sum(x, 1) for x in (same, other_first, first))


def _spans(tags: Int[Array, "B T"]) -> tuple[Bool[Array, "B T"], Int[Array, "B T"], Int[Array, "B T"]]:
  """(whether an entity begins there, where the one that it is in ends, its kind or -1) of each word."""
  kind = jnp.where(tags > 0, (tags - 1) // 2, -1)
  before = jnp.pad(kind, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  goes_on = (tags > 0) & (tags % 2 == 0) & (kind == before)
  first = (tags > 0) & ~goes_on
  next_goes_on = jnp.pad(goes_on, ((0, 0), (0, 1)))[:, 1:]
  places = jnp.arange(tags.shape[1])[None]
  # The least place from here on behind which nothing goes on.
  last = jnp.where(next_goes_on, tags.shape[1], places)
  return first, jax.lax.cummin(last, axis=1, reverse=True), kind


def tags_of_words(inputs: Any, target: Any) -> np.ndarray:
  """The tag that each word of `WORDS` has most often, (V,), in requests (N, T, D) and their tags (N, T)."""
  counts = np.zeros((len(WORDS), len(TAGS)))
  real = np.asarray(target) >= 0
  np.add.at(counts, (np.argmax(inputs, -1)[real], np.asarray(target)[real]), 1)
  return counts.argmax(1)


def read_words(inputs: Any) -> list[str]:
  """The words of one request, of its one-hot rows."""
  return [WORDS[int(np.argmax(row))] for row in np.asarray(inputs) if row.any()]
