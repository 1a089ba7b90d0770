"""Both feeds of an experiment that learns from a data set, as its flags ask for them."""

from typing import NamedTuple

from mlnotes.data.feed import (
  EMPTY_FEED,
  EvalBatches,
  ResidentFeed,
  StreamFeed,
)


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
