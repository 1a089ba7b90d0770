from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mlnotes.nn.trilinear as trilinear_module
import mlnotes.nn.winograd as winograd_module
from mlnotes.nn import Conv, contains_slow_convolution, convolve
from mlnotes.nn.geometry import Geometry

CONFIGS = {
  "1x1": dict(kernel_size=(1, 1)),
  "1x1 stride 2": dict(kernel_size=(1, 1), strides=2, use_bias=False),
  "3x3": dict(kernel_size=(3, 3)),
  "3x3 valid": dict(kernel_size=(3, 3), padding="VALID"),
  "3x3 stride 2": dict(kernel_size=(3, 3), strides=(2, 2)),
  "3x3 stride 2 explicit": dict(kernel_size=(3, 3), strides=2, padding=((1, 1), (1, 1))),
  "7x7 stride 2": dict(kernel_size=(7, 7), strides=2, padding=((3, 3), (3, 3)), use_bias=False),
  "2x3 uneven": dict(kernel_size=(2, 3), strides=(1, 3), padding=((0, 1), (2, 0))),
  "dilated": dict(kernel_size=(3, 3), kernel_dilation=2),
  "dilated stride 2 valid": dict(kernel_size=(3, 2), kernel_dilation=(2, 1), strides=2, padding="VALID"),
  "circular": dict(kernel_size=(3, 3), padding="CIRCULAR"),
  "groups": dict(kernel_size=(3, 3), feature_group_count=2),
  "padding in one number": dict(kernel_size=(3, 3), padding=2, strides=2),
}


def native(x, kernel, strides=(1, 1), padding="SAME"):
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def assert_trees_close(found, expected, rtol=2e-4):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(b))) + 1e-6)


def first_derivatives(module, params, x, d_params, d_x):
  """Value with its forward derivative, gradient with its forward derivative (a Hessian-vector product)."""
  apply = lambda params, x: module.apply({"params": params}, x)
  gradient = jax.grad(lambda params, x: jnp.sum(jnp.sin(apply(params, x))), (0, 1))
  return {
    "value and jvp": jax.jvp(apply, (params, x), (d_params, d_x)),
    "gradient and Hessian-vector product": jax.jvp(gradient, (params, x), (d_params, d_x)),
  }


def gradient_of_gradient(module, params, x, d_params, d_x):
  """Reverse over reverse, as in second-order meta-learning."""
  del d_params, d_x
  gradient = jax.grad(lambda params, x: jnp.sum(jnp.sin(module.apply({"params": params}, x))), (0, 1))
  squared_norm = lambda params, x: sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient(params, x)))
  return {"gradient of the gradient's norm": jax.grad(squared_norm, (0, 1))(params, x)}


def compare_with_flax(compute, config, key):
  ours, reference = Conv(4, **config), nn.Conv(4, **config)
  data_key, init_key, tangent_key, bias_key = jax.random.split(key, 4)
  x, d_x = jax.random.normal(data_key, (2, 6, 9, 8, 2))
  params = reference.init(init_key, x)["params"]
  shapes = jax.eval_shape(ours.init, jax.random.clone(init_key), x)["params"]
  assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == jax.tree.map(lambda p: (p.shape, p.dtype), shapes)
  d_params = jax.tree.map(lambda p: jax.random.normal(jax.random.clone(tangent_key), p.shape), params)
  if "bias" in params:
    params["bias"] = jax.random.normal(bias_key, params["bias"].shape)
  both = jax.jit(lambda *args: [compute(module, *args) for module in (ours, reference)])
  found, expected = both(params, x, d_params, d_x)
  for name in expected:
    assert_trees_close(found[name], expected[name])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_equals_flax_in_shapes_values_and_derivatives(config, key):
  compare_with_flax(first_derivatives, config, key)


@pytest.mark.parametrize("config", ["3x3", "3x3 stride 2 explicit", "dilated stride 2 valid"])
def test_equals_flax_in_second_order_gradients(config, key, monkeypatch):
  monkeypatch.setattr(trilinear_module, "_LARGE", 0)
  compare_with_flax(gradient_of_gradient, CONFIGS[config], key)


