"""The figures and pictures of an auto-encoder, beside what needs no learning by gradients."""

import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.generative._chunks import in_chunks
from experiments.generative._judging import one_of_each
from mlnotes.contrastive.probe import compute_probe_accuracy
from mlnotes.data import DataSet, Split, fixed_subset
from mlnotes.engine.experiment import example_keys, stream_key
from mlnotes.engine.plot import new_figure, save_figure, sheet_height, show_images
from mlnotes.engine.progress import report_step, warn

_CHUNK = 512
_FEW = 10  # labels per class
# A unit that no test image moves is dead: of sigmoids and of units of which the k largest stay.
_MOVED = 1e-3
# Most images whose corruption the linear map is fitted to, and most test images drawn on a map.
_FITTED, _MAPPED = 20_000, 2000


def to_vectors(split: Split, levels: int, limit: int | None = None) -> Float[np.ndarray, "N D"]:
  """Images as vectors on [0, 1]."""
  images = split.read(fixed_subset(len(split), limit or len(split)))["image"]
  return images.reshape(len(images), -1).astype(np.float32) / (levels - 1)


@functools.lru_cache(maxsize=8)
def compute_pca_mse(data: DataSet, components: int) -> tuple[float, float]:
  """(MSE per pixel of test images, pixels on [0, 1], through so many principal components of the training images;
  that of their mean alone)."""
  from sklearn.decomposition import PCA

  train, test = to_vectors(data.train, data.levels), to_vectors(data.test, data.levels)
  mean_mse = float(np.mean((test - train.mean(0)) ** 2))
  if components >= train.shape[1]:
    return 0.0, mean_mse
  pca = PCA(min(components, len(train)), svd_solver="covariance_eigh").fit(train.astype(np.float64))
  return float(np.mean((pca.inverse_transform(pca.transform(test)) - test) ** 2)), mean_mse


@functools.lru_cache(maxsize=2)
def _pixel_probe(data: DataSet, examples: int, per_class: int) -> float:
  train, test = (
    (to_vectors(split, data.levels, limit), split.read(fixed_subset(len(split), limit))["label"])
    for split, limit in ((data.train, min(examples, len(data.train))), (data.test, len(data.test)))
  )
  return float(compute_probe_accuracy(train, test, per_class).mean())


def write_report(model: Any, state: Any, data: DataSet, config: Any, patch: int, directory: Path) -> dict[str, float]:
  """Draws reconstructions, units, a map or ways between images; returns the figures of the final parameters.

  `model` is the experiment's, compiled; `patch`, the side of what is masked. All errors are means over pixels on [0, 1]
  of test images.
  """
  scale = data.levels - 1
  evaluation = stream_key(state.key, "evaluate")

  def reconstruct(images, index):
    x = images.astype(jnp.float32) / scale
    found = model.apply(state.params, example_keys(evaluation, index), x, state.hparams)
    return found.seen, found.output, found.error

  encode = lambda images: model.encode(state.params, images.astype(jnp.float32) / scale)
  index = np.arange(len(data.test))
  test = data.test.read(index)
  seen, output, error = in_chunks(reconstruct, test["image"], index, size=_CHUNK)
  clean = test["image"].astype(np.float32) / scale
  some = fixed_subset(len(data.train), min(config.probe_examples, len(data.train)))
  train = data.train.read(some)
  code, train_code = (in_chunks(encode, split["image"], size=_CHUNK) for split in (test, train))
  figures = _compare(config, data, patch, seen, output, error, clean)
  figures |= _probe(data, config, (train_code, train["label"]), (code, test["label"]))
  if config.kind in ("sparse", "k_sparse"):
    spread = code.max(0) - code.min(0)
    figures["dead_units"] = float(np.mean(spread < _MOVED))
  report_step("pictures")
  rows = {"image": clean, "given": seen, "back": output}
  if config.kind not in ("denoising", "masked"):
    del rows["given"]
    count = config.k if config.kind == "k_sparse" else config.codes
    rows[f"PCA, {count}"] = _pca_images(data, count, clean)
  _draw_reconstructions(rows, test["label"], directory / "reconstructions.png")
  if model.decode is None:
    return figures
  decode = lambda codes: np.asarray(model.decode(state.params, jnp.asarray(codes, jnp.float32)))
  _draw_units(decode, code, config, directory / "units.png")
  _draw_interpolation(decode, code, clean, test["label"], directory / "interpolation.png")
  if config.codes == 2:
    _draw_map(decode, code, test["label"], data, directory / "code_map.png")
  return figures


