"""Many runs from one command: an experiment, or several, over a grid, a list or random draws of any of its flags.

  python -m launch.sweep --experiment=rl.ppo --grid='learning_rate=1e-3,3e-4; discount=.9,.99' \\
      --fixed='--steps=100 --env=CartPole-v1' --workdir=runs/ppo --jobs=2
  python -m launch.sweep --experiment=rl.ppo,rl.a2c --grid='seed=0..4' --vectorize
  python -m launch.sweep --experiment=diffusion.ddpm --draws=20 \\
      --random='learning_rate=log(1e-4,1e-2); channels=choice(16,32); multipliers=choice((1,2),(1,2,2))'
  python -m launch.sweep --experiment=softmax_regression.py --grid='learning_rate=.01,.1'
  python -m launch.sweep --experiment=rl.dqn --list=settings.jsonl --cluster=slurm --partition=gpu --gpus=1 --time=120

--grid: a semicolon between flags, a comma between values; 0..4 is 0,1,2,3,4; a value with a comma stands in
parentheses or quotes: multipliers=(1,2),(1,2,4). --grid, --random and --list together give all combinations.

Each run has the work directory <workdir>/<experiment>/<its settings>. The same command runs what is missing or has
failed, and goes on where a run was stopped. --vectorize trains runs that differ in seeds and in numbers that the state
holds as rows of one program; each leaves the directory that it would leave alone. Ctrl-C stops local runs with their
states saved; jobs of Slurm stay in its queue, and the same command follows them again.
"""

import dataclasses
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from launch import slurm
from launch.jobs import Job, count_gpus, lock, release, run_debug, run_local
from launch.plan import (
  Run,
  check_makes,
  combine,
  draw_settings,
  load_experiment,
  make_runs,
  parse_grid,
  read_list,
  split_outside,
)
from launch.table import Table, summary
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, config_fields, field, read, run
from mlnotes.engine.record import check_writable

