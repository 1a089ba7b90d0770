"""Pairs of sentences, by hand and by their rates."""

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.lm.pairs import Sentences, find_neighbours, next_sentence_pairs, pack_pairs, sentence_order_pairs

DOCUMENT = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 0])
SENTENCES = Sentences(
  jnp.arange(30).reshape(10, 3) + 10, jnp.array([3, 2, 1, 3, 3, 2, 1, 1, 3, 2]), jnp.array(DOCUMENT)
)
NEXT = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0, 0], np.float32)


def draw(make):
  run = jax.jit(jax.vmap(lambda key: make(key, SENTENCES)))
  return jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(0), 2000)))


def test_half_of_the_pairs_follow_and_the_others_are_of_another_document():
  found = draw(next_sentence_pairs)
  np.testing.assert_array_equal(found.weights, np.broadcast_to(NEXT, (2000, 10)))
  asked = found.weights == 1
  np.testing.assert_array_equal(found.first, np.broadcast_to(np.arange(10), (2000, 10)))
  np.testing.assert_array_equal(found.second[asked & found.label], found.first[asked & found.label] + 1)
  false = asked & ~found.label
  assert np.all(DOCUMENT[found.first[false]] != DOCUMENT[found.second[false]])
  assert abs(found.label[asked].mean() - 0.5) < 3 * 0.5 / np.sqrt(asked.sum())
  drawn = np.bincount(found.second[:, 0][~found.label[:, 0]], minlength=10)
  assert np.all(drawn[DOCUMENT == 0] == 0)
  expected = drawn.sum() / 6
  assert np.all(np.abs(drawn[DOCUMENT != 0] - expected) < 4 * np.sqrt(expected))


def test_a_batch_of_one_document_has_true_pairs_alone():
  alone = SENTENCES._replace(document=jnp.zeros(10, int))
  assert np.all(next_sentence_pairs(jax.random.key(0), alone).label)


def test_half_of_the_pairs_are_exchanged():
  found = draw(sentence_order_pairs)
  asked = found.weights == 1
  np.testing.assert_array_equal(found.weights, np.broadcast_to(NEXT, (2000, 10)))
  step = (found.second - found.first)[asked]
  np.testing.assert_array_equal(step, np.where(found.label[asked], 1, -1))
  np.testing.assert_array_equal(np.minimum(found.first, found.second)[asked], np.nonzero(asked)[1])
  assert abs(found.label[asked].mean() - 0.5) < 3 * 0.5 / np.sqrt(asked.sum())


def test_pairs_are_packed_between_marks():
  pairs = sentence_order_pairs(jax.random.key(0), SENTENCES, 1.0)
  packed = pack_pairs(SENTENCES, pairs, 1, 2, 0)
  np.testing.assert_array_equal(packed.tokens[0], [1, 10, 11, 12, 2, 13, 14, 2, 0])
  np.testing.assert_array_equal(packed.segments[0], [0, 0, 0, 0, 0, 1, 1, 1, 0])
  np.testing.assert_array_equal(packed.tokens[6], [1, 28, 2, 31, 2, 0, 0, 0, 0])
  np.testing.assert_array_equal(packed.lengths[np.array([0, 6])], [8, 5])


def test_neighbours_are_of_the_same_document():
  found = find_neighbours(SENTENCES)
  np.testing.assert_array_equal(found.after_weights, NEXT)
  np.testing.assert_array_equal(found.before_weights, [0, 1, 1, 0, 1, 0, 1, 1, 1, 0])
  np.testing.assert_array_equal(np.asarray(found.after)[NEXT == 1], np.flatnonzero(NEXT) + 1)
  asked = np.asarray(found.before_weights) == 1
  np.testing.assert_array_equal(np.asarray(found.before)[asked], np.flatnonzero(asked) - 1)