def _compare(config, data, patch, seen, output, error, clean) -> dict[str, float]:
  """The errors beside those of PCA, of the mean image and of a linear map; says so where nothing was learned."""
  if config.kind == "masked":
    blank = _error_of_blank_patches(data, patch)
    return _say_collapse({"masked_error_of_mean": blank}, float(error.mean()), blank, "the mean of each patch")
  mse = float(np.mean((output - clean) ** 2))
  count = config.k if config.kind == "k_sparse" else config.codes
  pca_mse, mean_mse = compute_pca_mse(data, count)
  figures = {f"pca_mse_{count}": pca_mse, "mean_image_mse": mean_mse}
  if config.kind == "denoising":
    linear = _linear_denoiser_mse(config, data, seen, clean)
    figures |= {"corrupted_mse": float(np.mean((seen - clean) ** 2)), "linear_denoiser_mse": linear}
  elif pca_mse > 0:
    figures["mse_over_pca"] = mse / pca_mse
  return _say_collapse(figures, mse, mean_mse, "the mean image")


def _say_collapse(figures: dict[str, float], mse: float, floor: float, name: str) -> dict[str, float]:
  collapsed = not mse < 0.98 * floor  # NaN too
  if collapsed:
    warn(f"collapsed: the error {mse:.4g} is no less than that of {name}, {floor:.4g}.")
  return {**figures, "collapsed": float(collapsed)}


def _error_of_blank_patches(data: DataSet, patch: int) -> float:
  """The error of who guesses each patch's mean: 1, less the share of patches of one grey."""
  from mlnotes.generative import normalize_patches, patchify

  images = data.test.read(np.arange(len(data.test)))["image"]
  patches = lambda images: patchify(images.astype(jnp.float32) / (data.levels - 1), patch)
  error = lambda images: jnp.mean(normalize_patches(patches(images)) ** 2, (1, 2))
  return float(in_chunks(error, images, size=_CHUNK).mean())


def _linear_denoiser_mse(config, data: DataSet, seen: np.ndarray, clean: np.ndarray) -> float:
  """Of the linear map that is best on training images, corrupted once; its weights are lightly penalised."""
  train = to_vectors(data.train, data.levels, min(_FITTED, len(data.train))).astype(np.float64)
  rng = np.random.default_rng(0)
  if config.corruption == "gaussian":
    given = train + config.corruption_level * rng.normal(size=train.shape)
  else:
    given = np.where(rng.random(train.shape) < config.corruption_level, 0, train)
  mean, mean_given = train.mean(0), given.mean(0)
  gram = (given - mean_given).T @ (given - mean_given) / len(given)
  cross = (given - mean_given).T @ (train - mean) / len(given)
  weights = np.linalg.solve(gram + 1e-4 * np.eye(len(gram)), cross)
  flat = lambda x: x.reshape(len(x), -1).astype(np.float64)
  return float(np.mean(((flat(seen) - mean_given) @ weights + mean - flat(clean)) ** 2))


def _probe(data: DataSet, config: Any, train: tuple, test: tuple) -> dict[str, float]:
  """A linear classifier on the codes, beside one on raw pixels."""
  if len(np.unique(train[1])) < 2:
    return {}
  count = len(train[1])
  report_step(f"linear probes of {count} codes and of as many images")
  figures = {}
  for per_class, name in ((0, f"{count}_labels"), (_FEW, f"{_FEW}_per_class")):
    figures[f"linear_probe_{name}"] = float(compute_probe_accuracy(train, test, per_class).mean())
    figures[f"pixel_probe_{name}"] = _pixel_probe(data, count, per_class)
  return figures


@functools.lru_cache(maxsize=2)
def _fit_pca(data: DataSet, components: int) -> Any:
  from sklearn.decomposition import PCA

  train = to_vectors(data.train, data.levels, min(_FITTED, len(data.train)))
  return PCA(min(components, *train.shape), svd_solver="covariance_eigh").fit(train.astype(np.float64))


def _pca_images(data: DataSet, components: int, clean: np.ndarray) -> np.ndarray:
  pca = _fit_pca(data, components)
  return pca.inverse_transform(pca.transform(clean.reshape(len(clean), -1))).reshape(clean.shape)


