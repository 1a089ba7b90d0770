"""Jobs on a Slurm cluster: arrays through submitit; what runs on the nodes; what the queue says.

Slurm warns a job before its time is over (SIGUSR2, `--grace` seconds ahead) or when another one takes its place
(SIGTERM). Each experiment saves its state on either and ends, and the job goes back into the queue, where the same
command goes on with the same bits. A job of several nodes or tasks is one `srun` of as many processes of the
experiment, which find each other by Slurm's variables.

This module is imported on the nodes and stays light.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.jobs import ERR, OUT, STOPPED, Job, last_words, lock, release
from mlnotes.engine.errors import InputError

TICKET = "slurm.json"
# Jobs of one array; Slurm's own limit, MaxArraySize, is 1001 where nobody changed it.
LONGEST_ARRAY = 1000
SECONDS_BETWEEN_LOOKS = 2.0
# What submitit makes of its own accord.
_NOT_SBATCH = ("additional_parameters", "array_parallelism", "signal_delay_s")


def require_slurm() -> None:
  """Raises InputError where this machine cannot submit."""
  missing = [name for name in ("sbatch", "squeue", "scontrol", "srun") if shutil.which(name) is None]
  if missing:
    raise InputError(f"--cluster=slurm needs Slurm: {missing[0]} is not on this machine; expected a login node of one.")


def ask(*command: str) -> tuple[int, str]:
  """(exit code, output and errors) of one of Slurm's commands; a controller that is away counts as an error."""
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
  except (OSError, subprocess.TimeoutExpired) as error:
    return 1, str(error)
  return done.returncode, (done.stdout + done.stderr).strip()


# -- on a node ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Task:
  """What each task of a Slurm job does: runs the experiment, and lets the job go on later where it was stopped."""

  command: tuple[str, ...]
  directory: Path
  directories: tuple[Path, ...]
  requeues: int

  def __call__(self) -> int:
    import submitit

    rank = int(os.environ.get("SLURM_PROCID", 0))
    suffix = f".{rank}" if rank else ""
    submitit.JobEnvironment().paths.result_pickle.unlink(missing_ok=True)  # of the time before it was put back
    held = lock(self.directories) if rank == 0 else []
    if held is None:
      raise RuntimeError(f"another process is at {self.directory}")
    # Slurm signals every process of a step, as far as it knows them: hand on what the experiment may have missed.
    children = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
      signal.signal(number, lambda number, _: [child.send_signal(number) for child in children])
    with (self.directory / (OUT + suffix)).open("ab") as out, (self.directory / (ERR + suffix)).open("ab") as err:
      process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=held)
    release(held)
    children.append(process)
    code = process.wait()
    if code in STOPPED and rank == 0:
      self._requeue()
    return code

  def _requeue(self) -> None:
    """Back into the queue, unless somebody has cancelled the job, or the queue has taken it back itself."""
    # Not SLURM_JOB_ID: one element of an array has that of the whole array.
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{element}" if array else os.environ["SLURM_JOB_ID"]
    state = ask("squeue", "-h", "-j", job, "-o", "%T")[1]
    if state != "RUNNING":
      print(f"job {job} is {state or 'gone'}: not put back into the queue", flush=True)
    elif int(os.environ.get("SLURM_RESTART_COUNT", 0)) >= self.requeues:
      print(f"job {job} was put back {self.requeues} times: that was --requeues", flush=True)
    else:
      print(f"job {job} goes back into the queue", *ask("scontrol", "requeue", job), flush=True)


# -- on the login node -------------------------------------------------------------------------------------------------


def check_options(options: Mapping[str, Any]) -> None:
  """Raises InputError with Slurm's reason where it takes no job with these options, such as an unknown partition."""
  extra = options.get("additional_parameters", {})
  plain = {k.replace("_", "-"): v for k, v in {**options, **extra}.items() if k not in _NOT_SBATCH}
  arguments = [f"--{name}" if value is True else f"--{name}={value}" for name, value in plain.items()]
  code, text = ask("sbatch", "--test-only", *arguments, "--wrap=true")
  if code:
    reasons = [line for line in text.splitlines() if not line.startswith("Try ")] or ["sbatch failed"]
    raise InputError(f"Slurm takes no such job: {reasons[-1].rstrip('.')}.")


