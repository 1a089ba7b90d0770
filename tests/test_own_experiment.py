"""Experiments of one's own, as the README shows them: a file that runs, sweeps, is measured, and is used afterwards."""

import dataclasses
import inspect
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import command_of, import_experiment
from launch import bench
from launch.plan import check_makes, make_runs, parse_grid
from launch.sweep import Config, plan_jobs
from mlnotes.data import DataError, make_array_feeds
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import masked_mean, root_key
from mlnotes.engine.flags import experiment_name
from mlnotes.engine.program import Program, make_mesh
from mlnotes.engine.supervised import make_supervised

HERE = Path(__file__).parent
SOFTMAX, DIABETES = HERE / "softmax_regression.py", HERE / "diabetes_regression.py"
SHORT = "--steps=6 --log_every=3 --devices=1 --notensorboard"


def config_of(module, **values):
  return module.Config(**{"steps": 6, "log_every": 3, "devices": 1, "tensorboard": False, **values})


@pytest.fixture(scope="module")
def softmax():
  return import_experiment(str(SOFTMAX))


def test_a_file_is_called_after_itself(softmax, tmp_path):
  assert experiment_name(softmax.Config) == "softmax_regression"
  assert import_experiment(str(SOFTMAX)) is softmax
  assert command_of("rl.ppo") == ["-m", "experiments.rl.ppo"] and command_of(str(SOFTMAX)) == [str(SOFTMAX)]
  # One whose name is that of a library takes nobody's place.
  shutil.copy(SOFTMAX, tmp_path / "json.py")
  odd = import_experiment(str(tmp_path / "json.py"))
  assert experiment_name(odd.Config) == "json" and sys.modules["json"] is json
  assert import_experiment("tests.softmax_regression").__name__ == "tests.softmax_regression"


@pytest.mark.parametrize(
  ("name", "sentence"),
  [
    ("rl.pppo", r"--experiment=rl.pppo is not an experiment: did you mean rl.ppo\?"),
    ("absent.py", "--experiment=absent.py is not there: expected a Python file"),
    ("no.such.module", "is not an experiment"),
    ("a b", "is not an experiment"),
    ("textwrap", "--experiment=textwrap has no Config and no main"),
  ],
)
def test_what_is_no_experiment_is_said_in_one_sentence(name, sentence):
  with pytest.raises(InputError, match=sentence):
    import_experiment(name)


@pytest.mark.parametrize("vectorize", [False, True])
def test_a_sweep_takes_it(vectorize, softmax, tmp_path):
  """The runs that it plans are the runs that the file makes: the same name, directories and settings."""
  runs = make_runs([str(SOFTMAX)], SHORT, parse_grid("learning_rate=.1,.5"), tmp_path)
  check_makes(runs)
  assert [run.directory.parent for run in runs] == [tmp_path / "softmax_regression"] * 2
  jobs, apart = plan_jobs(runs, Config(experiment=(str(SOFTMAX),), workdir=str(tmp_path), vectorize=vectorize))
  assert len(jobs) == (1 if vectorize else 2) and not apart
  for job in jobs:
    assert job.command[:2] == [sys.executable, str(SOFTMAX)]
    job.prepare()
  assert not runs[0].finished()
  if vectorize:
    flags = dict(
      flag.removeprefix("--").split("=") for flag in jobs[0].flags if flag.startswith(("--rows", "--workdir"))
    )
    assert softmax.main(config_of(softmax, learning_rate=0.1, **flags)) == 0
  else:
    assert softmax.main(config_of(softmax, learning_rate=0.1, workdir=str(runs[0].directory))) == 0
    assert not runs[1].finished()
  assert all(run.finished() for run in runs[: len(runs) if vectorize else 1])


def test_the_benchmark_takes_it(softmax, tmp_path, capsys):
  arguments = [f"--experiment={SOFTMAX}", "--measurements=2", "--seconds=0.01", "--devices=1"]
  assert bench.named_experiments(arguments) == [str(SOFTMAX)]
  assert bench.main(bench.parse_flags(str(SOFTMAX), arguments)) == 0
  assert "examples/s" in capsys.readouterr().out
  lacking = tmp_path / "lacking.py"
  lacking.write_text("class Config: pass\ndef main(config): pass\ndef make(config): pass\n")
  with pytest.raises(InputError, match=r"has no make_feeds\(config\)"):
    bench.import_method(str(lacking))


# -- data that are no images -------------------------------------------------------------------------------------------


def test_features_and_a_target_through_the_loop(tmp_path):
  """Two seeds, stopped by nothing and resumed by the same command; the end is the least-squares solution."""
  module = import_experiment(str(DIABETES))
  config = config_of(module, workdir=str(tmp_path), steps=600, log_every=200, seeds=2, eval_every=0, checkpoint_every=0)
  config = dataclasses.replace(config, schedule="cosine")
  assert module.main(config) == 0
  card = json.loads((tmp_path / "result.json").read_text())
  assert card["experiment"] == "diabetes_regression" and card["best_split"] == "test"
  train, test = (f.arrays for f in module.make_feeds(config)[:2])
  a = np.c_[train["x"], np.ones(342)]
  solution, *_ = np.linalg.lstsq(a, np.asarray(train["y"]), rcond=None)
  error = np.mean((np.c_[test["x"], np.ones(len(test["x"]))] @ solution - test["y"])[np.asarray(test["mask"]) > 0] ** 2)
  np.testing.assert_allclose(card["metrics"]["loss"]["seeds"], [error, error], rtol=0.03)
  assert module.main(config) == 0  # finished


