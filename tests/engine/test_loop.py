"""The training loop as a user meets it: a process with flags, a work directory, signals."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mlnotes.data import Feeds
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.record import read_metrics

ROOT = Path(__file__).parents[2]
EXPERIMENT = [sys.executable, str(ROOT / "tests" / "softmax_regression.py")]
# Long enough to be interrupted, short enough to wait for.
FLAGS = ["--steps=300", "--log_every=20", "--eval_every=100", "--checkpoint_every=50", "--learning_rate=0.01"]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
  """One compilation cache for all processes, and one device unless a test asks for more."""
  cache = tmp_path_factory.mktemp("cache")
  return {**os.environ, "MLNOTES_CACHE": str(cache), "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "TERM": "dumb"}


@pytest.fixture
def launch(environment):
  def launch(*flags, devices=1, **options):
    env = {**environment, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.run([*EXPERIMENT, *flags], env=env, capture_output=True, text=True, timeout=240, **options)

  return launch


def result(workdir):
  return json.loads((workdir / "result.json").read_text())


def final_params(workdir):
  import orbax.checkpoint as ocp

  with ocp.CheckpointManager(workdir.absolute() / "checkpoints") as manager:
    step = manager.latest_step()
    tree = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
  return step, np.asarray(tree["state"]["params"])


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, environment):
  workdir = tmp_path_factory.mktemp("undisturbed")
  done = subprocess.run(
    [*EXPERIMENT, *FLAGS, f"--workdir={workdir}"], env=environment, capture_output=True, text=True, timeout=240
  )
  assert done.returncode == 0, done.stderr
  return workdir


def assert_same_outcome(workdir, undisturbed):
  assert (workdir / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
  (step, params), (step_there, params_there) = final_params(workdir), final_params(undisturbed)
  assert step == step_there == 300
  np.testing.assert_array_equal(params, params_there)
  assert result(workdir)["metrics"] == result(undisturbed)["metrics"]


def test_a_run_leaves_everything_behind(undisturbed):
  card = result(undisturbed)
  assert card["finished"] and card["steps"] == 300 and card["experiment"] == "softmax_regression"
  assert card["metrics"]["loss"]["mean"] < 0.5  # log(10) is 2.3
  assert card["metrics"]["loss"]["seeds"] == [card["metrics"]["loss"]["mean"]]
  assert card["timing"].keys() >= {"compile_seconds", "step_seconds", "examples_per_second", "data_wait_seconds"}
  assert card["memory"]["peak_bytes"] > 0 and card["versions"]["jax"]
  assert json.loads((undisturbed / "config.json").read_text())["config"] == card["config"]
  lines = read_metrics(undisturbed / "metrics.jsonl")
  assert [line["step"] for line in lines if "train/loss" in line] == list(range(20, 301, 20))
  assert [line["step"] for line in lines if "eval/loss" in line] == [100, 200, 300]
  assert (undisturbed / "curves.png").stat().st_size > 1000
  assert any("tfevents" in path.name for path in (undisturbed / "tensorboard").iterdir())


def test_the_compilation_cache_is_on(undisturbed, environment):
  assert any((Path(environment["MLNOTES_CACHE"]) / "xla").iterdir())


def test_a_finished_run_says_so(undisturbed, launch):
  before = (undisturbed / "result.json").read_bytes()
  again = launch(*FLAGS, f"--workdir={undisturbed}")
  assert again.returncode == 0 and "finished" in again.stdout
  assert (undisturbed / "result.json").read_bytes() == before


@pytest.mark.thorough
def test_kill_at_random_moments_changes_no_bit(undisturbed, environment, tmp_path):
  """SIGKILL cannot be caught: whatever the process was doing, running it again gives the undisturbed result."""
  moments = random.Random(0)
  kills = 0
  for _ in range(40):
    process = subprocess.Popen(
      [*EXPERIMENT, *FLAGS, f"--workdir={tmp_path}"],
      env=environment,
      stderr=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )
    # Wait until it trains, then for a moment that differs from try to try.
    deadline = time.monotonic() + 120
    size = _size(tmp_path / "metrics.jsonl")
    while process.poll() is None and _size(tmp_path / "metrics.jsonl") <= size and time.monotonic() < deadline:
      time.sleep(0.005)
    time.sleep(moments.uniform(0, 0.4))
    if kills < 4 and process.poll() is None:
      process.kill()
      kills += 1
    if process.wait(timeout=240) == 0:
      break
  assert kills >= 1
  assert_same_outcome(tmp_path, undisturbed)


@pytest.mark.processes
def test_nobody_disturbs_a_run(undisturbed, environment, tmp_path):
  """A second writer is refused, a reader that opens its checkpoints all the time changes no bit."""
  from mlnotes.engine.checkpoint import Checkpoints

  command = [*EXPERIMENT, *FLAGS, "--checkpoint_every=5", f"--workdir={tmp_path}"]
  first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
  while first.poll() is None and _size(tmp_path / "metrics.jsonl") == 0:
    time.sleep(0.001)
  second = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
  read = 0
  while first.poll() is None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    read += checkpoints.latest_step() is not None
    checkpoints.close()
  said = first.communicate()[1]
  assert first.returncode == 0, said
  stderr = second.communicate(timeout=100)[1]
  if second.returncode:  # it may have come when the first had finished
    assert second.returncode == 2 and f"is in use by process {first.pid} on" in stderr
  assert read > 0
  assert_same_outcome(tmp_path, undisturbed)


def _size(path):
  return path.stat().st_size if path.exists() else 0


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(number, undisturbed, environment, tmp_path):
  workdir = tmp_path / "run"
  process = subprocess.Popen(
    [*EXPERIMENT, *FLAGS, f"--workdir={workdir}"], env=environment, stderr=subprocess.PIPE, text=True
  )
  while process.poll() is None and _size(workdir / "metrics.jsonl") == 0:
    time.sleep(0.001)
  process.send_signal(number)
  _, stderr = process.communicate(timeout=240)
  code = process.returncode
  if code != 0:  # it may have been faster than the signal
    assert code == 128 + number, stderr
    assert "the same command goes on from there" in stderr
    again = subprocess.run(
      [*EXPERIMENT, *FLAGS, f"--workdir={workdir}"], env=environment, capture_output=True, text=True, timeout=240
    )
    assert again.returncode == 0, again.stderr
    assert "resumed from step" in again.stderr
  assert_same_outcome(workdir, undisturbed)


def test_seeds_together_are_the_seeds_alone(undisturbed, launch, tmp_path):
  done = launch(*FLAGS, f"--workdir={tmp_path}", "--seeds=3")
  assert done.returncode == 0, done.stderr
  loss = result(tmp_path)["metrics"]["loss"]
  assert len(loss["seeds"]) == 3 and len(set(loss["seeds"])) == 3
  np.testing.assert_allclose(loss["seeds"][0], result(undisturbed)["metrics"]["loss"]["mean"], rtol=1e-5)
  np.testing.assert_allclose(loss["std"], np.std(loss["seeds"], ddof=1), rtol=1e-6)
  line = read_metrics(tmp_path / "metrics.jsonl")[0]
  np.testing.assert_allclose(line["train/loss"], np.mean(line["train/loss/seeds"]), rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(
  "flags, devices", [(["--data_placement=stream"], 1), ([], 8), (["--data_placement=stream"], 8)]
)
def test_feed_and_devices_change_no_number(flags, devices, undisturbed, launch, tmp_path):
  done = launch(*FLAGS, f"--workdir={tmp_path}", *flags, devices=devices)
  assert done.returncode == 0, done.stderr
  for line, expected in zip(read_metrics(tmp_path / "metrics.jsonl"), read_metrics(undisturbed / "metrics.jsonl")):
    assert line.keys() == expected.keys()
    np.testing.assert_allclose(list(line.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.thorough
def test_seeds_stream_and_share_eight_devices(launch, tmp_path):
  """8 seeds divide over 8 devices, 2 do not and split their batches; streamed or not, the numbers stay."""
  outcomes = {}
  for seeds, devices, placement in [(8, 8, "device"), (2, 8, "device"), (2, 8, "stream"), (2, 1, "stream")]:
    workdir = tmp_path / f"{seeds}-{devices}-{placement}"
    flags = ["--steps=20", "--log_every=5", f"--seeds={seeds}", f"--data_placement={placement}"]
    done = launch(*flags, f"--workdir={workdir}", devices=devices)
    assert done.returncode == 0, done.stderr
    outcomes[workdir.name] = result(workdir)["metrics"]["loss"]["seeds"][:2]
  first, *others = outcomes.values()
  for other in others:
    np.testing.assert_allclose(other, first, rtol=1e-5)


# -- what cannot work says so in one sentence ------------------------------------------------------------------------


def assert_one_sentence(done, *words):
  assert done.returncode == 2
  assert "Traceback" not in done.stderr, done.stderr
  last = done.stderr.strip().splitlines()[-1]
  for word in words:
    assert word in done.stderr, done.stderr
  assert last.startswith("error: ") and len(last) < 700


def test_unknown_flag_gets_a_suggestion(launch):
  assert_one_sentence(launch("--stpes=3"), "stpes", "did you mean --steps?")


@pytest.mark.parametrize(
  "flag", ["--steps=0", "--learning_rate=-1", "--seeds=0", "--batch_size=100000", "--devices=3", "--precision=float16"]
)
def test_value_out_of_range(flag, launch, tmp_path):
  done = launch(flag, f"--workdir={tmp_path / 'run'}")
  assert_one_sentence(done, flag.split("=")[0].strip("-"))


def test_batch_that_the_devices_cannot_share(launch, tmp_path):
  done = launch("--batch_size=100", f"--workdir={tmp_path}", devices=8)
  assert_one_sentence(done, "--batch_size=100", "8 devices")


def test_dataset_that_is_not_there(launch, tmp_path):
  done = launch("--dataset=mnits", f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'run'}")
  assert_one_sentence(done, "--dataset=mnits", "--data_dir", ".npz")
  assert not (tmp_path / "run").exists()


def test_npz_with_wrong_shapes(launch, tmp_path):
  np.savez(tmp_path / "odd.npz", image=np.zeros((5, 4, 4), np.uint8), label=np.zeros(6, np.int32))
  assert_one_sentence(launch(f"--dataset={tmp_path / 'odd.npz'}", f"--workdir={tmp_path / 'run'}"), "label", "shape")


def test_work_directory_of_another_config(undisturbed, launch):
  before = (undisturbed / "config.json").read_bytes()
  done = launch(*FLAGS, "--learning_rate=0.5", f"--workdir={undisturbed}")
  assert_one_sentence(done, "--workdir=", "--learning_rate=0.5", "0.01")
  assert (undisturbed / "config.json").read_bytes() == before


def test_work_directory_that_cannot_be_made(launch, tmp_path):
  (tmp_path / "file").write_text("")
  assert_one_sentence(launch(f"--workdir={tmp_path / 'file' / 'run'}"), "--workdir=", "cannot be written")


def test_loss_that_is_not_finite_keeps_the_last_good_state(launch, tmp_path):
  flags = [f"--workdir={tmp_path}", "--optimizer=sgd", "--steps=200", "--log_every=1", "--checkpoint_every=1"]
  done = launch(*flags, "--learning_rate=1e37")
  assert_one_sentence(done, "not finite", "--learning_rate")
  step, params = final_params(tmp_path)
  assert step < 200 and np.all(np.isfinite(params))


def test_a_run_that_does_not_fit_into_memory_gives_its_directory_back(tmp_path):
  def init(key, batch):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 56000006080 bytes.")

  experiment = Experiment(
    init, lambda state, batch: (state, {}), lambda state, batch: {}, lambda state, directory: None
  )
  config = LoopConfig(workdir=str(tmp_path / "run"), devices=1)
  with pytest.raises(InputError, match=r"does not fit into memory .*56000006080 bytes.* fewer --seeds"):
    train(experiment, Feeds(), config, name="nothing")
  assert not (tmp_path / "run").exists()


def test_corrupt_checkpoint(undisturbed, launch, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(undisturbed, workdir)
  (workdir / "result.json").unlink()
  files = [p for p in (workdir / "checkpoints" / "300" / "state").rglob("*") if p.is_file() and "d" in p.parent.name]
  for path in files:
    path.write_bytes(b"\0" * 10)
  before = (workdir / "metrics.jsonl").read_bytes()
  assert_one_sentence(launch(*FLAGS, f"--workdir={workdir}"), "checkpoint", "300", "cannot be read")
  assert (workdir / "metrics.jsonl").read_bytes() == before


@contextlib.contextmanager
def small_disk(directory, size):
  directory.mkdir()
  mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], capture_output=True)
  if mounted.returncode:
    pytest.skip("may not mount a small file system here")
  try:
    yield directory
  finally:
    subprocess.run(["umount", str(directory)], check=True)


def test_full_disk(launch, tmp_path):
  with small_disk(tmp_path / "disk", "64k") as disk:
    done = launch(*FLAGS, f"--workdir={disk / 'run'}", "--notensorboard")
    assert_one_sentence(done, "--workdir=", "No space left")


@pytest.mark.processes
def test_a_disk_that_fills_up_while_events_are_written(environment, tmp_path):
  with small_disk(tmp_path / "disk", "120k") as disk:
    flags = ["--steps=4000", "--log_every=5", "--eval_every=0", "--checkpoint_every=0", f"--workdir={disk / 'run'}"]
    command = [sys.executable, "-m", "experiments.rl.q_learning", *flags]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert_one_sentence(done, "--workdir=", "No space left", "what was saved before is intact")
    assert read_metrics(disk / "run" / "metrics.jsonl")
