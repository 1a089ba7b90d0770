"""Which side a member of Zachary's club takes, from his friends: one linear layer over the mean of the neighbours."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mlnotes.data.flags import GraphConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.flags import run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.supervised import make_supervised
from mlnotes.optim.flags import OptimConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(GraphConfig, OptimConfig, LoopConfig):
  learning_rate: float = 0.1


def make_feeds(config):
  return make_data_feeds(load_data(config), config)


def make(config):
  model = nn.Dense(load_data(config).num_classes)

  def predict(params, graph):
    x = graph["features"]
    add = lambda values: jax.ops.segment_sum(values, graph["receivers"], len(x))
    degree = add(jnp.ones(len(graph["senders"])))
    return model.apply(params, (x + add(x[graph["senders"]])) / (1 + degree[:, None]))

  init = lambda key, graph: model.init(key, graph["features"])
  losses = lambda params, graph: optax.softmax_cross_entropy_with_integer_labels(predict(params, graph), graph["label"])
  return make_supervised(init, losses, config, predict)


def main(config):
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
