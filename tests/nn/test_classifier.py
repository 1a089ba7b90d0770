"""Two updates of the classifier as its flags build it, against the equations for one hidden layer, and its report.

What each flag must do, what the loss must see and what must not see training's changes of images are in these values.
"""

import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.nn import _images, _report, classifier
from mlnotes.data import ArraySplit, DataSet, fixed_subset, floors, load
from mlnotes.engine.errors import InputError
from mlnotes.engine.stage import find_stage
from mlnotes.nn.mlp import MLP
from mlnotes.nn.networks import make_network

BATCH, STEPS, RATE, DECAY, CLASSES = 6, 4, 0.5, 0.05, 3


def make_split(size, seed):
  rng = np.random.default_rng(seed)
  return ArraySplit(rng.integers(0, 17, (size, 4, 4, 1), dtype=np.uint8), rng.integers(0, 3, size).astype(np.int32))


DATA = DataSet("mnist", make_split(30, 0), make_split(10, 1), CLASSES, ("a", "b", "c"), 17, (4, 4, 1))
INDEX = [np.array([3, 11, 0, 7, 29, 2], np.int32), np.array([5, 3, 1, 20, 8, 10], np.int32)]


@pytest.fixture(scope="module", autouse=True)
def small():
  """Noise for data, and a network of two matrices."""
  make = lambda name, classes, shape, width, norm, dropout, dtype: MLP(
    width or 5, 2, classes, norm=norm, dropout=dropout, dtype=dtype
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(classifier, "load_data", lambda config: DATA)
    patch.setattr(classifier, "make_network", make)
    yield


def configure(**flags):
  common = dict(
    batch_size=BATCH, optimizer="sgd", momentum=0.0, learning_rate=RATE, weight_decay=DECAY, schedule="linear",
    warmup_steps=0, steps=STEPS, network="mlp",
  )  # fmt: skip
  return classifier.Config(**{**common, **flags})


def batch_of(split, index):
  return {**split.read(index), "index": jnp.asarray(index), "mask": jnp.ones(len(index))}


@functools.cache
def trained(**flags):
  """(experiment, states before, between and after two updates, their metrics)."""
  experiment = classifier.make(configure(**flags))
  batches = [batch_of(DATA.train, index) for index in INDEX]
  states, metrics = [jax.jit(experiment.init)(jax.random.key(7), batches[0])], []
  step = jax.jit(experiment.step)
  for batch in batches:
    state, found = step(states[-1], batch)
    states.append(state)
    metrics.append(found)
  return experiment, states, metrics


def evaluated(experiment, state):
  found = jax.jit(experiment.evaluate)(state, batch_of(DATA.test, np.arange(10)))
  return {name: float(mean.total / mean.count) for name, mean in found.items()}


# -- the equations -----------------------------------------------------------------------------------------------------


def shifted(image, index, step, pixels=1):
  """The training images, moved as the stream "augment" says; NumPy does the moving."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), zlib.crc32(b"augment") & 0x7FFFFFFF), step)
  out = np.zeros_like(image)
  for row, i in enumerate(index):
    top, left = np.asarray(jax.random.randint(jax.random.fold_in(key, i), (2,), 0, 2 * pixels + 1))
    out[row] = np.pad(image[row], ((pixels, pixels), (pixels, pixels), (0, 0)))[top : top + 4, left : left + 4]
  return out


def flat(image):
  return image.reshape(len(image), -1).astype(np.float32) / 16


def forward(p, x, stats=None):
  """(logits, statistics of the batch); normalised by `stats` where they are given."""
  h = x @ p["dense0"]["kernel"]
  mean, var = (h.mean(0), h.var(0)) if stats is None else stats
  h = (h - mean[None]) / jnp.sqrt(var[None] + 1e-5) * p["norm0"]["scale"][None] + p["norm0"]["bias"][None]
  return jnp.maximum(h, 0) @ p["head"]["kernel"] + p["head"]["bias"][None], (mean, var)


def smoothed_loss(p, x, label, smoothing):
  logits, stats = forward(p, x)
  target = (1 - smoothing) * jax.nn.one_hot(label, CLASSES) + smoothing / CLASSES
  return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits), -1)), (logits, stats)


GRADIENT = jax.jit(jax.value_and_grad(smoothed_loss, has_aux=True))


@functools.cache
def expected(smoothing=0.0, ema=0.0, augmented=True):
  """(params, running statistics, averages of both, (loss, accuracy)) after each of the two updates."""
  params = jax.device_get(trained()[1][0].params)
  stats = average_stats = (np.zeros(5), np.ones(5))
  average, out = params, []
  for step, index in enumerate(INDEX):
    batch = DATA.train.read(index)
    image = shifted(batch["image"], index, step) if augmented else batch["image"]
    (loss, (logits, seen)), grads = GRADIENT(params, flat(image), batch["label"], smoothing)
    rate = RATE * (1 - step / STEPS)
    decayed = lambda path: DECAY if path[-1].key == "kernel" else 0.0
    params = jax.tree_util.tree_map_with_path(lambda path, p, g: p - rate * (g + decayed(path) * p), params, grads)  # noqa: B023
    stats = tuple(0.9 * old + 0.1 * new for old, new in zip(stats, seen))
    decay = min(ema, (1 + step) / (10 + step))
    mix = lambda a, b: jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, a, b)  # noqa: B023
    average, average_stats = mix(average, params), mix(average_stats, stats)
    accuracy = np.mean(np.argmax(logits, -1) == batch["label"])
    out.append((params, stats, average, average_stats, (loss, accuracy)))
  return out


def assert_close(found, wanted):
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=jax.tree_util.keystr(path))


def statistics(batch_stats):
  return batch_stats["norm0"]["mean"], batch_stats["norm0"]["var"]


@pytest.mark.parametrize("flags, settings", [
  ({}, {}),
  ({"label_smoothing": 0.3}, {"smoothing": 0.3}),
  ({"augmentation": "none"}, {"augmented": False}),
])  # fmt: skip
def test_two_updates_are_those_of_the_equations(flags, settings):
  _, states, metrics = trained(**flags)
  for step, (params, stats, _, _, (loss, accuracy)) in enumerate(expected(**settings)):
    np.testing.assert_allclose(metrics[step]["loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics[step]["accuracy"], accuracy, rtol=1e-6)
    np.testing.assert_allclose(metrics[step]["error"], 1 - accuracy, atol=1e-6)
    assert_close(states[step + 1].params, params)
    assert_close(statistics(states[step + 1].batch_stats), stats)


def judged(params, stats):
  logits, _ = forward(params, flat(DATA.test.image), stats)
  chosen = np.asarray(jax.nn.log_softmax(logits))[np.arange(10), DATA.test.label]
  return -chosen.mean(), np.mean(np.argmax(logits, -1) == DATA.test.label)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_test_split_is_judged_as_it_is_under_running_statistics_and_without_smoothing(smoothing):
  """The training images are moved, those of the test are not, or the figures would be others."""
  experiment, states, _ = trained(**({"label_smoothing": smoothing} if smoothing else {}))
  params, stats, *_ = expected(smoothing=smoothing)[-1]
  loss, accuracy = judged(params, stats)
  found = evaluated(experiment, states[-1])
  np.testing.assert_allclose(found["loss"], loss, rtol=1e-4)
  np.testing.assert_allclose([found["accuracy"], found["error"]], [accuracy, 1 - accuracy], atol=1e-6)
  feeds = classifier.make_feeds(configure())
  np.testing.assert_array_equal(feeds.evaluate.arrays["label"][:10], DATA.test.label)
  np.testing.assert_array_equal(feeds.train.arrays["image"], DATA.train.image)


def test_the_average_of_parameters_and_of_statistics_is_what_is_judged_and_given_away():
  experiment, states, _ = trained(ema_decay=0.5)
  _, _, average, average_stats, _ = expected(ema=0.5)[-1]
  params, batch_stats = states[-1].average
  assert_close(params, average)
  assert_close(statistics(batch_stats), average_stats)
  found = evaluated(experiment, states[-1])
  np.testing.assert_allclose(found["loss"], judged(average, average_stats)[0], rtol=1e-4)
  logits, _ = forward(average, flat(DATA.test.image), average_stats)
  np.testing.assert_allclose(experiment.model(states[-1])(DATA.test.image), logits, rtol=1e-3, atol=1e-4)
  plain = evaluated(trained()[0], trained()[1][-1])
  assert abs(found["loss"] - plain["loss"]) > 1e-3  # the flag does something


def test_a_model_takes_stored_images_and_floats_and_its_features_are_what_the_last_layer_sees():
  experiment, states, _ = trained()
  model, head = experiment.model(states[-1]), states[-1].params["head"]
  logits = model(DATA.test.image)
  np.testing.assert_allclose(model(DATA.test.image / np.float32(16)), logits, rtol=1e-5, atol=1e-5)
  features = model.features(DATA.test.image)
  assert features.shape == (10, 5)
  np.testing.assert_allclose(features @ head["kernel"] + head["bias"][None], logits, rtol=1e-4, atol=1e-5)
  first = experiment.model(states[0])
  assert np.any(jax.grad(lambda x: jnp.sum(first(x) ** 2))(DATA.test.image / np.float32(16)))


def test_dropout_is_other_in_each_update_and_none_in_tests():
  _, states, metrics = trained(dropout=0.5)
  _, plain_states, plain = trained()
  assert abs(metrics[0]["loss"] - plain[0]["loss"]) > 1e-3
  step = jax.jit(trained(dropout=0.5, augmentation="none")[0].step)  # images that are the same in each
  batch = batch_of(DATA.train, INDEX[0])
  here, later = (step(states[0]._replace(step=jnp.int32(i)), batch)[1]["loss"] for i in (0, 1))
  assert abs(here - later) > 1e-4
  same = [evaluated(trained(**flags)[0], plain_states[-1])["loss"] for flags in ({}, {"dropout": 0.5})]
  np.testing.assert_allclose(*same, rtol=1e-6)


def test_parameters_are_float32_under_bfloat16_and_the_flags_of_the_network_reach_it():
  _, states, metrics = trained(precision="bfloat16", augmentation="none")
  assert {leaf.dtype for leaf in jax.tree.leaves(states[-1].params)} == {jnp.dtype("float32")}
  exact = trained(augmentation="none")[2][0]["loss"]
  assert 0 < abs(metrics[0]["loss"] - exact) < 0.1
  network = classifier.build_network(configure(width=7, norm="group", dropout=0.1), DATA)
  assert network.width == 7 and network.dropout == 0.1 and network.norm == "group"


def test_the_best_checkpoint_is_the_most_accurate(monkeypatch):
  given = {}
  monkeypatch.setattr(classifier, "train", lambda *args, **more: given.update(more) or 0)
  assert classifier.main(configure()) == 0
  assert given == {"best_metric": "accuracy", "best_mode": "max"}


# -- images ------------------------------------------------------------------------------------------------------------


def test_characters_move_and_photographs_are_cropped_and_mirrored():
  photographs = DATA._replace(name="cifar10", image_shape=(32, 32, 3))
  names = [_images.choose_augmentation("auto", data) for data in (DATA, photographs, load("digits_halves"))]
  assert names == ["shift", "crop", "shift"]
  ramp = jnp.broadcast_to(jnp.linspace(0, 1, 16)[None, :, None], (16, 16, 1))
  keys = jax.random.split(jax.random.key(0), 128)
  changed = lambda name, keys: jax.jit(jax.vmap(_images.make_augmentation(name, photographs), (0, None)))(keys, ramp)
  moved = changed("crop", keys[:64])
  middle = np.sign(np.asarray(moved[:, 8, 9, 0] - moved[:, 8, 7, 0]))
  assert 0.25 < np.mean(middle > 0) < 0.75 and set(middle) == {-1, 1}
  shifts = changed("shift", keys[64:])
  assert np.all(shifts[:, 8, 9, 0] > shifts[:, 8, 7, 0])


@pytest.mark.parametrize("distort, most", [("r", 90), ("rts", 45)])
def test_a_distorted_image_is_turned_by_the_degrees_that_it_says(distort, most):
  """A bar through the middle: its second moments have its angle."""
  image = jnp.zeros((16, 16, 1)).at[7:9, 2:14].set(1.0)
  keys = jax.random.split(jax.random.key(1), 200)
  turned, degrees = jax.jit(jax.vmap(_images.make_distortion(distort), (0, None)))(keys, image)
  assert turned.shape == (200, 24, 24, 1)
  assert np.abs(degrees).max() <= most and np.abs(degrees).max() > 0.9 * most
  weight = np.asarray(turned[..., 0], np.float64)
  y, x = np.mgrid[:24, :24]
  mean = lambda values: (weight * values).sum((1, 2)) / weight.sum((1, 2))
  dy, dx = -(y - mean(y)[:, None, None]), x - mean(x)[:, None, None]  # up is positive
  found = np.degrees(0.5 * np.arctan2(2 * mean(dx * dy), mean(dx * dx) - mean(dy * dy)))
  off = np.abs((found - degrees + 90) % 180 - 90)
  assert np.median(off) < 1.0
  spread = np.std([mean(y), mean(x)], axis=1)
  assert np.all(spread > 1.5) if distort == "rts" else np.all(spread < 0.1)


def test_test_images_are_distorted_the_same_in_every_run_and_training_images_anew():
  inputs = classifier.make_inputs(configure(distort="rts"), DATA)
  batch = batch_of(DATA.test, np.arange(4))
  image, degrees = inputs.test(batch)
  for again in (inputs.test(batch), classifier.make_inputs(configure(distort="rts", seed=5), DATA).test(batch)):
    np.testing.assert_array_equal(again[0], image)
  other = inputs.training(jax.random.key(0), 0, batch)[1], inputs.training(jax.random.key(0), 1, batch)[1]
  assert not np.any(other[0] == other[1]) and not np.any(other[0] == degrees)
  assert image.shape == inputs.upright(batch).shape == (4, 6, 6, 1)
  np.testing.assert_allclose(inputs.upright(batch)[:, 1:5, 1:5], batch["image"] / np.float32(16), atol=1e-6)


def test_a_transformer_learns_at_its_own_rate(monkeypatch):
  monkeypatch.setattr(classifier, "make_network", make_network)
  flags = dict(network="spatial_transformer", distort="rts", width=4, transformer_rate=0.25)
  assert classifier.build_network(configure(**flags), DATA._replace(image_shape=(8, 8, 1))).scale == 0.25


# -- report ------------------------------------------------------------------------------------------------------------


def as_judged(logits, label, degrees=None, **more):
  count = len(label)
  degrees = np.zeros(count) if degrees is None else degrees
  fields = dict(theta=None, upright_theta=None, look=lambda rows: {"image": np.zeros((len(rows), 4, 4, 1))})
  return _report.Judged(np.arange(count), np.asarray(logits), np.asarray(label), degrees, **{**fields, **more})


def rotation(degrees):
  """The grid that undoes a counter-clockwise turn, y down: output places to input places."""
  cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
  zero = np.zeros_like(cos)
  return np.stack([np.stack([cos, sin, zero], -1), np.stack([-sin, cos, zero], -1)], -2)


def test_a_transformer_that_takes_the_turn_back_has_no_angle_error():
  degrees, habit = np.array([-40.0, 10.0, 30.0, 0.0]), np.array([5.0, -8.0, 0.0, 170.0])
  logits, label = np.zeros((4, 3)), np.zeros(4, int)
  perfect = as_judged(logits, label, degrees, theta=rotation(degrees + habit), upright_theta=rotation(habit))
  np.testing.assert_allclose(_report.angle_errors(perfect), 0, atol=1e-9)
  idle = as_judged(logits, label, degrees, theta=rotation(habit), upright_theta=rotation(habit))
  np.testing.assert_allclose(_report.angle_errors(idle), np.abs(degrees), atol=1e-9)
  wrong_way = as_judged(logits, label, degrees, theta=rotation(habit - degrees), upright_theta=rotation(habit))
  np.testing.assert_allclose(_report.angle_errors(wrong_way), 2 * np.abs(degrees), atol=1e-9)
  # The same transform by what it does to an image that is turned by `affine`.
  image = jax.random.uniform(jax.random.key(0), (9, 9, 1))
  from mlnotes.data import augment

  grid = np.stack(np.meshgrid(np.arange(9) - 4.0, np.arange(9) - 4.0), -1) @ rotation(90.0)[:, :2].T
  turned = np.asarray(augment.affine(image, 90.0))
  x, y = np.round(grid[..., 0]).astype(int) + 4, np.round(grid[..., 1]).astype(int) + 4
  np.testing.assert_allclose(turned[y, x], image, atol=1e-5)


def test_floors_learn_from_a_subset_and_a_network_is_held_against_them_on_the_same_images(
  monkeypatch, capsys, tmp_path
):
  for name in ("confusion", "calibration", "mistakes"):
    monkeypatch.setattr(_report, f"draw_{name}", lambda *args: None)
  monkeypatch.setattr(floors, "_MOST_TRAIN", 20)
  monkeypatch.setattr(floors, "_MOST_TEST", 4)
  monkeypatch.setattr(floors, "_MOST_NUMBERS_LINEAR", 8 * 16 + 5)
  data = DATA._replace(train=make_split(30, 0), test=make_split(10, 1))
  sizes = {"nearest_neighbour_train_images": 20, "linear_classifier_train_images": 8, "floor_test_images": 4}
  assert floors.floor_images(data) == sizes
  index = floors.floor_test_index(data)
  train = data.train.read(fixed_subset(30, 20))
  # Each test image has its neighbour's label, so that the floor is right everywhere.
  pixels = [image.reshape(len(image), -1).astype(float) for image in (train["image"], data.test.image)]
  data.test.label[:] = train["label"][((pixels[1][:, None] - pixels[0]) ** 2).sum(-1).argmin(1)]

  def report(right):
    """The network is right on these test images only."""
    answer = (data.test.label + ~np.isin(np.arange(10), right)) % 3
    predict = lambda variables, batch: {
      "logits": np.eye(3)[answer[np.minimum(batch["index"], 9)]] + np.zeros((len(batch["index"]), 3)),
      "image": batch["image"] / 16.0,
      "degrees": np.zeros(len(batch["index"])),
    }
    return _report.write_report(predict, None, data, configure(), tmp_path), capsys.readouterr().err

  figures, said = report(index)
  assert figures["nearest_neighbour"] == 1 and figures["test_accuracy"] == 0.4 and said == ""
  assert {name: figures[name] for name in sizes} == sizes
  assert "on the same 4 test images: 75.0% against 100.0%" in report(np.setdiff1d(np.arange(10), index[:1]))[1]


def test_figures_of_both_splits_and_the_pictures(tmp_path, capsys):
  right = np.eye(3)[DATA.train.label] * 4
  wrong = np.eye(3)[(DATA.test.label + 1) % 3] * 3
  wrong[0] = np.eye(3)[DATA.test.label[0]]

  def predict(variables, batch):
    all_logits = wrong if np.array_equal(batch["image"][:2], DATA.test.image[:2]) else right
    logits = all_logits[batch["index"]]
    return {"logits": logits, "image": batch["image"] / 16.0, "degrees": np.zeros(len(logits))}

  found = _report.write_report(predict, None, DATA, configure(), tmp_path)
  assert found["train_accuracy"] == 1 and found["test_accuracy"] == pytest.approx(0.1)
  sure = np.exp(4) / (np.exp(4) + 2)
  assert found["train_loss"] == pytest.approx(-np.log(sure), rel=1e-4)
  assert found["train_calibration_error"] == pytest.approx(1 - sure, rel=1e-4)
  confident = np.exp(3) / (np.exp(3) + 2)
  first = np.exp(1) / (np.exp(1) + 2)
  assert found["test_calibration_error"] == pytest.approx(0.9 * confident + 0.1 * (1 - first), rel=1e-4)
  from sklearn.neighbors import KNeighborsClassifier

  flat_images = [split.image.reshape(len(split), -1) for split in (DATA.train, DATA.test)]
  score = KNeighborsClassifier(1).fit(flat_images[0], DATA.train.label).score(flat_images[1], DATA.test.label)
  assert found["nearest_neighbour"] == pytest.approx(score)
  assert "loses to the nearest neighbour" in capsys.readouterr().err or score <= 0.1
  for name in ("confusion.png", "calibration.png", "misclassified.png"):
    assert (tmp_path / name).stat().st_size > 1000
  rows = (tmp_path / "classes.md").read_text().splitlines()[2:]
  counts = np.bincount(DATA.test.label, minlength=3)
  for label, row in enumerate(rows[:3]):
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    hits = int(label == DATA.test.label[0])
    assert cells[:2] == ["abc"[label], str(counts[label])]
    assert float(cells[2]) == pytest.approx(100 * hits / counts[label], abs=0.1)
    assert cells[3] == f"{'abc'[(label + 1) % 3]} ({counts[label] - hits})"
  assert rows[3].startswith("| all | 10 | 10.0 |")


def test_images_are_looked_at_again_where_they_are_drawn():
  """A whole split of them would not fit into memory."""
  predict = lambda variables, batch: {
    "logits": np.eye(3)[batch["label"]], "image": batch["image"] / 16, "degrees": np.asarray(batch["index"], float)
  }  # fmt: skip
  judged = _report.judge(predict, None, DATA.test)
  assert not any(np.shape(value)[1:] == (4, 4, 1) for value in judged)
  np.testing.assert_array_equal(judged.degrees, np.arange(10))
  np.testing.assert_array_equal(judged.look(np.array([7, 2]))["image"], DATA.test.image[[7, 2]] / 16)


def test_the_surest_mistakes_are_drawn_and_no_mistake_is_a_picture_too(tmp_path, monkeypatch):
  logits = np.array([[9.0, 0, 0], [0, 2.0, 0], [0, 5.0, 0]])
  titles = []
  from mlnotes.engine import plot

  monkeypatch.setattr(
    _report, "save_figure", lambda figure, path: titles.append([axis.get_title() for axis in figure.axes])
  )
  _report.draw_mistakes(as_judged(logits, [0, 0, 2]), DATA, tmp_path / "mistakes.png")
  assert titles[0][:2] == ["said b, is c\n99% sure", "said b, is a\n79% sure"]
  monkeypatch.setattr(_report, "save_figure", plot.save_figure)
  _report.draw_mistakes(as_judged(logits, [0, 1, 1]), DATA, tmp_path / "none.png")
  assert (tmp_path / "none.png").stat().st_size > 1000


# -- flags, and whoever starts from a run ------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, words", [
  ({"label_smoothing": 1.0}, "--label_smoothing=1.0"),
  ({"ema_decay": -0.1}, "--ema_decay=-0.1"),
  ({"dropout": 1.0}, "--dropout=1.0"),
  ({"width": -1}, "--width=-1"),
  ({"transformer_rate": 0.0}, "--transformer_rate=0.0"),
])  # fmt: skip
def test_a_bad_flag_is_one_sentence_that_names_it(flags, words):
  with pytest.raises(InputError, match=words):
    configure(**flags)


def test_what_a_network_cannot_be_is_one_sentence(monkeypatch):
  monkeypatch.setattr(classifier, "make_network", make_network)
  tiny = DATA._replace(image_shape=(1, 1, 1))
  with pytest.raises(InputError, match=r"--network=resnet20.*\.$"):
    classifier.build_network(configure(network="resnet20"), tiny)


def test_idle_flags_are_said():
  assert "transformer_rate" in configure().idle_flags()


def test_a_later_stage_loads_a_run_in_one_line(tmp_path, monkeypatch):
  """The default of a stage: it is trained first, then taken as it is."""
  calls = []
  train = classifier.train
  monkeypatch.setattr(classifier, "train", lambda *args, **more: calls.append(1) or train(*args, **more))
  small = dict(network="mlp", steps=2, batch_size=8, report_seeds=0, tensorboard=False, seeds=2, devices=1)
  for _ in range(2):
    victim = classifier.load_classifier(find_stage("victim", "", classifier, tmp_path, **small), seed=1)
  card = json.loads((tmp_path / "victim" / "result.json").read_text())
  right = np.argmax(victim.apply(victim.data.test.image), -1) == victim.data.test.label
  assert np.mean(right) == pytest.approx(card["metrics"]["accuracy"]["seeds"][1])
  assert victim.features(victim.data.test.image).shape == (10, 5)
  assert victim.config.steps == 2 and victim.data is DATA and len(calls) == 2
  with pytest.raises(InputError, match="no readable config"):
    classifier.load_classifier(tmp_path)


def test_a_network_of_distorted_images_lays_those_of_the_data_on_its_canvas():
  config = configure(network="mlp", distort="r")
  experiment, feeds = classifier.make(config), classifier.make_feeds(config)
  state = experiment.init(jax.random.key(0), feeds.train.draw(feeds.train.arrays, jax.random.key(0), jnp.int32(0)))
  model, image = experiment.model(state), DATA.test.image[:2]
  there = np.stack([np.pad(one, ((1, 1), (1, 1), (0, 0))) for one in image])
  np.testing.assert_array_equal(model(image), model(there))
