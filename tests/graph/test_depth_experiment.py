"""The wiring of the study of depth: which network each kind is, and which layer each energy."""

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
