import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.diffusion.unet import ResidualBlock, UNet, sinusoidal_embedding, upsample_nearest
from mlnotes.nn.attention import SpatialAttention

TINY = UNet(channels=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(2,), num_classes=3, groups=4, heads=2)


def make_trained(model, *args, **kwargs):
  """Parameters with nothing at zero, as they are after some training: normal, of the scale of a usual init."""
  rng = np.random.default_rng(7)

  def sample(path, leaf):
    values = rng.normal(size=leaf.shape).astype(np.float32)
    if leaf.ndim == 1:
      return 0.1 * values + (path[-1].key == "scale" or path[-2].key == "gain")
    return values / np.float32(np.sqrt(math.prod(leaf.shape[:-1])))

  shapes = jax.eval_shape(model.init, jax.random.key(0), *args, **kwargs)
  return jax.tree_util.tree_map_with_path(sample, shapes)


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(1)
  return {
    "x": rng.normal(size=(3, 4, 4, 2)).astype(np.float32),
    "t": np.array([0, 10, 500], np.int32),
    "label": np.array([0, 2, 1], np.int32),
    "context": rng.normal(size=(3, 5, 6)).astype(np.float32),
    "context_mask": np.arange(5)[None, :] < np.array([3, 5, 0])[:, None],
  }


@pytest.fixture(scope="module")
def trained(inputs):
  return make_trained(TINY, **to_jax(inputs))


def to_jax(inputs):
  return jax.tree.map(jnp.asarray, inputs)


@functools.partial(jax.jit, static_argnames="model")
def apply(params, inputs, model=TINY):
  return model.apply(params, **inputs)


def test_output_is_zero_at_init(key, inputs):
  model = UNet(channels=8, multipliers=(1,), num_blocks=1, out_channels=4, groups=4, heads=2)
  out, _ = jax.jit(model.init_with_output)(key, inputs["x"], inputs["t"])
  assert out.shape == (3, 4, 4, 4)
  np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize(
  ("model", "shape", "count"),
  [
    (UNet(32, (1, 2), 1), (8, 8, 1), 622_273),
    (UNet(32, (1, 2), 1, num_classes=10), (8, 8, 1), 677_345),
    (UNet(32, (1, 2, 2), 1, (7,)), (28, 28, 1), 1_084_033),
    (UNet(32, (1, 2, 4), 1, (16, 8)), (32, 32, 3), 2_642_755),
    (UNet(32, (1, 2, 4), 2, (16, 8)), (32, 32, 3), 3_880_739),
    (UNet(128, (1, 2, 2, 2), 2, (16,)), (32, 32, 3), 35_287_171),
  ],
)
def test_parameter_count(key, model, shape, count):
  x, t = jax.ShapeDtypeStruct((2, *shape), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
  params = jax.eval_shape(model.init, key, x, t)
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count
  out = jax.eval_shape(model.apply, params, x, t)
  assert (out.shape, out.dtype) == (x.shape, jnp.float32)


@pytest.mark.thorough
def test_gradient_reaches_every_parameter(trained, inputs):
  # Another weight for every pixel, so that no sum over pixels or examples vanishes by symmetry.
  weight = np.random.default_rng(2).normal(size=(3, 4, 4, 2)).astype(np.float32)
  loss = lambda params, inputs: jnp.sum(weight * TINY.apply(params, **inputs))
  for path, grad in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(trained, inputs)):
    assert np.all(np.isfinite(grad)), path
    assert np.any(np.abs(grad) > 0), path


def test_an_example_depends_on_its_own_inputs_only(trained, inputs):
  out = apply(trained, inputs)
  for name, value in (("t", 11), ("label", 0), ("context", 1.0), ("context_mask", [1, 0, 1, 0, 0]), ("x", 0.5)):
    changed = inputs[name].copy()
    changed[1] = value
    other = apply(trained, {**inputs, name: changed})
    assert np.max(np.abs(other[1] - out[1])) > 1e-4, name
    np.testing.assert_allclose(other[::2], out[::2], atol=1e-5, err_msg=name)


def test_no_label_is_the_null_class(trained, inputs):
  null = apply(trained, {**inputs, "label": np.full(3, 3, np.int32)})
  np.testing.assert_array_equal(apply(trained, {**inputs, "label": None}), null)
  assert np.max(np.abs(null - apply(trained, inputs))) > 1e-3


def test_bfloat16_is_close_to_float32(trained, inputs):
  exact = apply(trained, inputs)
  rounded = apply(trained, inputs, model=TINY.clone(dtype=jnp.bfloat16))
  assert rounded.dtype == jnp.float32
  error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
  assert 1e-6 < error < 0.05  # it is another arithmetic, and a good one


