"""Jobs: one process each, for one run or for several as rows of one program; and their execution on this machine.

A job holds a lock on the directories of its runs for as long as its process lives, so that two sweeps never write to
the same one.
"""

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from launch.plan import Run
from mlnotes.engine.errors import InputError
from mlnotes.engine.sharding import count_cores

State = Literal["waiting", "running", "finished", "failed", "stopped", "elsewhere"]
# A training run that was asked to stop has saved its state; before its handlers are there, nothing is lost either.
STOPPED = {code for n in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT) for code in (128 + n, -n)}
OUT, ERR, LOCK = "stdout.log", "stderr.log", ".lock"


@dataclasses.dataclass
class Job:
  """`directory` has the logs; `flags` are those of the experiment; `state` and `note` change while it runs.

  `rows` is the text of the file that names its runs, where it has several; `ticket` its number on a cluster; `log` the
  file to look into where it fails.

  stopped: by a signal, its state saved. elsewhere: another process is at it.
  """

  name: str
  runs: tuple[Run, ...]
  directory: Path
  flags: tuple[str, ...]
  rows: str = ""
  ticket: str = ""
  state: State = "waiting"
  note: str = ""
  log: Path | None = None
  started: float = 0.0
  seconds: float = 0.0

  @property
  def command(self) -> list[str]:
    return [sys.executable, *self.runs[0].program, *self.flags]

  @property
  def directories(self) -> list[Path]:
    return sorted({self.directory, *(run.directory for run in self.runs)})

  @property
  def steps(self) -> int:
    return getattr(self.runs[0].config, "steps", 0)

  def step(self) -> int:
    """The last update in metrics.jsonl; 0 where there is none."""
    line = last_line(self.runs[0].directory / "metrics.jsonl")
    try:
      return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
      return 0

  def prepare(self) -> None:
    for directory in self.directories:
      directory.mkdir(parents=True, exist_ok=True)
    if self.rows:
      (self.directory / "rows.json").write_text(self.rows, encoding="utf-8")

  def look(self) -> None:
    """Its state by the directories of its runs: finished, failed where others have taken one, else as it was."""
    try:
      if all(run.finished() for run in self.runs):
        self.state, self.note = "finished", ""
    except InputError as error:
      self.state, self.note = "failed", str(error)

  def count_finished(self) -> int:
    try:
      return sum(bool(run.finished()) for run in self.runs)
    except InputError:  # said by `look`
      return 0

  def settle(self, code: int | None) -> None:
    """What became of it, by the result cards of its runs; `code` is how its process ended, where that is known."""
    self.seconds = time.monotonic() - self.started if self.started else 0.0
    self.look()
    if self.state == "finished" and self.rows:  # each run has its own by now
      shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)
    if self.state in ("finished", "failed"):
      return
    self.state = "stopped" if code in STOPPED else "failed"
    self.log = self.directory / ERR
    words = [f"{self.count_finished()} of {len(self.runs)} runs finished"] if len(self.runs) > 1 else []
    if code is None:
      words.append("gone, as when it is cancelled or killed")
    elif code < 0:
      words.append(f"ended by {signal.Signals(-code).name}")
    self.note = "; ".join([*words, last_words(self.log) or f"no word, exit code {code}"])


def last_line(path: Path) -> str:
  """The last line of a file that is not empty; "" where there is none."""
  return next((line.strip() for line in reversed(_last_lines(path)) if line.strip()), "")


# What comes after an exception's first line, the rest of its message and the notes that libraries add, is no longer.
_LONGEST_MESSAGE = 60


def last_words(path: Path) -> str:
  """What a process that failed has said of it at the end of its log: the line of the exception that has ended it, else
  the last line; "" where there is none.

  Below that exception may stand more of its message and notes, such as JAX's about its traceback.
  """
  return error_line(_last_lines(path))


def error_line(lines: Sequence[str]) -> str:
  """`last_words` of what a process has printed."""
  last = next((line.strip() for line in reversed(lines) if line.strip()), "")
  head = "Traceback (most recent call last):"
  start = max((i for i, line in enumerate(lines) if line.startswith(head)), default=None)
  if start is None or last.startswith("error:"):
    return last
  said = [line for line in lines[start + 1 :] if line.strip()]
  first = next((i for i, line in enumerate(said) if not line[0].isspace()), None)
  return last if first is None or len(said) - first > _LONGEST_MESSAGE else said[first].strip()


