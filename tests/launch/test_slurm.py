"""Sweeps on a real Slurm, started on loopback for these tests: `python -m pytest -m slurm`."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlnotes.engine.record import read_metrics

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
TABLE = "--env=FrozenLake-v1 --steps_per_update=50 --nogif --gym_episodes=0 --notensorboard --devices=1"
SHORT = f"{TABLE} --steps=20 --log_every=10"
LONG = f"{TABLE} --steps=4000000 --log_every=100000 --eval_every=0 --checkpoint_every=0"


@pytest.fixture(scope="session")
def environment(slurm, tmp_path_factory):
  return {**slurm, "MLNOTES_CACHE": str(tmp_path_factory.mktemp("cache")), "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}


@pytest.fixture
def sweep(environment):
  def start(workdir, *flags, **options):
    command = [sys.executable, "-m", "launch.sweep", f"--workdir={workdir}", *flags]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes, **options)

  return start


@pytest.fixture
def slurm_command(environment):
  def run(*command):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout

  return run


def finish(process, code=0, timeout=500):
  out, err = process.communicate(timeout=timeout)
  assert process.returncode == code, out + err
  return out, err


@pytest.mark.parametrize("cluster", [("local", "--jobs=2"), ("slurm", "--time=5")])
def test_twelve_runs_and_one_that_fails(cluster, sweep, tmp_path):
  """Two experiments, three learning rates, two seeds; a directory where the result card is to go makes one run fail."""
  flags = ["--experiment=rl.q_learning,rl.sarsa", "--grid=learning_rate=.1,.3,.5; seed=0,1", f"--fixed={SHORT}"]
  flags += [f"--cluster={cluster[0]}", cluster[1]]
  broken = tmp_path / "rl.sarsa" / "learning_rate=0.3,seed=1"
  (broken / "result.json").mkdir(parents=True)
  out, err = finish(sweep(tmp_path, *flags), code=1)
  assert "12 runs: 0 finished before, 12 to run in 12 jobs" in out and "11 of 12 runs finished" in out
  assert f"failed rl.sarsa/{broken.name}: IsADirectoryError" in out and f"  log: {broken}/stderr.log" in out
  assert "Traceback" in (broken / "stderr.log").read_text()
  assert err.count("finished  rl.") == 11 and err.count("failed    rl.") == 1
  times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/result.json") if path.is_file()}
  assert len(times) == 11

  (broken / "result.json").rmdir()
  out, err = finish(sweep(tmp_path, *flags))
  assert "12 runs: 11 finished before, 1 to run in 1 job (" in out and "12 of 12 runs finished" in out
  assert "resumed from step 20" in (broken / "stderr.log").read_text()  # trained before it failed
  assert all(path.stat().st_mtime_ns == before for path, before in times.items())


def final_table(directory):
  import orbax.checkpoint as ocp

  with ocp.CheckpointManager((directory / "checkpoints").absolute()) as manager:
    tree = manager.restore(4000000, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
  return np.asarray(tree["state"]["actor"]["learner"]["table"])


def test_stopped_jobs_go_on_with_the_same_bits(sweep, slurm_command, tmp_path):
  """One job is warned as before its time is over, one put back by an operator, then both give way to another job.

  The sweep itself is interrupted and started again in between: it finds its jobs in the queue.
  """
  flags = ["--experiment=rl.q_learning", "--grid=seed=0,1", f"--fixed={LONG}"]
  local = tmp_path / "undisturbed"
  finish(sweep(local, *flags, "--jobs=2"))
  there = tmp_path / "slurm"
  flags += ["--cluster=slurm", "--partition=low", "--time=5"]
  first = sweep(there, *flags)
  runs = [there / "rl.q_learning" / f"seed={seed}" for seed in (0, 1)]
  _wait(lambda: all(read_metrics(run / "metrics.jsonl") for run in runs))
  numbers = [json.loads((run / "slurm.json").read_text())["job"] for run in runs]
  assert numbers[0].endswith("_0") and numbers[1].endswith("_1")  # one array
  first.send_signal(signal.SIGINT)
  out, err = finish(first, code=128 + signal.SIGINT)
  assert f"to take them out: scancel {numbers[0].partition('_')[0]}" in err

  slurm_command("scancel", "--signal=USR2", numbers[0])
  slurm_command("scontrol", "requeue", numbers[1])
  second = sweep(there, *flags)
  resumed = lambda run: (run / "stderr.log").read_text().count("resumed from step")
  progress = lambda run: len(read_metrics(run / "metrics.jsonl"))
  _wait(lambda: all(resumed(run) == 1 for run in runs))
  before = [progress(run) for run in runs]
  _wait(lambda: all(progress(run) > count for run, count in zip(runs, before)))
  slurm_command("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
  out, _ = finish(second)
  assert "2 of 2 runs finished" in out
  for run in runs:
    assert "stopped by SIGTERM" in (run / "stderr.log").read_text() and resumed(run) == 2
    undisturbed = local / "rl.q_learning" / run.name
    assert (run / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    np.testing.assert_array_equal(final_table(run), final_table(undisturbed))
  assert "stopped by SIGUSR2" in (runs[0] / "stderr.log").read_text()
  assert numbers == [json.loads((run / "slurm.json").read_text())["job"] for run in runs]  # nothing submitted twice


def test_a_cancelled_job_stays_out_and_the_state_is_kept(sweep, slurm_command, tmp_path):
  process = sweep(tmp_path, "--experiment=rl.q_learning", f"--fixed={LONG}", "--cluster=slurm", "--time=5")
  run = tmp_path / "rl.q_learning"
  _wait(lambda: read_metrics(run / "metrics.jsonl"))
  slurm_command("scancel", json.loads((run / "slurm.json").read_text())["job"])
  out, _ = finish(process, code=1)
  assert "0 of 1 runs finished" in out and "stopped rl.q_learning" in out
  assert "the same command goes on" in (run / "stderr.log").read_text() and any((run / "checkpoints").glob("[0-9]*"))


def test_runs_as_rows_are_one_job(sweep, tmp_path):
  out, _ = finish(sweep(tmp_path / "rows", "--experiment=rl.sarsa", f"--fixed={SHORT}", "--vectorize",
                        "--grid=learning_rate=.1,.5; seed=0,3", "--cluster=slurm", "--time=5"))  # fmt: skip
  assert "4 to run in 1 job (" in out and "4 of 4 runs finished" in out
  assert len(list((tmp_path / "rows" / "slurm").glob("*_submission.sh"))) == 1


def test_a_job_of_two_nodes_is_one_run(sweep, tmp_path):
  """A process on each node, which find each other by Slurm's variables and train a seed each: as one process does."""
  flags = ["--experiment=rl.sarsa", f"--fixed={SHORT.replace('--devices=1', '--seeds=2')}"]
  finish(sweep(tmp_path / "one", *flags))
  finish(sweep(tmp_path / "two", *flags, "--cluster=slurm", "--nodes=2", "--time=5"))
  one, two = (tmp_path / name / "rl.sarsa" for name in ("one", "two"))
  assert (two / "stderr.log.1").exists() and "finished:" not in (two / "stdout.log.1").read_text()  # one writes
  assert "2 x cpu in 2 processes" in json.loads((two / "result.json").read_text())["device"]
  measured = [read_metrics(run / "metrics.jsonl") for run in (one, two)]
  assert len(measured[0]) >= 2 and measured[0] == measured[1]


@pytest.mark.parametrize("flag, words", [("--partition=nope", "partition"), ("--sbatch=frobnicate=1", "frobnicate")])
def test_what_slurm_does_not_take_is_said_before_anything_is_made(flag, words, sweep, tmp_path):
  workdir = tmp_path / "runs"
  _, err = finish(sweep(workdir, "--experiment=rl.q_learning", "--cluster=slurm", flag), code=2)
  assert err.startswith("error: Slurm takes no such job") and words in err and "Traceback" not in err
  assert not workdir.exists()


def _wait(condition, seconds=300):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.2)
