"""A bigram model of a text: the next token from the last one, in nats per token."""

import dataclasses

import jax.numpy as jnp
import optax

from mlnotes.data.flags import TextConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.flags import run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.supervised import make_supervised
from mlnotes.optim.flags import OptimConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextConfig, OptimConfig, LoopConfig):
  learning_rate: float = 0.1


def make_feeds(config):
  return make_data_feeds(load_data(config), config)


def make(config):
  size = load_data(config).vocab_size
  init = lambda key, batch: jnp.zeros((size, size))
  predict = lambda params, tokens: params[tokens]

  def losses(params, batch):
    logits, target = predict(params, batch["tokens"][:, :-1]), batch["tokens"][:, 1:]
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean(axis=1)

  return make_supervised(init, losses, config, predict)


def main(config):
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
