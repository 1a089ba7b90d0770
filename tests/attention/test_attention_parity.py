"""Attention, blocks, positions, experts and the Perceiver against torch's and transformers' modules, weights copied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes import attention as kinds
from mlnotes.attention import Mask, MultiHeadAttention, TransformerBlock
from mlnotes.nn.norm import LayerNorm

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

BATCH, LENGTH, WIDTH, HEADS = 2, 12, 16, 4
X = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
CAUSAL = torch.triu(torch.full((LENGTH, LENGTH), -1e9), 1)[None, None]


def dense(layer):
  """The parameters of a torch.nn.Linear in Flax's layout."""
  params = {"kernel": layer.weight.detach().numpy().T}
  return params if layer.bias is None else {**params, "bias": layer.bias.detach().numpy()}


def norm(layer):
  return {"scale": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}


def projections(query, key, value, out):
  return {"query": dense(query), "key": dense(key), "value": dense(value), "out": dense(out)}


def same(ours, theirs, atol=2e-5):
  np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=atol)


def torch_heads(layer):
  """Parameters of nn.MultiheadAttention, whose three matrices are one."""
  weights, biases = np.split(layer.in_proj_weight.detach().numpy(), 3), np.split(layer.in_proj_bias.detach().numpy(), 3)
  params = {n: {"kernel": w.T, "bias": b} for n, w, b in zip(("query", "key", "value"), weights, biases)}
  return {**params, "out": dense(layer.out_proj)}


@pytest.mark.parametrize("kind", ["dense", "blockwise"])
@pytest.mark.parametrize("causal", [False, True])
def test_scaled_dot_product_attention(kind, causal):
  """With fewer key heads than query heads, values and gradients. Both are causal from the upper left, T = S."""
  draw = np.random.default_rng(1)
  arrays = [draw.normal(size=(2, LENGTH, n, 8)).astype(np.float32) for n in (4, 2, 2)]
  weight = draw.normal(size=(2, LENGTH, 4, 8)).astype(np.float32)
  theirs = [torch.tensor(x.transpose(0, 2, 1, 3), requires_grad=True) for x in arrays]
  out = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=causal, enable_gqa=True)
  grads = torch.autograd.grad(out, theirs, torch.tensor(weight.transpose(0, 2, 1, 3)))
  attend = kinds.KINDS[kind].make(kinds.Sizes(LENGTH, window=5))
  found, pull = jax.vjp(lambda *a: attend(*a, Mask(causal=causal)), *map(jnp.asarray, arrays))
  same(found, out.transpose(1, 2))
  for ours, other in zip(pull(jnp.asarray(weight)), grads):
    same(ours, other.transpose(1, 2))


def test_multi_head_attention_to_a_context_with_padding():
  layer = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
  torch.nn.init.normal_(layer.in_proj_bias)
  context, lengths = X[:, :7] * 0.5 + 1, np.array([7, 4])
  padding = torch.tensor(np.arange(7)[None] >= lengths[:, None])
  expected, weights = layer(*map(torch.tensor, (X, context, context)), padding, average_attn_weights=False)
  module = MultiHeadAttention(HEADS, use_bias=True)
  found, sown = module.apply(
    {"params": torch_heads(layer)}, jnp.asarray(X), jnp.asarray(context), Mask(key_lengths=jnp.asarray(lengths)),
    mutable="weights",
  )  # fmt: skip
  same(found, expected)
  same(sown["weights"]["weights"][0], weights)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_encoder_layer(order):
  layer = torch.nn.TransformerEncoderLayer(
    WIDTH, HEADS, 24, 0.0, lambda x: torch.nn.functional.gelu(x, approximate="tanh"), batch_first=True,
    norm_first=order == "pre",
  )  # fmt: skip
  for parameter in layer.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
  expected = layer(torch.tensor(X), src_mask=CAUSAL[0, 0])
  attention, feed_forward = MultiHeadAttention(HEADS, use_bias=True), kinds.FeedForward(24)
  epsilon = lambda **options: LayerNorm(epsilon=1e-5, **options)
  block = TransformerBlock(attention, feed_forward, order=order, norm=epsilon)
  params = {
    "attention": torch_heads(layer.self_attn),
    "feed_forward": {"widen": dense(layer.linear1), "narrow": dense(layer.linear2)},
    "attention_norm": norm(layer.norm1),
    "feed_forward_norm": norm(layer.norm2),
  }
  same(block.apply({"params": params}, jnp.asarray(X), mask=Mask(causal=True)), expected, 5e-5)


