"""Runs as rows of one program: which can be, and that each leaves what it leaves alone."""

import dataclasses
import importlib
import json
import signal
import sys
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.plan import make_runs, parse_grid
from launch.sweep import Config, plan_jobs
from launch.vectorize import group_runs, rows_text
from mlnotes.data import Feeds, StreamFeed
from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Experiment, Mean, stream_key
from mlnotes.engine.flags import field, parse
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.program import Program
from mlnotes.engine.record import read_metrics
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer


def groups_of(experiment, fixed, grid, tmp_path, most=64):
  groups, apart = group_runs(make_runs([experiment], fixed, parse_grid(grid), tmp_path), most)
  return [[dict(run.settings) for run in group.runs] for group in groups], apart, groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slope(OptimConfig, LoopConfig):
  """An experiment whose numbers go to all sorts of places; its `momentum_encoder` is `momentum` in the state."""

  optimizer: OptimizerName = "sgd"
  momentum_encoder: float = field(0.9, "in the state, under the name of another flag")
  first: float = field(0.5, "in the state, and what the first parameters come from")
  scale: float = field(1.0, "in the program")
  judged: float = field(1.0, "in the evaluation")
  turn: int = field(0, "update from which the evaluation gets worse; 0: never")


class SlopeState(NamedTuple):
  step: jax.Array
  key: jax.Array
  params: jax.Array
  opt_state: optax.OptState
  hparams: dict


def make_slope(config):
  optimizer = make_optimizer(config, config.steps)

  def init(key, batch):
    hparams = {"momentum": jnp.float32(config.momentum_encoder), "first": jnp.float32(config.first)}
    params = jnp.where(jax.random.uniform(stream_key(key, "init"), (3, 3)) < hparams["first"], 1.0, 2.0)
    return SlopeState(jnp.zeros([], jnp.int32), key, params, optimizer.init(params), hparams)

  def step(state, batch):
    grads = config.scale * state.hparams["momentum"] * state.params
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": jnp.sum(params)}

  def evaluate(state, batch):
    worse = jnp.where(config.turn and state.step > config.turn, 100.0, 0.0)
    return {"loss": Mean(config.judged * jnp.sum(state.params) + worse, jnp.float32(1))}

  return Experiment(init, step, evaluate, lambda state, directory: None)


@pytest.fixture
def slope(monkeypatch):
  main = lambda config: train(make_slope(config), Feeds(), config, name="slope")
  module = SimpleNamespace(Config=Slope, make=make_slope, make_feeds=lambda config: Feeds(), main=main)
  monkeypatch.setitem(sys.modules, "experiments.slope", module)
  monkeypatch.setattr(Slope, "__module__", "experiments.slope")
  monkeypatch.setattr("experiments.catalogue", lambda: [("slope", "")])


def test_rows_are_what_differs_in_numbers_of_the_state_alone(slope, tmp_path):
  """By what a number does, not by its name: nothing else may change with it, the first state included."""
  grid = "learning_rate=.1,.5; seed=0,7; momentum_encoder=.8,.9; first=.4,.6; scale=1,2; judged=1,2; weight_decay=0,.1"
  found, apart, groups = groups_of("slope", "--momentum=.7", grid, tmp_path)
  assert apart == ["first", "judged", "scale", "weight_decay"]
  assert len(found) == 16 and all(len(group) == 8 for group in found)
  assert groups[0].state[0] == {
    ".opt_state.hyperparams['learning_rate']": 0.1, ".hparams['momentum']": 0.8
  }  # fmt: skip
  _, apart, groups = groups_of("slope", "", "momentum=.7,.9; weight_decay=.1,.2", tmp_path)
  assert not apart and [sorted(state.values()) for state in groups[0].state] == [
    [0.1, 0.7],
    [0.2, 0.7],
    [0.1, 0.9],
    [0.2, 0.9],
  ]
  assert all(path.startswith(".opt_state") for path in groups[0].state[0])