def submit(jobs: Sequence[Job], folder: Path, options: Mapping[str, Any], requeues: int) -> None:
  """Submits the jobs in arrays and leaves in each directory the ticket with its number."""
  import submitit

  for i in range(0, len(jobs), LONGEST_ARRAY):
    part = jobs[i : i + LONGEST_ARRAY]
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(**options)
    for job in part:
      job.prepare()
    tasks = [
      Task(tuple(job.command), job.directory.absolute(), tuple(d.absolute() for d in job.directories), requeues)
      for job in part
    ]
    for job, ticket in zip(part, executor.submit_array(tasks)):
      job.ticket = ticket.job_id
      for directory in job.directories:
        (directory / TICKET).write_text(json.dumps({"job": ticket.job_id}) + "\n", encoding="utf-8")


def find_submitted(jobs: Sequence[Job]) -> None:
  """Gives the jobs that an earlier sweep has submitted, and that are still in the queue, their numbers.

  Raises InputError where the controller does not answer: it could not be known what would be submitted twice.
  """
  tickets = {}
  for job in jobs:
    for directory in job.directories:
      try:
        tickets.setdefault(json.loads((directory / TICKET).read_text(encoding="utf-8"))["job"], []).append(job)
      except (OSError, ValueError, KeyError, TypeError):
        continue
  found = look(tickets)
  if found is None:
    raise InputError("--cluster=slurm: squeue does not answer, and earlier jobs may be in the queue; try again later.")
  for number in found:
    for job in tickets[number]:
      job.ticket = number


def look(numbers: Sequence[str] | Mapping[str, Any]) -> dict[str, tuple[str, str]] | None:
  """{number: (state, reason)} of those that are in the queue; None where the controller does not answer."""
  arrays = sorted({number.partition("_")[0] for number in numbers})
  if not arrays:
    return {}
  code, text = ask("squeue", "-h", "-r", "-t", "all", "-j", ",".join(arrays), "-o", "%i|%T|%r")
  if code and "Invalid job id" not in text:
    return None
  rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
  over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")
  return {number: (state, reason) for number, state, reason in rows if number in numbers and state not in over}


def follow(jobs: Sequence[Job], folder: Path, watch: Callable[[], None]) -> None:
  """Updates the states of submitted jobs until none is in the queue.

  KeyboardInterrupt ends the following alone; the same command follows them again.
  """
  seen_gone: dict[str, int] = {}
  while True:
    open_jobs = [job for job in jobs if job.state in ("waiting", "running")]
    if not open_jobs:
      return
    queue = look([job.ticket for job in open_jobs])
    for job in open_jobs if queue is not None else ():
      state, reason = queue.get(job.ticket, ("", ""))
      if state in ("RUNNING", "COMPLETING", "SUSPENDED"):
        job.started = job.started or time.monotonic()
        job.state, job.note = "running", ""
      elif state:
        job.state, job.note = "waiting", f"job {job.ticket}: {reason or state}"
      else:
        seen_gone[job.ticket] = seen_gone.get(job.ticket, 0) + 1
        # Twice, because files written on another node may arrive late.
        if all(run.finished() for run in job.runs) or seen_gone[job.ticket] > 1:
          _settle(job, folder)
    watch()
    if any(job.state in ("waiting", "running") for job in jobs):
      time.sleep(SECONDS_BETWEEN_LOOKS)


def _settle(job: Job, folder: Path) -> None:
  """Settles a job by how its first task ended, where that lived to say so."""
  from submitit.core.utils import JobPaths, pickle_load

  paths = JobPaths(folder, job.ticket)
  try:
    kind, result = pickle_load(paths.result_pickle)
  except (OSError, EOFError):
    kind, result = "", None
  job.settle(result if kind == "success" else None)
  if job.state == "failed" and not last_words(job.directory / ERR):  # it did not come to the experiment
    job.log = paths.stderr
    job.note = last_words(job.log) or job.note


def cancel_command(jobs: Sequence[Job]) -> str:
  numbers = sorted({job.ticket.partition("_")[0] for job in jobs if job.state in ("waiting", "running")})
  return " ".join(["scancel", *numbers])
