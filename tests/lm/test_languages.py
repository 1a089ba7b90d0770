"""Two languages of one grammar: what is drawn, its entropy, and the measure of their alignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.lm.tasks import (
  bridge_entropy,
  draw_documents,
  entropy_rate,
  make_grammar,
  measure_alignment,
  share_words,
)

WORDS = 6


@pytest.fixture(scope="module")
def drawn():
  grammar = jax.jit(lambda: make_grammar(jax.random.key(0), WORDS, 0.3))()
  documents = jax.jit(lambda: draw_documents(jax.random.key(2), grammar, 1000, 40))()
  return jax.tree.map(np.asarray, grammar), jax.tree.map(np.asarray, documents)


def test_the_stationary_distribution_is_the_left_eigenvector(drawn):
  grammar, _ = drawn
  np.testing.assert_allclose(grammar.transition.sum(1), 1, rtol=1e-5)
  values, vectors = np.linalg.eig(grammar.transition.astype(np.float64).T)
  expected = np.real(vectors[:, np.argmax(np.real(values))])
  np.testing.assert_allclose(grammar.stationary, expected / expected.sum(), rtol=1e-4)


def test_languages_share_the_grammar_and_no_word(drawn):
  grammar, documents = drawn
  second = documents.language == 1
  assert abs(second.mean() - 0.5) < 3 * 0.5 / np.sqrt(1000)
  assert documents.tokens[~second].max() == WORDS - 1 and documents.tokens[second].min() == WORDS
  for rows, offset in ((~second, 0), (second, WORDS)):
    tokens = documents.tokens[rows] - offset
    pairs = np.zeros((WORDS, WORDS))
    np.add.at(pairs, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)
    count, p = pairs.sum(1, keepdims=True), grammar.transition
    assert np.all(np.abs(pairs - count * p) < 4.5 * np.sqrt(count * p * (1 - p)) + 1)
    first = np.bincount(tokens[:, 0], minlength=WORDS)
    assert np.all(np.abs(first / len(tokens) - grammar.stationary) < 4 * np.sqrt(0.25 / len(tokens)))


def test_the_entropy_rate_is_what_the_true_model_needs(drawn):
  grammar, documents = drawn
  words = documents.tokens % WORDS
  nats = -np.log(grammar.transition[words[:, :-1], words[:, 1:]]).mean(1)
  expected = float(entropy_rate(type(grammar)(*map(jnp.asarray, grammar))))
  assert abs(nats.mean() - expected) < 3 * nats.std() / np.sqrt(len(nats))
  assert expected < 0.9 * np.log(WORDS)
  with pytest.raises(ValueError, match="words is 1"):
    make_grammar(jax.random.key(0), 1)


def test_a_word_between_two_against_all_triples(drawn):
  """From the joint distribution of three words, written out."""
  grammar, _ = drawn
  joint = np.einsum(
    "a,ab,bc->abc", *(np.asarray(x, np.float64) for x in (grammar.stationary, *2 * [grammar.transition]))
  )
  given = joint / joint.sum(1, keepdims=True)
  expected = -np.sum(joint * np.log(given))
  found = float(bridge_entropy(type(grammar)(*map(jnp.asarray, grammar))))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert found < 0.95 * float(entropy_rate(type(grammar)(*map(jnp.asarray, grammar))))


def test_shared_words_have_the_first_languages_ids():
  tokens = jnp.array([[0, 2, 5, 6, 7, 8, 11, 12, 17]])
  np.testing.assert_array_equal(share_words(tokens, WORDS, 2), [[0, 2, 5, 0, 1, 8, 11, 0, 17]])
  np.testing.assert_array_equal(share_words(tokens, WORDS, 0), tokens)


def test_alignment_of_planted_vectors():
  first = np.random.default_rng(0).normal(size=(200, 8))

  def measure(second, **options):
    return [float(x) for x in measure_alignment(jnp.asarray(first), jnp.asarray(second), **options)]

  assert measure(3 * first)[:2] == [1, 1]  # lengths do not count
  assert measure(np.roll(first, 1, 0))[0] == 0
  chance = measure(np.random.default_rng(1).normal(size=(200, 8)))
  assert chance[0] < 0.03 and chance[1] < 0.1 and abs(chance[2]) < 0.1
  # A vector of the language added to each word hides the translations, until it is taken away.
  shifted = 0.3 * first + 9 * np.eye(8)[0]
  assert measure(shifted)[0] < 0.5 and measure(shifted, centered=True)[0] == 1
  # All alike: no word finds its own among them, and they, from the other side, all find the same one.
  assert measure(np.ones((200, 8)))[0] == pytest.approx(1 / 400)
  with pytest.raises(ValueError, match="first has shape"):
    measure(first[:5])


def test_ranks_of_both_directions():
  """Four words on a plane, by hand: from the first language 3 of 4 are found, from the second 2 of 4."""
  turn = lambda *degrees: jnp.stack([jnp.array([np.cos(np.radians(d)), np.sin(np.radians(d))]) for d in degrees])
  first, second = turn(0, 90, 180, 270), turn(10, 80, 170, 150)
  found = measure_alignment(first, second)
  # 270's translation, at 150, is the third of four; from the second, 150 has 180, 90, 270 (and 0) before or beside it.
  from_first, from_second = [1, 1, 1, 3], [1, 1, 1, 3]
  cosine = np.asarray(first) @ np.asarray(second).T
  by_hand = [1 + sum(cosine[i, j] >= cosine[i, i] for j in range(4) if j != i) for i in range(4)]
  assert by_hand == from_first
  back = [1 + sum(cosine[j, i] >= cosine[i, i] for j in range(4) if j != i) for i in range(4)]
  assert back == from_second
  np.testing.assert_allclose(found.reciprocal_rank, np.mean([1 / r for r in from_first + from_second]), rtol=1e-5)
  np.testing.assert_allclose(found.precision, 6 / 8, rtol=1e-6)