def test_initial_parameters_are_those_of_flax(key):
  x = jnp.zeros((2, 8, 8, 3))
  found = Conv(4, (3, 3)).init(key, x)
  assert_trees_close(found, nn.Conv(4, (3, 3)).init(jax.random.clone(key), x), rtol=0)


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)], ids=["both", "kernels", "images"])
def test_vmap_gives_what_single_calls_give(axes, key):
  keys = jax.random.split(key, 2)
  x = jax.random.normal(keys[0], (3, 4, 6, 6, 2))
  kernel = jax.random.normal(keys[1], (3, 3, 3, 2, 5))
  x, kernel = (value if axis == 0 else value[0] for value, axis in zip((x, kernel), axes))

  def gradients(f, x, kernel):
    return jax.grad(lambda x, kernel: jnp.sum(jnp.cos(f(x, kernel))), (0, 1))(x, kernel)

  batched = jax.jit(jax.vmap(partial(gradients, convolve), axes))(x, kernel)
  alone = jax.jit(partial(gradients, native))
  for i in range(3):
    single = alone(x if axes[0] is None else x[i], kernel if axes[1] is None else kernel[i])
    assert_trees_close(jax.tree.map(lambda leaf, i=i: leaf[i], batched), single)


def test_gradient_through_a_batched_call_sums_over_what_was_shared(key):
  keys = jax.random.split(key, 2)
  x = jax.random.normal(keys[0], (2, 6, 6, 3))
  kernels = jax.random.normal(keys[1], (4, 3, 3, 3, 5))
  found = jax.jit(jax.grad(lambda x: jnp.sum(jax.vmap(convolve, (None, 0))(x, kernels) ** 2)))(x)
  joined = jnp.moveaxis(kernels, 0, 3).reshape(3, 3, 3, 20)
  assert_trees_close(found, jax.jit(jax.grad(lambda x: jnp.sum(native(x, joined) ** 2)))(x))


@pytest.mark.parametrize("shape, kernel_shape", [((4, 9, 3), (5, 3, 2)), ((2, 5, 4, 6, 3), (3, 2, 3, 3, 2))])
def test_one_and_three_spatial_axes(shape, kernel_shape, key):
  keys = jax.random.split(key, 2)
  x, kernel = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], kernel_shape)
  axes = "DHW"[: len(shape) - 2]
  expected = lax.conv_general_dilated(
    x, kernel, (2,) * len(axes), "SAME", dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C")
  )
  assert_trees_close(convolve(x, kernel, 2), expected)


@pytest.mark.parametrize("batch_shape", [(), (2, 3)])
def test_any_number_of_batch_axes(batch_shape, key):
  keys = jax.random.split(key, 2)
  x = jax.random.normal(keys[0], (*batch_shape, 7, 2))
  found, params = Conv(3, 5).init_with_output(keys[1], x)
  assert_trees_close(found, nn.Conv(3, 5).apply(params, x))


def test_bfloat16_is_as_exact_as_its_format(key):
  keys = jax.random.split(key, 2)
  x = jax.random.normal(keys[0], (4, 8, 8, 16))
  module = Conv(8, (3, 3), dtype=jnp.bfloat16)
  params = jax.jit(module.init)(keys[1], x)
  found = jax.jit(module.apply)(params, x)
  assert found.dtype == jnp.bfloat16 and params["params"]["kernel"].dtype == jnp.float32
  expected = jax.jit(nn.Conv(8, (3, 3)).apply)(params, x)
  # Inputs, weights and output are each rounded to 8 bits; sums are over 144 terms of either sign.
  np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=4 * 2**-8)
  loss = lambda p: jnp.sum(module.apply(p, x).astype(jnp.float32))
  gradient = jax.eval_shape(jax.grad(loss), params)
  assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}


def descend(convolution):
  """Gradient descent in a loop whose trip count is known only at run time, rematerialised."""

  def train(x, kernel, steps):
    gradient = jax.grad(jax.checkpoint(lambda kernel: jnp.mean(convolution(x, kernel) ** 2)))
    return lax.fori_loop(0, steps, lambda _, kernel: kernel - 0.05 * gradient(kernel), kernel)

  return train


def test_training_in_a_loop_equals_the_native_convolution(key):
  keys = jax.random.split(key, 2)
  x, kernel = jax.random.normal(keys[0], (8, 6, 6, 3)), jax.random.normal(keys[1], (3, 3, 3, 4))
  found = jax.jit(descend(convolve))(x, kernel, 5)
  assert_trees_close(found, jax.jit(descend(native))(x, kernel, 5))
  assert float(jnp.max(jnp.abs(found - kernel))) > 0.1


