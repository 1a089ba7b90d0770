"""The contract's small functions: hyper-parameters by name and path, keys of one generator."""

import ast
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.rl import q_learning
from mlnotes.data import Feeds
from mlnotes.engine.checkpoint import data_to_keys, keys_to_data
from mlnotes.engine.experiment import PRNG_IMPL, hparam_paths, root_key, set_hparams
from mlnotes.engine.program import Program, make_mesh

ROOT = Path(__file__).parents[2]


class State(NamedTuple):
  """Like MoCo's: a momentum of its own and one in the optimizer."""

  params: jax.Array
  opt_state: optax.OptState
  hparams: dict


def make_state():
  optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)
  params = jnp.zeros(3)
  return State(params, optimizer.init(params), {"momentum": jnp.float32(0.999), "temperature": jnp.ones(2)})


OWN, OPTIMIZERS = ".hparams['momentum']", ".opt_state.hyperparams['momentum']"


def test_an_ambiguous_name_is_refused_with_its_paths():
  state = make_state()
  with pytest.raises(KeyError, match="ambiguous") as error:
    set_hparams(state, momentum=0.5)
  assert OWN in str(error.value) and OPTIMIZERS in str(error.value)
  changed = set_hparams(state, {OWN: 0.5}, learning_rate=0.2)
  assert changed.hparams["momentum"] == 0.5
  np.testing.assert_allclose(changed.opt_state.hyperparams["momentum"], 0.9)
  np.testing.assert_allclose(changed.opt_state.hyperparams["learning_rate"], 0.2)
  assert set_hparams(state, {OPTIMIZERS: 0.5}).hparams["momentum"] == np.float32(0.999)
  np.testing.assert_array_equal(set_hparams(state, temperature=3.0).hparams["temperature"], [3, 3])
  with pytest.raises(KeyError, match=r"temprature.*expected one of.*temperature"):
    set_hparams(state, temprature=3.0)
  with pytest.raises(KeyError, match="params"):
    set_hparams(state, params=3.0)  # learned, not a setting
  assert hparam_paths(state)[OWN] == "momentum"


def test_keys_do_not_hang_on_the_environments_generator():
  """The numbers of threefry for seed 7, as jax 0.10 draws them, whatever JAX_DEFAULT_PRNG_IMPL is."""
  with jax.default_prng_impl("rbg"):
    key = root_key(7)
    assert str(jax.random.key_impl(key)) == PRNG_IMPL == "threefry2x32"
    np.testing.assert_array_equal(jax.random.key_data(key), [0, 7])
    alone = jax.random.uniform(key, (2,))
    beside = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(jax.vmap(root_key)(jnp.arange(6, 9)))
    np.testing.assert_array_equal(beside[1], alone)
    back = data_to_keys(keys_to_data({"key": key}), {"key": jax.ShapeDtypeStruct((), key.dtype)})["key"]
    assert jax.random.key_impl(back) == jax.random.key_impl(key)


def test_every_key_of_the_project_is_made_by_root_key():
  found = []
  for path in (*ROOT.glob("mlnotes/**/*.py"), *ROOT.glob("experiments/**/*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
      if (
        isinstance(node, ast.Attribute) and node.attr in ("key", "PRNGKey") and ast.unparse(node.value) == "jax.random"
      ):
        found.append(f"{path}:{node.lineno}")
  assert [name.rpartition("/")[2].partition(":")[0] for name in found] == ["experiment.py"]


def test_a_runs_numbers_do_not_hang_on_the_environments_generator():
  """Neither those of a seed alone nor those of one beside another, which the hardware's generator makes unequal."""
  config = q_learning.Config(steps=20, steps_per_update=60)

  def train(seeds):
    program = Program(q_learning.make(config), Feeds(), seeds, make_mesh(1))
    state, window = program.update(program.init(), program.empty_window(), 2)
    return [jax.device_get(tree) for tree in (state.params, window)]

  expected = train([3])
  with jax.default_prng_impl("rbg"):
    found, together = train([3]), train([2, 3])
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, rtol=1e-6), together, expected)
