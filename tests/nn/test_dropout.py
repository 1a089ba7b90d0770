"""Masks: the same along time where they are shared, never along the batch or from layer to layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn import Dropout, SharedDropout, draw_dropout_mask

B, T, D = 5, 7, 64


def assert_differ(masks):
  """Any two of them, taken along the first axis."""
  masks = np.asarray(masks)
  for i in range(len(masks)):
    for j in range(i):
      assert np.any(masks[i] != masks[j])


def drop(module, shape=(B, T, D), seed=0):
  return module.apply({}, jnp.ones(shape), deterministic=False, rngs={"dropout": jax.random.key(seed)})


def test_shared_masks_are_equal_along_time_and_along_nothing_else():
  mask = drop(SharedDropout(0.5))
  np.testing.assert_array_equal(mask, jnp.broadcast_to(mask[:, :1], mask.shape))
  assert_differ(mask[:, 0])
  assert_differ(mask[:, 0].T[:8])
  assert_differ(jnp.stack([mask, drop(SharedDropout(0.5), seed=1)]))
  leading = drop(SharedDropout(0.5, time_axis=0), (T, B, D))
  np.testing.assert_array_equal(leading, jnp.broadcast_to(leading[:1], leading.shape))
  assert_differ(leading[0])


def test_plain_masks_differ_along_time():
  mask = drop(Dropout(0.5))
  assert_differ(mask[0])
  assert_differ(mask[:, 0])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("draw", [
  lambda rate: drop(Dropout(rate), (200, 1, 500)),
  lambda rate: drop(SharedDropout(rate), (200, 3, 500)),
  lambda rate: draw_dropout_mask(jax.random.key(0), (200, 500), rate),
])  # fmt: skip
def test_what_is_kept_and_the_mean(draw, rate):
  mask = np.asarray(draw(rate))
  kept = mask[mask > 0]
  np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-6)
  # Five deviations of a mean over 1e5 independent draws.
  np.testing.assert_allclose(kept.size / mask.size, 1 - rate, atol=5 * np.sqrt(rate * (1 - rate) / 1e5))
  np.testing.assert_allclose(mask.mean(), 1, atol=5 * np.sqrt(rate / (1 - rate) / 1e5))


def test_nothing_is_dropped_at_test_time_or_at_rate_zero(key):
  x = jax.random.normal(key, (B, T, D))
  np.testing.assert_array_equal(SharedDropout(0.5).apply({}, x, deterministic=True), x)
  np.testing.assert_array_equal(draw_dropout_mask(jax.random.clone(key), (3,), 0.0), 1)


class Layers(nn.Module):
  """Two layers of each kind, which leave their masks."""

  @nn.compact
  def __call__(self, x):
    return jnp.stack([
      SharedDropout(0.5)(x, deterministic=False), SharedDropout(0.5)(x, deterministic=False),
      Dropout(0.5)(x, deterministic=False), Dropout(0.5)(x, deterministic=False),
    ])  # fmt: skip


def test_layers_have_masks_of_their_own():
  masks = Layers().apply({}, jnp.ones((B, T, D)), rngs={"dropout": jax.random.key(0)})
  assert_differ(masks)


class Step(nn.Module):
  @nn.compact
  def __call__(self, carry, x):
    return carry, Dropout(0.5)(x, deterministic=False)


@pytest.mark.parametrize("split, same", [(False, True), (True, False)])
def test_flax_scan_repeats_the_mask_exactly_where_the_key_is_not_split(split, same):
  scanned = nn.scan(Step, variable_broadcast="params", split_rngs={"dropout": split}, in_axes=1, out_axes=1)()
  mask = scanned.apply({}, 0.0, jnp.ones((B, T, D)), rngs={"dropout": jax.random.key(0)})[1]
  assert_differ(mask)
  if same:
    np.testing.assert_array_equal(mask, jnp.broadcast_to(mask[:, :1], mask.shape))
  else:
    assert_differ(mask[0])


def test_a_mask_drawn_before_the_scan_stays_in_a_recurrent_layer(key):
  """h_t = tanh(x_t + (mask * h_{t-1}) W): the written-out loop with one mask."""
  keys = jax.random.split(key, 3)
  x, kernel = jax.random.normal(keys[0], (T, B, D)), jax.random.normal(keys[1], (D, D)) / 8
  mask = draw_dropout_mask(keys[2], (B, D), 0.25)
  step = lambda h, x: 2 * (jnp.tanh(x + (mask * h) @ kernel),)
  found = jax.jit(lambda x: jax.lax.scan(step, jnp.zeros((B, D)), x)[1])(x)
  h = np.zeros((B, D))
  for t in range(T):
    h = np.tanh(x[t] + (np.asarray(mask, np.float64) * h) @ np.asarray(kernel, np.float64))
    np.testing.assert_allclose(found[t], h, rtol=1e-4, atol=1e-5)
  assert_differ(mask)


def test_gradients_pass_where_values_do(key):
  run = lambda x: SharedDropout(0.5).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(3)})
  x = jnp.ones((B, T, D))
  np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(run(x)))(x), run(x))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_out_of_range_are_refused(rate, key):
  with pytest.raises(ValueError, match=r"expected a number in \[0, 1\)"):
    draw_dropout_mask(key, (2,), rate)
  with pytest.raises(ValueError, match=r"expected a number in \[0, 1\)"):
    drop(SharedDropout(rate))


def test_a_traced_rate_and_half_precision(key):
  draw = jax.jit(lambda key, rate: draw_dropout_mask(key, (1000,), rate, jnp.bfloat16))
  mask = draw(key, jnp.float32(0.5))
  assert mask.dtype == jnp.bfloat16 and set(np.unique(mask.astype(jnp.float32))) == {0.0, 2.0}
