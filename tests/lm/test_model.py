"""The forms: published sizes, what each token may see, heads, positions, packed documents, experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import Mask
from mlnotes.lm import make_bart, make_bert, make_gpt2, make_llama, make_t5

VOCABULARY, LENGTH, SIZES = 11, 8, dict(vocabulary=11, length=8, depth=2, heads=2, width=8)
TOKENS = jax.random.randint(jax.random.key(0), (2, 6), 0, VOCABULARY)
DECODERS = {
  "learned": make_gpt2(**SIZES),
  "rotary": make_llama(**SIZES, kv_heads=1, tied=False),
  "alibi": make_gpt2(**SIZES).clone(position="alibi"),
  "relative": make_gpt2(**SIZES).clone(position="relative", buckets=6),
  "sinusoidal": make_gpt2(**SIZES).clone(position="sinusoidal"),
}


def start(module, *given, scale=10.0):
  """Variables whose matrices are far from 0, so that all that is seen counts."""
  variables = jax.jit(module.init)(jax.random.key(1), *(given or (TOKENS,)))
  return jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, variables)


def count(make, depth, *given, **sizes):
  """Parameters of a model of so many equal layers, from those of one and of two."""
  tokens = given or (jnp.zeros((1, 2), jnp.int32),)
  shapes = (jax.eval_shape(make(depth=d, **sizes).init, jax.random.key(0), *tokens) for d in (1, 2))
  one, two = (sum(x.size for x in jax.tree.leaves(found)) for found in shapes)
  return one + (depth - 1) * (two - one)


def test_published_sizes():
  """GPT-2 124M and medium, BERT base (with its masked head), t5-small, Llama 7B."""
  assert count(make_gpt2, 12) == 124_439_808
  assert count(make_gpt2, 24, heads=16, width=1024) == 354_823_168
  assert count(make_bert, 12) == 109_482_240 + 768 * 768 + 768 + 2 * 768 + 30522
  assert count(make_t5, 6, *(jnp.zeros((1, 2), jnp.int32),) * 2) == 60_506_624
  assert count(make_llama, 32, length=4096, heads=32, width=4096, hidden=11008, tied=False) == 6_738_415_616


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_sees_no_later_token(name):
  module = DECODERS[name]
  variables, read = start(module), jax.jit(module.apply)
  logits = read(variables, TOKENS)
  assert logits.shape == (2, 6, VOCABULARY) and logits.dtype == jnp.float32
  changed = read(variables, TOKENS.at[:, 3].add(1) % VOCABULARY)
  np.testing.assert_array_equal(logits[:, :3], changed[:, :3])
  assert np.all(np.any(np.abs(logits[:, 3:] - changed[:, 3:]) > 1e-3, -1))
  order = read(variables, TOKENS[:, ::-1])[:, -1]
  assert np.all(np.abs(order - logits[:, -1]).max(-1) > 1e-3)  # the same tokens in another order


@pytest.mark.parametrize("name", ["learned", "rotary", "alibi", "relative"])
def test_packed_documents_are_each_alone(name):
  """Segments and positions of their own: logits and gradients of one row are those of separate rows."""
  module = DECODERS[name]
  variables = start(module)
  segments, positions = jnp.array([[0, 0, 0, 0, 1, 1]]), jnp.array([[0, 1, 2, 3, 0, 1]])
  packed = Mask.of_self(causal=True, segments=segments, positions=positions)
  weight = jax.random.normal(jax.random.key(2), (1, 6, VOCABULARY))

  def together(variables):
    logits = module.apply(variables, TOKENS[:1], packed)
    return jnp.sum(logits * weight), logits

  def apart(variables):
    parts = [module.apply(variables, TOKENS[:1, part]) for part in (slice(0, 4), slice(4, 6))]
    logits = jnp.concatenate(parts, 1)
    return jnp.sum(logits * weight), logits

  (_, ours), grads = jax.jit(jax.value_and_grad(together, has_aux=True))(variables)
  (_, theirs), expected = jax.jit(jax.value_and_grad(apart, has_aux=True))(variables)
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), grads, expected)
  plain = module.apply(variables, TOKENS[:1])
  assert np.abs(plain[:, 4:] - ours[:, 4:]).max() > 1e-2


@pytest.mark.parametrize("name", ["learned", "rotary", "relative"])
def test_blocks_computed_again_change_nothing(name):
  module = DECODERS[name]
  again = module.clone(transformer=module.transformer.clone(remat=True))
  variables = start(module)
  loss = lambda module: jax.jit(jax.value_and_grad(lambda v: jnp.sum(jnp.square(module.apply(v, TOKENS)))))(variables)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), loss(module), loss(again))


def test_the_head_is_read_where_it_is_needed():
  for module in (DECODERS["learned"], DECODERS["rotary"], make_bert(**SIZES)):
    variables = start(module)
    hidden = module.apply(variables, TOKENS, method="hidden")
    some = module.apply(variables, hidden[:, 2], method="logits")
    np.testing.assert_allclose(some, module.apply(variables, TOKENS)[:, 2], atol=1e-5)
    embedded = module.apply(variables, TOKENS, method="embed_tokens")
    same = module.apply(variables, TOKENS, embedded=embedded, method="hidden")
    np.testing.assert_array_equal(hidden, same)


def test_an_encoder_sees_all_that_is_real_and_tells_types_apart():
  module = make_bert(**SIZES)
  variables = start(module, scale=3.0)
  mask = Mask.of_self(lengths=jnp.array([6, 4]))
  logits = module.apply(variables, TOKENS, mask)
  changed = module.apply(variables, TOKENS.at[:, 5].add(1) % VOCABULARY, mask)
  assert np.all(np.abs(logits[0] - changed[0]).max(-1) > 1e-4)
  np.testing.assert_array_equal(logits[1, :4], changed[1, :4])
  types = module.apply(variables, TOKENS, mask, types=jnp.ones_like(TOKENS))
  assert np.abs(types - logits)[0].max() > 1e-2
  np.testing.assert_array_equal(module.apply(variables, TOKENS, mask, types=jnp.zeros_like(TOKENS)), logits)
  pooled = module.apply(variables, module.apply(variables, TOKENS, mask, method="hidden"), method="pool")
  assert pooled.shape == (2, 8) and np.all(np.abs(pooled) <= 1)


@pytest.mark.parametrize("form", ["t5", "bart"])
def test_an_encoder_with_a_decoder(form):
  """No padding reaches anything, no later target either; token by token with a cache it is the same."""
  module = make_t5(VOCABULARY, 2, 2, 8, head_dim=4, buckets=8, furthest=9)
  module = make_bart(VOCABULARY, 6, 2, 2, 8) if form == "bart" else module
  source, target = TOKENS, TOKENS[:, :5]
  variables = start(module, source, target, scale=1.0 if form == "t5" else 10.0)
  lengths = jnp.array([6, 4])
  apply = jax.jit(module.apply)
  logits = apply(variables, source, target, lengths)
  changed = apply(variables, source.at[:, 5].add(1) % VOCABULARY, target, lengths)
  assert np.all(np.abs(logits[0] - changed[0]).max(-1) > 1e-5)
  np.testing.assert_allclose(logits[1], changed[1], atol=1e-6)
  later = apply(variables, source, target.at[:, 3].add(1) % VOCABULARY, lengths)
  np.testing.assert_allclose(logits[:, :3], later[:, :3], atol=1e-5)
  context = module.apply(variables, source, lengths, method="encode")

  @jax.jit
  def decode(one, cache):
    hidden, cache = module.apply(variables, one, context, lengths, cache=cache, method="decode")
    return module.apply(variables, hidden, method="logits"), cache

  cache, found = module.make_cache(2, 5), []
  for t in range(5):
    step, cache = decode(target[:, t : t + 1], cache)
    found.append(step)
  np.testing.assert_allclose(jnp.concatenate(found, 1), logits, atol=1e-4)


def test_a_decoder_is_told_where_its_tokens_stand():
  """By positions learned for it, which are 0, 1, ... where none are given; not by distances alone."""
  module = make_bart(VOCABULARY, 6, 1, 2, 8)
  variables = start(module, TOKENS, TOKENS)
  context = jax.random.normal(jax.random.key(2), (2, 6, 8))
  decode = jax.jit(lambda at: module.apply(variables, TOKENS[:, :3], context, positions=at, method="decode"))
  plain, moved = decode(None), decode(jnp.array([[3, 4, 5], [0, 1, 2]]))
  np.testing.assert_allclose(moved[1], plain[1], atol=1e-6)
  assert np.all(np.abs(moved[0] - plain[0]).max(-1) > 1e-3)
  with pytest.raises(ValueError, match="positions were learned for 6 tokens, found 7"):
    module.apply(variables, jnp.zeros((2, 7), jnp.int32), TOKENS)
  module = make_t5(VOCABULARY, 1, 2, 8, head_dim=4)
  with pytest.raises(ValueError, match="told of distances alone"):
    module.init(jax.random.key(0), TOKENS, context, positions=TOKENS, method="decode")


def test_weights_start_as_published():
  """.02, ahead of residual sums .02 / sqrt(2 layers); T5's queries carry the root that its scores lack."""
  params = jax.jit(make_gpt2(64, 16, 2, 4, 128).init)(jax.random.key(0), TOKENS)["params"]
  block = params["transformer"]["block1"]
  std = lambda x: float(jnp.std(x))
  for kernel in (params["embed"]["embedding"], block["attention"]["query"]["kernel"]):
    np.testing.assert_allclose(std(kernel), 0.02, rtol=0.05)
  for kernel in (block["attention"]["out"]["kernel"], block["feed_forward"]["narrow"]["kernel"]):
    np.testing.assert_allclose(std(kernel), 0.02 / 2, rtol=0.05)
  params = jax.jit(make_t5(64, 1, 4, 64, head_dim=32).init)(jax.random.key(0), TOKENS, TOKENS)["params"]
  attention = params["decoder"]["block0"]["cross_attention"]
  np.testing.assert_allclose(std(attention["query"]["kernel"]), (64 * 32) ** -0.5, rtol=0.05)
  np.testing.assert_allclose(std(attention["key"]["kernel"]), 64**-0.5, rtol=0.05)
  np.testing.assert_allclose(std(attention["out"]["kernel"]), 128**-0.5, rtol=0.05)