def lowered_text(f, *args, platform):
  return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_native_convolutions_are_kept_everywhere_but_on_the_cpu(platform):
  x, kernel = jnp.zeros((4, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))

  def operations(convolution, batched):
    def loss(x, kernel):
      return jnp.sum(convolution(convolution(x, kernel), jnp.tile(kernel, (1, 1, 2, 1))[:, :, :4]) ** 2)

    gradient = jax.value_and_grad(loss, (0, 1))
    args = (x, kernel)
    if batched:
      gradient, args = jax.vmap(gradient), (jnp.stack([x, x]), jnp.stack([kernel, kernel]))
    text = lowered_text(gradient, *args, platform=platform)
    return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")

  for batched in (False, True):
    expected = operations(native, batched)
    assert expected[0] > 0 and expected[1] == 0
    convolutions, products = operations(convolve, batched)
    if platform == "cpu":
      assert (convolutions, products) == expected
    else:
      assert (convolutions, products) == expected


def test_backward_pass_keeps_the_input_and_not_its_patches():
  x, kernel = jnp.zeros((8, 16, 16, 4)), jnp.zeros((3, 3, 4, 4))
  _, pullback = jax.vjp(convolve, x, kernel)
  kept = sum(leaf.size for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "size"))
  assert kept <= x.size + kernel.size


def test_the_slow_convolution_is_recognised_wherever_it_hides():
  x, kernel = jnp.zeros((4, 8, 8, 2)), jnp.zeros((3, 3, 2, 2))

  def slow(f, *args):
    return contains_slow_convolution(jax.make_jaxpr(f)(*args))

  def loss(kernel):
    return jnp.sum(native(x, kernel) ** 2)

  def chained(kernel):
    return lax.scan(lambda k, _: (k - jax.jit(jax.grad(loss))(k), None), kernel, None, length=2)[0]

  grouped = nn.Conv(2, (3, 3), feature_group_count=2)
  grouped_params = {"params": {"kernel": jnp.zeros((3, 3, 1, 2)), "bias": jnp.zeros(2)}}
  assert slow(jax.grad(loss), kernel)
  assert slow(chained, kernel)
  assert slow(jax.grad(jax.checkpoint(loss)), kernel)
  assert slow(jax.vmap(jax.grad(loss)), kernel[None])
  assert slow(jax.grad(lambda p: jnp.sum(grouped.apply(p, x) ** 2)), grouped_params)
  # Gradient with respect to the input only, then differentiated with respect to the kernel.
  assert slow(jax.grad(lambda k: jnp.sum(jax.grad(lambda x: jnp.sum(native(x, k) ** 2))(x))), kernel)

  assert not slow(native, x, kernel)
  assert not slow(jax.grad(lambda x: jnp.sum(native(x, kernel) ** 2)), x)


def test_no_derivative_of_ours_holds_the_slow_convolution():
  x, kernel = jnp.zeros((4, 8, 8, 2)), jnp.zeros((3, 3, 2, 2))

  def adapted(kernel):
    loss = lambda kernel: jnp.sum(convolve(convolve(x, kernel), kernel, 2) ** 2)
    return loss(kernel - 0.1 * jax.grad(loss)(kernel))

  traced = jax.jit(descend(convolve)).trace(x, kernel, 3)
  assert not contains_slow_convolution(traced.jaxpr)
  assert not contains_slow_convolution(jax.make_jaxpr(jax.grad(adapted))(kernel))
  meta = jax.jit(jax.vmap(jax.grad(adapted))).trace(kernel[None])
  assert not contains_slow_convolution(meta.jaxpr)
  compiled = meta.lower().compile().as_text()
  assert " convolution(" in compiled and " dot(" not in compiled and "feature_group_count" not in compiled
  cuda = meta.lower(lowering_platforms=("cuda",)).as_text()
  assert "stablehlo.convolution" in cuda and "dot_general" not in cuda


