"""Graphs that are the same are found to be, others are not: by hand, and as networkx has it; what is valid, new."""

import numpy as np
import pytest

from mlnotes.data.drawn_graphs import VALENCES, draw_community, draw_molecule, make_grid_graph
from mlnotes.engine.errors import InputError
from mlnotes.graph.isomorphism import (
  GraphIndex,
  are_isomorphic,
  hash_graph,
  is_connected,
  is_ego_graph,
  is_two_blocks,
  judge_novelty,
  keeps_valences,
  make_member_rule,
  refine_colours,
  unpad_graph,
)


def make_graph(size, *edges, kinds=None):
  adjacency = np.zeros((size, size), np.uint8)
  for i, j, *kind in edges:
    adjacency[i, j] = adjacency[j, i] = kind[0] if kind else 1
  return adjacency, np.ones(size, np.uint8) if kinds is None else np.array(kinds, np.uint8)


def cycle(*nodes):
  return list(zip(nodes, nodes[1:] + nodes[:1]))


def shuffle(graph, seed):
  order = np.random.default_rng(seed).permutation(len(graph[1]))
  return graph[0][np.ix_(order, order)], graph[1][order]


HEXAGON = make_graph(6, *cycle(0, 1, 2, 3, 4, 5))
TRIANGLES = make_graph(6, *cycle(0, 1, 2), *cycle(3, 4, 5))


def test_a_shuffled_graph_is_the_same():
  rng = np.random.default_rng(0)
  for i in range(10):
    for graph in (draw_community(rng), draw_molecule(rng)):
      other = shuffle(graph, i)
      assert hash_graph(graph) == hash_graph(other) and are_isomorphic(graph, other)


def test_what_refinement_cannot_tell_apart_the_search_does():
  """A hexagon and two triangles, whose nodes all have two neighbours, and so have theirs."""
  assert hash_graph(HEXAGON) == hash_graph(TRIANGLES)
  assert not are_isomorphic(HEXAGON, TRIANGLES) and are_isomorphic(HEXAGON, shuffle(HEXAGON, 1))
  # The prism and the complete bipartite graph of three and three: cubic, connected both.
  prism = make_graph(6, *cycle(0, 1, 2), *cycle(3, 4, 5), (0, 3), (1, 4), (2, 5))
  bipartite = make_graph(6, *((i, j) for i in range(3) for j in range(3, 6)))
  assert not are_isomorphic(prism, bipartite)


@pytest.mark.parametrize(
  "other",
  [
    make_graph(3, (0, 1), (1, 2), kinds=[1, 1, 2]),
    make_graph(3, (0, 1, 2), (1, 2), kinds=[1, 2, 1]),
    make_graph(3, (0, 1), (1, 2), (0, 2), kinds=[1, 2, 1]),
    make_graph(4, (0, 1), (1, 2), kinds=[1, 2, 1, 1]),
  ],
  ids=["node type", "edge type", "one edge more", "one node more"],
)
def test_types_edges_and_nodes_count(other):
  graph = make_graph(3, (0, 1), (1, 2), kinds=[1, 2, 1])
  assert are_isomorphic(graph, graph) and not are_isomorphic(graph, other)
  assert hash_graph(graph) != hash_graph(other)


def test_colours_are_those_of_distance_to_an_end():
  colours = refine_colours(make_graph(5, (0, 1), (1, 2), (2, 3), (3, 4)))
  assert colours[0] == colours[4] and colours[1] == colours[3] and len(set(colours)) == 3
  assert len(set(refine_colours(make_graph(5, (0, 1), (1, 2), (2, 3), (3, 4)), rounds=1))) == 2


@pytest.mark.parity
def test_isomorphism_is_that_of_networkx():
  """Random graphs of six nodes and seven edges: a few of them are the same."""
  networkx = pytest.importorskip("networkx")
  rng, pairs = np.random.default_rng(0), np.argwhere(np.triu(np.ones((6, 6)), 1))
  graphs = [make_graph(6, *pairs[rng.choice(15, 7, replace=False)]) for _ in range(40)]
  of_networkx = [networkx.from_numpy_array(adjacency) for adjacency, _ in graphs]
  same = 0
  for i in range(len(graphs)):
    for j in range(i):
      expected = networkx.is_isomorphic(of_networkx[i], of_networkx[j])
      assert are_isomorphic(graphs[i], graphs[j]) == expected
      same += expected
  assert 10 < same < 400
  distinct = GraphIndex(graphs)
  classes = []
  for graph in of_networkx:
    if not any(networkx.is_isomorphic(graph, other) for other in classes):
      classes.append(graph)
  assert len(distinct) == len(classes)


def test_valid_unique_and_novel_are_shares_of_what_is_left():
  triangle, path = make_graph(3, *cycle(0, 1, 2)), make_graph(3, (0, 1), (1, 2))
  square = make_graph(4, *cycle(0, 1, 2, 3))
  apart = make_graph(3, (0, 1))
  found = [triangle, shuffle(triangle, 0), path, shuffle(path, 1), shuffle(path, 2), square, apart, apart]
  judged = judge_novelty(found, GraphIndex([shuffle(path, 3)]), is_connected)
  assert judged == (6 / 8, 3 / 6, 2 / 3, 2 / 8)
  nothing = judge_novelty([apart], GraphIndex(), is_connected)
  assert nothing.valid == nothing.all_three == 0 and np.isnan(nothing.unique) and np.isnan(nothing.novel)


def test_rules_of_the_sets():
  rng = np.random.default_rng(1)
  assert np.mean([is_two_blocks(draw_community(rng)) for _ in range(200)]) > 0.98
  dense = np.triu(rng.random((50, 16, 16)) < 0.5, 1).astype(np.uint8)
  assert not any(is_two_blocks((edges | edges.T, np.ones(16, np.uint8))) for edges in dense)
  is_ladder = make_member_rule([make_grid_graph(2, rungs) for rungs in range(2, 5)])
  assert is_ladder(shuffle(make_grid_graph(2, 4), 0)) and not is_ladder(make_grid_graph(3, 3))
  assert is_ego_graph(make_graph(4, (2, 0), (2, 1), (2, 3))) and not is_ego_graph(HEXAGON)
  assert not is_connected(TRIANGLES) and not is_connected(make_graph(0)) and is_connected(make_graph(1))


def test_a_molecule_is_valid_within_its_valences():
  # C, N, O in a row: C#N, N-O; then one bond too many on the oxygen.
  assert keeps_valences(make_graph(2, (0, 1, 3), kinds=[1, 2]), VALENCES)
  assert keeps_valences(make_graph(3, (0, 1, 2), (1, 2), kinds=[1, 2, 3]), VALENCES)
  assert not keeps_valences(make_graph(3, (0, 1, 2), (1, 2, 2), kinds=[1, 2, 3]), VALENCES)
  assert not keeps_valences(make_graph(3, (0, 1), kinds=[1, 2, 3]), VALENCES)  # the oxygen hangs by nothing
  with pytest.raises(InputError, match="found a node of type 4, expected 1 to 3"):
    keeps_valences(make_graph(1, kinds=[4]), VALENCES)


def test_padding_is_taken_off_wherever_it_is():
  adjacency, kinds = make_graph(4, (0, 2), (2, 3), kinds=[1, 0, 2, 1])
  found = unpad_graph(adjacency, kinds)
  np.testing.assert_array_equal(found[0], make_graph(3, (0, 1), (1, 2))[0])
  np.testing.assert_array_equal(found[1], [1, 2, 1])
