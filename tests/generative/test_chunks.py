"""Rows that go through a function some at a time come back in their order, each once; so do images of a picture."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generative import _autoencoding, _flow_report, _judging, _vae_report
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


class Latents(NamedTuple):
  mean: np.ndarray


@pytest.mark.parametrize("count, drawn", [(1, False), (2, True)])
def test_ways_between_images_want_two_of_them(count, drawn, monkeypatch, tmp_path):
  """A picture of an earlier report goes where there is none of this one."""
  images, rows = np.zeros((count, 8, 8, 1), np.uint8), np.zeros((count, 4), np.float32)
  decode = lambda code: np.zeros((len(code), 8, 8, 1))
  data = type("Data", (), {"image_shape": (8, 8, 1), "levels": 2})
  monkeypatch.setattr(_vae_report, "_first_of_each_class", lambda data, wanted: np.arange(count))
  monkeypatch.setattr(_vae_report, "_test_pixels", lambda data, config, index: images)
  paths = [tmp_path / f"{name}.png" for name in ("autoencoder", "vae", "flow")]
  for path in paths:
    path.touch()
  _autoencoding._draw_interpolation(decode, rows, images, np.zeros(count, int), paths[0])
  _vae_report._draw_interpolation(lambda x: Latents(rows), decode, data, None, paths[1])
  _flow_report._draw_interpolation(decode, rows, {"image": images}, data, paths[2])
  assert [path.exists() and path.stat().st_size > 0 for path in paths] == [drawn] * 3
