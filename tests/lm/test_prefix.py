"""UniLM's masks: who sees whom, in a network and as matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import Mask, TokenModel, Transformer
from mlnotes.lm.prefix import BACKWARD, BIDIRECTIONAL, FORWARD, PREFIX, continue_prefix, draw_reading, prefix_mask

ROWS, LENGTH = 2400, 7
SOURCES = np.arange(ROWS) % 6 + 1
LENGTHS = np.where(np.arange(ROWS) % 2, 7, 6)


def expect(kind, source, length):
  """Entry by entry."""
  seen = np.zeros((LENGTH, LENGTH), bool)
  for i, j in np.ndindex(length, length):
    forward = j <= i
    seen[i, j] = {
      BIDIRECTIONAL: True, FORWARD: forward, BACKWARD: j >= i, PREFIX: j < source or (forward and i >= source)
    }[kind]  # fmt: skip
  return seen


@pytest.mark.parametrize("shares", [(1 / 3, 1 / 3, 0.0, 1 / 3), (1 / 3, 1 / 6, 1 / 6, 1 / 3)])
def test_each_row_is_read_in_one_of_the_ways(shares):
  sources, lengths = jnp.asarray(SOURCES), jnp.asarray(LENGTHS)
  draw = jax.jit(lambda key: draw_reading(key, sources, LENGTH, lengths, shares))
  found = draw(jax.random.key(0))
  kind, matrix = np.asarray(found.kind), np.asarray(found.mask.matrix(ROWS, LENGTH, LENGTH))
  rates = np.bincount(kind, minlength=4) / ROWS
  assert np.all(np.abs(rates - shares) < 3 * np.sqrt(np.array(shares) * (1 - np.array(shares)) / ROWS) + 1e-9)
  for row in range(200):
    np.testing.assert_array_equal(matrix[row], expect(kind[row], SOURCES[row], LENGTHS[row]))
  assert found.mask.query_positions is None  # the network still tells places apart as it always does


def test_a_network_reads_under_it():
  """What changes behind a place moves nothing where that is not seen, through two layers, with learned positions."""
  model = TokenModel(11, LENGTH, Transformer(2, 2, 8), "learned")
  tokens = jnp.arange(LENGTH)[None]
  variables = model.init(jax.random.key(0), tokens)
  run = jax.jit(lambda tokens: model.apply(variables, tokens, prefix_mask(jnp.array([3]), LENGTH))[0])
  base, depends = run(tokens), np.zeros((LENGTH, LENGTH), bool)
  for j in range(LENGTH):
    depends[:, j] = np.any(np.abs(run(tokens.at[0, j].set(9)) - base) > 1e-6, -1)
  np.testing.assert_array_equal(depends, expect(PREFIX, 3, LENGTH))
  # With all in the source, or nothing, it is the plain encoder and the plain decoder.
  for source, causal in ((LENGTH, False), (0, True)):
    mask = prefix_mask(jnp.array([source]), LENGTH)
    expected = model.apply(variables, tokens, Mask(causal=causal))
    np.testing.assert_allclose(model.apply(variables, tokens, mask), expected, atol=1e-6)


def test_a_prefix_model_says_what_is_behind_the_source():
  tokens = jnp.arange(10, 18).reshape(1, 8).repeat(3, 0)
  found = continue_prefix(tokens, jnp.array([3, 0, 1]), jnp.array([8, 5, 6]))
  np.testing.assert_array_equal(found.inputs[0], np.arange(10, 17))
  np.testing.assert_array_equal(found.targets[0], np.arange(11, 18))
  np.testing.assert_array_equal(found.weights, [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]])
  seen = np.asarray(found.mask.matrix(3, 7, 7))
  # No said token is seen from the place that says it, nor anything behind it.
  for b, i in zip(*np.nonzero(found.weights)):
    assert not seen[b, i, i + 1 :].any() and seen[b, i, : i + 1].all()


def test_shares_that_are_none_are_refused():
  with pytest.raises(ValueError, match="shares is"):
    draw_reading(jax.random.key(0), jnp.array([1]), 4, shares=(0.0, 0.0, 0.0, 0.0))
