"""Real processes on this machine that train as one: same numbers, clear ends, exact resume."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from launch.processes import Config, find_free_port, make_environments
from mlnotes.engine.record import read_metrics

ROOT = Path(__file__).parents[2]
EXPERIMENT = [sys.executable, str(ROOT / "tests" / "softmax_regression.py"), "--notensorboard", "--learning_rate=0.01"]
FLAGS = ["--steps=60", "--log_every=5", "--eval_every=30", "--checkpoint_every=10"]
# Long enough to be interrupted.
LONG = ["--steps=400", "--log_every=5", "--eval_every=100", "--checkpoint_every=10"]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
  cache = tmp_path_factory.mktemp("cache")
  return {**os.environ, "MLNOTES_CACHE": str(cache), "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "TERM": "dumb"}


def launch(environment, processes, devices, *command):
  """`command` in some processes of some devices each, under the launcher."""
  layout = [f"--processes={processes}", f"--devices_per_process={devices}"]
  return subprocess.run(
    [sys.executable, "-m", "launch.processes", *layout, "--", *command],
    env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240,
  )  # fmt: skip


def start_by_hand(environment, processes, devices, *command):
  """As two shells, or srun, would start them: nobody watches over them."""
  config = Config(processes=processes, devices_per_process=devices)
  return [
    subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for env in make_environments(config, find_free_port(), environment)
  ]


def wait_until_it_trains(processes, workdir):
  deadline = time.monotonic() + 200
  while len(read_metrics(workdir / "metrics.jsonl")) < 5 and time.monotonic() < deadline:
    assert all(process.poll() is None for process in processes), processes[0].communicate()[1]
    time.sleep(0.01)


def losses(workdir, name="train/loss"):
  return [line[name] for line in read_metrics(workdir / "metrics.jsonl") if name in line]


def last_line(text):
  return text.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def undisturbed(environment, tmp_path_factory):
  """The long run on 2 processes of 2 devices."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  done = launch(environment, 2, 2, *EXPERIMENT, *LONG, f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  return workdir