def test_experts_stand_in_every_block():
  module = make_llama(**SIZES, experts=3, experts_per_token=1)
  variables = module.init(jax.random.key(0), TOKENS)
  logits, sown = module.apply({"params": variables["params"]}, TOKENS, mutable="intermediates")
  assert len(jax.tree.leaves(sown)) == 6 and np.all(np.isfinite(logits))
  assert variables["params"]["transformer"]["block1"]["feed_forward"]["widen"].shape == (3, 8, 32)
  with pytest.raises(ValueError, match="experts_per_token is 4, expected 1 to experts=3"):
    make_gpt2(**SIZES, experts=3, experts_per_token=4)


def test_half_precision_keeps_parameters_and_logits_wide():
  module = make_gpt2(**SIZES, dtype=jnp.bfloat16)
  variables = start(module, scale=1.0)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  assert module.apply(variables, TOKENS, method="hidden").dtype == jnp.bfloat16
  logits = module.apply(variables, TOKENS)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, make_gpt2(**SIZES).apply(variables, TOKENS), atol=0.02)


def test_what_does_not_fit_is_one_sentence():
  module = DECODERS["learned"]
  variables = start(module)
  with pytest.raises(ValueError, match="positions were learned for 8 tokens, found 9"):
    module.apply(variables, jnp.zeros((1, 9), jnp.int32))
  twice = Mask.of_self(positions=jnp.arange(9)[None] % 8)  # two tokens at one place: there are enough
  assert np.all(np.isfinite(jax.jit(module.apply)(variables, jnp.zeros((1, 9), jnp.int32), twice)))
  with pytest.raises(ValueError, match="types were given to a model without"):
    module.apply(variables, TOKENS, types=TOKENS)
