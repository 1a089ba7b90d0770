"""A trained model as a function: what it computes, for one experiment of each chapter and of one's own."""

import importlib
import inspect
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlnotes
from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.engine.program import Window
from mlnotes.engine.record import config_dict

from ..test_contract import SMALL

HERE = Path(__file__).parents[1]


def write_run(directory, name, seeds=1, **changes):
  """A run that has only begun: config.json and a checkpoint of its first state, without compiling any update."""
  module = importlib.import_module(f"experiments.{name}")
  config = module.Config(**{**SMALL[name], "workdir": str(directory), "seeds": seeds, "seed": 3, **changes})
  experiment, feeds = module.make(config), module.make_feeds(config)
  draw = jax.jit(feeds.train.draw)

  def first(seed):
    key = root_key(seed)
    return jax.jit(experiment.init)(key, draw(feeds.train.arrays, key, jnp.int32(0)))

  states = [first(3 + i) for i in range(seeds)]
  state = states[0] if seeds == 1 else jax.tree.map(lambda *x: jnp.stack(x), *states)
  directory.mkdir()
  (directory / "config.json").write_text(json.dumps({"experiment": name, "config": config_dict(config)}))
  metrics = jax.eval_shape(lambda s: experiment.step(s, draw(feeds.train.arrays, s.key, s.step))[1], states[0])
  shape = (seeds,) if seeds > 1 else ()
  zeros = {name: jnp.zeros(shape) for name in metrics}
  with Checkpoints(directory / "checkpoints") as checkpoints:
    checkpoints.save(7, {"state": state, "window": Window(zeros, zeros)}, {}, None)
    checkpoints.wait()
  return states, experiment, config


def test_an_agent(tmp_path):
  states, _, _ = write_run(tmp_path / "run", "rl.a2c", seeds=2)
  run = mlnotes.load_run(str(tmp_path / "run"), seed=4)
  assert (run.seed, run.step, run.name, run.directory) == (4, 7, "rl.a2c", tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, run.state.params, states[1].params)
  assert int(run.model(jnp.array([0.1, -0.2, 0.3, 0.4]))) in (0, 1)
  with pytest.raises(InputError, match="has no seed 5: expected 3 to 4"):
    mlnotes.load_run(tmp_path / "run", seed=5)


def test_what_load_run_refuses_is_said_in_its_own_words_and_the_rest_in_none(tmp_path, caplog):
  """It has arguments and no flags; that a run is only read is what it is for."""
  write_run(tmp_path / "run", "rl.q_learning")
  mlnotes.load_run(tmp_path / "run")
  assert not caplog.records
  with pytest.raises(
    InputError, match=r"^checkpoint='worst' is none of the two that are kept: expected 'last' or 'best'"
  ):
    inspect.unwrap(mlnotes.load_run)(tmp_path / "run", checkpoint="worst")  # without the types that tests check
  shutil.rmtree(tmp_path / "run" / "checkpoints")
  (tmp_path / "run" / "checkpoints").mkdir()
  with pytest.raises(InputError, match=f"^{tmp_path}/run has no checkpoint yet"):
    mlnotes.load_run(tmp_path / "run")
  with pytest.raises(InputError, match=rf"^{tmp_path}/run is a run of rl\.q_learning, expected rl\.ppo"):
    mlnotes.load_run(tmp_path / "run", experiment="rl.ppo")
  with pytest.raises(InputError, match=f"^{tmp_path}/absent has no readable config.json"):
    mlnotes.load_run(tmp_path / "absent", experiment="rl.ppo")


def test_a_table(tmp_path):
  write_run(tmp_path / "run", "rl.q_learning")
  run = mlnotes.load_run(tmp_path / "run")
  table = np.asarray(run.state.actor.learner.q)
  assert [int(run.model(jnp.int32(state))) for state in range(4)] == table[:4].argmax(1).tolist()


@pytest.mark.thorough
def test_a_diffusion_model(tmp_path):
  """At unit signal and noise the clean image and the noise that are predicted give x_t back."""
  write_run(tmp_path / "run", "diffusion.ddpm", parameterization="x0")
  run = mlnotes.load_run(tmp_path / "run")
  # The average of the parameters is what is sampled: others leave the model as it is.
  changed = run.state._replace(params=jax.tree.map(jnp.zeros_like, run.state.params))
  x, t, label = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), jnp.array([1, 6]), jnp.array([3, 4])
  noise = run.model(x, t, label)
  np.testing.assert_array_equal(run.experiment.model(changed)(x, t, label), noise)
  schedule = run.model.model.schedule
  output = run.model.model.make_network(run.state.ema, label)(x, t)
  signal = np.asarray(jnp.sqrt(jax.nn.sigmoid(jnp.log(schedule.alpha_bar) - jnp.log1p(-schedule.alpha_bar))))[t]
  expected = (x - signal[:, None, None, None] * output[..., :1]) / np.sqrt(1 - signal**2)[:, None, None, None]
  np.testing.assert_allclose(noise, expected, rtol=1e-3, atol=1e-4)
  images = run.model.sample(jax.random.key(0), jnp.arange(2), num_steps=2)
  assert images.shape == (2, 8, 8, 1) and jnp.abs(images).max() <= 1.001
  for wrong in (99, 10, -1):
    classes = jnp.array([3, wrong])
    with pytest.raises(InputError, match=f"^label: found the class {wrong}, expected 0 to 9"):
      run.model.sample(jax.random.key(0), classes, num_steps=2)
    with pytest.raises(InputError, match=f"^label: found the class {wrong}, expected 0 to 9"):
      run.model(x, t, classes)