@pytest.mark.thorough
def test_processes_share_the_devices_and_change_no_number(environment, tmp_path):
  """Eight devices in one process, in two that stream the data, in four: the last two to the bit."""
  for name, processes, devices, flags in [
    ("one", 1, 8, []), ("two", 2, 4, ["--data_placement=stream"]), ("four", 4, 2, ["--fsdp=2"])
  ]:  # fmt: skip
    done = launch(environment, processes, devices, *EXPERIMENT, *FLAGS, *flags, f"--workdir={tmp_path / name}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / name / "result.json").read_text())["finished"]
    assert done.stdout.count("finished:") == 1  # one process writes
  one, two, four = (losses(tmp_path / name) for name in ("one", "two", "four"))
  assert len(one) == 12
  np.testing.assert_array_equal(two, four)
  np.testing.assert_allclose(one, two, rtol=2e-5)


@pytest.mark.thorough
def test_seeds_are_streamed_to_the_process_that_trains_them(environment, tmp_path):
  flags = ["--steps=20", "--log_every=5", "--seeds=2"]
  for processes, more in ((1, []), (2, ["--data_placement=stream"])):
    done = launch(environment, processes, 1, *EXPERIMENT, *flags, *more, f"--workdir={tmp_path / str(processes)}")
    assert done.returncode == 0, done.stderr
  alone, shared = (losses(tmp_path / name, "train/loss/seeds") for name in "12")
  assert len(alone) == 4 and all(first != second for first, second in alone)
  np.testing.assert_allclose(alone, shared, rtol=1e-5)


@pytest.mark.processes
def test_a_killed_process_ends_the_others_and_the_run_resumes_to_the_bit(environment, undisturbed, tmp_path):
  command = [*EXPERIMENT, *LONG, f"--workdir={tmp_path}"]
  processes = start_by_hand(environment, 2, 2, *command)
  wait_until_it_trains(processes, tmp_path)
  processes[1].kill()
  stderr, _ = (process.communicate(timeout=60)[1] for process in processes)
  assert processes[0].returncode == 1
  assert last_line(stderr).startswith("error: process 0 of 2 has lost another one"), stderr
  assert "Traceback" not in stderr
  done = launch(environment, 2, 2, *command)
  assert done.returncode == 0, done.stderr
  assert "resumed from step" in done.stderr
  assert (tmp_path / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


@pytest.mark.processes
def test_a_signal_to_one_stops_all_at_one_step_and_one_process_goes_on(environment, undisturbed, tmp_path):
  command = [*EXPERIMENT, *LONG, f"--workdir={tmp_path}"]
  processes = start_by_hand(environment, 4, 1, *command)
  wait_until_it_trains(processes, tmp_path)
  processes[3].send_signal(signal.SIGTERM)
  stderr = [process.communicate(timeout=100)[1] for process in processes]
  assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 4, stderr
  assert "stopped by SIGTERM at step" in stderr[0]
  done = launch(environment, 1, 1, *command)
  assert done.returncode == 0, done.stderr
  assert "resumed from step" in done.stderr
  np.testing.assert_allclose(losses(tmp_path), losses(undisturbed), rtol=2e-5)


CHILD = """
import os, signal, sys, time
from pathlib import Path
place = Path(sys.argv[1]) / os.environ["JAX_PROCESS_ID"]
def note(number, frame):
  place.with_suffix(".signal").write_text(str(number))
  sys.exit(128 + number)
for name in sys.argv[2:]:
  signal.signal(getattr(signal, name), note)
place.write_text(str(os.getpid()))
time.sleep(60)
"""
HEED = """
import os, signal, sys
end = sys.argv.index("--")
for name in sys.argv[1:end]:
  signal.signal(getattr(signal, name), signal.SIG_DFL)
os.execv(sys.argv[end + 1], sys.argv[end + 1:])
"""
ENDING = ["SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR2", "SIGTERM"]


@contextlib.contextmanager
def watched_children(environment, directory, *handled, launcher=(), child=CHILD):
  """(launcher, pids) of two children that handle some signals and otherwise sleep."""
  layout = ["-m", "launch.processes", "--processes=2", "--seconds_to_end=1", "--"]
  command = [*launcher, sys.executable, *layout, sys.executable, "-c", child, str(directory), *handled]
  heed = [sys.executable, "-c", HEED, *ENDING, "--"]  # though the tests may not; a child's own code would have to fork
  process = subprocess.Popen([*heed, *command], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
  places = [directory / "0", directory / "1"]
  try:
    wait_for(lambda: all(place.exists() and place.read_text() for place in places))
    yield process, [int(place.read_text()) for place in places]
  finally:
    process.kill()
    process.communicate(timeout=60)


def wait_for(what, seconds=60):
  deadline = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def is_gone(pid):
  try:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
  except FileNotFoundError:
    return True


@pytest.mark.parametrize("name", ENDING)
def test_every_signal_that_ends_the_launcher_reaches_the_children(name, environment, tmp_path):
  with watched_children(environment, tmp_path, *ENDING) as (launcher, pids):
    number = getattr(signal, name)
    launcher.send_signal(number)
    assert launcher.wait(timeout=30) == 128 + number
    assert all(is_gone(pid) for pid in pids)
    assert [(tmp_path / f"{i}.signal").read_text() for i in range(2)] == [str(int(number))] * 2


def test_a_killed_launcher_takes_its_children_along(environment, tmp_path):
  """They get SIGTERM, and where they do not end by it SIGKILL."""
  deaf = CHILD.replace("sys.exit(128 + number)", "pass")
  with watched_children(environment, tmp_path, "SIGTERM", child=deaf) as (launcher, pids):
    launcher.kill()
    wait_for(lambda: (tmp_path / "0.signal").exists() and all(is_gone(pid) for pid in pids), 20)


def test_a_hangup_that_nohup_ignores_stays_ignored(environment, tmp_path):
  ignore = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
  ignoring = [sys.executable, "-c", ignore]
  with watched_children(environment, tmp_path, "SIGTERM", launcher=ignoring) as (launcher, pids):
    launcher.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert launcher.poll() is None and not any(is_gone(pid) for pid in pids)
    launcher.terminate()
    assert launcher.wait(timeout=30) == 128 + signal.SIGTERM


def test_the_launcher_says_what_is_wrong(environment):
  done = launch(environment, 2, 1)
  assert done.returncode == 2 and "found no command" in last_line(done.stderr)
  done = launch(environment, 0, 1, "true")
  assert done.returncode == 2 and "--processes=0" in last_line(done.stderr)
  done = launch(environment, 2, 1, "no-such-program")
  assert done.returncode == 2 and "no-such-program cannot be run" in last_line(done.stderr)
  command = "import os, sys; sys.exit(3 * (os.environ['JAX_PROCESS_ID'] == '1'))"
  done = launch(environment, 2, 1, sys.executable, "-c", command)
  assert done.returncode == 1 and "process 1 of 2 ended with exit code 3" in last_line(done.stderr)
  done = launch(environment, 2, 1, sys.executable, "-c", "raise SystemExit(4)")
  assert done.returncode == 4 and "ended with" not in done.stderr


@pytest.mark.processes
def test_three_experiments_train_alike(environment, tmp_path):
  """Ten updates and an evaluation of diffusion, SimCLR and PPO on eight devices, whatever process holds them."""
  outcomes = []
  script = str(ROOT / "tests" / "launch" / "three_experiments.py")
  for processes in (1, 2, 4):
    out = tmp_path / f"{processes}.json"
    done = launch(environment, processes, 8 // processes, sys.executable, script, str(out), "10")
    assert done.returncode == 0, done.stderr
    outcomes.append(json.loads(out.read_text()))
  one, *others = outcomes
  for other in others:
    assert other["rl.ppo"] == one["rl.ppo"]  # a device trains whole seeds: nothing is added up across devices
    for name, lines in one.items():
      for a, b in zip(lines, other[name]):
        assert a.keys() == b.keys()
        for metric in a:
          np.testing.assert_allclose(a[metric], b[metric], rtol=2e-5, atol=1e-9, err_msg=f"{name} {metric}")
