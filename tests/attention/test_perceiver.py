"""A Perceiver on pixels: what it is given of an image, orders of pixels, its updates, its maps, flags."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.attention import perceiver
from mlnotes.attention import fourier_positions
from mlnotes.data import ArraySplit, DataSet
from mlnotes.engine.errors import InputError

CLASSES, SHAPE = 3, (4, 3, 1)  # not square: rows are not columns


def make_split(size, seed):
  rng = np.random.default_rng(seed)
  return ArraySplit(
    rng.integers(0, 17, (size, *SHAPE), dtype=np.uint8), rng.integers(0, CLASSES, size).astype(np.int32)
  )


DATA = DataSet("mnist", make_split(30, 0), make_split(10, 1), CLASSES, ("a", "b", "c"), 17, SHAPE)
SIZES = dict(
  batch_size=6, steps=4, latents=3, width=4, heads=2, depth=1, repeats=2, bands=2, optimizer="sgd", momentum=0.0,
  learning_rate=0.5, weight_decay=0.0, schedule="constant", warmup_steps=0, clip_norm=0.0, dropout=0.25,
)  # fmt: skip
INDEX = np.array([3, 11, 0, 7, 29, 2], np.int32)


@pytest.fixture(scope="module", autouse=True)
def small():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(perceiver, "load_data", lambda config: DATA)
    yield


def configure(**flags):
  return perceiver.Config(**{**SIZES, **flags})


@functools.cache
def built(**flags):
  """(experiment, its first state, a training batch)."""
  experiment = perceiver.make(configure(**flags))
  batch = {**DATA.train.read(INDEX), "index": jnp.asarray(INDEX)}
  return experiment, jax.jit(experiment.init)(jax.random.key(7), batch), batch


# -- what it is given --------------------------------------------------------------------------------------------------


def test_each_pixel_comes_with_its_position():
  image = DATA.train.image[:2]
  found = np.asarray(perceiver.make_pixels(configure(), DATA)(image))
  assert found.shape == (2, 12, 1 + 10)
  for row, column in ((0, 0), (0, 2), (3, 1)):
    np.testing.assert_allclose(found[:, 3 * row + column, 0], image[:, row, column, 0] / 8 - 1, rtol=1e-6)
    np.testing.assert_allclose(found[:, 3 * row + column, 1:], [fourier_positions((4, 3), 2)[3 * row + column]] * 2)
  np.testing.assert_allclose(perceiver.make_pixels(configure(), DATA)(image / np.float32(16)), found, atol=1e-6)


def test_an_order_takes_positions_along_or_leaves_them():
  image = DATA.train.image[:1]
  plain, along, alone = (
    np.asarray(perceiver.make_pixels(configure(permute=name), DATA)(image))[0] for name in ("none", "along", "alone")
  )
  order = perceiver.make_pixels(configure(permute="alone"), DATA).order
  assert sorted(order) == list(range(12)) and np.mean(order == np.arange(12)) < 0.5
  np.testing.assert_array_equal(along, plain[order])
  np.testing.assert_array_equal(alone[:, 0], plain[order, 0])
  np.testing.assert_array_equal(alone[:, 1:], plain[:, 1:])


def test_an_order_with_positions_along_changes_nothing_and_alone_it_does():
  _, state, _ = built()
  image = DATA.test.image
  logits, looks = {}, {}
  for name in ("none", "along", "alone"):
    model = perceiver.make(configure(permute=name)).model(state)
    logits[name], looks[name] = np.asarray(model(image)), model.looks(image)
  np.testing.assert_allclose(logits["along"], logits["none"], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(looks["along"], looks["none"], rtol=1e-4, atol=1e-6)
  assert np.max(np.abs(logits["alone"] - logits["none"])) > 1e-4
  assert looks["none"].shape == (10, 3, 4, 3)
  np.testing.assert_allclose(looks["none"].sum((2, 3)), 1, rtol=1e-5)


def test_maps_lie_where_the_pixels_do():
  """Brightnesses in the order of the sequence, put back, are the image."""
  for name in ("none", "alone"):
    pixels = perceiver.make_pixels(configure(permute=name), DATA)
    sequence = np.asarray(pixels(DATA.test.image))[..., 0]
    wanted = DATA.test.image[..., 0] / 8.0 - 1
    np.testing.assert_allclose(pixels.to_image(sequence, (4, 3)), wanted, atol=1e-6)


# -- updates -----------------------------------------------------------------------------------------------------------


def of_stream(name):
  """The key of a stream in the update behind 5 others."""
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(7), zlib.crc32(name.encode()) & 0x7FFFFFFF), 5)


def shifted(image):
  """The training images, moved by up to a pixel as the stream "augment" says; NumPy does the moving."""
  key, out = of_stream("augment"), np.zeros_like(image)
  for row, i in enumerate(INDEX):
    top, left = np.asarray(jax.random.randint(jax.random.fold_in(key, i), (2,), 0, 3))
    out[row] = np.pad(image[row], ((1, 1), (1, 1), (0, 0)))[top : top + 4, left : left + 3]
  return out


def test_an_update_descends_the_cross_entropy_of_moved_images():
  experiment, state, batch = built()
  state = state._replace(step=jnp.int32(5))
  model = experiment.model(state)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(params, image):
    rngs = {"dropout": of_stream("dropout")}
    logits = model.network.apply({"params": params}, model.pixels(image), train=True, rngs=rngs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), logits

  (value, logits), grads = loss(state.params, jnp.asarray(shifted(batch["image"])))
  new, metrics = jax.jit(experiment.step)(state, batch)
  wanted = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(new.params), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6, err_msg=jax.tree_util.keystr(path))
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
  np.testing.assert_allclose(metrics["accuracy"], np.mean(np.argmax(logits, -1) == batch["label"]), rtol=1e-5)
  np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-4)


def test_evaluation_moves_nothing_and_leaves_out_what_fills_up():
  experiment, state, _ = built()
  batch = {**DATA.test.read(np.arange(10)), "mask": jnp.array([1.0] * 7 + [0.0] * 3)}
  found = jax.jit(experiment.evaluate)(state, batch)
  logits = np.asarray(experiment.model(state)(batch["image"]))[:7]  # without dropout
  label = batch["label"][:7]
  each = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  assert found["loss"].count == found["accuracy"].count == 7
  np.testing.assert_allclose(found["loss"].total, each.sum(), rtol=1e-5)
  assert found["accuracy"].total == np.sum(logits.argmax(-1) == label)


def test_the_flags_make_the_network():
  network = built()[0].model(built()[1]).network
  wanted = dict(latents=3, width=4, heads=2, depth=1, repeats=2, num_classes=3, dropout=0.25)
  assert {name: getattr(network, name) for name in wanted} == wanted


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_report_draws_maps_and_has_the_floors(tmp_path):
  experiment, state, _ = built()
  figures = experiment.report(state, tmp_path)
  assert set(figures) == {"nearest_neighbour", "linear_classifier"}
  distance = np.linalg.norm(
    DATA.test.image.reshape(10, 1, -1).astype(float) - DATA.train.image.reshape(1, 30, -1), axis=-1
  )
  nearest = DATA.train.label[distance.argmin(1)]
  assert figures["nearest_neighbour"] == pytest.approx(np.mean(nearest == DATA.test.label))
  assert (tmp_path / "latents.png").stat().st_size > 1000


def test_maps_that_differ_most_are_shown_first():
  maps = np.full((4, 2, 2), 0.25)
  maps[1] = [[1, 0], [0, 0]]
  maps[2] = [[0.9, 0.1], [0, 0]]
  maps[3] = [[0, 0], [0, 1]]
  assert perceiver.spread(maps).tolist() == [1, 3, 0, 2]
  assert sorted(perceiver.spread(np.ones((3, 2, 2)))) == [0, 1, 2]


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, words", [
  ({"latents": 0}, "--latents=0"),
  ({"repeats": 0}, "--repeats=0"),
  ({"depth": 0}, "--depth=0"),
  ({"bands": 0}, "--bands=0"),
  ({"heads": 3}, "--heads=3.*divisor of --width=4"),
  ({"dropout": 1.0}, "--dropout=1.0"),
  ({"shift": -1}, "--shift=-1"),
])  # fmt: skip
def test_a_bad_flag_is_one_sentence_that_names_it(flags, words):
  with pytest.raises(InputError, match=words):
    configure(**flags)
