"""Episodes: what is drawn, how often, from which classes; that nothing leaks from one side or set to another."""

import functools
import io
import itertools
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image
from sklearn.neighbors import NearestCentroid

from experiments.meta._episodes import EpisodeConfig, load_episode_sets, make_episode_feeds
from mlnotes.data import DataSet, RecordSplit
from mlnotes.data.dataset import make_array_split
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Experiment, masked_mean
from mlnotes.engine.program import Program, make_mesh
from mlnotes.meta import (
  Task,
  check_episode,
  frozen_episodes,
  interval95,
  make_class_pool,
  make_episode_sets,
  predict_by_prototype,
  prototype_accuracy,
  sample_distinct,
  sample_episode,
)
from mlnotes.meta.classes import prepare_images, resize_images

SIZES = (4, 6, 9, 5)  # of the classes of `pool`


def told_images(label, example, side=3):
  """Images that say what they are: their class, their example, and a pattern that no rotation keeps."""
  image = np.zeros((len(label), side, side, 3), np.uint8)
  image[..., 0], image[..., 1] = label[:, None, None], example[:, None, None]
  image[..., 2] = np.arange(side * side).reshape(side, side)
  return image


def shuffled_pool(rotations=False):
  label = np.repeat(np.arange(len(SIZES)), SIZES)
  example = np.concatenate([np.arange(size) for size in SIZES])
  order = np.random.default_rng(0).permutation(len(label))
  return make_class_pool(told_images(10 * label, example)[order], 10 * label[order], rotations)


def draw_many(pool, count, ways, shots, queries, seed=0):
  keys = jax.random.split(jax.random.key(seed), count)
  return jax.device_get(jax.jit(jax.vmap(lambda key: sample_episode(key, pool, ways, shots, queries)))(keys))


# ---- Drawing -------------------------------------------------------------------------------------------------------


def test_every_arrangement_is_equally_likely():
  keys = jax.random.split(jax.random.key(0), 4800)
  size = jnp.int32(4)
  drawn = np.asarray(jax.jit(jax.vmap(lambda key: sample_distinct(key, size, 3)))(keys))
  arrangements = list(itertools.permutations(range(4), 3))
  counts = [np.sum(np.all(drawn == one, axis=1)) for one in arrangements]
  assert sum(counts) == len(drawn)
  assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_sizes_may_be_traced_and_differ():
  sizes = jnp.array([5, 6, 100, 2**31 - 1])
  draw = jax.jit(jax.vmap(lambda key, size: sample_distinct(key, size, 5)))
  drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 4), sizes))
  assert np.all(drawn >= 0) and np.all(drawn < np.asarray(sizes)[:, None])
  assert all(len(set(row)) == 5 for row in drawn.tolist())
  np.testing.assert_array_equal(np.sort(drawn[0]), np.arange(5))
  np.testing.assert_array_equal(sample_distinct(jax.random.key(1), 1, 1), [0])


def test_an_episode_holds_what_its_labels_say():
  ways, shots, queries = 3, 1, 3
  task = draw_many(shuffled_pool(), 200, ways, shots, queries)
  for side, each in ((task.support, shots), (task.query, queries)):
    assert side["image"].shape == (200, ways * each, 3, 3, 3) and side["image"].dtype == np.uint8
    np.testing.assert_array_equal(side["label"], np.tile(np.repeat(np.arange(ways), each), (200, 1)))
  for support, query in zip(task.support["image"][..., 0, 0, :2], task.query["image"][..., 0, 0, :2]):
    classes = support.reshape(ways, shots, 2)[:, 0, 0]
    assert len(set(classes.tolist())) == ways
    np.testing.assert_array_equal(query[:, 0], np.repeat(classes, queries))
    # No example twice, so none on both sides.
    assert len({tuple(row) for row in np.concatenate([support, query]).tolist()}) == ways * (shots + queries)


def test_classes_labels_and_examples_are_drawn_equally_often():
  task = draw_many(shuffled_pool(), 3000, ways=2, shots=1, queries=1)
  kind, example = task.support["image"][:, :, 0, 0, 0] // 10, task.support["image"][:, :, 0, 0, 1]
  pairs = np.bincount(kind[:, 0] * 4 + kind[:, 1], minlength=16).reshape(4, 4)
  assert np.all(np.diag(pairs) == 0)
  assert scipy.stats.chisquare(pairs[~np.eye(4, dtype=bool)]).pvalue > 1e-3
  partner = task.query["image"][:, :, 0, 0, 1]
  for k, size in enumerate(SIZES):
    both = np.bincount(example[kind == k] * size + partner[kind == k], minlength=size**2).reshape(size, size)
    assert np.all(np.diag(both) == 0)
    assert scipy.stats.chisquare(both[~np.eye(size, dtype=bool)]).pvalue > 1e-3


