"""What a work directory goes through: who holds it, what is kept, reported again, carried on, refused."""

import dataclasses
import errno
import json
import os
import signal
import socket
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.data import Feeds
from mlnotes.data.flags import DataConfig, load_data, make_feeds
from mlnotes.engine import loop
from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Experiment, Mean
from mlnotes.engine.flags import field
from mlnotes.engine.hold import Hold
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.record import Record, read_metrics
from mlnotes.engine.rows import RowsRecord
from mlnotes.engine.trained import load_config, restore_states


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LoopConfig):
  steps: int = 6
  log_every: int = 2
  checkpoint_every: int = 2
  eval_every: int = 0
  devices: int = 1
  tensorboard: bool = False
  report_seeds: int = 2
  rate: float = field(0.1, "of the descent")
  width: int = field(2, "of the parameters")
  scale: float = field(1.0, "of the report's figure", free="report")


class State(NamedTuple):
  step: jax.Array
  key: jax.Array
  params: dict
  hparams: dict


def make(config, report=None):
  """Descends on |w - 3|^2 / 2 from a random point: w - 3 shrinks by 1 - rate at each update."""

  def init(key, batch):
    start = jax.random.normal(jax.random.fold_in(key, 1), (config.width,))
    return State(jnp.int32(0), key, {"w": start}, {"rate": jnp.float32(config.rate)})

  def step(state, batch):
    error = state.params["w"] - 3
    params = {"w": state.params["w"] - state.hparams["rate"] * error}
    return state._replace(step=state.step + 1, params=params), {"loss": jnp.sum(error**2) / 2}

  def evaluate(state, batch):
    return {"loss": Mean(jnp.sum((state.params["w"] - 3) ** 2) / 2, jnp.float32(1))}

  figure = lambda state, directory: {"figure": config.scale * float(state.params["w"][0])}
  return Experiment(init, step, evaluate, report or figure)


def run(workdir, report=None, **settings):
  config = Config(workdir=str(workdir), **settings)
  return train(make(config, report), Feeds(), config, name="toy")


def contents(directory):
  return {p.relative_to(directory): p.read_bytes() if p.is_file() else None for p in directory.rglob("*")}


def card(workdir):
  return json.loads((workdir / "result.json").read_text())


def saved_config(workdir):
  return json.loads((workdir / "config.json").read_text())["config"]


def final_state(workdir):
  checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
  step = checkpoints.latest_step()
  state = checkpoints.restore_as_saved(step)["state"]
  checkpoints.close()
  return step, state


def interrupt(monkeypatch, step):
  """The next run ends as if it were killed when it has logged update `step`."""
  log = loop._Run._log

  def stop(self):
    log(self)
    if self.step == step:
      raise KeyboardInterrupt

  monkeypatch.setattr(loop._Run, "_log", stop)


def fail_with(error):
  raise error


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished") / "run"
  assert run(workdir) == 0
  return workdir


@pytest.fixture
def copy(finished, tmp_path):
  import shutil

  shutil.copytree(finished, tmp_path / "run")
  return tmp_path / "run"


# -- who holds it ----------------------------------------------------------------------------------------------------