# Where tiles are small enough nothing else swaps axes.
@pytest.mark.parametrize("tiled, large", [(1, 2**30), (2**30, 0), (2**30, 2**30)])
def test_a_batch_sharded_over_devices_gives_the_same_gradient(large, tiled, key, monkeypatch):
  monkeypatch.setattr(trilinear_module, "_LARGE", large)
  monkeypatch.setattr(winograd_module, "_TILED_CHANNELS", tiled)
  monkeypatch.setattr(winograd_module, "_TILES", 1)
  keys = jax.random.split(key, 2)
  x, kernel = jax.random.normal(keys[0], (32, 8, 8, 4)), jax.random.normal(keys[1], (3, 3, 4, 4))
  gradient = jax.jit(jax.grad(lambda x, kernel: jnp.sum(convolve(x, kernel) ** 2), (0, 1)))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
  replicated = jax.device_put(kernel, jax.NamedSharding(mesh, jax.P()))
  expected = gradient(x, kernel)
  assert_trees_close(gradient(sharded, replicated), expected)
  text = gradient.lower(sharded, replicated).compile().as_text()
  assert " all-reduce(" in text and " all-gather(" not in text and " all-to-all(" not in text
  specs = (jax.P("data"), jax.P())
  assert_trees_close(
    jax.jit(jax.shard_map(gradient.__wrapped__, mesh=mesh, in_specs=specs, out_specs=specs))(x, kernel), expected
  )


def test_gradients_on_the_cpu_are_plain_forward_convolutions(key):
  x, kernel = jnp.zeros((4, 9, 9, 3)), jnp.zeros((3, 3, 3, 5))
  gradient = jax.grad(lambda x, kernel: jnp.sum(convolve(x, kernel, 2, 1) ** 2), (0, 1))
  text = lowered_text(gradient, x, kernel, platform="cpu")
  layout = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
  # The value, four phases of the input's gradient, and the kernel's.
  assert text.count("stablehlo.convolution") == text.count(layout) == 6
  assert "lhs_dilate = [2" not in text and text.count("feature_group_count = 1 ") == 6


def test_rows_in_vain_are_for_several_threads_and_few_features():
  # (rows in, rows out, features, threads): "SAME", few rows, "VALID", many features, one thread.
  cases = {(32, 32, 64, 2): 1, (3, 3, 64, 2): 0, (32, 30, 64, 2): 3, (32, 32, 128, 2): 0, (32, 32, 64, 1): 0}
  assert {case: trilinear_module._surplus_rows(*case) for case in cases} == cases


@pytest.mark.parametrize("threads", ["1", "2"])
def test_one_thread_and_several_give_the_same(threads, key, monkeypatch):
  monkeypatch.setenv("NPROC", threads)
  jax.clear_caches()  # what was lowered for another number of threads
  keys = jax.random.split(key, 2)
  x, kernel = jax.random.normal(keys[0], (2, 8, 8, 3)), jax.random.normal(keys[1], (3, 3, 3, 5))
  loss = lambda f: lambda x, kernel: jnp.sum(f(x, kernel) ** 2)
  value_and_gradients = lambda f: jax.jit(jax.value_and_grad(loss(f), (0, 1)))(x, kernel)
  assert_trees_close(value_and_gradients(convolve), value_and_gradients(native))
  # One row more than the image has, cut off afterwards.
  surplus = lowered_text(convolve, x, kernel, platform="cpu").count("tensor<2x9x8x5xf32>")
  assert (surplus > 0) == (threads == "2")


def geometry(size=8, window=(3, 3), strides=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), precision=None):
  return Geometry((size, size), window, strides, padding, dilation, precision)


def test_winograd_is_for_wide_convolutions_of_window_three_and_stride_one():
  def chosen(batch=16, inputs=128, outputs=128, dtype=jnp.float32, **arguments):
    shapes = geometry(**arguments).shapes(batch, inputs, outputs)
    return winograd_module.in_tiles(geometry(**arguments), shapes["x"], shapes["y"], jnp.dtype(dtype))

  assert chosen() and chosen(padding=((2, 0), (0, 2))) and chosen(batch=8) and chosen(inputs=512)
  assert not chosen(batch=7) and not chosen(inputs=64) and not chosen(outputs=64) and not chosen(dtype=jnp.bfloat16)
  assert not chosen(size=9) and not chosen(size=10, padding=((0, 1), (0, 1))) and not chosen(padding=((3, 1), (1, 1)))
  assert not chosen(strides=(2, 2)) and not chosen(dilation=(2, 2), padding=((2, 2), (2, 2)))
  assert not chosen(window=(3, 1)) and not chosen(precision="highest")


