"""Sprites: each cause moves what it should, and no picture has two sets of causes."""

import numpy as np
import pytest

from mlnotes.data import load
from mlnotes.data.sprites import FACTOR_SIZES, load_sprite_factors, render_sprites


@pytest.fixture(scope="module")
def sprites():
  data, factors = load("sprites"), load_sprite_factors()
  return np.concatenate([data.train.image, data.test.image]), np.concatenate(factors), data


def test_every_picture_has_one_set_of_causes(sprites):
  image, factors, data = sprites
  assert len(image) == len(np.unique(np.packbits(image.reshape(len(image), -1), axis=1), axis=0)) == 24_576
  assert len(np.unique(factors, axis=0)) == len(factors) == np.prod(FACTOR_SIZES)
  assert data.levels == 2 and set(np.unique(image)) == {0, 1}
  np.testing.assert_array_equal(np.concatenate([data.train.label, data.test.label]), factors[:, 0])
  assert len(data.test) == 2457


def test_causes_are_those_of_the_pictures(sprites):
  """Centre of mass and area, which are measured, follow x, y and scale, which are stored."""
  image, factors, _ = sprites
  rows, columns = np.mgrid[:32, :32]
  area = image.sum((1, 2, 3))
  for cause, axis in ((3, columns), (4, rows)):
    centre = (image[..., 0] * axis).sum((1, 2)) / area
    offset = centre - factors[:, cause]
    assert np.std(offset) < 1 and np.abs(offset - 8).max() < 4
  means = [area[factors[:, 1] == scale].mean() for scale in range(4)]
  assert np.all(np.diff(means) > 10)


def test_a_turn_by_a_quarter_turns_the_picture():
  still, turned = render_sprites(np.array([[1, 3, 0, 8, 8], [1, 3, 2, 8, 8]]))[..., 0]
  centred = lambda image: image[8:25, 8:25]  # around the pixel in whose middle the centre is
  np.testing.assert_array_equal(centred(turned), np.rot90(centred(still), -1))


def test_a_cause_out_of_range_is_told():
  with pytest.raises(ValueError, match="factors must be 0 to 2, 3, 7, 15, 15"):
    render_sprites(np.array([[3, 0, 0, 0, 0]]))