def test_a_program_takes_no_more_rows_than_asked_for(slope, tmp_path):
  found, apart, _ = groups_of("slope", "--seeds=2", "seed=0,2,4,6,8; optimizer=sgd,adam", tmp_path, most=7)
  assert sorted(map(len, found)) == [2, 2, 3, 3] and apart == ["optimizer"]


def test_what_is_streamed_or_is_no_training_run_stays_alone(slope, monkeypatch, tmp_path):
  streamed = Feeds(train=StreamFeed.__new__(StreamFeed))
  monkeypatch.setattr(sys.modules["experiments.slope"], "make_feeds", lambda config: streamed)
  found, apart, _ = groups_of("slope", "", "learning_rate=.1,.5", tmp_path)
  assert apart == ["learning_rate"] and [len(group) for group in found] == [1, 1]
  monkeypatch.setattr("experiments.catalogue", lambda: [("rl.value_iteration", "")])
  found, apart, _ = groups_of("rl.value_iteration", "", "discount=.9,.99", tmp_path)
  assert apart == ["discount"] and [len(group) for group in found] == [1, 1]


def call(experiment, flags):
  """The exit code of an experiment in this process."""
  from absl import flags as absl_flags

  from mlnotes.engine.flags import define

  module, values = importlib.import_module(f"experiments.{experiment}"), absl_flags.FlagValues()
  define(module.Config, values)
  values(["test", *flags])
  return module.main(parse(module.Config, values))


def card(directory):
  return json.loads((directory / "result.json").read_text())


SHORT = "--steps=12 --log_every=4 --eval_every=6 --devices=1 --notensorboard"


@pytest.mark.thorough
@pytest.mark.parametrize("seeds", [1, 2])
def test_rows_leave_what_runs_alone_leave(seeds, slope, tmp_path):
  grid, fixed = "learning_rate=.1,.5; momentum_encoder=.7; seed=0,2", f"{SHORT} --seeds={seeds} --turn=6"
  roots = {name: tmp_path / name for name in ("together", "alone")}
  config = Config(experiment=("slope",), workdir=str(roots["together"]), vectorize=True)
  jobs, apart = plan_jobs(make_runs(["slope"], fixed, parse_grid(grid), roots["together"]), config)
  assert len(jobs) == 1 and not apart
  jobs[0].prepare()
  assert call("slope", jobs[0].flags) == 0
  jobs[0].settle(0)
  assert jobs[0].state == "finished" and not (jobs[0].directory / "checkpoints").exists()
  for run in make_runs(["slope"], fixed, parse_grid(grid), roots["alone"])[1:3]:
    assert call("slope", [*run.flags, f"--workdir={run.directory}"]) == 0
    alone, together = run.directory, roots["together"] / run.directory.relative_to(roots["alone"])
    a, b = card(alone), card(together)
    settings = [f"--{name}={text}" for name, text in run.settings.items()]
    assert b["command"].split()[2:] == ["experiments.slope", *fixed.split(), *settings, f"--workdir={together}"]
    assert {k: v for k, v in a["config"].items() if v != b["config"][k]}.keys() == {"workdir"}
    assert a["best_checkpoint"]["step"] == b["best_checkpoint"]["step"] == 6  # not the last one
    assert a["metrics"].keys() == b["metrics"].keys() and a["metrics"]["loss"]["mean"] not in (0, None)
    for name, value in a["metrics"].items():
      np.testing.assert_allclose(b["metrics"][name]["seeds"], value["seeds"], rtol=1e-5)
    lines = read_metrics(alone / "metrics.jsonl")
    assert [line["step"] for line in lines] == [4, 6, 8, 12, 12]
    for x, y in zip(lines, read_metrics(together / "metrics.jsonl"), strict=True):
      assert x.keys() == y.keys()
      for name in x:
        np.testing.assert_allclose(y[name], x[name], rtol=1e-5, err_msg=name)
    assert {path.name for path in alone.iterdir()} == {path.name for path in together.iterdir()}
    assert_same_checkpoint(alone, together)
    assert call("slope", [*run.flags, f"--workdir={together}"]) == 0  # it is finished, and the same run


