"""Whole runs in small: what a run leaves behind, how collapse shows, what the probe reads."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.contrastive import cpc, moco, probe, simclr, simsiam
from experiments.contrastive._pretraining import make_encoder
from experiments.contrastive._report import embed_split
from mlnotes.contrastive.method import count_features, make_views
from mlnotes.contrastive.probe import compute_probe_accuracy, draw_few_labels
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError

SMALL = dict(devices=1, width=8, batch_size=64, projection=16, eval_every=0, checkpoint_every=0, tensorboard=False)


def card(directory):
  return json.loads((directory / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  directory = tmp_path_factory.mktemp("runs") / "simclr"
  config = simclr.Config(workdir=str(directory), seeds=2, steps=40, warmup_steps=5, log_every=20, **SMALL)
  assert simclr.main(config) == 0
  return directory


@pytest.mark.thorough
def test_a_run_leaves_figures_and_pictures_of_every_seed(finished):
  metrics = card(finished)["metrics"]
  for name in ("knn_accuracy", "linear_probe", "linear_probe_10_per_class", "alignment", "uniformity"):
    assert len(metrics[name]["seeds"]) == 2 and np.all(np.isfinite(metrics[name]["seeds"])), name
  assert metrics["knn_accuracy"]["mean"] > 0.6 and metrics["collapsed"]["mean"] == 0
  # The monitor on the device and the report's own search are two programs for one number.
  np.testing.assert_allclose(metrics["knn_accuracy"]["seeds"], metrics["knn_accuracy_all"]["seeds"], atol=1e-6)
  for seed in (0, 1):
    for picture in ("views", "neighbours", "map"):
      assert (finished / f"seed_{seed}" / f"{picture}.png").stat().st_size > 1000


@pytest.mark.thorough
def test_the_probe_finds_what_the_report_found(finished, tmp_path):
  out = tmp_path / "probe"
  config = probe.Config(run=str(finished), labels_per_class=(10, 0), workdir=str(out))
  assert probe.main(config) == 0
  found, reported = card(out)["metrics"], card(finished)["metrics"]
  np.testing.assert_allclose(found["knn"]["seeds"], reported["knn_accuracy"]["seeds"], atol=1e-6)
  np.testing.assert_allclose(found["probe_all_labels"]["seeds"], reported["linear_probe"]["seeds"], atol=0.006)
  np.testing.assert_allclose(
    found["pixels_probe_10_per_class"]["mean"], reported["pixel_probe_10_per_class"]["mean"], atol=1e-6
  )
  assert (out / "probe.png").stat().st_size > 1000


@pytest.mark.thorough
def test_the_probe_refuses_what_is_no_such_run(finished, tmp_path):
  with pytest.raises(InputError, match="expected the --workdir of a run"):
    probe.main(probe.Config(run=str(tmp_path)))
  (tmp_path / "config.json").write_text(json.dumps({"experiment": "rl.ppo", "config": {}}))
  with pytest.raises(InputError, match=r"is a run of rl\.ppo, expected contrastive\.barlow_twins or"):
    probe.main(probe.Config(run=str(tmp_path)))
  with pytest.raises(InputError, match=r"--model_seed=7 is out of range: expected 0 to 1"):
    probe.main(probe.Config(run=str(finished), model_seed=7))


@pytest.mark.thorough
def test_without_the_stopped_gradient_simsiam_collapses_and_says_so(tmp_path, capfd):
  ranks = {}
  for stop in (True, False):
    directory = tmp_path / str(stop)
    config = simsiam.Config(
      workdir=str(directory), stop_gradient=stop, steps=250, warmup_steps=10, bottleneck=8, **SMALL
    )
    assert simsiam.main(config) == 0
    said = capfd.readouterr().err
    assert ("collapsed: the embeddings of" in said) == (not stop)
    metrics = card(directory)["metrics"]
    assert metrics["collapsed"]["mean"] == (0.0 if stop else 1.0)
    ranks[stop] = metrics["embedding_rank"]["mean"]
  assert ranks[True] > 1.5 * ranks[False]


@pytest.mark.thorough
def test_images_that_are_all_alike_collapse_without_a_crash(tmp_path):
  np.savez(tmp_path / "same.npz", image=np.full((80, 8, 8, 1), 7, np.uint8), label=np.zeros(80, np.int64))
  directory = tmp_path / "run"
  config = simclr.Config(
    dataset=str(tmp_path / "same.npz"), workdir=str(directory), steps=2, warmup_steps=1, augmentation="none", **SMALL
  )
  assert simclr.main(config) == 0
  metrics = card(directory)["metrics"]
  assert metrics["collapsed"]["mean"] == 1 and "linear_probe" not in metrics
  assert (directory / "neighbours.png").exists() and not (directory / "map.png").exists()
  with pytest.raises(InputError, match="needs labels of 2 classes or more: found 1"):
    probe.main(probe.Config(run=str(directory)))
  assert not (directory / "probe" / "config.json").exists()


def test_a_run_that_is_refused_late_gives_its_directory_back(tmp_path):
  config = moco.Config(workdir=str(tmp_path), bn_splits=2, **{**SMALL, "devices": 8, "batch_size": 30})
  with pytest.raises(InputError, match="--batch_size=30 cannot be shared by 8 devices"):
    moco.main(config)
  assert not (tmp_path / "config.json").exists()


@pytest.mark.thorough
def test_features_of_a_split_are_in_order_and_without_padding(finished):
  config = simclr.Config(**SMALL)
  experiment, data = simclr.make(config), load_data(config)
  feeds = simclr.make_feeds(config)
  batch = feeds.train.draw(feeds.train.arrays, jax.random.key(0), jnp.int32(0))
  state = jax.jit(experiment.init)(jax.random.key(0), batch)
  found = embed_split(jax.jit(experiment.embed), state, data.test)
  assert found.features.shape == (360, 32)
  np.testing.assert_array_equal(found.label, data.test.label)
  three = {"image": jnp.asarray(data.test.image[[0, 100, 359]]), "label": jnp.zeros(3), "mask": jnp.ones(3)}
  np.testing.assert_allclose(found.features[[0, 100, 359]], experiment.embed(state, three)["features"], atol=1e-4)


def test_views_depend_on_the_example_and_the_step_alone(key):
  image = jax.random.uniform(key, (6, 4, 4, 1))
  noisy = lambda key, x: x + jax.random.normal(key, x.shape)
  index = jnp.array([3, 1, 4, 0, 5, 9])
  root, order = jax.random.key(7), jnp.array([5, 2, 0, 1, 4, 3])
  draw = lambda step, rows: make_views(noisy, jax.random.clone(root), jnp.int32(step), image[rows], index[rows], 2)
  views = draw(0, jnp.arange(6))
  np.testing.assert_array_equal(draw(0, order), views[order])
  np.testing.assert_array_equal(draw(0, jnp.arange(3)), views[:3])
  assert np.all(draw(1, order) != views[order]) and np.all(views[:, 0] != views[:, 1])


def test_colours_need_one_or_three_channels(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 4), dtype=np.uint8)
  np.savez(tmp_path / "rgba.npz", image=image, label=np.arange(40) % 2)
  settings = {"dataset": str(tmp_path / "rgba.npz"), **SMALL, "batch_size": 8}
  with pytest.raises(InputError, match="--augmentation=auto: found images of 4 channels, expected 1 or 3"):
    simclr.make(simclr.Config(**settings))
  simclr.make(simclr.Config(**settings, augmentation="crop"))


def test_few_labels_are_drawn_evenly():
  labels = np.array([0, 1, 2] * 20 + [2])
  rows = draw_few_labels(labels, 4, seed=0)
  assert len(set(rows)) == 12 and list(np.bincount(labels[rows])) == [4, 4, 4]
  assert set(rows) != set(draw_few_labels(labels, 4, seed=1))
  assert list(np.bincount(labels[draw_few_labels(labels, 50, seed=0)])) == [20, 20, 21]


def test_a_probe_separates_what_a_line_separates():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 600)
  features = (rng.normal(size=(600, 5)) + 8 * np.eye(5)[labels]).astype(np.float32)
  pair = (features[:300], labels[:300]), (features[300:], labels[300:])
  assert compute_probe_accuracy(*pair)[0] == 1.0
  few = compute_probe_accuracy(*pair, per_class=1, draws=4)
  assert few.shape == (4,) and few.min() > 0.9


@pytest.mark.parametrize("name, features", [("small", 128), ("resnet18", 512), ("resnet50", 2048)])
def test_encoders_by_flag(name, features):
  config = simclr.Config(encoder=name)
  assert count_features(make_encoder(config, load_data(config)), (8, 8, 1)) == features


@pytest.mark.parametrize(
  "build, message",
  [
    (lambda: simclr.Config(batch_size=1), r"--batch_size=1 is out of range: expected 2 or more"),
    (lambda: moco.Config(bn_splits=5), r"--bn_splits=5 is out of range: expected a divisor of --batch_size=128"),
    (lambda: moco.Config(queue_size=64), r"--queue_size=64 is out of range: expected 128 or more"),
    (lambda: moco.Config(queue_size=200, symmetric=True), r"--queue_size=200 .* 256 or more"),
    (lambda: simclr.Config(temperature=0.0), r"--temperature=0.0 is out of range"),
    (lambda: simsiam.Config(bottleneck=0), r"--bottleneck=0 is out of range"),
    (lambda: cpc.make(cpc.Config(patch_size=8)), r"--patch_size=8 is out of range: expected patches of which one"),
    (lambda: probe.Config(run="x", labels_per_class=(-1,)), r"--labels_per_class=\(-1,\) is out of range"),
  ],
)
def test_bad_flags_are_named(build, message):
  with pytest.raises(InputError, match=message):
    build()
