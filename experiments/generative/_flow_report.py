"""What a trained flow is worth: bits beside those that need no network, inverse errors, and what it draws."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generative._chunks import in_chunks
from experiments.generative._judging import (
  MIN_SAMPLES,
  draw_real_and_generated,
  judge_samples,
  make_reference,
  read_part,
)
from mlnotes.data import DataSet
from mlnotes.engine.experiment import stream_key
from mlnotes.engine.plot import new_figure, save_figure, sheet_height, show_images
from mlnotes.engine.progress import report_step, warn
from mlnotes.generative.density_floors import gaussian_bits, histogram_bits
from mlnotes.generative.flow import bits_per_dim, dequantize
from mlnotes.generative.flow_networks import TrainedFlow
from mlnotes.generative.plane import PlaneDensity

# Images that go through the network at a time, and training images whose bits stand beside those of the test images.
_CHUNK = 128
_TRAIN_IMAGES = 1000
_MOST_SAMPLES = 1000
# Numbers of training images that the normal and the histograms are fitted to, at most; and dimensions of a normal.
_FLOOR_NUMBERS, _FLOOR_DIMS = 2**26, 3072
# Between the published models' settings: of tabular and image flows.
_FLOOR_ALPHAS = {"05": 0.05, "1e_6": 1e-6}
_TEMPERATURES = (0.3, 0.5, 0.7, 0.85, 1.0)
_PLANE_RANGE, _PLANE_CELLS = 3.0, 200


def compute_floors(data: DataSet) -> dict[str, float]:
  """Bits per dimension of the test images without a network: uniform, by pixels, by one normal raw and through logits.

  The normals are left out where there are fewer training images than dimensions, or too many of these.
  """
  dims = int(np.prod(data.image_shape))
  train = read_part(data.train, max(1, _FLOOR_NUMBERS // dims))["image"]
  test = read_part(data.test, _FLOOR_NUMBERS // dims)["image"]
  report_step(f"floors from {len(train)} training images")
  figures = {
    "bits_per_dim_uniform": float(np.log2(data.levels)),
    "bits_per_dim_histogram": float(histogram_bits(train, test, data.levels).mean()),
  }
  if len(train) > dims and dims <= _FLOOR_DIMS:
    figures["bits_per_dim_normal"] = float(gaussian_bits(train, test, data.levels).mean())
    for name, alpha in _FLOOR_ALPHAS.items():
      figures[f"bits_per_dim_normal_logit_{name}"] = float(gaussian_bits(train, test, data.levels, alpha).mean())
  return figures


def report_images(trained: TrainedFlow, key, data: DataSet, config: Any, directory: Path) -> dict[str, float]:
  """Writes samples.png, temperature.png, interpolation.png, reconstruction.png; returns the figures.

  `config` has `temperature`, `alpha`, `flow` and `quality_samples`.
  """
  model = trained.model
  decode = functools.partial(in_chunks, jax.jit(trained.decode), size=_CHUNK)
  known = jax.jit(lambda x: (*model.encode(trained.variables, x), trained(x)))
  encode = functools.partial(in_chunks, known, size=_CHUNK)
  levels = lambda z: np.asarray(model.to_levels(jnp.asarray(decode(np.asarray(z)))))

  reference = make_reference(data, max(config.quality_samples or min(len(data.test), _MOST_SAMPLES), MIN_SAMPLES))
  report_step(f"{reference.num_samples} samples, and the inverse of test images")
  z = model.sample_latents(stream_key(key, "samples"), reference.num_samples)
  images = levels(z)
  test, some = reference.test["image"], read_part(data.train, _TRAIN_IMAGES)["image"]
  noise = lambda name, image: np.asarray(jax.random.uniform(stream_key(key, name), image.shape))
  points = np.asarray(dequantize(jnp.asarray(test), jnp.asarray(noise("test", test)), model.num_levels))
  latents, _, log_density = encode(points)
  error = np.abs(decode(latents) - points)
  train_points = np.asarray(dequantize(jnp.asarray(some), jnp.asarray(noise("train", some)), model.num_levels))
  bits = lambda log_density: float(np.mean(bits_per_dim(log_density, model.num_levels, model.num_dims)))
  figures = {
    "bits_per_dim_train": bits(encode(train_points)[2]),
    **compute_floors(data),
    "inverse_error_max": float(error.max()),
    "inverse_error_levels_changed": float(np.mean(_changed(error, points, model))),
    "latent_mean_square": float(np.mean(np.square(latents))),
    **judge_samples(reference, images),
  }
  figures |= _say_if_above(bits(log_density), figures)
  report_step("pictures")
  cooled = levels(config.temperature * z[:100])
  _draw_samples(cooled, data, config, directory / "samples.png")
  _draw_temperatures(levels, z[:10], data, directory / "temperature.png")
  _draw_interpolation(levels, latents, reference.test, data, directory / "interpolation.png")
  _draw_reconstruction(decode, latents, points, data, directory / "reconstruction.png")
  draw_real_and_generated(reference, images, data.levels, directory / "real_and_generated.png")
  return figures


def _changed(error, points, model) -> np.ndarray:
  """Whether the inverse's error carries a point into another grey level."""
  inside = points * model.num_levels - np.floor(points * model.num_levels)
  return (error * model.num_levels) > np.minimum(inside, 1 - inside) + 1e-3


