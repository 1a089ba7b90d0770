"""Nine kinds of block at one budget of parameters: accuracy over seeds, time per update. Data: digits, MNIST.

  python -m experiments.nn.blocks                                        # digits, tested on other writers
  python -m experiments.nn.blocks --blocks=plain,residual --budget=100000

Every block stands in the same skeleton (two stages of two blocks), is as wide as the budget allows and is trained by
the same recipe: what differs is the block. Writes blocks.png, table.md, the card, and each block's runs beside them.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.nn import classifier
from experiments.nn._images import AugmentationName
from mlnotes.data import DataSet
from mlnotes.data.flags import DataConfig, load_data
from mlnotes.data.floors import floor_images, floors
from mlnotes.engine.errors import InputError, nearest, require
from mlnotes.engine.flags import field, run
from mlnotes.engine.record import read_json
from mlnotes.engine.study import run_study
from mlnotes.engine.summary import Summary, format_summary, over_seeds
from mlnotes.nn.blocks import BLOCKS, BlockNet, count_parameters, match_width

# The block without what the others add: the floor of each.
PLAIN = "plain"
# How far from the budget a network may be; its width is a whole number.
TOLERANCE = 0.05
_FLOORS = {
  "nearest_neighbour": "nearest neighbour of raw pixels",
  "linear_classifier": "linear classifier of raw pixels",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
  """Defaults: nine blocks and eight seeds on digits in about five minutes on two CPU cores."""

  dataset: str = "digits_halves"
  batch_size: int = 64
  workdir: str = field("", "directory of picture, table, figures and runs; empty: runs/nn.blocks-<dataset>", free=True)
  blocks: tuple[str, ...] = field(tuple(BLOCKS), "which ones")
  budget: int = field(25_000, "parameters of each network, within 5 %")
  seed: int = field(0, "first seed, >= 0")
  seeds: int = field(8, "runs of each block")
  steps: int = field(400, "updates of each run")
  learning_rate: float = field(1e-2, "of AdamW, warmed up and lowered to 0 by a cosine")
  augmentation: AugmentationName = field("auto", "changes of training images, as in nn.classifier")

  def __post_init__(self):
    super().__post_init__()
    require(len(self.blocks) > 0, "blocks", self.blocks, "one or more")
    require(len(set(self.blocks)) == len(self.blocks), "blocks", ",".join(self.blocks), "each name once")
    for name in self.blocks:
      if name not in BLOCKS:
        raise InputError(f"--blocks={name} is no block: {nearest(name, BLOCKS)}")
    require(self.budget >= 1, "budget", self.budget, "1 or more")
    settings(self, PLAIN, 0)

  def idle_flags(self):
    return super().idle_flags() | {"data_placement": "the data set is held on the device"}

  def cpu_layout(self, cores: int):
    return settings(self, PLAIN, 0).cpu_layout(cores)


def settings(config: Config, block: str, width: int) -> classifier.Config:
  """The runs of one block."""
  shared = {
    name: getattr(config, name)
    for name in (
      "dataset", "data_dir", "train_split", "test_split", "image_size", "batch_size", "eval_examples", "seed",
      "seeds", "steps", "learning_rate", "augmentation",
    )
  }  # fmt: skip
  return classifier.Config(
    network=block, width=width, eval_every=0, checkpoint_every=0, report_seeds=0, log_every=config.steps,
    tensorboard=False, **shared,
  )  # fmt: skip


class Outcome(NamedTuple):
  """One block: its network, (seeds,) test accuracy and loss, and its cost."""

  width: int
  parameters: int
  accuracy: np.ndarray
  loss: np.ndarray
  update_milliseconds: float  # of one seed, where all of them are trained side by side

  @property
  def summary(self) -> Summary:
    return over_seeds(100 * self.accuracy)


def fit_width(block: str, config: Config, data: DataSet) -> tuple[int, int]:
  """(width, parameters) of the network nearest to the budget. Raises InputError where none is within 5 %."""
  try:
    width = match_width(block, config.budget, data.image_shape, data.num_classes)
  except ValueError as error:
    raise InputError(f"--budget={config.budget} is too small for {block} blocks: {error}.") from error
  network = BlockNet(block, width=width, num_classes=data.num_classes)
  parameters = count_parameters(network, data.image_shape)
  fits = abs(parameters / config.budget - 1) <= TOLERANCE
  require(fits, "budget", config.budget, f"one that {block} blocks come within 5 % of; the nearest has {parameters}")
  return width, parameters


def measure(block: str, width: int, parameters: int, config: Config, directory: Path) -> Outcome:
  """Trains the seeds of one block into `directory`/<block>, or takes them as they are there."""
  own = dataclasses.replace(settings(config, block, width), workdir=str(directory / block))
  if code := classifier.main(own):
    raise SystemExit(code)  # such as that of a signal: the same command goes on here
  card = read_json(directory / block / "result.json")
  values = lambda name: np.array([np.nan if v is None else v for v in card["metrics"][name]["seeds"]])
  milliseconds = 1e3 * card["timing"]["step_seconds"] / config.seeds
  return Outcome(width, parameters, values("accuracy"), values("loss"), milliseconds)


def rank(outcomes: dict[str, Outcome]) -> list[str]:
  """The blocks, the most accurate first; one that has lost seeds behind all that have not."""
  key = lambda name: (outcomes[name].summary.lost, -np.nan_to_num(outcomes[name].summary.mean))
  return sorted(outcomes, key=key)


def write_table(outcomes: dict[str, Outcome], known: dict[str, float], path: Path) -> None:
  rows = [
    "| block | width | parameters | test accuracy (%) | worst seed (%) | ms per update and seed |",
    "|---|---|---|---|---|---|",
  ]
  for name in rank(outcomes):
    found = outcomes[name]
    worst = f"{100 * np.min(found.accuracy):.1f}"
    rows.append(
      f"| {name} | {found.width} | {found.parameters:,} | {format_summary(found.summary)} | {worst} | "
      f"{found.update_milliseconds:.1f} |"
    )
  for name, accuracy in known.items():
    rows.append(f"| {_FLOORS[name]} | | | {100 * accuracy:.1f} | | |")
  path.write_text("\n".join(rows) + "\n", encoding="utf-8")
  print("\n".join(rows))


def draw(outcomes: dict[str, Outcome], known: dict[str, float], config: Config, path: Path) -> None:
  """Left: accuracy of every seed, and its mean. Right: what an update costs."""
  from mlnotes.engine.plot import new_figure, save_figure

  names = rank(outcomes)[::-1]
  figure, axes = new_figure(1, 2, width=9.5, height=1.4 + 0.36 * len(names))
  left, right = axes[0]
  place = np.arange(len(names))
  for y, name in zip(place, names):
    found, color = outcomes[name], "C1" if name == PLAIN else "C0"
    left.plot(100 * found.accuracy, np.full(len(found.accuracy), y), "o", color=color, alpha=0.35, markersize=5)
    left.plot([found.summary.mean], [y], "|", color=color, markersize=18, markeredgewidth=2.5)
    right.barh(y, found.update_milliseconds, color=color, height=0.6)
  for (name, accuracy), style in zip(known.items(), ("--", ":")):
    left.axvline(100 * accuracy, color="0.3", linestyle=style, linewidth=1, label=_FLOORS[name])
  for axis in (left, right):
    axis.set_yticks(place, names)
    axis.grid(axis="x", alpha=0.3)
  left.set(xlabel="test accuracy (%): each seed, and the mean")
  if known:
    left.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2)
  right.set(xlabel="milliseconds per update and seed")
  seeds = f"{config.seeds} seeds" if config.seeds > 1 else "one seed"
  figure.suptitle(f"{Path(config.dataset).stem}: blocks at {config.budget:,} parameters, {seeds}", fontsize=11)
  save_figure(figure, path)


def main(config: Config) -> int:
  data = load_data(config)
  widths = {block: fit_width(block, config, data) for block in config.blocks}

  def study(directory: Path) -> dict[str, Any]:
    known = floors(data)
    outcomes = {}
    for block, (width, parameters) in widths.items():
      outcomes[block] = found = measure(block, width, parameters, config, directory)
      print(f"{block:>16}: {format_summary(found.summary)} % with {parameters:,} parameters", flush=True)
    write_table(outcomes, known, directory / "table.md")
    draw(outcomes, known, config, directory / "blocks.png")
    figures: dict[str, Any] = known | floor_images(data)
    for block, found in outcomes.items():
      figures |= {
        f"{block}/accuracy": found.accuracy,
        f"{block}/loss": found.loss,
        f"{block}/parameters": found.parameters,
        f"{block}/update_milliseconds": found.update_milliseconds,
      }
    return figures

  return run_study("nn.blocks", config, study, f"-{Path(config.dataset).stem}")


if __name__ == "__main__":
  run(main, Config)
