"""A trained model as a function, from the work directory of its run.

run = mlnotes.load_run("runs/digits")
images = run.model.sample(jax.random.key(0), jnp.arange(10))     # a diffusion model
action = mlnotes.load_run("runs/cartpole").model(observation)    # an agent
"""

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Experiment, State
from mlnotes.engine.flags import experiment_name
from mlnotes.engine.record import read_json
from mlnotes.engine.trained import load_config, restore_states


class TrainedRun(NamedTuple):
  """What a run has left.

  Attributes:
    model: what was trained, with the parameters that are evaluated. Per chapter:
      diffusion: (x_t, t, label) -> noise, and `model.sample(key, label)` -> images on [-1, 1]
      nn: (images) -> logits, and `model.features(images)`; images are uint8, as stored, or floats on [0, 1]
      contrastive: (images) -> features; images are uint8, as stored
      rl: (observation) -> the greedy action, of one environment; tables take the number of the state
      meta: (support set, inputs) -> outputs after adapting; a learned optimizer is an optax optimizer
      One's own: what the experiment's `model` makes of a state; None where it has none.
    config: its settings, with their defaults.
    name: of its experiment.
    experiment: the experiment's functions.
    state: of the seed, as the last or best checkpoint has it.
    seed: which of the run's.
    step: updates done.
    directory: the work directory.
  """

  model: Any
  config: Any
  name: str
  experiment: Experiment
  state: State
  seed: int
  step: int
  directory: Path


def load_run(
  run: str | Path,
  *,
  seed: int | None = None,
  checkpoint: Literal["last", "best"] = "last",
  data_dir: str = "",
  experiment: str | ModuleType = "",
) -> TrainedRun:
  """The run in the work directory `run`, finished or not: nothing in it is changed.

  Args:
    seed: of a run with several; None for its first.
    checkpoint: which of the two that are kept.
    data_dir: where the run's TFDS data set is now; empty: as in the run.
    experiment: of one's own: its module, or the name or file of that.

  Raises InputError for a directory that holds no run, no checkpoint, no such seed, and for another checkpoint.
  """
  directory = Path(run).expanduser()
  if checkpoint not in ("last", "best"):
    raise InputError(f"checkpoint={checkpoint!r} is none of the two that are kept: expected 'last' or 'best'.")
  module = experiment if isinstance(experiment, ModuleType) else _find_module(directory, experiment)
  name, config = load_config(directory, {experiment_name(module.Config): module.Config}, str(directory))
  here = {"devices": 1, "fsdp": 1, "rows": ""} | ({"data_dir": data_dir} if data_dir else {})
  config = dataclasses.replace(config, **here)
  made = module.make(config)
  seed = config.seed if seed is None else int(seed)
  if seed not in range(config.seed, config.seed + config.seeds):
    last = config.seed + config.seeds - 1
    raise InputError(f"{directory} has no seed {seed}: expected {config.seed} to {last}.")
  feeds = module.make_feeds(config)
  states, step = restore_states(directory, made, feeds, config, checkpoint, seed, said=str(directory))
  state = states[seed]
  return TrainedRun(made.model and made.model(state), config, name, made, state, seed, step, directory)


def _find_module(directory: Path, experiment: str) -> ModuleType:
  # By its name: the catalogue stands above this package, which imports nothing from it on its own.
  catalogue = importlib.import_module("experiments")
  if experiment:
    return catalogue.import_experiment(experiment)
  try:
    name = read_json(directory / "config.json")["experiment"]
  except (OSError, ValueError, KeyError) as error:
    raise InputError(f"{directory} has no readable config.json: expected the work directory of a run.") from error
  if name not in [known for known, _ in catalogue.catalogue()]:
    raise InputError(f"{directory} is a run of {name}, which is not in the catalogue: expected experiment=<its file>.")
  return catalogue.import_experiment(name)
