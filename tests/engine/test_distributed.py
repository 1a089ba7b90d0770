"""How a process finds its peers; tests/launch/test_processes.py runs real ones."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlnotes.engine.distributed import LostPeerError, find_peers, lost_peer
from mlnotes.engine.errors import InputError

ROOT = Path(__file__).parents[2]

BY_HAND = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
SLURM = {
  "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
  "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip


@pytest.mark.parametrize("environ", [{}, {**BY_HAND, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}])
def test_alone(environ):
  assert find_peers(environ) is None


def test_peers_by_hand_inside_slurm():
  peers = find_peers({**SLURM, **BY_HAND})
  assert (peers["coordinator_address"], peers["num_processes"], peers["process_id"]) == ("host:1234", 4, 2)


def test_whatever_jax_detects():
  assert find_peers({"JAX_NUM_PROCESSES": "auto"}) == {}


def test_a_job_step_of_one_task_is_alone():
  assert find_peers({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}) is None


@pytest.mark.parametrize(
  "visible, per_node, expected",
  [
    ("", "2(x2)", None),  # no GPUs, or all of them: JAX decides
    ("0", "2(x2)", [0]),  # Slurm has bound one to the task
    ("0,1", "2(x2)", [1]),
    ("0,1,2,3", "2(x2)", [2, 3]),
    ("0,1,2,3", "1,3", [1]),  # one task on the first node, three on the second
    ("4,5,6,7", "4,2", [2, 3]),  # numbered among those that the task sees
  ],
)
def test_a_slurm_task_takes_its_share_of_the_gpus(visible, per_node, expected):
  environ = {**SLURM, "CUDA_VISIBLE_DEVICES": visible, "SLURM_STEP_TASKS_PER_NODE": per_node}
  assert find_peers(environ) == {"num_processes": 4, "local_device_ids": expected}


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"JAX_PROCESS_ID": ""}, "without JAX_PROCESS_ID: expected all three"),
    ({"JAX_PROCESS_ID": "", "JAX_NUM_PROCESSES": ""}, "without JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
    ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4 is out of range: expected 0 to 3"),
    ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES=0 is out of range: expected 1 or more"),
    ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two is not a number"),
    ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS=host has no port"),
  ],
)
def test_variables_that_do_not_go_together(changes, words):
  with pytest.raises(InputError, match=words):
    find_peers({**BY_HAND, **changes})


def test_what_tells_of_a_lost_peer():
  gloo = ValueError("UNKNOWN: Gloo AllReduce failed: Read error [127.0.0.1]:55427: Connection reset by peer")
  assert lost_peer(gloo) and lost_peer(LostPeerError())
  wrapped = InputError("the run ends")
  wrapped.__cause__ = gloo
  assert lost_peer(wrapped)
  assert not lost_peer(ValueError("shapes (3,) and (4,)")) and not lost_peer(KeyError("Gloo"))


def test_outside_any_cluster_auto_says_what_is_missing():
  environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_PROCESSES": "auto"}
  command = [sys.executable, "-c", "from mlnotes.engine.distributed import initialize; initialize()"]
  done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
  words = r"\(JAX_NUM_PROCESSES=auto\): coordinator_address should be defined; expected .*JAX_PROCESS_ID\.$"
  assert re.search(words, done.stderr.strip()), done.stderr
