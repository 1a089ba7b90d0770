"""How the loss falls with size and text: a scaling law over many runs. Kaplan et al. 2020; Hoffmann et al. 2022.

  python -m experiments.lm.scaling                          # trains sixteen small Llamas
  python -m experiments.lm.scaling --runs=runs/grid         # finished runs of lm.pretrain, as a sweep leaves them
  python -m experiments.lm.scaling --study=batch            # larger batches, as many tokens
  python -m experiments.lm.scaling --study=epochs           # the same text again. Muennighoff et al. 2023
  python -m experiments.lm.scaling --study=ensemble         # one network or several smaller ones

  python -m launch.sweep --experiment=lm.pretrain --workdir=runs/grid \\
    --grid='width=32,64,128; steps=500,1000,2000,4000' --fixed='--dataset=docstrings --eval_every=0'

--study=size fits L(N, D) = E + A / N^alpha + B / D^beta to the nats of a test token, N parameters with the embedding, D
tokens read, each run's schedule as long as itself; intervals are of 80 % over draws of the runs with replacement.
Writes scaling.png (or batch.png, epochs.png, ensemble.png) and the card.
"""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.lm import _scaling_report as report, _scaling_studies as studies
from mlnotes.data import Corpus
from mlnotes.data.flags import TextConfig, load_data
from mlnotes.engine.errors import require
from mlnotes.engine.flags import field, run
from mlnotes.engine.layout import Layout, choose_layout
from mlnotes.engine.study import run_study