def _last_lines(path: Path, size: int = 1 << 16) -> list[str]:
  try:
    with path.open("rb") as file:
      file.seek(max(0, os.fstat(file.fileno()).st_size - size))
      return file.read().decode(errors="replace").replace("\r", "\n").splitlines()
  except OSError:
    return []


def lock(directories: Sequence[Path]) -> list[int] | None:
  """File descriptors that hold the directories while a process has them open; None where another one does."""
  held = []
  for directory in directories:
    held.append(os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666))
    try:
      fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      release(held)
      return None
  return held


def release(held: Sequence[int]) -> None:
  for descriptor in held:
    os.close(descriptor)


def start(job: Job, held: Sequence[int], env: dict[str, str] | None = None) -> subprocess.Popen:
  """Its process in a session of its own, with the logs appended to; it inherits the locks."""
  with (job.directory / OUT).open("ab") as out, (job.directory / ERR).open("ab") as err:
    return subprocess.Popen(
      job.command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, pass_fds=held, start_new_session=True
    )


def count_gpus() -> int:
  """The NVIDIA GPUs that a job may have: those of CUDA_VISIBLE_DEVICES, else those of the machine."""
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible is not None:
    return len([name for name in visible.split(",") if name.strip()])
  try:
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
  except (OSError, subprocess.TimeoutExpired):
    return 0
  return sum(line.startswith("GPU ") for line in listed.splitlines())


def _environment(slot: int, gpus: int, parallel: int) -> dict[str, str]:
  """Of one of `parallel` jobs at once: its share of the cores, and of the GPUs where they have `gpus` each.

  These are those of number `slot`, out of CUDA_VISIBLE_DEVICES where that is set.
  """
  environ = dict(os.environ)
  if parallel > 1:
    environ["NPROC"] = str(max(1, count_cores() // parallel))
  if gpus:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range((slot + 1) * gpus)]
    environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[slot * gpus : (slot + 1) * gpus])
  return environ


def run_local(jobs: Sequence[Job], parallel: int, gpus: int, watch: Callable[[], None], interval: float = 0.2) -> None:
  """Runs the jobs, `parallel` at once. KeyboardInterrupt stops them all, saved; a second one at once.

  Those that another process is at have another turn after the others.
  """
  waiting, running, free, again = list(jobs), {}, list(range(parallel)), True
  try:
    while waiting or running or again:
      if not (waiting or running):
        waiting, again = [job for job in jobs if job.state == "elsewhere"], False
      while waiting and free:
        job = waiting.pop(0)
        job.prepare()
        held = lock(job.directories)
        if held is None:
          job.state, job.note = "elsewhere", "another process is at it"
          continue
        job.look()  # another process may have been at it meanwhile
        if job.state in ("finished", "failed"):
          release(held)
          continue
        slot = free.pop(0)
        job.state, job.started = "running", time.monotonic()
        running[slot] = job, start(job, held, _environment(slot, gpus, parallel))
        release(held)
      for slot, (job, process) in list(running.items()):
        if process.poll() is not None:
          job.settle(process.returncode)
          del running[slot]
          free.append(slot)
      watch()
      if running:
        time.sleep(interval)
  except KeyboardInterrupt:
    _stop(list(running.values()), watch)
    raise


def _stop(running: Sequence[tuple[Job, subprocess.Popen]], watch: Callable[[], None]) -> None:
  try:
    for _, process in running:
      process.terminate()
    for job, process in running:
      job.note = "stopping"
      watch()
      job.settle(process.wait())
  except KeyboardInterrupt:
    for job, process in running:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        job.settle(process.wait())
  watch()


def run_debug(jobs: Sequence[Job]) -> None:
  """One job after the other on this terminal, up to the first that fails; breakpoint() works in them."""
  for job in jobs:
    job.prepare()
    held = lock(job.directories)
    if held is None:
      job.state, job.note = "elsewhere", "another process is at it"
      continue
    job.state, job.started = "running", time.monotonic()
    print(f"--- {job.name}", file=sys.stderr, flush=True)
    process = subprocess.Popen(job.command, pass_fds=held)
    release(held)
    try:
      code = process.wait()
    except KeyboardInterrupt:  # the process got it as well
      code = process.wait()
    job.settle(code)
    if job.state != "finished":
      job.note = f"ended with code {code}, see above"
      break
