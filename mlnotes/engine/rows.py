"""Several runs as the rows of one program: they differ in their seeds and in numbers that the state holds.

`--rows=FILE` names them, as `launch.sweep --vectorize` writes it:

    {"experiment": "rl.ppo", "runs": [
      {"workdir": "runs/a", "settings": {"discount": 0.9, "seed": 1}, "state": {".hparams['discount']": 0.9},
       "command": "python -m experiments.rl.ppo --discount=.9 --seed=1 --workdir=runs/a"}, ...]}

`settings` are fields of the config; `state` says where the state holds those that are not seeds; `command` is that of
the run alone. Each run leaves in its own work directory what it would leave alone; only the checkpoints on the way are
common, which also hold the best state of each so far.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.engine.checkpoint import data_to_keys, keys_to_data
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import State
from mlnotes.engine.flags import from_dict
from mlnotes.engine.hold import Hold
from mlnotes.engine.record import Record, read_json
from mlnotes.engine.summary import Score, is_better


def count_rows(path: str) -> int:
  """How many runs the file of `--rows` lists; 1 without one, and for a file that cannot be read."""
  try:
    return max(1, len(read_json(Path(path))["runs"])) if path else 1
  except (OSError, ValueError, KeyError, TypeError):
    return 1  # RowsRecord says what is wrong


class RowsRecord:
  """What `Record` is for one run, for those that a file lists. Raises InputError where the file cannot be used."""

  def __init__(
    self,
    experiment: str,
    config: Any,
    *,
    writes: bool = True,
    tensorboard: bool = True,
    judged_by: tuple[str, str] | None = None,
  ):
    path = Path(config.rows)
    try:
      found = read_json(path)
      belongs_to, self._runs = found["experiment"], found["runs"]
      common = dataclasses.asdict(config) | {"rows": ""}
      configs = [from_dict(type(config), {**common, "workdir": r["workdir"], **r["settings"]}) for r in self._runs]
      self._values = [dict(r["state"]) for r in self._runs]
      commands = [str(r.get("command", "")) for r in self._runs]
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise InputError(f"--rows={path} cannot be read ({error}): expected what launch.sweep writes.") from error
    if belongs_to != experiment or not configs:
      raise InputError(f"--rows={path} holds {len(configs)} runs of {belongs_to}: expected runs of {experiment}.")
    self.experiment, self.config, self.writes = experiment, config, writes
    self.directory = Path(config.workdir).expanduser() if config.workdir else path.parent
    self._hold: Hold | None = None
    options = {"writes": writes, "tensorboard": tensorboard, "judged_by": judged_by}
    self.records = [
      Record(Path(c.workdir), experiment, c, command=command, **options) for c, command in zip(configs, commands)
    ]

  def hold(self) -> None:
    """Takes the directory of the common checkpoints and that of each run."""
    if self.writes and self.directory.absolute() not in {record.directory.absolute() for record in self.records}:
      try:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._hold = Hold(self.directory)
      except OSError as error:
        raise InputError(f"--workdir={self.directory} cannot be written: {error.strerror or error}.") from error
    try:
      for record in self.records:
        record.hold()
    except InputError:
      self.forget()  # before another one can have it
      raise

  @property
  def seeds(self) -> list[int]:
    """The seed of each row: run by run."""
    return [seed for record in self.records for seed in record.seeds]

  def parts(self) -> Iterator[tuple[Record, Any]]:
    """(record, index of its rows among all): an integer for a run of one seed, which has no seed axis alone."""
    width = self.config.seeds
    for i, record in enumerate(self.records):
      yield record, ... if len(self.seeds) == 1 else i if width == 1 else slice(i * width, (i + 1) * width)

  def place(self, state: State) -> State:
    """The first state with each run's own numbers in its rows. Raises InputError for a place that is not there."""
    paths = set().union(*self._values)

    def replace(path, leaf):
      name = jax.tree_util.keystr(path)
      if name not in paths:
        return leaf
      paths.discard(name)
      values = np.repeat([values[name] for values in self._values], self.config.seeds).astype(leaf.dtype)
      return jax.device_put(values.reshape(leaf.shape), leaf.sharding)

    state = jax.tree_util.tree_map_with_path(replace, state)
    if paths:
      raise InputError(f"--rows={self.config.rows} sets {min(paths)}, which the state of {self.experiment} lacks.")
    return state

  def card(self) -> Mapping[str, Any] | None:
    return self._common(record.card() for record in self.records)

  def finished(self) -> Mapping[str, Any] | None:
    return self._common(record.finished() for record in self.records)

  @staticmethod
  def _common(cards: Iterable[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    cards = list(cards)
    return cards[0] if all(cards) else None

  @property
  def result_path(self) -> Path:
    return self.records[0].result_path

  def open(self, step: int) -> None:
    for record in self.records:
      record.open(step)

  def log_events(self, step: int, values: Mapping[str, float]) -> None:
    for record in self.records:
      record.log_events(step, values)

  def forget(self) -> None:
    for record in self.records:
      record.forget()
    self.close()

  def close(self) -> None:
    for record in self.records:
      record.close()
    if self._hold is not None:
      self._hold.release()
    self._hold = None


class BestRows:
  """What each run of a program held at its best evaluation; saved with the program's state, and so resumed with it.

  Attributes:
    tree: arrays with the seed axis, the rows of a run from its own best update.
    found: per run [update, seeds lost, value] of it, None where there is none yet.
  """

  def __init__(self, runs: int):
    self.tree: Any = None
    self.found: list[Any] = [None] * runs

  def start(self, tree: Any) -> None:
    # Buffers of its own: those of the state are donated to the next update.
    self.tree = jax.tree.map(jnp.copy, tree)

  def resume(self, tree: Any, found: Sequence[Any]) -> None:
    self.tree, self.found = tree, [row and list(row) for row in found]

  def update(self, step: int, tree: Any, scores: Sequence[Score | None]) -> None:
    """Takes over the rows of the runs whose `scores` are better than before."""
    better = np.array([is_better(s, f and Score(*f[1:])) for s, f in zip(scores, self.found)])
    if better.any():
      self.tree = _choose_rows(better, tree, self.tree)
      self.found = [[step, *s] if b else f for b, s, f in zip(better, scores, self.found)]


@functools.partial(jax.jit, donate_argnums=2)
def _choose_rows(chosen: Any, tree: Any, other: Any) -> Any:
  """The rows of `tree` where `chosen`, else those of `other`."""

  def one(x, y):
    rows = jnp.repeat(chosen, x.shape[0] // len(chosen)) if x.ndim else chosen[0]  # one run of one seed has no axis
    return jnp.where(rows.reshape(rows.shape + (1,) * (x.ndim - rows.ndim)), x, y)

  return data_to_keys(jax.tree.map(one, keys_to_data(tree), keys_to_data(other)), tree)
