"""Weights & Biases as one more place for the metrics of a run: --wandb=PROJECT. Nothing else depends on it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlnotes.engine.errors import InputError


class WandbSink:
  """One run there, which goes on where this one does. Raises InputError where the package is not installed."""

  def __init__(self, project: str, experiment: str, directory: Path, config: Mapping[str, Any]):
    try:
      import wandb
    except ImportError as error:
      raise InputError(f"--wandb={project} needs a package that is not here: expected pip install wandb.") from error
    place = str(directory.absolute())
    self._run = wandb.init(
      project=project, name=directory.name, group=experiment, config=dict(config), dir=place, resume="allow",
      id=hashlib.sha256(place.encode()).hexdigest()[:16], reinit="create_new",
    )  # fmt: skip

  def log(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    self._run.finish()
