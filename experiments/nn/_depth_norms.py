"""Norms against the batch size (Wu & He 2018, figure 1): what statistics of two examples are worth."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from experiments.nn import classifier
from mlnotes.data import DataSet
from mlnotes.engine.record import read_json
from mlnotes.engine.summary import format_summary, over_seeds

# SGD with momentum at this learning rate for 64 examples, in proportion to the batch: Goyal et al. 2017.
_RATE_OF_64 = 0.1
_WARMUP = 0.05  # of the updates


def settings(config: Any, data: DataSet, norm: str, batch_size: int) -> classifier.Config:
  """The runs of one norm at one batch size: as many epochs as those of another."""
  shared = {
    name: getattr(config, name)
    for name in (
      "dataset", "data_dir", "train_split", "test_split", "image_size", "eval_examples", "seed", "seeds"
    )
  }  # fmt: skip
  steps = max(1, config.epochs * (len(data.train) // batch_size))
  return classifier.Config(
    network="small", width=16, norm=norm, batch_size=batch_size, optimizer="sgd", weight_decay=5e-4, steps=steps,
    learning_rate=_RATE_OF_64 * batch_size / 64, schedule="warmup_cosine", warmup_steps=int(_WARMUP * steps),
    eval_every=0, checkpoint_every=0, report_seeds=0, log_every=steps, tensorboard=False, **shared,
  )  # fmt: skip


def measure(config: Any, data: DataSet, directory: Path) -> tuple[dict[str, Any], list[str]]:
  """(figures, table): test error of each norm at each batch size, and its gap to that of the largest batch."""
  errors: dict[tuple[str, int], np.ndarray] = {}
  for norm in config.norms:
    for size in config.batch_sizes:
      own = dataclasses.replace(settings(config, data, norm, size), workdir=str(directory / f"{norm}_{size}"))
      if code := classifier.main(own):
        raise SystemExit(code)
      seeds = read_json(directory / f"{norm}_{size}" / "result.json")["metrics"]["error"]["seeds"]
      errors[norm, size] = np.array([np.nan if value is None else 100 * value for value in seeds])
  draw(config, errors, directory / "norms.png")
  largest = max(config.batch_sizes)
  figures: dict[str, Any] = {}
  rows = ["| norm | batch | test error (%) | more than at the largest batch |", "|---|---|---|---|"]
  for (norm, size), values in errors.items():
    gap = values - errors[norm, largest]
    figures[f"{norm}_{size}/error"] = values
    if size != largest:
      figures[f"{norm}_{size}/gap"] = gap
    more = format_summary(over_seeds(gap), 3) if size != largest else ""
    rows.append(f"| {norm} | {size} | {format_summary(over_seeds(values), 3)} | {more} |")
  return figures, rows


def draw(config: Any, errors: dict[tuple[str, int], np.ndarray], path: Path) -> None:
  """Test error over the batch size: every seed, and the mean."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(width=5.6, height=4.0)
  axis = axes[0, 0]
  sizes = sorted(config.batch_sizes)
  for position, norm in enumerate(config.norms):
    values = np.array([errors[norm, size] for size in sizes])
    shift = 1.04 ** (position - (len(config.norms) - 1) / 2)
    axis.plot(np.array(sizes) * shift, values, "o", color=f"C{position}", alpha=0.3, markersize=4)
    axis.plot(np.array(sizes) * shift, values.mean(1), "-", color=f"C{position}", linewidth=2, label=f"{norm} norm")
  axis.set(xscale="log", xlabel="examples per update", ylabel="test error (%)")
  axis.set_xticks(sizes, [str(size) for size in sizes])
  axis.minorticks_off()
  axis.set_ylim(bottom=0)
  axis.grid(alpha=0.3)
  axis.legend(frameon=False)
  axis.set_title(f"norms by batch size, {config.epochs} epochs each; every seed, and the mean", fontsize=10)
  save_figure(figure, path)
