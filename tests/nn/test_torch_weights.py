"""Torch's weights in Flax: the same outputs, and every array accounted for."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn import BatchNorm, Conv, avg_pool, convert_torch_weights


class Network(nn.Module):
  conv: Callable[..., nn.Module] = Conv

  @nn.compact
  def __call__(self, x, tokens):
    x = self.conv(8, (3, 3), 2, padding="TORCH", name="stem")(x)
    x = nn.relu(BatchNorm(use_running_average=True, name="stem_norm")(x))
    x = self.conv(8, (3, 3), padding="TORCH", feature_group_count=4, use_bias=False, name="grouped")(x)
    x = nn.GroupNorm(2, epsilon=1e-5, name="group_norm")(x)
    x = avg_pool(x, x.shape[1:3])[:, 0, 0]
    x += nn.Embed(5, 8, name="embed")(tokens)
    return nn.Dense(3, name="head")(nn.LayerNorm(epsilon=1e-5, name="layer_norm")(x))


MODULES = {
  "stem.0": "stem",
  "stem.1": "stem_norm",
  "grouped": "grouped",
  "group_norm": "group_norm",
  "embed": "embed",
  "layer_norm": "layer_norm",
  "fc": "head",
}


@pytest.mark.parity
@pytest.mark.parametrize("size", [7, 8])
def test_a_network_gives_what_torch_gives(size, key):
  torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")
  from torch import nn as tnn

  class Peer(tnn.Module):
    def __init__(self):
      super().__init__()
      self.stem = tnn.Sequential(tnn.Conv2d(3, 8, 3, 2, 1), tnn.BatchNorm2d(8), tnn.ReLU())
      self.grouped = tnn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
      self.group_norm, self.layer_norm = tnn.GroupNorm(2, 8), tnn.LayerNorm(8)
      self.embed, self.fc = tnn.Embedding(5, 8), tnn.Linear(8, 3)

    def forward(self, x, tokens):
      x = self.group_norm(self.grouped(self.stem(x))).mean((2, 3))
      return self.fc(self.layer_norm(x + self.embed(tokens)))

  torch.manual_seed(0)
  peer = Peer()
  with torch.no_grad():
    for parameter in peer.parameters():
      parameter.normal_()
  x = np.random.default_rng(0).normal(size=(4, size, size, 3)).astype(np.float32)
  tokens = np.array([0, 3, 4, 3])
  images = torch.from_numpy(x).permute(0, 3, 1, 2)
  peer(images, torch.from_numpy(tokens))  # moves the running statistics
  expected = peer.eval()(images, torch.from_numpy(tokens)).detach().numpy()
  x, tokens = jnp.asarray(x), jnp.asarray(tokens)
  variables = jax.eval_shape(Network().init, key, x, tokens)
  found = convert_torch_weights(peer.state_dict(), MODULES, variables)
  assert jax.tree.map(lambda v: (v.shape, v.dtype), found) == jax.tree.map(lambda v: (v.shape, v.dtype), variables)
  np.testing.assert_allclose(jax.jit(Network().apply)(found, x, tokens), expected, rtol=1e-4, atol=1e-4)


def linear(**changes):
  """A layer 2 -> 3 called "fc" in torch and "head" here."""
  state = {"fc.weight": np.arange(6.0).reshape(3, 2), "fc.bias": np.zeros(3), **changes}
  shapes = {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)}
  return {name: value for name, value in state.items() if value is not None}, {"params": {"head": shapes}}


def test_a_linear_layer_is_transposed_and_a_kernel_has_its_axes_moved():
  state, variables = linear()
  found = convert_torch_weights(state, {"fc": "head"}, variables)
  np.testing.assert_array_equal(found["params"]["head"]["kernel"], [[0, 2, 4], [1, 3, 5]])
  weight = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
  shape = {"params": {"kernel": jax.ShapeDtypeStruct((4, 5, 3, 2), jnp.bfloat16)}}
  kernel = convert_torch_weights({"weight": weight}, {"": ""}, shape)["params"]["kernel"]
  assert kernel.dtype == jnp.bfloat16 and float(kernel[3, 4, 2, 0]) == weight[0, 2, 3, 4]


@pytest.mark.parametrize(
  "changes, modules, message",
  [
    ({"other.weight": np.zeros(2)}, {"fc": "head"}, "state has 'other.weight', but modules has no 'other'"),
    ({"fc.weight_g": np.zeros(2)}, {"fc": "head"}, "state has 'fc.weight_g', expected one of weight, bias"),
    ({}, {"fc": "tail"}, "variables has none of kernel, scale, embedding at 'params/tail'"),
    ({"fc.bias": None}, {"fc": "head"}, "state has nothing for params/head/bias"),
    ({"fc.weight": np.zeros((4, 2))}, {"fc": "head"}, r"'fc.weight' has shape \(2, 4\).*expected \(2, 3\)"),
    ({"a.bias": np.zeros(3)}, {"fc": "head", "a": "head"}, "'params/head/bias' has two counterparts"),
  ],
)
def test_what_has_no_counterpart_is_named(changes, modules, message):
  state, variables = linear(**changes)
  with pytest.raises(ValueError, match=message):
    convert_torch_weights(state, modules, variables)