@pytest.mark.parametrize("padding", ["VALID", ((2, 0), (1, 1))])
def test_winograd_equals_the_native_convolution_in_all_derivatives(padding, key, monkeypatch):
  monkeypatch.setattr(winograd_module, "_TILED_CHANNELS", 1)
  monkeypatch.setattr(winograd_module, "_TILES", 1)
  keys = jax.random.split(key, 4)
  x, d_x = jax.random.normal(keys[0], (2, 3, 6, 8, 4))
  kernel, d_kernel = jax.random.normal(keys[1], (2, 3, 3, 4, 5))

  def derivatives(f, x, kernel):
    loss = lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel, (1, 1), padding)))
    return jax.jvp(jax.value_and_grad(loss, (0, 1)), (x, kernel), (d_x, d_kernel))

  found = jax.jit(partial(derivatives, convolve))
  # Products instead of convolutions, in the value and in both gradients, and in a second derivative.
  text = found.lower(x, kernel).as_text()
  assert "stablehlo.convolution" not in text and "stablehlo.dot_general" in text
  assert_trees_close(found(x, kernel), jax.jit(partial(derivatives, native))(x, kernel))
  batched = jax.jit(jax.vmap(lambda kernel: convolve(x, kernel, 1, padding)))(jnp.stack([kernel, d_kernel]))
  assert_trees_close(batched[1], native(x, d_kernel, (1, 1), padding))


def test_rounding_of_winograd_is_at_most_twice_that_of_the_native_convolution(key):
  keys, channels = jax.random.split(key, 2), 128
  x = jax.random.normal(keys[0], (8, 8, 8, channels))
  kernel = jax.random.normal(keys[1], (3, 3, channels, channels))
  padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
  exact = np.einsum("bhwcij,ijco->bhwo", windows, np.asarray(kernel, np.float64), optimize=True)
  error = lambda f: np.sqrt(np.mean((np.asarray(jax.jit(f)(x, kernel), np.float64) - exact) ** 2) / np.mean(exact**2))
  tiled, plain = error(convolve), error(native)
  assert 0 < tiled < min(2 * plain, 2e-6) and tiled != plain


@pytest.mark.parametrize("shape", [(3, 5, 2), (2, 4, 5, 3), (2, 3, 4, 5, 6)])
def test_batch_and_channels_swap_places(shape, monkeypatch):
  monkeypatch.setattr(trilinear_module, "_LARGE", 0)
  x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  np.testing.assert_array_equal(trilinear_module._swap_batch_and_channels(jnp.asarray(x)), np.swapaxes(x, 0, -1))


def test_a_call_of_its_own_gives_what_a_compiled_one_gives(key):
  keys = jax.random.split(key, 2)
  x, kernel = jax.random.normal(keys[0], (2, 6, 6, 3)), jax.random.normal(keys[1], (3, 3, 3, 5))
  gradient = jax.grad(lambda kernel: jnp.sum(convolve(x, kernel) ** 2))
  assert_trees_close(gradient(kernel), jax.jit(jax.grad(lambda kernel: jnp.sum(native(x, kernel) ** 2)))(kernel))


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(kernel=jnp.zeros((3, 3, 4, 2))), "x has 3 channels, expected 4"),
    (dict(kernel=jnp.zeros((3, 3, 2))), "kernel has 3 axes, expected 4"),
    (dict(kernel=jnp.zeros((3, 3, 3, 2), jnp.bfloat16)), "kernel is bfloat16, expected float32"),
    (dict(strides=0), "strides is 0"),
    (dict(strides=(1, 1, 1)), "strides is"),
    (dict(padding="CAUSAL"), "padding is 'CAUSAL'"),
    (dict(padding=((1, 1),)), "expected 2 entries"),
    (dict(kernel_dilation=9, padding="VALID"), "x has spatial size"),
  ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, message):
  with pytest.raises(ValueError, match=message):
    convolve(**{"x": jnp.zeros((1, 8, 8, 3)), "kernel": jnp.zeros((3, 3, 3, 2)), **arguments})
