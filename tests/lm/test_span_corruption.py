"""T5, BART and MASS: source and target restore the text, whatever the seed; rates and edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.lm.span_corruption import corrupt_spans, corrupted_sizes, hide_fragment, infill, permute_sentences
from mlnotes.lm.vocabulary import Vocabulary

PAD, END, MASK, SENTINELS, SIZE = 0, 1, 2, 12, 80
VOCABULARY = Vocabulary(SIZE, (PAD, END, MASK, *range(SIZE - SENTINELS, SIZE)), mask=MASK, pad=PAD)
ROWS, LENGTH = 3000, 40
LENGTHS = np.where(np.arange(ROWS) % 2, LENGTH, np.arange(ROWS) % (LENGTH - 1) + 1)
TOKENS = np.random.default_rng(0).integers(3, SIZE - SENTINELS, (ROWS, LENGTH))
FULL = LENGTHS == LENGTH


def within(share, expected, count, sigmas=4.0):
  return np.all(np.abs(share - expected) < sigmas * np.sqrt(expected * (1 - expected) / count))


def as_numpy(run, seed=0):
  return jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(seed)))


# -- T5 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corrupted():
  return as_numpy(
    lambda key: corrupt_spans(key, jnp.asarray(TOKENS), VOCABULARY, jnp.asarray(LENGTHS), end=END, sentinels=SENTINELS)
  )


def restore(inputs, targets):
  """(text, which of it was noise), by reading the targets sentinel by sentinel."""
  spans, sentinel = {}, None
  for token in targets:
    if token >= SIZE - SENTINELS:
      sentinel = token
      spans[sentinel] = []
    else:
      spans[sentinel].append(token)
  assert list(spans) == [SIZE - 1 - k for k in range(len(spans))]  # they descend from the top
  assert spans.pop(sentinel) == []  # the final one stands for nothing
  assert [token for token in inputs if token >= SIZE - SENTINELS] == list(spans)
  text = [(token, False) for token in inputs]
  for sentinel, span in spans.items():
    assert span
    place = next(i for i, (token, _) in enumerate(text) if token == sentinel)
    text[place : place + 1] = [(token, True) for token in span]
  return map(np.array, zip(*text))


def test_source_and_target_restore_the_text(corrupted):
  noise = np.zeros((ROWS, LENGTH), bool)
  for b, length in enumerate(LENGTHS):
    inputs, targets = corrupted.inputs[b], corrupted.targets[b]
    read, said = corrupted.input_lengths[b], corrupted.target_lengths[b]
    assert np.all(inputs[read:] == PAD) and np.all(targets[said:] == PAD)
    assert inputs[read - 1] == END and targets[said - 1] == END
    text, noise[b, :length] = restore(inputs[: read - 1], targets[: said - 1])
    np.testing.assert_array_equal(text, TOKENS[b, :length])
  # 15 % of them, in spans of 3: both numbers are exact, but for the span that the cut of the ring divides.
  expected = np.clip(np.round(0.15 * LENGTHS), 1, LENGTHS - 1)
  np.testing.assert_array_equal(noise.sum(1), expected)
  spans = noise[:, 0] + np.sum(noise[:, 1:] & ~noise[:, :-1], 1)
  assert set(spans[FULL]) == {2, 3}
  assert within(np.mean(spans[FULL] == 3), (6 - 2) / LENGTH, FULL.sum())
  assert within(noise[FULL].mean(0), 6 / LENGTH, FULL.sum())  # the first and the last token like any other
  np.testing.assert_array_equal(corrupted.weights, np.arange(11)[None] < corrupted.target_lengths[:, None])


@pytest.mark.parametrize("length, rate, mean", [(40, 0.15, 3.0), (7, 0.5, 1.0), (2, 0.15, 3.0), (64, 0.5, 32.0)])
def test_sizes_are_as_large_as_the_largest_row(length, rate, mean):
  """Nothing is dropped, and with enough rows nothing is left free: the size is reached."""
  sizes = corrupted_sizes(length, rate, mean, end=False)
  vocabulary = Vocabulary(200, (0, *range(100, 200)))
  tokens = jnp.asarray(np.random.default_rng(1).integers(1, 100, (200, length)))
  found = as_numpy(lambda key: corrupt_spans(key, tokens, vocabulary, None, None, rate, mean))
  assert (found.inputs.shape[1], found.targets.shape[1]) == sizes
  kept = found.input_lengths + found.target_lengths - 1
  spans = np.sum(found.inputs >= 100, 1)
  np.testing.assert_array_equal(kept, length + 2 * spans)
  if mean > 1 and length > 2:  # a span of one is not divided by the cut
    assert (found.input_lengths.max(), found.target_lengths.max()) == sizes


def test_too_few_sentinels_or_sentinels_that_are_words_are_refused():
  tokens = jnp.asarray(TOKENS[:2])
  with pytest.raises(ValueError, match="sentinels is 3, expected 4 or more for 40 tokens"):
    corrupt_spans(jax.random.key(0), tokens, VOCABULARY, sentinels=3)
  with pytest.raises(ValueError, match="sentinels are the ids 67 to 79: expected all among the special"):
    corrupt_spans(jax.random.key(0), tokens, VOCABULARY, sentinels=13)


# -- BART --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled():
  """Of rows whose tokens tell their places."""
  tokens = jnp.broadcast_to(jnp.arange(3, 3 + LENGTH)[None], TOKENS.shape)
  return as_numpy(lambda key: infill(key, tokens, VOCABULARY, jnp.asarray(LENGTHS)))


def test_infilling_puts_one_mask_for_each_span(filled):
  gone = np.zeros((ROWS, LENGTH), bool)
  spans, inserts = np.zeros(ROWS, int), np.zeros(ROWS, int)
  for b, length in enumerate(LENGTHS):
    row, total = filled.inputs[b], filled.input_lengths[b]
    assert np.all(row[total:] == PAD) and np.all(row[:total] != PAD) and total <= length
    kept = row[row > MASK] - 3
    assert np.all(np.diff(kept) > 0) and np.all(kept < length)
    gone[b, :length] = ~np.isin(np.arange(length), kept)
    bounds = [-1, *np.flatnonzero(row > MASK), total]
    ends = [-1, *kept, length]
    for i in range(len(bounds) - 1):
      masks, words = bounds[i + 1] - bounds[i] - 1, ends[i + 1] - ends[i] - 1
      assert masks >= (words > 0)  # what is gone has left a mask
      spans[b] += words > 0
      inserts[b] += masks if words == 0 else 0
  count = gone.sum(1)
  assert np.all(np.abs(count - 0.3 * LENGTHS) < 1)
  np.testing.assert_array_equal(filled.targets, np.broadcast_to(np.arange(3, 3 + LENGTH), TOKENS.shape))
  assert within(gone[FULL].mean(0), 0.3, FULL.sum())
  # A length of 0 is drawn e^-3 times as often as any, and puts a mask where nothing is gone, most often.
  share = inserts[FULL].sum() / (inserts + spans)[FULL].sum()
  assert np.exp(-3) * 0.6 < share < np.exp(-3) * 1.2
  assert 2 < count[FULL].sum() / spans[FULL].sum() < 3.2


def test_sentences_are_permuted_whole_and_every_order_is_as_likely():
  stop = 9
  row = jnp.array([3, 4, stop, 5, stop, 6, 7, 8, 0, 0])  # three sentences, the last without a stop
  tokens = jnp.broadcast_to(row, (3000, 10))
  lengths = jnp.full(3000, 8)
  found = as_numpy(lambda key: permute_sentences(key, tokens, tokens == stop, lengths))
  parts = [(3, 4, 9), (5, 9), (6, 7, 8)]
  orders = {(*a, *b, *c, 0, 0) for a in parts for b in parts for c in parts if len({a, b, c}) == 3}
  rows, counts = np.unique(found, axis=0, return_counts=True)
  assert set(map(tuple, rows)) == orders and len(orders) == 6
  assert within(counts / 3000, 1 / 6, 3000)


# -- MASS --------------------------------------------------------------------------------------------------------------


def test_the_decoder_of_mass_sees_the_fragment_and_nothing_else():
  found = as_numpy(lambda key: hide_fragment(key, jnp.asarray(TOKENS), VOCABULARY, jnp.asarray(LENGTHS)))
  assert found.targets.shape == (ROWS, LENGTH // 2)
  count = found.weights.sum(1).astype(int)
  np.testing.assert_array_equal(count, np.maximum(np.round(LENGTHS / 2), 1))
  inside = np.zeros((ROWS, LENGTH), bool)
  for b in range(ROWS):
    places = found.positions[b, : count[b]]
    np.testing.assert_array_equal(np.diff(places), 1)
    np.testing.assert_array_equal(found.targets[b, : count[b]], TOKENS[b, places])
    np.testing.assert_array_equal(found.decoder_inputs[b, : count[b]], [MASK, *TOKENS[b, places[:-1]]])
    assert np.all(found.targets[b, count[b] :] == PAD) and places[-1] < LENGTHS[b]
    inside[b, places] = True
  np.testing.assert_array_equal(found.inputs[~inside], TOKENS[~inside])
  assert within(np.mean(found.inputs[inside] == MASK), 0.8, inside.sum())
  assert within(np.mean(found.inputs[inside] == TOKENS[inside]), 0.1 + 0.1 / 65, inside.sum())
  starts = found.positions[FULL, 0]
  assert within(np.bincount(starts, minlength=21) / FULL.sum(), 1 / 21, FULL.sum())
  with pytest.raises(ValueError, match=r"share is 0\.0, expected"):
    hide_fragment(jax.random.key(0), jnp.asarray(TOKENS[:2]), VOCABULARY, share=0.0)
