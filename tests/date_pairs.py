"""Each token of a target from its place and the tokens of the source, counted from both ends: one linear layer."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mlnotes.data.flags import PairConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.flags import run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.supervised import make_supervised
from mlnotes.optim.flags import OptimConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PairConfig, OptimConfig, LoopConfig):
  learning_rate: float = 0.01


def make_feeds(config):
  return make_data_feeds(load_data(config), config)


def predict_tokens(model, size, params, batch):
  """Logits of target[:, 1:]."""
  source, length = batch["source"], batch["source_length"][:, None]
  place = jnp.arange(source.shape[1])[None]
  from_end = jnp.take_along_axis(source, (length - 1 - place) % source.shape[1], axis=1)
  known = jax.nn.one_hot(jnp.concatenate([source, from_end], axis=1), size)
  return model.apply(params, known.reshape(len(source), -1)).reshape(len(source), -1, size)


def make(config):
  size, places = load_data(config).vocab_size, load_data(config).train.arrays["target"].shape[1] - 1
  width = 2 * load_data(config).train.arrays["source"].shape[1] * size
  model = nn.Dense(places * size)
  init = lambda key, batch: model.init(key, jnp.zeros((1, width)))
  predict = lambda params, batch: predict_tokens(model, size, params, batch)

  def losses(params, batch):
    each = optax.softmax_cross_entropy_with_integer_labels(predict(params, batch), batch["target"][:, 1:])
    return jnp.sum(each, axis=1, where=jnp.arange(places)[None] < batch["target_length"][:, None] - 1)

  return make_supervised(init, losses, config, predict)


def main(config):
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
