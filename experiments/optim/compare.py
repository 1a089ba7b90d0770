"""Optimizers compared: each at its own best learning rate, with curves, spread and time per step. Data: digits, MNIST.

  python -m experiments.optim.compare                                                # every rule, on digits
  python -m experiments.optim.compare --dataset=mnist --data_dir=DIR --optimizers=sgd,adam,lookahead_adam --seeds=3

All seeds and learning rates of an optimizer are one program. Writes compare.png, sensitivity.png, table.md, the card.
The best learning rate is the one with the fewest seeds that diverged, among those the one of the lowest final training
loss, mean over seeds: test data choose nothing. Lookahead is judged by its slow weights.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.data import DataSet
from mlnotes.data.flags import DataConfig, load_data
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import root_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.study import run_study
from mlnotes.engine.summary import format_summary, order_key, over_seeds
from mlnotes.optim import ScheduleName
from mlnotes.optim.flags import OptimConfig, make_optimizer
from mlnotes.optim.testbed import Classifier, make_classifier, train_once

# Panels, and where the sweep of each rule begins: the learning rate in its middle.
GROUPS = {
  "gradient and momentum": dict(plain_sgd=0.3, sgd=0.1, nesterov=0.1, sgdw=0.1, lars=10.0),
  "rates from squared gradients": dict(adagrad=0.1, adadelta=3.0, rmsprop=3e-3, rmsprop_centred=3e-3),
  "Adam and its kin": dict(adam=0.01, adamw=0.01, nadam=0.01, amsgrad=0.01, radam=0.01),
  "between Adam and SGD": dict(adabound=0.01, amsbound=0.01, swats=0.01, lookahead_sgd=0.1, lookahead_adam=0.01),
}
CENTRES = {name: rate for group in GROUPS.values() for name, rate in group.items()}
DECAYED = ("adamw", "sgdw")
REFERENCE = "adam"  # drawn in every panel
MOST_SHIFTS = 3  # of the sweep, where the best learning rate is at its edge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
  """Defaults: every rule on digits in under three minutes on two CPU cores."""

  batch_size: int = 32
  eval_examples: int = 4096
  workdir: str = field("", "directory of pictures, table and numbers; empty: runs/optim.compare-<dataset>", free=True)
  optimizers: tuple[str, ...] = field(tuple(CENTRES), "which ones: names of --optimizer, plain_sgd, lookahead_<name>")
  rates: int = field(5, "learning rates in the sweep of each, factors of sqrt(10) apart, 3 or more")
  seed: int = field(0, "first seed, >= 0")
  seeds: int = field(8, "runs of each learning rate")
  steps: int = field(400, "updates of each run")
  points: int = field(20, "points of a curve; a divisor of --steps")
  widths: tuple[int, ...] = field((32,), "of the network's hidden layers; empty: a linear classifier")
  schedule: ScheduleName = field("constant", "learning rate over --steps, of every optimizer")
  warmup_steps: int = field(0, "updates of linear warm-up from 0, of every optimizer")
  weight_decay: float = field(0.01, "of adamw and sgdw, decoupled; the others have none")

  def __post_init__(self):
    super().__post_init__()
    require(self.rates >= 3, "rates", self.rates, "3 or more")
    for name in ("seeds", "steps", "points"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.steps % self.points == 0, "points", self.points, f"a divisor of --steps={self.steps}")
    require(self.seed >= 0, "seed", self.seed, "0 or more")
    require(len(self.optimizers) > 0, "optimizers", self.optimizers, "one or more")
    require(len(set(self.optimizers)) == len(self.optimizers), "optimizers", self.optimizers, "each name once")
    require(min(self.widths, default=1) >= 1, "widths", self.widths, "numbers of 1 or more")
    for name in self.optimizers:
      known = name in CENTRES or (inner(name) in CENTRES and not inner(name).startswith("lookahead_"))
      require(known, "optimizers", name, f"names among {', '.join(CENTRES)}, or lookahead_ and one of the others")
      optim_config(self, name)
    require(
      2 * self.warmup_steps <= self.steps, "warmup_steps", self.warmup_steps, f"half of --steps={self.steps} at most"
    )

  def idle_flags(self):
    idle = super().idle_flags() | {"data_placement": "the data set is held on the device"}
    if not any(inner(name) in DECAYED for name in self.optimizers):
      idle["weight_decay"] = f"it is that of {' and '.join(DECAYED)} alone"
    return idle


def inner(name: str) -> str:
  """What Lookahead is around, if it is."""
  return name.removeprefix("lookahead_")


def optim_config(config: Config, name: str) -> OptimConfig:
  """The flags that one entry of --optimizers stands for."""
  plain = inner(name) == "plain_sgd"
  return OptimConfig(
    optimizer="sgd" if plain else inner(name),
    momentum=0.0 if plain else 0.9,
    lookahead=5 if name.startswith("lookahead_") else 0,
    schedule=config.schedule,
    warmup_steps=config.warmup_steps,
    weight_decay=config.weight_decay if inner(name) in DECAYED else 0.0,
  )


class Sweep(NamedTuple):
  """One optimizer: (rates,) learning rates, (rates, seeds, points) curves, and its cost."""

  rates: np.ndarray
  train_loss: np.ndarray
  test_accuracy: np.ndarray
  compile_seconds: float
  update_seconds: float  # of one run, in the program of all, evaluation of the curves included

  @property
  def final_loss(self) -> np.ndarray:
    """(rates,), infinite where a seed diverged."""
    return np.nan_to_num(self.train_loss[..., -1].mean(1), nan=np.inf, posinf=np.inf)

  @property
  def finite(self) -> np.ndarray:
    """(rates, seeds): whose final training loss is a number."""
    return np.isfinite(self.train_loss[..., -1])

  @property
  def best(self) -> int:
    """Of the rates at which no seed diverged, where there is one, that of the lowest mean."""
    return min(range(len(self.rates)), key=lambda i: order_key(over_seeds(self.train_loss[i, :, -1]), "min"))

  @property
  def at_edge(self) -> bool:
    """Whether a better learning rate may lie beyond those that were tried."""
    return self.best in (0, len(self.rates) - 1)


def sweep(config: Config, classifier: Any, name: str) -> Sweep:
  """Trains every seed at every learning rate; moves on in the direction of the best where that is at the edge."""
  optimizer = make_optimizer(optim_config(config, name), config.steps)
  every = config.steps // config.points
  once = lambda key, rate: train_once(classifier, optimizer, key, rate, config.steps, every)[:2]
  over_both = jax.vmap(jax.vmap(once, in_axes=(0, None)), in_axes=(None, 0))
  keys = jax.vmap(root_key)(jnp.arange(config.seed, config.seed + config.seeds))
  centre = CENTRES[name if name in CENTRES else inner(name)]
  rate = lambda exponent: centre * 10 ** (0.5 * np.asarray(exponent))
  exponents = np.arange(config.rates) - config.rates // 2
  started = time.perf_counter()
  program = jax.jit(over_both).lower(keys, jnp.asarray(rate(exponents), jnp.float32)).compile()
  compile_seconds = time.perf_counter() - started
  found: dict[int, Any] = {}
  updates, elapsed = 0, 0.0
  for _ in range(1 + MOST_SHIFTS):
    started = time.perf_counter()
    losses, accuracies = map(np.asarray, program(keys, jnp.asarray(rate(exponents), jnp.float32)))
    elapsed += time.perf_counter() - started
    updates += config.steps * config.seeds * config.rates
    found |= {int(exponent): result for exponent, *result in zip(exponents, losses, accuracies)}
    order = sorted(found)
    result = Sweep(
      rate(order),
      *(np.stack([found[exponent][i] for exponent in order]) for i in (0, 1)),
      compile_seconds,
      elapsed / updates,
    )
    if not result.at_edge:
      break
    # The next ones beyond the edge, and one that is known between them and the rest.
    exponents = exponents + (config.rates - 1) * (1 if result.best else -1)
  return result


def best_rate(found: Sweep) -> str:
  return f"{found.rates[found.best]:.2g}" + (" (at the edge of the sweep)" if found.at_edge else "")


def judged_on(classifier: Classifier, data: DataSet) -> str:
  """What the figures are of, where that is not all of a split: "" or " of ... examples"."""
  parts = []
  for name, held, split in (("training", classifier.train, data.train), ("test", classifier.test, data.test)):
    if len(held["label"]) < len(split):
      parts.append(f"{len(held['label'])} of {len(split)} {name} examples")
  return f"Figures are of a fixed pseudo-random subset: {' and '.join(parts)}." if parts else ""


def write_table(sweeps: dict[str, Sweep], path: Path, note: str = "") -> None:
  """Mean and sample standard deviation over the seeds that are finite; where some are not, how many are."""
  rows = [
    "| optimizer | best learning rate | training loss | test accuracy (%) | µs per update and run | compile (s) |",
    "|---|---|---|---|---|---|",
  ]
  for name, found in sweeps.items():
    finite = found.finite[found.best]
    loss = found.train_loss[found.best, :, -1]
    accuracy = np.where(finite, 100 * found.test_accuracy[found.best, :, -1], np.nan)  # of seeds that have one
    figures = f"{format_summary(over_seeds(loss), 2)} | {format_summary(over_seeds(accuracy))}"
    rows.append(
      f"| {name} | {best_rate(found)} | {figures} | {1e6 * found.update_seconds:.0f} | {found.compile_seconds:.1f} |"
    )
  if note:
    rows += ["", note]
  path.write_text("\n".join(rows) + "\n", encoding="utf-8")
  print("\n".join(rows))


def panels(sweeps: dict[str, Sweep]) -> dict[str, list[str]]:
  """The optimizers of each panel that has any; Adam first in each where it was measured."""
  grouped = {title: [name for name in group if name in sweeps] for title, group in GROUPS.items()}
  rest = [name for name in sweeps if name not in CENTRES]
  grouped["between Adam and SGD"] += rest
  others = {title: [name for name in names if name != REFERENCE] for title, names in grouped.items()}
  if REFERENCE not in sweeps:
    return {title: names for title, names in others.items() if names}
  return {title: [REFERENCE, *names] for title, names in others.items() if names} or {"": [REFERENCE]}


def style(name: str, position: int) -> dict[str, Any]:
  if name == REFERENCE:
    return dict(color="black", linestyle="--", linewidth=1.2, label=name)
  return dict(color=f"C{position}", linewidth=1.4, label=name)


def drawn_loss(loss: np.ndarray) -> np.ndarray:
  """What a logarithmic axis can show: 10 for what diverged."""
  return np.nan_to_num(loss, nan=np.inf).clip(1e-8, 10)


def share_height(axes: np.ndarray) -> None:
  """One logarithmic scale for all axes of a row."""
  for row in axes:
    for axis in row:
      axis.set_yscale("log")
    low, high = zip(*(axis.get_ylim() for axis in row))
    for axis in row:
      axis.set_ylim(min(low), max(high))


def draw_curves(config: Config, sweeps: dict[str, Sweep], path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  groups = panels(sweeps)
  figure, axes = new_figure(2, len(groups), width=max(3.6 * len(groups), 5.0), height=6.2)
  step = np.arange(1, config.points + 1) * (config.steps // config.points)
  for column, (title, names) in enumerate(groups.items()):
    for position, name in enumerate(names):
      found = sweeps[name]
      error = 100 * (1 - found.test_accuracy[found.best])
      for row, values in enumerate((drawn_loss(found.train_loss[found.best]), error.clip(0.01))):
        axis = axes[row, column]
        axis.plot(step, values.mean(0), marker="o" if len(step) == 1 else None, **style(name, position))
        axis.fill_between(step, values.min(0), values.max(0), color=style(name, position)["color"], alpha=0.12, lw=0)
    axes[0, column].set_title(title)
    axes[1, column].set_xlabel("update")
    axes[0, column].legend(frameon=False, fontsize=8, loc="upper right")
  share_height(axes)
  axes[0, 0].set_ylabel("training loss (10: diverged)")
  axes[1, 0].set_ylabel("test error (%)")
  seeds = f"mean and range of {config.seeds} seeds" if config.seeds > 1 else "one seed"
  title = f"{Path(config.dataset).stem}: each optimizer at its best learning rate"
  figure.suptitle(f"{title}{'; ' if len(groups) > 2 else chr(10)}{seeds}", fontsize=11)
  save_figure(figure, path)


def draw_sensitivity(config: Config, sweeps: dict[str, Sweep], path: Path) -> None:
  from mlnotes.engine.plot import new_figure, save_figure

  groups = panels(sweeps)
  figure, axes = new_figure(1, len(groups), width=3.6 * len(groups), height=3.6)
  for axis, (title, names) in zip(axes[0], groups.items()):
    for position, name in enumerate(names):
      found = sweeps[name]
      axis.plot(found.rates, drawn_loss(found.final_loss), marker="o", markersize=3, **style(name, position))
    axis.set_title(title)
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.legend(frameon=False, fontsize=8)
  share_height(axes)
  axes[0, 0].set_ylabel("final training loss (10: diverged)")
  save_figure(figure, path)


def main(config: Config) -> int:
  data = load_data(config)
  classifier = make_classifier(data, config.widths, config.batch_size, config.eval_examples)

  def study(directory: Path):
    sweeps = {}
    for name in config.optimizers:
      sweeps[name] = found = sweep(config, classifier, name)
      print(f"{name:>16}: best learning rate {best_rate(found)} of {len(found.rates)}", flush=True)
    write_table(sweeps, directory / "table.md", judged_on(classifier, data))
    draw_curves(config, sweeps, directory / "compare.png")
    draw_sensitivity(config, sweeps, directory / "sensitivity.png")
    figures = {}
    for name, found in sweeps.items():
      figures[f"{name}/learning_rate"] = found.rates[found.best]
      figures[f"{name}/train_loss"] = found.train_loss[found.best, :, -1]
      figures[f"{name}/test_accuracy"] = found.test_accuracy[found.best, :, -1]
      figures[f"{name}/update_microseconds"] = 1e6 * found.update_seconds
      figures[f"{name}/compile_seconds"] = found.compile_seconds
    return figures

  return run_study("optim.compare", config, study, f"-{Path(config.dataset).stem}")


if __name__ == "__main__":
  run(main, Config)
