"""Held-out edges and the pairs beside them: what is in which part; the area under the curve against scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mlnotes import graph
from mlnotes.data import load_graph
from mlnotes.engine.errors import InputError


def codes(pairs):
  return {(int(a), int(b)) for a, b in pairs}


def test_parts_of_the_edges_are_apart_and_non_edges_have_none():
  club = load_graph("karate")
  split = graph.split_links(club.senders, club.receivers, 34, 0.1, 0.05, seed=3)
  edges = {(min(a, b), max(a, b)) for a, b in zip(club.senders.tolist(), club.receivers.tolist())}
  assert len(edges) == 78 and [len(part) for part in split] == [66, 66, 4, 4, 8, 8]
  assert codes(split.edges) | codes(split.valid) | codes(split.test) == edges
  beside = [*split.valid_non_edges, *split.test_non_edges]
  assert not codes(beside) & edges and len(codes(beside)) == 12
  assert not codes(split.non_edges) & (codes(split.edges) | codes(beside)) and len(codes(split.non_edges)) == 66
  for part in split:
    assert part.dtype == np.int32 and np.all(part[:, 0] < part[:, 1]) and part.max() < 34
  again = graph.split_links(club.senders[::-1], club.receivers[::-1], 34, 0.1, 0.05, seed=3)
  other = graph.split_links(club.senders, club.receivers, 34, 0.1, 0.05, seed=4)
  np.testing.assert_array_equal(again.test, split.test)
  assert codes(other.test) != codes(split.test)


def test_pairs_without_an_edge_of_training_do_not_tell_what_is_held_out():
  """On a small graph some are edges that are held out: else a classifier could learn which these are."""
  club = load_graph("karate")
  splits = [graph.split_links(club.senders, club.receivers, 34, 0.3, 0.1, seed) for seed in range(20)]
  assert sum(len(codes(s.non_edges) & (codes(s.test) | codes(s.valid))) for s in splits) > 20


def test_all_pairs_without_an_edge_are_as_likely():
  senders, receivers = np.arange(9), np.arange(9) + 1  # a path of 10 nodes: 36 pairs have no edge
  counts = np.zeros((10, 10))
  for seed in range(300):
    split = graph.split_links(senders, receivers, 10, 0.5, 0.0, seed)
    np.add.at(counts, tuple(split.test_non_edges.T), 1)
  found = counts[np.triu_indices(10, 2)]
  assert found.sum() == 300 * 4 and found.min() > 12 and found.max() < 60


@pytest.mark.parametrize(
  "pairs, size, shares, sentence",
  [
    ([(0, 1), (1, 2)], 9, (0.9, 0.0), "2 of 2 edges are to be held out, expected fewer than all"),
    ([(0, 1)], 9, (0.1, 0.0), "1 of 1 edges"),
    ([(0, 1), (1, 2), (2, 0), (2, 3)], 4, (0.1, 0.0), "2 pairs of nodes have no edge, expected as many as have one, 4"),
  ],
)
def test_what_cannot_be_held_out_is_said_in_a_sentence(pairs, size, shares, sentence):
  with pytest.raises(InputError, match=sentence):
    graph.split_links(*np.array(pairs).T, size, *shares, 0)


def test_area_under_the_curve_is_scikit_learns_with_ties():
  rng = np.random.default_rng(0)
  positive, negative = rng.integers(0, 8, 50) / 8 + 0.1, rng.integers(0, 9, 70) / 8
  positive[:20] = negative[:20]
  expected = roc_auc_score(np.arange(120) < 50, np.concatenate([positive, negative]))
  as_scores = lambda x: jnp.asarray(x, jnp.float32)
  assert jax.jit(graph.compute_auc)(as_scores(positive), as_scores(negative)) == pytest.approx(expected, rel=1e-6)


def test_operators_are_those_of_the_table():
  u, v = np.array([1.0, -2.0]), np.array([3.0, 1.0])
  found = {name: f(u, v).tolist() for name, f in graph.PAIR_OPERATORS.items()}
  assert found == {"average": [2, -0.5], "hadamard": [3, -2], "l1": [2, 3], "l2": [4, 9]}
