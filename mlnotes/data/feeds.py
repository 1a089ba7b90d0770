"""Both feeds of an experiment that learns from a data set: training batches and those of evaluations."""

from typing import Any, NamedTuple

import jax

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
from mlnotes.data.fingerprint import fingerprint_splits
from mlnotes.data.split import Split
from mlnotes.engine.errors import require
from mlnotes.engine.sharding import shares_seeds


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


def make_split_feeds(train: Split, test: Split, config: Any, fingerprint: str = "") -> Feeds:
  """Training batches drawn on the device or streamed to it, and the test split in order.

  `config` has `batch_size` and, where these are not the defaults, `data_placement`, `eval_examples`, `seed`, `seeds`
  and `fsdp`. `fingerprint`: another than that of the two splits.

  Raises InputError for a batch size that the training split cannot fill, or that the processes cannot share.
  """
  batch_size, seed, seeds = config.batch_size, getattr(config, "seed", 0), getattr(config, "seeds", 1)
  require(1 <= batch_size <= len(train), "batch_size", batch_size, f"1 to {len(train)} examples, the training split")
  if choose_placement(train, getattr(config, "data_placement", "auto")) == "device":
    feed = make_resident_feed(train, batch_size)
  else:
    own = seed if seeds == 1 else range(seed, seed + seeds)
    index, count = jax.process_index(), jax.process_count()
    if count > 1 and shares_seeds(seeds, jax.device_count(), getattr(config, "fsdp", 1)):
      # This process trains some of the seeds alone, on whole batches.
      share = seeds // count
      own, index, count = own[index * share : (index + 1) * share], 0, 1
    require(batch_size % count == 0, "batch_size", batch_size, f"a multiple of the {count} processes")
    feed = make_stream_feed(train, batch_size, own, process_index=index, process_count=count)
  evaluate = make_eval_batches(test, batch_size, getattr(config, "eval_examples", 0) or None)
  return Feeds(feed, evaluate, split="test", fingerprint=fingerprint or fingerprint_splits(train, test))
