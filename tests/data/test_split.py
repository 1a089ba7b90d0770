import jax
import numpy as np
import pytest

from mlnotes.data import (
  DataError,
  Expected,
  NamedArrays,
  Windows,
  check_arrays,
  make_array_feeds,
  make_resident_feed,
  make_split_feeds,
  make_stream_feed,
)
from mlnotes.data.feed import StreamFeed
from mlnotes.engine.errors import InputError

RANDOM = np.random.default_rng(0)
ARRAYS = {"x": RANDOM.normal(size=(50, 3)), "y": RANDOM.integers(0, 5, 50), "z": RANDOM.random(50) < 0.5}


def config(**values):
  return type("Config", (), values)


def test_named_arrays_stream_as_they_are_drawn():
  """In every process its rows, for one seed and for several, from any step on."""
  split = NamedArrays(ARRAYS)
  resident = make_resident_feed(split, 8)
  keys = jax.vmap(jax.random.key)(np.array([3, 4], np.uint32))
  draw = jax.jit(jax.vmap(resident.draw, (None, 0, None)))
  streams = [make_stream_feed(split, 8, [3, 4], start_step=4, process_index=i, process_count=2) for i in range(2)]
  for step in range(4, 9):
    expected = draw(resident.arrays, keys, step)
    parts = [stream.next() for stream in streams]
    assert set(parts[0]) == set(expected) == {"x", "y", "z", "index"}
    for name, value in expected.items():
      found = np.concatenate([part[name] for part in parts], axis=1)
      assert found.dtype == value.dtype
      np.testing.assert_array_equal(found, value)
    np.testing.assert_array_equal(expected["x"], ARRAYS["x"].astype(np.float32)[expected["index"]])
  state = streams[0].get_state()
  following = streams[0].next()
  streams[0].seek(20)
  streams[0].set_state(state)
  np.testing.assert_array_equal(streams[0].next()["index"], following["index"])
  for stream in streams:
    stream.close()


def test_the_flags_choose_where_data_live():
  feeds = make_array_feeds(ARRAYS, ARRAYS, config(batch_size=8, data_placement="stream", seed=3, seeds=1))
  assert isinstance(feeds.train, StreamFeed)
  resident = make_array_feeds(ARRAYS, ARRAYS, config(batch_size=8))
  expected = resident.train.draw(resident.train.arrays, jax.random.key(3), 0)
  np.testing.assert_array_equal(feeds.train.next()["x"], expected["x"])
  feeds.train.close()
  assert feeds.fingerprint == resident.fingerprint
  few = make_split_feeds(NamedArrays(ARRAYS), NamedArrays(ARRAYS), config(batch_size=8, eval_examples=10))
  assert few.evaluate.arrays["mask"].sum() == 10
  with pytest.raises(InputError, match="--batch_size=51 is out of range: expected 1 to 50"):
    make_array_feeds(ARRAYS, ARRAYS, config(batch_size=51))


def test_a_change_anywhere_shows_in_the_fingerprint():
  text = lambda tokens: make_split_feeds(*2 * [Windows(tokens, 4)], config(batch_size=2)).fingerprint
  tokens = np.arange(40) % 7
  changed = tokens.copy()
  changed[-1] = 0  # beyond the last window
  assert len({text(tokens), text(changed), text(tokens[:-1])}) == 3 and text(tokens) == text(tokens.copy())


ASKED = {"x": Expected("ND", "fiub", np.float32), "y": Expected("N", "iu", np.int32, 0, 9)}
GOOD = {"x": np.zeros((4, 2)), "y": np.arange(4, dtype=np.uint64)}


def test_what_passes_the_door_is_of_its_type():
  found = check_arrays("here", GOOD, ASKED)
  assert (found["x"].dtype, found["y"].dtype) == (np.float32, np.int32)
  np.testing.assert_array_equal(found["y"], np.arange(4))


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"z": np.zeros(4)}, "found the arrays x, y, z, expected x, y"),
    ({"x": np.zeros(4)}, r"x has shape \(4,\), expected N D"),
    ({"x": np.array([[0, np.nan]] * 4)}, r"x\[0, 1\] is nan, expected finite numbers"),
    ({"x": np.array([["a"]])}, "x has dtype <U1, expected numbers"),
    ({"y": np.zeros(4)}, "y has dtype float64, expected whole numbers"),
    ({"y": np.zeros(5, int)}, r"y has shape \(5,\), expected N = 4 as in x"),
    ({"y": np.array([0, 1, 10, 3])}, r"y\[2\] is 10, expected 0 to 9"),
    ({"y": np.array([0, 1, 2, -3])}, r"y\[3\] is -3, expected 0 to 9"),
    ({"y": np.array([0, 1, 2, 2**63], np.uint64)}, r"y\[3\] is 9223372036854775808, expected 0 to 9"),
  ],
)
def test_what_does_not_is_named_with_its_place(change, sentence):
  with pytest.raises(DataError, match=f"^here: {sentence}"):
    check_arrays("here", {**GOOD, **change}, ASKED)