def test_turned_classes_are_those_of_numpy():
  pool = shuffled_pool(rotations=True)
  assert pool.num_classes == 16 and len(pool.image) == sum(SIZES)
  task = draw_many(pool, 100, ways=6, shots=2, queries=1)
  pattern = np.arange(9).reshape(3, 3)
  turned = np.stack([np.rot90(pattern, quarters) for quarters in range(4)])
  seen = []
  for support, query in zip(task.support["image"], task.query["image"]):
    quarters = [np.flatnonzero([np.array_equal(x[..., 2], t) for t in turned]).item() for x in (*support, *query)]
    per_class = np.array(quarters[:12]).reshape(6, 2)
    assert np.all(per_class == per_class[:, :1])
    assert quarters[12:] == per_class[:, 0].tolist()
    number = support[::2, 0, 0, 0] // 10 * 4 + per_class[:, 0]
    assert len(set(number.tolist())) == 6
    seen.extend(number)
  assert scipy.stats.chisquare(np.bincount(seen, minlength=16)).pvalue > 1e-3
  # Which way: a pool in which every class is turned by one quarter.
  once = sample_episode(jax.random.key(0), pool._replace(turns=jnp.ones(2, jnp.int32)), 2, 1, 1)
  np.testing.assert_array_equal(once.query["image"][..., 2], np.stack([turned[1]] * 2))


def test_frozen_episodes_do_not_depend_on_the_batch():
  pool = shuffled_pool(rotations=True)

  def collect(batch_size, seed=3):
    batches = frozen_episodes(pool, seed, 10, 4, 1, 2, batch_size)
    draw = jax.jit(batches.draw)
    drawn = [jax.device_get(draw(batches.arrays, jnp.int32(i))) for i in range(batches.num_batches)]
    return jax.tree.map(lambda *x: np.concatenate(x), *drawn)

  whole, parts = collect(10), collect(4)
  np.testing.assert_array_equal(parts["mask"], [1] * 10 + [0] * 2)
  np.testing.assert_array_equal(parts["index"], [*range(10), 9, 9])
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:10]), whole, parts)
  assert not np.array_equal(whole["task"].support["image"], collect(10, seed=4)["task"].support["image"])


def test_frozen_episodes_are_the_same_in_another_process():
  code = """
import jax, numpy as np, zlib
from experiments.meta._episodes import EpisodeConfig, load_episode_sets
from mlnotes.meta import frozen_episodes
batches = frozen_episodes(load_episode_sets(EpisodeConfig()).test, 0, 6, 5, 1, 15, 3)
draw = jax.jit(batches.draw)
print([zlib.crc32(np.asarray(draw(batches.arrays, i)["task"].query["image"]).tobytes()) for i in range(2)])
"""
  environment = {**os.environ, "PYTHONHASHSEED": "7"}
  environment.pop("XLA_FLAGS")
  root = Path(__file__).parents[2]
  done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  batches = frozen_episodes(load_episode_sets(EpisodeConfig()).test, 0, 6, 5, 1, 15, 6)
  image = np.asarray(jax.jit(batches.draw)(batches.arrays, 0)["task"].query["image"])
  assert done.stdout.strip() == str([zlib.crc32(image[:3].tobytes()), zlib.crc32(image[3:].tobytes())])


# ---- Sets of classes -----------------------------------------------------------------------------------------------


def told_data(train_classes, test_classes, per_class=4, shape=(3, 3, 3)):
  splits = []
  for offset, classes in ((0, train_classes), (100, test_classes)):
    label = np.repeat(np.array(classes), per_class)
    example = offset + np.tile(np.arange(per_class), len(classes))
    splits.append(make_array_split("told", told_images(label, example), label))
  return DataSet("told", *splits, 50, (), 256, shape)


def contents(pool):
  """{label: the numbers of its examples}, from the images alone."""
  image = np.asarray(pool.image[:, 0, 0])
  parts = [image[start : start + count] for start, count in zip(np.asarray(pool.start), np.asarray(pool.count))]
  assert [set(part[:, 0].tolist()) for part in parts] == [{label} for label in pool.label.tolist()]
  return {int(part[0, 0]): sorted(part[:, 1].tolist()) for part in parts}


def test_digits_give_six_two_and_two_classes():
  sets = load_episode_sets(EpisodeConfig())
  assert [pool.num_classes for pool in sets[:3]] == [24, 8, 8]
  labels = [pool.label.tolist() for pool in sets[:3]]
  assert sorted(itertools.chain(*labels)) == list(range(10))
  assert sum(len(pool.image) for pool in sets[:3]) == 1797
  assert (sets.levels, sets.image_shape) == (17, (8, 8, 1))
  assert sets.train.image.max() == 16 and np.mean(sets.train.image) < 8  # dark background, not inverted
  other = load_episode_sets(EpisodeConfig(class_seed=1, rotations="train", ways=2))
  assert [pool.num_classes for pool in other[:3]] == [24, 2, 2]
  assert [pool.label.tolist() for pool in other[:3]] != labels


