"""Similarity of nodes by hand on a small graph, and beside networkx on a random one; rows and their look-ups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes import graph
from mlnotes.engine.errors import InputError
from mlnotes.graph.neighbors import find_in_cumulative

SCORES = (graph.jaccard, graph.common_neighbors, graph.adamic_adar, graph.degree_product)
# 0 and 1 share 2 and 3; 3 has a loop, 4 hangs on 3; 5 is alone.
PAIRS = [(0, 2), (0, 3), (1, 2), (1, 3), (3, 4), (0, 1)]


def rows_of(pairs, num_nodes, loops=(), weights=None):
  senders, receivers = np.array([*pairs, *((b, a) for a, b in pairs), *((a, a) for a in loops)]).T
  return graph.make_neighbor_rows(senders, receivers, num_nodes, weights)


def test_pairs_by_hand():
  rows = rows_of(PAIRS, 6, loops=(3,))
  pairs = jnp.array([(0, 1), (1, 0), (2, 3), (4, 3), (4, 5), (5, 5), (4, 0)])
  found = {f.__name__: np.asarray(jax.jit(f)(rows, pairs)) for f in SCORES}
  # N(0) = 1 2 3, N(1) = 0 2 3, N(2) = 0 1, N(3) = 0 1 4, N(4) = 3.
  np.testing.assert_array_equal(found["common_neighbors"], [2, 2, 2, 0, 0, 0, 1])
  np.testing.assert_allclose(found["jaccard"], [2 / 4, 2 / 4, 2 / 3, 0, 0, 0, 1 / 3], rtol=1e-6)
  near = 1 / np.log(2) + 1 / np.log(3)
  np.testing.assert_allclose(found["adamic_adar"], [near, near, 2 / np.log(3), 0, 0, 0, 1 / np.log(3)], rtol=1e-6)
  np.testing.assert_array_equal(found["degree_product"], [9, 9, 6, 3, 0, 0, 3])


def test_rows_are_sorted_and_hold_an_edge_once():
  rows = graph.make_neighbor_rows(np.array([2, 0, 0, 2, 0]), np.array([0, 2, 1, 0, 2]), 4, np.array([1, 2, 3, 4, 5.0]))
  np.testing.assert_array_equal(rows.starts, [0, 2, 2, 3, 3])
  np.testing.assert_array_equal(rows.neighbors, [1, 2, 0])
  np.testing.assert_array_equal(rows.weights, [3, 7, 5])
  np.testing.assert_array_equal(rows.cumulative, [3, 10, 5])
  np.testing.assert_array_equal(rows.degree, [2, 0, 1, 0])


@pytest.mark.parametrize("size", [2, 9, 33])
def test_an_edge_is_found_where_it_is(size):
  """Rows of all lengths, the longest a power of two or not."""
  adjacency = np.random.default_rng(size).random((size, size)) < np.linspace(0, 1, size)[:, None]
  adjacency[-1] = True
  rows = graph.make_neighbor_rows(*np.nonzero(adjacency), size, np.ones(adjacency.sum()))
  node, other = (jnp.asarray(x.ravel()) for x in np.indices((size, size)))
  np.testing.assert_array_equal(jax.jit(graph.are_neighbors)(rows, node, other), adjacency.ravel())
  place = find_in_cumulative(rows, jnp.full(size, size - 1), jnp.arange(size) + 0.5)
  np.testing.assert_array_equal(rows.neighbors[place], np.arange(size))


@pytest.mark.parametrize(
  "arguments, sentence",
  [
    (([], [], 3), "expected as many of both, one or more"),
    (([0], [1, 2], 3), "expected as many of both"),
    (([0, 1], [1, 3], 3), "an edge has node 3 at an end, expected nodes 0 to 2"),
    (([0, -1], [1, 2], 3), "an edge has node -1 at an end"),
    (([0], [1], 3, [0.0]), "expected 1 finite numbers above 0"),
    (([0], [1], 3, [1.0, 1.0]), "expected 1 finite numbers above 0"),
  ],
)
def test_bad_edges_are_refused_in_a_sentence(arguments, sentence):
  with pytest.raises(InputError, match=sentence):
    senders, receivers, size, *weights = arguments
    graph.make_neighbor_rows(np.array(senders, int), np.array(receivers, int), size, *map(np.array, weights))


@pytest.mark.parity
def test_scores_are_those_of_networkx():
  networkx = pytest.importorskip("networkx")
  for theirs in (networkx.karate_club_graph(), networkx.gnp_random_graph(60, 0.1, seed=1)):
    theirs = networkx.Graph(theirs.edges)
    size = max(theirs) + 1
    rows = rows_of(theirs.edges, size)
    theirs.add_nodes_from(range(size))
    pairs = [(a, b) for a in range(size) for b in range(a + 1, size)]
    of = {
      "jaccard": networkx.jaccard_coefficient,
      "adamic_adar": networkx.adamic_adar_index,
      "degree_product": networkx.preferential_attachment,
    }
    for f in SCORES:
      if f is graph.common_neighbors:
        expected = [len(set(networkx.common_neighbors(theirs, a, b))) for a, b in pairs]
      else:
        expected = [score for _, _, score in of[f.__name__](theirs, pairs)]
      np.testing.assert_allclose(jax.jit(f)(rows, jnp.array(pairs)), expected, rtol=1e-5, err_msg=f.__name__)