def test_a_directory_has_one_writer(tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  hold = Hold(workdir)
  before = contents(workdir)
  with pytest.raises(InputError, match=f"{workdir} is in use by process {os.getpid()} on {socket.gethostname()}"):
    run(workdir)
  assert contents(workdir) == before
  hold.release()
  assert not list(workdir.iterdir())
  assert run(workdir) == 0
  assert not (workdir / ".held").exists()


def test_what_a_killed_process_leaves_behind_holds_nobody_up(tmp_path):
  (tmp_path / ".held").write_text("process 1 on another-machine, and more than the next one writes over it\n")
  hold = Hold(tmp_path)
  assert (tmp_path / ".held").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
  hold.release()


def test_a_lock_that_was_removed_under_a_waiting_process_is_not_taken(tmp_path):
  """Another one opened the file of a holder that then removed it: it must not believe that it holds the new one."""
  real, opened = os.open, []

  def slow_open(path, *args, **kwargs):
    descriptor = real(path, *args, **kwargs)
    if not opened:  # between open and lock its holder goes away
      opened.append(path)
      os.unlink(path)
    return descriptor

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(os, "open", slow_open)
    first = Hold(tmp_path)
  with pytest.raises(InputError, match="in use"):
    Hold(tmp_path)
  first.release()


def test_what_is_taken_back_is_removed_before_the_directory_is_let_go(tmp_path, monkeypatch):
  """Afterwards it may be another's, whose config.json has the same name."""
  workdir = tmp_path / "run"
  record = Record(workdir, "toy", Config(workdir=str(workdir)))
  record.hold()
  assert (workdir / "config.json").exists()
  release, left = Hold.release, []

  def look_and_release(hold):
    left.append([path.name for path in workdir.iterdir()])
    release(hold)

  monkeypatch.setattr(Hold, "release", look_and_release)
  record.forget()
  assert left == [[".held"]] and not workdir.exists()


@pytest.mark.parametrize("rows", [False, True])
def test_a_run_says_what_it_is_judged_by_before_there_is_a_card(tmp_path, monkeypatch, rows):
  """And one that was begun without these words goes on."""
  workdir = tmp_path / "run"
  config = Config(workdir=str(workdir))
  record = Record(workdir, "toy", config)
  record.hold()
  record.close()
  if rows:
    runs = [{"workdir": str(workdir), "settings": {}, "state": {}}]
    (tmp_path / "rows.json").write_text(json.dumps({"experiment": "toy", "runs": runs}))
    config = Config(rows=str(tmp_path / "rows.json"))
  seen = []
  look = lambda *args: seen.append(json.loads((workdir / "config.json").read_text())) or 0
  monkeypatch.setattr(loop, "_train", look)
  train(make(config), Feeds(), config, name="toy", best_metric="error", best_mode="max")
  (saved,) = seen
  assert (saved["best_metric"], saved["best_mode"]) == ("error", "max") and "best_metric" not in saved["config"]


def test_a_study_holds_its_directory(tmp_path):
  from mlnotes.engine.study import run_study

  def study(directory):
    with pytest.raises(InputError, match="in use by process"):
      Record(directory, "toy", config).hold()
    return {"figure": 1.0}

  config = Config(workdir=str(tmp_path))
  assert run_study("toy", config, study) == 0


def test_runs_side_by_side_hold_every_directory(tmp_path):
  runs = [{"workdir": str(tmp_path / name), "settings": {"seed": i}, "state": {}} for i, name in enumerate("ab")]
  (tmp_path / "rows.json").write_text(json.dumps({"experiment": "toy", "runs": runs}))
  config = Config(rows=str(tmp_path / "rows.json"))
  (tmp_path / "b").mkdir()
  hold = Hold(tmp_path / "b")
  with pytest.raises(InputError, match=r"/b is in use"):
    train(make(config), Feeds(), config, name="toy")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "rows.json"]
  hold.release()
  record = RowsRecord("toy", config)
  record.hold()
  for name in (".", "a", "b"):
    with pytest.raises(InputError, match="is in use"):
      Hold(tmp_path / name)
  record.close()
  for name in (".", "a", "b"):
    Hold(tmp_path / name).release()


def test_runs_side_by_side_are_reported_again(tmp_path):
  runs = [{"workdir": str(tmp_path / name), "settings": {"seed": i}, "state": {}} for i, name in enumerate("ab")]
  (tmp_path / "rows.json").write_text(json.dumps({"experiment": "toy", "runs": runs}))
  figures = []
  for scale in (1.0, 10.0):
    config = Config(rows=str(tmp_path / "rows.json"), scale=scale)
    assert train(make(config), Feeds(), config, name="toy") == 0
    figures.append([card(tmp_path / name)["metrics"]["figure"]["mean"] for name in "ab"])
  np.testing.assert_allclose(figures[1], 10 * np.array(figures[0]), rtol=1e-6)
  assert [saved_config(tmp_path / name)["scale"] for name in "ab"] == [10, 10]


def test_readers_change_nothing(copy):
  """Not even what a process that is saving at this moment has half written."""
  half = copy / "checkpoints" / "8.orbax-checkpoint-tmp"
  (half / "state").mkdir(parents=True)
  (half / "state" / "data").write_text("half")
  before = contents(copy)
  name, config = load_config(copy, {"toy": Config})
  states, step = restore_states(copy, make(config), Feeds(), config)
  assert (name, step) == ("toy", 6) and states[0].params["w"].shape == (2,)
  assert contents(copy) == before
  with pytest.raises(InputError, match="has no checkpoint yet"):
    restore_states(copy / "nothing", make(config), Feeds(), config)
  assert contents(copy) == before


