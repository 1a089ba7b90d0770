"""Dropout of attention's weights: what is dropped, what is left, where it is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import (
  DroppedAttention,
  Mask,
  MultiHeadAttention,
  Transformer,
  compute_weights,
  dot_product_attention,
)

RATE = 0.25


def test_weights_are_dropped_or_scaled_and_their_mean_is_what_they_were():
  """Of unit vectors as values the output is the weights; the draws are the rows of a batch."""
  draws, tokens, heads = 4000, 3, 2
  query, key = (jax.random.normal(jax.random.key(i), (1, tokens, heads, 4)) for i in range(2))
  query, key = (jnp.broadcast_to(x, (draws, *x.shape[1:])) for x in (query, key))
  units = jnp.broadcast_to(jnp.eye(tokens)[None, :, None], (draws, tokens, heads, tokens))
  mask = Mask(causal=True)
  dropped = DroppedAttention(RATE)
  out = dropped.apply({}, query, key, units, mask, None, True, rngs={"dropout": jax.random.key(2)})
  found = np.swapaxes(np.asarray(out), 1, 2)
  whole = np.asarray(compute_weights(dot_product_attention, query[:1], key[:1], mask))[0]
  kept = found != 0
  np.testing.assert_allclose(found[kept], np.broadcast_to(whole / (1 - RATE), found.shape)[kept], rtol=1e-5)
  seen = np.tril(np.ones((tokens, tokens), bool))
  assert not kept[..., ~seen].any()
  np.testing.assert_allclose(kept.mean(0)[:, seen], 1 - RATE, atol=4 * np.sqrt(RATE * (1 - RATE) / draws))
  np.testing.assert_array_equal(
    dropped.apply({}, query, key, units, mask), dot_product_attention(query, key, units, mask)
  )


def test_a_transformer_drops_in_training_alone_in_both_of_its_attentions():
  x, context = (jax.random.normal(jax.random.key(i), (2, 5, 8)) for i in range(2))
  plain, dropping = (Transformer(1, 2, 8, cross=True, attention_dropout=rate) for rate in (0.0, 0.5))
  variables = plain.init(jax.random.key(2), x, context)
  assert jax.tree.structure(dropping.init(jax.random.key(2), x, context)) == jax.tree.structure(variables)
  call = lambda model, train, seed, variables=variables: model.apply(
    variables, x, context, train=train, rngs={"dropout": jax.random.key(seed)}
  )
  np.testing.assert_array_equal(call(dropping, False, 0), call(plain, True, 0))
  assert not np.allclose(call(dropping, True, 0), call(dropping, True, 1))
  # What the one attention gives does not reach the output: the other one is seen to drop.
  for silent in ("attention", "cross_attention"):
    block = variables["params"]["block0"]
    zeros = jax.tree.map(jnp.zeros_like, block[silent])
    alone = {"params": {**variables["params"], "block0": {**block, silent: zeros}}}
    assert not np.allclose(call(dropping, True, 0, alone), call(dropping, True, 1, alone)), silent


def test_other_kinds_are_not_dropped_unawares():
  model = Transformer(1, 2, 8, make_kind=lambda layer: dot_product_attention, attention_dropout=0.1)
  with pytest.raises(ValueError, match=r"attention_dropout is 0\.1, expected 0"):
    model.init(jax.random.key(0), jnp.zeros((1, 2, 8)))


def test_a_layer_takes_it_as_a_kind():
  x = jax.random.normal(jax.random.key(0), (1, 4, 8))
  layer = MultiHeadAttention(2, kind=DroppedAttention(0.5))
  variables = layer.init(jax.random.key(1), x)
  first = layer.apply(variables, x, train=True, rngs={"dropout": jax.random.key(2)})
  assert not np.allclose(first, layer.apply(variables, x))
