"""Many processes that train as one: how they find each other, what they agree on, how they end together.

Each process runs the same command and drives its own devices; XLA's collectives join them. Nothing here is a flag, so
that the command is the same on a laptop and on a cluster. The environment tells a process of its peers:

  srun with several tasks      found through Slurm's variables
  JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=N JAX_PROCESS_ID=i      by hand, or by `launch.processes`
  JAX_NUM_PROCESSES=auto       what jax.distributed.initialize() finds: TPU pods, Kubernetes, Open MPI (5: with mpi4py)
"""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mlnotes.engine.errors import InputError

# A process that has been silent for this long is taken for dead by the others, which then end.
SILENCE_SECONDS = 20.0
_SECONDS_BETWEEN_SIGNS = 2.0
# JAX's own watch over the processes, which ends them without a word of ours.
_HEARTBEAT_TIMEOUT_SECONDS = 100
# How long a process waits for the last of its peers to come up.
START_TIMEOUT_SECONDS = 300
# A report or a compilation can take long, and the other processes have nothing to do meanwhile.
_REPORT_TIMEOUT_SECONDS = 24 * 3600

_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def find_peers(environ: Mapping[str, str]) -> dict[str, Any] | None:
  """The arguments of `jax.distributed.initialize` that the environment asks for; None for a single process.

  Raises InputError where its variables do not go together.
  """
  if environ.get("JAX_NUM_PROCESSES") == "auto":
    return {}
  given = {name: environ[name] for name in _BY_HAND if environ.get(name)}
  if given.keys() & set(_BY_HAND[1:]):
    return _by_hand(given)
  tasks = _integer(environ, "SLURM_STEP_NUM_TASKS", 1)
  if tasks > 1 and "SLURM_PROCID" in environ:
    return {"num_processes": tasks, "local_device_ids": _slurm_devices(environ)}
  return _by_hand(given) if given else None


def _by_hand(given: Mapping[str, str]) -> dict[str, Any] | None:
  if missing := [name for name in _BY_HAND if name not in given]:
    found = ", ".join(f"{name}={value}" for name, value in given.items())
    raise InputError(f"found {found} without {' and '.join(missing)}: expected all three, or none for one process.")
  count, index = _integer(given, "JAX_NUM_PROCESSES"), _integer(given, "JAX_PROCESS_ID")
  if count < 1:
    raise InputError(f"JAX_NUM_PROCESSES={count} is out of range: expected 1 or more.")
  if not 0 <= index < count:
    raise InputError(f"JAX_PROCESS_ID={index} is out of range: expected 0 to {count - 1}.")
  address = given["JAX_COORDINATOR_ADDRESS"]
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal():
    raise InputError(f"JAX_COORDINATOR_ADDRESS={address} has no port: expected host:port of process 0.")
  if count == 1:
    return None
  # Nothing is left to be detected: a job by hand may run inside a Slurm allocation.
  detection = {"cluster_detection_method": "deactivate"}
  return {"coordinator_address": address, "num_processes": count, "process_id": index, **detection}