def test_a_reader_goes_on_to_the_newer_checkpoint(copy, monkeypatch):
  """The trainer removes a checkpoint when it has a later one, perhaps while it is being read."""
  restore, steps = Checkpoints.restore, []

  def vanish(self, step, like):
    steps.append(step)
    if len(steps) == 1:
      (copy / "checkpoints" / "6").rename(copy / "checkpoints" / "7")
    return restore(self, step, like)

  monkeypatch.setattr(Checkpoints, "restore", vanish)
  config = Config(workdir=str(copy))
  assert restore_states(copy, make(config), Feeds(), config)[1] == 7 and steps == [6, 7]


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_refused_run_removes_only_what_it_made(tensorboard, tmp_path):
  workdir = tmp_path / "run"
  (workdir / "tensorboard" / "other_project").mkdir(parents=True)
  (workdir / "tensorboard" / "other_project" / "events").write_text("years of work")
  (workdir / "notes.txt").write_text("mine")
  before = contents(workdir)

  def refuse(self, count):
    raise InputError("no.")

  with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="no"):
    patch.setattr(loop._Run, "advance", refuse)
    run(workdir, tensorboard=tensorboard)
  assert contents(workdir) == before
  with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="no"):
    patch.setattr(loop._Run, "advance", refuse)
    run(tmp_path / "new", tensorboard=tensorboard)
  assert not (tmp_path / "new").exists()


# -- finished runs ---------------------------------------------------------------------------------------------------


def test_flags_that_change_no_figure_leave_a_finished_run_as_it_is(copy, capsys):
  before = contents(copy)
  assert run(copy, checkpoint_every=5, tensorboard=True) == 0
  said = capsys.readouterr().out
  assert "is finished (6 steps)" in said and "Without that file the same command redoes the report" in said
  assert contents(copy) == before


def test_flags_of_the_report_report_again(copy):
  before, (step, state) = card(copy), final_state(copy)
  assert run(copy, scale=10.0) == 0
  after = card(copy)
  value = before["metrics"]["figure"]["mean"]
  assert after["metrics"]["figure"]["mean"] == pytest.approx(10 * value) and value == pytest.approx(
    state["params"]["w"][0]
  )
  assert after["config"] == saved_config(copy) and after["config"]["scale"] == 10 and after["reported"]
  assert after["metrics"]["loss"] == before["metrics"]["loss"]
  assert after["timing"]["step_seconds"] == before["timing"]["step_seconds"]
  assert final_state(copy)[0] == step


def test_until_the_report_is_there_the_settings_stay_with_their_figures(copy):
  before = contents(copy)

  def fail(self):
    raise KeyboardInterrupt

  with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(loop._Run, "measure", fail)
    run(copy, scale=10.0)
  after = contents(copy)
  assert [after[name] for name in map(type(copy), ("config.json", "result.json"))] == [
    before[name] for name in map(type(copy), ("config.json", "result.json"))
  ]


def test_no_other_report_without_the_checkpoint(copy):
  import shutil

  shutil.rmtree(copy / "checkpoints" / "6")
  before = {name: data for name, data in contents(copy).items() if data is not None}
  with pytest.raises(InputError, match="its last checkpoint is gone"):
    run(copy, scale=10.0)
  assert {name: data for name, data in contents(copy).items() if data is not None} == before
  assert run(copy) == 0  # as it was reported


def test_a_report_that_fails_is_a_warning_and_costs_no_figure(tmp_path, capsys):
  def report(state, directory):
    if directory.name == "seed_0":
      raise ValueError("cannot draw this")
    return {"figure": 5.0}

  assert run(tmp_path / "run", report, seeds=2) == 0
  found = card(tmp_path / "run")
  (warning,) = found["warnings"]
  assert "seed_0" in warning and "cannot draw this" in warning and warning in capsys.readouterr().err
  assert found["finished"] and found["metrics"]["loss"]["mean"] > 0
  assert found["metrics"]["figure"]["seeds"] == [None, 5.0]


