"""Softmax regression on the spectrum of a clip: notes by their pitch, or a folder of class folders of .wav."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import optax

from mlnotes.data.flags import AudioConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.flags import run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.supervised import make_supervised
from mlnotes.optim.flags import OptimConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AudioConfig, OptimConfig, LoopConfig):
  seconds: float = 0.5
  learning_rate: float = 0.01


def make_feeds(config):
  return make_data_feeds(load_data(config), config)


def make(config):
  model = nn.Dense(load_data(config).num_classes)
  spectrum = lambda audio: jnp.log1p(jnp.abs(jnp.fft.rfft(audio)))
  init = lambda key, batch: model.init(key, spectrum(batch["audio"]))
  predict = lambda params, audio: model.apply(params, spectrum(audio))
  losses = lambda params, batch: optax.softmax_cross_entropy_with_integer_labels(
    predict(params, batch["audio"]), batch["label"]
  )
  return make_supervised(init, losses, config, predict)


def main(config):
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
