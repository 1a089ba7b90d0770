"""Softmax regression on images: a folder of class folders, or whatever else --dataset names."""

import dataclasses

import flax.linen as nn
import optax

from mlnotes.data.flags import DataConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.flags import run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.supervised import make_supervised
from mlnotes.optim.flags import OptimConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig, OptimConfig, LoopConfig):
  learning_rate: float = 0.01


def make_feeds(config):
  return make_data_feeds(load_data(config), config)


def make(config):
  data = load_data(config)
  model = nn.Dense(data.num_classes)
  predict = lambda params, image: model.apply(params, image.reshape(len(image), -1) / (data.levels - 1))
  init = lambda key, batch: model.init(key, batch["image"].reshape(len(batch["image"]), -1) / 1.0)
  losses = lambda params, batch: optax.softmax_cross_entropy_with_integer_labels(
    predict(params, batch["image"]), batch["label"]
  )
  return make_supervised(init, losses, config, predict)


def main(config):
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
