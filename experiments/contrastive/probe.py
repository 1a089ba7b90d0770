"""What the features of a trained contrastive run are worth: kNN and linear probes with few and with all labels.

python -m experiments.contrastive.probe                                   # trains simclr on digits first
python -m experiments.contrastive.probe --run=runs/simclr --labels_per_class=1,5,10,50,0
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import numpy as np

from experiments import catalogue, import_experiment
from experiments.contrastive._pretraining import ContrastiveConfig
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.stage import find_stage
from mlnotes.engine.study import run_study
from mlnotes.engine.trained import load_config, restore_states


def find_methods() -> dict[str, ModuleType]:
  """The experiments of this chapter that train features, by name."""
  modules = {name: import_experiment(name) for name, _ in catalogue() if name.startswith("contrastive.")}
  return {name: module for name, module in modules.items() if issubclass(module.Config, ContrastiveConfig)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  run: str = field("", "work directory of a training run of this chapter; empty: contrastive.simclr is trained first")
  checkpoint: Literal["last", "best"] = field("last", "which of the two kept checkpoints; best: highest kNN accuracy")
  model_seed: int = field(-1, "which seed of a run with several; -1: all of them")
  labels_per_class: tuple[int, ...] = field((1, 2, 5, 10, 20, 50, 0), "numbers of labels to learn from; 0: all")
  draws: int = field(5, "random choices of the labels for each number of them")
  knn_k: int = field(200, "neighbours that vote, or a tenth of the training images if that is less")
  knn_temperature: float = field(0.1, "of the votes, > 0")
  data_dir: str = field("", "where the run's TFDS data set is now; empty: as in the run")
  workdir: str = field("", "directory for the figures; empty: probe/ in the run's own")

  def __post_init__(self):
    super().__post_init__()
    counts = self.labels_per_class
    require(len(counts) > 0 and min(counts) >= 0, "labels_per_class", counts, "numbers of 0 or more")
    for name in ("draws", "knn_k"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.knn_temperature > 0, "knn_temperature", self.knn_temperature, "a number above 0")

  def idle_flags(self):
    idle = {}
    if self.knn_k == 1:
      idle["knn_temperature"] = "one neighbour (--knn_k=1) is right or wrong whatever its vote weighs"
    if not any(self.labels_per_class):
      idle["draws"] = "all labels (--labels_per_class=0) are drawn in one way only"
    return super().idle_flags() | idle


def draw_curves(path: Path, curves: Mapping[str, Mapping[int, np.ndarray]], num_all: float, title: str) -> None:
  """Accuracy over labels per class, learned features beside raw pixels, with the spread as bars."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(width=5.2, height=3.8)
  axis = axes[0, 0]
  for name, curve in curves.items():
    counts = sorted(curve, key=lambda n: n or num_all)
    mean, std = (np.array([f(curve[n]) for n in counts]) for f in (np.mean, np.std))
    axis.errorbar([n or num_all for n in counts], mean, std, marker="o", markersize=4, capsize=3, label=name)
  axis.set(
    xscale="log",
    xlabel="labels per class" + (", all last" if 0 in counts else ""),
    ylabel="test accuracy of a linear probe",
  )
  ticks = [n or num_all for n in counts]
  axis.set_xticks(ticks, [f"{n:.0f}" for n in ticks])
  axis.minorticks_off()
  axis.grid(alpha=0.3)
  axis.legend(frameon=False)
  axis.set_title(title, fontsize=10)
  save_figure(figure, path)


def main(config: Config) -> int:
  methods = find_methods()
  workdir = Path(config.workdir or "runs/contrastive.probe").expanduser()
  directory = find_stage("run", config.run, methods["contrastive.simclr"], workdir)
  name, trained = load_config(directory, {name: module.Config for name, module in methods.items()})
  trained = dataclasses.replace(trained, data_dir=config.data_dir or trained.data_dir, devices=1)
  module, data = methods[name], load_data(trained)
  experiment = module.make(trained)
  states, step = restore_states(
    directory, experiment, module.make_feeds(trained), trained, config.checkpoint, config.model_seed
  )

  def study(out: Path) -> dict[str, Any]:
    from experiments.contrastive._report import embed_split, to_pixels
    from mlnotes.contrastive.knn import choose_k, compute_knn_accuracy
    from mlnotes.contrastive.probe import compute_probe_accuracy

    embed = jax.jit(experiment.embed)
    labels = [split.read(np.arange(len(split)))["label"] for split in (data.train, data.test)]
    knn = lambda pair: compute_knn_accuracy(
      pair[1], labels[1], pair[0], labels[0], data.num_classes, choose_k(config.knn_k, len(labels[0])),
      config.knn_temperature,
    )  # fmt: skip
    probe = lambda pair, n: compute_probe_accuracy((pair[0], labels[0]), (pair[1], labels[1]), n, config.draws)
    features = [[embed_split(embed, state, s).features for s in (data.train, data.test)] for state in states.values()]
    pixels = [to_pixels(split, data.levels) for split in (data.train, data.test)]
    # A value for each seed of the run, or for each draw of the labels where there is one seed. Raw pixels have no seed.
    learned = {n: np.array([probe(pair, n) for pair in features]) for n in config.labels_per_class}
    learned = {n: x.mean(axis=1) if len(states) > 1 else x[0] for n, x in learned.items()}
    raw = {n: probe(pixels, n) for n in config.labels_per_class}
    curves = {f"{name.rpartition('.')[2]} features": learned, "raw pixels": raw}
    title = f"{data.name}, step {step}, {len(states)} seed{'s' if len(states) > 1 else ''}"
    draw_curves(out / "probe.png", curves, len(labels[0]) / data.num_classes, title)
    figures = {"step": step, "knn": [knn(pair) for pair in features], "pixels_knn": [knn(pixels)]}
    for n in config.labels_per_class:
      count = f"{n}_per_class" if n else "all_labels"
      figures |= {f"probe_{count}": learned[n], f"pixels_probe_{count}": raw[n]}
    return figures

  workdir = config.workdir or str(directory / "probe")
  return run_study("contrastive.probe", dataclasses.replace(config, workdir=workdir), study)


if __name__ == "__main__":
  run(main, Config)
