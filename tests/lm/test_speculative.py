"""Speculative decoding draws from the large model's distribution: against enumeration, with temperature and top-k."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mlnotes.lm.speculative import check_draft, expected_tokens, next_distribution, speculative_generate

VOCABULARY, DRAWS = 4, 100_000
NOISE = np.random.default_rng(0)
# The next token hangs on the one before it.
SMALL, LARGE = (jnp.asarray(NOISE.normal(size=(VOCABULARY, VOCABULARY)) * 1.5, jnp.float32) for _ in range(2))
PROMPT = jnp.array([1, 2])


def model(table):
  return lambda tokens, length: table[tokens]


def test_distributions_are_those_after_temperature_and_top_k():
  logits = jnp.array([[1.0, 3.0, 2.0, -1.0], [0.0, 0.0, 0.0, 5.0]])
  found = np.asarray(next_distribution(logits, 0.5, 2))
  np.testing.assert_allclose(found[0], [0, 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2)), 0], rtol=1e-5)
  assert np.all(found[1, :3] > 0)  # as likely as the second: none is left out
  np.testing.assert_array_equal(next_distribution(logits, 0.0), [[0, 1, 0, 0], [0, 0, 0, 1]])
  with pytest.raises(ValueError, match="top_k is 0"):
    next_distribution(logits, 1.0, 0)


@pytest.mark.parametrize("temperature, top_k", [(1.0, None), (0.7, 3), (1.5, 2)])
def test_what_is_drawn_is_what_the_large_model_draws(temperature, top_k):
  """Three tokens of 100,000 sequences, drafted two at a time, against the probabilities of all 64: chi-square."""
  run = lambda key: speculative_generate(key, model(SMALL), model(LARGE), PROMPT, 3, 2, temperature, top_k).tokens[2:]
  found = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), DRAWS)))
  table = np.asarray(next_distribution(LARGE, temperature, top_k), np.float64)
  table /= table.sum(1, keepdims=True)
  counts, expected = [], []
  for words in itertools.product(range(VOCABULARY), repeat=3):
    counts.append(np.sum(np.all(found == words, 1)))
    expected.append(DRAWS * np.prod([table[a, b] for a, b in zip((2, *words), words)]))
  counts, expected = np.array(counts), np.array(expected)
  assert np.all(counts[expected == 0] == 0)
  some = expected > 5
  few = np.sum(expected[~some])
  if few > 5:
    counts, expected = np.append(counts[some], counts[~some].sum()), np.append(expected[some], few)
  else:
    counts, expected = counts[some], expected[some]
  assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


def test_a_draft_of_the_large_model_itself_is_accepted_whole():
  run = lambda key: speculative_generate(key, model(LARGE), model(LARGE), PROMPT, 9, 2, 0.8, 3)
  found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 300))
  assert np.all(found.accepted == found.drafted) and np.all(found.rounds == 3)


def test_greedy_output_is_the_large_models():
  found = speculative_generate(jax.random.key(0), model(SMALL), model(LARGE), PROMPT, 8, 3, 0.0)
  expected = [1, 2]
  for _ in range(8):
    expected.append(int(np.argmax(LARGE[expected[-1]])))
  np.testing.assert_array_equal(found.tokens, expected)


def test_the_residual_and_the_rate_of_acceptance():
  """One distribution whatever came before: a token is accepted with probability sum min(p, q)."""
  q, p = jnp.array([0.6, 0.3, 0.1, 0.0]), jnp.array([0.2, 0.3, 0.1, 0.4])
  size, rate = 3, 0.2 + 0.3 + 0.1

  def run(key):
    of_draft, of_check = jax.random.split(key)
    draft = jax.random.categorical(of_draft, jnp.log(q), shape=(size,))
    return draft, check_draft(of_check, draft, jnp.broadcast_to(q, (size, 4)), jnp.broadcast_to(p, (size + 1, 4)))

  draft, found = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 40000)))
  kept = found.count - 1
  expected = [rate**k * (1 - rate) for k in range(size)] + [rate**size]
  assert stats.chisquare(np.bincount(kept, minlength=4), 40000 * np.array(expected)).pvalue > 1e-3
  mean = float(expected_tokens(rate, size))
  assert mean == pytest.approx((1 - rate**4) / (1 - rate), rel=1e-5)
  assert abs(found.count.mean() - mean) < 3 * found.count.std() / 200
  assert float(expected_tokens(1.0, size)) == 4
  for k in range(size):
    refused = kept == k
    np.testing.assert_array_equal(found.tokens[refused, :k], draft[refused, :k])
    assert np.all(found.tokens[refused, k] == 3)  # max(p - q, 0) holds nothing else
  last = np.bincount(found.tokens[kept == size, size], minlength=4)
  assert stats.chisquare(last, last.sum() * np.array([0.2, 0.3, 0.1, 0.4])).pvalue > 1e-3


def test_it_ends_with_end():
  run = lambda key: speculative_generate(key, model(SMALL), model(LARGE), PROMPT, 12, 4, end=3)
  found = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(2), 500)))
  assert found.tokens.shape == (500, 14)
  for tokens, length in zip(found.tokens, found.length):
    new = tokens[2:length]
    assert 3 not in new[:-1] and (new[-1] == 3 or length == 14) and not tokens[length:].any()
  table = np.asarray(next_distribution(LARGE), np.float64)
  # How likely 12 tokens without END are: powers of the table without its row and column.
  state, rest = np.eye(4)[2], table.copy()
  rest[:, 3] = rest[3] = 0
  for _ in range(12):
    state = state @ rest
  cut = np.mean([3 not in tokens[2:length] for tokens, length in zip(found.tokens, found.length)])
  assert abs(cut - state.sum()) < 4 * np.sqrt(max(state.sum(), 1e-3) / 500)
  with pytest.raises(ValueError, match="new is 0, drafted 4"):
    speculative_generate(jax.random.key(0), model(SMALL), model(LARGE), PROMPT, 0)
