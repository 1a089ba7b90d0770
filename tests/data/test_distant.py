"""Windows with a stretch from elsewhere: where it may lie, how evenly it is drawn, the same from host and device."""

import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.data import DistantWindows, Windows

RNG = np.random.default_rng(0)


def text_of(sizes):
  """Tokens that tell their places; 0 ends each of the documents."""
  tokens = np.arange(1, sum(sizes) + 1)
  tokens[np.cumsum(sizes) - 1] = 0
  return tokens


def places_of(found, length):
  """The first place of each window and of its stretch, read off the tokens; -1 where that token is an end."""
  rows = found.read(np.arange(len(found)))["tokens"]
  return rows[:, 0] - 1, rows[:, length + 1] - 1, rows


@pytest.mark.parametrize("length, stride", [(8, 1), (8, 8), (9, 3)])
def test_a_stretch_is_of_another_document(length, stride):
  sizes = RNG.integers(3, 40, 40)
  tokens = text_of(sizes)
  windows = Windows(tokens, length, stride)
  found, half = DistantWindows(windows, 0), length // 2
  assert len(found) == len(windows) and found.nbytes > windows.nbytes
  index = np.arange(len(found))
  rows = found.read(index)["tokens"]
  np.testing.assert_array_equal(rows[:, : length + 1], windows.read(index)["tokens"])
  document = np.repeat(np.arange(40), sizes)
  of_place = {token: i for i, token in enumerate(tokens) if token}
  for i, row in enumerate(rows):
    own = set(document[i * stride : i * stride + 2 * half])
    stretch = row[length + 1 :]
    assert len(stretch) == half
    seen = [(k, of_place[token]) for k, token in enumerate(stretch) if token]
    begin = seen[0][1] - seen[0][0]
    np.testing.assert_array_equal(stretch, tokens[begin : begin + half])
    assert not own & set(document[begin : begin + half])
  on_device = found.take({name: jnp.asarray(x) for name, x in found.arrays.items()}, jnp.asarray(index))
  np.testing.assert_array_equal(on_device["tokens"], rows)


def test_without_another_document_it_is_far_away():
  """By itself, and where the others have no room: all tokens are told apart but the end."""
  for tokens, end in ((np.arange(1, 401), -1), (text_of([360, 20, 20]), 0)):
    found = DistantWindows(Windows(tokens, 8, 1), end)
    first, place, _ = places_of(found, 8)
    inside = (first >= 0) & (place >= 0) & (first < 350)
    apart = np.where(place > first, place - (first + 8), first - (place + 4))[inside]
    assert apart.min() >= 50 - 1 and inside.sum() > 320
    assert place[inside].min() < 20 and place[inside].max() > 370  # to both ends


def test_every_place_has_the_same_chance():
  """Of windows within one of three documents: the other two, by their places."""
  tokens = text_of([3000, 1000, 1000])
  found = DistantWindows(Windows(tokens, 8, 1), 0)
  first, place, _ = places_of(found, 8)
  place = place[(first >= 0) & (first < 2990) & (place >= 0)]
  counts = np.histogram(place, 20, (3000, 5000))[0]
  expected = len(place) / 20
  assert np.sum((counts - expected) ** 2 / expected) < 44  # chi square of 19, one of a thousand
  assert np.corrcoef(place[:-1], place[1:])[0, 1] < 4 / np.sqrt(len(place))


@pytest.mark.parametrize("tokens, length", [(np.arange(18), 8), (np.arange(500), 1)])
def test_a_text_without_room_is_refused(tokens, length):
  with pytest.raises(ValueError, match=f"length={length} is out of range"):
    DistantWindows(Windows(tokens, length), -1)


def test_the_shortest_text_has_room_for_all():
  for length in (2, 5, 8):
    for size in range(length + 1, 60):
      windows = Windows(np.arange(1, size + 1), length, 1)
      try:
        found = DistantWindows(windows, -1)
      except ValueError:
        assert size < 3 * length + 2
        continue
      first, place, _ = places_of(found, length)
      half = length // 2
      assert np.all((place + half <= first) | (place >= first + 2 * half)) and np.all(place + half <= size)
