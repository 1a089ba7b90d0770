"""Loss landscapes: trajectories on classic surfaces and on a network's loss, its sharpness, spectrum and minimum ratio.

  python -m experiments.optim.landscape

Writes surfaces.png, network.png, curvature.png and result.json. The network is a small one on digits: its full Hessian
can be formed, and the estimates are compared with its eigenvalues.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlnotes import optim
from mlnotes.data.flags import DataConfig, load_data
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.study import run_study
from mlnotes.optim.flags import OptimConfig, make_optimizer
from mlnotes.optim.surfaces import SURFACES, Surface
from mlnotes.optim.testbed import Classifier, make_classifier

# Learning rates by surface, in the order of SURFACES.
ON_SURFACES = {
  "plain_sgd": (dict(optimizer="sgd", momentum=0.0), (1e-3, 1e-2, 0.1, 0.036)),
  "momentum": (dict(optimizer="sgd"), (1e-3, 2e-3, 0.02, 0.01)),
  "nesterov": (dict(optimizer="nesterov"), (1e-3, 2e-3, 0.02, 0.01)),
  "rmsprop": (dict(optimizer="rmsprop"), (0.02, 0.02, 0.02, 0.02)),
  "adam": (dict(optimizer="adam"), (0.1, 0.1, 0.05, 0.1)),
}
SURFACE_STEPS = 300
ON_NETWORK = {
  "plain_sgd": dict(optimizer="sgd", momentum=0.0, learning_rate=0.1),
  "momentum": dict(optimizer="sgd", learning_rate=0.05),
  "adam": dict(optimizer="adam", learning_rate=0.01),
}
SAVED = 40  # points of a network's trajectory
GRID = 41


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
  workdir: str = field("runs/optim.landscape", "directory of the pictures and the numbers", free=True)
  seed: int = field(0, "of the network and of its batches, >= 0")
  batch_size: int = 64
  width: int = field(12, "of the network's hidden layer")
  steps: int = field(800, "updates of the network")
  lanczos_steps: int = field(64, "products per probe of the spectrum, and for the extreme eigenvalues")
  probes: int = field(16, "random vectors for the spectrum")

  def __post_init__(self):
    super().__post_init__()
    for name in ("width", "lanczos_steps", "probes"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.steps >= SAVED, "steps", self.steps, f"{SAVED} or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")

  def idle_flags(self):
    return super().idle_flags() | {
      "data_placement": "the data set is held on the device",
      "eval_examples": "losses are those of training examples",
    }


# -- surfaces ----------------------------------------------------------------------------------------------------------


def descend(flags: dict[str, Any], rates: tuple[float, ...]) -> list[np.ndarray]:
  """The points (SURFACE_STEPS + 1, 2) that an optimizer visits on each surface, with that surface's learning rate."""

  def follow(surface: Surface, rate: float):
    optimizer = make_optimizer(OptimConfig(**flags, learning_rate=rate), SURFACE_STEPS)

    def body(carry, _):
      params, state = carry
      updates, state = optimizer.update(jax.grad(surface.value)(params), state, params)
      params = optax.apply_updates(params, updates)
      return (params, state), params

    start = jnp.array(surface.start)
    _, path = jax.lax.scan(body, (start, optimizer.init(start)), length=SURFACE_STEPS)
    return jnp.concatenate([start[None], path])

  paths = jax.jit(lambda: [follow(surface, rate) for surface, rate in zip(SURFACES, rates)])()
  return [np.asarray(path) for path in paths]


