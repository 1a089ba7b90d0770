"""Graphs drawn by position against graphs joined by hand; what does not fit; pooling; what networks tell apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes import graph
from mlnotes.data import make_graph_set
from mlnotes.engine.errors import InputError

# A triangle with a tail, a path of three, a lonely node, a square.
SIZES = [4, 3, 1, 4]
ENDS = [(0, 1), (1, 2), (2, 0), (2, 3), (4, 5), (5, 6), (8, 9), (9, 10), (10, 11), (11, 8)]


def graphs_of(sizes=SIZES, ends=ENDS, features=None):
  values = np.arange(sum(sizes) * 2.0).reshape(-1, 2) + 1 if features is None else features
  return make_graph_set(
    "x", "x", np.array(sizes), *np.array(ends).T, values, np.arange(len(sizes)), tuple(map(str, range(len(sizes))))
  )


def take(found, index, budget):
  arrays = {name: jnp.asarray(value) for name, value in found.arrays.items()}
  return jax.jit(graph.take_graphs, static_argnums=2)(arrays, jnp.array(index), budget)


def dense_of(batch):
  matrix = np.zeros((len(batch.features),) * 2)
  np.add.at(matrix, (np.asarray(batch.edges.receivers), np.asarray(batch.edges.senders)), np.asarray(batch.edges.mask))
  return matrix


def test_graphs_stand_one_after_the_other_with_their_own_edges():
  found = graphs_of()
  batch = take(found, [3, -1, 0, 1], graph.Budget(12, 24))
  np.testing.assert_array_equal(batch.graph, [0] * 4 + [2] * 4 + [3] * 3 + [4])
  np.testing.assert_array_equal(batch.kept, [1, 0, 1, 1])
  np.testing.assert_array_equal(batch.features[:11], found.features[[8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6]])
  assert not batch.features[11].any() and batch.real.sum() == 11
  expected = np.zeros((12, 12))
  for a, b in [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 4), (6, 7), (8, 9), (9, 10)]:
    expected[a, b] = expected[b, a] = 1
  np.testing.assert_array_equal(dense_of(batch), expected)


@pytest.mark.parametrize("budget", [(8, 99), (99, 15)])
def test_what_has_no_room_is_left_out_whole_with_all_after_it(budget):
  batch = take(graphs_of(), [0, 3, 1, 2], graph.Budget(*budget))
  np.testing.assert_array_equal(batch.kept, [1, int(budget[1] > 15), 0, 0])
  count = 4 * int(batch.kept.sum())
  np.testing.assert_array_equal(batch.graph[:count], [0] * 4 + [1] * (count - 4))
  assert (batch.graph[count:] == 4).all() and batch.edges.mask.sum() == 8 * int(batch.kept.sum())


def test_pooling_is_of_the_nodes_that_are_there():
  found = graphs_of()
  batch = take(found, [3, -1, 2], graph.Budget(9, 30))
  own = found.features[8:12], found.features[7:8]
  for how, reduce in (("sum", np.sum), ("mean", np.mean), ("max", np.max)):
    expected = [reduce(own[0], axis=0), [0, 0], reduce(own[1], axis=0)]
    np.testing.assert_allclose(graph.pool_nodes(batch, -batch.features + 20, how)[1], 0)
    np.testing.assert_allclose(graph.pool_nodes(batch, batch.features, how), expected)


def test_a_budget_has_room_for_batches_and_is_no_greater_than_needed():
  sizes = np.array([3] * 50 + [90])
  found = graph.choose_budget(sizes, 2 * sizes, 4)
  assert 99 <= found.nodes <= 99 * 1.05 + 1 and found.edges >= 2 * 99
  assert graph.choose_budget(sizes[:50], sizes[:50], 4) == (12, 12)
  assert graph.choose_budget(sizes, np.zeros(51, int), 4).edges == 1
  rare = np.array([1] * 996 + [9] * 4)  # no two great ones are drawn together
  assert graph.choose_budget(rare, rare, 3).nodes < 27
  assert graph.choose_budget(rare, rare, 3, [np.array([0, 1]), np.array([996, 997, 999])]) == (27, 27)
  with pytest.raises(InputError, match="batch_size=52 is out of range: expected 1 to 51 graphs"):
    graph.choose_budget(sizes, sizes, 52)


def logits_of(found, index, budget, **options):
  network = graph.GraphNetwork(2, width=8, depth=2, **options)
  batch = take(found, index, budget)
  variables = network.init(jax.random.key(0), batch)
  return network.apply(variables, batch)


def test_padding_and_company_change_nothing_where_statistics_are_kept():
  found = graphs_of()
  alone, beside = logits_of(found, [1], graph.Budget(3, 4)), logits_of(found, [3, 1, -1], graph.Budget(17, 40))
  np.testing.assert_allclose(alone[0], beside[1], atol=1e-5)


def test_the_batch_statistics_are_of_real_nodes():
  found, network = graphs_of(), graph.GraphNetwork(2, width=8, depth=1)
  updated = []
  for budget in ((11, 20), (40, 90)):
    batch = take(found, [0, 1, 3], graph.Budget(*budget))
    variables = network.init(jax.random.key(0), batch)
    updated.append(
      network.apply(variables, batch, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"])[1]
    )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *updated)


def test_a_sum_tells_graphs_apart_that_mean_and_maximum_cannot():
  """A star of three leaves and one of two, all alike (Xu et al. 2019, figure 3); and none tells two triangles from a
  hexagon."""
  stars = graphs_of([4, 3, 6, 6], [(0, 1), (0, 2), (0, 3), (4, 5), (4, 6), (7, 8), (8, 9), (9, 7), (10, 11), (11, 12),
    (12, 10), (13, 14), (14, 15), (15, 16), (16, 17), (17, 18), (18, 13)], np.ones((19, 1)))  # fmt: skip
  for aggregate in ("sum", "mean", "max"):
    logits = logits_of(stars, [0, 1, 2, 3], graph.Budget(19, 40), aggregate=aggregate, pooling="mean")
    apart = bool(np.abs(logits[0] - logits[1]).max() > 1e-4)
    assert apart == (aggregate == "sum")
    np.testing.assert_allclose(logits[2], logits[3], atol=1e-5)


def test_without_edges_a_network_sees_a_set():
  one, other = graphs_of(), graphs_of(ends=[(0, 3), (4, 6), (8, 10)])
  same = [logits_of(found, [0, 1, 3], graph.Budget(11, 20), aggregate="none") for found in (one, other)]
  np.testing.assert_allclose(*same, atol=1e-6)


def test_colours_are_those_of_the_refinement():
  """Two triangles and a hexagon stay one colour, like each other; a path of five has two colours, then three."""
  stars = graphs_of([6, 6, 5], [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3), (6, 7), (7, 8), (8, 9), (9, 10),
    (10, 11), (11, 6), (12, 13), (13, 14), (14, 15), (15, 16)], np.ones((17, 1)))  # fmt: skip
  colors = graph.refine_colors(np.zeros(17, int), stars.senders, stars.receivers, 2)
  counts = graph.count_colors(colors, np.repeat([0, 1, 2], [6, 6, 5]))
  np.testing.assert_array_equal(counts[0], counts[1])
  assert sorted(counts[2][counts[2] > 0].tolist()) == [1, 2, 2, 2, 3, 5]