def test_llama_turns_halves_and_shares_keys():
  from transformers import LlamaConfig
  from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

  config = LlamaConfig(hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=2, attn_implementation="eager")
  layer = LlamaAttention(config, 0).eval()
  angles = LlamaRotaryEmbedding(config)(torch.tensor(X), torch.arange(LENGTH)[None])
  expected, _ = layer(torch.tensor(X), angles, CAUSAL)
  module = MultiHeadAttention(HEADS, 2, rotary_base=config.rope_parameters["rope_theta"])
  params = projections(layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj)
  same(module.apply({"params": params}, jnp.asarray(X), mask=Mask(causal=True)), expected)


def test_gpt_j_turns_neighbours():
  from transformers import GPTJConfig
  from transformers.models.gptj.modeling_gptj import GPTJAttention, GPTJRotaryEmbedding

  config = GPTJConfig(
    n_embd=WIDTH, n_head=HEADS, rotary_dim=WIDTH // HEADS, n_positions=32, resid_pdrop=0, attn_pdrop=0
  )
  config._attn_implementation = "eager"
  layer = GPTJAttention(config, 0).eval()
  angles = GPTJRotaryEmbedding(config)(torch.tensor(X), torch.arange(LENGTH)[None].expand(BATCH, -1))
  expected = layer(torch.tensor(X), angles, attention_mask=CAUSAL)[0]
  module = MultiHeadAttention(HEADS, rotary_base=10000.0, rotary_form="interleaved")
  params = projections(layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj)
  same(module.apply({"params": params}, jnp.asarray(X), mask=Mask(causal=True)), expected)