def test_classes_of_the_test_split_alone_are_the_test_classes():
  sets = make_episode_sets(told_data([3, 5, 7, 11, 13], [5, 20, 21]), valid_fraction=0.4, rotations="none")
  train, valid, test = map(contents, sets[:3])
  assert test == {20: [100, 101, 102, 103], 21: [100, 101, 102, 103]}
  assert len(train) == 3 and len(valid) == 2
  # 5 is in both splits: its examples in the test split are dropped.
  assert train | valid == {label: [0, 1, 2, 3] for label in (3, 5, 7, 11, 13)}


def test_classes_that_both_splits_share_are_divided_and_their_examples_pooled():
  sets = make_episode_sets(told_data([3, 5, 7, 11, 13], [5, 3, 13]), seed=4)
  train, valid, test = map(contents, sets[:3])
  assert [len(train), len(valid), len(test)] == [3, 1, 1]
  both = {label: [0, 1, 2, 3, 100, 101, 102, 103] for label in (3, 5, 13)}
  assert train | valid | test == {label: [0, 1, 2, 3] for label in (7, 11)} | both
  many = [make_episode_sets(told_data(range(5), range(5)), seed=seed).test.label.item() for seed in range(30)]
  assert set(many) == set(range(5))


def test_images_that_are_decoded_as_they_are_read_give_the_same_sets():
  data = told_data([3, 5, 7, 11, 13], [5, 20])

  class Source:
    def __init__(self, split):
      self.split = split

    def __len__(self):
      return len(self.split)

    def __getitems__(self, positions):
      return [{"image": png(self.split.image[i]), "label": int(self.split.label[i])} for i in positions]

  records = data._replace(**{k: RecordSplit(Source(getattr(data, k)), (3, 3, 3)) for k in ("train", "test")})
  decoded, held = make_episode_sets(records), make_episode_sets(data)
  jax.tree.map(np.testing.assert_array_equal, decoded[:3], held[:3])


def png(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, "png")
  return file.getvalue()


def test_ink_is_bright_and_equal_channels_are_one():
  grey = np.full((5, 6, 6, 1), 15, np.uint8)
  grey[:, 2:4, 2:4] = 3
  as_colour = np.repeat(grey, 3, axis=-1)
  np.testing.assert_array_equal(prepare_images(as_colour, 17, True), 16 - grey)
  np.testing.assert_array_equal(prepare_images(as_colour, 17, False), grey)
  np.testing.assert_array_equal(prepare_images(16 - grey, 17, True), 16 - grey)
  as_colour[2, 0, 0, 1] = 0
  np.testing.assert_array_equal(prepare_images(as_colour, 17, True), as_colour)


def test_resizing_averages_what_it_leaves_out_and_keeps_channels_apart():
  stripes = np.zeros((2, 16, 24, 2), np.uint8)
  stripes[:, :, ::2, 0] = 200
  stripes[1, :, :, 1] = 16
  resized = resize_images(stripes, 4)
  assert resized.shape == (2, 4, 4, 2) and resized.dtype == np.uint8
  np.testing.assert_allclose(resized[..., 0], 100, atol=3)  # every second column would be 0 or 200
  np.testing.assert_array_equal(resized[..., 1], [np.zeros((4, 4)), np.full((4, 4), 16)])
  step = np.zeros((1, 8, 8, 1), np.uint8)
  step[:, :, 4:] = 16
  assert resize_images(step, 24).max() == 16  # no overshoot beyond the highest level


