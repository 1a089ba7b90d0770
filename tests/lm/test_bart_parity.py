"""The form of BART and of mBART against transformers' models of random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.lm import make_bart

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

VOCABULARY, LENGTH = 20, 7
SIZES = dict(
  vocab_size=VOCABULARY, max_position_embeddings=LENGTH, d_model=8, encoder_layers=2, decoder_layers=1,
  encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12,
)  # fmt: skip
THEIRS = {
  "attention": ("self_attn", "self_attn_layer_norm"),
  "cross_attention": ("encoder_attn", "encoder_attn_layer_norm"),
}


def parameters(model, order):
  """Theirs by our names; the first two places of their tables are of no token."""
  arrays = {name.removeprefix("model."): value.numpy() for name, value in model.state_dict().items()}
  dense = lambda name: {"kernel": arrays[f"{name}.weight"].T, "bias": arrays[f"{name}.bias"]}
  norm = lambda name: {"scale": arrays[f"{name}.weight"], "bias": arrays[f"{name}.bias"]}
  found = {"embed": {"embedding": arrays["shared.weight"]}}
  for side, depth in (("encoder", 2), ("decoder", 1)):
    found[f"{side}_positions"] = {"embedding": arrays[f"{side}.embed_positions.weight"][2:]}
    found[f"{side}_embed_norm"] = norm(f"{side}.layernorm_embedding")
    found[side] = {"last_norm": norm(f"{side}.layer_norm")} if order == "pre" else {}
    for i in range(depth):
      theirs = f"{side}.layers.{i}"
      block = {
        "feed_forward": {"widen": dense(f"{theirs}.fc1"), "narrow": dense(f"{theirs}.fc2")},
        "feed_forward_norm": norm(f"{theirs}.final_layer_norm"),
      }
      for name, (attention, of_norm) in list(THEIRS.items())[: 1 if side == "encoder" else 2]:
        parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
        block[name] = {ours: dense(f"{theirs}.{attention}.{their}") for ours, their in parts.items()}
        block[f"{name}_norm"] = norm(f"{theirs}.{of_norm}")
      found[side][f"block{i}"] = block
  return found


@pytest.mark.parametrize("order", ["post", "pre"])
def test_logits_are_those_of_transformers(order):
  post = order == "post"
  config = (transformers.BartConfig if post else transformers.MBartConfig)(**SIZES, scale_embedding=False)
  make = transformers.BartForConditionalGeneration if post else transformers.MBartForConditionalGeneration
  torch.manual_seed(0)
  model = make(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.copy_(float("norm" in name and name.endswith("weight")) + 0.25 * torch.randn_like(parameter))
  module = make_bart(VOCABULARY, LENGTH, 2, 2, 8, decoder_depth=1, hidden=12, order=order)
  source = np.random.default_rng(0).integers(3, VOCABULARY, (3, LENGTH))
  target, lengths = source[:, ::-1][:, :5].copy(), np.array([7, 4, 6])
  seen = torch.tensor(np.arange(LENGTH)[None] < lengths[:, None]).long()
  with torch.no_grad():
    expected = model(torch.tensor(source), seen, torch.tensor(target)).logits.numpy()
  params = parameters(model, order)
  shapes = jax.eval_shape(module.init, jax.random.key(0), source, target)["params"]
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  found = jax.jit(module.apply)({"params": params}, source, target, jnp.asarray(lengths))
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert np.std(expected) > 0.1
