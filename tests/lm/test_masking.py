"""What masks hide and how often, against the rates of the papers; the boundary head against who it may look at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.lm.masking import BoundaryHead, mask_spans, mask_words
from mlnotes.lm.spans import geometric_lengths
from mlnotes.lm.vocabulary import Vocabulary

PAD, CLASSIFY, SEPARATE, MASK = 0, 1, 2, 3
VOCABULARY = Vocabulary(24, (PAD, CLASSIFY, SEPARATE, MASK), mask=MASK, pad=PAD)
ROWS, LENGTH = 3000, 20
LENGTHS = np.where(np.arange(ROWS) % 2, LENGTH, LENGTH - 4)
TOKENS = np.random.default_rng(0).integers(4, 24, (ROWS, LENGTH))
TOKENS[:, 0], TOKENS[:, 9], TOKENS[np.arange(ROWS), LENGTHS - 1] = CLASSIFY, SEPARATE, SEPARATE
TOKENS[np.arange(LENGTH)[None] >= LENGTHS[:, None]] = 7  # a word where padding is, so that lengths alone tell it
WORD = (TOKENS > MASK) & (np.arange(LENGTH)[None] < LENGTHS[:, None])
TOKENS.setflags(write=False)


def near(share, expected, count, sigmas=3.0):
  return abs(share - expected) < sigmas * np.sqrt(expected * (1 - expected) / count)


@pytest.fixture(scope="module")
def words():
  run = jax.jit(lambda key: mask_words(key, jnp.asarray(TOKENS), VOCABULARY, jnp.asarray(LENGTHS)))
  return jax.tree.map(np.asarray, run(jax.random.key(0))), run


@pytest.fixture(scope="module")
def spans():
  run = jax.jit(lambda key: mask_spans(key, jnp.asarray(TOKENS), VOCABULARY, jnp.asarray(LENGTHS)))
  return jax.tree.map(np.asarray, run(jax.random.key(0)))


def check_fates(found, sigmas=3.0, effective=1.0):
  """80 % masks, 10 % drawn words, 10 % kept; a drawn word is the old one by chance 1 in 20."""
  chosen = found.weights == 1
  assert not np.any(chosen & ~WORD) and set(np.unique(found.weights)) == {0.0, 1.0}
  np.testing.assert_array_equal(found.targets, TOKENS)
  np.testing.assert_array_equal(found.inputs[~chosen], TOKENS[~chosen])
  count = chosen.sum() * effective
  assert near(np.mean(found.inputs[chosen] == MASK), 0.8, count, sigmas)
  assert near(np.mean(found.inputs[chosen] == TOKENS[chosen]), 0.1 + 0.1 / 20, count, sigmas)
  others = found.inputs[chosen & (found.inputs != MASK)]
  assert others.min() == 4 and others.max() == 23  # every word and no mark is drawn


def test_words_are_masked_at_the_rates_of_the_paper(words):
  found, _ = words
  check_fates(found)
  chosen = found.weights == 1
  assert near(chosen.sum() / WORD.sum(), 0.15, WORD.sum())
  first, last = chosen[:, 1], chosen[np.arange(ROWS), LENGTHS - 2]
  assert near(first.mean(), 0.15, ROWS) and near(last.mean(), 0.15, ROWS)


def test_masks_are_dynamic(words):
  found, run = words
  other = run(jax.random.key(1))
  agree = np.mean((np.asarray(other.weights) == found.weights)[WORD])
  assert near(agree, 0.15**2 + 0.85**2, WORD.sum())


def test_rates_are_whole_arguments():
  tokens = jnp.asarray(TOKENS[:50])
  all_of_it = mask_words(jax.random.key(0), tokens, VOCABULARY, None, 1.0, 1.0, 0.0)
  word = np.asarray(tokens) > MASK
  np.testing.assert_array_equal(all_of_it.inputs, np.where(word, MASK, tokens))
  kept = mask_words(jax.random.key(0), tokens, VOCABULARY, None, 1.0, 0.0, 0.0)
  np.testing.assert_array_equal(kept.inputs, tokens)
  np.testing.assert_array_equal(kept.weights, word)
  with pytest.raises(ValueError, match="mask is None"):
    mask_words(jax.random.key(0), tokens, Vocabulary(24, (0,)))


def test_spans_hold_their_share_of_the_words_and_share_a_fate(spans):
  chosen = spans.weights == 1
  # As words of a span share their fate, there are fewer draws than words: 3 to a span.
  check_fates(spans, effective=1 / 3)
  exact = 0.15 * WORD.sum(1)
  assert np.all(np.abs(chosen.sum(1) - exact) < 1)
  assert near(np.mean(chosen.sum(1) > exact), np.mean(exact - np.floor(exact)), ROWS)
  rate = np.array([chosen[LENGTHS == LENGTH][:, i].mean() for i in range(1, LENGTH - 1) if i != 9])
  assert np.all([near(r, 0.15, ROWS / 2, 4) for r in rate])  # the first and the last word like any other
  for inputs, row in list(zip(spans.inputs, chosen))[:500]:
    for part in np.split(np.arange(LENGTH), np.flatnonzero(np.diff(row.astype(int))) + 1):
      masks = inputs[part] == MASK
      assert not row[part[0]] or masks.all() or not masks.any()


def test_as_many_spans_are_drawn_as_fill_the_budget():
  """60 of 400 words: m(n) = 1 + sum_l p(l) m(n - l) spans on average, and one more where the ring is cut within one."""
  tokens = jnp.full((500, 400), 9)
  found = jax.jit(lambda key: mask_spans(key, tokens, VOCABULARY))(jax.random.key(0))
  chosen = np.asarray(found.weights) == 1
  assert np.all(chosen.sum(1) == 60)
  number = chosen[:, 0] + np.sum(chosen[:, 1:] & ~chosen[:, :-1], 1)
  expected = np.zeros(61)
  for n in range(1, 61):
    expected[n] = 1 + sum(p * expected[n - l] for l, p in enumerate(geometric_lengths()) if 0 < l < n)  # noqa: E741
  expected = expected[60] + (60 - expected[60]) / 400
  assert abs(number.mean() - expected) < 3 * number.std() / np.sqrt(500)


def test_boundaries_are_the_neighbours_of_each_span(spans):
  """Against a loop over the row."""
  for b in range(200):
    row = spans.weights[b] == 1
    for i in np.flatnonzero(row):
      left, right = i, i
      while left >= 0 and row[left]:
        left -= 1
      while right < LENGTH and row[right]:
        right += 1
      assert spans.boundary_weights[b, i] == 1  # marks stand around all words
      assert (spans.left[b, i], spans.right[b, i], spans.distance[b, i]) == (left, right, i - left)
  assert not np.any(spans.boundary_weights[spans.weights == 0])


def test_a_span_at_the_edge_has_no_boundary():
  tokens = jnp.full((400, 8), 9)
  found = jax.tree.map(
    np.asarray, jax.jit(lambda key: mask_spans(key, tokens, VOCABULARY, rate=0.3))(jax.random.key(0))
  )
  chosen, bounded = found.weights == 1, found.boundary_weights == 1
  assert np.any(chosen[:, 0]) and np.any(chosen[:, -1])
  assert not np.any(bounded[:, 0]) and not np.any(bounded[:, -1]) and np.any(bounded)
  assert found.left.min() >= 0 and found.right.max() <= 7


def test_the_boundary_head_reads_two_tokens_and_a_place(spans):
  masked = jax.tree.map(lambda x: jnp.asarray(x[:6]), spans)
  hidden = jax.random.normal(jax.random.key(0), (6, LENGTH, 4))
  head = BoundaryHead()
  variables = head.init(jax.random.key(1), hidden, masked)
  said = jax.jit(lambda hidden, masked: head.apply(variables, hidden, masked))
  depends = jax.jacrev(lambda h: jnp.sum(said(h, masked) * jnp.arange(1.0, 5)[None, None], (0, 2)))
  by_place = np.stack([np.any(np.asarray(depends(hidden))[:, b] != 0, -1) for b in range(6)])  # (B, T said, T read)
  for b, i in zip(*np.nonzero(spans.boundary_weights[:6])):
    assert set(np.flatnonzero(by_place[b, i])) == {spans.left[b, i], spans.right[b, i]}
  # Two words of one span read the same tokens: the place tells them apart.
  b, i = next((b, i) for b, i in zip(*np.nonzero(spans.distance[:6] == 2)) if spans.weights[b, i] == 1)
  found = said(hidden, masked)
  assert not np.allclose(found[b, i], found[b, i - 1], atol=1e-3)
