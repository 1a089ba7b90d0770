import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn.norm import GroupNorm


@pytest.mark.parametrize("shape", [(3, 4, 5, 24), (3, 7, 8), (3, 16)])
def test_equals_flax(key, shape):
  x = 3 * jax.random.normal(key, shape) + 2
  theirs = nn.GroupNorm(8, use_fast_variance=False)
  params = theirs.init(jax.random.key(1), x)
  params = jax.tree.map(lambda a: a + jnp.arange(a.size), params)
  assert jax.tree.structure(params) == jax.tree.structure(GroupNorm(8).init(jax.random.key(1), x))

  def loss(params, x, model):
    return jnp.sum(jnp.sin(model.apply(params, x)))

  value_and_grad = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
  ours, reference = value_and_grad(params, x, GroupNorm(8)), value_and_grad(params, x, theirs)
  for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(reference)):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_large_mean_does_not_cancel(key):
  x = jax.random.normal(key, (2, 8, 8, 16))
  far = GroupNorm(4).init_with_output(jax.random.key(1), x + 4096.0)[0]
  np.testing.assert_allclose(jnp.var(far.reshape(2, 64, 4, 4), (1, 3)), 1.0, rtol=1e-3)


def test_bfloat16_statistics_are_float32(key):
  x = jax.random.normal(key, (2, 8, 8, 16)).astype(jnp.bfloat16) + 64
  y, params = GroupNorm(4, dtype=jnp.bfloat16).init_with_output(jax.random.key(1), x)
  assert y.dtype == jnp.bfloat16
  assert params["params"]["scale"].dtype == jnp.float32
  exact = GroupNorm(4).apply(params, x.astype(jnp.float32))
  np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_refuses_ragged_groups(key):
  with pytest.raises(ValueError, match="groups=8 must divide the number of channels, found 12"):
    GroupNorm(8).init(key, jnp.zeros((1, 2, 2, 12)))