def assert_same_checkpoint(alone, together):
  import orbax.checkpoint as ocp

  trees, steps = [], []
  for directory in (alone, together):
    checkpoints = Checkpoints(directory / "checkpoints")
    steps.append((checkpoints.best_step(), checkpoints.latest_step()))
    checkpoints.close()
    with ocp.CheckpointManager((directory / "checkpoints").absolute()) as manager:
      assert sorted(manager.all_steps()) == sorted(set(steps[-1]))
      read = lambda step: manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
      trees.append([read(step) for step in steps[-1]])
  assert steps[0] == steps[1]
  assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
  for a, b in zip(*map(jax.tree.leaves, trees)):
    np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_rows_resume_with_the_same_bits(slope, tmp_path, monkeypatch):
  """Stopped half-way by a signal: the group goes on from its own checkpoint."""
  results, kept, evaluate = [], [], Program.evaluate
  # Both, as Slurm may send them: the second one must not cut the saving short.
  stop = lambda: (signal.raise_signal(signal.SIGUSR2), signal.raise_signal(signal.SIGTERM))
  for interrupted in (False, True):
    root = tmp_path / str(interrupted)
    runs = make_runs(["slope"], f"{SHORT} --turn=3 --eval_every=3", parse_grid("learning_rate=.1,.5"), root)
    (job,), _ = plan_jobs(runs, Config(experiment=("slope",), workdir=str(root), vectorize=True))
    job.prepare()
    if interrupted:
      with monkeypatch.context() as patch:
        late = lambda s: stop() if np.max(s.step) >= 6 else None
        patch.setattr(Program, "evaluate", lambda self, s, late=late: (late(s), evaluate(self, s))[1])
        assert call("slope", job.flags) == 128 + signal.SIGUSR2
      assert not any(run.finished() for run in runs)
      (again,), _ = plan_jobs(runs, Config(experiment=("slope",), workdir=str(root), vectorize=True))
      assert again.directory == job.directory
    assert call("slope", job.flags) == 0
    results.append([(run.directory / "metrics.jsonl").read_bytes() for run in runs])
    kept.append([card(run.directory)["best_checkpoint"] for run in runs])
  assert results[0] == results[1]
  assert kept[0] == kept[1] and kept[0][0]["step"] == 3  # evaluated before it was stopped


def test_a_row_that_diverges_is_the_only_one_without_a_result(slope, tmp_path):
  config = Config(experiment=("slope",), workdir=str(tmp_path), vectorize=True)
  runs = make_runs(["slope"], SHORT, parse_grid("learning_rate=.1,1e30"), tmp_path)
  (job,), _ = plan_jobs(runs, config)
  job.prepare()
  with pytest.raises(InputError, match=r"not finite: .*learning_rate=1e\+30;"):
    call("slope", job.flags)
  assert [run.finished() for run in runs] == [True, False]
  # Next time it is a run alone.
  jobs, _ = plan_jobs([run for run in runs if not run.finished()], config)
  assert [len(job.runs) for job in jobs] == [1] and not jobs[0].rows


def test_rows_that_cannot_be_read(slope, tmp_path):
  path = tmp_path / "rows.json"
  _, _, groups = groups_of("slope", SHORT, "seed=0,1", tmp_path / "runs")
  text, _ = rows_text(groups[0])
  arguments = [*SHORT.split(), f"--rows={path}", f"--workdir={tmp_path}"]
  other_types = '{"experiment": "slope", "runs": [{"workdir": 3, "settings": {}, "state": {}}]}'
  for wrong in ("", "[]", other_types, text.replace('"slope"', '"rl.ppo"'), text.replace('"seed"', '"sead"')):
    path.write_text(wrong)
    with pytest.raises(InputError, match="--rows="):
      call("slope", arguments)
  path.write_text(text.replace('"state": {}', '"state": {".hparams[\'nothing\']": 1}'))
  with pytest.raises(InputError, match="nothing"):
    call("slope", arguments)
