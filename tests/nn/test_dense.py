"""The dense layer with its own gradients against Flax's, and against float64 in half precision."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn.dense import Dense, rows_product

X = jax.random.normal(jax.random.key(0), (3, 5, 4))
WEIGHT = jax.random.normal(jax.random.key(1), (3, 5, 6))


@pytest.mark.parametrize("use_bias", [True, False])
def test_values_and_gradients_are_flaxs(use_bias):
  ours, theirs = Dense(6, use_bias), nn.Dense(6, use_bias)
  variables = theirs.init(jax.random.key(2), X)
  assert jax.tree.map(jnp.shape, ours.init(jax.random.key(2), X)) == jax.tree.map(jnp.shape, variables)
  variables = jax.tree.map(lambda x: x + 0.1, variables)
  loss = lambda layer: jax.jit(jax.value_and_grad(lambda v, x: jnp.sum(WEIGHT * layer.apply(v, x)), (0, 1)))
  found, expected = loss(ours)(variables, X), loss(theirs)(variables, X)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("transposed", [True, False])
def test_products_of_rows(transposed):
  """Of one row and of several axes, of seeds side by side."""
  kernel = jax.random.normal(jax.random.key(3), (2, 6, 4) if transposed else (2, 4, 6))
  plain = lambda x, k: jnp.einsum("...i,oi->...o" if transposed else "...i,io->...o", x, k)
  of = lambda f: jax.jit(jax.vmap(jax.grad(lambda k, x: jnp.sum(WEIGHT * f(x, k)), (0, 1)), (0, None)))(kernel, X)
  found, expected = of(lambda x, k: rows_product(x, k, transposed)), of(plain)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
  np.testing.assert_allclose(rows_product(X[0, 0], kernel[0], transposed), plain(X[0, 0], kernel[0]), rtol=1e-5)


def test_half_precision_sums_gradients_in_float32():
  """Of 512 rows that bfloat16 holds exactly it is that of float64 to 1e-6; Flax rounds it to eight bits."""
  x = jax.random.randint(jax.random.key(4), (512, 4), -8, 9).astype(jnp.float32)
  weight = jax.random.randint(jax.random.key(5), (512, 6), -8, 9).astype(jnp.bfloat16)
  expected = np.asarray(x, np.float64).T @ np.asarray(weight, np.float64)
  errors = []
  for layer in (Dense(6, dtype=jnp.bfloat16), nn.Dense(6, dtype=jnp.bfloat16)):
    variables = layer.init(jax.random.key(6), x)
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    grads = jax.grad(lambda v, layer=layer: jnp.sum((weight * layer.apply(v, x)).astype(jnp.float32)))(variables)
    kernel, bias = grads["params"]["kernel"], grads["params"]["bias"]
    assert kernel.dtype == bias.dtype == jnp.float32
    errors.append(np.abs(kernel - expected).max() / np.abs(expected).max())
    errors.append(np.abs(bias - np.asarray(weight, np.float64).sum(0)).max())
  assert errors[0] < 1e-6 < 1e-4 < errors[2] and errors[1] == 0


def test_logits_may_be_wider_than_what_goes_in():
  hidden, table = X.astype(jnp.bfloat16), jax.random.normal(jax.random.key(7), (6, 4))
  found, pull = jax.vjp(lambda h, t: rows_product(h, t, True, jnp.float32), hidden, table)
  assert found.dtype == jnp.float32
  dx, dw = pull(jnp.ones_like(found))
  assert dx.dtype == jnp.bfloat16 and dw.dtype == jnp.float32