@pytest.mark.parametrize("buckets, furthest", [(32, 128), (8, 9), (16, 40), (12, 100)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_puts_distances_into_buckets(buckets, furthest, bidirectional):
  from transformers.models.t5.modeling_t5 import T5Attention

  distance = np.arange(-300, 301)
  expected = T5Attention._relative_position_bucket(torch.tensor(distance), bidirectional, buckets, furthest)
  found = kinds.relative_buckets(jnp.asarray(distance), buckets, furthest, bidirectional)
  np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("heads", [8, 12])
def test_mpt_biases_by_distance(heads):
  """Its bias is the key's place times the slope, which differs by a number of each query: the softmax is the same."""
  from transformers import MptConfig
  from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor

  width = 2 * heads
  layer = MptAttention(MptConfig(d_model=width, n_heads=heads, max_seq_len=LENGTH), 0).eval()
  x = np.random.default_rng(2).normal(size=(1, LENGTH, width)).astype(np.float32)
  later = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1)[None, None]
  expected = layer(torch.tensor(x), build_mpt_alibi_tensor(heads, LENGTH), attention_mask=later)[0]
  parts = np.split(layer.Wqkv.weight.detach().numpy(), 3)
  params = {name: {"kernel": w.T} for name, w in zip(("query", "key", "value"), parts)}
  params["out"] = dense(layer.out_proj)
  bias = kinds.make_alibi(heads)
  same(MultiHeadAttention(heads).apply({"params": params}, jnp.asarray(x), None, Mask(causal=True), bias), expected)


def test_mixtral_routes_and_weighs_alike():
  """The router and its loss, k = 2. Its experts are gated: the same sum over chosen experts is taken of ours by hand.

  Its loss counts k where ours is 1, and takes means over layers before the product, so that it is of one layer here.
  """
  from transformers import MixtralConfig
  from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralTopKRouter, load_balancing_loss_func

  config = MixtralConfig(
    hidden_size=WIDTH, intermediate_size=6, num_local_experts=5, num_experts_per_tok=2, hidden_act="gelu_pytorch_tanh"
  )
  router, experts = MixtralTopKRouter(config), MixtralExperts(config)
  for parameter in (router.weight, experts.gate_up_proj, experts.down_proj):
    torch.nn.init.normal_(parameter)
  flat = torch.tensor(X.reshape(-1, WIDTH))
  logits, weights, chosen = router(flat)
  found = kinds.route(jnp.asarray(logits.detach().numpy()), 2)
  np.testing.assert_array_equal(found.expert, chosen)
  same(found.weight, weights)
  real = np.arange(LENGTH)[None] < np.array([[LENGTH], [5]])
  for mask in (None, real):
    expected = load_balancing_loss_func((logits,), 5, 2, None if mask is None else torch.tensor(mask).long())
    ours = kinds.balance_loss(found, None if mask is None else jnp.asarray(mask.reshape(-1)))
    same(2 * ours, expected)
  # An up-projection that gives ones makes gated experts plain ones.
  flat = torch.cat([flat[:, :-1], torch.ones(len(flat), 1)], 1)
  with torch.no_grad():
    experts.gate_up_proj[:, 6:] = 0
    experts.gate_up_proj[:, 6:, -1] = 1
  expected = experts(flat, chosen, weights)
  widen = experts.gate_up_proj[:, :6].detach().numpy().transpose(0, 2, 1)
  narrow = experts.down_proj.detach().numpy().transpose(0, 2, 1)
  same(
    kinds.apply_dropless(*map(jnp.asarray, (flat.numpy(),)), found, jnp.asarray(widen), jnp.asarray(narrow)),
    expected,
    1e-4,
  )


def test_longformer_sees_a_window_and_what_is_global():
  """Its window of 4 is two tokens on each side and the token, our window of 3.

  Its global tokens have projections of their own, here equal to the others.
  """
  from transformers import LongformerConfig
  from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

  config = LongformerConfig(
    hidden_size=WIDTH, num_attention_heads=HEADS, attention_window=[4], attention_probs_dropout_prob=0.0
  )
  layer = LongformerSelfAttention(config, 0).eval()
  for name in ("query", "key", "value"):
    getattr(layer, f"{name}_global").load_state_dict(getattr(layer, name).state_dict())
  eye = {"kernel": np.eye(WIDTH, dtype=np.float32), "bias": np.zeros(WIDTH, np.float32)}
  params = {**{name: dense(getattr(layer, name)) for name in ("query", "key", "value")}, "out": eye}
  for count, kind in ((0, kinds.local_attention), (1, kinds.global_attention)):
    first = torch.zeros(BATCH, LENGTH)
    first[:, :count] = 10000.0
    expected = layer(torch.tensor(X), first, first < 0, first > 0, count > 0)[0]
    module = MultiHeadAttention(HEADS, kind=kind, use_bias=True)
    same(module.apply({"params": params}, jnp.asarray(X), mask=Mask(window=3)), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_reformer_in_one_chunk(causal):
  """Where it needs no chunks it is dense attention of queries to themselves as keys of norm 1, oneself last.

  In chunks it is not the paper's: tokens see the others of a chunk in whatever bucket, the first chunk sees the last
  one, and what several rounds show counts as often.
  """
  from transformers import ReformerConfig
  from transformers.models.reformer.modeling_reformer import LSHSelfAttention

  config = ReformerConfig(
    hidden_size=WIDTH, num_attention_heads=HEADS, attention_head_size=4, lsh_attn_chunk_length=LENGTH, num_hashes=1,
    num_buckets=2, is_decoder=causal, lsh_attention_probs_dropout_prob=0.0,
  )  # fmt: skip
  layer = LSHSelfAttention(config, 0).eval()
  for parameter in layer.parameters():
    torch.nn.init.normal_(parameter)
  expected = layer(torch.tensor(X), num_hashes=1).hidden_states
  split = lambda layer: jnp.asarray((X @ layer.weight.detach().numpy().T).reshape(BATCH, LENGTH, HEADS, 4))
  query, value = split(layer.query_key), split(layer.value)
  buckets = jnp.zeros((1, BATCH, HEADS, LENGTH), jnp.int32)
  out = kinds.lsh_attention(query, value, buckets, Mask(causal=causal), chunk=LENGTH)
  same(out.reshape(BATCH, LENGTH, WIDTH), expected, 1e-4)


def test_perceiver():
  """Its layers with ours in between, and its positions, which stand in another order."""
  from transformers import PerceiverConfig
  from transformers.models.perceiver.modeling_perceiver import (
    PerceiverEncoder,
    build_linear_positions,
    generate_fourier_features,
  )

  config = PerceiverConfig(
    num_latents=5, d_latents=8, num_blocks=1, num_self_attends_per_block=2, num_self_attention_heads=2,
    num_cross_attention_heads=1, hidden_act="gelu_pytorch_tanh", attention_probs_dropout_prob=0.0,
    self_attention_widening_factor=4, cross_attention_widening_factor=4, qk_channels=8, v_channels=8,
  )  # fmt: skip
  encoder = PerceiverEncoder(config, kv_dim=WIDTH).eval()
  latents = np.random.default_rng(3).normal(size=(5, 8)).astype(np.float32)
  start = torch.tensor(latents)[None].expand(BATCH, -1, -1)
  expected = encoder(start, inputs=torch.tensor(X)).last_hidden_state

  def layer(theirs):
    attention, mlp = theirs.attention, theirs.mlp
    heads = projections(attention.self.query, attention.self.key, attention.self.value, attention.output.dense)
    return attention.self, heads, {"widen": dense(mlp.dense1), "narrow": dense(mlp.dense2)}, norm(theirs.layernorm)

  epsilon = lambda **options: LayerNorm(epsilon=1e-5, **options)
  own, heads, network, last = layer(encoder.cross_attention)
  apply = lambda module, params, *a: module.apply({"params": params}, *a)
  normed = lambda params, x: apply(epsilon(), params, x)
  cross = MultiHeadAttention(1, use_bias=True)
  z, x = jnp.broadcast_to(jnp.asarray(latents)[None], (BATCH, 5, 8)), jnp.asarray(X)
  z = z + apply(cross, heads, normed(norm(own.layernorm1), z), normed(norm(own.layernorm2), x))
  z = z + apply(kinds.FeedForward(), network, normed(last, z))
  stack = kinds.Transformer(2, 2, 8, norm=epsilon)
  params = {"last_norm": {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}}
  for i, theirs in enumerate(encoder.self_attends):
    own, heads, network, last = layer(theirs)
    params[f"block{i}"] = {
      "attention": heads, "feed_forward": network, "attention_norm": norm(own.layernorm1), "feed_forward_norm": last,
    }  # fmt: skip
  found = apply(stack, params, z)
  theirs = torch.nn.functional.layer_norm(expected, (8,), eps=1e-5)
  same(found, theirs, 5e-5)

  places = build_linear_positions((3, 4)).reshape(1, 12, 2)
  features = generate_fourier_features(places, 5, (3, 4))[0].numpy()
  ours = kinds.fourier_positions((3, 4), 5)
  order = [*range(2, 7), *range(12, 17), 0, *range(7, 12), *range(17, 22), 1]
  np.testing.assert_allclose(ours, features[:, order], atol=1e-5)
