"""The written-out backward pass against jax.grad, in float32 and float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes.nn import backprop
from mlnotes.nn.backprop import Affine, backward, cross_entropy_delta, forward, squared_error_delta

SIZES = (5, 8, 6, 3)


def make(dtype):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), dtype)
  return [Affine(draw(i, o), draw(o)) for i, o in itertools.pairwise(SIZES)], draw(7, 5), draw(7, 3)


@pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-12)], ids=["float32", "float64"])
@pytest.mark.parametrize("name, function", [("RELU", jax.nn.relu), ("TANH", jnp.tanh), ("SIGMOID", jax.nn.sigmoid)])
@pytest.mark.parametrize("loss", ["cross-entropy", "squared error"])
def test_autograd_gives_the_same(name, function, loss, x64, tolerance):
  activation = getattr(backprop, name)
  with jax.enable_x64(x64):
    layers, x, target = make(np.float64 if x64 else np.float32)
    labels = jnp.argmax(target, -1)

    def value(layers, x):
      for index, layer in enumerate(layers):
        x = x @ layer.kernel + layer.bias[None]
        x = function(x) if index < len(layers) - 1 else x
      if loss == "cross-entropy":
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x, labels)), x
      return jnp.mean(jnp.sum((x - target) ** 2, -1)), x

    @jax.jit
    def written_out(layers, x):
      out, tape = forward(layers, x, activation)
      delta = cross_entropy_delta(out, labels) if loss == "cross-entropy" else squared_error_delta(out, target)
      return out, backward(layers, tape, delta, activation)

    (_, expected_out), expected = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(layers, x)
    out, found = written_out(layers, x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves((out, found)), jax.tree.leaves((expected_out, expected)), strict=True):
      np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_one_layer_and_none():
  layers, x, _ = make(np.float32)
  out, tape = forward(layers[:1], x)
  gradients, dx = backward(layers[:1], tape, jnp.ones_like(out))
  np.testing.assert_allclose(gradients[0].kernel, np.outer(x.sum(0), np.ones(8)), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(dx, np.tile(layers[0].kernel.sum(1), (7, 1)), rtol=1e-5, atol=1e-6)
  with pytest.raises(ValueError, match="no layers"):
    forward([], x)
