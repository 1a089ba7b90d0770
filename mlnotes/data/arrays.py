"""Feeds of any named arrays with one leading axis: one's own data, without a file."""

from collections.abc import Mapping
from typing import Any

from mlnotes.data.dataset import DataError
from mlnotes.data.feeds import Feeds, make_split_feeds
from mlnotes.data.split import NamedArrays


def make_array_feeds(train: Mapping[str, Any], test: Mapping[str, Any], config: Any) -> Feeds:
  """Training batches of `config.batch_size`, without replacement within an epoch, and the test split in order, under
  the names of `train`. A batch also holds `index` and, in evaluations, `mask`.

  Raises InputError and DataError as `make_split_feeds` and `NamedArrays` do.
  """
  train, test = NamedArrays(train), NamedArrays(test)
  shapes = [{n: (x.shape[1:], x.dtype) for n, x in split.arrays.items()} for split in (train, test)]
  if shapes[0] != shapes[1]:
    raise DataError(f"the test arrays differ from those to learn from (found {shapes[1]}): expected {shapes[0]}.")
  return make_split_feeds(train, test, config)
