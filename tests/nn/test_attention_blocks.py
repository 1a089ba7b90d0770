"""Squeeze and excitation, CBAM: identities and the papers' numbers of parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn import CBAM, SqueezeExcitation
from mlnotes.nn.blocks import BLOCKS
from mlnotes.nn.cbam import ChannelAttention
from mlnotes.nn.conv import Conv
from mlnotes.nn.norm_by_name import NoNorm


def count(module, channels):
  x = jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)
  return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), x)))


@pytest.mark.parametrize("channels, reduction", [(64, 16), (48, 4)])
def test_parameters_are_those_of_the_papers(channels, reduction):
  gates = 2 * channels**2 // reduction
  assert count(SqueezeExcitation(reduction), channels) == gates
  assert count(SqueezeExcitation(reduction, use_bias=True), channels) == gates + channels // reduction + channels
  assert count(CBAM(reduction), channels) == gates + 2 * 49


def test_few_channels_keep_a_hidden_feature():
  assert count(SqueezeExcitation(16), 6) == 2 * 6


def test_zero_weights_scale_by_a_half_each(key):
  x = jax.random.normal(key, (2, 4, 5, 8))
  for module, expected in ((SqueezeExcitation(4), x / 2), (CBAM(4), x / 4)):
    params = jax.tree.map(lambda a: jnp.zeros(a.shape), jax.eval_shape(module.init, jax.random.key(1), x))
    np.testing.assert_array_equal(module.apply(params, x), expected)


def test_swapping_mean_and_maximum_leaves_the_channels_weights(key, monkeypatch):
  """One network reads both: two of them, or a sigmoid before the sum, would tell them apart or halve the range."""
  x = jax.random.normal(key, (2, 4, 5, 8))
  module = ChannelAttention(2)
  params = module.init(jax.random.key(1), x)
  found = module.apply(params, x)
  mean, maximum = jnp.mean, jnp.max
  monkeypatch.setattr(jnp, "mean", maximum)
  monkeypatch.setattr(jnp, "max", mean)
  np.testing.assert_allclose(module.apply(params, x), found, rtol=1e-6)
  # A sum of two sigmoids, or the sigmoid of a sum of sigmoids, is never near 0.
  params = jax.tree.map(lambda a: 10 * a, params)
  assert float(jnp.min(module.apply(params, x))) < 0.1


@pytest.mark.parametrize("block", ["se", "cbam"])
def test_attention_weighs_the_branch_before_the_addition(block, key):
  """With a branch of zeros the block is relu(x), whatever the attention's weights: nothing scales x itself."""
  x = jax.random.normal(key, (2, 4, 4, 8))
  module = BLOCKS[block](features=8, conv=Conv, norm=NoNorm)
  y, _ = module.init_with_output(jax.random.key(1), x)
  np.testing.assert_array_equal(y, nn.relu(x))
