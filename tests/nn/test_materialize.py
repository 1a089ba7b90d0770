"""`materialize`: the identity in every derivative, and computed once where the CPU would repeat it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn.conv import Conv
from mlnotes.nn.densenet import DenseLayer
from mlnotes.nn.materialize import materialize
from mlnotes.nn.norm_by_name import NoNorm


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 1, 1, 2), (2, 4, 3), (3, 2), (2, 3, 1), (4,), (), (0, 3)])
def test_is_the_identity_in_every_derivative(shape):
  x, t = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)

  @jax.jit
  def derivatives(x, t):
    square = lambda x: jnp.sum(materialize(x) ** 2)
    second = jax.grad(lambda x: jnp.sum(jax.grad(square)(x) * t))
    return materialize(x), jax.jvp(materialize, (x,), (t,)), jax.grad(square)(x), second(x)

  found = derivatives(x, t)
  for a, b in zip(jax.tree.leaves(found), (x, x, t, 2 * x, 2 * t), strict=True):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(materialize(jnp.asarray(x)), x)


def test_is_mapped_over_any_axis_and_over_devices():
  x = np.arange(8 * 2 * 3 * 4, dtype=np.float32).reshape(8, 2, 3, 4)
  np.testing.assert_array_equal(jax.jit(jax.vmap(materialize, in_axes=2, out_axes=2))(x), x)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(materialize(2 * x) ** 2)))
  np.testing.assert_array_equal(gradient(sharded), 8 * x)
  text = gradient.lower(sharded).compile().as_text()
  assert " while(" in text and not any(f" {name}(" in text for name in ("all-gather", "all-to-all", "all-reduce"))
  mapped = jax.shard_map(gradient, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))
  np.testing.assert_array_equal(jax.jit(mapped)(x), 8 * x)


def test_other_platforms_see_nothing_of_it():
  text = jax.jit(materialize).trace(jnp.zeros((2, 3, 4, 5))).lower(lowering_platforms=("cuda",)).as_text()
  assert "while" not in text and "dynamic_update_slice" not in text


def test_what_concatenations_compile_to_grows_with_their_number_and_not_with_its_square():
  """Instructions of a gradient, those within fusions included: as many for each further layer."""

  def instructions(layers):
    def block(x, matrices):
      for matrix in matrices:
        x = materialize(jnp.concatenate([x, jax.nn.relu(x * x + x) @ matrix], axis=-1))
      return jnp.sum(x)

    matrices = [jnp.zeros((2 + layer, 1)) for layer in range(layers)]
    return jax.jit(jax.grad(block)).lower(jnp.zeros((2, 3, 2)), matrices).compile().as_text().count(" = ")

  counts = [instructions(layers) for layers in (2, 4, 6)]
  assert counts[2] - counts[1] < 1.1 * (counts[1] - counts[0]), counts


def test_dense_layers_have_it():
  conv = lambda features, window, padding: Conv(features, window, padding=padding)
  layer = DenseLayer(2, conv, NoNorm)
  x = jnp.zeros((2, 4, 4, 3))
  params = jax.eval_shape(layer.init, jax.random.key(0), x)
  gradient = jax.grad(lambda params, x: jnp.sum(layer.apply(params, x)), 1)
  assert str(jax.make_jaxpr(gradient)(params, x)).count("materialize") == 2
