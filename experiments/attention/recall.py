"""Recall, induction, copying, sorting and ListOps by a small Transformer with any kind of attention.

  python -m experiments.attention.recall                                   # associative recall, softmax attention
  python -m experiments.attention.recall --kind=linear                     # a state of fixed size
  python -m experiments.attention.recall --task=listops --kind=reformer --steps=4000

Sequences are drawn on the device; a quarter of all, by a hash, is for tests alone. Writes weights.png, what each head
looks at in one test sequence.
"""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from experiments.attention import _tokens
from mlnotes.attention import (
  Task,
  make_copying,
  make_induction,
  make_listops,
  make_recall,
  make_sorting,
)
from mlnotes.data import Feeds
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import train

# Different sequences of a task: of fewer, a quarter may be none.
FEWEST = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(_tokens.TokenConfig):
  """Defaults: eight pairs out of 16 keys and 16 values, looked up by every seed."""

  steps: int = 1500
  learning_rate: float = 3e-3
  heads: int = 4
  weight_decay: float = 0.1

  task: Literal["recall", "induction", "copying", "sorting", "listops"] = field("recall", "what is asked")
  pairs: int = field(8, "of recall: pairs of a key and a value")
  queries: int = field(8, "of recall: keys that are asked for, at most --pairs; fewer take longer to learn from")
  symbols: int = field(32, "different symbols; of recall, half of them keys and half values")
  length: int = field(
    32, "of induction and listops: tokens; of sorting: symbols; of copying: symbols and blanks, half each"
  )

  def __post_init__(self):
    super().__post_init__()
    require(self.symbols >= 2, "symbols", self.symbols, "2 or more")
    require(self.length >= 2, "length", self.length, "2 or more")
    require(self.pairs >= 1 and self.queries >= 1, "pairs", self.pairs, "1 or more, and --queries too")
    make_task(self)

  def idle_flags(self):
    idle = super().idle_flags()
    if self.task != "recall":
      idle |= dict.fromkeys(("pairs", "queries"), f"they are of --task=recall, not {self.task}")
    if self.task == "recall":
      idle["length"] = "--pairs and --queries make the sequence"
    if self.task == "listops":
      idle["symbols"] = "listops has its own"
    return idle


def make_task(config: Config) -> Task:
  """The task of the flags. Raises InputError where its sizes do not fit."""
  makers = {
    "recall": lambda: make_recall(config.pairs, config.queries, config.symbols),
    "induction": lambda: make_induction(config.length, config.symbols),
    "copying": lambda: make_copying(config.length // 2, config.symbols, config.length // 2),
    "sorting": lambda: make_sorting(config.length, config.symbols),
    "listops": lambda: make_listops(config.length),
  }
  try:
    task = makers[config.task]()
  except ValueError as error:
    raise InputError(f"--task={config.task}: {error}.") from error
  if config.task != "listops" and (found := _count_sequences(config)) < FEWEST:
    raise InputError(
      f"--task={config.task}: found {found} different sequences, expected {FEWEST} or more, a quarter for tests: "
      "more --symbols or a longer --length (of recall --pairs)."
    )
  return task


def _count_sequences(config: Config) -> int:
  if config.task == "recall":
    keys = config.symbols // 2
    return math.perm(keys, config.pairs) * keys**config.pairs * math.perm(config.pairs, config.queries)
  drawn = config.length // 2 if config.task == "copying" else config.length
  return config.symbols**drawn


def make_feeds(config: Config) -> Feeds:
  return _tokens.make_token_feeds(config, make_task(config))


def make(config: Config) -> Experiment:
  task = make_task(config)

  def report(model: _tokens.Model, directory: Path) -> dict[str, float]:
    from experiments.attention._weights import draw_weights

    draw_weights(model, task, f"{config.kind} attention, {config.task}", directory / "weights.png")
    return {"floor": _tokens.constant_floor(make_feeds(config))}

  return _tokens.make_token_experiment(config, task, _tokens.build_model(config, task), report)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="accuracy", best_mode="max")


if __name__ == "__main__":
  run(main, Config)