@pytest.mark.parametrize(
  "changes, sentence",
  [
    (dict(ways=9), r"--ways=9 .* at most 8, the validation classes"),
    (dict(rotations="train"), r"--ways=5 .* at most 2, the validation classes"),
    (dict(shots=400), r"--shots=400 .* at most \d+, as the smallest \w+ class has \d+ examples and some must"),
    (dict(shots=10, queries=170), r"--queries=170 .* at most \d+ beside --shots=10, as the smallest training class"),
    (dict(valid_fraction=0.5, test_fraction=0.5), r"test_fraction=0.5: found 10 classes, expected more than the 10"),
    (dict(ways=1), r"--ways=1 .* 2 or more"),
    (dict(queries=0), r"--queries=0 .* 1 or more"),
    (dict(valid_fraction=1.0), r"--valid_fraction=1.0 .* between 0 and 1"),
    (dict(class_seed=-1), r"--class_seed=-1 .* 0 to 4294967294"),
    (dict(image_size=-1), r"--image_size=-1 .* 0 or more"),
  ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(changes, sentence):
  with pytest.raises(InputError, match=sentence) as error:
    load_episode_sets(EpisodeConfig(**changes))
  assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_oblong_images_are_not_turned():
  image, label = np.zeros((4, 3, 5, 1), np.uint8), np.arange(4)
  with pytest.raises(InputError, match="found images of 3 x 5 pixels, expected square ones"):
    make_class_pool(image, label, rotations=True)
  with pytest.raises(InputError, match=r"--ways=5 .* at most 4, the given classes"):
    check_episode(make_class_pool(image, label), 5, 1, 1)


# ---- Feeds and floors ----------------------------------------------------------------------------------------------


class Counter(NamedTuple):
  step: jax.Array
  key: jax.Array
  hparams: dict


@pytest.mark.thorough
def test_the_loop_takes_the_feeds_on_one_device_or_eight():
  config = EpisodeConfig(batch_size=8, queries=2, eval_queries=2, eval_examples=12)
  sets = load_episode_sets(config)
  feeds = make_episode_feeds(sets, config)
  accuracy = jax.vmap(lambda task: prototype_accuracy(task, config.ways))
  experiment = Experiment(
    init=lambda key, batch: Counter(jnp.int32(0), key, {}),
    step=lambda state, task: (state._replace(step=state.step + 1), {"accuracy": jnp.mean(accuracy(task))}),
    evaluate=lambda state, batch: {"accuracy": masked_mean(accuracy(batch["task"]), batch["mask"])},
    report=lambda state, directory: None,
  )
  found = []
  for devices in (1, 8):
    program = Program(experiment, feeds, [0], make_mesh(devices))
    state, window = program.update(program.init(), program.empty_window(), 2)
    found.append((float(window.total["accuracy"]), float(program.evaluate(state)["accuracy"])))
  np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
  episodes = frozen_episodes(sets.valid, 0, 12, 5, 1, 2, 12)
  whole = jax.jit(lambda pool: accuracy(episodes.draw(pool, 0)["task"]))(episodes.arrays)
  np.testing.assert_allclose(found[0][1], np.mean(whole), rtol=1e-6)


def test_training_episodes_differ_by_step_and_seed():
  config = EpisodeConfig(batch_size=3, queries=1)
  feed = make_episode_feeds(load_episode_sets(config), config).train
  draw = jax.jit(feed.draw)
  drawn = [np.asarray(draw(feed.arrays, jax.random.key(s), i).query["image"]) for s, i in ((0, 0), (0, 1), (1, 0))]
  assert drawn[0].shape == (3, 5, 8, 8, 1)
  episodes = np.concatenate(drawn).reshape(9, -1)
  assert len(np.unique(episodes, axis=0)) == 9
  np.testing.assert_array_equal(draw(feed.arrays, jax.random.key(0), 0).query["image"], drawn[0])


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_ has at least 1 zero")
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_prototypes_are_those_of_scikit_learn(sigma):
  sets = load_episode_sets(EpisodeConfig())
  task = draw_many(sets.train, 10, ways=5, shots=3, queries=15)
  predicted = jax.jit(jax.vmap(functools.partial(predict_by_prototype, ways=5, sigma=sigma)))(task)
  accuracy = jax.jit(jax.vmap(functools.partial(prototype_accuracy, ways=5, sigma=sigma)))(task)
  width = (0, sigma, sigma, 0)
  features = lambda image: scipy.ndimage.gaussian_filter(image.astype(float), width, mode="mirror").reshape(
    len(image), -1
  )
  for i in range(10):
    support, query = jax.tree.map(lambda x: x[i], task)  # noqa: B023
    centroids = NearestCentroid().fit(features(support["image"]), support["label"])
    expected = centroids.predict(features(query["image"]))
    assert np.mean(predicted[i] == expected) > 0.98  # ties in float32
    np.testing.assert_allclose(accuracy[i], np.mean(np.asarray(predicted[i]) == query["label"]), rtol=1e-6)
  assert np.mean(accuracy) > 0.7


def test_prototypes_take_supports_in_any_order():
  support = {"image": np.array([9, 0, 8, 1], np.uint8).reshape(4, 1, 1, 1), "label": np.array([1, 0, 1, 0], np.int32)}
  query = {"image": np.array([2, 7], np.uint8).reshape(2, 1, 1, 1), "label": np.array([0, 0], np.int32)}
  task = jax.tree.map(jnp.asarray, Task(support, query))
  np.testing.assert_array_equal(predict_by_prototype(task, 2), [0, 1])
  assert prototype_accuracy(task, 2) == 0.5


def test_the_interval_is_that_of_a_normal_mean():
  values = np.random.default_rng(0).uniform(size=600)
  mean, half = interval95(values)
  low, high = scipy.stats.norm.interval(0.95, values.mean(), scipy.stats.sem(values))
  np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-4)
