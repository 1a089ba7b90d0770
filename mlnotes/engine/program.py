"""An experiment compiled: seeds side by side, batches drawn inside, spread over a mesh of devices.

The training loop and the benchmarks run the same program; nothing here knows about files or flags.
"""

import copy
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from mlnotes.data import EvalBatches, Feeds, StreamFeed
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Experiment, Mean, State, root_key
from mlnotes.engine.sharding import fetch, fsdp_spec, make_mesh as make_mesh, place, shares_seeds
from mlnotes.nn.conv import contains_convolution, contains_slow_convolution


def quick_compilation(device: jax.Device, level: int) -> dict[str, int]:
  """Compiler options for a program that runs once or seldom.

  On the CPU most of the compile time is LLVM's, and its last levels pay only in code that runs often: for the
  initialisation of a U-Net level 0 takes a third of the default's time.
  """
  return {"xla_backend_optimization_level": level} if device.platform == "cpu" else {}


# Bytes of a state without batches, such as an agent's small table of values, that a loop of the CPU keeps in one
# function: without the seeds of vmap, which make it a call for each operation, four seeds are 2 to 7 times as fast.
_SMALL_STATE = 2048


class Window(NamedTuple):
  """Sums and counts of the training metrics since they were last logged."""

  total: Mapping[str, Float[Array, "..."]]
  count: Mapping[str, Float[Array, "..."]]


def one_by_one(f: Callable[..., Any], in_axes: Sequence[int | None]) -> Callable[..., Any]:
  """`jax.vmap(f, in_axes)` computed one row after the other; each entry of `in_axes` is 0 or None."""

  def mapped(*args):
    def one(rows):
      rows = iter(rows)
      return f(*(arg if axis is None else next(rows) for arg, axis in zip(args, in_axes)))

    rows = [arg for arg, axis in zip(args, in_axes) if axis is not None]
    if jax.tree.leaves(rows)[0].shape[0] > 1:
      return jax.lax.map(one, rows)
    return jax.tree.map(lambda x: x[None], one(jax.tree.map(lambda x: x[0], rows)))

  return mapped


