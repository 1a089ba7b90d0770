"""Drawn sets of graphs: each is what its name says, in the padded form; files are read as they were written."""

import numpy as np
import pytest

from mlnotes.data.drawn_graphs import (
  DRAWN,
  VALENCES,
  DataError,
  draw_molecule,
  find_component,
  load_small_graphs,
  make_grid_graph,
)


def each_graph(graphs):
  for split in (graphs.train, graphs.test):
    yield from zip(*(split.arrays[name] for name in ("adjacency", "node_type", "num_nodes")))


@pytest.mark.parametrize("name", DRAWN)
def test_graphs_are_symmetric_connected_without_loops_and_padded(name):
  graphs = load_small_graphs(name, 40)
  assert len(graphs.train) == 32 and len(graphs.test) == 8
  sizes = []
  for adjacency, node_type, size in each_graph(graphs):
    np.testing.assert_array_equal(adjacency, adjacency.T)
    assert not adjacency.diagonal().any() and not adjacency[size:].any()
    np.testing.assert_array_equal(node_type > 0, np.arange(len(node_type)) < size)
    assert find_component(adjacency[:size, :size]).all()
    assert adjacency.max() <= len(graphs.edge_types) and node_type.max() <= len(graphs.node_types)
    sizes.append(size)
  assert max(sizes) == graphs.most_nodes and len(set(sizes)) > 2


def test_a_seed_draws_its_graphs_again_and_another_others():
  draw = lambda seed: load_small_graphs("community", 12, seed).train.arrays["adjacency"]
  np.testing.assert_array_equal(draw(3), draw(3))
  assert draw(3).shape != draw(4).shape or (draw(3) != draw(4)).any()


def test_communities_have_12_to_20_nodes_and_few_edges_between_two_dense_blocks():
  graphs = load_small_graphs("community", 100)
  degrees, sizes = [], []
  for adjacency, _, size in each_graph(graphs):
    degrees.append(adjacency.sum() / size)
    sizes.append(size)
    vector = np.linalg.eigh(np.diag(adjacency[:size, :size].sum(0)) - adjacency[:size, :size].astype(float))[1][:, 1]
    cut = adjacency[:size, :size][vector > 0][:, vector <= 0].sum()
    assert cut <= 2 or size < 12  # one edge between blocks of up to ten nodes, another where a node hangs by one
  assert min(sizes) >= 11 and max(sizes) == 20
  # Inside a block of k nodes .8 (k - 1), k on average 8: 5.6, and an edge between the blocks for 2 k nodes.
  assert abs(np.mean(degrees) - 5.75) < 0.3


def test_a_grid_has_the_edges_of_one():
  adjacency, _ = make_grid_graph(2, 3)
  expected = np.zeros((6, 6), int)
  for i, j in ((0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)):
    expected[i, j] = expected[j, i] = 1
  np.testing.assert_array_equal(adjacency, expected)


def test_a_molecule_keeps_every_valence():
  rng = np.random.default_rng(0)
  orders = set()
  for _ in range(200):
    bonds, kind = draw_molecule(rng)
    assert (bonds.sum(0) <= np.array(VALENCES)[kind - 1]).all()
    orders |= set(np.unique(bonds))
  assert orders == {0, 1, 2, 3}


def test_in_an_ego_graph_the_first_node_knows_all_others():
  for adjacency, _, size in each_graph(load_small_graphs("ego", 40)):
    assert adjacency[0, 1:size].all() and 4 <= size <= 18


@pytest.fixture
def arrays():
  """Ten triangles with a tail each, of two labels, and one graph of a node that nothing reaches."""
  tail = np.array([[0, 1], [1, 2], [2, 0], [2, 3]])
  ends = np.concatenate([tail + 4 * i for i in range(10)])
  label = np.concatenate([np.tile([7, 7, 7, 9], 10), [7]])
  sizes = np.array([4] * 10 + [1])
  return {"num_nodes": sizes, "senders": ends[:, 0], "receivers": ends[:, 1], "node_label": label}


def test_a_file_gives_the_graphs_that_are_in_it(tmp_path, arrays):
  np.savez(tmp_path / "a.npz", **arrays)
  graphs = load_small_graphs(str(tmp_path / "a.npz"))
  assert (len(graphs.train), len(graphs.test)) == (9, 1) and graphs.node_types == ("7", "9")
  assert graphs.notes == ("1 of 11 graphs are left out, expected 2 to 40 nodes",)
  expected = [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 0]]
  for adjacency, node_type, _ in each_graph(graphs):
    np.testing.assert_array_equal(adjacency, expected)
    np.testing.assert_array_equal(node_type, [1, 1, 1, 2])


@pytest.mark.parametrize(
  "change, said",
  [
    (dict(senders=None), "expected num_nodes, senders and receivers"),
    (dict(receivers=np.full(40, 41)), r"receivers\[0\] is 41, expected 0 to 40"),
    (dict(receivers=np.full(40, 40)), "edge 0 joins nodes 0 and 40 of two graphs, expected both in one"),
    (dict(node_label=np.zeros(3, int)), "node_label has 3 numbers, expected 41"),
    (dict(num_nodes=np.array([41])), "found 0 graphs whose largest connected part has 2 to 3 nodes|edge"),
  ],
)
def test_a_file_that_holds_no_graphs_is_told(tmp_path, arrays, change, said):
  arrays = {name: value for name, value in (arrays | change).items() if value is not None}
  np.savez(tmp_path / "a.npz", **arrays)
  with pytest.raises(DataError, match=said):
    load_small_graphs(str(tmp_path / "a.npz"), most_nodes=3)


def test_a_set_that_is_not_there_is_told():
  with pytest.raises(DataError, match="no such set of graphs, expected community, grid, ladder, ego, molecules or a"):
    load_small_graphs("comunity")
  with pytest.raises(DataError, match="--graphs=4: expected 10 or more"):
    load_small_graphs("community", 4)