def _draw_reconstructions(rows: dict[str, np.ndarray], label: np.ndarray, path: Path, columns: int = 20) -> None:
  """A row for each name, a column for each image."""
  picked = one_of_each(label, columns)
  sheet = np.concatenate([images[picked] for images in rows.values()])
  figure, axes = new_figure(width=10.0, height=sheet_height(9.2, sheet, len(picked)) + 0.4)
  show_images(axes[0, 0], np.clip(sheet, 0, 1), columns=len(picked))
  height = sheet.shape[1] + 1
  axes[0, 0].set_yticks([height * i + height / 2 - 1 for i in range(len(rows))], rows)
  axes[0, 0].tick_params(length=0)
  axes[0, 0].set_title("test images", fontsize=9)
  save_figure(figure, path)


def _draw_units(decode: Any, code: np.ndarray, config: Any, path: Path, most: int = 100) -> None:
  """What each unit adds to an image: the decoder's output with it high less that with it low, others at their mean."""
  low, high = np.quantile(code, (0.05, 0.95), axis=0)
  if config.kind in ("sparse", "k_sparse"):
    low, high = code.min(0), code.max(0)
  units = np.arange(min(most, code.shape[1]))
  middle = np.median(code, 0)
  raised, lowered = np.tile(middle, (len(units), 1)), np.tile(middle, (len(units), 1))
  raised[units, units], lowered[units, units] = high[units], low[units]
  change = decode(raised) - decode(lowered)
  largest = np.abs(change).max((1, 2, 3), keepdims=True)
  columns = min(20, len(units))
  sheet = 0.5 + change / np.maximum(2 * largest, 1e-6)
  figure, axes = new_figure(width=8.0, height=sheet_height(7.6, sheet, columns) + 0.5)
  show_images(axes[0, 0], sheet, columns=columns)
  axes[0, 0].set_title("what each unit of the code adds (white) or takes away (black)", fontsize=9)
  save_figure(figure, path)


def _draw_interpolation(
  decode: Any, code: np.ndarray, clean: np.ndarray, label: np.ndarray, path: Path, rows: int = 6, between: int = 9
) -> None:
  """On each row the images of codes on the line between two test images, which stand at its ends; none of a single
  image."""
  picked = one_of_each(label, 2 * rows)
  if len(picked) < 2:
    return path.unlink(missing_ok=True)
  pairs = picked[: len(picked) // 2 * 2].reshape(-1, 2)
  share = np.linspace(0, 1, between)[:, None]
  sheet = []
  for first, last in pairs:
    way = decode((1 - share) * code[first] + share * code[last])
    sheet.append(np.concatenate([clean[first][None], way, clean[last][None]]))
  sheet = np.concatenate(sheet)
  figure, axes = new_figure(width=7.0, height=sheet_height(6.6, sheet, between + 2) + 0.5)
  show_images(axes[0, 0], np.clip(sheet, 0, 1), columns=between + 2)
  axes[0, 0].set_title("ends: test images; between: codes on the line between theirs", fontsize=9)
  save_figure(figure, path)


def _draw_map(decode: Any, code: np.ndarray, label: np.ndarray, data: DataSet, path: Path, side: int = 15) -> None:
  """Test images where their two codes are, and what the decoder makes of a grid of codes."""
  picked = fixed_subset(len(code), min(_MAPPED, len(code)))
  low, high = np.quantile(code, (0.02, 0.98), axis=0)
  margin = np.maximum(0.1 * (high - low), 1e-6)  # of few images the outer ones would be beyond the frame
  low, high = low - margin, high + margin
  grid = np.stack(np.meshgrid(np.linspace(low[0], high[0], side), np.linspace(high[1], low[1], side)), -1)
  figure, axes = new_figure(1, 2, width=11.0, height=5.2)
  for c in np.unique(label):
    of_class = picked[label[picked] == c]
    axes[0, 0].plot(*code[of_class].T, ".", markersize=4, color=f"C{c % 10}", label=data.class_names[c])
  axes[0, 0].set_xlim(low[0], high[0])
  axes[0, 0].set_ylim(low[1], high[1])
  axes[0, 0].legend(frameon=False, fontsize=7, ncols=2)
  axes[0, 0].set_title("test images by their two codes", fontsize=9)
  show_images(axes[0, 1], np.clip(decode(grid.reshape(-1, 2)), 0, 1), columns=side, gap=0)
  axes[0, 1].set_title("images of the codes of the same square", fontsize=9)
  save_figure(figure, path)
