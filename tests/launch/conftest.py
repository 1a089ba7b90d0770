"""A Slurm of one's own on this machine: a controller and two node daemons on loopback, stopped when no longer needed.

Needs root and Debian's `slurm-wlm` and `munge`. Partition `low` gives way to `high`: its jobs are told to stop, have
`GRACE` seconds to save, and go back into the queue.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

GRACE = 30
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "setpriv")

# cred_expire: how long a job that goes back into the queue waits there. The first node is called 127.0.0.1, written so
# that it is a name: JAX makes the address of its coordinator of that.
CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=6
CryptoType=crypto/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/%n.spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1,defer
SlurmdParameters=config_overrides
KillWait=10
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=0x7f000001 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace} MaxTime=60
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=60
"""


def why_not() -> str:
  """Why no Slurm can be started here; "" where it can."""
  missing = [name for name in PROGRAMS if shutil.which(name) is None]
  if missing:
    return f"{missing[0]} is not installed: apt-get install --no-install-recommends slurm-wlm munge"
  return "" if os.geteuid() == 0 else "only root can start a Slurm"


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
  if reason := why_not():
    pytest.skip(reason)
  with running_slurm(tmp_path_factory.mktemp("slurm")) as env:
    yield env


def _free_ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(("127.0.0.1", 0))
    return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running_slurm(directory: Path) -> Iterator[dict[str, str]]:
  """The environment in which `sbatch` and the others find it."""
  config = directory / "slurm.conf"
  host = socket.gethostname().partition(".")[0]
  config.write_text(CONFIG.format(directory=directory, host=host, ports=_free_ports(3), grace=GRACE))
  nodes = ("0x7f000001", "node2")
  for name in ("state", *(f"{node}.spool" for node in nodes)):
    (directory / name).mkdir()
  key = directory / "munge.key"
  key.write_bytes(secrets.token_bytes(128))
  key.chmod(0o400)
  env = {**os.environ, "SLURM_CONF": str(config)}
  munge = [
    f"--{name}-file={directory / file}" for name, file in (("pid", "m.pid"), ("log", "m.log"), ("seed", "m.seed"))
  ]
  commands = [
    ["munged", "-F", "-f", f"--socket={directory / 'munge.socket'}", f"--key-file={key}", *munge],
    ["slurmctld", "-D"],
    *(["slurmd", "-D", "-N", node] for node in nodes),
  ]
  daemons = []
  try:
    for command in commands:
      with (directory / "daemons.log").open("ab") as log:
        # They end with this process, however it ends.
        command = ["setpriv", "--pdeathsig", "TERM", *command]
        daemons.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
      time.sleep(0.5)
    deadline = time.monotonic() + 30
    while _idle_nodes(env) < 2:
      if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
        pytest.skip(f"no Slurm starts here: {(directory / 'daemons.log').read_text()[-2000:]}")
      time.sleep(0.2)
    yield env
  finally:
    subprocess.run(["scancel", "--partition=low"], env=env, capture_output=True)
    subprocess.run(["scancel", "--partition=high"], env=env, capture_output=True)
    for daemon in reversed(daemons):
      daemon.terminate()
    for daemon in daemons:
      try:
        daemon.wait(timeout=20)
      except subprocess.TimeoutExpired:
        daemon.kill()


def _idle_nodes(env: dict[str, str]) -> int:
  done = subprocess.run(["sinfo", "-h", "-N", "-p", "low", "-o", "%T"], env=env, capture_output=True, text=True)
  return done.stdout.split().count("idle")
