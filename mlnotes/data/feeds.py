"""Both feeds of an experiment that learns from a data set, as its flags ask for them."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax

from mlnotes.data.dataset import DataSet
from mlnotes.data.feed import (
  EMPTY_FEED,
  EvalBatches,
  ResidentFeed,
  StreamFeed,
  choose_placement,
  make_eval_batches,
  make_resident_feed,
  make_stream_feed,
)
from mlnotes.data.fingerprint import fingerprint
from mlnotes.data.source import load
from mlnotes.flags import BaseConfig, field, require
from mlnotes.sharding import shares_seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(BaseConfig):
  """The flags of an experiment that learns from a data set."""

  dataset: str = field("digits", "digits (built in), a file.npz with image and label, or the name of a TFDS data set")
  data_dir: str = field(
    "", "directory of prepared TFDS data sets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets", free=True
  )
  train_split: str = field("train", "split of a TFDS data set to learn from; slices such as train[:90%] work")
  test_split: str = field("test", "split of a TFDS data set to evaluate on")
  batch_size: int = field(128, "examples per update, over all devices")
  data_placement: Literal["auto", "device", "stream"] = field(
    "auto", "where training data lives: on the device, streamed from the host, or whichever fits", free=True
  )
  eval_examples: int = field(0, "evaluate on a fixed subset of this many test examples; 0: all")

  def __post_init__(self):
    super().__post_init__()
    require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
    require(self.eval_examples >= 0, "eval_examples", self.eval_examples, "0 or more")


_load = functools.lru_cache(maxsize=1)(load)


def load_data(config: Any) -> DataSet:
  """The data set that the fields of `DataConfig` name, kept for the next call. Raises DataError as `load` does."""
  return _load(config.dataset, config.data_dir, config.train_split, config.test_split)


class Feeds(NamedTuple):
  """Where batches come from. The defaults are for methods that make their own data.

  `reference` holds the examples that an experiment with `embed` compares with, in its evaluations. `split` is what the
  data of `evaluate` are called, which also choose the best checkpoint: test, validation; "" where they are made anew.
  `fingerprint` is that of the data set where there is one.
  """

  train: ResidentFeed | StreamFeed = EMPTY_FEED
  evaluate: EvalBatches = EvalBatches((), lambda arrays, i: (), 1)
  reference: EvalBatches | None = None
  split: str = ""
  fingerprint: str = ""


def make_feeds(data: DataSet, config: Any) -> Feeds:
  """Training batches drawn on the device or streamed to it, and the test split in order.

  `config` has the fields of `DataConfig`, `seed`, `seeds` and `fsdp`. Raises InputError for a batch size that the
  training split cannot fill, or that the processes cannot share.
  """
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
