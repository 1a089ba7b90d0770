"""Images per second of contrastive updates, and what their time goes to.

  python -m launch.benchmarks.contrastive --methods=simclr,moco --encoder=resnet18 --batch_size=64

A source image counts once, whatever the number of its views. An update is timed whole, without augmentation, and its
loss forward only; the parts take turns, so that noise meets them alike, and medians are printed. Images are random.
"""

import dataclasses
import importlib
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.contrastive.probe import find_methods
from launch.timing import Stepper
from mlnotes.engine.errors import require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.layout import Layout, choose_layout
from mlnotes.engine.loop import enable_compilation_cache
from mlnotes.engine.program import Program, make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  methods: tuple[str, ...] = field(("simclr", "moco"), "of experiments.contrastive")
  encoder: Literal["small", "resnet18", "resnet34", "resnet50"] = field("resnet18", "network")
  width: int = field(0, "of the encoder; 0: its own")
  batch_size: int = field(64, "source images of an update")
  image_size: int = field(32, "pixels a side")
  queue_size: int = field(4096, "of moco")
  precision: Literal["float32", "bfloat16"] = field("float32", "arithmetic of the network")
  updates: int = field(2, "updates of one measurement")
  repeats: int = field(5, "measurements of each part")
  out: str = field("", "file for the figures as JSON")

  def __post_init__(self):
    super().__post_init__()
    for name in ("batch_size", "image_size", "updates", "repeats"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    known = [name.removeprefix("contrastive.") for name in find_methods()]
    for name in self.methods:
      require(name in known, "methods", name, f"names out of {', '.join(known)}")

  def cpu_layout(self, cores: int) -> Layout:
    return choose_layout(1, cores, True, self.batch_size if self.encoder != "small" else 0)


def make_stepper(method: str, dataset: Path, config: Config, augmentation: str) -> Stepper:
  module = importlib.import_module(f"experiments.contrastive.{method}")
  own = {"queue_size": config.queue_size} if method == "moco" else {}
  settings = module.Config(
    dataset=str(dataset), encoder=config.encoder, width=config.width, batch_size=config.batch_size,
    precision=config.precision, optimizer="sgd", weight_decay=5e-4, augmentation=augmentation, **own,
  )  # fmt: skip
  stepper = Stepper(Program(module.make(settings), module.make_feeds(settings), [0], make_mesh()))
  stepper(config.updates)
  return stepper


def measure(method: str, dataset: Path, config: Config) -> dict[str, Any]:
  steppers = {
    "update": make_stepper(method, dataset, config, "auto"),
    "no augmentation": make_stepper(method, dataset, config, "none"),
  }
  seconds = {name: [] for name in steppers}
  for _ in range(config.repeats):
    for name, stepper in steppers.items():
      seconds[name].append(stepper(config.updates) / config.updates)
  whole, bare = (statistics.median(times) for times in seconds.values())
  return {
    "method": method,
    "compile_seconds": steppers["update"].program.compile_seconds,
    "step_seconds": whole,
    "images_per_second": config.batch_size / whole,
    "images_per_second_without_augmentation": config.batch_size / bare,
    "augmentation_share": 1 - bare / whole,
    "all_step_seconds": seconds,
  }


def main(config: Config) -> int:
  enable_compilation_cache()
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", file=sys.stderr)
  rng = np.random.default_rng(0)
  shape = (2 * config.batch_size, config.image_size, config.image_size, 3)
  rows = []
  with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "random.npz"
    np.savez(path, image=rng.integers(0, 256, shape, dtype=np.uint8), label=np.arange(shape[0]) % 10)
    for method in config.methods:
      row = measure(method, path, config)
      rows.append(row)
      bare = row["images_per_second_without_augmentation"]
      print(
        f"{method:<9} {row['images_per_second']:8.1f} images/s  step {1e3 * row['step_seconds']:8.1f} ms  "
        f"augmentation {row['augmentation_share']:6.1%}  "
        f"without it {bare:8.1f} images/s  compile {row['compile_seconds']:.1f} s",
        flush=True,
      )
  if config.out:
    Path(config.out).write_text(json.dumps(rows, indent=2), encoding="utf-8")
  return 0


if __name__ == "__main__":
  run(main, Config)