def test_features(tmp_path):
  write_run(tmp_path / "run", "contrastive.simclr")
  run = mlnotes.load_run(tmp_path / "run")
  images = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1) % 17
  batch = {"image": images, "label": np.zeros(3, np.int32), "index": np.arange(3), "mask": np.ones(3, np.float32)}
  features = jax.jit(run.experiment.embed)(run.state, batch)["features"]
  np.testing.assert_allclose(run.model(images), features, rtol=1e-5, atol=1e-6)


def test_an_adapted_network(tmp_path):
  """Gradient descent on the support set, by hand."""
  plain = dict(step_rates=False, multi_step_updates=0, inner_optimizer="sgd", remat=False)
  write_run(tmp_path / "run", "meta.maml", **plain)
  run = mlnotes.load_run(tmp_path / "run")
  x = jnp.linspace(-1, 1, 4)[:, None]
  support, params = {"x": x, "y": jnp.sin(x)}, run.state.params.initial
  gradient = jax.grad(lambda params: jnp.mean((run_predict(run, params, support, x) - support["y"]) ** 2))
  for _ in range(run.config.eval_inner_steps):
    params = jax.tree.map(lambda p, g: p - run.state.hparams["inner_learning_rate"] * g, params, gradient(params))
  np.testing.assert_allclose(run.model(support, x), run_predict(run, params, support, x), rtol=1e-4, atol=1e-5)


def run_predict(run, params, support, x):
  from experiments.meta._family import make_family

  return make_family(run.config).learner.predict(params, support, x)


def test_a_learned_optimizer_is_one_of_optax(tmp_path):
  write_run(tmp_path / "run", "meta.learned_optimizer")
  model = mlnotes.load_run(tmp_path / "run").model
  params = jnp.ones(3)
  updates, _ = model.update(2 * params, model.init(params), params)
  assert optax.apply_updates(params, updates).shape == (3,) and jnp.all(jnp.isfinite(updates))


@pytest.mark.parametrize("name", ["meta.maml", "meta.learned_optimizer", "diabetes_regression"])
def test_with_lookahead_the_model_has_the_slow_weights(name):
  """As it is evaluated: what the fast ones are changes neither."""
  from experiments import import_experiment

  own = name == "diabetes_regression"
  module = import_experiment(str(HERE / "diabetes_regression.py") if own else name)
  config = module.Config(**{**SMALL.get(name, {"steps": 4}), "lookahead": 5})
  experiment, feeds = module.make(config), module.make_feeds(config)
  key = root_key(0)
  state = jax.jit(lambda arrays: experiment.init(key, feeds.train.draw(arrays, key, jnp.int32(0))))(feeds.train.arrays)
  changed = state._replace(params=jax.tree.map(lambda p: p + 0.5, state.params))
  if name == "meta.learned_optimizer":
    say = lambda state: experiment.model(state).update(x, experiment.model(state).init(x), x)[0]
    x = jnp.ones(3)
  elif name == "meta.maml":
    x = jnp.linspace(-1, 1, 4)[:, None]
    say = lambda state: experiment.model(state)({"x": x, "y": x}, x)
  else:
    x = jnp.ones((2, 10))
    say = lambda state: experiment.model(state)(x)
    batch = feeds.evaluate.draw(feeds.evaluate.arrays, 0)
    assert experiment.evaluate(state, batch)["loss"].total == experiment.evaluate(changed, batch)["loss"].total
  np.testing.assert_array_equal(say(state), say(changed))


def test_an_experiment_of_ones_own(tmp_path):
  from experiments import import_experiment

  path = HERE / "diabetes_regression.py"
  module = import_experiment(str(path))
  config = module.Config(workdir=str(tmp_path / "run"), steps=4, devices=1, tensorboard=False)
  assert module.main(config) == 0
  for experiment in (str(path), module):
    run = mlnotes.load_run(tmp_path / "run", experiment=experiment)
    x = np.ones((2, 10), np.float32)
    np.testing.assert_allclose(run.model(x), x @ run.state.params["weights"] + run.state.params["bias"], rtol=1e-5)
  with pytest.raises(InputError, match="diabetes_regression, which is not in the catalogue: expected experiment="):
    mlnotes.load_run(tmp_path / "run")
  with pytest.raises(InputError, match="is a run of diabetes_regression"):
    mlnotes.load_run(tmp_path / "run", experiment="rl.ppo")


@pytest.mark.parametrize("content", [None, "{", "[]", "3", '{"experiment": 3}', '{"config": {}}'])
def test_what_is_no_run_is_said_in_one_sentence(tmp_path, content):
  if content is not None:
    (tmp_path / "config.json").write_text(content)
  with pytest.raises(InputError, match="expected"):
    mlnotes.load_run(tmp_path)
