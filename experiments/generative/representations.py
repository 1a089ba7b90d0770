"""What reconstruction teaches: one linear probe of masked, denoising, sparse, plain, variational codes and of SimCLR.

  python -m experiments.generative.representations                                      # digits
  python -m experiments.generative.representations --dataset=cifar10 --data_dir=DIR --steps=4000 --codes=128
  python -m experiments.generative.representations --methods=masked,random,pixels

Every method is trained into a directory of its own first, and a finished one is taken as it is. Writes table.md and
representations.png: accuracy with all labels and with a hundredth of them, beside pixels, PCA and a network that has
learned nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.contrastive import simclr
from experiments.generative import autoencoder, vae
from experiments.generative._chunks import in_chunks
from mlnotes.contrastive.knn import choose_k, compute_knn_accuracy
from mlnotes.contrastive.probe import compute_probe_accuracy
from mlnotes.data import DataSet, Split, fixed_subset
from mlnotes.data.flags import DataConfig, load_data
from mlnotes.engine.errors import InputError, nearest, require
from mlnotes.engine.experiment import root_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.plot import new_figure, save_figure
from mlnotes.engine.progress import report_step
from mlnotes.engine.study import run_study
from mlnotes.engine.trained import restore_seed
from mlnotes.generative import to_unit

_CHUNK = 512


class Method(NamedTuple):
  """The experiment that trains it and its flags but for the shared ones; `size`: the flag that --codes sets, if any."""

  module: ModuleType
  flags: Mapping[str, Any]
  size: str = ""


METHODS = {
  "masked": Method(autoencoder, {"kind": "masked"}),
  "denoising": Method(autoencoder, {"kind": "denoising", "network": "conv"}, "codes"),
  "sparse": Method(autoencoder, {"kind": "sparse"}, "codes"),
  "plain": Method(autoencoder, {"kind": "plain", "network": "conv"}, "codes"),
  "variational": Method(
    vae, {"network": "conv", "likelihood": "gaussian", "sigma": 0.1, "activation": "relu"}, "latents"
  ),
  "simclr": Method(simclr, {}),
  "random": Method(autoencoder, {"kind": "plain", "network": "conv"}, "codes"),
}
# What needs no network.
PLAIN = ("pixels", "pca")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
  """Defaults: digits in some minutes on two CPU cores."""

  workdir: str = field(
    "", "directory of table, picture and runs; empty: runs/generative.representations-<dataset>", free=True
  )
  methods: tuple[str, ...] = field((*METHODS, *PLAIN), "which; pixels, pca and random learn nothing by gradients")
  steps: int = field(2000, "updates of each training")
  codes: int = field(64, "features of all but masked and simclr, whose networks say how many; components of pca")
  label_share: float = field(0.01, "of the labels, for the probe with few of them, at least one a class, in (0, 1)")
  probe_examples: int = field(10_000, "training images that probes and neighbours see, at most")
  seed: int = field(0, "first seed, >= 0")
  seeds: int = field(1, "trainings of each method")

  def __post_init__(self):
    super().__post_init__()
    require(len(self.methods) > 0, "methods", "", "one or more")
    for name in self.methods:
      if name not in (*METHODS, *PLAIN):
        raise InputError(f"--methods={name} is no method: {nearest(name, (*METHODS, *PLAIN))}")
    once = len(set(self.methods)) == len(self.methods)
    require(once, "methods", ",".join(self.methods), "each method once")
    for name in ("steps", "codes", "probe_examples", "seeds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")
    require(0 < self.label_share < 1, "label_share", self.label_share, "a number in (0, 1)")

  def idle_flags(self):
    idle = super().idle_flags()
    if not set(self.methods) & set(METHODS) - {"random"}:
      idle |= dict.fromkeys(("steps", "batch_size"), "none of --methods is trained")
    if not set(self.methods) & set(METHODS):
      idle["seeds"] = "none of --methods is drawn"
    return idle | {"eval_examples": "all test images are judged"}


class Features(NamedTuple):
  train: Float[np.ndarray, "N D"]
  test: Float[np.ndarray, "M D"]


def stage_config(method: Method, config: Config, seed: int, workdir: str = "") -> Any:
  """The configuration of a method's training by the study's flags."""
  shared = {name: getattr(config, name) for name in ("dataset", "data_dir", "train_split", "test_split", "image_size")}
  size = {method.size: config.codes} if method.size else {}
  given = dict(**method.flags, **shared, **size, batch_size=config.batch_size, steps=config.steps, seed=seed)
  return method.module.Config.tuned(**given, eval_every=0, report_seeds=0, workdir=workdir)


def make_encoder(name: str, config: Config, directory: Path, seed: int) -> Callable[[np.ndarray], Any]:
  """Images as stored to features, by a network trained into `directory`; `random` by one that is not trained."""
  method = METHODS[name]
  settings = stage_config(method, config, seed, str(directory))
  if name == "random":
    experiment = method.module.make(settings)
    batch = {**load_data(config).train.read(np.arange(2)), "index": np.arange(2), "mask": np.ones(2, np.float32)}
    state = experiment.init(root_key(seed), batch)
  else:
    report_step(f"{name} in {directory}")
    if code := method.module.main(settings):
      raise SystemExit(code)
    experiment, state = restore_seed(method.module, directory, settings)
  model, levels = experiment.model(state), load_data(config).levels
  return (lambda images: model.encode(to_unit(images, levels)).mean) if method.module is vae else model


def plain_features(name: str, config: Config, train: np.ndarray, test: np.ndarray) -> Features:
  """Pixels as they are, or their principal components."""
  flat = [images.reshape(len(images), -1).astype(np.float32) for images in (train, test)]
  if name == "pixels":
    return Features(*flat)
  from sklearn.decomposition import PCA

  pca = PCA(min(config.codes, *flat[0].shape), random_state=0).fit(flat[0])
  return Features(*(pca.transform(x).astype(np.float32) for x in flat))


def measure(features: Features, labels: tuple, config: Config, num_classes: int) -> dict[str, float]:
  """Accuracy on test images of linear probes with all labels and with few, and of the nearest neighbours."""
  train, test = (features.train, labels[0]), (features.test, labels[1])
  few = max(1, round(config.label_share * len(labels[0]) / num_classes))
  k = choose_k(200, len(labels[0]))
  return {
    "all_labels": float(compute_probe_accuracy(train, test).mean()),
    f"{few}_per_class": float(compute_probe_accuracy(train, test, few).mean()),
    "knn": float(compute_knn_accuracy(features.test, labels[1], features.train, labels[0], num_classes, k)),
  }


def main(config: Config) -> int:
  data = load_data(config)
  if data.num_classes < 2:
    raise InputError(f"--dataset={config.dataset}: all images are of one class, expected 2 or more to tell apart.")
  for name in config.methods:  # what does not fit is said before anything trains
    if name in METHODS:
      try:
        METHODS[name].module.make(stage_config(METHODS[name], config, config.seed))
      except InputError as error:
        raise InputError(f"--methods={name}: {error}") from error

  def study(directory: Path) -> dict[str, Any]:
    train, test = (
      _read(split, limit) for split, limit in ((data.train, config.probe_examples), (data.test, len(data.test)))
    )
    labels = (train["label"], test["label"])
    found: dict[str, list[dict[str, float]]] = {}
    for name in config.methods:
      seeds = range(config.seed, config.seed + (config.seeds if name in METHODS else 1))
      for seed in seeds:
        if name in METHODS:
          encode = make_encoder(name, config, directory / f"{name}-{seed}", seed)
          features = Features(*(in_chunks(encode, split["image"], size=_CHUNK) for split in (train, test)))
        else:
          features = plain_features(name, config, train["image"], test["image"])
        report_step(f"probes of {name}")
        found.setdefault(name, []).append(measure(features, labels, config, data.num_classes))
    _write_table(found, directory / "table.md")
    _draw(found, data, directory / "representations.png")
    return {
      f"{name}/{figure}": [one[figure] for one in runs] if len(runs) > 1 else runs[0][figure]
      for name, runs in found.items()
      for figure in runs[0]
    }

  return run_study("generative.representations", config, study, f"-{Path(config.dataset).stem}")


def _read(split: Split, limit: int) -> Mapping[str, np.ndarray]:
  return split.read(fixed_subset(len(split), limit))


def _write_table(found: dict[str, list[dict[str, float]]], path: Path) -> None:
  columns = list(next(iter(found.values()))[0])
  lines = ["| features | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
  for name, runs in found.items():
    cells = []
    for column in columns:
      values = [one[column] for one in runs]
      spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
      cells.append(f"{np.mean(values):.3f}{spread}")
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  print("\n".join(lines), flush=True)


def _draw(found: dict[str, list[dict[str, float]]], data: DataSet, path: Path) -> None:
  """A group of bars for each figure, methods in the order of the first."""
  columns = list(next(iter(found.values()))[0])
  mean = {name: [np.mean([one[column] for one in runs]) for column in columns] for name, runs in found.items()}
  names = sorted(mean, key=lambda name: -mean[name][0])
  figure, axes = new_figure(1, len(columns), width=3.4 * len(columns), height=0.35 * len(names) + 1.2)
  titles = {"all_labels": "linear probe, all labels", "knn": "nearest neighbours"}
  for i, (axis, column) in enumerate(zip(axes[0], columns)):
    colors = ["tab:gray" if name in (*PLAIN, "random") else "tab:blue" for name in names]
    axis.barh(range(len(names)), [mean[name][i] for name in names], color=colors)
    for row, name in enumerate(names):
      axis.text(mean[name][i], row, f" {mean[name][i]:.3f}", va="center", fontsize=7)
    axis.set_yticks(range(len(names)), names if i == 0 else [""] * len(names))
    axis.invert_yaxis()
    axis.set_xlim(0, 1.15)
    axis.axvline(1 / data.num_classes, color="black", linestyle=":", linewidth=0.8)
    axis.set_title(titles.get(column, f"linear probe, {column.partition('_')[0]} labels a class"), fontsize=9)
  axes[0, 0].set_xlabel("accuracy on test images; dotted: chance; grey: nothing learned by gradients", fontsize=7)
  save_figure(figure, path)


if __name__ == "__main__":
  run(main, Config)