def test_an_interrupted_report_is_made_up_for(tmp_path, monkeypatch):
  workdir, calls = tmp_path / "run", []

  def report(state, directory):
    calls.append(card(workdir))
    if len(calls) == 1:
      raise KeyboardInterrupt
    return {"figure": 1.0}

  with pytest.raises(KeyboardInterrupt):
    run(workdir, report)
  loss = calls[0]["metrics"]["loss"]
  assert calls[0]["finished"] and not calls[0]["reported"] and "figure" not in card(workdir)["metrics"]
  monkeypatch.setattr(loop._Run, "advance", lambda self, count: pytest.fail("trained again"))
  assert run(workdir, report) == 0
  assert card(workdir)["metrics"] == {"loss": loss, "figure": {"mean": 1.0, "std": 0.0, "finite": 1, "seeds": [1.0]}}
  assert card(workdir)["timing"]["step_seconds"] == calls[0]["timing"]["step_seconds"]
  assert run(workdir, lambda state, directory: pytest.fail("reported again")) == 0


def test_without_a_name_for_it_the_same_settings_find_their_directory_again():
  """A run that goes on with what may change, or is reported with other flags, is still that run."""
  own = loop.default_workdir("toy", Config())
  for same in (dict(scale=2.0), dict(report_seeds=1), dict(checkpoint_every=1), dict(tensorboard=True)):
    assert loop.default_workdir("toy", Config(**same)) == own
  for other in (dict(rate=0.2), dict(seed=1), dict(steps=7)):
    assert loop.default_workdir("toy", Config(**other)) != own


def test_free_flags_of_every_experiment_that_change_figures_say_so():
  """What is free without a word changes nothing that a card or a picture shows."""
  import importlib

  from experiments import catalogue
  from mlnotes.engine.record import free_fields

  harmless = {
    "workdir", "rows", "wandb", "checkpoint_every", "devices", "threads", "fsdp", "tensorboard", "data_dir",
    "data_placement",
  }  # fmt: skip
  for name, _ in catalogue():
    assert free_fields(importlib.import_module(f"experiments.{name}").Config, True) <= harmless, name


# -- another run from this one ---------------------------------------------------------------------------------------


def test_more_steps_are_another_run_from_this_one(copy, tmp_path):
  with pytest.raises(InputError, match=f"another --workdir and --start_from={copy}"):
    run(copy, steps=9)
  workdir = tmp_path / "more"
  assert run(workdir, steps=2, rate=0.5, start_from=str(copy)) == 0
  _, before = final_state(copy)
  _, after = final_state(workdir)
  # w - 3 halves at each update, from where the other run ended; the rate is the new run's own.
  np.testing.assert_allclose(after["params"]["w"] - 3, (before["params"]["w"] - 3) / 4, rtol=1e-5)
  assert after["step"] == 2 and card(workdir)["started_from"] == {"run": str(copy), "step": 6}


def test_what_a_run_started_from_outlives_an_interruption(finished, tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    interrupt(patch, 4)
    run(tmp_path / "run", start_from=str(finished))
  assert run(tmp_path / "run", start_from=str(finished)) == 0
  assert card(tmp_path / "run")["started_from"]["step"] == 6


def test_a_signal_within_the_last_updates_is_obeyed_before_the_report(tmp_path, monkeypatch):
  advance = loop._Run.advance

  def advance_and_signal(self, count):
    advance(self, count)
    if self.step == 6:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(loop._Run, "advance", advance_and_signal)
    assert run(tmp_path / "run") == 128 + signal.SIGTERM
  assert not (tmp_path / "run" / "result.json").exists()
  assert run(tmp_path / "run") == 0 and card(tmp_path / "run")["steps"] == 6


def test_one_seed_starts_all_seeds(finished, tmp_path):
  assert run(tmp_path / "run", seeds=3, steps=1, start_from=str(finished)) == 0
  _, before = final_state(finished)
  _, after = final_state(tmp_path / "run")
  np.testing.assert_allclose(after["params"]["w"] - 3, np.tile(0.9 * (before["params"]["w"] - 3), (3, 1)), rtol=1e-5)
  assert len(np.unique(after["key"], axis=0)) == 3
  with pytest.raises(InputError, match="has 3 seeds: expected one, or as many as --seeds=2"):
    run(tmp_path / "two", seeds=2, start_from=str(tmp_path / "run"))


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"width": 3}, r"a run of toy, has another structure: found float32\(2,\) at params.w, expected float32\(3,\)"),
    ({"start_from": "nowhere"}, "nowhere has no readable config.json"),
  ],
)
def test_what_a_run_cannot_start_from(settings, words, finished, tmp_path):
  with pytest.raises(InputError, match=words):
    run(tmp_path / "run", **{"start_from": str(finished), **settings})
  assert not (tmp_path / "run").exists()


