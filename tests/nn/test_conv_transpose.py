"""The transposed convolution against lax, Flax and torch, in values, gradients, loops and under `vmap`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mlnotes.nn import ConvTranspose, contains_slow_convolution, convolve_transpose

CONFIGS = {
  "4x4 stride 2": dict(kernel_size=(4, 4), strides=(2, 2)),
  "3x3 stride 2": dict(kernel_size=(3, 3), strides=(2, 2)),
  "3x3": dict(kernel_size=(3, 3), use_bias=False),
  "valid": dict(kernel_size=(3, 4), strides=(2, 2), padding="VALID"),
  "stride above the kernel": dict(kernel_size=(2, 3), strides=(3, 4)),
  "stride above the kernel, valid": dict(kernel_size=(2, 2), strides=(3, 3), padding="VALID"),
}
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def native(x, kernel, strides=(2, 2), padding="SAME"):
  return lax.conv_transpose(x, kernel, strides, padding, dimension_numbers=DIMENSIONS)


def assert_trees_close(found, expected, rtol=1e-4):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_equals_flax_in_parameters_values_and_gradients(config, key):
  ours, reference = ConvTranspose(4, **config), nn.ConvTranspose(4, **config)
  data_key, init_key, bias_key = jax.random.split(key, 3)
  x = jax.random.normal(data_key, (2, 5, 4, 3))
  params = reference.init(init_key, x)["params"]
  assert_trees_close(ours.init(jax.random.clone(init_key), x)["params"], params, rtol=0)
  if "bias" in params:
    params["bias"] = jax.random.normal(bias_key, params["bias"].shape)

  def both(params, x):
    def loss(module, params, x):
      y = module.apply({"params": params}, x)
      return jnp.sum(jnp.sin(y)), y

    return [jax.value_and_grad(loss, (1, 2), has_aux=True)(module, params, x) for module in (ours, reference)]

  assert_trees_close(*jax.jit(both)(params, x))


def test_second_order_gradients_are_those_of_lax(key):
  keys = jax.random.split(key, 2)
  x, kernel = jax.random.normal(keys[0], (2, 4, 4, 3)), jax.random.normal(keys[1], (4, 4, 3, 2))

  def penalty(convolution, x, kernel):
    gradient = jax.grad(lambda x: jnp.sum(jnp.tanh(convolution(x, kernel))))(x)
    return jnp.sum(gradient**2)

  ours = jax.jit(jax.grad(lambda x, k: penalty(lambda x, k: convolve_transpose(x, k, 2), x, k), (0, 1)))(x, kernel)
  assert_trees_close(ours, jax.jit(jax.grad(lambda x, k: penalty(native, x, k), (0, 1)))(x, kernel))


def test_vmap_over_kernels_gives_what_single_calls_give(key):
  keys = jax.random.split(key, 2)
  x, kernels = jax.random.normal(keys[0], (3, 2, 4, 4, 3)), jax.random.normal(keys[1], (3, 4, 4, 3, 2))
  gradient = lambda x, kernel: jax.grad(lambda k: jnp.sum(convolve_transpose(x, k, 2) ** 2))(kernel)
  expected = jnp.stack([jax.grad(lambda k, x=x: jnp.sum(native(x, k) ** 2))(k) for x, k in zip(x, kernels)])
  assert_trees_close(jax.jit(jax.vmap(gradient))(x, kernels), expected)


def test_training_in_a_loop_equals_lax_and_holds_no_slow_convolution(key):
  keys = jax.random.split(key, 2)
  x, kernel = jax.random.normal(keys[0], (4, 4, 4, 3)), jax.random.normal(keys[1], (4, 4, 3, 2))

  def train(convolution):
    gradient = jax.grad(lambda kernel: jnp.mean(convolution(x, kernel) ** 2))
    return lambda kernel: lax.scan(lambda k, _: (k - 0.1 * gradient(k), None), kernel, None, length=3)[0]

  ours, theirs = train(lambda x, k: convolve_transpose(x, k, 2)), train(native)
  assert_trees_close(jax.jit(ours)(kernel), jax.jit(theirs)(kernel))
  assert not contains_slow_convolution(jax.make_jaxpr(ours)(kernel))
  assert contains_slow_convolution(jax.make_jaxpr(theirs)(kernel))


@pytest.mark.parametrize("batch_shape", [(), (2, 3)])
def test_any_number_of_batch_axes_and_one_spatial_axis(batch_shape, key):
  keys = jax.random.split(key, 2)
  x = jax.random.normal(keys[0], (*batch_shape, 5, 2))
  found, params = ConvTranspose(3, 4, 2).init_with_output(keys[1], x)
  assert_trees_close(found, nn.ConvTranspose(3, (4,), (2,)).apply(params, x))


def test_the_result_has_the_requested_type(key):
  found, params = ConvTranspose(3, (4, 4), 2, dtype=jnp.bfloat16).init_with_output(key, jnp.ones((1, 3, 3, 2)))
  assert found.dtype == jnp.bfloat16 and params["params"]["kernel"].dtype == jnp.float32


@pytest.mark.parity
@pytest.mark.parametrize(
  "taps, stride, padding, output_padding", [(4, 2, 1, 0), (5, 2, 2, 1), (3, 1, 1, 0), (4, 3, 0, 0)]
)
def test_numbers_as_padding_are_those_of_torch(taps, stride, padding, output_padding):
  torch = pytest.importorskip("torch")
  layer = torch.nn.ConvTranspose2d(3, 2, taps, stride, padding, output_padding)
  x = torch.randn(2, 3, 5, 4)
  expected = layer(x).detach().numpy().transpose(0, 2, 3, 1)
  kernel = layer.weight.detach().numpy().transpose(2, 3, 0, 1)[::-1, ::-1]
  cut = padding if not output_padding else [(padding, padding - output_padding)] * 2
  module = ConvTranspose(2, (taps, taps), stride, cut)
  params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(layer.bias.detach().numpy())}
  found = module.apply({"params": params}, jnp.asarray(x.numpy().transpose(0, 2, 3, 1)))
  assert_trees_close(found, jnp.asarray(expected))


@pytest.mark.parametrize(
  "x, kernel, padding, sentence",
  [
    ((1, 4, 4, 3), (4, 4, 2, 2), "SAME", "x has 3 channels, expected 2"),
    ((1, 4, 4, 3), (4, 3, 2), "SAME", "kernel has 3 axes, expected 4"),
    ((1, 4, 4, 3), (4, 4, 3, 2), "CIRCULAR", "padding is 'CIRCULAR', expected"),
    ((1, 1, 1, 3), (2, 2, 3, 2), 1, r"leaves the spatial size \(0, 0\), expected 1 or more"),
  ],
)
def test_bad_input_is_refused_in_a_sentence(x, kernel, padding, sentence):
  with pytest.raises(ValueError, match=sentence):
    convolve_transpose(jnp.zeros(x), jnp.zeros(kernel), 2, padding)
  with pytest.raises(ValueError, match="features is 0"):
    ConvTranspose(0, (4, 4)).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
