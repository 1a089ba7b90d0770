"""Tasks as batches for the training loop: new ones for every update, the same frozen ones for every evaluation."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from mlnotes.data import EvalBatches, ResidentFeed
from mlnotes.engine.experiment import example_keys, root_key, stream_key
from mlnotes.meta.task import Task

# (key, arrays) -> one task. `arrays` is what tasks are drawn from, () where they are made from nothing.
SampleTask: TypeAlias = Callable[[Key[Array, ""], Any], Task]


def make_task_feed(sample: SampleTask, arrays: Any, batch_size: int) -> ResidentFeed:
  """`batch_size` new tasks for every update: a Task with that leading axis."""

  def draw(arrays, key, step):
    keys = jax.random.split(stream_key(key, "tasks", step), batch_size)
    return jax.vmap(lambda key: sample(key, arrays))(keys)

  return ResidentFeed(arrays, draw)


def make_frozen_tasks(sample: SampleTask, arrays: Any, seed: int, count: int, batch_size: int) -> EvalBatches:
  """`count` tasks that `seed` alone determines: number i has the key fold_in(key(seed), i), whatever `batch_size`.

  A batch is {"task": Task with leading axis B, "index", "mask"}: the tasks' numbers, and 1 where there is one, 0 for
  the copies of the last one that fill up the last batch.
  """

  def draw(arrays, i):
    number = i * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    index = jnp.minimum(number, count - 1)
    task = jax.vmap(lambda key: sample(key, arrays))(example_keys(root_key(seed), index))
    return {"task": task, "index": index, "mask": (number < count).astype(jnp.float32)}

  return EvalBatches(arrays, draw, -(-count // batch_size))
