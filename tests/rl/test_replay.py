"""The ring buffer against a plain list of the newest entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mlnotes.engine.errors import InputError
from mlnotes.rl.env import Trajectory, init_actors, rollout
from mlnotes.rl.off_policy import update_target
from mlnotes.rl.registry import make_env
from mlnotes.rl.replay import add, as_transitions, init_env_replay, init_replay, sample, sample_batches

EXAMPLE = {"number": jnp.zeros([], jnp.int32), "vector": jnp.zeros(3)}


def entries(numbers):
  numbers = np.asarray(numbers, np.int32)
  return {"number": jnp.asarray(numbers), "vector": jnp.asarray(numbers[:, None] * [1.0, -1.0, 0.5], jnp.float32)}


@pytest.mark.parametrize("capacity, sizes", [(7, [3, 3, 3, 7, 1, 5, 2]), (5, [5, 5, 1]), (1, [1, 1]), (9, [4, 4])])
def test_holds_the_newest_entries_across_wrap_around(capacity, sizes):
  replay, written = init_replay(EXAMPLE, capacity), []
  for size in sizes:
    new = list(range(len(written) + 1, len(written) + 1 + size))
    replay = jax.jit(add)(replay, entries(new))
    written += new
    newest = written[-capacity:]
    assert int(replay.size) == len(newest)
    held = np.asarray(replay.data["number"][: len(newest)])
    assert sorted(held) == newest
    # The next entry replaces the oldest.
    if len(newest) == capacity:
      assert held[int(replay.position)] == newest[0]
    np.testing.assert_array_equal(replay.data["vector"][: len(newest)], held[:, None] * np.float32([1.0, -1.0, 0.5]))


def test_random_sizes_against_a_list():
  rng = np.random.default_rng(0)
  push = jax.jit(add)
  replay, written = init_replay(EXAMPLE, 16), []
  for size in rng.choice([1, 3, 16, 7], 40):
    new = list(range(len(written), len(written) + size))
    replay, written = push(replay, entries(new)), written + new
    order = (int(replay.position) + np.arange(16)) % 16 if int(replay.size) == 16 else np.arange(int(replay.size))
    np.testing.assert_array_equal(np.asarray(replay.data["number"])[order], written[-16:])


def test_samples_are_valid_uniform_and_whole(key):
  replay = add(init_replay(EXAMPLE, 50), entries(range(1, 11)))
  batch = jax.jit(sample, static_argnums=2)(replay, key, 5000)
  counts = np.bincount(batch["number"], minlength=11)
  assert counts[0] == 0 and counts.size == 11  # never one of the 40 empty rows
  assert stats.chisquare(counts[1:]).pvalue > 1e-3
  np.testing.assert_array_equal(batch["vector"][:, 0], batch["number"].astype(jnp.float32))


def test_batches_are_independent(key):
  replay = add(init_replay(EXAMPLE, 1000), entries(range(1000)))
  batches = sample_batches(replay, key, 4, 64)
  assert batches["vector"].shape == (4, 64, 3)
  assert len({tuple(row) for row in np.asarray(batches["number"]).tolist()}) == 4


def test_one_buffer_per_seed():
  stacked = jax.vmap(lambda x: add(init_replay(EXAMPLE, 3), x))
  replay = stacked(jax.tree.map(lambda a, b: jnp.stack([a, b]), entries([1, 2]), entries([8, 9])))
  replay = jax.vmap(add)(replay, jax.tree.map(lambda a, b: jnp.stack([a, b]), entries([3, 4]), entries([6, 7])))
  np.testing.assert_array_equal(replay.data["number"], [[4, 2, 3], [7, 9, 6]])


def test_a_loop_writes_in_place():
  """The compiled loop holds one buffer: what it needs beside its donated argument is far smaller than another one."""
  capacity = 200_000

  def one(i, carry):
    replay, key = carry
    replay = add(replay, jax.tree.map(lambda x: jnp.full((4, *x.shape), i, x.dtype), EXAMPLE))
    total = jnp.sum(sample(replay, jax.random.fold_in(key, i), 8)["number"])
    return replay._replace(position=replay.position + 0 * total), key

  carry = (init_replay(EXAMPLE, capacity), jax.random.key(0))
  loop = jax.jit(lambda carry, n: jax.lax.fori_loop(0, n, one, carry), donate_argnums=0)
  memory = loop.lower(carry, 10).compile().memory_analysis()
  buffer_bytes = sum(x.nbytes for x in jax.tree.leaves(carry[0].data))
  assert memory.alias_size_in_bytes >= buffer_bytes
  assert memory.temp_size_in_bytes < 0.1 * buffer_bytes


def test_errors():
  with pytest.raises(ValueError, match="capacity=0"):
    init_replay(EXAMPLE, 0)
  with pytest.raises(ValueError, match="8 entries do not fit into a replay of 7"):
    add(init_replay(EXAMPLE, 7), entries(range(8)))
  with pytest.raises(ValueError, match="batch_size=0"):
    sample(init_replay(EXAMPLE, 7), jax.random.key(0), 0)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"vector": jnp.ones((4, 1))}, r"\['vector'\] has shape \(4, 1\) .* expected \(N, 3\)"),
    ({"vector": jnp.ones((1, 3))}, r"\['vector'\] has shape \(1, 3\) .* one N for all"),
    ({"number": jnp.ones(4)}, r"\['number'\] has shape \(4,\) and dtype float32: expected \(N,\) and int32"),
    ({"number": jnp.ones((4, 1), jnp.int32)}, r"\['number'\] has shape \(4, 1\)"),
    ({"more": jnp.ones(4)}, "expected .* as in the replay"),
  ],
)
def test_entries_that_do_not_fit_are_refused(change, message):
  """A write would repeat them, or cut them off to whole numbers."""
  with pytest.raises(InputError, match=message):
    add(init_replay(EXAMPLE, 7), {**entries(range(4)), **change})


def test_transitions_keep_the_final_observation_and_the_discount():
  """What is stored is the observation before the reset, and the discount; `last` is not."""
  grid = lambda *shape: jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
  trajectory = Trajectory(
    observation=grid(2, 3, 4),
    action=grid(2, 3).astype(jnp.int32),
    reward=grid(2, 3),
    discount=jnp.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]),
    last=jnp.array([[True, True, False], [False, False, True]]),
    next_observation=-grid(2, 3, 4),
    episode_return=grid(2, 3),
    episode_length=grid(2, 3).astype(jnp.int32),
  )
  transitions = as_transitions(trajectory)
  np.testing.assert_array_equal(transitions.discount, [1, 0, 1, 1, 1, 0])
  np.testing.assert_array_equal(transitions.action, np.arange(6))
  np.testing.assert_array_equal(transitions.next_observation, -np.arange(24).reshape(6, 4))
  assert not {"last", "done"} & set(transitions._fields)


@pytest.mark.parametrize("name, action", [("CartPole-v1", jnp.int32), ("Pendulum-v1", jnp.float32)])
def test_replay_of_an_environment(name, action):
  env = make_env(name)
  data = init_env_replay(env, 10).data
  observation = jax.eval_shape(lambda key: env.reset(key)[1], jax.random.key(0))
  assert data.action.dtype == action and data.observation.shape == (10, *observation.shape)


def test_pictures_of_zeros_and_ones_are_held_in_bytes_and_come_back_as_they_were(key):
  env = make_env("Breakout-MinAtar")
  actors = init_actors(env, key, 3)
  noise = jax.random.randint(jax.random.key(1), (12, 3), 0, env.actions.n, jnp.int32)
  act = lambda noise, observation: noise
  trajectory = jax.jit(lambda actors: rollout(env, act, noise, jax.random.key(2), actors))(actors)[1]
  replay = init_env_replay(env, 50)
  replay = add(replay, as_transitions(trajectory, replay))
  plain = as_transitions(trajectory)
  assert replay.data.observation.dtype == bool and plain.observation.dtype == jnp.float32
  for name in ("observation", "next_observation"):
    held = np.asarray(getattr(replay.data, name))[:36]
    np.testing.assert_array_equal(held.astype(np.float32), getattr(plain, name))
  assert np.any(plain.observation)


def test_targets_copy_at_the_period_and_move_by_tau():
  target, params = {"w": jnp.zeros(2)}, {"w": jnp.array([1.0, -2.0])}
  copied = [update_target(target, params, 1.0, count, 3)["w"].tolist() for count in range(6)]
  assert copied == [[0, 0], [0, 0], [1, -2], [0, 0], [0, 0], [1, -2]]
  moved = target
  for _ in range(10):
    moved = update_target(moved, params, 0.1)
  # A geometric approach: the closed form of ten steps.
  np.testing.assert_allclose(moved["w"], (1 - 0.9**10) * np.array([1.0, -2.0]), rtol=1e-5)
