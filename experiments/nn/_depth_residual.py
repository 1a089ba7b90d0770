"""Plain and residual stacks of the same matrices at growing depth (He et al. 2015, 2016): do they train?"""

from pathlib import Path
from typing import Any

import numpy as np
import optax

from experiments.nn._side_by_side import Curves, train_seeds
from mlnotes.data import DataSet
from mlnotes.engine.summary import format_summary, over_seeds
from mlnotes.nn.mlp import MLP

# Names of figures, and fields of `MLP`. Behind a norm the scale of a matrix does not matter, so that the
# initialisations are compared without one.
STACKS: dict[str, dict[str, Any]] = {
  "plain_lecun": dict(norm="none", kernel_init="lecun"),
  "plain_he": dict(norm="none", kernel_init="he"),
  "plain_batch_norm": dict(norm="batch", kernel_init="he"),
  "residual_batch_norm": dict(norm="batch", kernel_init="he", residual=True),
  "residual_zero_gamma": dict(norm="batch", kernel_init="he", residual=True, zero_init_residual=True),
}
TITLES = {
  "plain_lecun": "plain, LeCun",
  "plain_he": "plain, He",
  "plain_batch_norm": "plain, He, BatchNorm",
  "residual_batch_norm": "residual, He, BatchNorm",
  "residual_zero_gamma": "residual, zero gamma",
}
_RATE = 1e-3


def measure(config: Any, data: DataSet, directory: Path) -> tuple[dict[str, Any], list[str]]:
  """(figures, table): loss, accuracy, and the first layer's gradient in the first update, of each stack and depth."""
  found: dict[tuple[str, int], Curves] = {}
  points = max(p for p in range(1, 21) if config.stack_steps % p == 0)
  for depth in config.depths:
    for name, fields in STACKS.items():
      network = MLP(config.stack_width, depth, data.num_classes, **fields)
      found[name, depth] = curves = train_seeds(
        network, data, optax.adam(_RATE), seeds=range(config.seed, config.seed + config.seeds),
        steps=config.stack_steps, batch_size=config.batch_size, points=points,
      )  # fmt: skip
      print(f"{TITLES[name]:>26}, {depth} layers: {format_summary(over_seeds(100 * curves.accuracy))} %", flush=True)
  draw(config, found, directory / "residual.png")
  rows = [
    "| stack | layers | gradient of the first layer, of the last | training loss | test accuracy (%) |",
    "|---|---|---|---|---|",
  ]
  figures: dict[str, Any] = {}
  for (name, depth), curves in found.items():
    figures |= {
      f"{name}_{depth}/loss": curves.loss[:, -1],
      f"{name}_{depth}/accuracy": curves.accuracy,
      f"{name}_{depth}/first_gradient": curves.first_gradient,
      f"{name}_{depth}/last_gradient": curves.last_gradient,
    }
    rows.append(
      f"| {TITLES[name]} | {depth} | {np.mean(curves.first_gradient):.2g}, {np.mean(curves.last_gradient):.2g} | "
      f"{format_summary(over_seeds(curves.loss[:, -1]), 2)} | {format_summary(over_seeds(100 * curves.accuracy))} |"
    )
  return figures, rows


def draw(config: Any, found: dict[tuple[str, int], Curves], path: Path) -> None:
  """Left: accuracy over depth. Middle: training at the largest depth. Right: the gradient that reaches the bottom."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 3, width=13.0, height=3.9)
  by_depth, curve, gradient = axes[0]
  deepest = max(config.depths)
  for position, name in enumerate(STACKS):
    own = [found[name, depth] for depth in config.depths]
    style = dict(color=f"C{position}", marker="o", markersize=4, label=TITLES[name])
    accuracy = np.array([100 * curves.accuracy for curves in own])
    by_depth.errorbar(config.depths, accuracy.mean(1), accuracy.std(1), capsize=2, **style)
    losses = np.nan_to_num(found[name, deepest].loss, nan=np.inf, posinf=np.inf).clip(1e-5, 1e3)
    points = losses.shape[1]
    step = np.arange(1, points + 1) * (config.stack_steps // points)
    curve.plot(step, losses.mean(0), color=f"C{position}")
    curve.fill_between(step, losses.min(0), losses.max(0), color=f"C{position}", alpha=0.15, linewidth=0)
    norms = np.array([curves.first_gradient for curves in own]).clip(1e-30)
    gradient.plot(config.depths, np.exp(np.log(norms).mean(1)), **style)
  by_depth.set(xlabel="layers", ylabel="test accuracy (%)", title="what is learned")
  curve.set(xlabel="update", ylabel="training loss", yscale="log", title=f"training of {deepest} layers")
  gradient.set(xlabel="layers", yscale="log", title="first layer's gradient, first update", ylabel="norm")
  for axis in (by_depth, gradient):
    axis.set_xticks(config.depths)
  figure.legend(*by_depth.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=5, fontsize=9)
  seeds = f"mean of {config.seeds} seeds" if config.seeds > 1 else "one seed"
  figure.suptitle(f"the same matrices, with and without shortcuts; {seeds}", fontsize=11)
  save_figure(figure, path)
