"""BLEU against n-grams counted in dictionaries, and against sacrebleu where it is installed."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.sequence.bleu import bleu_of_counts, count_ngrams, sentence_bleu


def draw(count=40, size=9, seed=0):
  """Hypotheses near their references, with repeated tokens, of length 0 to `size`."""
  source = np.random.default_rng(seed)
  reference = source.integers(0, 4, (count, size))
  hypothesis = np.where(source.random((count, size)) < 0.7, reference, source.integers(0, 4, (count, size)))
  return hypothesis, source.integers(0, size + 1, count), reference, source.integers(1, size + 1, count)


def grams(tokens, n):
  return collections.Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def test_counts_are_those_of_dictionaries():
  found = jax.jit(count_ngrams)(*map(jnp.asarray, draw()))
  for row, (h, length, r, size) in enumerate(zip(*draw())):
    for n in range(1, 5):
      ours, theirs = grams(h[:length], n), grams(r[:size], n)
      assert found[0][row, n - 1] == sum(min(count, theirs[g]) for g, count in ours.items())
      assert found[1][row, n - 1] == sum(ours.values())


def test_the_figure_of_a_corpus_is_of_summed_counts_with_the_brevity_penalty():
  h, length, r, size = map(jnp.asarray, draw())
  matches, possible = (np.asarray(x).sum(0) for x in jax.jit(count_ngrams)(h, length, r, size))
  precision = math.exp(np.mean([math.log(m / p) for m, p in zip(matches, possible)]))
  brevity = min(1.0, math.exp(1 - int(size.sum()) / int(length.sum())))
  found = bleu_of_counts(jnp.asarray(matches), jnp.asarray(possible), jnp.sum(length), jnp.sum(size))
  np.testing.assert_allclose(found, precision * brevity, rtol=1e-5)


def test_a_sentence_is_one_where_it_is_the_reference_and_zero_where_nothing_is_there():
  h, _, _, _ = map(jnp.asarray, draw(4))
  sizes = jnp.array([9, 5, 2, 1])
  score = jax.jit(sentence_bleu)
  np.testing.assert_allclose(score(h, sizes, h, sizes), 1.0, rtol=1e-6)
  np.testing.assert_array_equal(score(h, jnp.zeros(4, jnp.int32), h, sizes), 0.0)
  np.testing.assert_array_equal(score(h + 10, sizes, h, sizes), 0.0)
  longer = score(h, jnp.full(4, 9), h, sizes)
  assert longer[0] == 1 and np.all(longer[1:] < 1)


@pytest.mark.parity
def test_figures_are_those_of_sacrebleu():
  sacrebleu = pytest.importorskip("sacrebleu")
  h, length, r, size = draw(60)
  length = np.maximum(length, 1)
  say = lambda tokens: " ".join(f"w{token}" for token in tokens)
  ours, theirs = ([say(x[:n]) for x, n in zip(*side)] for side in ((h, length), (r, size)))
  given = [jnp.asarray(x) for x in (h, length, r, size)]
  counts = [jnp.sum(x, 0) for x in count_ngrams(*given)]
  found = 100 * float(bleu_of_counts(*counts, jnp.sum(given[1]), jnp.sum(given[3])))
  np.testing.assert_allclose(found, sacrebleu.corpus_bleu(ours, [theirs], smooth_method="none").score, rtol=1e-5)
  one = lambda a, b: sacrebleu.sentence_bleu(a, [b], smooth_method="add-k", smooth_value=1, use_effective_order=False)
  expected = [one(a, b).score / 100 for a, b in zip(ours, theirs)]
  whole = np.minimum(length, size) >= 4  # of shorter ones sacrebleu stops at the orders that are there
  np.testing.assert_allclose(np.asarray(sentence_bleu(*given))[whole], np.array(expected)[whole], rtol=1e-4)
