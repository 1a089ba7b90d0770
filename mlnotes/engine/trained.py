"""Reads back what a training run has left: its settings and the state of one of its seeds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.data import Feeds
from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, State
from mlnotes.engine.flags import from_dict
from mlnotes.engine.loop import LoopConfig
from mlnotes.engine.program import Program, make_mesh, seed_state
from mlnotes.engine.record import read_json


def load_config(directory: Path, config_classes: Mapping[str, type], said: str = "") -> tuple[str, Any]:
  """(experiment's name, config) of the run in `directory`, the value of --run or of what errors shall say instead.

  `config_classes` are those of the experiments that will do. Raises InputError for anything else.
  """
  said = said or f"--run={directory}"
  try:
    saved = read_json(directory / "config.json")
    name, values = str(saved["experiment"]), saved["config"]
    if not isinstance(values, dict):
      raise ValueError("settings that are no object")
  except (OSError, ValueError, KeyError) as error:
    raise InputError(f"{said} has no readable config.json: expected the --workdir of a run.") from error
  if name not in config_classes:
    raise InputError(f"{said} is a run of {name}, expected {' or '.join(config_classes)}.")
  try:
    return name, from_dict(config_classes[name], values)
  except InputError as error:
    raise InputError(f"{said}: its config.json cannot be used: {error}") from error


def restore_states(
  directory: Path,
  experiment: Experiment,
  feeds: Feeds,
  config: LoopConfig,
  checkpoint: Literal["last", "best"] = "last",
  model_seed: int = -1,
  said: str = "",
) -> tuple[dict[int, State], int]:
  """({seed: its state}, step) of a checkpoint: all seeds of the run, or `model_seed` where that is not negative.

  Raises InputError where there is no checkpoint, or no such seed.
  """
  seeds = range(config.seed, config.seed + config.seeds)
  require(model_seed < 0 or model_seed in seeds, "model_seed", model_seed, f"{seeds[0]} to {seeds[-1]}")
  program = Program(experiment, feeds, seeds, make_mesh(1))
  like = {"state": program.abstract_state, "window": program.abstract_window}
  state, step = _restore(directory, like, checkpoint, said or f"--run={directory}")
  chosen = seeds if model_seed < 0 else [model_seed]
  return {seed: seed_state(state, seed - config.seed, config.seeds) for seed in chosen}, step


def restore_seed(
  module: Any,
  directory: Path,
  config: LoopConfig,
  checkpoint: Literal["last", "best"] = "last",
  model_seed: int = -1,
  said: str = "",
) -> tuple[Experiment, State]:
  """(the experiment, the state) of one seed of a run of the experiment `module`; its first where `model_seed` is
  negative. `config` is the run's, as it is read on these devices. Raises as `restore_states`."""
  seed = config.seed if model_seed < 0 else model_seed
  experiment = module.make(config)
  states, _ = restore_states(directory, experiment, module.make_feeds(config), config, checkpoint, seed, said)
  return experiment, states[seed]


def unplace(tree: Any) -> Any:
  """Arrays, none of them keys, that lie on no device in particular: whatever has them next may place them."""
  return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree)


def _restore(directory: Path, like: Any, checkpoint: Literal["last", "best"], said: str) -> tuple[State, int]:
  """A checkpoint of a run that may still be training, which removes a checkpoint when it has a later one."""
  before = None
  while True:
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
      step = checkpoints.best_step() if checkpoint == "best" else checkpoints.latest_step()
      if step is None:
        raise InputError(f"{said} has no checkpoint yet.")
      try:
        return checkpoints.restore(step, like)[0]["state"], step
      except InputError:
        if step == before:
          raise
        before = step
