"""The flags of an experiment that learns from a data set, and the data and feeds that they describe."""

import dataclasses
import functools
import sys
from typing import Any, Literal

import jax

from mlnotes.data.dataset import DataSet, describe_classes
from mlnotes.data.feed import (
  choose_placement,
  make_eval_batches,
  make_resident_feed,
  make_stream_feed,
)
from mlnotes.data.feeds import Feeds
from mlnotes.data.fingerprint import fingerprint
from mlnotes.data.source import kind_of, load
from mlnotes.engine.errors import require
from mlnotes.engine.flags import BaseConfig, field
from mlnotes.engine.sharding import shares_seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(BaseConfig):
  """The flags of an experiment that learns from a data set."""

  dataset: str = field(
    "digits", "digits (built in), a file.npz with image and label, a folder of class folders, or the name of a TFDS set"
  )
  data_dir: str = field(
    "", "directory of prepared TFDS data sets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets", free=True
  )
  train_split: str = field(
    "train", "split of a TFDS data set (slices such as train[:90%] work) or folder, to learn from"
  )
  test_split: str = field("test", "split of a TFDS set or folder to evaluate on")
  image_size: int = field(0, "pixels a side that images are resized to; 0: as they are")
  batch_size: int = field(128, "examples per update, over all devices")
  data_placement: Literal["auto", "device", "stream"] = field(
    "auto", "where training data lives: on the device, streamed from the host, or whichever fits", free=True
  )
  eval_examples: int = field(0, "evaluate on a fixed subset of this many test examples; 0: all")

  def __post_init__(self):
    super().__post_init__()
    require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
    require(self.eval_examples >= 0, "eval_examples", self.eval_examples, "0 or more")
    require(self.image_size >= 0, "image_size", self.image_size, "0 or more")

  def idle_flags(self):
    idle, kind = super().idle_flags(), kind_of(self.dataset, self.data_dir)
    if kind != "tfds":
      idle["data_dir"] = f"--dataset={self.dataset} is no TFDS data set"
    if kind in ("digits", "npz"):
      idle |= dict.fromkeys(("train_split", "test_split"), f"--dataset={self.dataset} has its own two splits")
    return idle


_load = functools.lru_cache(maxsize=1)(load)


def load_data(config: Any) -> DataSet:
  """The data set that the fields of `DataConfig` name, kept for the next call. Raises DataError as `load` does."""
  return _load(config.dataset, config.data_dir, config.train_split, config.test_split, config.image_size)


@functools.cache
def _note(text: str) -> None:
  """Once, however often the feeds are made."""
  print(f"note: {text}", file=sys.stderr)


def make_feeds(data: DataSet, config: Any) -> Feeds:
  """Training batches drawn on the device or streamed to it, and the test split in order.

  `config` has the fields of `DataConfig`, `seed`, `seeds` and `fsdp`. Raises InputError for a batch size that the
  training split cannot fill, or that the processes cannot share; DataError as `describe_classes` does, whose sentences
  are said as notes.
  """
  for sentence in describe_classes(data):
    _note(f"--dataset={config.dataset}: {sentence}")
  require(config.batch_size <= len(data.train), "batch_size", config.batch_size, f"at most {len(data.train)} examples")
  if choose_placement(data.train, config.data_placement) == "device":
    train = make_resident_feed(data.train, config.batch_size)
  else:
    seeds = config.seed if config.seeds == 1 else range(config.seed, config.seed + config.seeds)
    index, count = jax.process_index(), jax.process_count()
    if count > 1 and shares_seeds(config.seeds, jax.device_count(), config.fsdp):
      # This process trains some of the seeds alone, on whole batches.
      own = config.seeds // count
      seeds, index, count = seeds[index * own : (index + 1) * own], 0, 1
    require(config.batch_size % count == 0, "batch_size", config.batch_size, f"a multiple of the {count} processes")
    train = make_stream_feed(data.train, config.batch_size, seeds, process_index=index, process_count=count)
  evaluate = make_eval_batches(data.test, config.batch_size, config.eval_examples or None)
  return Feeds(train, evaluate, split="test", fingerprint=fingerprint(data))
