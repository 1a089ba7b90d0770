"""The benchmark of graph networks: the graph that it draws, that it measures, that both sides are one network."""

import numpy as np
import pytest

from launch.benchmarks import graph as benchmark
from mlnotes.engine.errors import InputError


def test_the_random_graph_has_the_size_of_cora():
  data = benchmark.read_graph("random")
  assert (data.num_nodes, data.features.shape[1], data.num_classes) == (2708, 1433, 7)
  assert (data.train.sum(), data.valid.sum(), data.test.sum()) == (140, 500, 1000)
  assert 10_400 < len(data.senders) <= 10_556 and 0.01 < (data.features != 0).mean() < 0.013


def test_a_large_graph_is_learned_from_by_samples():
  config = benchmark.Config(networks=("sampled",), nodes=50, edges=90, batch=4, fanout=(2, 3), epochs=2, rounds=1)
  found = benchmark.measure(config, "sampled")
  assert found["parameters"] == (2 * 64 + 1) * 64 + (2 * 64 + 1) * 10
  assert len(found["rounds"]["mlnotes"]) == 1 and found["seconds"]["mlnotes"] > 0


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", ["gcn", "gat"])
def test_both_train_one_network(layer):
  pytest.importorskip("torch_geometric")
  config = benchmark.Config(epochs=1, rounds=1)
  ours, epochs = benchmark.our_network(layer, config)
  theirs, _ = benchmark.torch_network(layer, config)
  epochs(1)
  assert ours == theirs == {"gcn": 1433 * 16 + 16 * 7, "gat": 1433 * 64 + 3 * 64 + 64 * 7 + 3 * 7}[layer]


def test_unknown_networks_are_refused():
  with pytest.raises((InputError, ValueError), match="--networks=gnn"):
    benchmark.Config(networks=("gnn",))


def test_features_are_normalised_for_both():
  np.testing.assert_allclose(benchmark.normalize_rows(benchmark.read_graph("random").features).sum(1), 1, rtol=1e-5)
