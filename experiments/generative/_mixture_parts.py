"""The parts of the study of mixtures: what each fits, its figures, its pictures."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generative._chunks import in_chunks
from experiments.generative._judging import read_part
from mlnotes.data.flags import load_data
from mlnotes.engine.experiment import example_keys, root_key, stream_key
from mlnotes.engine.plot import new_figure, save_figure, sheet_height, show_images
from mlnotes.engine.progress import report_step, warn
from mlnotes.generative import mixture as m
from mlnotes.generative.density_floors import dequantize_with_seed, histogram_bits
from mlnotes.generative.flow import bits_per_dim, inverse_logit, logit
from mlnotes.generative.plane import PLANES

_CHUNK = 2000
_MOST_EXAMPLES = 60_000
# A fall of the objective that is no rounding, in nats of an example.
_FALL = 1e-3
_density = jax.jit(m.mixture_log_density)


def _log_density(mixture: Any, x: np.ndarray) -> np.ndarray:
  return in_chunks(functools.partial(_density, mixture), x, size=_CHUNK)


def largest_fall(objectives: list[np.ndarray]) -> float:
  """The largest fall between two steps of EM, of all fits; one that is no rounding is said."""
  fall = max(float(np.max(-np.diff(curve), initial=0.0)) for curve in objectives)
  if not fall < _FALL:
    warn(f"the objective of EM fell by {fall:.2g} nats between two steps: it should never fall.")
  return fall


# -- points ------------------------------------------------------------------------------------------------------------


def draw_points(name: str, seed: int, stream: str, count: int) -> np.ndarray:
  keys = example_keys(stream_key(root_key(seed), stream), jnp.arange(count, dtype=jnp.int32))
  return np.asarray(jax.jit(jax.vmap(PLANES[name]().draw))(keys))


def measure_points(config: Any, seed: int, pictures: Path | None) -> dict[str, float]:
  """Writes ellipses.png, components.png, likelihood.png; returns the nats and how many components are chosen."""
  train, held = (draw_points(config.points, seed, part, config.point_examples) for part in ("train", "held out"))
  exact = np.asarray(jax.jit(PLANES[config.points]().log_density)(held))
  rows, fits = [], {}
  for count in config.point_components:
    report_step(f"{count} normals of {config.points}, {config.restarts} restarts")
    keys = jax.random.split(stream_key(root_key(seed), "restarts", count), config.restarts)
    fit = jax.vmap(
      lambda key: m.fit_gaussian_mixture(key, train, count, config.covariance, config.floor, config.steps)  # noqa: B023
    )
    fits[count] = fit(keys)
    best = m.best_restart(fits[count]).mixture
    inside, outside = _log_density(best, train), _log_density(best, held)
    parameters = m.count_parameters(count, 2, config.covariance)
    bic = m.compute_bic(inside.sum(dtype=np.float64), parameters, len(train))
    rows.append({"components": count, "bic": bic, "nll_train": -inside.mean(), "nll": -outside.mean(), "best": best})
  by_bic, by_held = (min(rows, key=lambda row: row[name]) for name in ("bic", "nll"))
  if pictures:
    _draw_ellipses(config, train, rows, by_bic, pictures / "ellipses.png")
    _draw_components(config, rows, -exact.mean(), pictures / "components.png")
    _draw_likelihood(fits[by_bic["components"]].objective, by_bic["components"], pictures / "likelihood.png")
  return {
    "nll_exact": float(-exact.mean()),
    **{f"nll_{row['components']}": float(row["nll"]) for row in rows},
    "components_by_bic": by_bic["components"],
    "nll_by_bic": float(by_bic["nll"]),
    "components_by_held_out": by_held["components"],
    "nll_above_exact": float(by_held["nll"] + exact.mean()),
    "largest_fall": largest_fall([np.asarray(fit.objective) for fit in fits.values()]),
  }


def ellipse(mean: np.ndarray, covariance: np.ndarray, deviations: float, corners: int = 60) -> np.ndarray:
  """Corners (N, 2) of the ellipse at so many standard deviations."""
  values, vectors = np.linalg.eigh(covariance)
  angle = np.linspace(0, 2 * np.pi, corners)
  circle = np.stack((np.cos(angle), np.sin(angle)), -1) * deviations
  return mean + circle * np.sqrt(values) @ vectors.T


def _draw_ellipses(config: Any, x: np.ndarray, rows: list[dict], by_bic: dict, path: Path) -> None:
  """One number of components too small, the one that BIC chooses, the largest."""
  picked = sorted({rows[min(1, len(rows) - 1)]["components"], by_bic["components"], rows[-1]["components"]})
  chosen = [row for row in rows if row["components"] in picked]
  figure, axes = new_figure(1, len(chosen), width=4.2 * len(chosen), height=3.2)
  for axis, row in zip(axes[0], chosen):
    axis.scatter(x[:, 0], x[:, 1], s=2, c="0.6")
    mixture = jax.tree.map(np.asarray, row["best"])
    weights = np.exp(mixture.log_weights)
    for k, (mean, covariance) in enumerate(zip(mixture.means, np.asarray(row["best"].covariances()))):
      for deviations in (1, 2):
        corners = ellipse(mean, covariance, deviations)
        axis.plot(corners[:, 0], corners[:, 1], color=f"C{k % 10}", lw=1.6 if deviations == 1 else 0.7)
      axis.plot(*mean, "o", color=f"C{k % 10}", markersize=2 + 6 * np.sqrt(weights[k]))
    star = ", chosen by BIC" if row is by_bic else ""
    axis.set_title(f"{row['components']} normals{star}: {row['nll']:.2f} nats held out", fontsize=9)
    axis.set_aspect("equal")
  figure.suptitle(f"{config.points}: ellipses at one and two deviations", fontsize=10)
  save_figure(figure, path)


def _draw_components(config: Any, rows: list[dict], exact: float, path: Path) -> None:
  figure, axes = new_figure(1, 2, width=9.0, height=3.4)
  counts = [row["components"] for row in rows]
  for name, label in (("nll_train", "fitted points"), ("nll", "held out")):
    axes[0, 0].plot(counts, [row[name] for row in rows], "o-", label=label)
  axes[0, 0].axhline(exact, color="gray", linestyle="--", label="the density itself")
  axes[0, 0].set_ylabel("-log p(x), nats a point")
  axes[0, 0].legend(frameon=False)
  axes[0, 1].plot(counts, [row["bic"] for row in rows], "o-", color="C2")
  axes[0, 1].set_ylabel("BIC: smaller is better")
  for axis in axes[0]:
    axis.set_xlabel("components")
  figure.suptitle(f"How many normals for {config.points} ({config.point_examples} points)?", fontsize=10)
  save_figure(figure, path)


def _draw_likelihood(objective: Any, count: int, path: Path) -> None:
  figure, axes = new_figure(width=5.0, height=3.4)
  for i, curve in enumerate(np.asarray(objective)):
    axes[0, 0].plot(1 + np.arange(len(curve)), curve, lw=1.2, label=f"restart {i + 1}")
  axes[0, 0].set_xscale("log")
  axes[0, 0].set_xlabel("step of EM")
  axes[0, 0].set_ylabel("log-likelihood, nats a point")
  axes[0, 0].set_title(f"{count} normals: no step of EM makes it fall", fontsize=9)
  axes[0, 0].legend(frameon=False, fontsize=8)
  save_figure(figure, path)


# -- images ------------------------------------------------------------------------------------------------------------


def _images(config: Any) -> tuple[Any, np.ndarray, np.ndarray]:
  data = load_data(config)
  train = read_part(data.train, config.examples or _MOST_EXAMPLES)["image"]
  return data, train, read_part(data.test, config.eval_examples or _MOST_EXAMPLES)["image"]


def measure_images(config: Any, seed: int, pictures: Path | None) -> dict[str, float]:
  """Writes image_means.png; returns bits per dimension on test images, dequantised once, by number of components.

  `bits_per_dim_chosen_on_test` is the least of them: the number of components is chosen by the images that it is of.
  """
  data, train, test = _images(config)
  dims = train[0].size
  points = [dequantize_with_seed(image, data.levels, 2 * seed + i) for i, image in enumerate((train, test))]
  (x, _), (held, log_det) = (_to_logits(p, config.alpha) for p in points)
  figures = {"bits_per_dim_histogram": float(histogram_bits(train, test, data.levels).mean())}
  objectives = []
  for count in config.image_components:
    report_step(f"{count} normals of {len(x)} images of {data.name}")
    key = stream_key(root_key(seed), "images", count)
    fit = m.fit_gaussian_mixture(key, x, count, config.covariance, config.floor, config.steps)
    objectives.append(np.asarray(fit.objective))
    found = _log_density(fit.mixture, held) + log_det
    figures[f"bits_per_dim_{count}"] = float(np.mean(bits_per_dim(found, data.levels, dims)))
  figures["bits_per_dim_chosen_on_test"] = min(figures[f"bits_per_dim_{count}"] for count in config.image_components)
  figures["largest_fall"] = largest_fall(objectives)
  if pictures:
    back = lambda y: np.asarray(inverse_logit(y, config.alpha) if config.alpha else y)
    drawn = m.sample_gaussian_mixture(stream_key(root_key(seed), "samples"), fit.mixture, 20)
    title = f"{count} normals of {data.name}"
    _draw_means(fit.mixture, back(fit.mixture.means), back(drawn), data, title, pictures / "image_means.png")
  return figures


def _to_logits(points: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
  points = points.astype(np.float32)
  return (
    jax.tree.map(np.asarray, logit(jnp.asarray(points), alpha))
    if alpha
    else (points, np.zeros(len(points), np.float32))
  )


def binarize(image: np.ndarray, levels: int, seed: int) -> np.ndarray:
  """Zeros and ones (N, D), each drawn once: a pixel is 1 with its brightness as the probability."""
  flat = image.reshape(len(image), -1) / (levels - 1)
  return (np.random.default_rng(seed).random(flat.shape) < flat).astype(np.float32)


def measure_binary(config: Any, seed: int, pictures: Path | None) -> dict[str, float]:
  """Writes binary_means.png; returns nats of test images, whose pixels are drawn once, by number of components."""
  data, train, test = _images(config)
  x, held = (binarize(image, data.levels, 2 * seed + i) for i, image in enumerate((train, test)))
  figures, objectives = {}, []
  for count in config.binary_components:
    report_step(f"{count} Bernoulli vectors of {len(x)} images of {data.name}")
    key = stream_key(root_key(seed), "binary", count)
    fit = m.fit_bernoulli_mixture(key, x, count, config.pseudocount, config.steps)
    objectives.append(np.asarray(fit.objective))
    figures[f"nll_{count}"] = float(-_log_density(fit.mixture, held).mean(dtype=np.float64))
  figures["largest_fall"] = largest_fall(objectives)
  if pictures:
    means = np.asarray(jax.nn.sigmoid(fit.mixture.logits))
    drawn = np.asarray(m.sample_bernoulli_mixture(stream_key(root_key(seed), "samples"), fit.mixture, 20))
    title = f"{count} Bernoulli vectors of {data.name}"
    _draw_means(fit.mixture, means, drawn, data, title, pictures / "binary_means.png")
  return figures


def _draw_means(mixture: Any, means: np.ndarray, samples: np.ndarray, data: Any, title: str, path: Path) -> None:
  """Means from the heaviest component to the lightest, and samples."""
  order = np.argsort(-np.asarray(mixture.log_weights))
  as_images = lambda rows: np.clip(rows.reshape(-1, *data.image_shape), 0, 1)
  sheets = (as_images(means[order]), as_images(samples))
  heights = [sheet_height(4.4, sheet, 10) + 0.4 for sheet in sheets]
  figure, axes = new_figure(1, 2, width=9.5, height=max(heights) + 0.2)
  weights = np.exp(np.asarray(mixture.log_weights))[order]
  titles = (f"means, weights {weights[0]:.2f} down to {weights[-1]:.2g}", "samples")
  for axis, sheet, text in zip(axes[0], sheets, titles):
    show_images(axis, sheet, columns=10)
    axis.set_title(text, fontsize=9)
  figure.suptitle(title, fontsize=10, parse_math=False)
  save_figure(figure, path)
