"""Matching of nodes: against S written out, SciPy's assignment, and graphs whose only fit is known."""

import itertools

import jax
import numpy as np
import scipy.optimize
import scipy.stats

from mlnotes.graph.matching import (
  assign_nodes,
  graph_log_likelihood,
  improve_places,
  max_pooling_matching,
  place_nodes,
)

_match = jax.jit(max_pooling_matching, static_argnums=4)
_assign, _place = jax.jit(assign_nodes), jax.jit(place_nodes)
_likelihood, _improve = jax.jit(graph_log_likelihood), jax.jit(improve_places, static_argnums=5)


def draw_graph(seed, size, p):
  edges = np.triu(np.random.default_rng(seed).random((size, size)) < p, 1)
  return (edges | edges.T).astype(np.uint8)


def match_written_out(adjacency, size, edges, nodes, iterations):
  """By loops over all pairs of pairs."""
  x = np.full((size, len(nodes)), 1 / size)
  for _ in range(iterations):
    new = np.zeros_like(x)
    for i, a in itertools.product(range(size), range(len(nodes))):
      expected = sum(edges[a, b] * nodes[b] for b in range(len(nodes)) if b != a)
      new[i, a] = x[i, a] * nodes[a] / (1 + abs(adjacency[i].sum() - expected))
      for j in range(size):
        if j != i:
          similar = [adjacency[i, j] * edges[a, b] * nodes[a] * nodes[b] if b != a else 0 for b in range(len(nodes))]
          new[i, a] += max(x[j, b] * similar[b] for b in range(len(nodes)))
    x = new / np.linalg.norm(new)
  return x


def test_matching_is_that_of_the_affinity_written_out():
  rng = np.random.default_rng(0)
  adjacency = np.zeros((5, 5), np.uint8)
  adjacency[:4, :4] = draw_graph(1, 4, 0.6)
  edges, nodes = rng.random((5, 5)).astype(np.float32), rng.random(5).astype(np.float32)
  found = _match(adjacency, 4, edges, nodes, 3)
  np.testing.assert_allclose(found[:4], match_written_out(adjacency, 4, edges, nodes, 3), atol=1e-5)
  assert not np.asarray(found[4]).any()


def test_assignment_is_the_best_as_scipy_has_it():
  for seed in range(20):
    fit = np.random.default_rng(seed).random((6, 6)).astype(np.float32)
    rows, columns = scipy.optimize.linear_sum_assignment(fit, maximize=True)
    np.testing.assert_array_equal(_assign(fit), columns[np.argsort(rows)])


def test_a_shuffled_graph_is_found_again():
  """A path with a triangle at one end and a branch: no node stands like another but two of the triangle."""
  adjacency = np.zeros((8, 8), np.uint8)
  for i, j in ((0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (4, 5), (4, 6)):
    adjacency[i, j] = adjacency[j, i] = 1
  for seed in range(5):
    order = np.random.default_rng(seed).permutation(8)
    shuffled = adjacency[np.ix_(order, order)]
    probability = np.where(shuffled, 0.95, 0.05).astype(np.float32)
    nodes = np.where(order < 7, 0.95, 0.05).astype(np.float32)
    place = _assign(_match(adjacency, 7, probability, nodes, 30))
    np.testing.assert_array_equal(_place(adjacency, place), shuffled)


def test_the_likelihood_is_that_of_independent_nodes_and_pairs():
  rng = np.random.default_rng(0)
  logits, nodes = rng.normal(size=(5, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
  logits += logits.T
  adjacency, there = draw_graph(0, 5, 0.5), np.array([1, 0, 1, 1, 0], np.float32)
  adjacency *= (there[:, None] * there[None]).astype(np.uint8)
  probability = lambda x: 1 / (1 + np.exp(-x))
  expected = scipy.stats.bernoulli.logpmf(there, probability(nodes)).sum()
  for i, j in itertools.combinations((0, 2, 3), 2):
    expected += scipy.stats.bernoulli.logpmf(adjacency[i, j], probability(logits[i, j]))
  np.testing.assert_allclose(_likelihood(adjacency, there, logits, nodes), expected, rtol=1e-5)


def test_improved_places_are_never_worse_and_on_average_among_the_best_quarter():
  """From random places; all 120 orders of five nodes say how good they are."""
  score = jax.jit(
    jax.vmap(lambda place, a, there, logits, nodes: graph_log_likelihood(
      place_nodes(a, place), there[place.argsort()], logits, nodes), (0, None, None, None, None)
    )
  )  # fmt: skip
  orders = np.array(list(itertools.permutations(range(5))), np.int32)
  below, there = [], np.array([1, 1, 1, 1, 0], np.float32)
  for seed in range(20):
    rng = np.random.default_rng(seed)
    logits, nodes = 2 * rng.normal(size=(5, 5)).astype(np.float32), 2 * rng.normal(size=5).astype(np.float32)
    logits += logits.T
    adjacency = draw_graph(seed, 5, 0.5)
    adjacency[4] = adjacency[:, 4] = 0
    scores = np.asarray(score(orders, adjacency, there, logits, nodes))
    for start in (0, 70):
      place = np.asarray(_improve(orders[start], adjacency, 4, logits, nodes, 6))
      found = scores[(orders == place).all(1)][0]
      assert found >= scores[start] - 1e-5
      below.append(np.mean(scores < found + 1e-4))
  assert np.mean(below) > 0.75
