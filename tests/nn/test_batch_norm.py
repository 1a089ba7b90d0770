"""BatchNorm against Flax's, whole and split, on one device and on eight."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn import BatchNorm, ConvNet


def apply(model, variables, x):
  return model.apply(variables, x, mutable=["batch_stats"])


def test_equals_flax_in_values_statistics_and_gradients(key):
  x = 3 * jax.random.normal(key, (8, 4, 5, 6)) + 1
  ours, theirs = BatchNorm(use_running_average=False), nn.BatchNorm(use_running_average=False, momentum=0.9)
  variables = theirs.init(jax.random.key(1), x)
  variables = jax.tree.map(lambda v: v + jnp.arange(6.0), variables)
  assert jax.tree.structure(variables) == jax.tree.structure(ours.init(jax.random.key(1), x))

  def loss(model, params, x):
    y, updated = apply(model, {"params": params, "batch_stats": variables["batch_stats"]}, x)
    return jnp.sum(jnp.sin(y)), updated["batch_stats"]

  grad = jax.value_and_grad(loss, (1, 2), has_aux=True)
  found, expected = (grad(model, variables["params"], x) for model in (ours, theirs))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  # At test time both use the running statistics.
  expected = nn.BatchNorm(use_running_average=True).apply(variables, x)
  np.testing.assert_allclose(BatchNorm(use_running_average=True).apply(variables, x), expected, rtol=1e-4, atol=1e-4)


def test_a_split_is_a_batch_of_its_own(key):
  """Each part of the batch comes out as Flax's BatchNorm alone on it would have it; the running mean is of all."""
  x = jax.random.normal(key, (12, 3, 3, 4)) * jnp.arange(1.0, 13)[:, None, None, None]
  split = BatchNorm(use_running_average=False, num_splits=3)
  variables = split.init(jax.random.key(1), x)
  found, updated = apply(split, variables, x)
  parts = [apply(nn.BatchNorm(use_running_average=False, momentum=0.9), variables, part) for part in jnp.split(x, 3)]
  np.testing.assert_allclose(found, jnp.concatenate([y for y, _ in parts]), rtol=1e-4, atol=1e-5)
  mean = np.mean([stats["batch_stats"]["mean"] for _, stats in parts], axis=0)
  np.testing.assert_allclose(updated["batch_stats"]["mean"], mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("splits", [1, 4, 16])
def test_eight_devices_give_the_statistics_of_one(splits, key):
  x = jax.random.normal(key, (32, 4, 4, 3)) + jnp.arange(32.0)[:, None, None, None]
  model = BatchNorm(use_running_average=False, num_splits=splits)
  variables = model.init(jax.random.key(1), x)
  loss = jax.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.cos(apply(model, variables, x)[0]))))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
  for a, b in zip(loss(x), loss(sharded)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_statistics_are_float32(key):
  x = (jax.random.normal(key, (64, 4, 4, 3)) + 8).astype(jnp.bfloat16)
  model = BatchNorm(use_running_average=False)
  y, variables = model.init_with_output(jax.random.key(1), x)
  assert y.dtype == jnp.bfloat16 and variables["batch_stats"]["mean"].dtype == jnp.float32
  np.testing.assert_allclose(jnp.mean(y.astype(jnp.float32), (0, 1, 2)), 0, atol=0.01)


def test_refuses_ragged_splits(key):
  with pytest.raises(ValueError, match="num_splits=5 must divide the batch, found 12 examples"):
    BatchNorm(use_running_average=False, num_splits=5).init(key, jnp.zeros((12, 2, 2, 1)))


@pytest.mark.parametrize("size, features, convolutions", [(8, 32, 3), (28, 64, 4), (32, 64, 4), (4, 32, 3)])
def test_the_small_network_fits_digits_and_cifar(size, features, convolutions, key):
  images = jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
  init = lambda key, x: ConvNet(width=8).init_with_output(key, x, train=False)
  out, variables = jax.eval_shape(init, key, images)
  assert out.shape == (2, features)
  assert sum(name.startswith("conv") for name in variables["params"]) == convolutions