@pytest.mark.parametrize(
  ("losses", "found"),
  [
    (lambda error: jnp.mean(error**2), r"shape \(\)"),
    (lambda error: error[:, None] ** 2, r"shape \(32, 1\)"),
    (lambda error: (error**2, {}), "a tuple"),
  ],
)
def test_a_loss_that_is_not_one_per_example_is_refused_when_it_is_traced(losses, found):
  """Of a mean the evaluation would count the padding of its last batch, of (B, 1) every pair of examples."""
  module = import_experiment(str(DIABETES))
  config = config_of(module)
  batch = {name: jnp.zeros((32, *shape)) for name, shape in (("x", (10,)), ("y", ()), ("mask", ()))}
  init = lambda key, batch: {"weights": jnp.zeros(10), "bias": jnp.zeros(())}
  made = make_supervised(init, lambda params, batch: losses(module.predict(params, batch["x"]) - batch["y"]), config)
  state = jax.eval_shape(made.init, root_key(0), batch)
  for traced in (made.step, made.evaluate):
    with pytest.raises(InputError, match=rf"^losses\(params, batch\): found {found}, expected \(32,\): one number for"):
      jax.eval_shape(traced, state, batch)
  with pytest.raises(InputError, match=r"masked_mean: found shape \(\), expected \(4,\)"):
    inspect.unwrap(masked_mean)(jnp.zeros(()), jnp.ones(4))  # without the types that tests check beside


def test_data_that_are_not_finite_are_refused_at_the_door():
  """They would end as a loss that is not finite, after which one would look for a learning rate."""
  good = {"x": np.zeros((8, 2)), "y": np.zeros(8)}
  for bad, said in ((np.nan, "NaN"), (np.inf, "inf"), (1e39, "inf")):
    x = np.zeros((8, 2))
    x[5, 1] = bad
    with pytest.raises(DataError, match=rf"'x' holds 1 number that is not finite \({said} at \(5, 1\)\): expected"):
      make_array_feeds({**good, "x": x}, good, type("Config", (), {"batch_size": 4}))
  with pytest.raises(DataError, match=r"'y' holds 8 numbers that are not finite \(NaN at \(0,\)\)"):
    make_array_feeds(good, {**good, "y": np.full(8, np.nan)}, type("Config", (), {"batch_size": 4}))


def test_named_arrays_are_drawn_once_an_epoch_and_evaluated_in_order():
  config = type("Config", (), {"batch_size": 4})
  x = np.arange(10, dtype=np.int64)
  feeds = make_array_feeds({"x": x, "y": x / 2}, {"x": x[:6], "y": x[:6] / 2}, config)
  key = jax.random.key(0)
  batches = [feeds.train.draw(feeds.train.arrays, key, jnp.int32(i)) for i in range(2)]
  seen = np.concatenate([batch["x"] for batch in batches])
  assert len(set(seen.tolist())) == 8 and batches[0]["x"].dtype == jnp.int32
  np.testing.assert_array_equal(batches[0]["y"], batches[0]["x"] / 2)
  last = feeds.evaluate.draw(feeds.evaluate.arrays, 1)
  np.testing.assert_array_equal(last["x"], [4, 5, 5, 5])
  np.testing.assert_array_equal(last["mask"], [1, 1, 0, 0])


@pytest.mark.parametrize(
  ("train", "test", "sentence"),
  [
    ({"x": np.zeros(3), "y": np.zeros(4)}, {"x": np.zeros(3), "y": np.zeros(3)}, "lengths"),
    ({"x": np.zeros((8, 2))}, {"x": np.zeros((8, 3))}, "the test arrays differ"),
    ({"x": np.array(["a"] * 8)}, {"x": np.array(["a"] * 8)}, "expected rows of numbers"),
    ({"index": np.zeros(8)}, {"index": np.zeros(8)}, "expected another name"),
    ({"x": np.full(8, 2**40)}, {"x": np.zeros(8, int)}, "beyond 32 bits"),
    ({"x": np.zeros(2)}, {"x": np.zeros(2)}, "--batch_size=4"),
  ],
)
def test_arrays_that_do_not_fit_are_refused(train, test, sentence):
  with pytest.raises((DataError, InputError), match=sentence):
    make_array_feeds(train, test, type("Config", (), {"batch_size": 4}))


def test_named_arrays_on_eight_devices_are_those_on_one():
  module = import_experiment(str(DIABETES))
  config = config_of(module)
  outcomes = []
  for devices in (1, 8):
    program = Program(module.make(config), module.make_feeds(config), [0], make_mesh(devices))
    state, _ = program.update(program.init(), program.empty_window(), 3)
    outcomes.append((jax.device_get(state.params), program.evaluate(state)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *outcomes)
