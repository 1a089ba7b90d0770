"""A run that starts from what another one has learned: longer training, or another schedule, is another run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.engine.checkpoint import Checkpoints, data_to_keys, keys_to_data
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import State
from mlnotes.engine.record import read_json

# Where training stands, in the data too (the recurrent state behind a window), and by which rules: the new run's own.
OWN = ("step", "key", "opt_state", "hparams", "carry")


class Learned(NamedTuple):
  """What the last checkpoint of a run has learned: arrays by their paths, and the update it is of."""

  arrays: Mapping[str, np.ndarray]
  step: int

  def put_into(self, state: State) -> State:
    """`state` with these in the place of its own."""
    wanted = _by_path(keys_to_data(state))

    def take(path, leaf):
      name = _spell(path)
      if name not in wanted:
        return leaf
      value = np.broadcast_to(self.arrays[name], wanted[name].shape)
      data = jax.device_put(value, leaf.sharding) if leaf.dtype == wanted[name].dtype else jnp.asarray(value)
      return data if data.dtype == leaf.dtype else jax.device_put(data_to_keys(data, leaf), leaf.sharding)

    return jax.tree_util.tree_map_with_path(take, state)


def find_learned(flag: str, like: State, num_seeds: int) -> Learned:
  """What the run in `flag` has learned, for a state such as `like`, whose arrays may be abstract.

  Every field of the state but `OWN` is taken. A run of one seed gives each of the `num_seeds` the same; one of several
  needs the same number. Raises InputError where there is no such run, or its state has another structure.
  """
  directory = Path(flag).expanduser()
  try:
    saved = read_json(directory / "config.json")
    seeds = int(saved["config"]["seeds"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(f"--start_from={flag} has no readable config.json: expected the --workdir of a run.") from error
  if seeds not in (1, num_seeds):
    raise InputError(f"--start_from={flag} has {seeds} seeds: expected one, or as many as --seeds={num_seeds}.")
  checkpoints = Checkpoints(directory / "checkpoints", read_only=True)
  try:
    step = checkpoints.latest_step()
    if step is None:
      raise InputError(f"--start_from={flag} has no checkpoint yet.")
    found = _by_path(checkpoints.restore_as_saved(step)["state"])
  finally:
    checkpoints.close()
  several = seeds == 1 < num_seeds
  shapes = {path: ((num_seeds, *x.shape) if several else x.shape, x.dtype) for path, x in found.items()}
  ours = {path: (x.shape, x.dtype) for path, x in _by_path(jax.eval_shape(keys_to_data, like)).items()}
  if odd := sorted(path for path in shapes.keys() | ours.keys() if shapes.get(path) != ours.get(path)):
    spell = lambda leaves: "{1}{0}".format(*leaves[odd[0]]) if odd[0] in leaves else "nothing"
    raise InputError(
      f"--start_from={flag}, a run of {saved.get('experiment', 'an experiment')}, has another structure: found "
      f"{spell(shapes)} at {odd[0]}, expected {spell(ours)}, as these settings have it."
    )
  return Learned(found, step)


def _spell(path: tuple) -> str:
  """A path as it reads in a checkpoint, which holds a NamedTuple as a dictionary."""
  return ".".join(str(getattr(entry, "name", getattr(entry, "key", getattr(entry, "idx", entry)))) for entry in path)


def _by_path(state: Any) -> dict[str, Any]:
  """{path: array} of what is learned."""
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  return {_spell(path): x for path, x in leaves if _spell(path[:1]) not in OWN}
