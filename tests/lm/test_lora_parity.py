"""LoRA against peft on layers with the same numbers: outputs, gradients, merged weights, and how many are trained."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.lm.lora import apply_lora, init_lora, lora_layers, merge
from mlnotes.lm.trainable import count_parameters

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

RANK, ALPHA, WIDTH = 4, 32, 6


class Torch(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.query, self.key, self.value = (torch.nn.Linear(WIDTH, size) for size in (5, 7, 5))

  def forward(self, x):
    return torch.tanh(self.query(x)) * self.value(x) + self.key(x).sum(-1, keepdim=True)


class Flax(nn.Module):
  @nn.compact
  def __call__(self, x):
    query, key, value = (nn.Dense(size, name=name)(x) for name, size in (("query", 5), ("key", 7), ("value", 5)))
    return jnp.tanh(query) * value + jnp.sum(key, -1, keepdims=True)


@pytest.fixture(scope="module")
def both():
  """(peft's model, our parameters, our factors), with B drawn."""
  torch.manual_seed(0)
  base = Torch()
  params = {
    name: {"kernel": jnp.asarray(layer.weight.detach().numpy().T), "bias": jnp.asarray(layer.bias.detach().numpy())}
    for name, layer in base.named_children()
  }
  config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["query", "value"], lora_dropout=0.0)
  theirs = peft.get_peft_model(base, config)
  lora = {}
  for name in ("query", "value"):
    layer = getattr(theirs.base_model.model, name)
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
    a, b = (x["default"].weight.detach().numpy() for x in (layer.lora_A, layer.lora_B))
    lora[name] = {"kernel": {"lora_a": jnp.asarray(a.T), "lora_b": jnp.asarray(b.T)}}
  return theirs, params, lora


X = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)


def test_outputs_and_gradients(both):
  theirs, params, lora = both
  expected = theirs(torch.tensor(X))
  found = Flax().apply({"params": apply_lora(params, lora, ALPHA)}, jnp.asarray(X))
  np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)
  with lora_layers(lora, ALPHA):
    np.testing.assert_allclose(Flax().apply({"params": params}, jnp.asarray(X)), found, atol=1e-5)
  expected.square().sum().backward()
  loss = lambda lora: jnp.sum(Flax().apply({"params": apply_lora(params, lora, ALPHA)}, jnp.asarray(X)) ** 2)
  grads = jax.grad(loss)(lora)
  for name in ("query", "value"):
    layer = getattr(theirs.base_model.model, name)
    for side, part in (("lora_a", layer.lora_A), ("lora_b", layer.lora_B)):
      expected_grad = part["default"].weight.grad.numpy().T
      np.testing.assert_allclose(grads[name]["kernel"][side], expected_grad, rtol=1e-4, atol=1e-4)


def test_as_many_parameters_train_and_they_start_alike(both):
  theirs, _, lora = both
  assert theirs.get_nb_trainable_parameters()[0] == count_parameters(lora)
  drawn = init_lora(jax.random.key(0), {"query": {"kernel": jnp.zeros((400, 300))}}, 50)["query"]["kernel"]
  layer = torch.nn.Sequential(torch.nn.Linear(400, 300))
  layer = peft.get_peft_model(layer, peft.LoraConfig(r=50, target_modules=["0"])).base_model.model[0]
  a, b = layer.lora_A["default"].weight.detach().numpy(), layer.lora_B["default"].weight
  assert not torch.any(b != 0) and not np.any(drawn["lora_b"])
  for pick in (np.std, np.max, np.min):
    assert pick(drawn["lora_a"]) == pytest.approx(pick(a), rel=0.02)


def test_merged_weights(both):
  theirs, params, lora = both
  merged = merge(params, lora, ALPHA)
  plain = theirs.merge_and_unload()
  for name, layer in plain.named_children():
    np.testing.assert_allclose(merged[name]["kernel"], layer.weight.detach().numpy().T, atol=1e-6)
