"""Rows that go through a function some at a time come back in their order, each once; so do images of a picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generative import _judging
from experiments.generative._chunks import in_chunks
from experiments.generative._judging import one_of_each


@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_rows_come_back_as_they_went_in(count):
  seen = []
  x, number = np.arange(3.0 * count, dtype=np.float32).reshape(count, 3), np.arange(count)

  def function(x, number):
    seen.append(x.shape)
    return {"double": 2 * x, "pair": (number, jnp.sum(x, 1))}

  found = in_chunks(function, x, number, size=4)
  assert set(seen) == {(4, 3)} and len(seen) == -(-count // 4)
  np.testing.assert_array_equal(found["double"], 2 * x)
  np.testing.assert_array_equal(found["pair"][0], number)
  np.testing.assert_array_equal(found["pair"][1], x.sum(1))
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))


def test_classes_take_turns():
  label = np.array([2, 0, 0, 2, 1, 0])
  assert one_of_each(label, 5).tolist() == [1, 4, 0, 2, 3] and one_of_each(label, 9).tolist() == [1, 4, 0, 2, 3, 5]


@pytest.mark.parametrize("count, groups", [(1, 1), (4, 1), (15, 1), (20, 2), (57, 2)])
def test_what_became_of_an_image_stands_below_it_also_of_few(count, groups, monkeypatch, tmp_path):
  sheets = []
  monkeypatch.setattr(_judging, "show_images", lambda axis, images, columns: sheets.append((images, columns)))
  images = np.arange(count)[:, None, None, None] * np.ones((1, 2, 3, 1))
  _judging.draw_pairs(images, -images, "pairs", tmp_path / "pairs.png")
  ((sheet, columns),) = sheets
  rows = sheet.reshape(-1, columns, 2, 3, 1)
  np.testing.assert_array_equal(rows[1::2], -rows[::2])
  np.testing.assert_array_equal(rows[::2].reshape(-1, 2, 3, 1), images[: groups * columns])
