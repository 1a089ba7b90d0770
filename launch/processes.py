"""Several processes on this machine that train as one, as on several hosts.

  python -m launch.processes --processes=4 --devices_per_process=2 -- \\
    python -m experiments.diffusion.ddpm --workdir=runs/digits

Everything after -- is the command of each process. What process 0 says is shown; what the others say is shown where
they fail. Ctrl-C and every other signal that would end the launcher go to all of them, its own death by SIGKILL ends
all, and so does the death of one. On the CPU --devices_per_process
simulates that many devices; on a GPU machine leave it out and give each process its own devices, or use one process.
"""

import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field, run

# A closed terminal, Ctrl-C, Ctrl-\, Slurm's warning and schedulers: what ends the launcher reaches the processes.
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
# Reads the process groups and then waits for the launcher's last word: without one it was killed, and they end too.
_GUARD = """
groups=
while read -r word; do [ "$word" = done ] && exit 0; groups="$groups -$word"; done
for group in $groups; do kill -s TERM -- "$group"; done
seconds=0
while [ "$seconds" -lt "$0" ]; do
  alive=
  for group in $groups; do kill -s 0 -- "$group" && alive=yes; done
  [ "$alive" ] || exit 0
  sleep 1
  seconds=$((seconds + 1))
done
for group in $groups; do kill -s KILL -- "$group"; done
"""
# How long the others may take to notice by themselves, and then to follow SIGTERM.
SECONDS_TO_END = 40.0
_LAST_LINES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  processes: int = field(2, "how many")
  devices_per_process: int = field(0, "CPU devices to simulate in each; 0: what the machine has")
  seconds_to_end: float = field(SECONDS_TO_END, "after the death of one, time for the others to end by themselves")

  def __post_init__(self):
    super().__post_init__()
    require(self.processes >= 1, "processes", self.processes, "1 or more")
    require(self.devices_per_process >= 0, "devices_per_process", self.devices_per_process, "0 or more")
    require(self.seconds_to_end >= 0, "seconds_to_end", self.seconds_to_end, "0 or more")


def find_free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def make_environments(config: Config, port: int, environ: Mapping[str, str]) -> list[dict[str, str]]:
  """The environment of each process: `environ`, its place among its peers, and its simulated devices."""
  common = {
    **environ,
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": str(config.processes),
  }
  if config.devices_per_process:
    others = re.sub(r"--xla_force_host_platform_device_count=\d+", "", environ.get("XLA_FLAGS", ""))
    count = f"--xla_force_host_platform_device_count={config.devices_per_process}"
    common |= {"XLA_FLAGS": f"{count} {others}".strip(), "JAX_PLATFORMS": "cpu"}
  return [{**common, "JAX_PROCESS_ID": str(i)} for i in range(config.processes)]


def wait_for(processes: Sequence[subprocess.Popen], seconds_to_end: float) -> int | None:
  """Waits until all have ended. Returns the index of the first that failed, None where none did.

  After a failure the others have `seconds_to_end` for their own last words, then SIGTERM, then SIGKILL.
  """
  first, deadline, ways = None, 0.0, iter((signal.SIGTERM, signal.SIGKILL))
  while running := [p for p in processes if p.poll() is None]:
    if first is None:
      first = next((i for i, p in enumerate(processes) if p.returncode), None)
      deadline = time.monotonic() + seconds_to_end
    elif time.monotonic() > deadline:
      number = next(ways, signal.SIGKILL)
      for process in running:
        process.send_signal(number)
      deadline = time.monotonic() + 5
    time.sleep(0.05)
  return first if first is not None else next((i for i, p in enumerate(processes) if p.returncode), None)


@contextlib.contextmanager
def guard(seconds_to_end: float) -> Iterator[Callable[[int], None]]:
  """Gives the function that puts a process group under guard: it ends if this process is killed or the body fails.

  It gets SIGTERM, and after `seconds_to_end` SIGKILL.
  """
  command = ["sh", "-c", _GUARD, str(max(1, round(seconds_to_end)))]
  watcher = subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
    start_new_session=True,
  )  # fmt: skip

  def tell(word: int | str) -> None:
    watcher.stdin.write(f"{word}\n")
    watcher.stdin.flush()

  try:
    yield tell
    tell("done")
  finally:  # after an error without that word
    watcher.stdin.close()
    watcher.wait()


def run_processes(command: Sequence[str], config: Config) -> int:
  """Runs `command` in every process to the end; returns the exit code of them all."""
  logs: list[IO[str] | None] = [None]
  processes: list[subprocess.Popen] = []
  received = []

  def forward(number, frame):
    received.append(number)
    for process in processes:
      if process.poll() is None:
        process.send_signal(number)

  for number in FORWARDED:
    if signal.getsignal(number) != signal.SIG_IGN:  # nohup
      signal.signal(number, forward)
  with tempfile.TemporaryDirectory(prefix="processes-") as directory, guard(config.seconds_to_end) as protect:
    files = [Path(directory) / f"{i}.log" for i in range(1, config.processes)]
    logs += [path.open("w+", encoding="utf-8", errors="replace") for path in files]
    for env, log in zip(make_environments(config, find_free_port(), os.environ), logs):
      # A session of its own: Ctrl-C reaches it through `forward`, and only once.
      options = {} if log is None else {"stdout": log, "stderr": subprocess.STDOUT}
      try:
        processes.append(subprocess.Popen(command, env=env, start_new_session=True, **options))
      except OSError as error:
        raise InputError(f"{command[0]} cannot be run: {error.strerror}.") from error
      protect(processes[-1].pid)
      if received:  # before there was anyone to hear it
        processes[-1].send_signal(received[-1])
    pids = " ".join(str(process.pid) for process in processes)
    print(f"{config.processes} processes: {pids}", file=sys.stderr, flush=True)
    first = wait_for(processes, config.seconds_to_end)
    codes = [process.returncode for process in processes]
    if first is not None and len(set(codes)) > 1:
      for i, log in enumerate(logs):
        if log is not None and codes[i]:
          log.seek(0)
          lines = log.read().strip().splitlines()
          said = [line for line in lines if line.startswith("error:")] or lines[-_LAST_LINES:]
          print(*(f"[process {i}] {line}" for line in said), sep="\n", file=sys.stderr)
  return _outcome(codes, first)


def _outcome(codes: Sequence[int], first: int | None) -> int:
  if first is None:
    return 0
  if len(set(codes)) == 1 and codes[0] > 0:  # All of one mind: process 0 has said why.
    return codes[0]
  code = codes[first]
  hint = "; the same command goes on from the last checkpoint" if code < 0 else ""
  how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
  print(f"error: process {first} of {len(codes)} {how}, and with it the run{hint}.", file=sys.stderr)
  return 1


def main(config: Config, command: Sequence[str]) -> int:
  if not command:
    raise InputError("found no command: expected it after --, such as -- python -m experiments.diffusion.ddpm.")
  return run_processes(command, config)


if __name__ == "__main__":
  expected = "" if "--" in sys.argv else "expected -- between the flags of the launcher and the command."
  run(main, Config, arguments=True, explain=lambda name: expected)
