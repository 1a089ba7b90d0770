"""Data sets in, batches out."""

from mlnotes.data.arrays import make_array_feeds
from mlnotes.data.dataset import ArraySplit, DataError, DataSet, RecordSplit, Split
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
from mlnotes.data.feeds import Feeds
from mlnotes.data.order import fixed_subset
from mlnotes.data.source import load

__all__ = [
  "EMPTY_FEED",
  "ArraySplit",
  "DataError",
  "DataSet",
  "EvalBatches",
  "Feeds",
  "RecordSplit",
  "ResidentFeed",
  "Split",
  "StreamFeed",
  "choose_placement",
  "fixed_subset",
  "load",
  "make_array_feeds",
  "make_eval_batches",
  "make_resident_feed",
  "make_stream_feed",
]