STUDIES = ("size", "batch", "epochs", "ensemble")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
  """Defaults: four sizes by four numbers of tokens of the docstrings of Python's library, none of them read twice."""

  study: Literal[STUDIES] = field(
    "size", "what differs: size and tokens; the batch at equal tokens; how often a text is read; how many networks"
  )
  runs: str = field("", "of --study=size: folder of finished causal runs of lm.pretrain; empty: some are trained here")
  workdir: str = field("", "directory of picture and figures; empty: runs/lm.scaling-<study>", free=True)
  widths: tuple[int, ...] = field((16, 32, 64, 96), "of --study=size: features of a token, a network for each")
  budgets: tuple[int, ...] = field((180224, 360448, 720896, 1441792), "of --study=size: tokens that a run reads")
  width: int = field(64, "of the other studies: features of a token; of ensemble the largest network's")
  tokens: int = field(360448, "of the other studies: tokens that a run reads")
  batch_sizes: tuple[int, ...] = field((2, 4, 8, 16, 32, 64), "of --study=batch: windows of an update")
  epochs: tuple[int, ...] = field((1, 2, 4, 8, 16, 32), "of --study=epochs: passes over so many times less text")
  members: tuple[int, ...] = field((1, 2, 4, 8), "of --study=ensemble: networks of as many parameters together")
  depth: int = field(2, "layers")
  heads: int = field(2, "heads, a divisor of every width into even numbers")
  learning_rate: float = field(4e-3, "peak rate of AdamW of 64 features and batches of --batch_size, > 0")
  seed: int = field(0, "first seed, >= 0")
  seeds: int = field(1, "runs of each kind; of ensemble the members have a seed each")
  draws: int = field(100, "of --study=size: fits to runs drawn with replacement, for the intervals")

  dataset: str = "docstrings"
  length: int = 64
  batch_size: int = 8
  eval_examples: int = 512

  def __post_init__(self):
    super().__post_init__()
    for name in ("width", "tokens", "depth", "heads", "seeds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.draws >= 2, "draws", self.draws, "2 or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")
    require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
    for name in ("widths", "budgets", "batch_sizes", "epochs", "members"):
      found = getattr(self, name)
      ascending = len(found) > 0 and all(a < b for a, b in itertools.pairwise(found))
      require(
        ascending and min(found, default=0) >= 1, name, ",".join(map(str, found)), "ascending numbers of 1 or more"
      )
    for name, widths in (("widths", self.widths), ("width", (self.width,))):
      if (name == "widths") == (self.study == "size") and not self.runs:
        even = all(width % (2 * self.heads) == 0 for width in widths)
        require(even, name, ",".join(map(str, widths)), f"multiples of {2 * self.heads}, twice --heads={self.heads}")
    if self.study == "size" and not self.runs:
      count = len(self.widths) * len(self.budgets)
      many = len(self.widths) > 1 and len(self.budgets) > 1 and count >= 6
      require(many, "budgets", ",".join(map(str, self.budgets)), "two or more, by --widths six runs or more: the law "
              "has five constants")  # fmt: skip

  def idle_flags(self):
    idle = super().idle_flags()
    of = {
      "size": ("runs", "widths", "budgets", "draws"), "batch": ("batch_sizes",), "epochs": ("epochs",),
      "ensemble": ("members",),
    }  # fmt: skip
    for study, names in of.items():
      if study != self.study:
        idle |= dict.fromkeys(names, f"--study={self.study} has none")
    if self.study == "size":
      idle |= dict.fromkeys(("width", "tokens"), "--study=size has --widths and --budgets")
    if self.study == "ensemble":
      idle["seeds"] = "--study=ensemble has a seed for each member"
    if self.study == "size" and self.runs:
      own = (
        *(item.name for item in dataclasses.fields(TextConfig)),
        "widths",
        "budgets",
        "depth",
        "heads",
        "learning_rate",
        "seeds",
      )
      idle |= dict.fromkeys(own, f"--runs={self.runs} has its own")
    return idle | {"data_placement": "the text is held on the device"}

  def cpu_layout(self, cores: int) -> Layout:
    return choose_layout(2 * cores, cores, fills_cores=False)


def check_text(config: Config, corpus: Corpus) -> None:
  """Raises InputError where a batch is larger than the text or no update is left, says where text is read twice."""
  windows = len(corpus.train)
  largest = max(config.batch_sizes) if config.study == "batch" else config.batch_size
  name = "batch_sizes" if config.study == "batch" else "batch_size"
  require(largest <= windows, name, largest, f"at most the {windows} windows of the training text")
  least = min(config.budgets) if config.study == "size" else config.tokens
  tokens = largest * config.length
  require(least >= tokens, "budgets" if config.study == "size" else "tokens", least, f"an update's {tokens} or more")
  if config.study == "epochs":
    there = windows * config.length
    require(config.tokens <= there, "tokens", config.tokens, f"at most the {there} of the training text, read once")
    updates, passes = config.tokens // tokens, max(config.epochs)
    require(passes <= updates, "epochs", passes, f"at most {updates}: a pass is an update or more")
  most = (max(config.budgets) if config.study == "size" else config.tokens) / (windows * config.length)
  if most > 1:
    print(f"note: the text has {windows * config.length:,} tokens, which are read up to {most:.1f} times", flush=True)


def study_size(config: Config, corpus: Corpus | None, directory: Path) -> dict[str, Any]:
  runs = studies.read_runs(config.runs) if corpus is None else studies.train_grid(config, corpus)
  fitted, figures = studies.fit(runs, config.draws, config.seed)
  report.draw_law(runs, fitted, directory / "scaling.png")
  best = int(np.argmin(runs.losses))
  return figures | {"least_loss": runs.losses[best], "least_loss_parameters": runs.parameters[best]}


def study_batch(config: Config, corpus: Corpus, directory: Path) -> dict[str, Any]:
  found = studies.train_batches(config, corpus)
  report.draw_batches(config, found, directory / "batch.png")
  figures: dict[str, Any] = {}
  for i, size in enumerate(found.sizes):
    figures |= {
      f"batch_{size}/loss": found.losses[i, found.best[i]],
      f"batch_{size}/rate": float(found.rates[i, found.best[i]]),
      f"batch_{size}/updates": found.updates[i],
    }
  return figures


def study_epochs(config: Config, corpus: Corpus, directory: Path) -> dict[str, Any]:
  found = studies.train_epochs(config, corpus)
  report.draw_epochs(config, found, directory / "epochs.png")
  return {
    f"epochs_{epochs}/{name}": getattr(found, name)[i]
    for i, epochs in enumerate(found.epochs)
    for name in ("repeated", "once")
  }


def study_ensemble(config: Config, corpus: Corpus, directory: Path) -> dict[str, Any]:
  found = studies.train_ensembles(config, corpus)
  report.draw_ensembles(config, found, directory / "ensemble.png")
  figures: dict[str, Any] = {}
  for i, members in enumerate(found.members):
    figures |= {
      f"members_{members}/loss": found.together[i],
      f"members_{members}/loss_alone": found.alone[i],
      f"members_{members}/width": found.widths[i],
      f"members_{members}/parameters": found.parameters[i],
    }
  return figures


_STUDY: dict[str, Callable[[Any, Any, Path], dict[str, Any]]] = {
  "size": study_size, "batch": study_batch, "epochs": study_epochs, "ensemble": study_ensemble,
}  # fmt: skip


def main(config: Config) -> int:
  corpus = None
  if not (config.study == "size" and config.runs):
    corpus = load_data(config)
    check_text(config, corpus)
  return run_study(
    "lm.scaling", config, lambda directory: _STUDY[config.study](config, corpus, directory), f"-{config.study}"
  )


if __name__ == "__main__":
  run(main, Config)
