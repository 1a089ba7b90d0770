"""What a person sees of a sweep: its jobs and their states, in place on a terminal and line by line elsewhere."""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence

from launch.jobs import Job

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_DRAWINGS = 1.0


def describe(job: Job, columns: int = 0) -> str:
  """One line: state, name, how far it is. Of what does not fit into `columns` the middle of the name goes first."""
  detail = job.note
  if job.state == "running":
    step = job.step()
    detail = f"step {step}/{job.steps}" if job.steps else ""
  elif job.state == "finished" and job.seconds:
    detail = f"{job.seconds:.0f} s"
  name, room = job.name, max(20, columns - 12 - len(detail))
  if columns and len(name) > room:
    name = f"{name[: room // 2]}…{name[len(name) - room + room // 2 + 1 :]}"
  return f"{job.state:<9} {name}  {detail}".rstrip()[: columns or None]


def count(jobs: Sequence[Job]) -> str:
  states = Counter(job.state for job in jobs)
  return f"{len(jobs)} jobs: " + ", ".join(f"{number} {state}" for state, number in states.items())


class Table:
  """Call it as often as you like: it draws when there is something new to see."""

  def __init__(self, jobs: Sequence[Job]):
    self._jobs = jobs
    self._terminal = sys.stderr.isatty()
    self._states = ["waiting"] * len(jobs)
    self._drawn = 0
    self._last = 0.0

  def __call__(self) -> None:
    changed = [job for job, before in zip(self._jobs, self._states) if job.state != before]
    now = time.monotonic()
    if self._terminal:
      if changed or now - self._last >= SECONDS_BETWEEN_DRAWINGS:
        self._last = now
        self._draw()
    else:
      for job in changed:
        print(describe(job).partition("  step 0/")[0], file=sys.stderr, flush=True)
      if now - self._last >= SECONDS_BETWEEN_LINES and any(job.state == "running" for job in self._jobs):
        if self._last:
          steps = [f"{job.name} {job.step()}/{job.steps}" for job in self._jobs if job.state == "running"]
          print(f"{count(self._jobs)}; {', '.join(steps[:4])}", file=sys.stderr, flush=True)
        self._last = now
    self._states = [job.state for job in self._jobs]

  def _draw(self) -> None:
    """The counts, then as many jobs as fit, those that matter now first; overwrites what it drew before."""
    columns, height = shutil.get_terminal_size()
    order = ("running", "failed", "stopped", "elsewhere", "waiting", "finished")
    jobs = sorted(self._jobs, key=lambda job: order.index(job.state))
    lines = [count(self._jobs), *(f"  {describe(job, columns - 3)}" for job in jobs[: max(1, height - 3)])]
    if len(jobs) > len(lines) - 1:
      lines[-1] = f"  and {len(jobs) - len(lines) + 2} more"
    up = f"\x1b[{self._drawn}F" if self._drawn else ""
    print(up + "".join(f"\x1b[2K{line[: columns - 1]}\n" for line in lines), end="\x1b[J", file=sys.stderr, flush=True)
    self._drawn = len(lines)


def summary(jobs: Sequence[Job], skipped: int) -> str:
  """The end of a sweep: how many runs are finished, and of the others the last line and the log."""
  runs = skipped + sum(len(job.runs) for job in jobs)
  done = skipped + sum(job.count_finished() for job in jobs)
  lines = [f"{done} of {runs} runs finished" + (f", {skipped} of them before" if skipped else "")]
  if waiting := sum(job.state == "waiting" and not job.note for job in jobs):
    lines.append(f"{waiting} waiting")
  for job in jobs:
    if job.state != "finished" and (job.state != "waiting" or job.note):
      lines.append(f"{job.state} {job.name}: {job.note}" if job.note else f"{job.state} {job.name}")
      if job.log is not None and job.log.exists():
        lines.append(f"  log: {job.log}")
  return "\n".join(lines)