def draw_surfaces(path: Path) -> dict[str, float]:
  """The picture; {surface/optimizer: loss at the end}."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(2, 2, width=10.5, height=9.0)
  figures = {}
  paths = {name: descend(flags, rates) for name, (flags, rates) in ON_SURFACES.items()}
  for i, (axis, surface) in enumerate(zip(axes.flat, SURFACES)):
    x0, x1, y0, y1 = surface.box
    x, y = np.linspace(x0, x1, 160), np.linspace(y0, y1, 160)
    points = jnp.stack(jnp.meshgrid(jnp.asarray(x), jnp.asarray(y)), -1)
    values = np.asarray(jax.jit(jax.vmap(jax.vmap(surface.value)))(points))
    height = np.log10(values - values.min() + 1e-2 * np.ptp(values) ** 0.5)
    axis.contourf(x, y, height, 24, cmap="Greys", alpha=0.55)
    for j, (name, (_, rates)) in enumerate(ON_SURFACES.items()):
      steps = paths[name][i]
      end = float(surface.value(jnp.asarray(steps[-1])))
      figures[f"{surface.name.lower()}/{name}"] = end
      axis.plot(*steps.T, color=f"C{j}", lw=1.3, label=f"{name}, rate {rates[i]:g}: {end:.2g}")
      axis.plot(*steps[-1], "o", color=f"C{j}", markersize=6, markeredgecolor="white")
    axis.plot(*surface.start, "s", color="black", markersize=6)
    axis.plot(*surface.minimum, "*", color="gold", markersize=14, markeredgecolor="black")
    axis.set_xlim(x0, x1)
    axis.set_ylim(y0, y1)
    axis.set_title(surface.name)
    axis.legend(fontsize=8, title="loss at the end", title_fontsize=8, loc="best")
  figure.suptitle(f"{SURFACE_STEPS} updates from the square; the star is a minimum, bright is low")
  save_figure(figure, path)
  return figures


# -- a network ---------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
  trajectory: list[Any]  # parameter pytrees, from the initial to the final
  losses: np.ndarray  # on the training examples, at each of them


def train_network(config: Config, classifier: Classifier, flags: dict[str, Any]) -> Run:
  """Saves SAVED parameters on the way; the start and the batches are the same for each optimizer."""
  optimizer = make_optimizer(OptimConfig(**flags), config.steps)
  key = root_key(config.seed)
  params = classifier.init(stream_key(key, "init"))

  def update(step, carry):
    params, state = carry
    grads = jax.grad(classifier.loss)(params, classifier.draw(key, step))
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  def window(carry, i):
    carry = jax.lax.fori_loop(i * config.steps // SAVED, (i + 1) * config.steps // SAVED, update, carry)
    return carry, (carry[0], classifier.loss(carry[0], classifier.train))

  _, (saved, losses) = jax.jit(lambda c: jax.lax.scan(window, c, jnp.arange(SAVED)))((params, optimizer.init(params)))
  trajectory = [params] + [jax.tree.map(lambda x, i=i: x[i], saved) for i in range(SAVED)]
  return Run(trajectory, np.asarray(losses))


def draw_network(loss: Any, runs: dict[str, Run], key: Any, path: Path) -> dict[str, float]:
  """Each optimizer's way in one plane, and each minimum along filter-normalised random lines."""
  from mlnotes.engine.plot import new_figure, save_figure

  plane = optim.fit_plane([point for r in runs.values() for point in r.trajectory])
  ways = {name: np.stack([optim.project(plane, p) for p in r.trajectory]) for name, r in runs.items()}
  points = np.concatenate(list(ways.values()))
  margin = 0.15 * np.ptp(points, 0)
  x, y = (np.linspace(points[:, i].min() - margin[i], points[:, i].max() + margin[i], GRID) for i in (0, 1))
  heights = jax.jit(lambda x, y: optim.slice_plane(loss, plane.origin, plane.first, plane.second, x, y))(x, y)
  figure, axes = new_figure(1, 2, width=12.0, height=5.0)
  plot = axes[0, 0].contourf(x, y, np.log10(heights), 24, cmap="Greys", alpha=0.6)
  figure.colorbar(plot, ax=axes[0, 0], label="log10 of the training loss in the plane")
  figures = {"plane_explains": float(plane.explained.sum())}
  distance = jnp.linspace(-1, 1, GRID)
  for i, (name, way) in enumerate(ways.items()):
    axes[0, 0].plot(*way.T, ".-", color=f"C{i}", lw=1.2, markersize=4, label=f"{name}: {runs[name].losses[-1]:.2g}")
    axes[0, 0].plot(*way[-1], "o", color=f"C{i}", markersize=9, markeredgecolor="white")
    minimum = runs[name].trajectory[-1]
    line = jax.jit(
      lambda key, p: optim.slice_line(loss, p, optim.normalize_filters(optim.sample_direction(key, p), p), distance)
    )
    # The same directions for each.
    lines = np.stack([line(k, minimum) for k in jax.random.split(jax.random.clone(key), 8)])
    axes[0, 1].plot(distance, lines.mean(0), color=f"C{i}", label=name)
    axes[0, 1].fill_between(distance, lines.min(0), lines.max(0), color=f"C{i}", alpha=0.12, lw=0)
    figures[f"{name}/train_loss"] = float(runs[name].losses[-1])
  axes[0, 0].plot(*ways[next(iter(ways))][0], "s", color="black", markersize=8)
  axes[0, 0].set_title(f"ways from the square, in their plane ({100 * plane.explained.sum():.0f} % of the variance)")
  axes[0, 0].set_xlabel("first principal direction")
  axes[0, 0].set_ylabel("second principal direction")
  axes[0, 0].legend(fontsize=8, title="training loss at the end", title_fontsize=8)
  axes[0, 1].set_title("around each end, along 8 filter-normalised lines")
  axes[0, 1].set_xlabel("step in units of the filters' norms")
  axes[0, 1].set_ylabel("training loss")
  axes[0, 1].set_yscale("log")
  axes[0, 1].legend(frameon=False)
  save_figure(figure, path)
  return figures