class Program:
  """`init`, `update` and `evaluate` of an experiment for one or several seeds on a mesh.

  With several seeds every array of the state and every metric has a leading seed axis. The devices share the seeds
  where these divide evenly, and those of a CPU wherever there are enough, otherwise each batch; either way the numbers
  are those of a single device. On a mesh with an axis `fsdp` they share the large arrays of the state as well, and XLA
  gathers each where it is used.

  The seeds of a device are vmapped, or on the CPU computed one after the other where vmap is slower: with convolutions,
  and with states of a few numbers.

  The mesh may span processes: each of them then calls every method, in the same order, with the same arguments.

  Attributes:
    compile_seconds: tracing and compilation so far.
    compiled_update: the executable behind `update`, for cost and memory analysis; None before the first update.
    dispatch: "scan" where a whole stretch of updates is one call, "step" where each update is a call of its own.
    seeds_in_turn: whether the seeds of a device are computed one after the other. Chosen where None is given.
  """

  def __init__(
    self,
    experiment: Experiment,
    feeds: Feeds,
    seeds: Sequence[int],
    mesh: jax.sharding.Mesh,
    seeds_in_turn: bool | None = None,
  ):
    self.experiment = experiment
    self.feeds = feeds
    self.mesh = mesh
    self.num_seeds = len(seeds)
    self.compile_seconds = 0.0
    self.compiled_update = None
    self.streamed = isinstance(feeds.train, StreamFeed)
    self.dispatch = "step" if self.streamed else "scan"
    self._seeds = np.asarray(seeds, np.uint32)
    self._replicated = NamedSharding(mesh, PartitionSpec())
    self._fsdp = mesh.shape.get("fsdp", 1)
    self._by_seed = shares_seeds(self.num_seeds, mesh.size, self._fsdp)
    # The devices of a CPU take whole seeds also where these do not divide: a device that has one fewer does one twice.
    one_cpu = self._replicated.is_fully_addressable and mesh.devices.flat[0].platform == "cpu"
    enough = one_cpu and self._fsdp == 1 and self.num_seeds > mesh.size > 1
    self._surplus = -self.num_seeds % mesh.size if enough else 0
    self._whole_seeds = self._by_seed or self._surplus > 0
    self._over_devices = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    batches_of_seeds = self.streamed and self.num_seeds > 1
    rows = (None, mesh.axis_names) if batches_of_seeds and not self._whole_seeds else (mesh.axis_names,)
    self._streamed_sharding = self._replicated if self._surplus else NamedSharding(mesh, PartitionSpec(*rows))
    self._data_axis = 0 if batches_of_seeds else None
    self._whole = not self.streamed and feeds.train.whole
    # The inner jits cache their trace, which the shape inference and the compilation below then share.
    self._init = jax.jit(experiment.init)
    self._step = jax.jit(experiment.step)
    self._evaluate = None
    self._arrays = () if self.streamed else place(feeds.train.arrays, self._replicated)
    arrays = (feeds.evaluate.arrays, feeds.reference.arrays if feeds.reference else ())
    self._eval_arrays = place(arrays, self._replicated)
    self._check_divisible()
    if seeds_in_turn is not None:
      self.seeds_in_turn = seeds_in_turn

  def _check_divisible(self) -> None:
    if self.feeds.evaluate.whole:
      return
    draw = lambda arrays: self.feeds.evaluate.draw(arrays, 0)
    for leaf in jax.tree.leaves(jax.eval_shape(draw, self.feeds.evaluate.arrays))[:1]:
      size = leaf.shape[0]
      if not self._whole_seeds and size % self.mesh.size:
        raise InputError(
          f"--batch_size={size} cannot be shared by {self.mesh.size} devices: expected a multiple of that, or fewer "
          "--devices."
        )

  # -- seeds -------------------------------------------------------------------------------------------------------

  @functools.cached_property
  def seeds_in_turn(self) -> bool:
    if self.num_seeds == 1 or self.mesh.devices.flat[0].platform != "cpu":
      return False
    if self._by_seed and self.num_seeds == self.mesh.size:
      return True  # no turns at all
    state, data = self._abstract_one()
    update = jax.make_jaxpr(self._update_one)(state, data)
    if contains_slow_convolution(update):
      return False  # a loop over the seeds would have it
    size = sum(x.size * getattr(x.dtype, "itemsize", 8) for x in jax.tree.leaves(state))
    return (not jax.tree.leaves(data) and size <= _SMALL_STATE) or contains_convolution(update)

  def _abstract_one(self):
    """State and data of one seed, by their shapes."""
    first = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    data = self._example_input()
    return jax.tree.map(first, self.abstract_state), jax.tree.map(first, data) if self._data_axis == 0 else data

  def _over_seeds(self, f: Callable[..., Any], in_axes: Sequence[int | None], once: bool = False) -> Callable[..., Any]:
    """`f` of one seed for all seeds, each device its own; `in_axes` has 0 for what has a leading seed axis.

    What is computed `once` is vmapped in any case, and no seed is computed twice.
    """
    if self.num_seeds == 1:
      return f
    mapped = (one_by_one if not once and self.seeds_in_turn else jax.vmap)(f, in_axes)
    if not self._whole_seeds or self.mesh.size == 1 or (once and self._surplus):
      return mapped
    seeds = PartitionSpec(self.mesh.axis_names)
    in_specs = tuple(PartitionSpec() if axis is None else seeds for axis in in_axes)
    # The devices have nothing to say to each other: `check_vma` would ask loops within `f` to know of the mesh.
    shared = jax.shard_map(mapped, mesh=self.mesh, in_specs=in_specs, out_specs=seeds, check_vma=False)
    if not self._surplus:
      return shared
    rows = np.append(np.arange(self.num_seeds), np.arange(self._surplus))

    def even(*args):
      args = [arg if axis is None else jax.tree.map(lambda x: x[rows], arg) for arg, axis in zip(args, in_axes)]
      return jax.tree.map(lambda x: x[: self.num_seeds], shared(*args))

    return even

  def with_seeds(self, seeds: Sequence[int]) -> "Program":
    """This program for other seeds, as many, without compiling anew. Raises ValueError for more, or streamed data."""
    if len(seeds) != self.num_seeds or self.streamed:
      raise ValueError(f"found seeds {tuple(seeds)}: expected {self.num_seeds} of them, and resident data.")
    self.compile()
    other = copy.copy(self)
    other._seeds = np.asarray(seeds, np.uint32)
    return other

  # -- the state ---------------------------------------------------------------------------------------------------

  def _root_keys(self):
    keys = [root_key(seed) for seed in self._seeds]
    return jnp.stack(keys) if self.num_seeds > 1 else keys[0]

  def _first_state(self, keys, data):
    def one(key, data):
      batch = data if self.streamed or self._whole else self.feeds.train.draw(data, key, jnp.zeros([], jnp.int32))
      return self._init(key, batch)

    return self._over_seeds(one, (0, self._data_axis), once=True)(keys, data)

  def init(self) -> State:
    """The state before the first update."""
    start = time.perf_counter()
    options = quick_compilation(self.mesh.devices.flat[0], 0)
    shardings = jax.tree.map(lambda s: s.sharding, self.abstract_state)
    first = jax.jit(self._first_state, out_shardings=shardings, compiler_options=options)
    state = jax.block_until_ready(first(self._root_keys(), self._example_input()))
    self.compile_seconds += time.perf_counter() - start
    return state

  @functools.cached_property
  def abstract_state(self) -> State:
    """The state as ShapeDtypeStructs with their shardings: what a checkpoint is restored into."""
    shapes = jax.eval_shape(lambda data: self._first_state(self._root_keys(), data), self._example_input())
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=self._leaf_sharding(s)), shapes)

  def _leaf_sharding(self, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    if self._by_seed:
      return self._over_devices
    if self._fsdp == 1 or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return self._replicated
    return NamedSharding(self.mesh, fsdp_spec(leaf.shape, self._fsdp, first_axis=int(self.num_seeds > 1)))

  @functools.cached_property
  def abstract_window(self) -> Window:
    metrics = jax.eval_shape(self._update_all, self.abstract_state, self._example_input())[1]
    shape = (self.num_seeds,) if self.num_seeds > 1 else ()
    for name, value in metrics.items():
      for leaf in jax.tree.leaves(value):
        if leaf.shape != shape:
          raise TypeError(f"metric {name!r} of `step` has shape {leaf.shape}: expected a scalar")
    zeros = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=self._replicated) for name in metrics}
    return Window(zeros, zeros)

  def empty_window(self) -> Window:
    # One fresh buffer each: the window is donated to the next update.
    return jax.tree.map(lambda s: place(np.zeros(s.shape, s.dtype), s.sharding), self.abstract_window)

  # -- updates -----------------------------------------------------------------------------------------------------

  def _place(self, batch):
    place = functools.partial(jax.make_array_from_process_local_data, self._streamed_sharding)
    return jax.tree.map(place, batch)

  @functools.cached_property
  def _streamed_batch(self):
    feed = self.feeds.train
    step = feed.step
    batch = self._place(feed.next())
    feed.seek(step)
    return batch

  def _example_input(self):
    return self._streamed_batch if self.streamed else self._arrays

  def _share(self, batch):
    """A batch spread over the devices, unless each of these has seeds of its own."""
    return batch if self._whole_seeds else jax.lax.with_sharding_constraint(batch, self._over_devices)

  def _update_one(self, state, data):
    """One update of one seed; `data` is a streamed batch or the resident arrays that a batch is drawn from."""
    if not self.streamed and not self._whole:
      data = self._share(self.feeds.train.draw(data, state.key, state.step))
    return self._step(state, data)

  def _update_all(self, state, data):
    """One update of all seeds."""
    return self._over_seeds(self._update_one, (0, self._data_axis))(state, data)

  def _accumulate(self, state, window, data):
    state, metrics = self._update_one(state, data)
    means = {name: m if isinstance(m, Mean) else Mean(m, jnp.ones_like(m)) for name, m in metrics.items()}
    add = lambda sums, field: {name: sums[name] + getattr(m, field).astype(jnp.float32) for name, m in means.items()}
    return state, Window(add(window.total, "total"), add(window.count, "count"))

  def _repeat(self, state, window, data, count):
    return jax.lax.fori_loop(0, count, lambda _, carry: self._accumulate(*carry, data), (state, window))

  def _compile_update(self):
    start = time.perf_counter()
    args = (self.abstract_state, self.abstract_window, self._example_input())
    shardings = jax.tree.map(lambda s: s.sharding, args[:2])
    jit = functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=shardings)

    if self.dispatch == "scan":
      repeat = self._over_seeds(self._repeat, (0, 0, self._data_axis, None))
      traced = jit(repeat).trace(*args, jax.ShapeDtypeStruct((), jnp.int32, sharding=self._replicated))
      if self.mesh.devices.flat[0].platform == "cpu" and contains_slow_convolution(traced.jaxpr):
        self.dispatch = "step"
    if self.dispatch == "step":
      traced = jit(self._over_seeds(self._accumulate, (0, 0, self._data_axis))).trace(*args)
    self.compiled_update = traced.lower().compile()
    self.compile_seconds += time.perf_counter() - start

  def compile(self) -> None:
    """Compiles `update` ahead of its first call."""
    if self.compiled_update is None:
      self._compile_update()

  def trace_update(self) -> jax.extend.core.ClosedJaxpr:
    """One update as JAX traced it, before any compiler: for counting its operations."""
    return jax.make_jaxpr(self._update_all)(self.abstract_state, self._example_input())

  def update(self, state: State, window: Window, count: int) -> tuple[State, Window]:
    """`count` updates. Donates both arguments. Any `count` runs the same executable and gives the same bits."""
    self.compile()
    if self.dispatch == "scan":
      count = place(np.int32(count), self._replicated)
      return self.compiled_update(state, window, self._arrays, count)
    for _ in range(count):
      data = self._place(self.feeds.train.next()) if self.streamed else self._arrays
      state, window = self.compiled_update(state, window, data)
    return state, window

  # -- evaluation --------------------------------------------------------------------------------------------------

  def _eval_batch(self, batches: EvalBatches, arrays, i):
    return batches.draw(arrays, i) if batches.whole else self._share(batches.draw(arrays, i))

  def _embed_reference(self, state, arrays):
    """What `evaluate` takes after state and batch: nothing, or the embedded reference examples, (N, ...)."""
    if self.experiment.embed is None:
      return ()
    batches = self.feeds.reference
    embed = lambda i: self.experiment.embed(state, self._eval_batch(batches, arrays, i))
    rows = jax.lax.map(embed, jnp.arange(batches.num_batches))
    return (jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows),)

  def _evaluate_one(self, state, all_arrays):
    arrays, reference_arrays = all_arrays
    reference = self._embed_reference(state, reference_arrays)

    def one(i):
      metrics = self.experiment.evaluate(state, self._eval_batch(self.feeds.evaluate, arrays, i), *reference)
      return jax.tree.map(lambda x: x.astype(jnp.float32), metrics)

    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), jax.eval_shape(one, jnp.zeros([], jnp.int32)))
    body = lambda i, sums: jax.tree.map(jnp.add, sums, one(i))
    return jax.lax.fori_loop(0, self.feeds.evaluate.num_batches, body, zero)

  def _evaluate_all(self, state, all_arrays):
    return self._over_seeds(self._evaluate_one, (0, None))(state, all_arrays)

  @functools.cached_property
  def _traced_evaluation(self):
    jitted = jax.jit(self._evaluate_all, out_shardings=self._replicated)
    return jitted.trace(self.abstract_state, self._eval_arrays)

  @property
  def evaluation_names(self) -> list[str]:
    """What `evaluate` measures, without running it."""
    return sorted(self._traced_evaluation.out_info)

  def evaluate(self, state: State) -> dict[str, Any]:
    """The mean of each evaluation metric over all evaluation batches: () or (seeds,)."""
    if self._evaluate is None:
      start = time.perf_counter()
      self._evaluate = self._traced_evaluation.lower().compile(quick_compilation(self.mesh.devices.flat[0], 1))
      self.compile_seconds += time.perf_counter() - start
    means = self._evaluate(state, self._eval_arrays)
    is_mean = lambda x: isinstance(x, Mean)
    divide = lambda m: np.asarray(np.asarray(m.total, np.float64) / np.asarray(m.count, np.float64))
    return jax.tree.map(divide, dict(means), is_leaf=is_mean)

  def lower(self) -> str:
    """One update and the evaluation as StableHLO: programs with the same text differ in what they start from alone."""
    update = jax.jit(self._update_all).lower(self.abstract_state, self._example_input())
    evaluate = jax.jit(self._evaluate_all).lower(self.abstract_state, self._eval_arrays)
    return update.as_text() + evaluate.as_text()


