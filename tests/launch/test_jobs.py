"""How jobs run on this machine: with stand-ins for experiments, and one real experiment for Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from launch.jobs import Job, last_line, last_words, lock, release, run_debug, run_local
from launch.table import Table, describe, summary
from mlnotes.engine.errors import InputError
from mlnotes.engine.record import read_metrics

ROOT = Path(__file__).parents[2]


class Stub(NamedTuple):
  """Stands for a run; it is finished where its script has written `done`."""

  directory: Path
  experiment: str = "stub"
  config: object = None

  def finished(self):
    return (self.directory / "done").exists()


class Script(Job):
  """A job whose process is a line of Python in the work directory."""

  @property
  def command(self):
    return [sys.executable, "-c", f"import os, time, sys, signal; os.chdir({str(self.directory)!r}); {self.flags[0]}"]


def make_jobs(tmp_path, *scripts):
  jobs = []
  for i, script in enumerate(scripts):
    directory = tmp_path / str(i)
    jobs.append(Script(str(i), (Stub(directory),), directory, (script,)))
  return jobs


def quietly():
  pass


DONE = "open('done', 'w').close()"


def test_jobs_run_side_by_side_and_failures_are_told(tmp_path, capsys):
  jobs = make_jobs(
    tmp_path, f"time.sleep(1); {DONE}", f"time.sleep(1); {DONE}",
    "print('to the log', file=sys.stderr); print('error: it broke', file=sys.stderr); sys.exit(2)", "sys.exit(0)", DONE,
  )  # fmt: skip
  started = time.monotonic()
  run_local(jobs, 5, 0, Table(jobs), interval=0.05)
  assert time.monotonic() - started < 6
  assert [job.state for job in jobs] == ["finished", "finished", "failed", "failed", "finished"]
  assert jobs[2].note == "error: it broke" and "no word" in jobs[3].note
  assert "to the log" in (jobs[2].directory / "stderr.log").read_text()
  text = summary(jobs, skipped=2)
  assert text.startswith("5 of 7 runs finished, 2 of them before")
  assert f"failed 2: error: it broke\n  log: {tmp_path}/2/stderr.log" in text
  assert re.search(r"^finished  4  \d s$", capsys.readouterr().err, re.MULTILINE)


def test_no_more_than_asked_for_at_once(tmp_path):
  counts = []
  jobs = make_jobs(tmp_path, *[f"time.sleep(.3); {DONE}"] * 4)
  run_local(jobs, 2, 0, lambda: counts.append(sum(job.state == "running" for job in jobs)), interval=0.02)
  assert max(counts) == 2 and all(job.state == "finished" for job in jobs)


def test_each_job_gets_its_own_gpus(tmp_path, monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
  jobs = make_jobs(tmp_path, *["open('done', 'w').write(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(.5)"] * 2)
  run_local(jobs, 2, 2, quietly)
  assert {(job.directory / "done").read_text() for job in jobs} == {"4,5", "6,7"}


def test_a_job_stopped_by_a_signal_is_no_failure(tmp_path):
  jobs = make_jobs(
    tmp_path, "os.kill(os.getpid(), signal.SIGTERM)", "sys.exit(143)", "os.kill(os.getpid(), signal.SIGKILL)"
  )
  run_local(jobs, 3, 0, quietly)
  assert [job.state for job in jobs] == ["stopped", "stopped", "failed"]


def test_an_interrupt_stops_all_and_waits_for_them(tmp_path):
  save = "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(.3), open('saved', 'w'), os._exit(143)))"
  jobs = make_jobs(tmp_path, *[f"{save}; open('up', 'w'); time.sleep(60)"] * 2, DONE)

  def interrupt():
    if all((job.directory / "up").exists() and job.note != "stopping" for job in jobs[:2]):
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run_local(jobs, 2, 0, interrupt)
  assert [job.state for job in jobs] == ["stopped", "stopped", "waiting"]
  assert all((job.directory / "saved").exists() for job in jobs[:2])


def test_a_directory_belongs_to_one_process_at_a_time(tmp_path):
  """Also where the sweep that started it is gone: its process holds the lock."""
  jobs = make_jobs(tmp_path, DONE, DONE)
  jobs[0].prepare()
  held = lock(jobs[0].directories)
  orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=held)
  release(held)
  try:
    run_local(jobs, 2, 0, quietly)
    assert [job.state for job in jobs] == ["elsewhere", "finished"]
  finally:
    orphan.kill()
    orphan.wait()
  run_local(jobs[:1], 1, 0, quietly)
  assert jobs[0].state == "finished"


def test_what_another_sweep_finishes_meanwhile_is_finished(tmp_path):
  jobs = make_jobs(tmp_path, "sys.exit(1)", f"time.sleep(1); {DONE}")
  jobs[0].prepare()
  held = lock(jobs[0].directories)

  def finish_elsewhere():
    if jobs[1].state == "running" and held:
      assert jobs[0].state == "elsewhere"
      (jobs[0].directory / "done").touch()
      release(held)
      held.clear()

  run_local(jobs, 1, 0, finish_elsewhere)
  assert [job.state for job in jobs] == ["finished", "finished"] and "2 of 2" in summary(jobs, 0)


def test_a_directory_that_others_have_taken_fails_alone(tmp_path):
  class Taken(Stub):
    def finished(self):
      if (self.directory / "taken").exists():
        raise InputError("belongs to a run with other settings")
      return super().finished()

  jobs = make_jobs(tmp_path, f"time.sleep(1); {DONE}", DONE)
  jobs[1].runs = (Taken(jobs[1].directory),)
  jobs[1].prepare()
  (jobs[1].directory / "taken").touch()
  run_local(jobs, 2, 0, quietly)
  assert [job.state for job in jobs] == ["finished", "failed"]
  assert "1 of 2" in summary(jobs, 0) and "other settings" in summary(jobs, 0)


def test_a_narrow_terminal_shows_how_far_a_run_is(tmp_path):
  (job,) = make_jobs(tmp_path, DONE)
  job.name, job.state, job.note = "rl.ppo/" + "x" * 60 + ",seed=3", "failed", "error: no memory"
  line = describe(job, 60)
  assert len(line) == 60 and line.startswith("failed    rl.ppo/xx") and line.endswith(",seed=3  error: no memory")
  assert describe(job) == f"failed    {job.name}  error: no memory"


def test_debug_stops_at_the_first_failure_and_shows_it(tmp_path, capfd):
  jobs = make_jobs(tmp_path, DONE, "print('in full'); 1 / 0", DONE)
  run_debug(jobs)
  assert [job.state for job in jobs] == ["finished", "failed", "waiting"]
  shown = capfd.readouterr()
  assert "in full" in shown.out and "ZeroDivisionError" in shown.err


@pytest.mark.parametrize("message", ["no luck", "no luck\nat all"])
def test_the_last_words_are_the_error_and_not_what_is_noted_below_it(tmp_path, message):
  """By a process that ends as Python ends it, with a note such as JAX adds."""
  code = (
    "import sys\nprint('to the log', file=sys.stderr)\n"
    "try:\n  1 / 0\nexcept ZeroDivisionError as first:\n"
    f"  error = ValueError({message!r})\n  error.add_note('-' * 20 + '\\nFor simplicity, frames were removed.')\n"
    "  raise error from first"
  )
  log = tmp_path / "stderr.log"
  with log.open("wb") as file:
    assert subprocess.run([sys.executable, "-c", code], stderr=file, check=False).returncode == 1
  assert last_line(log) == "For simplicity, frames were removed." and last_words(log) == "ValueError: no luck"
  with log.open("a") as file:  # a later attempt, with words of its own
    file.write("error: --learning_rate=-1 is out of range\n")
  assert last_words(log) == "error: --learning_rate=-1 is out of range"
  assert last_words(tmp_path / "none") == ""


def test_last_line(tmp_path):
  assert last_line(tmp_path / "none") == ""
  (tmp_path / "log").write_bytes(b"x" * 200_000 + b"\nfirst\rlast\xff\n\n")
  assert last_line(tmp_path / "log") == "last\N{REPLACEMENT CHARACTER}"


FLAGS = (
  "--steps=20000000 --steps_per_update=50 --env=FrozenLake-v1 --log_every=20000 --eval_every=0 --checkpoint_every=0"
)
FLAGS += " --nogif --gym_episodes=0 --notensorboard"


@pytest.mark.thorough
def test_ctrl_c_saves_and_a_second_sweep_keeps_off(tmp_path):
  """A real run is interrupted; the same command would go on from the step that it has reached."""
  command = [
    sys.executable,
    "-m",
    "launch.sweep",
    "--experiment=rl.q_learning",
    f"--fixed={FLAGS}",
    f"--workdir={tmp_path}",
  ]
  env = {**os.environ, "XLA_FLAGS": ""}
  options = dict(cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  first = subprocess.Popen(command, **options)
  metrics = tmp_path / "rl.q_learning" / "metrics.jsonl"
  while first.poll() is None and not read_metrics(metrics):
    time.sleep(0.05)
  second = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
  assert second.returncode == 1 and "elsewhere rl.q_learning: another process is at it" in second.stdout
  first.send_signal(signal.SIGINT)
  out, err = first.communicate(timeout=60)
  assert first.returncode == 130 and "0 of 1 runs finished" in out and "stopped rl.q_learning" in out, err
  step = read_metrics(metrics)[-1]["step"]
  saved = [int(path.name) for path in (tmp_path / "rl.q_learning" / "checkpoints").glob("[0-9]*")]
  assert saved and 0 <= saved[0] - step < 20000 and saved[0] < 20_000_000
  assert not (tmp_path / "rl.q_learning" / "result.json").exists()
  assert json.loads((tmp_path / "rl.q_learning" / "config.json").read_text())["config"]["steps"] == 20_000_000
