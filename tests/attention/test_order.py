"""A mask whose causality goes by an order of its own: what it shows, and which kinds refuse it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import KINDS, Mask, MultiHeadAttention, Sizes, ring_attention

LENGTH = 16
SIZES = Sizes(length=LENGTH, window=4, rank=6)
ORDER = jnp.stack([jax.random.permutation(jax.random.key(i), LENGTH) for i in range(2)])
REAL = jnp.array([LENGTH, LENGTH])
REFUSE = ("local", "strided", "global", "reformer", "sinkhorn", "linformer", "compressed")


def draw(shared=False):
  query, key, value = (jax.random.normal(jax.random.key(9 + i), (2, LENGTH, 2, 4)) for i in range(3))
  return query, query if shared else key, value


def as_function(name):
  attend = KINDS[name].make(SIZES)
  if callable(getattr(attend, "init", None)):
    module, variables = attend, attend.init({"params": jax.random.key(0), "attention": jax.random.key(1)}, *draw())
    attend = lambda *arrays: module.apply(variables, *arrays)
  return attend


def sort(x, order):
  return jnp.take_along_axis(x, jnp.argsort(order, 1)[:, :, None, None], 1)


@pytest.mark.parametrize("name", ["dense", "blockwise", "additive", "hard", "linear", "performer", "ring"])
def test_reading_in_an_order_is_reading_what_was_sorted(name):
  """Nothing but the mask tells places apart: tokens sorted into their order see the same under a plain causal mask."""
  attend = as_function(name) if name != "ring" else None
  if name == "ring":
    mesh = jax.make_mesh((2,), ("length",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    attend = lambda q, k, v, mask: ring_attention(q, k, v, mask, mesh=mesh, axis="length")
  arrays = draw()
  found = attend(*arrays, Mask.of_self(causal=True, order=ORDER))
  expected = attend(*(sort(x, ORDER) for x in arrays), Mask.of_self(causal=True))
  np.testing.assert_allclose(sort(found, ORDER), expected, rtol=1e-5, atol=1e-5)
  assert not np.allclose(found, attend(*arrays, Mask.of_self(causal=True)), atol=1e-2)


def test_tokens_of_one_number_see_each_other_and_lengths_hold():
  mask = Mask.of_self(causal=True, order=jnp.array([0, 0, 0, 1, 2]), lengths=jnp.array([5, 4]))
  seen = np.array(mask.matrix(2, 5, 5))
  expected = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool)
  np.testing.assert_array_equal(seen[0], expected)
  expected[:, 4] = expected[4] = False
  np.testing.assert_array_equal(seen[1], expected)


def test_rotary_angles_are_of_positions_not_of_the_order():
  """Where all see all, an order changes nothing, rotated or not."""
  module = MultiHeadAttention(2, rotary_base=100.0)
  x = jax.random.normal(jax.random.key(0), (2, LENGTH, 8))
  variables = module.init(jax.random.key(1), x)
  alike = Mask.of_self(causal=True, order=jnp.full((LENGTH,), 3))
  np.testing.assert_allclose(module.apply(variables, x, None, alike), module.apply(variables, x), atol=1e-6)


@pytest.mark.parametrize("name", REFUSE)
def test_kinds_that_go_by_places_refuse_an_order(name):
  arrays = draw(KINDS[name].shared)
  mask = Mask.of_self(causal=True, order=ORDER)
  attend = KINDS[name].make(SIZES)
  with pytest.raises(ValueError, match=r"order of its own|positions of its own|no causal form"):
    if callable(getattr(attend, "init", None)):
      attend.init({name: jax.random.key(0) for name in ("params", "hash")}, *arrays, mask)
    else:
      attend(*arrays, mask)


def test_what_is_no_order_is_refused():
  with pytest.raises(ValueError, match="both or none"):
    Mask(causal=True, key_order=ORDER)
  with pytest.raises(ValueError, match="expected causal=True"):
    Mask.of_self(order=ORDER)
  with pytest.raises(ValueError, match=r"query_order of the mask has shape \(2, 16\), expected \(2, 5\)"):
    Mask.of_self(causal=True, order=ORDER).matrix(2, 5, 5)
