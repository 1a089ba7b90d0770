"""Experience replay: a ring buffer on the device (Lin 1992; Mnih et al. 2015).

    replay = init_replay(example, capacity)
    replay = add(replay, as_transitions(trajectory))
    batch = sample(replay, key, batch_size)

Everything is one buffer of one agent; `jax.vmap` over the whole state makes it one per seed. Inside a donated loop
`add` writes in place, whatever the capacity, as long as no copy of the old buffer is needed later: read batches after
the write, and keep the buffer out of `lax.cond`, which turns into a selection between two buffers under `jax.vmap`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.rl.env import Discrete, Environment, Trajectory


class Transition(NamedTuple):
  """What off-policy methods learn from; any leading axes.

  Attributes:
    discount: 0 where the episode terminated, otherwise 1, also where a time limit truncated it. The method
      multiplies it by its own discount factor.
    next_observation: what the action led to, before any reset.
  """

  observation: Any
  action: Any
  reward: Float[Array, "*B"]
  discount: Float[Array, "*B"]
  next_observation: Any


class Replay(NamedTuple):
  """The newest `size` entries of a stream.

  Attributes:
    data: pytree whose leaves are (capacity, ...).
    position: where the next entry goes, in 0 .. capacity - 1.
    size: how many entries are valid: the rows 0 .. size - 1.
  """

  data: PyTree
  position: Int[Array, ""]
  size: Int[Array, ""]


def _rows(tree: PyTree) -> int:
  return jax.tree.leaves(tree)[0].shape[0]


def _check_entries(data: PyTree, batch: PyTree) -> None:
  """A write would broadcast or truncate what does not fit: refuse it."""
  held, given = jax.tree.structure(data), jax.tree.structure(batch)
  if held != given:
    raise InputError(f"entries are {given}: expected {held}, as in the replay.")
  count = jnp.shape(jax.tree.leaves(batch)[0])[:1]
  for (path, buffer), new in zip(jax.tree_util.tree_leaves_with_path(data), jax.tree.leaves(batch)):
    if jnp.shape(new) != (*count, *buffer.shape[1:]) or jnp.result_type(new) != buffer.dtype:
      name = jax.tree_util.keystr(path) or "entries"
      raise InputError(
        f"{name} has shape {jnp.shape(new)} and dtype {jnp.result_type(new)}: expected "
        f"({', '.join(map(str, ('N', *buffer.shape[1:])))}{'' if buffer.ndim > 1 else ','}) and {buffer.dtype}, with "
        "one N for all."
      )


def init_replay(example: PyTree, capacity: int) -> Replay:
  """An empty buffer for entries of the shapes and dtypes of `example` (arrays or ShapeDtypeStructs).

  Raises InputError for a capacity below 1.
  """
  if capacity < 1:
    raise InputError(f"capacity={capacity} is out of range: expected 1 or more.")
  data = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
  return Replay(data, jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32))


def init_env_replay(env: Environment, capacity: int) -> Replay:
  """An empty buffer for the transitions of `env`.

  MinAtar's pictures, whose entries are 0 or 1, are held as bool: a quarter of the memory.
  """
  observation = jax.eval_shape(lambda key: env.reset(key)[1], root_key(0))
  if env.name.endswith("-MinAtar"):
    observation = jax.ShapeDtypeStruct(observation.shape, jnp.bool_)
  discrete = isinstance(env.actions, Discrete)
  action = jax.ShapeDtypeStruct((), jnp.int32) if discrete else jax.ShapeDtypeStruct(env.actions.shape, jnp.float32)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  return init_replay(Transition(observation, action, scalar, scalar, observation), capacity)


def add(replay: Replay, batch: PyTree) -> Replay:
  """Appends the N entries of `batch`, (N, ...), in order; the oldest make way once the buffer is full.

  Raises InputError where N exceeds the capacity, and for entries of other names, shapes or dtypes than the buffer's.
  """
  _check_entries(replay.data, batch)
  capacity, count = _rows(replay.data), _rows(batch)
  if count > capacity:
    raise InputError(f"{count} entries do not fit into a replay of {capacity}: expected at most that many.")
  rows = (replay.position + jnp.arange(count)) % capacity
  write = lambda buffer, new: buffer.at[rows].set(new, unique_indices=True, mode="promise_in_bounds")
  data = jax.tree.map(write, replay.data, batch)
  return Replay(data, (replay.position + count) % capacity, jnp.minimum(replay.size + count, capacity))


def sample(replay: Replay, key: Key[Array, ""], batch_size: int) -> PyTree:
  """`batch_size` valid entries, uniformly and with replacement: (batch_size, ...). Raises InputError for none.

  An empty buffer has none: what it gives is zeros, which the caller must not learn from.
  """
  if batch_size < 1:
    raise InputError(f"batch_size={batch_size} is out of range: expected 1 or more.")
  rows = jax.random.randint(key, (batch_size,), 0, jnp.maximum(replay.size, 1))
  return jax.tree.map(lambda buffer: buffer.at[rows].get(mode="promise_in_bounds"), replay.data)


def sample_batches(replay: Replay, key: Key[Array, ""], num_batches: int, batch_size: int) -> PyTree:
  """Independent batches for several gradient steps, drawn in one go: (num_batches, batch_size, ...)."""
  entries = sample(replay, key, num_batches * batch_size)
  return jax.tree.map(lambda x: x.reshape(num_batches, batch_size, *x.shape[1:]), entries)


def as_transitions(trajectory: Trajectory, replay: Replay | None = None) -> Transition:
  """The transitions of a trajectory (T, N, ...) as one batch (T N, ...), oldest first.

  With `replay`, one of `init_env_replay`, observations have the dtype in which it holds them.
  """
  transition = Transition(*(getattr(trajectory, name) for name in Transition._fields))
  transition = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transition)
  if replay is None:
    return transition
  held = replay.data.observation.dtype
  return transition._replace(
    observation=transition.observation.astype(held), next_observation=transition.next_observation.astype(held)
  )