def _say_if_above(bits: float, figures: dict[str, float]) -> dict[str, float]:
  """{"below_floor": 1 or 0}; a run that knows less than single pixels do says so."""
  floor = figures["bits_per_dim_histogram"]
  below = bool(bits < floor)  # false for NaN
  if not below:
    warn(
      f"this flow has learned nothing that single pixels do not know: {bits:.3g} bits per dimension on test images, "
      f"and histograms of each pixel {floor:.3g}."
    )
  return {"below_floor": float(below)}


def _draw_samples(images: np.ndarray, data: DataSet, config: Any, path: Path) -> None:
  figure, axes = new_figure(width=4.8, height=sheet_height(4.5, images, 10) + 0.5)
  show_images(axes[0, 0], images / (data.levels - 1), columns=10)
  axes[0, 0].set_title(f"Samples of {data.name}, z times {config.temperature:g}", parse_math=False)
  save_figure(figure, path)


def _draw_temperatures(levels, z, data: DataSet, path: Path) -> None:
  rows = np.concatenate([levels(t * z) for t in _TEMPERATURES])
  figure, axes = new_figure(width=5.2, height=sheet_height(4.5, rows, len(z)) + 0.5)
  axis = axes[0, 0]
  show_images(axis, rows / (data.levels - 1), columns=len(z))
  side = data.image_shape[0] + 1
  axis.set_yticks([side * i + side / 2 - 1 for i in range(len(_TEMPERATURES))], [f"{t:g}" for t in _TEMPERATURES])
  axis.tick_params(length=0)
  axis.set_ylabel("z times")
  axis.set_title("The same z, nearer to 0 above")
  save_figure(figure, path)


