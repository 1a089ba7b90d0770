"""N-way K-shot image episodes, drawn on the device from any labelled images.

  sets = load_episode_sets(config)
  feeds = make_episode_feeds(sets, config)
  task = sample_episode(key, sets.train, ways=5, shots=1, queries=15)

Labels mean nothing beyond their episode: `ways` classes are drawn and numbered 0 .. ways - 1 in the order of the draw
(Vinyals et al. 2016, section 4.1). Learning to tell them apart from `shots` examples each is the task.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Int32, Key, Real, UInt8

from mlnotes.data import EvalBatches
from mlnotes.data.augment import gaussian_blur
from mlnotes.engine.errors import require
from mlnotes.meta.classes import ClassPool
from mlnotes.meta.feeds import SampleTask, make_frozen_tasks
from mlnotes.meta.task import Task


def check_episode(
  pool: ClassPool, ways: int, shots: int, queries: int, name: str = "given", flag: str = "queries"
) -> None:
  """Raises InputError unless `pool` has `ways` classes of at least `shots` + `queries` examples each."""
  found, smallest = pool.num_classes, int(np.min(pool.count))
  require(ways <= found, "ways", ways, f"at most {found}, the {name} classes (--rotations=all has four times as many)")
  least = f"the smallest {name} class has {smallest} examples"
  require(shots < smallest, "shots", shots, f"at most {smallest - 1}, as {least} and some must be left to judge by")
  most = smallest - shots
  require(queries <= most, flag, queries, f"at most {most} beside --shots={shots}, as {least}")


# ---- Drawing -------------------------------------------------------------------------------------------------------


def sample_distinct(key: Key[Array, ""], size: Int[Array, ""] | int, count: int) -> Int32[Array, " {count}"]:
  """`count` different numbers of range(size) in random order: every arrangement is equally likely.

  Number i is drawn as a position among the size - i that are left, and then moved up past those drawn before it: a
  random Lehmer code, decoded (Knuth, The Art of Computer Programming 2, section 3.3.2, algorithm P read backwards).
  Work grows with count^2 and not with `size`, which may be traced, and nothing is rejected. `count` <= `size` is not
  checked.
  """
  place = jnp.arange(count)
  drawn = jax.random.randint(key, (count,), 0, size - place)

  def step_over(i, found):
    before = count - 2 - i
    return found + ((place > before) & (found >= drawn[before]))

  return lax.fori_loop(0, count - 1, step_over, drawn)


def _turn(image: UInt8[Array, "M H W C"], quarters: Int[Array, ""]) -> UInt8[Array, "M H W C"]:
  """Square images turned counter-clockwise, as numpy.rot90 does."""
  image = jnp.where(quarters >= 2, image[:, ::-1, ::-1], image)
  return jnp.where(quarters % 2 == 1, jnp.swapaxes(image, 1, 2)[:, ::-1], image)


def sample_episode(key: Key[Array, ""], pool: ClassPool, ways: int, shots: int, queries: int) -> Task:
  """One episode: `ways` different classes, `shots` + `queries` different examples of each, all equally likely.

  Support and query are {"image": uint8 (ways * K, H, W, C), "label": int32 (ways * K,)} with K = `shots` or `queries`,
  the K examples of class 0 first, then those of class 1, and so on. Classes need not be of one size, but each must
  have enough examples: `check_episode`.
  """
  class_key, example_key = jax.random.split(key)
  number = sample_distinct(class_key, pool.num_classes, ways)
  turns = pool.turns.shape[0]
  stored, quarters = number // turns, pool.turns[number % turns]
  draw = lambda key, size: sample_distinct(key, size, shots + queries)
  example = jax.vmap(draw)(jax.random.split(example_key, ways), pool.count[stored])
  image = pool.image.at[pool.start[stored][:, None] + example].get(mode="promise_in_bounds")
  if turns > 1:
    image = jax.vmap(_turn)(image, quarters)

  def side(image):
    label = jnp.repeat(jnp.arange(ways, dtype=jnp.int32), image.shape[1])
    return {"image": image.reshape(-1, *image.shape[2:]), "label": label}

  return Task(side(image[:, :shots]), side(image[:, shots:]))


def make_sampler(ways: int, shots: int, queries: int) -> SampleTask:
  """`sample_episode` of one size."""
  return lambda key, pool: sample_episode(key, pool, ways, shots, queries)


def frozen_episodes(
  pool: ClassPool, seed: int, count: int, ways: int, shots: int, queries: int, batch_size: int
) -> EvalBatches:
  """`count` episodes that `seed` alone determines: number i has the key fold_in(key(seed), i), whatever `batch_size`.

  A batch is {"task": Task with leading axis B, "index", "mask"}: the episodes' numbers, and 1 where there is one, 0
  for the copies of the last one that fill up the last batch. Raises InputError as `check_episode` does.
  """
  check_episode(pool, ways, shots, queries)
  return make_frozen_tasks(make_sampler(ways, shots, queries), pool, seed, count, batch_size)


# ---- What stands beside a result -----------------------------------------------------------------------------------


def predict_by_prototype(task: Task, ways: int, sigma: float = 0.0) -> Int32[Array, " Q"]:
  """The class whose mean support image is nearest to each query image, both blurred by `sigma` pixels; no learning.

  The floor of a few-shot result: the prototypes of Snell et al. 2017 with pixels for features.
  """

  def features(image):
    image = image.astype(jnp.float32)
    if sigma:
      reach = min(int(4 * sigma + 0.5), min(image.shape[1:3]) - 1)
      image = jax.vmap(lambda x: gaussian_blur(x, sigma, 2 * reach + 1))(image)
    return image.reshape(len(image), -1)

  support, query = features(task.support["image"]), features(task.query["image"])
  member = jax.nn.one_hot(task.support["label"], ways, axis=0)
  matmul = functools.partial(jnp.matmul, precision="highest")
  prototype = matmul(member, support) / jnp.sum(member, axis=1, keepdims=True)
  # Up to |query|^2, which all classes share.
  distance = jnp.sum(jnp.square(prototype), axis=1)[None] - 2 * matmul(query, prototype.T)
  return jnp.argmin(distance, axis=1).astype(jnp.int32)


def prototype_accuracy(task: Task, ways: int, sigma: float = 0.0) -> Float[Array, ""]:
  """Share of the query images that `predict_by_prototype` classifies rightly."""
  return jnp.mean(predict_by_prototype(task, ways, sigma) == task.query["label"])


def interval95(values: Real[np.ndarray, " n"] | Real[Array, " n"]) -> tuple[float, float]:
  """(mean, half-width of the 95 % confidence interval of the mean): 1.96 standard deviations / sqrt(n), n >= 2."""
  values = np.asarray(values, np.float64)
  return float(np.mean(values)), float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values)))
