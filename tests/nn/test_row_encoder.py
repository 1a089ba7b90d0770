"""The Transformer over rows against torch's, and what its two orders of norms are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn.row_encoder import RowEncoder


def init(order, **more):
  network = RowEncoder(order, depth=2, width=8, heads=2, **more)
  x = jax.random.normal(jax.random.key(1), (3, 4, 5, 1))
  return network, network.init(jax.random.key(0), x, train=False), x


def normalise(x):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_layers_that_add_nothing_leave_pre_norm_as_it_is_and_post_norm_normalised(order):
  network, variables, x = init(order)
  params = variables["params"]
  for layer in range(2):
    params[f"narrow{layer}"] = jax.tree.map(jnp.zeros_like, params[f"narrow{layer}"])
    out = params[f"attention{layer}"]["out"]
    params[f"attention{layer}"]["out"] = jax.tree.map(jnp.zeros_like, out)
  found = network.apply({"params": params}, x, train=False)
  rows = np.asarray(x).reshape(3, 4, 5) @ params["embed"]["kernel"] + params["place"]
  for _ in range(1 if order == "pre" else 4):
    rows = normalise(rows)
  np.testing.assert_allclose(found, rows.mean(1), atol=1e-5)


def test_features_times_the_head_are_the_logits():
  network, variables, x = init("post", num_classes=3)
  head = variables["params"]["head"]
  features = network.clone(num_classes=None).apply(variables, x, train=False)
  np.testing.assert_allclose(features @ head["kernel"], network.apply(variables, x, train=False), atol=1e-5)


@pytest.mark.parametrize("fields, words", [(dict(order="both"), "order is 'both'"), (dict(heads=3), "heads is 3")])
def test_what_cannot_be_is_one_sentence(fields, words):
  with pytest.raises(ValueError, match=words):
    RowEncoder(**fields)


@pytest.mark.parity
@pytest.mark.parametrize("order", ["pre", "post"])
def test_the_layers_are_torchs(order):
  torch = pytest.importorskip("torch")
  network, variables, x = init(order)
  params = jax.device_get(variables["params"])
  y = torch.tensor(np.asarray(x).reshape(3, 4, 5) @ params["embed"]["kernel"] + params["place"])
  for layer in range(2):
    own = torch.nn.TransformerEncoderLayer(8, 2, 32, 0.0, batch_first=True, norm_first=order == "pre")
    attention = params[f"attention{layer}"]
    stacked = np.concatenate([attention[name]["kernel"].reshape(8, 8).T for name in ("query", "key", "value")])
    state = {
      "self_attn.in_proj_weight": stacked, "self_attn.in_proj_bias": np.zeros(24),
      "self_attn.out_proj.weight": attention["out"]["kernel"].reshape(8, 8).T, "self_attn.out_proj.bias": np.zeros(8),
      "linear1.weight": params[f"widen{layer}"]["kernel"].T, "linear1.bias": np.zeros(32),
      "linear2.weight": params[f"narrow{layer}"]["kernel"].T, "linear2.bias": np.zeros(8),
      **{f"norm{i}.{name}": np.full(8, value) for i in (1, 2) for name, value in (("weight", 1.0), ("bias", 0.0))},
    }  # fmt: skip
    own.load_state_dict({name: torch.tensor(np.array(value), dtype=torch.float32) for name, value in state.items()})
    y = own(y)
  y = normalise(y.detach().numpy()) if order == "pre" else y.detach().numpy()
  np.testing.assert_allclose(network.apply(variables, x, train=False), y.mean(1), atol=2e-5)
