"""Small and large batches: time, generalisation, sharpness after equally many examples; warm-up for large steps.

  python -m experiments.optim.batch_size

Writes batch_size.png, warmup.png and result.json. SGD with momentum, Adam for the warm-up, on digits; all seeds
of a setting are one program.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.data import DataSet
from mlnotes.data.flags import DataConfig, load_data
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.study import run_study
from mlnotes.optim import compute_extreme_eigenvalues
from mlnotes.optim.flags import OptimConfig, make_optimizer
from mlnotes.optim.testbed import Classifier, Curves, make_classifier, train_once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
  """--batch_size is that of the runs with and without warm-up."""

  workdir: str = field("runs/optim.batch_size", "directory of the pictures and the numbers", free=True)
  seed: int = field(0, "first seed, >= 0")
  seeds: int = field(8, "runs of each setting")
  batch_sizes: tuple[int, ...] = field((8, 32, 128, 512, 1024), "that are compared")
  epochs: int = field(20, "of each run: it sees so many times the training examples, whatever its batches")
  eval_examples: int = 4096
  learning_rate: float = field(0.02, "of batches of 32, > 0; scaled with the batch for one of two curves")
  widths: tuple[int, ...] = field((32,), "of the network's hidden layers where batch sizes are compared")
  batch_size: int = 512
  deep_widths: tuple[int, ...] = field((32, 32, 32, 32), "of the network that warm-up is shown on")
  rates: tuple[float, ...] = field((3e-3, 0.01, 0.02, 0.04, 0.08, 0.16), "learning rates with and without warm-up")
  warmup_updates: int = field(40, "of linear warm-up, of --warmup_total updates")
  warmup_total: int = field(120, "updates of the runs with and without warm-up")

  def __post_init__(self):
    super().__post_init__()
    for name in ("seeds", "epochs", "warmup_updates", "warmup_total"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
    require(2 * self.warmup_updates <= self.warmup_total, "warmup_updates", self.warmup_updates, "half of all at most")
    require(min(self.batch_sizes, default=0) >= 1, "batch_sizes", self.batch_sizes, "numbers of 1 or more")
    require(min(self.rates, default=0) > 0, "rates", self.rates, "numbers above 0")
    for name in ("batch_sizes", "rates"):
      require(len(set(getattr(self, name))) == len(getattr(self, name)), name, getattr(self, name), "each number once")
    for name in ("widths", "deep_widths"):
      require(min(getattr(self, name), default=1) >= 1, name, getattr(self, name), "numbers of 1 or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")

  def idle_flags(self):
    return super().idle_flags() | {"data_placement": "the data set is held on the device"}


def seed_keys(config: Config) -> Any:
  return jax.vmap(root_key)(jnp.arange(config.seed, config.seed + config.seeds))


def measure_batch_size(config: Config, data: DataSet, batch_size: int) -> dict[str, np.ndarray]:
  """Figures after equally many examples, (2, seeds) each: learning rate fixed, and in proportion to the batch size.

  As many updates as come nearest to `config.epochs` times the training examples: whole epochs would leave out up to a
  batch each, a third of all examples where batches are large.

  Linear scaling: Goyal et al. 2017, section 2.1. Sharpness: the largest eigenvalue of the training loss at the end.
  """
  classifier = make_classifier(data, config.widths, batch_size, config.eval_examples)
  per_epoch = len(data.train) / batch_size
  steps = round(config.epochs * per_epoch)
  optimizer = make_optimizer(OptimConfig(optimizer="sgd", schedule="cosine"), steps)
  rates = config.learning_rate * jnp.array([1.0, batch_size / 32])

  def once(key, rate):
    found = train_once(classifier, optimizer, key, rate, steps, steps)
    loss = lambda params: classifier.loss(params, classifier.train)
    top = compute_extreme_eigenvalues(loss, found.params, stream_key(key, "sharpness"), 24).largest
    return found.train_loss[-1], found.test_accuracy[-1], top

  all_runs = jax.jit(lambda keys: jax.lax.map(lambda rate: jax.vmap(once, (0, None))(keys, rate), rates))
  loss, accuracy, top = map(np.asarray, all_runs(seed_keys(config)))
  time_of = time_updates(classifier, optimizer, config)
  return {
    "train_loss": loss,
    "test_accuracy": accuracy,
    "sharpness": top,
    "update_microseconds": 1e6 * time_of,
    "epoch_milliseconds": 1e3 * time_of * per_epoch,
    "examples_per_second": batch_size / time_of,
    "updates": steps,
    "examples": steps * batch_size,
  }


def time_updates(classifier: Any, optimizer: Any, config: Config, count: int = 200) -> float:
  """Seconds of one update of one run, the least of three."""
  run_some = jax.jit(lambda key: train_once(classifier, optimizer, key, jnp.float32(1e-3), count, count).params)
  key = root_key(config.seed)
  jax.block_until_ready(run_some(key))
  times = []
  for _ in range(3):
    started = time.perf_counter()
    jax.block_until_ready(run_some(key))
    times.append((time.perf_counter() - started) / count)
  return min(times)


def measure_warmup(config: Config, classifier: Classifier) -> dict[str, Curves]:
  """{"without", "with"}: curves (rates, seeds, updates) of Adam with large batches on a deeper network."""

  def curves(warmup: int):
    flags = OptimConfig(optimizer="adam", schedule="cosine", warmup_steps=warmup)
    optimizer = make_optimizer(flags, config.warmup_total)
    once = lambda key, rate: train_once(classifier, optimizer, key, rate, config.warmup_total, 1)
    over_both = jax.vmap(jax.vmap(once, (0, None)), (None, 0))
    return jax.jit(over_both)(seed_keys(config), jnp.array(config.rates))

  return {"without": curves(0), "with": curves(config.warmup_updates)}


def spread(config: Config, what: str = "mean and standard deviation") -> str:
  return f"{what} of {config.seeds} seeds" if config.seeds > 1 else "one seed"


def deviation(values: np.ndarray) -> np.ndarray:
  """The sample standard deviation over seeds, the last axis; 0 for one seed."""
  return values.std(-1, ddof=1) if values.shape[-1] > 1 else np.zeros(values.shape[:-1])


def draw_batch_sizes(config: Config, found: dict[int, dict[str, np.ndarray]], path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  sizes = list(found)
  figure, axes = new_figure(1, 4, width=15.0, height=3.8)
  for i, label in enumerate(("the same learning rate", "learning rate in proportion to the batch")):
    for axis, name, scale in zip(axes[0, 1:], ("test_accuracy", "train_loss", "sharpness"), (100, 1, 1)):
      values = scale * np.stack([found[size][name][i] for size in sizes])
      if name == "test_accuracy":
        values = 100 - values
      axis.errorbar(sizes, values.mean(1), deviation(values), marker="o", capsize=3, label=label)
  times = [found[size]["epoch_milliseconds"] for size in sizes]
  updates = [found[size]["update_microseconds"] / 1e3 for size in sizes]
  axes[0, 0].plot(sizes, times, "o-", color="C2", label="an epoch")
  axes[0, 0].plot(sizes, updates, "o-", color="C3", label="an update")
  titles = ("milliseconds, one run alone", "test error (%)", "final training loss", "largest eigenvalue at the end")
  for axis, title in zip(axes[0], titles):
    axis.set_title(title)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_yscale("log")
    axis.set_xlabel("batch size")
  axes[0, 0].legend(frameon=False)
  axes[0, 1].legend(frameon=False, fontsize=8)
  figure.suptitle(f"SGD with momentum, {config.epochs} epochs; {spread(config)}")
  save_figure(figure, path)


def draw_warmup(config: Config, found: dict[str, Curves], path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=10.5, height=3.9)
  shown = shown_rate(config, found)
  update = np.arange(1, config.warmup_total + 1)
  for i, (name, curves) in enumerate(found.items()):
    losses = np.nan_to_num(np.asarray(curves.train_loss), nan=10, posinf=10).clip(max=10)
    final = losses[..., -1]
    axes[0, 0].plot(config.rates, np.median(final, 1), "o-", color=f"C{i}", label=f"{name} warm-up")
    axes[0, 0].fill_between(config.rates, final.min(1), final.max(1), color=f"C{i}", alpha=0.15, lw=0)
    axes[0, 1].plot(update, np.median(losses[shown], 0), color=f"C{i}", label=f"{name} warm-up")
    axes[0, 1].plot(update, losses[shown].T, color=f"C{i}", lw=0.5, alpha=0.4)
  axes[0, 0].set_xscale("log")
  axes[0, 0].set_xlabel("peak learning rate")
  axes[0, 0].set_title(f"final training loss, {spread(config, 'median and range')}")
  axes[0, 1].axvline(config.warmup_updates, color="grey", lw=0.8, ls=":")
  axes[0, 1].set_xlabel("update (dotted: the warm-up's end)")
  axes[0, 1].set_title(f"training loss at {config.rates[shown]:g}, every seed")
  for axis in axes[0]:
    axis.set_yscale("log")
    axis.legend(frameon=False)
  figure.suptitle(f"Adam, batches of {config.batch_size}, {len(config.deep_widths)} hidden layers, cosine schedule")
  save_figure(figure, path)


def shown_rate(config: Config, found: dict[str, Curves]) -> int:
  """Where warm-up matters most: the rate with the largest ratio of the two median final losses."""
  final = lambda name: np.median(np.nan_to_num(np.asarray(found[name].train_loss[..., -1]), nan=10).clip(max=10), 1)
  return int(np.argmax(final("without") / final("with")))


def main(config: Config) -> int:
  data = load_data(config)
  deep = make_classifier(data, config.deep_widths, config.batch_size, config.eval_examples)
  largest = max(config.batch_sizes)
  require(largest <= len(data.train), "batch_sizes", largest, f"at most {len(data.train)} examples")

  def study(directory: Path):
    sizes = {size: measure_batch_size(config, data, size) for size in config.batch_sizes}
    draw_batch_sizes(config, sizes, directory / "batch_size.png")
    figures = {}
    for size, found in sizes.items():
      for name, values in found.items():
        if np.ndim(values):
          figures |= {f"batch_{size}/{name}": values[0], f"batch_{size}/{name}_scaled_rate": values[1]}
        else:
          figures[f"batch_{size}/{name}"] = values
    warmup = measure_warmup(config, deep)
    draw_warmup(config, warmup, directory / "warmup.png")
    for name, curves in warmup.items():
      for rate, losses, accuracy in zip(config.rates, curves.train_loss[..., -1], curves.test_accuracy[..., -1]):
        figures[f"{name}_warmup/rate_{rate:g}/train_loss"] = np.nan_to_num(losses, nan=10).clip(max=10)
        figures[f"{name}_warmup/rate_{rate:g}/test_accuracy"] = accuracy
    return figures

  return run_study("optim.batch_size", config, study)


if __name__ == "__main__":
  run(main, Config)
