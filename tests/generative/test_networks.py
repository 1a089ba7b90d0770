"""Encoders and decoders: shapes for every image, and what each setting reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.generative.networks import Decoder, Encoder, binarize, from_unit, halvings, to_unit


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (7, 5, 3)])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_decoder_gives_the_image_that_an_encoder_takes(shape, kind, outputs):
  image, sizes = jnp.ones((2, *shape)), dict(kind=kind, hidden=(6, 5), channels=(3, 4))
  z, _ = jax.eval_shape(lambda: Encoder(4, **sizes).init_with_output(jax.random.key(0), image))
  assert z.shape == (2, 4)
  decoded, _ = jax.eval_shape(
    lambda: Decoder(shape, outputs=outputs, **sizes).init_with_output(jax.random.key(0), jnp.zeros((2, 4)))
  )
  assert decoded.shape == ((2, *shape) if outputs == 1 else (2, *shape, 2))


def test_every_pixel_has_its_own_gradient(key):
  """Of the last row of an odd height too: none is left out of the doubled image."""
  decoder = Decoder((7, 5, 1), "conv", hidden=(4,), channels=(2, 3), activation=jnp.tanh)
  z = jax.random.normal(key, (1, 3))
  params = decoder.init(key, z)
  moved = np.asarray(jax.jacobian(lambda z: decoder.apply(params, z))(z))
  assert np.all(np.abs(moved).sum((0, -1, -2)) > 0)


def test_sizes_and_grey_levels():
  assert halvings((28, 7), 2) == [(28, 7), (14, 4), (7, 2)]
  levels = np.arange(17, dtype=np.uint8)
  assert to_unit(levels, 17)[-1] == 1
  np.testing.assert_array_equal(from_unit(to_unit(levels, 17), 17), levels)
  np.testing.assert_array_equal(from_unit(jnp.array([-0.3, 1.7]), 256), [0, 255])


def test_pixels_are_drawn_with_their_probability(key):
  grey = jnp.array([0.0, 0.25, 1.0])
  drawn = jax.vmap(lambda key: binarize(key, grey))(jax.random.split(key, 4000))
  assert set(np.unique(drawn)) == {0.0, 1.0}
  np.testing.assert_allclose(drawn.mean(0), grey, atol=0.03)


@pytest.mark.parametrize("network", [Encoder(2, "convolution"), Decoder((8, 8, 1), "convolution")])
def test_an_unknown_kind_is_told(network):
  with pytest.raises(ValueError, match="kind is 'convolution', expected mlp or conv"):
    network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)) if isinstance(network, Encoder) else jnp.zeros((1, 2)))