def take_rows(tree: Any, rows: Any) -> Any:
  """`tree` on one device with some `rows` of its leading axis: `...` for all, an integer, a slice.

  Every process must call it.
  """
  tree = fetch(tree)
  return tree if rows is ... else jax.tree.map(lambda x: x[rows], tree)


def seed_state(state: State, i: int, num_seeds: int) -> State:
  """The state of seed number `i` on one device, without the seed axis. Every process must call it."""
  return take_rows(state, i if num_seeds > 1 else ...)


def window_means(window: Window, rows: Any = ...) -> dict[str, Any]:
  """The training metrics of a window, or of some of its `rows`: () or (seeds,).

  NaN for a seed without a count in it; a metric that no seed has a count of is left out.
  """
  total, count = jax.tree.map(lambda x: np.asarray(x)[rows], jax.device_get(window))
  means = {name: np.float64(total[name]) / np.where(count[name] > 0, count[name], np.nan) for name in total}
  return {name: np.asarray(mean) for name, mean in means.items() if np.any(count[name] > 0)}


def window_finite(window: Window) -> dict[str, np.ndarray]:
  """Which seeds have nothing in a window that is not finite, metric by metric: () or (seeds,)."""
  total, count = jax.tree.map(np.asarray, jax.device_get(window))
  return {name: np.asarray(np.isfinite(total[name]) | (count[name] == 0)) for name in total}


def all_finite(tree: Any, seeds: bool) -> np.ndarray:
  """Whether every floating-point leaf is finite: (), or (seeds,) where the leaves have a leading seed axis."""
  return np.asarray(fetch(_all_finite(tree, seeds)))


@functools.partial(jax.jit, static_argnames="seeds")
def _all_finite(tree, seeds):
  def check(tree):
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(x)) for x in leaves], jnp.array(True))

  return (jax.vmap(check) if seeds else check)(tree)