# -- the data --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataToy(DataConfig, Config):
  batch_size: int = 8


def make_on_data(config):
  """The parameters move to a running mean of the batches' indices: another batch, or another order, shows."""
  init = lambda key, batch: State(jnp.int32(0), key, {"w": jnp.zeros(8)}, {})

  def step(state, batch):
    params = {"w": 0.9 * state.params["w"] + 0.1 * batch["index"].astype(jnp.float32)}
    return state._replace(step=state.step + 1, params=params), {"loss": params["w"].mean()}

  return Experiment(
    init,
    step,
    lambda state, batch: {"loss": Mean(state.params["w"].mean(), jnp.float32(1))},
    lambda state, directory: None,
  )


def run_on_data(workdir, dataset="digits", **settings):
  config = DataToy(workdir=str(workdir), dataset=str(dataset), **settings)
  return train(make_on_data(config), make_feeds(load_data(config), config), config, name="toy")


def test_a_run_goes_on_whatever_feeds_it(tmp_path, monkeypatch):
  settings = dict(steps=4, log_every=1, checkpoint_every=2, seeds=2)
  assert run_on_data(tmp_path / "straight", data_placement="device", **settings) == 0
  _, expected = final_state(tmp_path / "straight")
  for first, then in (("device", "stream"), ("stream", "auto")):
    workdir = tmp_path / f"{first}-{then}"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
      interrupt(patch, 3)
      run_on_data(workdir, data_placement=first, **settings)
    assert final_state(workdir)[0] == 2
    assert run_on_data(workdir, data_placement=then, **settings) == 0
    np.testing.assert_array_equal(final_state(workdir)[1]["params"]["w"], expected["params"]["w"])
    assert (workdir / "metrics.jsonl").read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()


def test_a_run_does_not_go_on_with_other_data(tmp_path, monkeypatch):
  from mlnotes.data import flags

  def write(value):
    flags._load.cache_clear()
    image = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)
    image[7, 2, 2] = value
    np.savez(tmp_path / "own.npz", image=image, label=np.arange(20) % 2)

  write(0)
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    interrupt(patch, 4)
    run_on_data(tmp_path / "run", tmp_path / "own.npz")
  write(1)
  with pytest.raises(InputError, match="the data are not those that this run has learned from"):
    run_on_data(tmp_path / "run", tmp_path / "own.npz")
  write(0)
  monkeypatch.chdir(tmp_path)  # by a relative path: the same file
  assert run_on_data(tmp_path / "run", "own.npz") == 0
  assert card(tmp_path / "run")["data"].startswith("18x4x4x1+2-")
  assert saved_config(tmp_path / "run")["dataset"] == str(tmp_path / "own.npz")
  write(2)  # a finished run is no answer about other data either
  with pytest.raises(InputError, match="the data are not those that this run has learned from"):
    run_on_data(tmp_path / "run", "own.npz")
  write(0)
  (tmp_path / "elsewhere").mkdir()
  os.rename(tmp_path / "own.npz", tmp_path / "elsewhere" / "own.npz")
  monkeypatch.chdir(tmp_path / "elsewhere")
  with pytest.raises(InputError, match="other settings: found --dataset="):
    run_on_data(tmp_path / "run", "own.npz")
  flags._load.cache_clear()


# -- what is found in it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "text",
  ["[]", "3", '{"experiment": "toy", "config": []}', '{"experiment": ["toy"], "config": {}}', "\xff", "{"],
)
def test_a_config_that_is_none(text, tmp_path):
  (tmp_path / "config.json").write_text(text, encoding="latin-1")
  before = contents(tmp_path)
  with pytest.raises(InputError, match=r"config.json cannot be read|belongs to"):
    run(tmp_path)
  with pytest.raises(InputError, match="--run="):
    load_config(tmp_path, {"toy": Config})
  with pytest.raises(InputError, match="--start_from="):
    run(tmp_path / "run", start_from=str(tmp_path))
  assert contents(tmp_path) == before


