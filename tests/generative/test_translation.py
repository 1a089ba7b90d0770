"""Networks, views and the pool of image translation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from mlnotes.generative import translation
from mlnotes.generative.translation import VIEWS, PatchDiscriminator, ResidualTranslator, UNetTranslator


def test_the_pool_is_a_list_that_shows_and_replaces(key):
  """Against a Python list that is given the same coins and places."""
  pool, kept = translation.init_pool(3, (1, 1, 1)), []
  shown, expected = [], []
  for update in range(8):
    images = jnp.arange(2 * update, 2 * update + 2, dtype=jnp.float32).reshape(2, 1, 1, 1)
    draw = jax.random.fold_in(key, update)
    again = [jax.random.fold_in(draw, number) for number in range(2)]
    pool, out = translation.exchange(draw, pool, images)
    shown += np.ravel(out).tolist()
    for each, image in zip(again, np.ravel(images).tolist()):
      coin, place = jax.random.split(each)
      if len(kept) < 3:
        kept.append(image)
        expected.append(image)
      elif bool(jax.random.bernoulli(coin)):
        at = int(jax.random.randint(place, (), 0, 3))
        expected.append(kept[at])
        kept[at] = image
      else:
        expected.append(image)
  assert shown == expected and np.ravel(pool.images).tolist() == kept
  older = [now < i for i, now in enumerate(shown[3:], 3)]
  assert 0 < sum(older) < len(older)  # some are old, some are not


def test_a_pool_of_none_is_told():
  with pytest.raises(ValueError, match="size must be 1 or more, found 0"):
    translation.init_pool(0, (1, 1, 1))


def test_edges_are_scipys(key):
  x = jax.random.uniform(key, (2, 8, 12, 1))
  for seen, image in zip(np.asarray(VIEWS["edges"](x)), np.asarray(x)[..., 0]):
    length = np.hypot(ndimage.sobel(image, 0, mode="nearest"), ndimage.sobel(image, 1, mode="nearest"))
    np.testing.assert_allclose(seen[..., 0], length / length.max(), atol=1e-5)
  np.testing.assert_array_equal(VIEWS["edges"](jnp.full((1, 4, 4, 1), 0.3)), 0)


def test_views():
  x = jnp.arange(36, dtype=jnp.float32).reshape(1, 6, 6, 1) / 35
  np.testing.assert_allclose(VIEWS["negative"](x), 1 - x)
  np.testing.assert_array_equal(VIEWS["turned"](x)[0, ..., 0], np.rot90(x[0, ..., 0]))
  upper = VIEWS["upper"](x)
  np.testing.assert_array_equal(upper[:, :3], x[:, :3])
  assert np.all(upper[:, 3:] == 0)
  coarse = VIEWS["coarse"](x)
  assert coarse.shape == x.shape
  np.testing.assert_allclose(coarse[0, :4, :4, 0], np.mean(x[0, :4, :4]), rtol=1e-6)
  np.testing.assert_allclose(
    coarse[0, 5, 5, 0], np.mean(np.asarray(x)[0, 4:, 4:][[0, 1, 1, 1]][:, [0, 1, 1, 1]]), rtol=1e-6
  )
  with pytest.raises(ValueError, match="only squares are turned, found images of 4 x 6"):
    VIEWS["turned"](x[:, :4])


@pytest.mark.parametrize("network", [ResidualTranslator(1, 4, 1), UNetTranslator(1, 4)])
def test_a_translator_keeps_the_size_and_sees_each_image_alone(network, key):
  x = jax.random.uniform(key, (2, 8, 12, 3), minval=-1)
  made, params = network.init_with_output(jax.random.key(1), x)
  assert made.shape == (2, 8, 12, 1) and np.max(np.abs(made)) < 1
  np.testing.assert_allclose(network.apply(params, x[:1]), made[:1], atol=1e-5)


def test_a_translator_may_begin_with_what_it_is_given(key):
  x = jax.random.uniform(key, (1, 8, 8, 1), minval=-1)
  made, _ = ResidualTranslator(1, 4, 1, from_identity=True).init_with_output(jax.random.key(1), x)
  np.testing.assert_allclose(made, 0.99 * x, atol=1e-5)


def test_dropout_is_the_noise_of_training_alone(key):
  network, x = UNetTranslator(1, 4), jnp.ones((1, 8, 8, 1)) * jnp.linspace(-1, 1, 8)[None, :, None, None]
  params = network.init(key, x)
  draw = lambda seed: network.apply(params, x, train=True, rngs={"dropout": jax.random.key(seed)})
  assert np.any(draw(0) != draw(1))
  np.testing.assert_array_equal(network.apply(params, x), network.apply(params, x))


def test_a_patchs_score_sees_its_part_alone(key):
  """Before the norm, which sees all: without it the corner's score has no gradient at the other corner."""
  network, x = PatchDiscriminator(4), jax.random.normal(key, (1, 32, 32, 1))
  params = network.init(jax.random.key(1), x)
  scores = network.apply(params, x)
  assert scores.shape == (1, 16, 16)
  plain = lambda x: x

  def corner(x):
    import unittest.mock

    with unittest.mock.patch.object(translation, "InstanceNorm", lambda dtype: plain):
      return network.apply(params, x)[0, 0, 0]

  gradient = np.asarray(jax.grad(corner)(x))[0, ..., 0]
  assert np.any(gradient[:8, :8]) and not np.any(gradient[16:]) and not np.any(gradient[:, 16:])
