import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import mlnotes.data.graph
from mlnotes.data import DataError, load_graph, make_graph_feeds
from mlnotes.data.flags import GraphConfig, make_feeds
from mlnotes.data.graph import make_undirected, sample_block_model, split_nodes
from mlnotes.engine.errors import InputError


def test_the_karate_club():
  graph = load_graph("karate")
  assert graph.num_nodes == 34 and len(graph.senders) == len(graph.receivers) == 2 * 78
  degree = np.bincount(graph.receivers)
  assert (degree[0], degree[33], degree[11]) == (16, 17, 1)
  assert graph.class_names == ("Mr. Hi", "Officer") and graph.label.sum() == 17
  assert graph.train.nonzero()[0].tolist() == [0, 33]
  np.testing.assert_array_equal(graph.train.astype(int) + graph.valid + graph.test, np.ones(34))


@pytest.mark.parity
def test_the_karate_club_is_networkx_s():
  networkx = pytest.importorskip("networkx")
  theirs, graph = networkx.karate_club_graph(), load_graph("karate")
  assert {tuple(e) for e in zip(graph.senders, graph.receivers)} == set(theirs.to_directed().edges())
  assert [graph.class_names[i] for i in graph.label] == [theirs.nodes[i]["club"] for i in range(34)]


def test_edges_of_blocks_have_their_probabilities():
  label = jnp.repeat(jnp.arange(2), 300)
  probabilities = jnp.array([[0.3, 0.05], [0.05, 0.1]])
  edges = np.asarray(jax.jit(sample_block_model)(jax.random.key(0), label, probabilities))
  np.testing.assert_array_equal(edges, edges.T)
  assert not edges.diagonal().any()
  for i, j, pairs in ((0, 0, 300 * 299), (1, 1, 300 * 299), (0, 1, 300 * 300)):
    rate, p = edges[300 * i :][:300, 300 * j :][:, :300].sum() / pairs, float(probabilities[i, j])
    assert abs(rate - p) < 4 * np.sqrt(p * (1 - p) / (pairs / (2 if i == j else 1)))


def test_a_block_model_is_its_seed():
  first, same, other = (load_graph("sbm", graph_seed=seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first.senders, same.senders)
  assert first.senders.tolist() != other.senders.tolist()
  assert np.bincount(first.label).tolist() == [50] * 4
  # The mean of the features of a block is its one-hot vector, to 5 deviations of a mean of 50.
  means = np.stack([first.features[first.label == i].mean(axis=0) for i in range(4)])
  np.testing.assert_allclose(means, np.eye(4), atol=5 / np.sqrt(50))
  inside = first.label[first.senders] == first.label[first.receivers]
  assert 0.6 < inside.mean() < 0.9  # 49 * 0.1 / (49 * 0.1 + 150 * 0.01) = 0.77


def test_a_block_model_is_drawn_on_the_first_cpu_whatever_the_default_device_is(monkeypatch):
  """An accelerator may round in another way, and the graph is to be the same beside one."""
  places = []

  def spied(sample):
    def draw(*args):
      places.append((drawn := sample(*args)).devices())
      return drawn

    return draw

  monkeypatch.setattr(mlnotes.data.graph, "sample_block_model", spied(sample_block_model))
  monkeypatch.setattr(jax.random, "normal", spied(jax.random.normal))
  with jax.default_device(jax.devices()[3]):
    graph = load_graph("sbm")
  assert places == [{jax.local_devices(backend="cpu")[0]}] * 2
  monkeypatch.undo()
  np.testing.assert_array_equal(graph.features, load_graph("sbm").features)


def sparse_file(path, adjacency, attr=None, **more):
  matrices = {"adj": scipy.sparse.csr_matrix(adjacency)} | ({} if attr is None else {"attr": attr})
  parts = {}
  for name, matrix in matrices.items():
    matrix = scipy.sparse.csr_matrix(matrix)
    parts |= {f"{name}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr", "shape")}
  np.savez(path, **{**parts, **more})
  return str(path)


