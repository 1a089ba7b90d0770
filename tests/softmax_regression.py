"""Softmax regression: the README's example of an experiment of one's own, and what the tests of the loop train."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mlnotes.data.flags import DataConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.experiment import Experiment, masked_mean
from mlnotes.engine.flags import run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.optim.flags import OptimConfig, make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig, OptimConfig, LoopConfig):
  pass


class State(NamedTuple):
  step: jax.Array
  key: jax.Array
  params: jax.Array
  opt_state: optax.OptState


def make_feeds(config):
  return make_data_feeds(load_data(config), config)


def make(config):
  data, optimizer = load_data(config), make_optimizer(config, config.steps)

  def predict(params, image):
    return image.reshape(len(image), -1) / data.levels @ params

  def losses(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(predict(params, batch["image"]), batch["label"])

  def init(key, batch):
    params = jnp.zeros((batch["image"][0].size, data.num_classes))
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def step(state, batch):
    loss, grads = jax.value_and_grad(lambda params: losses(params, batch).mean())(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": loss}

  evaluate = lambda state, batch: {"loss": masked_mean(losses(state.params, batch), batch["mask"])}
  model = lambda state: partial(predict, state.params)
  return Experiment(init, step, evaluate, report=lambda state, directory: None, model=model)


def main(config):
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
