"""Deep against wide: a curve as a sum of hard sigmoids, and folded lines, of which depth needs few units."""

import itertools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlnotes.data import DataSet
from mlnotes.engine.experiment import stream_key
from mlnotes.engine.study import each_seed
from mlnotes.nn.piecewise import count_pieces, fold, through_points

_HIDDEN = 4  # layers of the deep network
_PIECES = (4, 16)  # of the curve in the picture
_RATE = 5e-3


def curve(x: Any) -> Any:
  """What the sums of hard sigmoids are fitted to."""
  return np.sin(2.5 * np.pi * x) * (0.3 + x)


class Line(nn.Module):
  """One number to one number, through `widths` hidden layers of ReLUs."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x):
    for width in self.widths:
      x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal(), bias_init=nn.initializers.normal(0.5))(x))
    return nn.Dense(1)(x)


def count(widths: tuple[int, ...]) -> int:
  sizes = (1, *widths, 1)
  return sum((below + 1) * above for below, above in itertools.pairwise(sizes))


def shapes(parameters: int) -> dict[str, tuple[int, ...]]:
  """Hidden layers of the wide and of the deep network with about so many parameters."""
  narrow = max(range(1, parameters), key=lambda width: -abs(count((width,) * _HIDDEN) - parameters))
  wide = max(range(1, parameters), key=lambda width: -abs(count((width,)) - count((narrow,) * _HIDDEN)))
  return {"wide": (wide,), "deep": (narrow,) * _HIDDEN}


def fit(widths: tuple[int, ...], times: int, config: Any) -> np.ndarray:
  """(S,) root mean squared error on [0, 1] of networks that learn the line folded `times` times from 513 points."""
  x = jnp.linspace(0, 1, 513)[:, None]
  y = fold(x, times)
  network = Line(widths)
  optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, config.fit_steps))
  loss = lambda params: jnp.mean((network.apply(params, 2 * x - 1) - y) ** 2)

  def once(key):
    params = network.init(stream_key(key, "init"), x)

    def update(carry, _):
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), None, length=config.fit_steps)
    return jnp.sqrt(loss(params))

  return each_seed(once, range(config.seed, config.seed + config.seeds))


def measure(config: Any, data: DataSet, directory: Path) -> tuple[dict[str, Any], list[str]]:
  """(figures, table): errors of sums of hard sigmoids; units that folds need; what wide and deep networks learn."""
  grid = np.linspace(0, 1, 4097)
  sums = {}
  for pieces in (2, 4, 8, 16, 32):
    places = jnp.linspace(0, 1, pieces + 1)
    fitted = through_points(places, jnp.asarray(curve(np.asarray(places))))
    sums[pieces] = float(np.max(np.abs(np.asarray(fitted(jnp.asarray(grid))) - curve(grid))))
  figures: dict[str, Any] = {f"hard_sigmoids_{pieces}/largest_error": error for pieces, error in sums.items()}
  rows = ["| hard sigmoids (ReLUs) | largest error |", "|---|---|"]
  rows += [f"| {pieces} ({2 * pieces}) | {error:.2g} |" for pieces, error in sums.items()]
  networks = shapes(config.fit_parameters)
  rows += [
    "",
    "| folds | pieces | units of one layer, of layers of two | median error learned wide (of seeds) | deep |",
    "|---|---|---|---|---|",
  ]
  learned: dict[str, list[np.ndarray]] = {name: [] for name in networks}
  for times in config.folds:
    x = np.linspace(0, 1, 2 ** (times + 4) + 1)
    pieces = count_pieces(x, np.asarray(fold(jnp.asarray(x, jnp.float32), times)))
    for name, widths in networks.items():
      learned[name].append(fit(widths, times, config))
      figures[f"{name}_{times}_folds/error"] = learned[name][-1]
    figures[f"{times}_folds/pieces"] = pieces
    errors = " | ".join(f"{np.median(v[-1]):.2g} ({v[-1].min():.1g} to {v[-1].max():.1g})" for v in learned.values())
    rows.append(f"| {times} | {pieces} | {2**times}, {2 * times} | {errors} |")
  for name, widths in networks.items():
    figures[f"{name}/parameters"] = count(widths)
  rows += [
    "",
    "; ".join(f"{name}: {' + '.join(map(str, w))} units, {count(w)} parameters" for name, w in networks.items()),
  ]
  draw(config, networks, learned, directory / "width.png")
  return figures, rows


def draw(config: Any, networks: dict, learned: dict[str, list[np.ndarray]], path: Path) -> None:
  """Left: a curve and its sums. Middle: units that a folded line needs. Right: what is learned at equal parameters."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 3, width=13.0, height=3.9)
  sums, units, fits = axes[0]
  grid = np.linspace(0, 1, 401)
  sums.plot(grid, curve(grid), color="0.75", linewidth=5, label="curve")
  for pieces, color in zip(_PIECES, ("C1", "C0")):
    places = jnp.linspace(0, 1, pieces + 1)
    fitted = through_points(places, jnp.asarray(curve(np.asarray(places))))
    sums.plot(grid, np.asarray(fitted(jnp.asarray(grid))), color=color, label=f"{pieces} hard sigmoids")
  sums.set(title="one hidden layer fits any curve", xlabel="x")
  sums.legend(frameon=False, fontsize=8)
  most = max(config.folds)
  times = np.arange(1, most + 1)
  units.plot(times, 2.0**times, "o-", color="C3", label="one layer: 2 to the power of the folds")
  units.plot(times, 2 * times, "o-", color="C0", label="layers of two: 2 for each fold")
  units.set(xlabel="folds of the line", ylabel="units that it takes", title="what a folded line needs")
  units.set_yscale("log", base=2)
  units.yaxis.set_major_formatter("{x:.0f}")
  units.legend(frameon=False, fontsize=8)
  inset = units.inset_axes((0.55, 0.08, 0.4, 0.25))
  inset.plot(grid, np.asarray(fold(jnp.asarray(grid, jnp.float32), min(3, most))), color="0.4", linewidth=1)
  inset.set(xticks=[], yticks=[])
  inset.set_title(f"{min(3, most)} folds", fontsize=7)
  for name, color in (("wide", "C3"), ("deep", "C0")):
    values = np.array(learned[name])
    size = f"{len(networks[name])} hidden layer{'s' if len(networks[name]) > 1 else ''}"
    fits.plot(config.folds, values, "o", color=color, alpha=0.3, markersize=4)
    fits.plot(
      config.folds, np.median(values, 1), "-", color=color, linewidth=2, label=f"{name}: {size} (seeds, median)"
    )
  fits.axhline(np.sqrt(1 / 12), color="0.5", linestyle=":", linewidth=1)
  fits.set(xlabel="folds of the line", ylabel="error (dotted: of the mean alone)", yscale="log")
  fits.set_title(f"learned with {count(networks['deep'])} parameters")
  fits.legend(frameon=False, fontsize=8)
  for axis in (units, fits):
    axis.set_xticks(config.folds)
  save_figure(figure, path)
