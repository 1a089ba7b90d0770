"""Cores, devices, threads: what is chosen, and that a run has it without another number."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.contrastive import simclr
from experiments.lm import pretrain
from experiments.meta._meta_training import MetaConfig
from experiments.rl._agent import RLConfig
from experiments.sequence import char_lm, translation
from mlnotes.data import Feeds
from mlnotes.engine import flags
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Experiment, Mean, stream_key
from mlnotes.engine.layout import Layout, choose_layout, runs_on_cpu
from mlnotes.engine.loop import LoopConfig
from mlnotes.engine.program import Program, make_mesh, one_by_one, window_means
from mlnotes.engine.sharding import count_cores
from mlnotes.nn.conv import convolve

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
  "seeds,cores,fills_cores,expected",
  [
    (1, 8, True, Layout(1, 8)),
    (1, 8, False, Layout(1, 1)),
    (8, 2, True, Layout(2, 1)),
    (8, 2, False, Layout(2, 1)),
    (2, 8, True, Layout(2, 4)),
    (2, 8, False, Layout(2, 1)),
    (6, 4, True, Layout(3, 1)),
    (5, 2, True, Layout(2, 1)),
    (5, 4, False, Layout(3, 1)),
    (5, 8, True, Layout(5, 1)),
    (9, 4, True, Layout(3, 1)),
  ],
)
def test_seeds_share_the_cores_and_small_arrays_keep_to_a_thread(seeds, cores, fills_cores, expected):
  assert choose_layout(seeds, cores, fills_cores) == expected._replace(small_loops=not fills_cores)


@pytest.mark.parametrize("config, devices", [
  (pretrain.Config(), 2),
  (pretrain.Config(batch_size=3), 1),
  (char_lm.Config(), 2),
  (char_lm.Config(carry=True), 1),
  (translation.Config(), 1),
  (translation.Config(model="mask_predict"), 2),
])  # fmt: skip
def test_what_gains_by_it_parts_its_batches(config, devices):
  assert config.cpu_layout(2) == Layout(devices, 1, True)


def test_parts_of_a_batch_are_equal():
  assert choose_layout(1, 2, True, batch_size=64) == Layout(2, 1)
  assert choose_layout(1, 4, True, batch_size=63) == Layout(3, 1)
  assert choose_layout(1, 64, True, batch_size=128) == Layout(8, 8)
  assert choose_layout(1, 2, True, batch_size=7) == Layout(1, 2)
  assert choose_layout(4, 2, True, batch_size=7) == Layout(2, 1)
  assert simclr.Config(encoder="resnet18", batch_size=64).cpu_layout(2) == Layout(2, 1)
  assert simclr.Config(batch_size=64).cpu_layout(2) == Layout(1, 2)


def test_flags_take_the_place_of_what_is_chosen(tmp_path):
  assert LoopConfig(seeds=4).cpu_layout(2) == Layout(2, 1)
  assert LoopConfig(seeds=4, devices=1).cpu_layout(2) == Layout(1, 2)
  assert LoopConfig(seeds=4, threads=3).cpu_layout(2) == Layout(2, 3)
  assert LoopConfig(devices=9).cpu_layout(2).devices == 2  # and the loop says that there are no more
  assert LoopConfig(fsdp=2).cpu_layout(4) == Layout(2, 2) and LoopConfig(fsdp=2, devices=4).cpu_layout(4) == Layout(
    4, 1
  )
  assert LoopConfig(fsdp=4).cpu_layout(2).devices == 2  # and the loop says what it needs
  assert LoopConfig().idle_flags() == {}
  assert RLConfig(seeds=2, devices=1).cpu_layout(4) == Layout(1, 1, True)
  assert MetaConfig(tasks="images").cpu_layout(4) == Layout(1, 4)
  assert MetaConfig(tasks="sinusoid").cpu_layout(4) == Layout(1, 1, True)
  rows = tmp_path / "rows.json"
  rows.write_text(json.dumps({"experiment": "x", "runs": [{}, {}, {}]}))
  assert LoopConfig(rows=str(rows), seeds=2).cpu_layout(3) == Layout(3, 1)
  assert LoopConfig(rows=str(tmp_path / "none"), seeds=2).cpu_layout(3) == Layout(2, 1)


def test_the_environment_has_the_first_word(monkeypatch):
  assert count_cores({"NPROC": "3"}) == 3
  assert count_cores({"NPROC": ""}) == len(os.sched_getaffinity(0))
  for wrong in ("0", "-1", "many", "100000"):
    with pytest.raises(InputError, match=f"NPROC={wrong} "):
      count_cores({"NPROC": wrong})
  assert runs_on_cpu({"JAX_PLATFORMS": "cpu"})
  assert not runs_on_cpu({"JAX_PLATFORMS": "cuda,cpu"})
  for plugin in ("jax_plugins", "libtpu", ""):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, plugin=plugin: name if name == plugin else None)
    assert runs_on_cpu({}) == (plugin == "")


_SHOW = """
import os, sys, jax
from mlnotes.engine.flags import run
from mlnotes.engine.loop import LoopConfig
sys.argv[1:] = {arguments}
run(lambda config: print(jax.device_count(), os.environ["NPROC"], os.environ["XLA_FLAGS"]) or 0, LoopConfig)
"""


def test_a_command_runs_in_its_layout():
  """Also where JAX was told of its devices before: these stay."""
  environ = {**os.environ, "XLA_FLAGS": "", "NPROC": "4", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

  def show(*arguments, **more):
    code = _SHOW.format(arguments=list(arguments))
    done = subprocess.run([sys.executable, "-c", code], env={**environ, **more}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()

  devices, threads, *flags = show("--seeds=2")
  assert (devices, threads) == ("2", "2")
  # Devices whose seeds take longer than a minute more than those of others do not end the process.
  assert "--xla_cpu_collective_call_terminate_timeout_seconds=86400" in flags
  own = "--xla_force_host_platform_device_count=3 --xla_cpu_collective_call_terminate_timeout_seconds=7"
  devices, threads, *flags = show("--seeds=4", XLA_FLAGS=own)
  assert (devices, threads) == ("3", "1")
  assert [flag.partition("=")[2] for flag in flags if "terminate" in flag] == ["7"]
  assert show("--seeds=2", JAX_NUM_CPU_DEVICES="3")[0] == "3"


def test_each_of_many_processes_is_a_device(monkeypatch):
  """With the threads and the small loops of a single process, or their numbers would differ by rounding."""
  peers = {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
  for name, value in {"NPROC": "4", "JAX_PLATFORMS": "cpu", **peers}.items():
    monkeypatch.setenv(name, value)
  applied = []
  monkeypatch.setattr("mlnotes.engine.layout.apply_layout", applied.append)
  for config in (RLConfig(seeds=2), LoopConfig(seeds=2), LoopConfig(fsdp=2)):
    flags._lay_out(config)
  assert applied == [Layout(1, 1, True), Layout(1, 4), Layout(1, 4)]


def test_a_command_without_a_layout_starts_without_jax():
  code = """
