"""Linear regression on a table: the README's example of data that are no images."""

import dataclasses

import jax.numpy as jnp
from sklearn.datasets import load_diabetes

from mlnotes.data import make_array_feeds
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.supervised import make_supervised
from mlnotes.optim.flags import OptimConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimConfig, LoopConfig):
  batch_size: int = field(32, "patients per update")
  learning_rate: float = 0.01


def make_feeds(config):
  x, y = load_diabetes(return_X_y=True)
  x, y = 20 * x, (y - 152) / 77
  return make_array_feeds({"x": x[:342], "y": y[:342]}, {"x": x[342:], "y": y[342:]}, config)


def predict(params, x):
  return x @ params["weights"] + params["bias"]


def make(config):
  init = lambda key, batch: {"weights": jnp.zeros(batch["x"].shape[1]), "bias": jnp.zeros(())}
  losses = lambda params, batch: (predict(params, batch["x"]) - batch["y"]) ** 2
  return make_supervised(init, losses, config, predict)


def main(config):
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