def _integer(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
  text = environ.get(name)
  if not text and default is not None:
    return default
  try:
    return int(text)
  except ValueError:
    raise InputError(f"{name}={text} is not a number: expected a whole one.") from None


def _slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
  """The GPUs of this task among those that it sees: its share of them. None: one per task, as JAX has it."""
  visible = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
  # "2(x3),1" says two tasks on each of three nodes, then one.
  per_node = [part.partition("(x") for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(",")]
  counts = [int(tasks) for tasks, _, times in per_node if tasks for _ in range(int(times.rstrip(")") or 1))]
  node, task = _integer(environ, "SLURM_NODEID", 0), _integer(environ, "SLURM_LOCALID", 0)
  here = counts[node] if node < len(counts) else 1
  if not visible:
    return None
  if len(visible) == 1:  # bound by Slurm
    return [0]
  share = len(visible) // here
  return list(range(task * share, (task + 1) * share)) or None


def initialize(environ: Mapping[str, str] = os.environ) -> None:
  """Joins the processes that the environment tells of; nothing for a single one. Comes before the first array.

  Raises InputError where the peers cannot be found or do not come.
  """
  peers = find_peers(environ)
  if peers is None:
    return
  # Its handler of SIGTERM would take the place of the loop's.
  jax.config.update("jax_enable_preemption_service", False)
  names = ("coordinator_address", "num_processes", "process_id")
  found = ", ".join(f"{name}={peers[name]}" for name in names if name in peers) or "JAX_NUM_PROCESSES=auto"
  if peers.get("process_id") == 0:
    _require_free_port(peers["coordinator_address"])
  alarm = threading.Timer(START_TIMEOUT_SECONDS, _nobody_came, [found])
  alarm.daemon = True
  alarm.start()
  try:
    jax.distributed.initialize(
      **peers,
      initialization_timeout=2 * START_TIMEOUT_SECONDS,  # jaxlib would end the process by a stack trace
      heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
      shutdown_timeout_seconds=START_TIMEOUT_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(".")
    expected = "" if peers else f"; expected a cluster that JAX knows, or {', '.join(_BY_HAND)}"
    raise InputError(f"the processes of this run did not find each other ({found}): {reason}{expected}.") from error
  finally:
    alarm.cancel()


def _require_free_port(address: str) -> None:
  host, _, port = address.rpartition(":")
  with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
    raise InputError(f"JAX_COORDINATOR_ADDRESS={address}: something else listens there already, expected a free port.")


def _nobody_came(found: str) -> None:
  print(
    f"error: not all processes of this run came up within {START_TIMEOUT_SECONDS} s ({found}): expected each to run "
    "the same command and to reach process 0.",
    file=sys.stderr,
    flush=True,
  )
  os._exit(2)


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Joins the other processes for the body; an error in the body ends this process at once, and thereby the others.

  Leaving in the ordinary way would wait for the others, who may be waiting for this process in the middle of an update.
  """
  initialize()
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    yield
    return
  # Without process 0 jaxlib ends the others by itself: one sentence, which a dump of every thread would bury.
  faulthandler.disable()
  done = threading.Event()
  threading.Thread(target=_watch, args=(done,), daemon=True, name="watch peers").start()
  try:
    yield
  except BaseException as error:
    _leave(error)
  finally:
    done.set()


class LostPeerError(RuntimeError):
  """Another process of the run has gone."""


def _watch(done: threading.Event) -> None:
  """Gives signs of life to the other processes and watches theirs: a collective may wait for a dead one for ever."""
  from orbax.checkpoint import multihost

  client, mine = multihost.get_jax_distributed_client(), str(jax.process_index())
  latest: dict[str, tuple[str, float]] = {}
  while not done.wait(_SECONDS_BETWEEN_SIGNS):
    now = time.monotonic()
    try:
      client.key_value_set(f"mlnotes/alive/{mine}", str(now), allow_overwrite=True)
      signs = client.key_value_dir_get("mlnotes/alive/")
    except jax.errors.JaxRuntimeError as error:  # process 0 keeps the signs
      if not done.is_set():
        _leave(LostPeerError(str(error)))
      return
    except BaseException as error:  # nobody would watch any more, and nobody would know
      _leave(error)
    latest |= {name: (sign, now) for name, sign in signs if latest.get(name, ("", 0.0))[0] != sign}
    if any(now - seen > SILENCE_SECONDS for _, seen in latest.values()) and not done.is_set():
      _leave(LostPeerError("no sign of life"))


def _leave(error: BaseException) -> None:
  code = 1
  if isinstance(error, InputError):
    print(f"error: {error}", file=sys.stderr)
    code = 2
    with contextlib.suppress(Exception):  # most often every process has found the same
      wait_for_all("error", 5)
  elif isinstance(error, SystemExit):
    code = error.code if isinstance(error.code, int) else 1
  elif isinstance(error, KeyboardInterrupt):
    code = 130
  elif lost_peer(error):
    print(
      f"error: process {jax.process_index()} of {jax.process_count()} has lost another one, which died or was cut off: "
      "the run ends; the same command goes on from the last checkpoint.",
      file=sys.stderr,
    )
  else:
    traceback.print_exception(error)
  # Not by sys.exit, which would wait for the others.
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.process_index() == 0:
    time.sleep(2)  # Without the coordinator the others could no longer say what they have to say.
  os._exit(code)


def lost_peer(error: BaseException | None) -> bool:
  """Whether `error` is a collective or a barrier that another process has left."""
  marks = ("Gloo", "NCCL", "coordination service", "Coordination service", "Barrier", "heartbeat")
  while error is not None:
    if isinstance(error, LostPeerError):
      return True
    if isinstance(error, (RuntimeError, ValueError)) and any(mark in str(error) for mark in marks):
      return True
    error = error.__cause__ or error.__context__
  return False


def agree(value: int, flag: int) -> tuple[int, int]:
  """(`value` of process 0, the largest `flag` of any process). Every process must call it."""
  if jax.process_count() == 1:
    return value, flag
  from jax.experimental import multihost_utils

  each = multihost_utils.process_allgather(np.array([value, flag], np.int32))
  return int(each[0, 0]), int(each[:, 1].max())


def wait_for_all(name: str, timeout_seconds: int = _REPORT_TIMEOUT_SECONDS) -> None:
  """Blocks until every process has called it with this `name`, which serves once."""
  if jax.process_count() > 1:
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key=f"mlnotes_{name}", timeout_ms=1000 * timeout_seconds)