import sys
from mlnotes.engine.flags import BaseConfig, run
run(lambda config: int("jax" in sys.modules), BaseConfig)
"""
  assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


def test_one_by_one_is_vmap():
  x, y = np.arange(6.0).reshape(3, 2), np.array([2.0, 3.0])
  f = lambda x, y: {"a": x * y, "b": x.sum()}
  for rows in (3, 1):
    ours, theirs = one_by_one(f, (0, None))(x[:rows], y), jax.vmap(f, (0, None))(x[:rows], y)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


class Walk(NamedTuple):
  step: jax.Array
  key: jax.Array
  position: jax.Array


def _walk(turn=lambda position: position, size=3) -> Experiment:
  """Every step goes where its key says, after a turn."""

  def step(state, batch):
    move = jax.random.normal(stream_key(state.key, "move", state.step), state.position.shape)
    position = turn(state.position) + move
    return state._replace(step=state.step + 1, position=position), {"height": position.sum()}

  return Experiment(
    init=lambda key, batch: Walk(jnp.int32(0), key, jnp.zeros(size)),
    step=step,
    evaluate=lambda state, batch: {"loss": Mean(jnp.sum(state.position**2), jnp.float32(1))},
    report=None,
    model=None,
  )


@pytest.mark.parametrize(("num_seeds", "devices"), [(4, 1), (4, 2), (4, 4), (3, 2)])
@pytest.mark.parametrize("in_turn", [False, True])
def test_seeds_on_devices_of_their_own_are_seeds_alone(num_seeds, devices, in_turn):
  """In turn, vmapped, or alone on a device: the same numbers, windows and evaluations, in the order of the seeds."""
  seeds = (3, 1, 4, 1 + 2**31)[:num_seeds]
  together = Program(_walk(), Feeds(), seeds, make_mesh(devices), seeds_in_turn=in_turn)
  state, window = together.update(together.init(), together.empty_window(), 5)
  assert len(state.position.sharding.device_set) == devices
  heights, losses = window_means(window)["height"], together.evaluate(state)["loss"]
  alone = Program(_walk(), Feeds(), seeds[:1], make_mesh(1))
  for i, seed in enumerate(seeds):
    one = alone.with_seeds((seed,))
    own, window = one.update(one.init(), one.empty_window(), 5)
    np.testing.assert_allclose(state.position[i], own.position, rtol=1e-6)
    np.testing.assert_allclose(heights[i], window_means(window)["height"], rtol=1e-6)
    np.testing.assert_allclose(losses[i], one.evaluate(own)["loss"], rtol=1e-6)


def _native(x, kernel):
  return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


def test_convolutions_and_small_states_of_several_seeds_are_computed_in_turn():
  """Unless a loop would have the slow one, which JAX writes for the gradient of a kernel."""
  fast = lambda x: convolve(x[None, :, None], jnp.ones((3, 1, 1)))[0, :, 0]
  slow = lambda x: jax.grad(lambda kernel: _native(x[None, :, None], kernel).sum())(jnp.ones((3, 1, 1)))[:, 0, 0]

  def in_turn(turn, seeds, devices=1, size=600):
    return Program(_walk(turn, size), Feeds(), range(seeds), make_mesh(devices)).seeds_in_turn

  assert in_turn(fast, 2) and in_turn(fast, 3, 2) and in_turn(fast, 4, 2)
  assert in_turn(jnp.sin, 2, size=3) and not in_turn(jnp.sin, 2)
  assert not in_turn(slow, 2, size=3) and not in_turn(fast, 1)
  assert in_turn(jnp.sin, 2, 2)  # one each: nothing to be vmapped