def _draw_interpolation(levels, latents: np.ndarray, test, data: DataSet, path: Path) -> None:
  """Straight lines in z, scaled so that their length stays that of their ends, beside straight lines in pixels."""
  rows, columns = min(6, len(latents) // 2), 9
  if rows == 0:  # there is no other test image
    return path.unlink(missing_ok=True)
  first, last = latents[:rows], latents[rows : 2 * rows]
  share = np.linspace(0, 1, columns, dtype=np.float32)[None, :, None]
  line = (1 - share) * first[:, None] + share * last[:, None]
  norm = lambda v: np.linalg.norm(v, axis=-1, keepdims=True)
  wanted = (1 - share) * norm(first)[:, None] + share * norm(last)[:, None]
  path_z = (line * wanted / np.maximum(norm(line), 1e-12)).reshape(-1, latents.shape[1])
  ends = [test["image"][i : i + rows].reshape(rows, 1, -1).astype(np.float32) for i in (0, rows)]
  pixels = ((1 - share) * ends[0] + share * ends[1]).reshape(-1, *data.image_shape)
  sheets = (levels(path_z), pixels)
  height = sheet_height(4.6, sheets[0], columns) + 0.5
  figure, axes = new_figure(1, 2, width=10.0, height=height)
  for axis, sheet, title in zip(axes[0], sheets, ("between two test images in z", "the same in pixels")):
    show_images(axis, sheet / (data.levels - 1), columns=columns)
    axis.set_title(title)
  save_figure(figure, path)


def _draw_reconstruction(decode, latents: np.ndarray, points: np.ndarray, data: DataSet, path: Path) -> None:
  count = min(12, len(points))
  back = decode(latents[:count])
  error = np.abs(back - points[:count])
  worst = float(error.max())
  titles = ("dequantised test images x", "$f^{-1}(f(x))$", f"error, times {1 / max(worst, 1e-12):.2g}")
  sheets = (points[:count], back, error / max(worst, 1e-12))
  figure, axes = new_figure(3, 1, width=7.0, height=3 * (sheet_height(6.6, back, count) + 0.35))
  for axis, sheet, title in zip(axes[:, 0], sheets, titles):
    show_images(axis, sheet, columns=count)
    axis.set_title(title, fontsize=9)
  save_figure(figure, path)


# -- the plane ---------------------------------------------------------------------------------------------------------


def report_plane(trained: TrainedFlow, key, density: PlaneDensity, x: Any, directory: Path) -> dict[str, float]:
  """Writes density.png; returns figures: the entropy that is the floor, one normal's nats, the mass on a grid.

  `x` are the points that were evaluated.
  """
  nats = -np.asarray(jax.jit(trained)(x))
  exact = -np.asarray(jax.jit(density.log_density)(x))
  centred = np.asarray(x, np.float64)
  centred = centred - centred.mean(0)
  spread = centred.T @ centred / len(centred)
  error = np.abs(np.asarray(jax.jit(lambda x: trained.decode(trained.encode(x)))(x)) - np.asarray(x))
  ticks = np.linspace(-_PLANE_RANGE, _PLANE_RANGE, _PLANE_CELLS, dtype=np.float32)
  cells = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
  learned = np.exp(np.asarray(jax.jit(trained)(cells)))
  figures = {
    "nll_exact": float(exact.mean()),
    "nll_normal": float(0.5 * np.linalg.slogdet(2 * np.pi * np.e * spread)[1]),
    "nll_above_exact": float(nats.mean() - exact.mean()),
    "density_mass": float(learned.sum() * (ticks[1] - ticks[0]) ** 2),
    "inverse_error_max": float(error.max()),
  }
  figures["below_floor"] = float(bool(nats.mean() < figures["nll_normal"]))
  if not figures["below_floor"]:
    warn(
      f"this flow has learned no more than one normal knows: {nats.mean():.3g} nats, and the normal "
      f"{figures['nll_normal']:.3g}."
    )
  _draw_plane(trained, key, density, x, cells, learned, directory / "density.png")
  return figures


def _draw_plane(trained: TrainedFlow, key, density: PlaneDensity, x, cells, learned, path: Path) -> None:
  """The exact density, the learned one, samples, and where the test points are in z."""
  exact = np.exp(np.asarray(jax.jit(density.log_density)(cells)))
  z = trained.model.sample_latents(stream_key(key, "samples"), len(x))
  figure, axes = new_figure(1, 4, width=13.0, height=3.5)
  sheet = lambda values: values.reshape(_PLANE_CELLS, _PLANE_CELLS)
  extent = (-_PLANE_RANGE, _PLANE_RANGE) * 2
  for axis, values, title in zip(axes[0], (exact, learned), ("the density", "what the flow has learned")):
    axis.imshow(sheet(values), origin="lower", extent=extent, vmin=0, vmax=float(exact.max()), cmap="viridis")
    axis.set_title(title)
  scatters = ((np.asarray(jax.jit(trained.decode)(z)), "samples of the flow"),
              (np.asarray(jax.jit(trained.encode)(x)), "test points in z, coloured by $x_1$"))  # fmt: skip
  for axis, (points, title), color in zip(axes[0, 2:], scatters, ("C0", np.asarray(x[:, 0]))):
    axis.scatter(points[:, 0], points[:, 1], s=2, c=color, cmap="coolwarm" if axis is axes[0, 3] else None)
    axis.set_title(title)
    axis.set_aspect("equal")
  axes[0, 2].set_xlim(-_PLANE_RANGE, _PLANE_RANGE)
  axes[0, 2].set_ylim(-_PLANE_RANGE, _PLANE_RANGE)
  save_figure(figure, path)
