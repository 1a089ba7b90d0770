"""Saved training states: atomic, asynchronous, the last and the best are kept."""

import contextlib
import errno
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.engine.errors import InputError
from mlnotes.engine.summary import Score


def _is_key(leaf) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def keys_to_data(tree: Any) -> Any:
  """`tree` with typed keys replaced by their raw uint32 data, which any checkpoint format stores."""
  return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def data_to_keys(tree: Any, like: Any) -> Any:
  """The inverse of `keys_to_data`; `like` tells where the keys were."""
  wrap = lambda x, leaf: jax.random.wrap_key_data(x, impl=_generator(leaf)) if _is_key(leaf) else x
  return jax.tree.map(wrap, tree, like)


def _generator(leaf: Any) -> Any:
  """The generator of a key, or of a ShapeDtypeStruct of one."""
  found = []
  jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
  return found[0]


@jax.jit
def _copy(tree: Any) -> Any:
  return jax.tree.map(jnp.copy, keys_to_data(tree))


# A number, because Orbax warns at every checkpoint without a metric.
_NO_SCORE, _MANY = sys.float_info.max, 2**31


def _rank(metrics: Mapping[str, Any]) -> tuple[int, float, int]:
  """Orbax keeps what ranks highest: of equal scores the first, as `is_better` has it."""
  return (-metrics.get("lost", 0), -metrics["score"], -metrics.get("step", 0))


def _as_metrics(step: int, score: Score | None) -> dict[str, Any]:
  if score is None or not np.isfinite(score.value):
    return {"score": _NO_SCORE, "lost": _MANY, "step": -step}  # without a score, the last
  return {"score": float(score.value), "lost": int(score.lost), "step": step}


class Checkpoints:
  """The checkpoints of one work directory, by update number.

  Each holds a pytree of arrays and a JSON dictionary. The last one and the first with the lowest `score` are kept. A
  checkpoint is visible only when it is complete: a process killed while saving leaves the previous one.

  Where several processes train as one, each of them calls every method; all see one directory.

  read_only: for whoever looks at what another process may be writing: nothing is created, removed or saved.
  """

  def __init__(self, directory: Path, *, read_only: bool = False):
    import orbax.checkpoint as ocp

    managers = ocp.checkpoint_managers
    keep = [
      managers.LatestN(n=1),
      managers.BestN(get_metric_fn=_rank, n=1),
    ]
    if not read_only:
      _quiet_writers()
    self.directory = directory
    self._args = ocp.args
    options = ocp.CheckpointManagerOptions(
      best_fn=_rank,
      preservation_policy=None if read_only else managers.AnyPreservationPolicy(keep),
      # The half of a checkpoint that a killed process has left; of a living one it is being written.
      cleanup_tmp_directories=not read_only,
      create=not read_only,
      save_interval_steps=0 if read_only else 1,
      read_only=read_only,
    )
    for last in (False,) * 20 + (True,):
      try:
        with _no_word_of_reading() if read_only else contextlib.nullcontext():
          self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        break
      except (OSError, ValueError):  # the run that writes them is removing one
        if last or not read_only:
          raise
        time.sleep(0.05)

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The checkpoint with the lowest score; the last one where none has a score."""
    return self._manager.best_step()

  def best_score(self) -> Score | None:
    """Of the best checkpoint; None where none has a score."""
    step = self.best_step()
    found = (None if step is None else self._manager.metrics(step)) or {}
    scored = found.get("score", _NO_SCORE) != _NO_SCORE
    return Score(int(found.get("lost", 0)), found["score"]) if scored else None

  def save(self, step: int, state: Any, metadata: Mapping[str, Any], score: Score | None) -> None:
    """Starts saving; the caller may donate `state` as soon as this returns. No `score`: kept only while it is last."""
    # A copy on the device: the next update overwrites the buffers of a donated state while they are being written.
    state = _copy(state)
    with _disk_errors():
      self._save(step, state, metadata, score)

  def _save(self, step, state, metadata, score) -> None:
    self._manager.save(
      step,
      args=self._args.Composite(state=self._args.StandardSave(state), metadata=self._args.JsonSave(dict(metadata))),
      metrics=_as_metrics(step, score),
      force=True,
    )

  def check(self) -> None:
    """Raises what has gone wrong in the threads that save, without waiting for them."""
    with _disk_errors():
      self._manager.check_for_errors()

  def wait(self) -> None:
    """Blocks until what was started is on disk; raises what went wrong."""
    with _disk_errors():
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def restore(self, step: int, like: Any) -> tuple[Any, Mapping[str, Any]]:
    """(state, metadata) of checkpoint `step`; `like` is a state of ShapeDtypeStructs with the shardings wanted.

    The number of devices may differ from when it was saved. Raises InputError for a checkpoint that cannot be read or
    that holds another structure.
    """
    as_data = jax.tree.map(_abstract_data, like)
    try:
      args = self._args.Composite(state=self._args.StandardRestore(as_data), metadata=self._args.JsonRestore())
      restored = self._manager.restore(step, args=args)
    except Exception as error:  # Orbax, TensorStore and JSON each raise their own.
      reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(" See full")[0][:160]
      others = [s for s in self._manager.all_steps() if s != step]
      way_out = f"without that directory step {max(others)} is the last" if others else "no other one is there"
      raise InputError(
        f"the checkpoint {self.directory / str(step)} cannot be read ({reason}): {way_out}; nothing was changed."
      ) from error
    return data_to_keys(restored["state"], like), restored["metadata"]

  def restore_as_saved(self, step: int) -> Any:
    """The pytree of checkpoint `step` as plain containers of NumPy arrays, keys as their raw data.

    Raises InputError for a checkpoint that cannot be read.
    """
    import orbax.checkpoint as ocp

    path = self.directory.absolute() / str(step) / "state"
    as_array = lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray)
    try:
      with ocp.PyTreeCheckpointer() as reader:
        shapes = reader.metadata(path).item_metadata.tree
        return reader.restore(path, ocp.args.PyTreeRestore(restore_args=jax.tree.map(as_array, shapes)))
    except Exception as error:
      raise InputError(f"the checkpoint {path.parent} cannot be read ({type(error).__name__}).") from error

  def close(self) -> None:
    self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, error, trace) -> None:
    if error is None:
      self.close()
    elif jax.process_count() == 1:  # otherwise closing would wait for other processes, and these may be gone
      with contextlib.suppress(Exception):  # what could not be saved has been said
        self.close()


@contextlib.contextmanager
def _no_word_of_reading() -> Iterator[None]:
  """Within it Orbax's logger does not warn that a directory is only read, which is what was asked for."""
  logger = logging.getLogger("absl")
  asked_for = lambda record: "read only" not in record.getMessage()
  logger.addFilter(asked_for)
  try:
    yield
  finally:
    logger.removeFilter(asked_for)


def _quiet_writers() -> None:
  """Of a failed save the first error is raised; TensorStore's other writers then find Orbax's event loop closed.

  Their threads can only print a traceback each, below which the one sentence that matters would be lost.
  """
  show = sys.unraisablehook
  if getattr(show, "quiet_writers", False):
    return

  def hook(unraisable):
    if str(unraisable.exc_value) != "Event loop is closed":
      show(unraisable)

  hook.quiet_writers = True
  sys.unraisablehook = hook


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
  """Raises as the OSError that it is what TensorStore reports as text only."""
  try:
    yield
  except Exception as error:
    for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
      if os.strerror(number) in str(error):
        raise OSError(number, os.strerror(number)) from error
    raise


def _abstract_data(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  if not _is_key(leaf):
    return leaf
  data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
