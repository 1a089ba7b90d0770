"""Tasks as batches for the training loop: new ones for every update, the same frozen ones for every evaluation."""

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, Key

from mlnotes.data import EvalBatches, ResidentFeed
from mlnotes.data.drawn import make_drawn_eval, make_drawn_feed
from mlnotes.meta.task import Task

# (key, arrays) -> one task. `arrays` is what tasks are drawn from, () where they are made from nothing.
SampleTask: TypeAlias = Callable[[Key[Array, ""], Any], Task]


def make_task_feed(sample: SampleTask, arrays: Any, batch_size: int) -> ResidentFeed:
  """`batch_size` new tasks for every update: a Task with that leading axis."""
  return make_drawn_feed(sample, arrays, batch_size, "tasks")


def make_frozen_tasks(sample: SampleTask, arrays: Any, seed: int, count: int, batch_size: int) -> EvalBatches:
  """`count` tasks that `seed` alone determines, whatever `batch_size`: see `make_drawn_eval`.

  A batch is {"task": Task with leading axis B, "index", "mask"}.
  """
  return make_drawn_eval(lambda key, arrays: {"task": sample(key, arrays)}, arrays, seed, count, batch_size)
