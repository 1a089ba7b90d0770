"""What the report compares with what, on data made so that any other comparison gives another number."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.neighbors import KNeighborsClassifier

from experiments.contrastive import _report as report, cpc, moco, probe, simclr
from experiments.contrastive._pretraining import choose_augmentation, make_augmentation, pretrain
from mlnotes.contrastive.probe import compute_probe_accuracy
from mlnotes.data import ArraySplit, DataSet, EvalBatches, Feeds, augment
from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Experiment, Mean
from mlnotes.nn import GroupNorm


def make_data(train=120, test=60, channels=1, sort=False, classes=3, seed=0):
  """Images whose brightness tells the class, of the test split only mostly."""
  rng = np.random.default_rng(seed)

  def split(size, noise):
    label = rng.integers(0, classes, size)
    label = np.sort(label) if sort else label
    shown = np.where(rng.random(size) < noise, rng.integers(0, classes, size), label)
    image = 40 * shown[:, None, None, None] + rng.integers(0, 90, (size, 3, 3, channels))
    return ArraySplit(image.astype(np.uint8), label.astype(np.int32))

  names = tuple(f"class {i}" for i in range(classes))
  return DataSet("photos", split(train, 0.05), split(test, 0.3), classes, names, 256, (3, 3, channels))


def embed(state, batch):
  pixels = jnp.asarray(batch["image"]).reshape(len(batch["image"]), -1).astype(jnp.float32) / 255
  shown = jnp.round((255 * pixels.mean(axis=1) - 45) / 40).astype(jnp.int32)
  return {"features": pixels[:, :4] * state, "embedding": (jax.nn.one_hot(shown, 5) + pixels[:, 2:7] / 50) * state}


def dim(keys, images):
  return np.asarray(images) * np.linspace(0.2, 1, len(images), dtype=np.float32)[:, None, None, None]


CONFIG = SimpleNamespace(knn_k=7, knn_examples=0, knn_temperature=0.2, labels_per_class=5)


def write(data, directory, monkeypatch=None, state=1.0, config=CONFIG, recipe="crop"):
  if monkeypatch is not None:
    for name in ("_draw_views", "_draw_neighbours", "_draw_map"):
      monkeypatch.setattr(report, name, lambda *args: None)
  return report.write_report(embed, dim, state, data, config, directory, recipe)


@pytest.mark.thorough
def test_figures_are_of_the_training_split_judged_on_the_test_split(tmp_path, monkeypatch):
  data = make_data()
  figures = write(data, tmp_path, monkeypatch)
  of = lambda split: split.image.reshape(len(split), -1).astype(np.float32) / 255
  train, test = (of(data.train), data.train.label), (of(data.test), data.test.label)
  vote = KNeighborsClassifier(7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.2))
  score = vote.fit(train[0][:, :4], train[1]).score(test[0][:, :4], test[1])
  np.testing.assert_allclose(figures["knn_accuracy_all"], score, atol=1e-6)
  learned = [(x[:, :4], label) for x, label in (train, test)]
  assert figures["linear_probe"] == compute_probe_accuracy(*learned).mean()
  assert figures["linear_probe_5_per_class"] == compute_probe_accuracy(*learned, 5).mean()
  assert figures["pixel_probe_5_per_class"] == compute_probe_accuracy(train, test, 5).mean()
  swapped = compute_probe_accuracy(learned[1], learned[0], 5).mean()
  assert abs(figures["linear_probe_5_per_class"] - swapped) > 0.05
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  z = unit(np.eye(5)[np.round((255 * test[0].mean(axis=1) - 45) / 40).astype(int)] + test[0][:, 2:7] / 50)
  expected = np.log(np.mean(np.exp(-2 * pdist(z, "sqeuclidean"))))
  np.testing.assert_allclose(figures["uniformity"], expected, rtol=1e-4)


def test_parts_of_a_sorted_test_split_are_drawn_from_all_of_it(tmp_path, monkeypatch):
  """The first images of a file sorted by class are of one class: their embeddings alone would look collapsed."""
  monkeypatch.setattr(report, "_PAIRED_EXAMPLES", 40)
  monkeypatch.setattr(report, "compute_probe_accuracy", lambda *args: np.zeros(1))
  data = make_data(test=400, sort=True, classes=5)
  figures = write(data, tmp_path, monkeypatch)
  shuffled = np.random.default_rng(1).permutation(400)
  other = data._replace(test=ArraySplit(**data.test.read(shuffled)))
  again = write(other, tmp_path)
  assert figures["collapsed"] == again["collapsed"] == 0
  embedding = jnp.asarray(report.embed_split(embed, 1.0, data.test).embedding)
  everything, first = report.uniformity(embedding), report.uniformity(embedding[:40])
  assert abs(figures["uniformity"] - everything) < 0.3 < 0.5 < abs(first - everything)


def test_collapse_is_judged_by_the_numbers_that_the_evaluation_prints(tmp_path, monkeypatch, capfd):
  """Of the training images: a handful of test images of one class lie at one point in any embedding."""
  data = make_data(classes=5)
  one_class = data._replace(test=ArraySplit(**data.test.read(np.flatnonzero(data.test.label == 0)[:6])))
  monkeypatch.setattr(report, "compute_probe_accuracy", lambda *args: np.zeros(1))
  drawn = []
  draw = lambda made, embed: report.write_report(embed, dim, 1.0, made, CONFIG, tmp_path, "crop")
  for name in ("_draw_views", "_draw_neighbours"):
    monkeypatch.setattr(report, name, lambda *args: None)
  monkeypatch.setattr(report, "_draw_map", lambda data, test, kind, path: drawn.append(kind))
  assert draw(one_class, embed)["collapsed"] == 0 and "collapsed" not in capfd.readouterr().err

  def line(state, batch):
    own = embed(state, batch)
    place = jnp.asarray(batch["image"], jnp.float32).mean((1, 2, 3))[:, None] / 128 - 1
    return own | {"embedding": place * jnp.ones((1, 5)) + jnp.array([[0.0, 0, 0, 0, 1]])}

  assert draw(data, line)["collapsed"] == 1
  z = np.asarray(line(1.0, data.train.read(np.arange(120)))["embedding"])
  spread = np.sqrt(5) * (z / np.linalg.norm(z, axis=1, keepdims=True)).std(axis=0).mean()
  values = np.linalg.eigvalsh(np.cov(z.T))
  numbers = f"(embedding_spread {spread:.2f}, 1 is even; embedding_rank {values.sum() ** 2 / (values**2).sum():.1f})"
  assert f"collapsed: the embeddings of 120 training images lie along one line {numbers}" in capfd.readouterr().err
  assert spread > 0.3
  few = data._replace(train=ArraySplit(**data.train.read(np.arange(19))))
  assert "collapsed" not in draw(few, line)
  assert "19 training images are too few to say whether the embedding has collapsed" in capfd.readouterr().err
  point = lambda state, batch: embed(state, batch) | {"embedding": jnp.ones((len(batch["image"]), 5))}
  assert draw(few, point)["collapsed"] == 1 and "lie at one point" in capfd.readouterr().err
  # Few classes that are far apart take few directions.
  for classes in (2, 3):
    found = draw(make_data(classes=classes), embed)
    assert found["collapsed"] == 0 and "collapsed" not in capfd.readouterr().err
  assert drawn == ["learned", "collapsed", "learned", "collapsed", "learned", "learned"]


def test_features_that_are_not_finite_have_no_figures_and_no_crash(tmp_path, capfd):
  figures = write(make_data(), tmp_path, state=np.nan)
  for name in ("knn_accuracy_all", "linear_probe", "linear_probe_5_per_class", "collapsed", "uniformity", "alignment"):
    assert np.isnan(figures[name]), name
  assert np.isfinite(figures["pixel_probe_5_per_class"])
  said = capfd.readouterr().err
  assert "the features are not finite" in said and "lose to raw pixels" not in said
  assert not (tmp_path / "map.png").exists()


def test_features_that_lose_to_raw_pixels_are_said_to(tmp_path, monkeypatch, capfd):
  data = make_data()
  noise = lambda state, batch: {
    "features": jnp.cos(1e4 * jnp.asarray(batch["image"]).reshape(len(batch["image"]), -1)),
    "embedding": embed(1.0, batch)["embedding"],
  }
  for name in ("_draw_views", "_draw_neighbours", "_draw_map"):
    monkeypatch.setattr(report, name, lambda *args: None)
  report.write_report(noise, dim, 1.0, data, CONFIG, tmp_path, "digits")
  said = capfd.readouterr().err
  assert "the features lose to raw pixels: " in said and "(--augmentation=digits here)" in said
  pixels = lambda state, batch: (
    {"features": jnp.asarray(batch["image"]).reshape(len(batch["image"]), -1) / 255.0}
    | {"embedding": embed(1.0, batch)["embedding"]}
  )
  report.write_report(pixels, dim, 1.0, data, CONFIG, tmp_path, "digits")
  assert "lose" not in capfd.readouterr().err


@pytest.mark.thorough
@pytest.mark.parametrize("channels", [2, 4, 6])
def test_pictures_of_images_that_are_neither_grey_nor_rgb(channels, tmp_path):
  write(make_data(train=30, test=8, channels=channels), tmp_path)
  assert (tmp_path / "views.png").stat().st_size > 1000 and (tmp_path / "neighbours.png").exists()


@pytest.mark.parametrize("kind", ["constant", "two kinds", "one pixel", "nearly constant"])
def test_points_that_hardly_differ_get_no_map(kind):
  rng = np.random.default_rng(0)
  x = {
    "constant": np.full((50, 9), 0.3),
    "two kinds": np.repeat(np.eye(2), 25, axis=0),
    "one pixel": rng.normal(size=(50, 1)),
    "nearly constant": 1 + 1e-7 * rng.normal(size=(50, 9)),
  }[kind]
  assert not report._fits_a_map(x.astype(np.float32))
  assert report._fits_a_map(rng.normal(size=(50, 2)).astype(np.float32))


# -- recipes -----------------------------------------------------------------------------------------------------------


class Part(tuple):
  """Passes for an augmentation."""

  def __call__(self, key, image):
    raise NotImplementedError


def recorded(monkeypatch, build):
  """What a recipe is composed of: (name, arguments) of each of its parts, behind a probability where it has one."""
  for name in ("random_resized_crop", "random_flip", "random_greyscale", "random_affine", "random_gaussian_blur"):
    monkeypatch.setattr(augment, name, lambda *a, name=name, **k: Part((name, *a, *k.values())))
  monkeypatch.setattr(augment, "color_jitter", lambda *a: Part(("color_jitter", *np.round(a, 6).tolist())))
  monkeypatch.setattr(augment, "random_apply", lambda part, p: Part((p, *part)))
  monkeypatch.setattr(augment, "compose", lambda *parts: lambda key, image: list(parts))
  return build()(None, None)


def images(height, channels=3, name="photos"):
  split = ArraySplit(np.zeros((2, height, height, channels), np.uint8), np.zeros(2, np.int32))
  return DataSet(name, split, split, 1, ("a",), 256, (height, height, channels))


FLIP, GREY = ("random_flip",), ("random_greyscale", 0.2)
crop = lambda height, low, high=1.0: ("random_resized_crop", (height, height), (low, high))
PUBLISHED = {
  # Chen et al. 2020, appendix A: strength 1 and a blur on ImageNet; B.9: 1/2 and none on CIFAR-10.
  ("simclr", 32): [crop(32, 0.08), FLIP, (0.8, "color_jitter", 0.4, 0.4, 0.4, 0.1), GREY],
  ("simclr", 224): [
    crop(224, 0.08), FLIP, (0.8, "color_jitter", 0.8, 0.8, 0.8, 0.2), GREY, (0.5, "random_gaussian_blur", 23)
  ],
  # He et al. 2020 and Chen, Fan et al. 2020: main_moco.py of their code.
  ("moco_v1", 224): [crop(224, 0.2), FLIP, GREY, ("color_jitter", 0.4, 0.4, 0.4, 0.4)],
  ("moco_v2", 224): [
    crop(224, 0.2), FLIP, (0.8, "color_jitter", 0.4, 0.4, 0.4, 0.1), GREY, (0.5, "random_gaussian_blur", 23)
  ],
  ("crop", 32): [crop(32, 0.2), FLIP],
  ("grey", 28): [crop(28, 0.7), FLIP, (0.8, "color_jitter", 0.8, 0.8)],
  ("digits", 8): [crop(8, 0.5), ("random_affine", 15.0, 0.8), (0.8, "color_jitter", 0.4, 0.4)],
}  # fmt: skip


@pytest.mark.parametrize("name, height", PUBLISHED)
def test_a_recipe_is_what_was_published(name, height, monkeypatch):
  config = simclr.Config(augmentation=name)
  parts = recorded(monkeypatch, lambda: make_augmentation(config, images(height)))
  assert parts == PUBLISHED[name, height]


@pytest.mark.parametrize(
  "data, recipe",
  [
    (images(8, 1, "digits"), "digits"),
    (images(28, 1, "mnist"), "digits"),
    (images(28, 1, "EMNIST/letters"), "digits"),
    (images(28, 1, "fashion_mnist"), "grey"),
    (images(28, 1, "my_photos"), "grey"),
    (images(32, 3, "mnist"), "simclr"),
    (images(224, 3), "simclr"),
  ],
)
def test_auto_goes_by_what_is_known_of_the_data(data, recipe):
  assert choose_augmentation(simclr.Config(), data) == recipe
  assert choose_augmentation(simclr.Config(augmentation="crop"), data) == "crop"


@pytest.mark.parametrize("name", ["auto", "digits", "grey", "simclr", "moco_v1", "moco_v2"])
def test_changes_of_colour_need_colours(name):
  with pytest.raises(InputError, match=f"--augmentation={name}: found images of 2 channels, expected 1 or 3"):
    make_augmentation(simclr.Config(augmentation=name), images(28, 2, "mnist"))
  make_augmentation(simclr.Config(augmentation="crop"), images(28, 2))


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "config, idle",
  [
    (simclr.Config(), set()),
    (simclr.Config(knn_k=1, report_seeds=0), {"knn_temperature", "labels_per_class"}),
    (moco.Config(), set()),
    (moco.Config(bn_splits=1), {"bn_shuffle"}),
    (moco.Config(batch_size=16, bn_splits=16), {"bn_shuffle"}),
    (probe.Config(run="x", labels_per_class=(0,), knn_k=1), {"draws", "knn_temperature"}),
    (probe.Config(run="x"), set()),
  ],
)
def test_flags_without_effect_are_said_to_be(config, idle):
  own = {"knn_temperature", "labels_per_class", "bn_shuffle", "draws"}
  assert own & set(config.idle_flags()) == idle


def test_cpcs_width_fits_its_normalisation_and_its_offsets_leave_no_shared_pixel():
  with pytest.raises(InputError, match="--width=4 is out of range: expected a multiple of 8"):
    cpc.Config(width=4)
  assert GroupNorm.groups == 8 and cpc.Config(width=24)
  offsets = lambda **flags: cpc.Config(**flags).offsets(8)
  assert offsets() == (3, 4)  # rows of a grid of 6
  assert offsets(first_offset=1, num_offsets=9) == (1, 2, 3, 4, 5)
  assert offsets(patch_size=3, patch_stride=2, num_offsets=1) == (2,)


def test_the_best_checkpoint_is_that_of_the_highest_knn_accuracy(tmp_path, monkeypatch):
  """A made-up experiment whose accuracy falls while a figure called loss falls too."""
  config = simclr.Config(
    workdir=str(tmp_path), steps=3, eval_every=1, checkpoint_every=1, log_every=1, devices=1, tensorboard=False,
    report_seeds=0, batch_size=2,
  )  # fmt: skip

  class Count(NamedTuple):
    step: jax.Array
    key: jax.Array

  falling = lambda state: Mean(1.0 / (1 + state.step.astype(jnp.float32)), jnp.float32(1))
  experiment = Experiment(
    lambda key, batch: Count(jnp.int32(0), key),
    lambda state, batch: (state._replace(step=state.step + 1), {"loss": jnp.float32(1)}),
    lambda state, batch: {"knn_accuracy": falling(state), "loss": falling(state)},
    lambda state, directory: None,
  )
  feeds = Feeds(evaluate=EvalBatches((), lambda arrays, i: (), 1))
  monkeypatch.setattr("experiments.contrastive._pretraining.make_feeds", lambda config: feeds)
  assert pretrain(experiment, config) == 0
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  assert (checkpoints.best_step(), checkpoints.latest_step()) == (1, 3)
  checkpoints.close()


def test_the_probe_reads_the_checkpoint_and_the_seed_that_its_flags_name(tmp_path, monkeypatch):
  data = make_data()
  trained = simclr.Config(seeds=2)
  states = {("best", 0): 1.0, ("best", 1): 2.0, ("last", 0): 3.0, ("last", 1): 4.0}
  monkeypatch.setattr(probe, "load_config", lambda directory, classes: ("contrastive.simclr", trained))
  monkeypatch.setattr(probe, "load_data", lambda config: data)
  module = SimpleNamespace(
    make=lambda config: SimpleNamespace(embed=lambda state, batch: embed(1.0, batch) | {"seen": state}),
    make_feeds=lambda config: None, Config=simclr.Config,
  )  # fmt: skip
  monkeypatch.setattr(probe, "find_methods", lambda: {"contrastive.simclr": module})
  seen = []

  def restore(directory, experiment, feeds, config, checkpoint, model_seed):
    chosen = [0, 1] if model_seed < 0 else [model_seed]
    return {seed: states[checkpoint, seed] for seed in chosen}, 5 if checkpoint == "best" else 9

  def study(name, config, function):
    seen.append(function(tmp_path))
    return 0

  monkeypatch.setattr(probe, "restore_states", restore)
  monkeypatch.setattr(probe, "run_study", study)
  monkeypatch.setattr(probe, "draw_curves", lambda *args: None)
  common = dict(run="x", labels_per_class=(5, 0), draws=3, knn_k=7, knn_temperature=0.2)
  probe.main(probe.Config(checkpoint="best", **common))
  probe.main(probe.Config(checkpoint="last", model_seed=1, **common))
  assert [figures["step"] for figures in seen] == [5, 9] and [len(figures["knn"]) for figures in seen] == [2, 1]
  of = lambda split: split.image.reshape(len(split), -1).astype(np.float32) / 255
  train, test = (of(data.train), data.train.label), (of(data.test), data.test.label)
  learned = [(x[:, :4], label) for x, label in (train, test)]
  vote = KNeighborsClassifier(7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.2))
  np.testing.assert_allclose(seen[0]["knn"], vote.fit(*learned[0]).score(*learned[1]), atol=1e-6)
  np.testing.assert_allclose(seen[0]["pixels_knn"], vote.fit(*train).score(*test), atol=1e-6)
  np.testing.assert_array_equal(seen[1]["probe_5_per_class"], compute_probe_accuracy(*learned, 5, draws=3))
  np.testing.assert_array_equal(seen[1]["pixels_probe_5_per_class"], compute_probe_accuracy(train, test, 5, draws=3))
  np.testing.assert_array_equal(seen[1]["probe_all_labels"], compute_probe_accuracy(*learned))


@pytest.mark.thorough
def test_the_probe_measures_every_seed_and_draws_what_it_measured(tmp_path, monkeypatch):
  """Features of the second seed are other pixels than those of the first. A tenth of the training images votes."""
  data = make_data()
  monkeypatch.setattr(probe, "load_config", lambda directory, classes: ("contrastive.simclr", simclr.Config(seeds=2)))
  asked, drawn, seen, axes = [], [], [], []
  monkeypatch.setattr(probe, "load_data", lambda config: asked.append(config.data_dir) or data)

  def embed_seed(state, batch):
    pixels = jnp.asarray(batch["image"]).reshape(len(batch["image"]), -1).astype(jnp.float32) / 255
    return {"features": jnp.roll(pixels, -4 * state, axis=1)[:, :4], "embedding": pixels}

  module = SimpleNamespace(
    make=lambda config: SimpleNamespace(embed=embed_seed), make_feeds=lambda config: None, Config=simclr.Config
  )
  monkeypatch.setattr(probe, "find_methods", lambda: {"contrastive.simclr": module})
  monkeypatch.setattr(probe, "restore_states", lambda *_: ({0: jnp.int32(0), 1: jnp.int32(1)}, 5))
  study = lambda name, config, function: seen.append((config.workdir, function(tmp_path))) or 0
  monkeypatch.setattr(probe, "run_study", study)
  draw = probe.draw_curves
  monkeypatch.setattr(probe, "draw_curves", lambda path, curves, *rest: drawn.append((curves, *rest)))
  flags = dict(run="x", labels_per_class=(0, 5), draws=3, knn_k=100, knn_temperature=0.2)
  probe.main(probe.Config(data_dir="here", workdir="there", **flags))
  probe.main(probe.Config(**flags))
  assert asked == ["here", ""] and [workdir for workdir, _ in seen] == ["there", "x/probe"]
  of = lambda split: (split.image.reshape(len(split), -1).astype(np.float32) / 255, split.label)
  (train, label), (test, truth) = of(data.train), of(data.test)
  seeds = [((train[:, cut], label), (test[:, cut], truth)) for cut in (slice(0, 4), slice(4, 8))]
  for n, name in ((5, "5_per_class"), (0, "all_labels")):
    expected = [compute_probe_accuracy(*pair, n, draws=3).mean() for pair in seeds]
    np.testing.assert_allclose(seen[0][1][f"probe_{name}"], expected)
    assert expected[0] != expected[1]
  vote = KNeighborsClassifier(12, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.2))
  found = [vote.fit(*one).score(*other) for one, other in seeds]
  np.testing.assert_allclose(seen[0][1]["knn"], found, atol=1e-6)
  # The picture: fewest labels first, all of them (forty a class) last.
  curves, most, title = drawn[0]
  assert title == "photos, step 5, 2 seeds" and most == 40
  monkeypatch.setattr("mlnotes.engine.plot.save_figure", lambda figure, path: axes.append(figure.axes[0]))
  draw(tmp_path, curves, most, title)
  for line, figure in zip(axes[0].containers, ("probe", "pixels_probe"), strict=True):
    assert line.get_label() == {"probe": "simclr features", "pixels_probe": "raw pixels"}[figure]
    np.testing.assert_array_equal(line[0].get_xdata(), [5, 40])
    expected = [np.mean(seen[0][1][f"{figure}_{n}"]) for n in ("5_per_class", "all_labels")]
    np.testing.assert_allclose(line[0].get_ydata(), expected)
