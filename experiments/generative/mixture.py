"""Mixtures by EM: normals in the plane and of images, Bernoulli vectors of binary images; how many components to take.

  python -m experiments.generative.mixture                               # all parts, on moons and digits
  python -m experiments.generative.mixture --parts=points --points=grid --point_components=1,9,16,25,36
  python -m experiments.generative.mixture --parts=binary --dataset=mnist --data_dir=DIR --binary_components=1,10,50

points: log-likelihood, BIC and held-out likelihood by the number of components, beside the entropy that no model can be
below; images: bits per dimension of dequantised images (in logits, as flows have them); binary: nats of images whose
pixels are drawn once, the floor of every variational auto-encoder's table. One component of binary is independent
pixels, one of images a normal.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlnotes.data.flags import DataConfig, load_data
from mlnotes.engine.errors import InputError, nearest, require
from mlnotes.engine.flags import field, run
from mlnotes.engine.study import run_study

PARTS = ("points", "images", "binary")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
  """Defaults: the three parts in about a minute on two CPU cores."""

  workdir: str = field("", "directory of pictures and figures; empty: runs/generative.mixture-<dataset>", free=True)
  seed: int = field(0, "first seed, >= 0")
  seeds: int = field(1, "runs of each part")
  parts: tuple[str, ...] = field(
    PARTS, "which: points (normals in the plane), images (normals), binary (Bernoulli vectors)"
  )
  points: Literal["moons", "rings", "grid"] = field("moons", "of points: the density, which is known exactly")
  point_examples: int = field(1000, "of points: how many to fit, and as many held out")
  point_components: tuple[int, ...] = field((1, 2, 4, 8, 12, 16, 24), "of points: numbers of normals, ascending")
  covariance: Literal["full", "tied", "diagonal", "spherical"] = field("full", "of normals, in points and in images")
  floor: float = field(1e-4, "least variance of a normal in any direction, above 0")
  restarts: int = field(5, "of points: starts of which the best is kept")
  steps: int = field(100, "steps of EM")
  image_components: tuple[int, ...] = field((1, 5, 10), "of images: numbers of normals, ascending")
  alpha: float = field(0.05, "of images: of the logit that they go through, below 0.5; 0: none")
  binary_components: tuple[int, ...] = field((1, 10, 50), "of binary: numbers of Bernoulli vectors, ascending")
  pseudocount: float = field(0.1, "of binary: pixels of each colour seen before the first, above 0")
  examples: int = field(0, "of images and binary: how many training images, a fixed subset; 0: all")

  def __post_init__(self):
    super().__post_init__()
    spelled = lambda name: ",".join(map(str, getattr(self, name)))
    require(len(self.parts) > 0, "parts", spelled("parts"), "one or more")
    for name in self.parts:
      if name not in PARTS:
        raise InputError(f"--parts={name} is no part: {nearest(name, PARTS)}")
    require(len(set(self.parts)) == len(self.parts), "parts", spelled("parts"), "each part once")
    for name in ("seeds", "restarts", "steps"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("seed", "examples"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    for name in ("point_components", "image_components", "binary_components"):
      values = getattr(self, name)
      ascending = len(values) > 0 and values[0] >= 1 and all(a < b for a, b in itertools.pairwise(values))
      require(ascending, name, spelled(name), "ascending numbers of 1 or more")
    for name in ("floor", "pseudocount"):
      require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
    require(0 <= self.alpha < 0.5, "alpha", self.alpha, "a number in [0, 0.5)")
    most = max(self.point_components)
    require(self.point_examples >= most, "point_examples", self.point_examples, f"{most} or more, one a component")

  def idle_flags(self):
    idle = super().idle_flags() | {
      "data_placement": "the images are held on the device",
      "batch_size": "each step of EM sees all examples",
    }
    owners = {
      "points": ("points", "point_examples", "point_components", "restarts"),
      "images": ("image_components", "alpha"),
      "binary": ("binary_components", "pseudocount"),
    }
    for part, names in owners.items():
      if part not in self.parts:
        idle |= dict.fromkeys(names, f"it is of --parts={part}")
    if "images" not in self.parts and "binary" not in self.parts:
      idle |= dict.fromkeys(("examples", "eval_examples", "dataset"), "--parts=points has no images")
    if "points" not in self.parts and "images" not in self.parts:
      idle |= dict.fromkeys(("covariance", "floor"), "--parts=binary has no normals")
    return idle


def check_sizes(config: Config) -> None:
  """Raises InputError for more components than there are training images."""
  for part, name in (("images", "image_components"), ("binary", "binary_components")):
    if part in config.parts:
      images = len(load_data(config).train)
      images = min(config.examples or images, images)
      require(max(getattr(config, name)) <= images, name, max(getattr(config, name)), f"at most {images}, the images")


def main(config: Config) -> int:
  from experiments.generative import _mixture_parts

  check_sizes(config)
  measures = {name: getattr(_mixture_parts, f"measure_{name}") for name in PARTS}

  def study(directory: Path) -> dict[str, Any]:
    figures: dict[str, list[float]] = {}
    for seed in range(config.seed, config.seed + config.seeds):
      pictures = directory if seed == config.seed else None
      for part in config.parts:
        for name, value in measures[part](config, seed, pictures).items():
          figures.setdefault(f"{part}_{name}", []).append(value)
    return {name: np.asarray(values) for name, values in figures.items()}

  return run_study("generative.mixture", config, study, f"-{Path(config.dataset).stem}")


if __name__ == "__main__":
  run(main, Config)
