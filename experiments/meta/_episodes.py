"""Episodes from flags: the sets of classes, and both feeds."""

import dataclasses
import functools
from typing import Literal

from mlnotes.data import Feeds
from mlnotes.data.flags import DataConfig, load_data
from mlnotes.engine.errors import require
from mlnotes.engine.flags import field
from mlnotes.meta.classes import EpisodeSets, Rotations, make_episode_sets
from mlnotes.meta.episodes import (
  check_episode,
  frozen_episodes,
  make_sampler,
)
from mlnotes.meta.feeds import make_task_feed


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeConfig(DataConfig):
  """The flags of an experiment that learns from episodes; --batch_size and --eval_examples count episodes."""

  batch_size: int = field(32, "episodes per update, over all devices", refines=True)
  eval_examples: int = field(200, "validation episodes of an evaluation, frozen by --eval_seed", refines=True)
  data_placement: Literal["auto", "device"] = field(
    "auto", "images live on the device, where episodes are drawn", refines=True
  )

  ways: int = field(5, "classes of an episode")
  shots: int = field(1, "examples of each class to adapt on")
  queries: int = field(15, "examples of each class to judge by in training")
  eval_queries: int = field(15, "examples of each class to judge by in validation and test")
  image_size: int = field(0, "pixels a side that images are resized to; 0: as they are")
  bright_ink: bool = field(True, "invert grey images whose border is bright")
  rotations: Rotations = field(
    "all", "which sets have classes turned by 90, 180 and 270 degrees as further classes: all, training alone, none"
  )
  valid_fraction: float = field(0.2, "share of the classes that validation gets")
  test_fraction: float = field(0.2, "share that test gets, unless the test split has classes of its own")
  class_seed: int = field(0, "which classes go where, >= 0")
  eval_seed: int = field(0, "of the frozen validation and test tasks, >= 0")
  test_tasks: int = field(1000, "frozen test tasks of the report", free="report")

  def __post_init__(self):
    super().__post_init__()
    for name in ("shots", "queries", "eval_queries", "eval_examples"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.test_tasks >= 2, "test_tasks", self.test_tasks, "2 or more, for an interval")
    require(self.ways >= 2, "ways", self.ways, "2 or more")
    require(self.image_size >= 0, "image_size", self.image_size, "0 or more")
    for name in ("valid_fraction", "test_fraction"):
      require(0 < getattr(self, name) < 1, name, getattr(self, name), "a number between 0 and 1")
    for name in ("class_seed", "eval_seed"):
      require(0 <= getattr(self, name) < 2**32 - 1, name, getattr(self, name), "0 to 4294967294")


_make_episode_sets = functools.lru_cache(maxsize=1)(make_episode_sets)


def load_episode_sets(config: EpisodeConfig) -> EpisodeSets:
  """The sets that the flags name, kept for the next call. Raises DataError as `load_data` does, InputError as below.

  Checked here, so that a long run does not fail at its end: each set must be able to fill an episode.
  """
  sets = _make_episode_sets(
    load_data(config),
    image_size=config.image_size,
    bright_ink=config.bright_ink,
    rotations=config.rotations,
    valid_fraction=config.valid_fraction,
    test_fraction=config.test_fraction,
    seed=config.class_seed,
  )
  named = {"training": sets.train, "validation": sets.valid, "test": sets.test}
  for name, pool in sorted(named.items(), key=lambda item: item[1].num_classes):
    flag = "queries" if name == "training" else "eval_queries"
    check_episode(pool, config.ways, config.shots, getattr(config, flag), name, flag)
  return sets


def make_episode_feeds(sets: EpisodeSets, config: EpisodeConfig) -> Feeds:
  """Batches of `config.batch_size` training episodes (a Task with leading axis B), and frozen validation episodes.

  Raises InputError as `check_episode` does.
  """
  size = (config.ways, config.shots)
  check_episode(sets.train, *size, config.queries, "training")
  evaluate = frozen_episodes(
    sets.valid, config.eval_seed, config.eval_examples, *size, config.eval_queries, config.batch_size
  )
  return Feeds(
    make_task_feed(make_sampler(*size, config.queries), sets.train, config.batch_size), evaluate, split="validation"
  )
