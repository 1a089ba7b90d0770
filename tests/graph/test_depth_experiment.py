"""The wiring of the study of depth: which network each kind is, and which layer each energy."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.graph import depth, nodes
from mlnotes import graph
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError

TINY = dict(nodes=40, blocks=2, hidden=4, steps=3, seeds=2)


def config_of(**flags):
  return depth.Config(**{**TINY, **flags})


def test_each_kind_is_what_it_is_called():
  of = lambda kind: depth.node_config(config_of(), kind, 4)
  assert (of("plain").layer, of("plain").drop_edge, of("plain").residual) == ("gcn", 0.0, "none")
  assert (of("drop_edge").layer, of("drop_edge").drop_edge) == ("gcn", 0.5)
  assert (of("residual").layer, of("residual").residual) == ("gcn", "skip")
  assert of("gcnii").layer == "gcnii" and of("gcnii").layers == 4
  published = nodes.Config.tuned(layer="gcnii")
  for name in ("dropout", "l2", "l2_of"):
    assert getattr(of("gcnii"), name) == getattr(published, name)
  assert published.l2_of == "inner" and published.dropout == 0.6
  for kind in depth.KINDS:
    settings = of(kind)
    assert (settings.hidden, settings.steps, settings.nodes, settings.layers) == (4, 3, 40, 4)


def test_networks_of_a_kind_differ_by_their_residuals():
  """A deep network whose weights are 0 keeps what residuals carry, and plain layers carry nothing."""
  outputs = {}
  for kind in ("plain", "residual", "gcnii"):
    settings = depth.node_config(config_of(), kind, 3)
    network, feeds = nodes.make_network(settings, 2), nodes.make_feeds(settings)
    view = depth.view_whole(settings, feeds.evaluate.arrays)
    params = network.init(jax.random.key(0), view)["params"]
    middle = {"plain": "layer_1", "residual": "layer_1", "gcnii": "layer_1"}[kind]
    params = {**params, middle: jax.tree.map(jnp.zeros_like, params[middle])}
    outputs[kind] = float(jnp.abs(network.apply({"params": params}, view)).max())
  assert outputs["plain"] == 0 and outputs["residual"] > 0 and outputs["gcnii"] > 0


def test_energies_are_of_the_layers_in_order():
  settings = depth.node_config(config_of(), "plain", 3)
  data, feeds = load_data(settings), nodes.make_feeds(settings)
  batch = feeds.evaluate.arrays
  network = nodes.make_network(settings, data.num_classes)
  view = depth.view_whole(settings, batch)
  params = [network.init(jax.random.key(i), view)["params"] for i in range(2)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
  found = depth.layer_energies(settings, stacked, batch)
  assert found.shape == (2, 3)
  kernels = [np.asarray(params[1][f"layer_{i}"]["linear"]["kernel"]) for i in range(3)]
  h, edges = np.asarray(batch["x"]), batch["edges"]
  for i, kernel in enumerate(kernels):
    h = np.asarray(graph.propagate_powers(edges, jnp.asarray(h @ kernel), 1))
    assert found[1, i] == pytest.approx(float(graph.relative_energy(edges, jnp.asarray(h))), rel=1e-4)
    h = np.maximum(h, 0)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_network_is_trained_for_its_steps_from_its_seeds_and_looked_into_as_it_ends(seeds, monkeypatch):
  asked = {}

  class Recorded:
    init = empty_window = lambda self: None

    def __init__(self, experiment, feeds, seeds, mesh):
      asked["seeds"] = list(seeds)

    def update(self, state, window, count):
      asked["updates"] = count
      of_seeds = lambda value: {"kernel": np.full((seeds, 3) if seeds > 1 else 3, value)}
      return SimpleNamespace(params=of_seeds(1.0), best_params=of_seeds(2.0)), None

    def evaluate(self, state):
      values = {"test_accuracy_last": [0.1, 0.2], "test_accuracy_best_valid": [0.3, 0.4]}
      return {name: np.array(value[:seeds] if seeds > 1 else value[0]) for name, value in values.items()}

  monkeypatch.setattr(depth, "Program", Recorded)
  monkeypatch.setattr(depth, "layer_energies", lambda settings, params, batch: params["kernel"])
  found = depth.measure(config_of(seed=5, seeds=seeds, steps=7), "plain", 2)
  assert asked == {"seeds": [5, 6][:seeds], "updates": 7}
  assert found.last.tolist() == [0.1, 0.2][:seeds] and found.best.tolist() == [0.3, 0.4][:seeds]
  np.testing.assert_array_equal(found.energy, np.ones((seeds, 3)))


def test_the_table_and_the_figures_are_of_the_last_epoch_and_the_layer_before_the_last(monkeypatch, tmp_path, capsys):
  found = depth.Found(np.array([0.5, 0.7]), np.array([0.8, 0.9]), np.array([[4.0, 3.0, 2.0], [7.0, 6.0, 5.0]]))
  monkeypatch.setattr(depth, "measure", lambda *given: found)
  monkeypatch.setattr(depth, "_draw", lambda *given: None)
  assert depth.main(config_of(kinds=("plain",), depths=(2,), workdir=str(tmp_path / "study"))) == 0
  assert (tmp_path / "study" / "table.md").read_text().splitlines()[-1] == "| plain | 60.0 ± 14.1 |"
  figures = json.loads((tmp_path / "study" / "result.json").read_text())["metrics"]
  for name, values in (
    ("test_accuracy_last", [0.5, 0.7]),
    ("test_accuracy_best_valid", [0.8, 0.9]),
    ("energy_before_last", [3.0, 6.0]),
  ):
    assert figures[f"plain_2/{name}"]["seeds"] == values


def test_the_study_measures_every_kind_and_depth(tmp_path, capsys):
  config = config_of(kinds=("plain", "gcnii"), depths=(2,), workdir=str(tmp_path / "study"))
  assert depth.main(config) == 0
  assert {p.name for p in (tmp_path / "study").iterdir()} >= {"depth.png", "table.md", "result.json"}
  table = (tmp_path / "study" / "table.md").read_text()
  assert [line.split("|")[1].strip() for line in table.splitlines()] == ["layers", "---", "plain", "gcnii"]


@pytest.mark.parametrize(("flags", "said"), [
  (dict(kinds=("plane",)), "--kinds=plane is no kind"),
  (dict(depths=(1, 2)), "--depths=1"),
  (dict(depths=(2, 2)), "--depths=2,2"),
  (dict(kinds=()), "--kinds="),
])  # fmt: skip
def test_bad_flags_are_one_sentence(flags, said):
  with pytest.raises(InputError if "plane" in said else (InputError, ValueError), match=said):
    config_of(**flags)
