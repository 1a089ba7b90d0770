"""XLNet's leak test: no prediction depends on its own token, nor on one that comes later in the order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import MultiHeadAttention, TokenModel, Transformer
from mlnotes.lm.permutation import permute, two_stream_attention
from mlnotes.lm.vocabulary import Vocabulary

VOCABULARY = Vocabulary(20, (0, 1, 2), mask=2, pad=0)
LENGTH = 8
TOKENS = np.random.default_rng(0).integers(3, 20, (600, LENGTH))
TOKENS[:, 0], TOKENS[:, 5] = 1, 1  # marks
LENGTHS = np.where(np.arange(600) % 3, LENGTH, LENGTH - 2)


@pytest.fixture(scope="module", params=[False, True], ids=["context at once", "context in order"])
def permuted(request):
  draw = lambda key: permute(key, jnp.asarray(TOKENS), VOCABULARY, jnp.asarray(LENGTHS), 0.5, request.param)
  found = jax.jit(draw)(jax.random.key(0))
  arrays = [x if name == "mask" else np.asarray(x) for name, x in found._asdict().items()]
  return type(found)(*arrays), request.param


def test_the_last_of_the_order_are_predicted(permuted):
  found, ordered = permuted
  words = (TOKENS > 2) & (np.arange(LENGTH)[None] < LENGTHS[:, None])
  assert found.targets.shape == (600, LENGTH // 2)
  count = found.weights.sum(1).astype(int)
  np.testing.assert_array_equal(count, words.sum(1) // 2)  # 6 of 8, 4 of 6 are words
  predicted = np.zeros((600, LENGTH), bool)
  for b in range(600):
    places = found.places[b, : count[b]]
    assert words[b, places].all() and len(set(places)) == count[b]
    np.testing.assert_array_equal(found.targets[b, : count[b]], TOKENS[b, places])
    assert np.all(np.diff(found.order[b, places]) == 1)
    predicted[b, places] = True
    context = np.flatnonzero(~predicted[b] & (np.arange(LENGTH) < LENGTHS[b]))
    assert found.order[b, context].max() < found.order[b, places].min()
    assert len(set(found.order[b, context])) == (len(context) if ordered else 1)
  np.testing.assert_array_equal(found.inputs[:, :LENGTH], TOKENS)
  assert np.all(found.inputs[:, LENGTH:] == 2)
  # Each word of the full rows is predicted at one rate, the first and the last like any other.
  rate = predicted[LENGTHS == LENGTH].mean(0)[[1, 2, 3, 4, 6, 7]]
  assert np.all(np.abs(rate - 0.5) < 4 * 0.5 / np.sqrt(400))
  first = found.places[LENGTHS == LENGTH, 0]
  assert set(first) == {1, 2, 3, 4, 6, 7}


def test_nothing_leaks(permuted):
  """d logit_i / d content_j = 0 unless j comes before i, through two layers; and where it does, it is not 0."""
  found, _ = permuted
  rows = slice(0, 6)
  some = jax.tree.map(lambda x: jnp.asarray(x[rows]), found)
  stack = Transformer(2, 2, 8, rotary_base=10.0)
  size = LENGTH + found.targets.shape[1]
  x = jax.random.normal(jax.random.key(1), (6, size, 8))
  variables = stack.init(jax.random.key(2), x)
  weight = jnp.cos(jnp.arange(8.0))[None, None]
  said = lambda x: jnp.sum(stack.apply(variables, x, mask=some.mask) * weight, -1)
  # Row by row: rows do not see each other, so that one backward pass serves all.
  pull = jax.jit(lambda x, i: jax.grad(lambda x: jnp.sum(said(x)[:, i]))(x))
  depends = np.stack([np.any(np.asarray(pull(x, i)) != 0, -1) for i in range(size)], 1)  # (B, said, read)
  for b in range(6):
    order, real = found.order[b], np.arange(LENGTH) < LENGTHS[b]
    for k, place in enumerate(found.places[b]):
      if not found.weights[b, k]:
        continue
      expected = np.zeros(size, bool)
      expected[:LENGTH] = (order < order[place]) & real
      expected[LENGTH + k] = True  # itself: it knows its place
      np.testing.assert_array_equal(depends[b, LENGTH + k], expected)
      assert not depends[b, LENGTH + k, place]  # its own content
    for i in np.flatnonzero(real):
      np.testing.assert_array_equal(depends[b, i, :LENGTH], (order <= order[i]) & real)
      assert not depends[b, i, LENGTH:].any()  # no one reads a query


def test_the_joined_sequence_is_two_streams(permuted):
  """One layer of both, with turned queries and keys, against the two streams by themselves."""
  found, _ = permuted
  some = jax.tree.map(lambda x: jnp.asarray(x[1:3]), found)  # without padding, every query meant but the last
  content, query = (jax.random.normal(jax.random.key(i), (2, n, 8)) for i, n in enumerate((LENGTH, 4)))
  module = MultiHeadAttention(2, rotary_base=10.0)
  variables = module.init(jax.random.key(2), content)
  joined = module.apply(variables, jnp.concatenate([content, query], 1), None, some.mask)
  attention = lambda x, context, mask: module.apply(variables, x, context, mask)
  h, g = two_stream_attention(attention, content, query, some.order, some.places)
  np.testing.assert_allclose(joined[:, :LENGTH], h, atol=1e-6)
  asked = found.weights[1:3] == 1
  np.testing.assert_allclose(np.asarray(joined[:, LENGTH:])[asked], np.asarray(g)[asked], atol=1e-6)


def test_an_ordinary_model_takes_it():
  """Queries are told apart by their places alone, and its parameters are those of the model of plain text."""
  model = TokenModel(20, 2 * LENGTH, Transformer(1, 2, 8))
  some = permute(jax.random.key(3), jnp.asarray(TOKENS[1:2]), VOCABULARY, share=0.3)
  variables = model.init(jax.random.key(0), some.inputs, some.mask)
  plain = model.init(jax.random.key(0), some.inputs[:, :LENGTH])
  assert jax.tree.structure(variables) == jax.tree.structure(plain)
  logits = model.apply(variables, some.inputs, some.mask)[0, LENGTH:]
  assert not np.allclose(logits[0], logits[1], atol=1e-4)
  with pytest.raises(ValueError, match="share is"):
    permute(jax.random.key(0), jnp.asarray(TOKENS[:2]), VOCABULARY, share=1.5)
