"""What several modules of tuning begin with: a text, and a run on it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import pretrain
from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.experiment import root_key
from mlnotes.engine.program import Window
from mlnotes.engine.record import config_dict

NETWORK = dict(model="gpt2", tied=False, depth=2, width=8, heads=2, length=24)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "lines.txt"
  path.write_text("\n".join(f"Number {i} and Square {i * i}, Tom says it" for i in range(120)))
  return str(path)


@pytest.fixture(scope="session")
def pretrained(text, tmp_path_factory):
  """A run that was never trained: its head is apart from its embedding, and nothing of it is 0 or 1."""
  directory = tmp_path_factory.mktemp("run")
  config = pretrain.Config(objective="masked", dataset=text, batch_size=4, devices=1, **NETWORK)
  experiment, feeds = pretrain.make(config), pretrain.make_feeds(config)
  batch = feeds.train.draw(feeds.train.arrays, root_key(0), 0)
  state = jax.eval_shape(experiment.init, root_key(0), batch)
  metrics = jax.eval_shape(experiment.step, state, batch)[1]
  numbers = np.random.default_rng(0)
  drawn = jax.tree.map(lambda x: jnp.asarray(0.4 * numbers.normal(size=x.shape), x.dtype), state.params)
  optimizer = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.opt_state)
  state = state._replace(step=jnp.int32(2), key=root_key(0), params=drawn, opt_state=optimizer)
  (directory / "config.json").write_text(json.dumps({"experiment": "lm.pretrain", "config": config_dict(config)}))
  zeros = {name: jnp.zeros(()) for name in metrics}
  with Checkpoints(directory / "checkpoints") as checkpoints:
    checkpoints.save(2, {"state": state, "window": Window(zeros, zeros)}, {}, None)
    checkpoints.wait()
  return str(directory)
