"""Softmax regression on a table: wines by what is in them, or any file.csv with a column of classes."""

import dataclasses

import flax.linen as nn
import optax

from mlnotes.data.flags import TableConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.errors import require
from mlnotes.engine.flags import run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.supervised import make_supervised
from mlnotes.optim.flags import OptimConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TableConfig, OptimConfig, LoopConfig):
  dataset: str = "wine"


def make_feeds(config):
  return make_data_feeds(load_data(config), config)


def make(config):
  data = load_data(config)
  require(data.num_classes > 0, "target_kind", config.target_kind, "class, as the target is read as a number")
  model = nn.Dense(data.num_classes)
  init = lambda key, batch: model.init(key, batch["x"])
  losses = lambda params, batch: optax.softmax_cross_entropy_with_integer_labels(
    model.apply(params, batch["x"]), batch["y"]
  )
  return make_supervised(init, losses, config, model.apply)


def main(config):
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