def measure_curvature(config: Config, loss: Any, runs: dict[str, Run], key: Any, path: Path) -> dict[str, float]:
  """Exact and estimated eigenvalues before and after training, minimum ratio, sharpness; and the picture."""
  from mlnotes.engine.plot import new_figure, save_figure

  first = next(iter(runs))
  points = {"at the start": runs[first].trajectory[0], **{f"after {n}": r.trajectory[-1] for n, r in runs.items()}}
  exact = jax.jit(lambda p: jnp.linalg.eigvalsh(optim.compute_hessian(loss, p)))
  same = lambda: jax.random.clone(key)  # the same probes at each point
  estimate = jax.jit(lambda p: optim.estimate_spectrum(loss, p, same(), config.lanczos_steps, config.probes))
  extremes = jax.jit(lambda p: optim.compute_extreme_eigenvalues(loss, p, same(), config.lanczos_steps)[:2])
  sharpness = jax.jit(lambda p: optim.compute_sharpness(loss, p, 0.1, same()))
  figure, axes = new_figure(1, len(points), width=3.6 * len(points), height=3.8)
  figures = {}
  for axis, (name, params) in zip(axes[0], points.items()):
    values, ends = np.asarray(exact(params), np.float64), extremes(params)
    spectrum = estimate(params)
    width = 0.01 * np.ptp(values)
    grid = jnp.linspace(values[0] - 5 * width, values[-1] + 5 * width, 600)
    kernel = np.exp(-0.5 * ((np.asarray(grid)[:, None] - values) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    axis.fill_between(grid, kernel.mean(1), color="lightgrey", label=f"{len(values)} exact eigenvalues")
    axis.plot(grid, spectrum.density(grid, width), "C3", lw=1, label=f"Lanczos, {config.probes} probes")
    small = 1e-3 * np.abs(values).max()  # closer to 0 counts as 0
    ratio, estimated = np.mean(values > small), float(spectrum.fraction_above(small))
    negative = np.mean(values < -small)
    gradient = float(optax.tree.norm(jax.grad(loss)(params)))
    axis.set_yscale("log")
    axis.set_ylim(1e-4 / width, 2 / width)
    axis.set_title(
      f"{name}: |gradient| {gradient:.2g}\nminimum ratio {100 * ratio:.0f} %, negative {100 * negative:.0f} %"
    )
    axis.set_xlabel("eigenvalue of the Hessian")
    prefix = name.replace(" ", "_")
    figures |= {
      f"{prefix}/largest": values[-1],
      f"{prefix}/largest_lanczos": ends[1],
      f"{prefix}/smallest": values[0],
      f"{prefix}/smallest_lanczos": ends[0],
      f"{prefix}/minimum_ratio": ratio,
      f"{prefix}/minimum_ratio_lanczos": estimated,
      f"{prefix}/sharpness": sharpness(params),
    }
  axes[0, 0].set_ylabel("density")
  axes[0, 0].legend(fontsize=8, frameon=False)
  explained = "minimum ratio: share of eigenvalues above a thousandth of the largest; negative: below minus that"
  figure.suptitle(f"{explained}; the rest count as 0", fontsize=10)
  save_figure(figure, path)
  return {name: float(value) for name, value in figures.items()}


def main(config: Config) -> int:
  classifier = make_classifier(load_data(config), (config.width,), config.batch_size)

  def study(directory: Path):
    figures = draw_surfaces(directory / "surfaces.png")
    loss = lambda params: classifier.loss(params, classifier.train)
    runs = {name: train_network(config, classifier, flags) for name, flags in ON_NETWORK.items()}
    key = root_key(config.seed)
    figures |= draw_network(loss, runs, stream_key(key, "lines"), directory / "network.png")
    return figures | measure_curvature(config, loss, runs, stream_key(key, "probes"), directory / "curvature.png")

  return run_study("optim.landscape", config, study)


if __name__ == "__main__":
  run(main, Config)
