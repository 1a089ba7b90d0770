"""A table, a text, pairs, sounds, a graph, images: each trains its experiment of about ten lines in the loop."""

import ast
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import import_experiment
from mlnotes.engine.program import Program, make_mesh, window_means

HERE = Path(__file__).parent
FILES = ("table_classifier", "text_bigrams", "date_pairs", "audio_classifier", "graph_nodes", "image_classifier")
SMALL = {"text_bigrams": {"length": 16}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  from PIL import Image

  root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
  for name, low in (("dark", 0), ("light", 128)):
    (root / name).mkdir()
    for i in range(25):
      Image.fromarray(random.integers(low, low + 128, (4, 4), np.uint8)).save(root / name / f"{i}.png")
  return str(root)


def make_config(module, name, folder, **values):
  given = {"steps": 12, "log_every": 4, "devices": 1, "tensorboard": False, "checkpoint_every": 4, "eval_every": 0}
  if name != "graph_nodes":
    given["batch_size"] = 8
  if name == "image_classifier":
    given["dataset"] = folder
  return module.Config(**{**given, **SMALL.get(name, {}), **values})


@pytest.mark.parametrize("name", FILES)
def test_it_trains_two_seeds_stops_and_goes_on(name, folder, tmp_path, monkeypatch):
  """Interrupted after 4 updates and resumed, it ends as without; so does one that streams."""
  monkeypatch.setenv("MLNOTES_CACHE", str(tmp_path / "cache"))
  module = import_experiment(str(HERE / f"{name}.py"))
  config = lambda directory, **more: make_config(module, name, folder, workdir=str(tmp_path / directory), **more)
  placements = ("device",) if name == "graph_nodes" else ("device", "stream")
  states = {}
  for placement in placements:
    more = {"seeds": 2} | ({} if name == "graph_nodes" else {"data_placement": placement})
    assert module.main(config(placement, **more)) == 0
    card = json.loads((tmp_path / placement / "result.json").read_text())
    assert card["finished"] and card["best_split"] == ("valid" if name == "graph_nodes" else "test") and card["data"]
    losses = card["metrics"]["loss"]["seeds"]
    assert len(losses) == 2 and np.isfinite(losses).all()
    states[placement] = card["metrics"]
  assert all(found == states["device"] for found in states.values())

  calls = []

  def interrupt(program, state, window, count, update=Program.update):
    calls.append(count)
    if len(calls) > 2:  # the first stretch is of one update
      raise KeyboardInterrupt
    return update(program, state, window, count)

  last = placements[-1]
  more = {"seeds": 2} | ({} if last == "device" else {"data_placement": last})
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(Program, "update", interrupt)
    module.main(config("cut", **more))
  assert not (tmp_path / "cut" / "result.json").exists() and any((tmp_path / "cut" / "checkpoints").iterdir())
  assert module.main(config("cut", **more)) == 0
  assert json.loads((tmp_path / "cut" / "result.json").read_text())["metrics"] == states["device"]


def test_the_bigrams_are_those_that_counting_gives(tmp_path):
  """Trained on the whole text at once, the loss goes to that of the frequencies."""
  (tmp_path / "t.txt").write_text("abacabadabacaba" * 20)
  module = import_experiment(str(HERE / "text_bigrams.py"))
  path = str(tmp_path / "t.txt")
  config = make_config(module, "text_bigrams", "", dataset=path, test_dataset=path, steps=300, batch_size=18)
  program = Program(module.make(config), module.make_feeds(config), [0], make_mesh(1))
  state, _ = program.update(program.init(), program.empty_window(), 300)
  batches = program.feeds.evaluate
  tokens = np.asarray(batches.arrays["tokens"])[np.asarray(batches.arrays["mask"]) > 0]
  counts = np.zeros((6, 6))
  np.add.at(counts, (tokens[:, :-1], tokens[:, 1:]), 1)
  frequency = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  entropy = -np.sum(counts * np.log(np.where(counts > 0, frequency, 1))) / counts.sum()
  np.testing.assert_allclose(program.evaluate(state)["loss"], entropy, atol=2e-3)


def test_a_graph_on_two_devices_is_that_on_one_and_learns_the_club():
  module = import_experiment(str(HERE / "graph_nodes.py"))
  config = make_config(module, "graph_nodes", "", steps=40)
  outcomes = []
  for devices, seeds in ((1, [0]), (2, [0]), (2, [0, 1])):
    program = Program(module.make(config), module.make_feeds(config), seeds, make_mesh(devices))
    state, _ = program.update(program.init(), program.empty_window(), 40)
    outcomes.append((jax.device_get(state.params), program.evaluate(state)["loss"]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), outcomes[0], outcomes[1])
  np.testing.assert_allclose(outcomes[2][1][0], outcomes[0][1], rtol=1e-5)
  assert outcomes[2][1].max() < 0.5  # log 2 = 0.69 when nothing is learned


def test_three_streamed_seeds_on_two_devices_are_those_on_one():
  """Each device has whole seeds, so that batches need not divide."""
  module = import_experiment(str(HERE / "table_classifier.py"))
  config = make_config(module, "table_classifier", "", steps=4, seeds=3, data_placement="stream", batch_size=7)
  losses = []
  for devices in (1, 2):
    program = Program(module.make(config), module.make_feeds(config), range(3), make_mesh(devices))
    state, window = program.update(program.init(), program.empty_window(), 4)
    losses.append((window_means(window)["loss"], program.evaluate(state)["loss"]))
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_dates_that_were_never_seen_are_translated():
  module = import_experiment(str(HERE / "date_pairs.py"))
  config = make_config(module, "date_pairs", "", steps=400, batch_size=64)
  program = Program(module.make(config), module.make_feeds(config), [0], make_mesh(1))
  state, _ = program.update(program.init(), program.empty_window(), 400)
  data = module.load_data(config)
  test = data.test.arrays
  model = module.nn.Dense((test["target"].shape[1] - 1) * data.vocab_size)
  logits = module.predict_tokens(model, data.vocab_size, state.params, test)
  right = np.all(np.argmax(logits, axis=-1) == test["target"][:, 1:], axis=1)
  assert right.mean() > 0.9


@pytest.mark.parametrize("name", FILES)
def test_it_is_about_ten_lines(name):
  """What `make` says, and what its config adds."""
  tree = ast.parse((HERE / f"{name}.py").read_text())
  body = {node.name: node.end_lineno - node.lineno for node in tree.body if isinstance(node, ast.FunctionDef)}
  assert body["make"] <= 12 and body["make_feeds"] == body["main"] == 1