def test_label_multiplies_and_time_adds():
  rng = np.random.default_rng(3)
  x = rng.normal(size=(2, 4, 4, 8)).astype(np.float32)
  time, label = rng.normal(size=(2, 2, 6)).astype(np.float32)
  block = ResidualBlock(8, groups=4)
  params = jax.jit(block.init)(jax.random.key(0), x, time, label)["params"]
  # At the start the block is the identity, and the gain is 1 whatever the label.
  np.testing.assert_array_equal(jax.jit(block.apply)({"params": params}, x, time, label), x)
  np.testing.assert_array_equal(params["gain"]["kernel"], 0)
  np.testing.assert_array_equal(params["gain"]["bias"], 1)

  # With the identity as second convolution the block adds silu(gain * n + shift), which is its argument where that
  # is large.
  params["conv2"]["kernel"] = params["conv2"]["kernel"].at[1, 1].set(jnp.eye(8))
  run = jax.jit(block.apply)

  def argument(gain, shift):
    modulation = {
      "gain": {"kernel": params["gain"]["kernel"], "bias": np.full(8, gain, np.float32)},
      "shift": {"kernel": np.zeros((6, 8), np.float32), "bias": np.full(8, shift, np.float32)},
    }
    return np.asarray(run({"params": {**params, **modulation}}, x, time, label)) - x

  n = argument(1, 30) - 30
  assert np.std(n) > 0.5
  np.testing.assert_allclose(argument(1, 35), n + 35, atol=1e-4)
  np.testing.assert_allclose(argument(0.5, 35), 0.5 * n + 35, atol=1e-4)
  np.testing.assert_allclose(argument(-2, 35), -2 * n + 35, atol=1e-4)


ATTENTION = SpatialAttention(heads=2, groups=4)


@pytest.fixture(scope="module")
def pixels():
  return np.random.default_rng(4).normal(size=(3, 3, 4, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def attention(pixels, inputs):
  return make_trained(ATTENTION, jnp.asarray(pixels), jnp.asarray(inputs["context"]))


def test_attention_ignores_where_things_are(attention, pixels):
  order = np.random.default_rng(5).permutation(12)
  permute = lambda x: np.asarray(x).reshape(3, 12, 8)[:, order].reshape(3, 3, 4, 8)
  run = jax.jit(ATTENTION.apply)
  np.testing.assert_allclose(run(attention, permute(pixels)), permute(run(attention, pixels)), atol=1e-5)
  assert np.max(np.abs(run(attention, pixels) - pixels)) > 0.01


def test_attention_does_not_see_masked_context(attention, pixels, inputs):
  run, context, mask = jax.jit(ATTENTION.apply), inputs["context"], inputs["context_mask"]
  out = run(attention, pixels, context, mask)
  garbage = np.where(mask[:, :, None], context, np.float32(100))
  np.testing.assert_allclose(run(attention, pixels, garbage, mask), out, atol=1e-6)
  without, full = run(attention, pixels), run(attention, pixels, context)
  np.testing.assert_allclose(out[2], without[2], atol=1e-6)  # masked altogether
  np.testing.assert_allclose(out[1], full[1], atol=1e-6)  # not masked at all
  assert np.max(np.abs(out[0] - full[0])) > 1e-3
  shortened = run(attention, pixels[:1], context[:1, :3])
  np.testing.assert_allclose(out[:1], shortened, atol=1e-5)


def test_attention_starts_as_the_identity(key, pixels, inputs):
  out, _ = jax.jit(ATTENTION.init_with_output)(key, pixels, inputs["context"])
  np.testing.assert_array_equal(out, pixels)


def test_dropout_only_in_training():
  x, time = jnp.ones((2, 4, 4, 8)), jnp.ones((2, 6))
  block = ResidualBlock(8, dropout=0.5, groups=4)
  params = make_trained(block, x, time)
  run = jax.jit(lambda key: block.apply(params, x, time, None, True, rngs={"dropout": key}))
  assert np.max(np.abs(run(jax.random.key(0)) - run(jax.random.key(1)))) > 1e-3
  still = jax.jit(block.apply)(params, x, time)
  np.testing.assert_array_equal(still, jax.jit(block.clone(dropout=0.0).apply)(params, x, time))


def test_sinusoidal_embedding():
  t = jnp.array([0, 1, 250, 999])
  embedding = sinusoidal_embedding(t, 16)
  np.testing.assert_array_equal(embedding, sinusoidal_embedding(t.astype(jnp.float32), 16))
  np.testing.assert_array_equal(embedding[0], [0.0] * 8 + [1.0] * 8)
  # As points on circles: turning by t is multiplying by exp(i w t), w from 1 down to 10,000^(-7/8).
  circles = np.asarray(embedding[:, 8:] + 1j * embedding[:, :8])
  frequency = np.geomspace(1, 10 ** (-4 * 7 / 8), 8)
  np.testing.assert_allclose(circles, np.exp(1j * np.asarray(t)[:, None] * frequency), atol=2e-4)
  with pytest.raises(ValueError, match="features must be even, found 7"):
    sinusoidal_embedding(t, 7)


def test_upsample_nearest(key):
  x = jax.random.normal(key, (2, 3, 4, 5))
  np.testing.assert_array_equal(upsample_nearest(x), jax.image.resize(x, (2, 6, 8, 5), "nearest"))


def test_refuses_what_does_not_fit(key):
  x, t = jnp.zeros((1, 8, 6, 1)), jnp.zeros(1)
  with pytest.raises(ValueError, match="3 levels needs a height and width that are multiples of 4, found 8 x 6"):
    jax.eval_shape(UNet().init, key, x, t)
  with pytest.raises(ValueError, match="label was given to a U-Net without classes"):
    jax.eval_shape(UNet(multipliers=(1,)).init, key, x, t, jnp.zeros(1, jnp.int32))
  with pytest.raises(ValueError, match="groups=8 must divide the number of channels, found 12"):
    jax.eval_shape(UNet(channels=12, multipliers=(1,)).init, key, x, t)
