"""Statistics of graphs against subsets taken one by one, networkx, SciPy's distance, and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mlnotes.engine.errors import InputError
from mlnotes.graph.statistics import (
  GraphStatistics,
  compare_graphs,
  compute_clustering,
  count_orbits,
  describe_graphs,
  earth_movers_distances,
  fit_erdos_renyi,
  maximum_mean_discrepancy,
  sample_erdos_renyi,
)

# The orbit of a node in a connected graph of that many nodes with these degrees, sorted, by the node's own degree.
_PLACES = {
  (1, 1): {1: 0}, (1, 1, 2): {1: 1, 2: 2}, (2, 2, 2): {2: 3}, (1, 1, 2, 2): {1: 4, 2: 5}, (1, 1, 1, 3): {1: 6, 3: 7},
  (2, 2, 2, 2): {2: 8}, (1, 2, 2, 3): {1: 9, 2: 10, 3: 11}, (2, 2, 3, 3): {2: 12, 3: 13}, (3, 3, 3, 3): {3: 14},
}  # fmt: skip


def draw_graph(seed, size, p):
  edges = np.triu(np.random.default_rng(seed).random((size, size)) < p, 1)
  return (edges | edges.T).astype(np.uint8)


def count_by_subsets(a):
  """Every two, three and four nodes: the degrees in what they induce tell the connected graphlet apart."""
  counts = np.zeros((len(a), 15), int)
  for size in (2, 3, 4):
    for nodes in itertools.combinations(range(len(a)), size):
      degrees = a[np.ix_(nodes, nodes)].sum(0)
      places = _PLACES.get(tuple(sorted(degrees)), {})
      # (1, 1, 1, 1), two edges apart, is no key: these degrees name connected graphs alone.
      for node, degree in zip(nodes, degrees):
        if places:
          counts[node, places[int(degree)]] += 1
  return counts


@pytest.mark.parametrize("p", [0.15, 0.4, 0.7, 1.0])
def test_orbits_are_those_of_all_subsets(p):
  for seed in range(3):
    a = draw_graph(seed, 9, p)
    np.testing.assert_array_equal(_orbits(a), count_by_subsets(a))


_orbits, _clustering = jax.jit(count_orbits), jax.jit(compute_clustering)


def test_padding_and_the_order_of_nodes_change_no_orbit():
  a = draw_graph(0, 8, 0.5)
  padded = np.zeros((9, 9), np.uint8)
  padded[:8, :8] = 2 * a  # edges of another type
  found = np.asarray(_orbits(padded))
  np.testing.assert_array_equal(found[:8], count_by_subsets(a))
  assert not found[8].any()
  order = np.random.default_rng(1).permutation(9)
  np.testing.assert_array_equal(_orbits(padded[np.ix_(order, order)]), found[order])


@pytest.mark.parity
def test_degrees_clustering_and_triangles_are_networkx():
  networkx = pytest.importorskip("networkx")
  for seed in range(4):
    a = draw_graph(seed, 15, 0.3)
    graph = networkx.from_numpy_array(a)
    np.testing.assert_allclose(_clustering(a), list(networkx.clustering(graph).values()), atol=1e-6)
    np.testing.assert_array_equal(_orbits(a)[:, 3], list(networkx.triangles(graph).values()))
    sizes = np.array([15])
    histogram = networkx.degree_histogram(graph)
    np.testing.assert_array_equal(describe_graphs(a[None], sizes).degree[0, : len(histogram)], histogram)


def test_clustering_of_a_triangle_with_a_tail():
  a = jnp.array([[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 0]])
  np.testing.assert_allclose(_clustering(a), [1, 1, 1 / 3, 0], atol=1e-6)


def test_the_earth_movers_distance_is_scipys():
  rng = np.random.default_rng(0)
  x, y = rng.integers(0, 9, (3, 7)), rng.integers(1, 9, (4, 7))
  found = earth_movers_distances(x, y, 0.5)
  place = 0.5 * np.arange(7)
  for i, j in itertools.product(range(3), range(4)):
    np.testing.assert_allclose(found[i, j], scipy.stats.wasserstein_distance(place, place, x[i], y[j]), rtol=1e-9)


def test_the_discrepancy_of_two_points_is_that_of_their_kernel():
  """Of one point each, a distance d apart: 2 - 2 exp(-d^2 / (2 sigma^2))."""
  found = maximum_mean_discrepancy(np.zeros((1, 1)), np.zeros((1, 1)), np.full((1, 1), 3.0), 2.0)
  np.testing.assert_allclose(found, 2 - 2 * np.exp(-9 / 8), rtol=1e-12)
  assert np.isnan(maximum_mean_discrepancy(np.zeros((0, 0)), np.zeros((1, 1)), np.zeros((0, 1)), 2.0))


def test_statistics_of_a_path_and_a_triangle():
  adjacency = np.zeros((3, 4, 4), np.uint8)
  for i, edges in enumerate([[(0, 1), (1, 2)], [(0, 1), (1, 2), (0, 2)]]):
    for j, k in edges:
      adjacency[i, j, k] = adjacency[i, k, j] = 1
  found = describe_graphs(adjacency, np.array([3, 3, 0]))
  assert len(found.degree) == 2  # the empty graph is left out
  np.testing.assert_array_equal(found.degree, [[0, 2, 1, 0], [0, 0, 3, 0]])
  np.testing.assert_array_equal(found.clustering[:, [0, 99]], [[3, 0], [0, 3]])
  np.testing.assert_allclose(found.orbit[:, :4], [[4 / 3, 2 / 3, 1 / 3, 0], [2, 0, 0, 1]], atol=1e-6)


def test_comparison_has_the_kernels_of_the_papers_code():
  """One graph each: degrees 1 apart, coefficients 1 apart, orbit counts 30 apart."""
  degree, clustering, orbit = np.zeros((2, 1, 4)), np.zeros((2, 1, 100)), np.zeros((2, 1, 15))
  degree[0, 0, 1] = degree[1, 0, 2] = 5
  clustering[0, 0, 0] = clustering[1, 0, 50] = 5
  orbit[1, 0, 3] = 30
  one, other = (GraphStatistics(degree[i], clustering[i], orbit[i]) for i in range(2))
  found = compare_graphs(one, other)
  expected = {"degree": 1 / 2, "clustering": 12.5, "orbit": 1 / 2}
  for name, exponent in expected.items():
    np.testing.assert_allclose(found[name], 2 - 2 * np.exp(-exponent), rtol=1e-9)
  assert compare_graphs(one, one) == dict.fromkeys(expected, 0)
  varied = compare_graphs(one, other, "total_variation")
  np.testing.assert_allclose(varied["clustering"], 2 - 2 * np.exp(-50), rtol=1e-9)
  with pytest.raises(InputError, match="padded to 4 and 5 nodes"):
    compare_graphs(one, other._replace(degree=np.zeros((1, 5))))
  with pytest.raises(InputError, match="expected earth_mover or total_variation"):
    compare_graphs(one, other, "tv")


def test_an_erdos_renyi_fit_gives_back_sizes_and_density():
  adjacency, sizes = np.zeros((2, 5, 5), np.uint8), np.array([5, 3])
  adjacency[0], adjacency[1, 0, 1], adjacency[1, 1, 0] = 1 - np.eye(5), 1, 1
  model = fit_erdos_renyi(adjacency, sizes)
  np.testing.assert_allclose(model.probability, 11 / 13)
  edges, num_nodes = sample_erdos_renyi(np.random.default_rng(0), model, 400, 6)
  assert set(num_nodes) == {3, 5} and abs((num_nodes == 3).mean() - 0.5) < 0.1
  np.testing.assert_array_equal(edges, edges.transpose(0, 2, 1))
  assert not edges[:, 5].any() and not edges[num_nodes == 3][:, 3].any()
  assert abs(edges.sum() / (num_nodes * (num_nodes - 1)).sum() - 11 / 13) < 0.02
