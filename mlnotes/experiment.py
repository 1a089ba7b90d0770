"""The contract between a method and everything that runs it.

An optax optimizer is a pair of pure functions; an `Experiment` is the same idea one level up. Whoever holds one can
train it (`mlnotes.loop`), time it, vmap it over seeds and hyper-parameters, or shard it, without knowing the method.
"""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, Num

# A NamedTuple of arrays with at least `step` (int32 scalar: updates done) and `key` (typed key: the constant root).
State: TypeAlias = Any
# What the data feed gives: a dict of arrays with a leading batch axis, or () where the step makes its own data.
Batch: TypeAlias = Any
Metrics: TypeAlias = Mapping[str, Any]


class Mean(NamedTuple):
  """A mean that is still a sum, so that batches of unequal size add up to the mean over all examples."""

  total: Num[Array, "..."]
  count: Num[Array, "..."]


class Experiment(NamedTuple):
  """One method as four functions. `make(config) -> Experiment` builds it.

  init:     (key, batch) -> State. The whole state from one key; `batch` is an example of what `step` will get.
  step:     (State, batch) -> (State, {name: scalar or Mean}). One update; pure, no I/O. Adds one to `state.step`.
            A Mean is for what not every update has, such as the return of the episodes that ended in it.
  evaluate: (State, batch) -> {name: Mean}. Pure; sums and counts over the batch, with `batch["mask"]` (1 real, 0
            padding) where there is a batch. Random numbers come from `batch["index"]`, never from the batch's shape.
            With `embed`: (State, batch, reference) -> {name: Mean}.
  report:   (State, directory) -> {name: number} or None. Host side: writes pictures and tables for one seed's state;
            the numbers join the evaluation's in the result card.
  embed:    (State, batch) -> arrays with a leading batch axis; None where examples are judged alone. For what is judged
            against other examples, such as by nearest neighbours: before each evaluation it runs over the batches of
            `feeds.reference`, and `evaluate` gets the results joined along that axis as `reference`.
  """

  init: Callable[[Key[Array, ""], Batch], State]
  step: Callable[[State, Batch], tuple[State, Metrics]]
  evaluate: Callable[..., Mapping[str, Mean]]
  report: Callable[[State, Path], Mapping[str, float] | None]
  embed: Callable[[State, Batch], Any] | None = None


def stream(name: str) -> int:
  """The number that a named random stream folds into the root key: stable across processes and versions."""
  return zlib.crc32(name.encode()) & 0x7FFFFFFF


def stream_key(root: Key[Array, ""], name: str, step: Int[Array, ""] | int = 0) -> Key[Array, ""]:
  """The key of stream `name` at `step`. Two names, or two steps, never give the same key."""
  return jax.random.fold_in(jax.random.fold_in(root, stream(name)), step)


def example_keys(key: Key[Array, ""], index: Int[Array, " B"]) -> Key[Array, " B"]:
  """One key per example, by its position in the data set: the same whatever the batch and the number of devices."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def masked_mean(values: Num[Array, " B"], mask: Num[Array, " B"]) -> Mean:
  """Sum and count of the per-example `values` where `mask` is 1."""
  return Mean(jnp.sum(jnp.where(mask > 0, values, 0)), jnp.sum(mask))


def is_hparam(path: tuple, _: Any = None) -> bool:
  """Whether the leaf at `path` of a state is a numeric hyper-parameter, its own or one of its optimizer."""
  return any(getattr(entry, "name", None) in ("hparams", "hyperparams") for entry in path)


def set_hparams(state: State, **values: Num[Array, "..."] | float) -> State:
  """`state` with other values of its numeric hyper-parameters (`state.hparams`, injected optimizer settings).

  Shapes and dtypes stay, so nothing recompiles. Raises KeyError for a name that the state does not hold.
  """
  for name, value in values.items():
    found = optax.tree.get_all_with_path(state, name, filtering=is_hparam)
    if not found:
      raise KeyError(f"hyper-parameter {name!r} is not in this state")
    like = found[0][1]
    new = jnp.broadcast_to(jnp.asarray(value, like.dtype), like.shape)
    state = optax.tree.set(state, is_hparam, **{name: new})
  return state
