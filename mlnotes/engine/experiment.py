"""The contract between a method and everything that runs it.

An optax optimizer is a pair of pure functions; an `Experiment` is the same idea one level up. Whoever holds one can
train it (`mlnotes.engine.loop`), time it, vmap it over seeds and hyper-parameters, or shard it, without knowing the
method.
"""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, Num

from mlnotes.engine.errors import InputError

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
  model:    (State) -> what was trained, as a function of its inputs with the parameters that are evaluated (averaged
            ones where these are); what `mlnotes.load_run` gives. None: the state is all there is.
  """

  init: Callable[[Key[Array, ""], Batch], State]
  step: Callable[[State, Batch], tuple[State, Metrics]]
  evaluate: Callable[..., Mapping[str, Mean]]
  report: Callable[[State, Path], Mapping[str, float] | None]
  embed: Callable[[State, Batch], Any] | None = None
  model: Callable[[State], Any] | None = None


# Named, for the numbers of a seed must not hang on JAX_DEFAULT_PRNG_IMPL. Of this one, alone among JAX's, the numbers
# of a key are the same under vmap.
PRNG_IMPL = "threefry2x32"


def root_key(seed: int | np.integer | Int[Array, ""]) -> Key[Array, ""]:
  """The key of a seed, by the generator of every experiment."""
  return jax.random.key(seed, impl=PRNG_IMPL)


def stream(name: str) -> int:
  """The number that a named random stream folds into the root key: stable across processes and versions."""
  return zlib.crc32(name.encode()) & 0x7FFFFFFF


def stream_key(root: Key[Array, ""], name: str, step: Int[Array, ""] | int = 0) -> Key[Array, ""]:
  """The key of stream `name` at `step`. Two names, or two steps, never give the same key."""
  return jax.random.fold_in(jax.random.fold_in(root, stream(name)), step)


def example_keys(key: Key[Array, ""], index: Int[Array, " B"]) -> Key[Array, " B"]:
  """One key per example, by its position in the data set: the same whatever the batch and the number of devices."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def require_per_example(what: str, values: Any, shape: tuple[int, ...]) -> None:
  """Raises InputError, when it is traced, where `what` has found `values` of another shape than one per example."""
  found = f"shape {values.shape}" if hasattr(values, "shape") else f"a {type(values).__name__}"
  if getattr(values, "shape", None) != shape:
    raise InputError(f"{what}: found {found}, expected {shape}: one number for each example of the batch, not a mean.")


def masked_mean(values: Num[Array, " B"], mask: Num[Array, " B"]) -> Mean:
  """Sum and count of the per-example `values` where `mask` is 1. Raises InputError for other shapes than `mask` has."""
  require_per_example("masked_mean", values, mask.shape)
  return Mean(jnp.sum(jnp.where(mask > 0, values, 0)), jnp.sum(mask))


def is_hparam(path: tuple, _: Any = None) -> bool:
  """Whether the leaf at `path` of a state is a numeric hyper-parameter, its own or one of its optimizer."""
  return any(getattr(entry, "name", None) in ("hparams", "hyperparams") for entry in path)


def set_hparams(
  state: State, values: Mapping[str, Num[Array, "..."] | float] = {}, /, **more: Num[Array, "..."] | float
) -> State:
  """`state` with other values of its numeric hyper-parameters (`state.hparams`, injected optimizer settings).

  Each is named by its last word (`learning_rate`) where the state has one of that name alone, or by its path as
  `hparam_paths` spells it: `set_hparams(state, {".hparams['momentum']": 0.9}, learning_rate=0.1)`.

  Shapes and dtypes stay, so nothing recompiles. Raises KeyError for a name that the state does not hold, and for one
  that it holds in several places, with their paths.
  """
  paths = hparam_paths(state)
  wanted = {}
  for name, value in {**values, **more}.items():
    places = [path for path, last in paths.items() if name in (path, last)]
    if len(places) != 1:
      known = f"several have that name ({', '.join(places)})" if places else f"expected one of {', '.join(paths)}"
      raise KeyError(f"hyper-parameter {name!r} is {'ambiguous' if places else 'not in this state'}: {known}")
    wanted[places[0]] = value

  def replace(path, leaf):
    name = jax.tree_util.keystr(path)
    return jnp.broadcast_to(jnp.asarray(wanted[name], leaf.dtype), leaf.shape) if name in wanted else leaf

  return jax.tree_util.tree_map_with_path(replace, state)


def hparam_paths(state: State) -> dict[str, str]:
  """{path: last word of it} of the numeric hyper-parameters of a state: {".hparams['discount']": "discount", ..}."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  last = lambda entry: str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))
  return {jax.tree_util.keystr(path): last(path[-1]) for path, _ in leaves if is_hparam(path)}
