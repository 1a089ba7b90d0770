"""Fully sharded states: where each array goes, and that the numbers stay."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from mlnotes.data import ArraySplit, Feeds, make_eval_batches, make_resident_feed
from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Experiment, masked_mean, stream_key
from mlnotes.engine.program import Program, window_means
from mlnotes.engine.sharding import fsdp_spec, make_mesh, one_by_one_on_cpu


@pytest.mark.parametrize(
  "shape, first_axis, expected",
  [
    ((64, 256), 0, (None, "fsdp")),  # the largest axis
    ((64, 254), 0, ("fsdp",)),  # the largest that 4 divides
    ((255, 63), 0, ()),  # none
    ((8, 8), 0, ()),  # too small to be worth it
    ((512, 64), 1, (None, "fsdp")),  # the first axis is that of the seeds
    ((), 0, ()),
    ((0, 8192), 0, ()),
  ],
)
def test_an_array_is_split_along_its_largest_axis(shape, first_axis, expected):
  assert fsdp_spec(shape, 4, first_axis) == PartitionSpec(*expected)


class State(NamedTuple):
  step: jax.Array
  key: jax.Array
  params: Any
  opt_state: optax.OptState


def make_perceptron(width=256):
  """Two layers and Adam, on random images."""
  optimizer = optax.adam(1e-3)

  def losses(params, batch):
    x = batch["image"].reshape(len(batch["label"]), -1) / 255
    for weight in params:
      x = jnp.tanh(x @ weight)
    return optax.softmax_cross_entropy_with_integer_labels(x, batch["label"])

  def init(key, batch):
    sizes = [64, width, 16]
    keys = jax.random.split(stream_key(key, "init"))
    params = [jax.random.normal(k, (n, m)) / np.sqrt(n) for k, n, m in zip(keys, sizes, sizes[1:])]
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def step(state, batch):
    loss, grads = jax.value_and_grad(lambda params: losses(params, batch).mean())(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": loss}

  evaluate = lambda state, batch: {"loss": masked_mean(losses(state.params, batch), batch["mask"])}
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
  split = ArraySplit(images, random.integers(0, 16, 64).astype(np.int32))
  feeds = Feeds(make_resident_feed(split, 32), make_eval_batches(split, 32))
  return Experiment(init, step, evaluate, lambda state, directory: None), feeds


def bytes_on_first_device(tree):
  first = jax.devices()[0]
  shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards]
  return sum(s.data.nbytes for s in shards if s.device == first)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_sharded_parameters_take_less_memory_and_change_no_number(seeds, tmp_path):
  experiment, feeds = make_perceptron()
  whole, sharded = (Program(experiment, feeds, seeds, make_mesh(8, fsdp)) for fsdp in (1, 4))
  outcomes, sizes, states = [], [], []
  for program in (whole, sharded):
    state, window = program.update(program.init(), program.empty_window(), 5)
    outcomes.append((window_means(window), program.evaluate(state)))
    sizes.append(
      (
        bytes_on_first_device((state.params, state.opt_state)),
        program.compiled_update.memory_analysis().argument_size_in_bytes,
      )
    )
    states.append({"state": state, "window": window})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *outcomes)
  assert sizes[1][0] < 0.3 * sizes[0][0] and sizes[1][1] < 0.35 * sizes[0][1]
  assert "all-gather" in sharded.compiled_update.as_text()
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(5, states[1], {}, None)
    checkpoints.wait()
    like = {"state": whole.abstract_state, "window": whole.abstract_window}
    restored, _ = checkpoints.restore(5, like)
    jax.tree.map(np.testing.assert_array_equal, restored["state"].params, states[1]["state"].params)
    # Each program goes on from the other's state.
    back = {"state": sharded.abstract_state, "window": sharded.abstract_window}
    again, _ = checkpoints.restore(5, back)
  results = [
    window_means(program.update(tree["state"], tree["window"], 3)[1])
    for program, tree in ((whole, restored), (sharded, again))
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *results)


@pytest.mark.parametrize("fsdp", [0, 3, 16])
def test_a_group_that_does_not_divide_the_devices_is_refused(fsdp):
  with pytest.raises(InputError, match=f"--fsdp={fsdp} .* a divisor of the 8 devices"):
    make_mesh(0, fsdp)


def test_matrices_of_a_cpu_are_solved_one_by_one():
  """LAPACK's kernel for many of them waits in the threads that it needs: two devices then wait for good."""
  matrix, vector = np.eye(3) * np.arange(1.0, 5)[:, None, None], np.ones((4, 3))
  solve = one_by_one_on_cpu(jnp.linalg.solve)
  expected = np.linalg.solve(matrix, vector[..., None])[..., 0]
  np.testing.assert_allclose(jax.jit(jax.vmap(solve))(matrix, vector), expected, rtol=1e-6)
  batch_axes = lambda f: {
    line.partition('num_batch_dims = "')[2][0]
    for line in jax.jit(jax.vmap(f)).lower(matrix, vector).as_text().splitlines()
    if "num_batch_dims" in line
  }
  assert batch_axes(solve) == {"0"} and "1" in batch_axes(jnp.linalg.solve)
