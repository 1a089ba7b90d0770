"""Pre- and post-norm Transformers with and without warm-up (Xiong et al. 2020): which of them trains?"""

from pathlib import Path
from typing import Any

import numpy as np
import optax

from experiments.nn._side_by_side import Curves, train_seeds
from mlnotes.data import DataSet
from mlnotes.engine.summary import format_summary, over_seeds
from mlnotes.nn.row_encoder import RowEncoder

_WIDTH, _HEADS = 16, 2


def measure(config: Any, data: DataSet, directory: Path) -> tuple[dict[str, Any], list[str]]:
  """(figures, table): loss and accuracy of each order of norms, with and without warm-up."""
  found: dict[str, Curves] = {}
  points = max(p for p in range(1, 31) if config.order_steps % p == 0)
  warm = optax.linear_schedule(0.0, config.order_rate, config.order_warmup)
  for order in ("pre", "post"):
    for name, rate in (("without_warmup", config.order_rate), ("with_warmup", warm)):
      network = RowEncoder(order, config.layers, _WIDTH, _HEADS, num_classes=data.num_classes)
      found[f"{order}_norm_{name}"] = curves = train_seeds(
        network, data, optax.adam(rate, b2=0.98), seeds=range(config.seed, config.seed + config.seeds),
        steps=config.order_steps, batch_size=config.order_batch, points=points, first="embed",
      )  # fmt: skip
      title = f"{order}-norm {name.replace('_', ' ').replace('warmup', 'warm-up')}"
      print(f"{title:>26}: {format_summary(over_seeds(100 * curves.accuracy))} %", flush=True)
  draw(config, data.num_classes, found, directory / "order.png")
  rows = ["| norm | warm-up | training loss | test accuracy (%) | worst seed (%) |", "|---|---|---|---|---|"]
  figures: dict[str, Any] = {}
  for name, curves in found.items():
    figures |= {f"{name}/loss": curves.loss[:, -1], f"{name}/accuracy": curves.accuracy}
    order, _, warmup = name.partition("_norm_")
    rows.append(
      f"| {order} | {config.order_warmup if warmup.startswith('with_') else 0} | "
      f"{format_summary(over_seeds(curves.loss[:, -1]), 2)} | {format_summary(over_seeds(100 * curves.accuracy))} | "
      f"{100 * curves.accuracy.min():.1f} |"
    )
  return figures, rows


def draw(config: Any, num_classes: int, found: dict[str, Curves], path: Path) -> None:
  """Training loss over updates, each seed a line; without warm-up on the left, with it on the right."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=9.0, height=3.8)
  for axis, warmup in zip(axes[0], ("without_warmup", "with_warmup")):
    for color, order in (("C0", "pre"), ("C3", "post")):
      losses = np.nan_to_num(found[f"{order}_norm_{warmup}"].loss, nan=1e3, posinf=1e3).clip(1e-5, 1e3)
      points = losses.shape[1]
      step = np.arange(1, points + 1) * (config.order_steps // points)
      axis.plot(step, losses.T, color=color, linewidth=0.8, alpha=0.5)
      axis.plot(step, losses.mean(0), color=color, linewidth=2, label=f"{order}-norm")
    axis.axhline(np.log(num_classes), color="0.5", linestyle=":", linewidth=1)
    axis.set(yscale="log", xlabel="update", ylabel="training loss")
    axis.set_title(f"{warmup.replace('_', ' ').replace('warmup', 'warm-up')}", fontsize=10)
  low, high = zip(*(axis.get_ylim() for axis in axes[0]))
  for axis in axes[0]:
    axis.set_ylim(min(low), max(high))
  axes[0, 0].legend(frameon=False)
  figure.suptitle(f"a Transformer of {config.layers} layers, Adam at {config.order_rate:g}: every seed, and the mean")
  save_figure(figure, path)
