"""The Transformer's cache against the whole pass, where its parameters lie, orders that start as the identity."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import (
  AdditiveAttention,
  Mask,
  MultiHeadAttention,
  TokenModel,
  Transformer,
  dot_product_attention,
  linear_attention,
  local_attention,
  make_cache,
)

local = lambda q, k, v, mask, bias=None: local_attention(q, k, v, mask.replace(window=3), bias)
MODELS = {
  "dense, learned, shared keys": (dot_product_attention, "learned", 1),
  "local, rotary, shared keys": (local, "none", 2),
  "linear, sinusoidal": (partial(linear_attention, chunk=4), "sinusoidal", 4),
  "dense, alibi": (dot_product_attention, "alibi", 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_decoding_7_1_and_3_tokens_gives_the_logits_of_the_whole_pass(name):
  kind, position, kv_heads = MODELS[name]
  base = 1e4 if "rotary" in name else 0.0
  depth = 2 if position == "learned" else 1
  transformer = Transformer(depth, 4, 16, kv_heads, hidden=8, make_kind=lambda layer: kind, rotary_base=base)
  model = TokenModel(7, 12, transformer, position)
  tokens = jax.random.randint(jax.random.key(0), (2, 11), 0, 7)
  mask = Mask(causal=True)
  variables = jax.jit(partial(model.init, mask=mask))(jax.random.key(1), tokens)
  # Far from where it starts, so that positions and layers count.
  variables = jax.tree.map(lambda x: 3 * x, variables)
  whole = jax.jit(lambda x: model.apply(variables, x, mask))(tokens)
  step = jax.jit(lambda x, cache: model.apply(variables, x, mask, cache=cache))
  cache, start = transformer.make_cache(2, 13), 0
  for count in (7, 1, 3):
    logits, cache = step(tokens[:, start : start + count], cache)
    np.testing.assert_allclose(logits, whole[:, start : start + count], rtol=1e-4, atol=1e-4)
    start += count
  assert cache[-1].length == 11 and cache[0].key.shape == (2, 13, kv_heads, 4)
  assert np.ptp(whole) > 1


def test_parameters_of_a_kind_lie_in_its_block():
  make = lambda layer: AdditiveAttention(3) if layer else dot_product_attention
  transformer = Transformer(2, 2, 4, make_kind=make, cross=True, order="layerscale")
  x = jnp.zeros((1, 3, 4))
  shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), x, x))["params"]
  assert set(shapes) == {"block0", "block1", "last_norm"}
  assert shapes["block1"]["attention"]["kind"]["v"].shape == (3,)
  assert "kind" not in shapes["block0"]["attention"] and "cross_attention" in shapes["block0"]
  assert shapes["block0"]["attention_weight"].shape == (4,)


@pytest.mark.parametrize("order, size", [("rezero", 0), ("layerscale", 1e-3)])
def test_rezero_and_layerscale_start_near_the_identity(order, size):
  transformer = Transformer(2, 2, 4, order=order)
  x = jax.random.normal(jax.random.key(0), (1, 3, 4))
  out, _ = jax.jit(lambda: transformer.init_with_output(jax.random.key(1), x))()
  if order == "layerscale":  # behind which a norm stands
    x = (x - jnp.mean(x, -1, keepdims=True)) / jnp.std(x, -1, keepdims=True)
  np.testing.assert_allclose(out, x, atol=size)


def test_what_does_not_fit_is_refused():
  x = jnp.zeros((1, 3, 6))
  init = lambda module, *a: module.init(jax.random.key(0), x, *a)
  with pytest.raises(ValueError, match="expected a context"):
    init(Transformer(1, 2, 6, cross=True))
  with pytest.raises(ValueError, match="expected a divisor of the 6 features"):
    init(MultiHeadAttention(4))
  with pytest.raises(ValueError, match="a multiple of kv_heads=3"):
    MultiHeadAttention(4, 3)


def test_weights_are_sown_only_where_they_are_asked_for():
  module = MultiHeadAttention(2)
  x = jax.random.normal(jax.random.key(0), (1, 5, 4))
  variables = module.init(jax.random.key(1), x)
  out = module.apply(variables, x)
  same, sown = module.apply(variables, x, mutable="weights")
  np.testing.assert_array_equal(out, same)
  np.testing.assert_allclose(np.sum(sown["weights"]["weights"][0], -1), np.ones((1, 2, 5)), rtol=1e-6)
  assert set(variables) == {"params"}


def test_a_cache_is_of_self_attention_obeys_lengths_and_shows_where_it_ends():
  module = MultiHeadAttention(2)
  x = jax.random.normal(jax.random.key(0), (2, 2, 4))
  variables = module.init(jax.random.key(1), x)
  step = jax.jit(lambda x, mask, cache: module.apply(variables, x, mask=mask, cache=cache))
  lengths = jnp.array([2, 1])
  out, cache = step(x, Mask(key_lengths=lengths), make_cache(2, 3, 2, 2))
  np.testing.assert_allclose(out, module.apply(variables, x, mask=Mask(key_lengths=lengths)), rtol=1e-5, atol=1e-6)
  assert np.all(np.isfinite(out)) and np.all(np.isnan(step(x, Mask(key_lengths=lengths + 2), cache)[0]))
  with pytest.raises(ValueError, match="expected no context"):
    module.apply(variables, x, x, cache=cache)
