"""Walks against their transition probabilities by chi-squared, these by hand; where walks end; what p and q do."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mlnotes import graph
from mlnotes.engine.errors import InputError

# A square 0 1 2 3 with the diagonal 0 - 2.
SQUARE = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)]
WEIGHTS = [1.0, 2.0, 0.5, 3.0, 1.5]
sample = jax.jit(graph.sample_walks, static_argnums=3)


@functools.cache
def square(weighted):
  senders, receivers = np.array([*SQUARE, *((b, a) for a, b in SQUARE)]).T
  weights = np.array(WEIGHTS * 2) if weighted else None
  dense = np.zeros((4, 4), np.float32)
  dense[senders, receivers] = 1 if weights is None else weights
  return graph.make_neighbor_rows(senders, receivers, 4, weights), jnp.asarray(dense)


def chi_squared(counts, probabilities):
  """The chance of counts as far off as these; rows are independent, and what is impossible has not happened."""
  assert np.all(counts[probabilities == 0] == 0)
  expected = counts.sum(-1, keepdims=True) * probabilities
  possible = expected > 0
  assert expected[possible].min() > 5
  statistic = np.sum((counts - expected)[possible] ** 2 / expected[possible])
  freedom = possible.sum() - possible.any(-1).sum()
  return stats.chi2.sf(statistic, freedom)


def test_transition_probabilities_by_hand():
  dense = square(False)[1]
  found = graph.transition_probabilities(dense, 2.0, 0.5)
  # At 0 from 1: back 1/2; 2 is a neighbour of 1: 1; 3 is not: 2. At 0 from 2, a neighbour of both others.
  np.testing.assert_allclose(found[1, 0], np.array([0, 0.5, 1, 2]) / 3.5, rtol=1e-6)
  np.testing.assert_allclose(found[2, 0], np.array([0, 1, 0.5, 1]) / 2.5, rtol=1e-6)
  np.testing.assert_array_equal(found[1, 3], np.zeros(4))
  weighted = graph.transition_probabilities(square(True)[1], 2.0, 0.5)
  mass = np.array([0, 1.0 * 0.5, 1.5 * 1, 3.0 * 2])
  np.testing.assert_allclose(weighted[1, 0], mass / mass.sum(), rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p, q", [(0.2, 3.0), (4.0, 0.3), (0.1, 0.5), (1.0, 1.0)])
def test_walks_have_the_probabilities_of_node2vec(weighted, p, q):
  rows, dense = square(weighted)
  walks, mask = sample(jax.random.key(int(10 * p) + weighted), rows, jnp.arange(3000) % 4, 9, p, q)
  walks = np.asarray(walks)
  assert np.all(mask) and np.all(walks[:, 0] == np.arange(3000) % 4)
  first = np.zeros((4, 4))
  np.add.at(first, (walks[:, 0], walks[:, 1]), 1)
  assert chi_squared(first, np.asarray(dense / dense.sum(1, keepdims=True))) > 1e-3
  counts = np.zeros((4, 4, 4))
  np.add.at(counts, (walks[:, :-2], walks[:, 1:-1], walks[:, 2:]), 1)
  assert chi_squared(counts, np.asarray(graph.transition_probabilities(dense, p, q))) > 1e-3
  other = np.asarray(graph.transition_probabilities(dense, 1.5 * p, q))
  assert chi_squared(counts, other) < 1e-6  # the test can fail


@pytest.mark.parametrize("weighted", [False, True])
def test_uniform_walks_follow_edges_by_their_weight(weighted):
  rows, dense = square(weighted)
  walks, mask = sample(jax.random.key(1), rows, jnp.arange(3000) % 4, 9)
  walks = np.asarray(walks)
  counts = np.zeros((4, 4))
  np.add.at(counts, (walks[:, :-1], walks[:, 1:]), 1)
  assert np.all(mask) and chi_squared(counts, np.asarray(dense / dense.sum(1, keepdims=True))) > 1e-3


def test_a_walk_of_an_unsorted_mixture_of_degrees_stays_on_edges():
  """A star of 40 leaves, whose hub has the only long row, with chords between some leaves."""
  pairs = [(0, leaf) for leaf in range(1, 41)] + [(leaf, leaf + 1) for leaf in range(1, 40, 3)]
  senders, receivers = np.array([*pairs, *((b, a) for a, b in pairs)]).T
  rows = graph.make_neighbor_rows(senders, receivers, 41)
  for arguments in ((), (0.5, 2.0)):
    walks, _ = graph.sample_walks(jax.random.key(0), rows, jnp.arange(41), 12, *arguments)
    steps = {(int(a), int(b)) for walk in np.asarray(walks) for a, b in itertools.pairwise(walk)}
    assert steps <= set(zip(senders.tolist(), receivers.tolist())) and len(steps) > 50


@pytest.mark.parametrize("arguments", [(), (0.5, 2.0)])
def test_walks_end_where_there_is_no_neighbour(arguments):
  """0 -> 1 -> 2 is a dead end; 3 is alone; 4 and 5 go on for ever."""
  rows = graph.make_neighbor_rows(np.array([0, 1, 4, 5]), np.array([1, 2, 5, 4]), 6)
  walks, mask = graph.sample_walks(jax.random.key(0), rows, jnp.array([0, 3, 4]), 5, *arguments)
  np.testing.assert_array_equal(walks, [[0, 1, 2, 2, 2], [3] * 5, [4, 5, 4, 5, 4]])
  np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1] * 5])


def test_p_and_q_decide_whether_a_walk_goes_back_and_how_far_it_gets():
  """On a ring of 64 a large p forbids the way back; a small one has the walk at home."""
  senders = np.concatenate([np.arange(64), np.arange(64)])
  receivers = np.concatenate([(np.arange(64) + 1) % 64, (np.arange(64) - 1) % 64])
  rows = graph.make_neighbor_rows(senders, receivers, 64)
  far = lambda p, q: np.asarray(sample(jax.random.key(2), rows, jnp.full(64, 5), 12, p, q).nodes)
  on = far(1e6, 1.0)
  np.testing.assert_array_equal((on[:, -1] - on[:, 0]) % 64 % 42, np.full(64, 11))  # 11 steps on, or 53
  assert np.abs(far(1e-4, 1.0)[:, 2:] - far(1e-4, 1.0)[:, :-2]).max() == 0


def test_seeds_walk_alone_as_they_walk_together():
  rows, _ = square(True)
  keys = jax.random.split(jax.random.key(4), 3)
  starts = jnp.array([0, 1, 2, 3])
  together = jax.jit(jax.vmap(lambda key: graph.sample_walks(key, rows, starts, 7, 0.3, 2.0).nodes))(keys)
  assert len({walk.tobytes() for walk in np.asarray(together)}) == 3
  for key, found in zip(keys, together):
    np.testing.assert_array_equal(sample(key, rows, starts, 7, 0.3, 2.0).nodes, found)


@pytest.mark.parametrize("arguments, sentence", [((0,), "length is 0"), ((5, 1.0), "p is 1.0 and q is None")])
def test_bad_walks_are_refused_in_a_sentence(arguments, sentence):
  with pytest.raises(InputError, match=sentence):
    graph.sample_walks(jax.random.key(0), square(False)[0], jnp.arange(2), *arguments)
