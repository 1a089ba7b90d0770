"""8-bit matrices: errors within half a step, exact sums, outliers, whole networks and their caches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import extend_cache, make_cache, read_cache
from mlnotes.lm import count_bytes, generate, make_llama
from mlnotes.nn.int8 import Quantized, dequantize, int8_layers, int8_product, quantize, quantize_layers


def test_zero_stays_zero_and_the_largest_is_127():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7)), jnp.float32).at[2].set(0).at[0, 3].set(0)
  found = quantize(x, 1)
  assert found.scale.shape == (5, 1) and np.abs(found.values).max(1).tolist() == [127, 127, 0, 127, 127]
  back = dequantize(found)
  assert np.all(np.abs(back - x) <= found.scale / 2 * (1 + 1e-5))
  assert back[0, 3] == 0 and not np.any(back[2])
  for sign in (1, -1):
    edge = quantize(jnp.array([sign * 3.0, 1.0]), 0)
    assert edge.values[0] == sign * 127 and float(dequantize(edge)[0]) == pytest.approx(3 * sign)


def test_products_are_summed_exactly():
  """Of 8192 products of 127 by 127, of which float16 and sums of 16 bits would lose most."""
  ones = jnp.ones((1, 8192))
  found = int8_product(ones, quantize(jnp.ones((8192, 2)), 0), outlier=0.0)
  np.testing.assert_allclose(found, np.full((1, 2), 8192.0), rtol=1e-6)
  draw = np.random.default_rng(1)
  x, w = (draw.integers(-127, 128, size) for size in ((3, 513), (513, 4)))
  x[:, 0] = w[0] = 127  # scales of 1
  given = Quantized(jnp.asarray(w, jnp.int8), jnp.ones((1, 4)))
  found = int8_product(jnp.asarray(x, jnp.float32), given, outlier=0.0)
  np.testing.assert_array_equal(found, (x @ w).astype(np.float32))


@pytest.mark.parametrize("shape", [(4, 64), (2, 3, 64), (64,)])
def test_outliers_are_left_as_they_are(shape):
  draw = np.random.default_rng(2)
  x, w = draw.normal(size=shape).astype(np.float32), draw.normal(size=(64, 8)).astype(np.float32)
  x[..., 5] *= 200
  quantized = quantize(jnp.asarray(w), 0)
  error = lambda outlier: np.abs(
    np.asarray(int8_product(jnp.asarray(x), quantized, outlier)) - x @ dequantize(quantized)
  )
  assert error(6.0).max() < 0.2 and error(0.0).max() > 3 * error(6.0).max()
  assert int8_product(jnp.asarray(x, jnp.bfloat16), quantized).dtype == jnp.bfloat16
  with pytest.raises(ValueError, match="quantize over axis 0"):
    int8_product(jnp.asarray(x), quantize(jnp.asarray(w), 1))


def test_a_network_of_bytes_says_almost_the_same():
  model = make_llama(11, 16, 2, 2, 32)
  tokens = jnp.asarray(np.random.default_rng(3).integers(0, 11, (2, 9)))
  params = model.init(jax.random.key(0), tokens)["params"]
  params = jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, params)
  layers, rest = quantize_layers(params)
  assert len(layers) == 2 * 7 and count_bytes(layers) < 0.35 * (count_bytes(params) - count_bytes(rest))
  whole = model.apply({"params": params}, tokens)
  with int8_layers(layers):
    found = jax.jit(lambda rest: model.apply({"params": rest}, tokens))(rest)
  difference = np.abs(found - whole)
  assert 0 < difference.max() < 0.1 * np.std(whole)
  with (
    pytest.raises(ValueError, match="absent/kernel is of no Dense layer"),
    int8_layers({**layers, "absent/kernel": 0}),
  ):
    model.apply({"params": rest}, tokens)
  with pytest.raises(ValueError, match="no matrix called 'nothing'"):
    quantize_layers(params, "nothing")


def test_a_layer_keeps_its_bias():
  layer, x = nn.Dense(3), jnp.ones((2, 4))
  params = layer.init(jax.random.key(0), x)["params"] | {"bias": jnp.arange(3.0)}
  layers, rest = quantize_layers(params)
  with int8_layers(layers):
    found = layer.apply({"params": rest}, x)
  np.testing.assert_allclose(found, layer.apply({"params": params}, x), atol=0.02)


def test_a_cache_of_bytes():
  draw = np.random.default_rng(4)
  key, value = (jnp.asarray(draw.normal(size=(2, 3, 2, 8)), jnp.float32) for _ in range(2))
  cache = extend_cache(make_cache(2, 5, 2, 8, jnp.int8), key, value)
  for found, given in zip(read_cache(cache, jnp.float32), (key, value)):
    step = np.abs(given).max(-1, keepdims=True) / 127
    assert np.all(np.abs(found[:, :3] - given) <= step / 2 * 1.001) and not np.any(found[:, 3:])
  bytes_of = lambda dtype: count_bytes(make_cache(2, 64, 2, 64, dtype))
  assert bytes_of(jnp.int8) < 0.28 * bytes_of(jnp.float32)
  full = extend_cache(cache, key, value)
  assert np.all(np.isnan(read_cache(full, jnp.float32)[0][:, 2:]))
  model = make_llama(11, 16, 1, 2, 16)
  prompts = jnp.asarray(draw.integers(0, 11, (2, 4)))
  variables = model.init(jax.random.key(1), prompts)
  variables = jax.tree.map(lambda x: 8 * x if x.ndim == 2 else x, variables)
  texts = [generate(model, variables, prompts, count=6, cache_dtype=dtype) for dtype in (None, jnp.int8)]
  np.testing.assert_array_equal(texts[0].tokens, texts[1].tokens)
  assert not np.array_equal(texts[0].log_probability, texts[1].log_probability)
  np.testing.assert_allclose(texts[0].log_probability, texts[1].log_probability, atol=0.1)
