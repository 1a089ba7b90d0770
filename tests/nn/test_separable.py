"""Separable convolutions and the channel shuffle: what depends on what, and how much it costs."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn import BatchNorm, Conv, SeparableConv, channel_shuffle

x_shape = (2, 5, 4, 3)


def test_equals_one_convolution_by_the_product_of_both_kernels(key):
  """Without normalisation "xception" is linear: kernel[q, c, o] = sum_j w[q, c, j] v[c, j, o]."""
  x = jax.random.normal(key, x_shape)
  module = SeparableConv(4, (3, 2), 2, form="xception", multiplier=2, conv=partial(Conv, use_bias=False))
  y, variables = jax.jit(module.init_with_output)(jax.random.key(1), x)
  depthwise, pointwise = (variables["params"][name]["kernel"] for name in ("depthwise", "pointwise"))
  assert depthwise.shape == (3, 2, 1, 6) and pointwise.shape == (1, 1, 6, 4)
  kernel = jnp.einsum("hwcj,cjo->hwco", depthwise.reshape(3, 2, 3, 2), pointwise.reshape(3, 2, 4))
  expected = nn.Conv(4, (3, 2), 2, use_bias=False).apply({"params": {"kernel": kernel}}, x)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_forms_differ_in_what_stands_between_the_parts(key):
  x = jax.random.normal(key, x_shape)
  norm = partial(BatchNorm, use_running_average=True)
  mobilenet, xception = (SeparableConv(4, form=form, norm=norm) for form in ("mobilenet", "xception"))
  y, variables = jax.jit(mobilenet.init_with_output)(jax.random.key(1), x)
  assert set(variables["params"]) == {"depthwise", "depthwise_norm", "pointwise", "pointwise_norm"}
  params = variables["params"]
  between = nn.relu(nn.Conv(3, (3, 3), feature_group_count=3).apply({"params": params["depthwise"]}, x))
  # Running mean 0 and variance 1 at the start.
  expected = nn.relu(nn.Conv(4, (1, 1)).apply({"params": params["pointwise"]}, between / np.sqrt(1 + 1e-5)))
  np.testing.assert_allclose(y, expected / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-5)
  y, variables = jax.jit(xception.init_with_output)(jax.random.key(1), x)
  assert set(variables["params"]) == {"depthwise", "pointwise", "pointwise_norm"} and float(jnp.min(y)) < 0


def test_multiplications_are_the_published_fraction_of_the_full_convolution(key):
  """Howard et al. 2017, eq. 5: 1 / features + 1 / taps, of the weights as of the multiplications."""
  x = jnp.zeros((1, 4, 4, 32))
  weights = lambda module: sum(p.size for p in jax.tree.leaves(jax.eval_shape(module.init, key, x)))
  conv = partial(Conv, use_bias=False)
  assert weights(SeparableConv(64, conv=conv)) / weights(conv(64, (3, 3))) == pytest.approx(1 / 64 + 1 / 9)


def test_without_a_shuffle_an_output_depends_on_its_own_group_only(key):
  groups, channels = 3, 12
  kernels = jax.random.normal(key, (2, 1, channels // groups, channels))
  layers = [Conv(channels, 1, feature_group_count=groups, use_bias=False) for _ in range(2)]

  def depends(shuffle):
    def stack(x):
      x = layers[0].apply({"params": {"kernel": kernels[0]}}, x[None, None])
      x = channel_shuffle(x, groups) if shuffle else x
      return layers[1].apply({"params": {"kernel": kernels[1]}}, x)[0, 0]

    return np.abs(np.asarray(jax.jacobian(stack)(jnp.ones(channels)))) > 0

  own = np.kron(np.eye(groups), np.ones((4, 4))) > 0
  np.testing.assert_array_equal(depends(shuffle=False), own)
  assert depends(shuffle=True).all()


def test_a_shuffle_takes_one_channel_of_each_group_in_turn_and_has_an_inverse(key):
  np.testing.assert_array_equal(channel_shuffle(jnp.arange(6), 2), [0, 3, 1, 4, 2, 5])
  x = jax.random.normal(key, (2, 3, 12))
  for groups in (1, 2, 3, 4, 6, 12):
    np.testing.assert_array_equal(channel_shuffle(channel_shuffle(x, groups), 12 // groups), x)


def test_bad_arguments_are_refused(key):
  with pytest.raises(ValueError, match="groups is 5, expected a divisor of the 12 channels"):
    channel_shuffle(jnp.zeros(12), 5)
  with pytest.raises(ValueError, match="form is 'inception', expected 'mobilenet' or 'xception'"):
    SeparableConv(4, form="inception")
  with pytest.raises(ValueError, match="multiplier is 0"):
    SeparableConv(4, multiplier=0)