def test_a_file_in_the_sparse_form(tmp_path):
  random = np.random.default_rng(0)
  adjacency = (random.random((60, 60)) < 0.1) * 1.0
  features = random.normal(size=(60, 5)) * (random.random((60, 5)) < 0.3)
  label = random.integers(0, 3, 60) * 2
  path = sparse_file(tmp_path / "g.npz", adjacency, features, labels=label)
  graph = load_graph(path, undirected=False)
  np.testing.assert_array_equal(np.stack([graph.senders, graph.receivers]), np.nonzero(adjacency))
  np.testing.assert_array_equal(graph.features, features.astype(np.float32))
  np.testing.assert_array_equal(graph.label, label // 2)
  assert graph.class_names == ("0", "2", "4")
  both = load_graph(path)
  expected = np.logical_or(adjacency, adjacency.T)
  np.fill_diagonal(expected, False)
  np.testing.assert_array_equal(np.stack([both.receivers, both.senders]), np.nonzero(expected))
  # The same by edges, coordinates and indices.
  row, column = np.nonzero(features)
  coordinates = {"feature_row": row, "feature_col": column, "feature_value": features[row, column]}
  senders, receivers = np.nonzero(adjacency)
  masks = {"train_index": [0, 1, 2], "val_index": [3], "test_index": [5, 4]}
  np.savez(tmp_path / "h.npz", senders=senders, receivers=receivers, labels=label, feature_shape=(60, 5), **coordinates,
           **masks)  # fmt: skip
  other = load_graph(str(tmp_path / "h.npz"), undirected=False)
  for name in ("senders", "receivers", "features", "label"):
    np.testing.assert_array_equal(getattr(other, name), getattr(graph, name))
  assert [getattr(other, name).nonzero()[0].tolist() for name in ("train", "valid", "test")] == [[0, 1, 2], [3], [4, 5]]


LABELS = np.arange(12) % 2
RING = np.roll(np.eye(12), 1, axis=1)


@pytest.mark.parametrize(
  ("more", "sentence"),
  [
    ({"adj_indices": np.full(12, 12)}, r"adj_indices\[0\] is 12, expected 0 to 11"),
    ({"adj_indptr": np.arange(12)}, "adj_indptr is no row of starts, expected 13"),
    ({"adj_data": np.zeros(3)}, r"adj_indices has shape \(12,\), expected M = 3 as in adj_data"),
    ({"adj_shape": np.array([12, 13])}, r"adj_shape is \[12, 13\], expected a square"),
    ({"adj_shape": np.array([12])}, "expected rows and columns"),
    ({"labels": LABELS[:9]}, r"senders\[9\] is 9, expected 0 to 8"),
    ({"senders": LABELS, "receivers": LABELS[:1]}, r"receivers has shape \(1,\), expected E = 12 as in senders"),
    ({"senders": LABELS, "receivers": LABELS[:5]}, r"receivers has shape \(5,\), expected E = 12 as in senders"),
    ({"features": np.zeros((11, 2))}, r"the features have shape \(11, 2\), expected 12 rows"),
    ({"features": np.full((12, 1), np.nan)}, r"features\[0, 0\] is nan, expected finite"),
    ({"features": np.zeros((12, 0))}, "the features have no column, expected one or more"),
    ({"train_mask": LABELS == 0}, "found masks of train, expected test_mask or test_index too"),
    ({"train_mask": LABELS == 0, "test_mask": LABELS < 2}, "node 0 is in train and in test"),
    ({"train_index": np.array([12]), "test_index": np.array([1])}, r"train_index\[0\] is 12, expected 0 to 11"),
    ({"train_mask": LABELS == 3, "test_mask": LABELS == 1}, "train has no node"),
  ],
)
def test_a_file_that_does_not_fit_is_refused(more, sentence, tmp_path):
  path = sparse_file(tmp_path / "g.npz", RING, **{"labels": LABELS, **more})
  with pytest.raises(DataError, match=sentence) as refused:
    load_graph(path)
  assert str(refused.value).startswith(f"--dataset={path}")


@pytest.mark.parametrize(
  ("more", "sentence"),
  [
    (dict(blocks=0), "found 0 blocks of 200 nodes, expected 1 to"),
    (dict(nodes=5, blocks=6), "found 6 blocks of 5 nodes, expected 1 to"),
    (dict(p_within=2.0), "--p_within=2.0: expected a probability"),
    (dict(p_between=-0.1), "--p_between=-0.1: expected a probability"),
  ],
)
def test_a_block_model_that_there_cannot_be_is_refused(more, sentence):
  with pytest.raises(DataError, match=sentence):
    load_graph("sbm", **more)


def test_arrays_that_are_lacking_are_named(tmp_path):
  np.savez(tmp_path / "g.npz", labels=LABELS)
  with pytest.raises(DataError, match="found the arrays labels, expected adj_data, adj_indices, "):
    load_graph(str(tmp_path / "g.npz"))
  np.savez(tmp_path / "g.npz", senders=LABELS)
  with pytest.raises(DataError, match="found the arrays senders, expected labels"):
    load_graph(str(tmp_path / "g.npz"))
  with pytest.raises(DataError, match=r"no such graph, expected karate, sbm or a file\.npz"):
    load_graph("cora")


def test_both_directions_once_without_loops():
  senders, receivers = make_undirected(np.array([0, 1, 2, 2, 0]), np.array([1, 0, 2, 0, 1]), 3)
  assert list(zip(receivers.tolist(), senders.tolist())) == [(0, 1), (0, 2), (1, 0), (2, 0)]


def test_nodes_are_divided_by_class():
  label = np.repeat([0, 1, 2, 3], [100, 50, 6, 1])
  train, valid, test = split_nodes(label, 20, 30)
  assert np.bincount(label[train]).tolist() == [20, 20, 3, 1] and valid.sum() == 30
  np.testing.assert_array_equal(train.astype(int) + valid + test, np.ones(157))


def test_the_mask_of_a_batch_says_which_nodes_count(key):
  graph = load_graph("karate")
  feeds = make_graph_feeds(graph, "valid")
  batch, evaluation = feeds.train.draw(feeds.train.arrays, key, 0), feeds.evaluate.draw(feeds.evaluate.arrays, 0)
  np.testing.assert_array_equal(batch["mask"], graph.train)
  np.testing.assert_array_equal(evaluation["mask"], graph.valid)
  assert feeds.split == "valid" and feeds.fingerprint.startswith("2+24-")
  assert feeds.fingerprint != make_graph_feeds(graph._replace(label=1 - graph.label)).fingerprint
  with pytest.raises(DataError, match="--eval_split=valid: karate has no node in it"):
    make_graph_feeds(graph._replace(valid=np.zeros(34, bool)), "valid")


def test_the_flag_says_which_nodes_are_evaluated():
  """Those to validate on unless there are none: what chooses a checkpoint is not what it is tested on."""
  graph = load_graph("karate")
  bare = graph._replace(valid=np.zeros(34, bool))
  cases = ((graph, {}, "valid"), (graph, {"eval_split": "test"}, "test"), (bare, {}, "test"))
  for data, given, expected in cases:
    feeds = make_feeds(data, GraphConfig(**given))
    assert feeds.split == expected
    np.testing.assert_array_equal(feeds.evaluate.draw(feeds.evaluate.arrays, 0)["mask"], getattr(data, expected))


def test_flags():
  assert set(GraphConfig().idle_flags()) == {"nodes", "blocks", "p_within", "p_between", "graph_seed", "undirected"}
  assert set(GraphConfig(dataset="sbm").idle_flags()) == {"undirected"}
  for bad in ({"p_within": 1.5}, {"blocks": 100}, {"nodes": 3}, {"graph_seed": -1}):
    with pytest.raises(InputError, match=f"--{next(iter(bad))}="):
      GraphConfig(**bad)