@pytest.mark.parametrize("settings", [{"steps": "many"}, {"steps": True}, {"tensorboard": 1}, {"precision": 3}])
def test_a_config_of_values_of_other_types(settings, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"experiment": "toy", "config": settings}))
  with pytest.raises(InputError, match=r"its config.json cannot be used"):
    load_config(tmp_path, {"toy": Config})


@pytest.mark.parametrize("text", ["[]", "3", '{"finished": 1}', "{"])
def test_a_card_that_is_none_is_not_that_of_a_finished_run(text, tmp_path):
  (tmp_path / "result.json").write_text(text)
  assert Record(tmp_path, "toy", Config()).finished() is None


def test_code_that_has_gained_a_flag_goes_on(copy, capsys):
  path = copy / "config.json"
  (copy / "result.json").unlink()
  saved = json.loads(path.read_text())
  del saved["config"]["width"]
  path.write_text(json.dumps(saved))
  assert run(copy) == 0
  assert "without --width: its default 2 is taken" in capsys.readouterr().err
  path.write_text(json.dumps(saved))
  with pytest.raises(InputError, match=r"--width=5 \(there: 2\)"):
    run(copy, width=5)


# -- what is said ----------------------------------------------------------------------------------------------------


def test_compilations_are_spoken_of(tmp_path, capsys):
  assert run(tmp_path) == 0
  said = capsys.readouterr().err
  for what in ("the first state", "the update", "the evaluation"):
    assert f"compiling {what} ...\ncompiled in " in said


def test_a_loss_beyond_all_bounds_does_not_look_finished(tmp_path, capsys):
  assert run(tmp_path, rate=50.0, seeds=2) == 0
  said = capsys.readouterr()
  (warning,) = card(tmp_path)["warnings"]
  assert "the training loss of seed 0, 1 ended at" in warning and "diverged" in warning and warning in said.err
  assert "finished, with warnings" in said.out


def test_a_run_is_compiled_and_promotes_dtypes_in_any_case(tmp_path, capsys):
  def step(state, batch):
    mixed = state.params["w"] * state.step  # as optax does
    return make(Config()).step(state, batch)[0], {"loss": mixed.sum()}

  with jax.disable_jit(), jax.numpy_dtype_promotion("strict"):
    assert train(make(Config())._replace(step=step), Feeds(), Config(workdir=str(tmp_path)), name="toy") == 0
  said = capsys.readouterr().err
  assert "JAX_DISABLE_JIT has no effect" in said and "JAX_NUMPY_DTYPE_PROMOTION=strict has no effect" in said


def test_a_run_in_a_thread(tmp_path):
  codes = []
  thread = threading.Thread(target=lambda: codes.append(run(tmp_path / "run")))
  thread.start()
  thread.join()
  assert codes == [0]


@pytest.mark.parametrize("where", ["events", "metrics", "checkpoint"])
def test_a_full_disk_ends_the_run_in_one_sentence(where, tmp_path, monkeypatch):
  """Whatever fails to be written, in whichever thread."""
  from tensorboardX.event_file_writer import EventsWriter

  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  calls = []

  def fail(*args, **kwargs):
    calls.append(None)
    if len(calls) > 3:
      raise full

  if where == "events":
    monkeypatch.setattr(EventsWriter, "write_event", fail)
  elif where == "metrics":
    log = Record.log
    monkeypatch.setattr(Record, "log", lambda *args: (log(*args), fail()))
  else:
    # As TensorStore says it, from a thread that saves.
    error = ValueError(f"RESOURCE_EXHAUSTED: Error writing: [OS error 28: {os.strerror(errno.ENOSPC)}]")
    monkeypatch.setattr(
      "orbax.checkpoint.CheckpointManager.check_for_errors", lambda self: (_ for _ in ()).throw(error)
    )
  with pytest.raises(InputError, match=r"cannot be written: No space left on device; what was saved before is intact"):
    run(tmp_path / "run", steps=8, log_every=1, checkpoint_every=1, tensorboard=True)
  monkeypatch.undo()
  assert run(tmp_path / "run", steps=8, log_every=1, checkpoint_every=1, tensorboard=True) == 0
  assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line] == [
    *range(1, 9)
  ]
