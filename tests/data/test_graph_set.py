"""Many graphs: what is drawn, what a file holds, and what is refused."""

import numpy as np
import pytest

from mlnotes.data import load_graph_set, make_graph_set
from mlnotes.data.image import DataError


def write(path, **changes):
  """A triangle and a path of two nodes."""
  arrays = dict(
    graph_label=[7, 3], num_nodes=[3, 2], node_label=[0, 1, 1, 0, 2], senders=[0, 1, 2, 3], receivers=[1, 2, 0, 4]
  )
  arrays = {name: np.array(value) for name, value in {**arrays, **changes}.items() if value is not None}
  np.savez(path / "two.npz", **arrays)
  return str(path / "two.npz")


def test_a_file_is_read_with_both_directions_and_labels_one_hot(tmp_path):
  found = load_graph_set(write(tmp_path))
  assert found.num_nodes.tolist() == [3, 2] and found.num_edges.tolist() == [6, 2]
  assert found.class_names == ("3", "7") and found.label.tolist() == [1, 0]
  edges = set(zip(found.senders.tolist(), found.receivers.tolist()))
  assert edges == {(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0), (3, 4), (4, 3)}
  assert (found.receivers[found.edge_start[1] :] >= 3).all()
  np.testing.assert_array_equal(found.features.argmax(1), [0, 1, 1, 0, 2])


def test_features_stand_beside_labels_or_alone(tmp_path):
  numbers = np.arange(10.0).reshape(5, 2)
  assert load_graph_set(write(tmp_path, features=numbers)).features.shape == (5, 5)
  np.testing.assert_array_equal(load_graph_set(write(tmp_path, features=numbers, node_label=None)).features, numbers)
  assert (load_graph_set(write(tmp_path, node_label=None)).features == np.ones((5, 1))).all()


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(senders=[0, 1, 2, 3], receivers=[1, 2, 0, 9]), r"receivers.*9.*expected"),
    (dict(senders=[0, 1, 2, 1], receivers=[1, 2, 0, 4]), "edge 3 goes from node 1 of graph 0 to node 4 of graph 1"),
    (dict(num_nodes=[5, 0]), r"num_nodes.*0.*expected"),
    (dict(graph_label=[1]), "found 1 labels, expected 2"),
    (dict(node_label=[0, 1]), "node_label has 2 entries, expected 5"),
    (dict(senders=None), "expected senders"),
    (dict(num_nodes=[0, 5]), r"num_nodes\[0\] is 0, expected 1 or more"),
    (dict(node_label=None, features=np.zeros((5, 0))), "the features have no column, expected one or more"),
    (dict(features=np.zeros((4, 2))), "node_label has 5 entries and features 4 rows"),
  ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, changes, words):
  with pytest.raises(DataError, match=words):
    load_graph_set(write(tmp_path, **changes))


def test_no_such_graphs():
  with pytest.raises(DataError, match="--dataset=mutagg: no such graphs, expected models, digits or a file"):
    load_graph_set("mutagg")


def test_models_are_connected_and_not_told_by_counting():
  found = load_graph_set("models")
  again, other = load_graph_set("models"), load_graph_set("models", 1)
  assert (found.senders == again.senders).all() and len(found.senders) != len(other.senders)
  np.testing.assert_array_equal(found.num_edges, 2 * (2 * found.num_nodes - 4))
  assert np.bincount(found.label).tolist() == [100] * 3
  # Clustering tells small worlds, the greatest degree preferential attachment.
  greatest = np.array([np.bincount(found.receivers[a:b]).max() for a, b in zip(found.edge_start, found.edge_start[1:])])
  assert (
    greatest[found.label == 1].mean()
    > 1.3 * greatest[found.label == 0].mean()
    > 1.5 * greatest[found.label == 2].mean()
  )


def test_digits_are_grids():
  found = load_graph_set("digits")
  assert found.num_graphs == 1797 and set(found.num_nodes) == {64} and set(found.num_edges) == {224}
  degree = np.bincount(found.receivers[: found.edge_start[1]])
  assert sorted(np.bincount(degree)[2:].tolist()) == [4, 24, 36]


def test_edges_are_made_whole_and_loops_left_out():
  one = np.array([0, 0, 1]), np.array([0, 1, 0])
  found = make_graph_set("x", "x", np.array([2]), *one, np.ones((2, 1)), np.array([0]), ("a",))
  assert found.senders.tolist() == [1, 0] and found.receivers.tolist() == [0, 1]
