"""What depth costs and gives: plain and residual stacks, norms at small batches, pre- and post-norm, deep against wide.

  python -m experiments.nn.depth                                         # all parts, on digits
  python -m experiments.nn.depth --parts=residual --depths=8,20,50,100
  python -m experiments.nn.depth --parts=norms,order,width --seeds=3

Each part writes its picture, residual.png, norms.png, order.png, width.png, and its rows of table.md; the card has the
figures of all.
"""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.nn import _depth_folds, _depth_norms, _depth_order, _depth_residual, classifier
from experiments.nn._side_by_side import require_resident
from mlnotes.data.flags import DataConfig, load_data
from mlnotes.engine.errors import InputError, nearest, require
from mlnotes.engine.flags import field, run
from mlnotes.engine.study import run_study

PARTS = {
  "residual": _depth_residual.measure,
  "norms": _depth_norms.measure,
  "order": _depth_order.measure,
  "width": _depth_folds.measure,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
  """Defaults: eight seeds on digits in about twelve minutes on two CPU cores; a part in two to four."""

  dataset: str = "digits_halves"
  batch_size: int = 64
  workdir: str = field("", "directory of pictures, table, figures and runs; empty: runs/nn.depth-<dataset>", free=True)
  parts: tuple[str, ...] = field(
    tuple(PARTS),
    "which: residual (plain and residual stacks by depth), norms (by batch size), order (pre- and post-norm with and "
    "without warm-up), width (deep against wide)",
  )
  seed: int = field(0, "first seed, >= 0")
  seeds: int = field(8, "runs of each setting")
  depths: tuple[int, ...] = field((8, 20, 50), "of residual: layers of the stacks, even numbers of 4 or more")
  stack_width: int = field(32, "of residual: features of each layer")
  stack_steps: int = field(400, "of residual: updates of each run, by Adam at 1e-3")
  batch_sizes: tuple[int, ...] = field((2, 8, 64), "of norms: examples per update")
  norms: tuple[str, ...] = field(("batch", "group"), "of norms: batch, group, layer, none")
  epochs: int = field(30, "of norms: how often each run sees the training images, whatever its batch")
  layers: int = field(12, "of order: layers of the Transformer")
  order_rate: float = field(3e-3, "of order: Adam's learning rate, constant after the warm-up")
  order_warmup: int = field(150, "of order: updates of linear warm-up, where there is one")
  order_steps: int = field(400, "of order: updates of each run")
  order_batch: int = field(32, "of order: examples per update")
  folds: tuple[int, ...] = field((1, 2, 3, 4, 5), "of width: how often the line is folded")
  fit_parameters: int = field(1000, "of width: parameters of each network that learns a folded line, about")
  fit_steps: int = field(4000, "of width: updates of each run, by Adam at 5e-3 lowered to 0")

  def __post_init__(self):
    super().__post_init__()
    spelled = lambda name: ",".join(map(str, getattr(self, name)))
    require(len(self.parts) > 0, "parts", spelled("parts"), "one or more")
    for name in self.parts:
      if name not in PARTS:
        raise InputError(f"--parts={name} is no part: {nearest(name, PARTS)}")
    for name in ("seeds", "stack_width", "stack_steps", "epochs", "layers", "order_steps", "order_batch", "fit_steps"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("depths", "batch_sizes", "norms", "folds"):
      values = getattr(self, name)
      once = len(values) > 0 and len(set(values)) == len(values)
      require(once, name, spelled(name), "one or more, each once")
    require(all(d >= 4 and d % 2 == 0 for d in self.depths), "depths", spelled("depths"), "even numbers of 4 or more")
    require(min(self.batch_sizes) >= 2, "batch_sizes", spelled("batch_sizes"), "numbers of 2 or more, for BatchNorm")
    known = ("batch", "group", "layer", "none")
    require(set(self.norms) <= set(known), "norms", spelled("norms"), f"names among {', '.join(known)}")
    require(all(1 <= k <= 10 for k in self.folds), "folds", spelled("folds"), "numbers from 1 to 10")
    require(20 <= self.fit_parameters <= 1_000_000, "fit_parameters", self.fit_parameters, "20 to 1,000,000")
    require(self.order_rate > 0, "order_rate", self.order_rate, "a number above 0")
    within = 1 <= self.order_warmup <= self.order_steps
    require(within, "order_warmup", self.order_warmup, f"1 to --order_steps={self.order_steps}")
    require(self.seed >= 0, "seed", self.seed, "0 or more")

  def idle_flags(self):
    idle = super().idle_flags() | {"data_placement": "the data set is held on the device"}
    owners = {
      "residual": ("depths", "stack_width", "stack_steps"),
      "norms": ("batch_sizes", "norms", "epochs", "eval_examples"),
      "order": ("layers", "order_rate", "order_warmup", "order_steps", "order_batch"),
      "width": ("folds", "fit_parameters", "fit_steps"),
    }
    for part, names in owners.items():
      if part not in self.parts:
        idle |= dict.fromkeys(names, f"it is of --parts={part}")
    if "residual" not in self.parts:
      idle["batch_size"] = "it is of --parts=residual"
    return idle

  def cpu_layout(self, cores: int):
    return classifier.Config(seeds=self.seeds).cpu_layout(cores)


def main(config: Config) -> int:
  data = load_data(config)
  largest = {"residual": {"batch_size": config.batch_size}, "order": {"order_batch": config.order_batch}}
  largest["norms"] = {"batch_sizes": max(config.batch_sizes)}
  for part in config.parts:
    require_resident(data, **largest.get(part, {}))

  def study(directory: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    lines: list[str] = []
    for part in config.parts:
      found, table = PARTS[part](config, data, directory)
      figures |= found
      lines += [*table, ""]
      print("\n".join(table), flush=True)
    (directory / "table.md").write_text("\n".join(lines), encoding="utf-8")
    return figures

  return run_study("nn.depth", config, study, f"-{Path(config.dataset).stem}")


if __name__ == "__main__":
  run(main, Config)