MOST_LINES = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  experiment: tuple[str, ...] = field(
    (), "names as in `python -m experiments`, modules or .py files of one's own, with commas between"
  )
  workdir: str = field("runs/sweep", "directory of the work directories of all runs")
  fixed: str = field("", "flags of all runs, as on a command line")
  grid: str = field("", "name=v1,v2; other=v1,v2: all combinations")
  list: str = field("", ".json or .jsonl file of objects {flag: value}, a run each")
  random: str = field("", "name=log(low,high); other=int(low,high), and uniform(low,high), choice(a,b)")
  draws: int = field(10, "how many random settings")
  draw_seed: int = field(0, "of the random settings")
  vectorize: bool = field(False, "train runs as rows of one program where only seeds and numbers of the state differ")
  max_rows: int = field(64, "seeds of all runs in one such program")
  dry_run: bool = field(False, "only say what would run")

  cluster: Literal["local", "slurm", "debug"] = field(
    "local", "local: processes on this machine; slurm: job arrays; debug: one after the other, on this terminal, up to "
    "the first that fails"
  )  # fmt: skip
  jobs: int = field(0, "jobs at once; 0: one (local), as many as there is room for (slurm)")
  gpus: int = field(0, "GPUs of a node for each job; 0: what is there (local), none (slurm)")
  nodes: int = field(1, "nodes of a job")
  tasks_per_node: int = field(1, "processes of a job on each node")
  cpus: int = field(0, "CPUs of each process; 0: the cluster's default")
  memory: str = field("", "of a node, such as 16G; empty: the cluster's default")
  time: int = field(60, "minutes that a job may take before it saves and goes back into the queue")
  grace: int = field(90, "seconds before the end of that time at which it is told to save")
  requeues: int = field(100, "how often a job may go back")
  partition: str = field("", "of the cluster; empty: its default")
  account: str = field("", "to charge; empty: the default")
  sbatch: str = field("", "more parameters of sbatch: constraint=a100; qos=high; exclusive")
  wait: bool = field(True, "follow the jobs of Slurm to their end")

  def __post_init__(self):
    super().__post_init__()
    if not self.experiment:
      raise InputError("--experiment is missing: expected a name that `python -m experiments` lists.")
    for name in ("draws", "max_rows", "nodes", "tasks_per_node", "time"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("gpus", "cpus", "grace", "requeues", "draw_seed", "jobs"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    require(bool(self.workdir), "workdir", "", "a directory")
    require(bool(self.random) or self.draws == type(self).draws, "draws", self.draws, "--random beside it")
    for name in ("partition", "account", "memory", "sbatch"):
      given = getattr(self, name)
      require(not given or self.cluster == "slurm", name, given, f"--cluster=slurm beside it, not {self.cluster}")
    require(self.grace < 60 * self.time, "grace", self.grace, f"less than the {60 * self.time} seconds of --time")
    for name in ("nodes", "tasks_per_node"):
      alone = self.cluster == "slurm" or getattr(self, name) == 1
      require(alone, name, getattr(self, name), f"1 with --cluster={self.cluster}; several are for --cluster=slurm")


def plan_runs(config: Config) -> list[Run]:
  """The runs that the flags describe, checked. Raises InputError for whatever cannot run."""
  factors = []
  if config.grid:
    factors.append(parse_grid(config.grid))
  if config.random:
    factors.append(draw_settings(config.random, config.draws, config.draw_seed))
  if config.list:
    factors.append(read_list(Path(config.list).expanduser()))
  settings = combine(*factors)
  runs = make_runs(config.experiment, config.fixed, settings, Path(config.workdir).expanduser())
  check_makes(runs, data_is_here=config.cluster != "slurm")
  described = len(settings) * len(set(config.experiment))
  if described > len(runs):
    print(f"{described - len(runs)} of {described} runs repeat others and count once", file=sys.stderr)
  return runs


def plan_jobs(runs: Sequence[Run], config: Config) -> tuple[list[Job], list[str]]:
  """(jobs, the varied flags that --vectorize could not make rows of)."""
  root = Path(config.workdir).expanduser()
  name = lambda directory: str(directory.relative_to(root))
  alone = lambda run: Job(name(run.directory), (run,), run.directory, (*run.flags, f"--workdir={run.directory}"))
  if not config.vectorize:
    return [alone(run) for run in runs], []
  from launch.vectorize import group_runs, rows_text

  begun = [run for run in runs if any((run.directory / "checkpoints").glob("[0-9]*"))]
  groups, apart = group_runs([run for run in runs if run not in begun], config.max_rows)
  jobs = [alone(run) for run in begun]
  for group in groups:
    first = group.runs[0]
    if len(group.runs) == 1:
      jobs.append(alone(first))
      continue
    rows, digest = rows_text(group)
    directory = root / first.experiment / f"rows-{digest}"
    flags = (*first.flags, f"--rows={directory / 'rows.json'}", f"--workdir={directory}")
    jobs.append(Job(f"{name(directory)} ({len(group.runs)} runs)", group.runs, directory, flags, rows))
  return jobs, apart


def describe_plan(config: Config, jobs: Sequence[Job], finished: int, apart: Sequence[str]) -> Iterator[str]:
  """What will run, line by line: how many, with which flags, where."""
  runs = sum(len(job.runs) for job in jobs)
  many = lambda number, what: f"{number} {what}{'' if number == 1 else 's'}"
  total, planned = many(finished + runs, "run"), many(len(jobs), "job")
  where = f"--cluster={config.cluster}" + (f", {max(1, config.jobs)} at once" if config.cluster == "local" else "")
  yield f"{total}: {finished} finished before, {runs} to run in {planned} ({where})"
  if config.fixed:
    yield f"  all with {config.fixed}"
  if apart:
    yield f"  a program for each value of {', '.join(apart)}: not numbers that the state holds, or not these alone"
  lines = []
  for job in jobs:
    if job.rows:
      lines.append(f"  one program in {job.directory}:")
    for one in job.runs:
      settings = shlex.join(f"--{name}={text}" for name, text in one.settings.items())
      lines.append(f"  {'  ' if job.rows else ''}{one.directory}  {settings}".rstrip())
  yield from lines if config.dry_run else lines[:MOST_LINES]
  if not config.dry_run and len(lines) > MOST_LINES:
    yield f"  and {len(lines) - MOST_LINES} more; --dry_run shows all"


def slurm_options(config: Config) -> dict[str, Any]:
  """The parameters of submitit's executor."""
  extra = {}
  for part in split_outside(config.sbatch, ";", "sbatch"):
    name, equals, value = part.partition("=")
    extra[name.strip().lstrip("-")] = value.strip() if equals else True
  options = {
    "job_name": Path(config.workdir).name or "sweep", "time": config.time, "nodes": config.nodes,
    "ntasks_per_node": config.tasks_per_node, "signal_delay_s": config.grace, "partition": config.partition,
    "account": config.account, "mem": config.memory, "gpus_per_node": config.gpus, "cpus_per_task": config.cpus,
    "array_parallelism": config.jobs or slurm.LONGEST_ARRAY, "additional_parameters": {"requeue": True, **extra},
  }  # fmt: skip
  return {name: value for name, value in options.items() if value}


@contextmanager
def _interruptible() -> Iterator[list[int]]:
  """SIGTERM and a closed terminal count as Ctrl-C; the numbers received."""
  received = []

  def handle(number, frame):
    if received and number != signal.SIGINT:
      return  # only a second Ctrl-C is in a hurry
    received.append(number)
    raise KeyboardInterrupt

  before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _submit(jobs: Sequence[Job], config: Config) -> None:
  """Submits what is not in the queue yet; one sweep at a time."""
  root = Path(config.workdir).expanduser()
  root.mkdir(parents=True, exist_ok=True)
  held = lock([root])
  if held is None:
    raise InputError(f"--workdir={root}: another sweep is submitting there; try again in a moment.")
  try:
    slurm.find_submitted(jobs)
    slurm.submit([job for job in jobs if not job.ticket], root / "slurm", slurm_options(config), config.requeues)
  finally:
    release(held)


def execute(jobs: Sequence[Job], config: Config) -> int:
  """Runs the jobs and shows how they are; returns 128 + n where signal n has ended that, else 0."""
  watch = Table(jobs)
  with _interruptible() as received:
    try:
      if config.cluster == "debug":
        run_debug(jobs)
      elif config.cluster == "local":
        run_local(jobs, max(1, config.jobs), config.gpus, watch)
      else:
        _submit(jobs, config)
        if config.wait:
          slurm.follow(jobs, Path(config.workdir).expanduser() / "slurm", watch)
    except KeyboardInterrupt:
      if config.cluster == "slurm":
        print(f"the jobs stay in the queue; to take them out: {slurm.cancel_command(jobs)}", file=sys.stderr)
      return 128 + received[0]
  return 0


def main(config: Config) -> int:
  import jax

  jax.config.update("jax_platforms", "cpu")  # nothing is trained in this process: it leaves the accelerators alone
  runs = plan_runs(config)
  if config.cluster == "slurm":
    slurm.require_slurm()
    slurm.check_options(slurm_options(config))
  if config.cluster == "local" and config.gpus:
    needed, found = config.gpus * max(1, config.jobs), count_gpus()
    if needed > found:
      raise InputError(
        f"--gpus={config.gpus} for each of --jobs={max(1, config.jobs)}: found {found} GPUs, expected {needed}."
      )
  check_writable(Path(config.workdir).expanduser(), "workdir", config.workdir)
  missing = [one for one in runs if not one.finished()]
  jobs, apart = plan_jobs(missing, config)
  finished = len(runs) - len(missing)
  print("\n".join(describe_plan(config, jobs, finished, apart)), flush=True)
  if config.dry_run or not jobs:
    return 0
  code = execute(jobs, config)
  if config.cluster == "slurm" and not config.wait and not code:
    print(f"submitted; the same command follows them, {slurm.cancel_command(jobs)} takes them out of the queue")
    return 0
  print(summary(jobs, finished))
  if finished or any(job.state == "finished" for job in jobs):
    print(f"to compare them: python -m launch.results {shlex.quote(str(Path(config.workdir)))}")
  return code or int(any(job.state != "finished" for job in jobs))


def explain(name: str) -> str:
  """What to say of a flag that is one of the experiment's."""
  for experiment in read(Config, sys.argv[1:], "launch.sweep", known_only=True)["experiment"].value:
    kinds = {item.name: kind for item, kind, _ in config_fields(load_experiment(experiment).Config)}
    if name in kinds or kinds.get(name.removeprefix("no")) is bool:
      return f"it is one of {experiment}, expected in --fixed='--{name}...' or in --grid."
  return ""


if __name__ == "__main__":
  run(main, Config, explain=explain)
