"""Saving and restoring states; the loop's own tests cover kills, corruption and exact resume."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.errors import InputError
from mlnotes.engine.summary import Score


class State(NamedTuple):
  key: jax.Array
  params: dict
  empty: tuple


def make_state(value):
  return State(jax.random.key(3), {"w": jnp.full((8, 2), value), "count": jnp.int32(value)}, ())


def abstract(state):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def test_the_best_and_the_last_are_kept(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  scores = {1: Score(0, 3.0), 2: Score(0, 1.0), 3: Score(0, 2.0), 4: Score(1, 0.5), 5: Score(0, float("nan")), 6: None}
  for step, score in scores.items():
    checkpoints.save(step, make_state(step), {"step": step}, score)
  checkpoints.wait()
  checkpoints.close()
  again = Checkpoints(tmp_path)
  assert again.latest_step() == 6 and again.best_step() == 2 and again.best_score() == scores[2]
  assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 6]
  state, metadata = again.restore(2, abstract(make_state(0)))
  assert metadata == {"step": 2}
  np.testing.assert_array_equal(state.params["w"], 2.0)
  assert jax.random.bits(state.key) == jax.random.bits(jax.random.key(3))
  again.close()


def test_another_structure_is_refused(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, make_state(1), {}, None)
  checkpoints.wait()
  other = abstract(make_state(0)._replace(params={"v": jnp.zeros(3)}))
  with pytest.raises(InputError, match="cannot be read"):
    checkpoints.restore(1, other)
  checkpoints.close()


def test_a_reader_opens_what_a_run_is_tidying_up(tmp_path, monkeypatch):
  """A run may remove a checkpoint between a reader's look at the directory and its look into the checkpoint."""
  import orbax.checkpoint as ocp

  Checkpoints(tmp_path).close()
  real, tries = ocp.CheckpointManager, []

  def vanishing(*args, **kwargs):
    tries.append(None)
    if len(tries) < 3:
      raise FileNotFoundError("metrics")
    return real(*args, **kwargs)

  monkeypatch.setattr(ocp, "CheckpointManager", vanishing)
  Checkpoints(tmp_path, read_only=True).close()
  assert len(tries) == 3
  tries.clear()
  with pytest.raises(FileNotFoundError):
    Checkpoints(tmp_path)
