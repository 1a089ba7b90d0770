"""What the two players have made: figures, and pictures of samples, of the game and of the modes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from experiments.generative._judging import (
  MIN_SAMPLES,
  draw_real_and_generated,
  draw_samples,
  judge_samples,
  label_rows,
  make_reference,
)
from mlnotes import generative
from mlnotes.engine.experiment import stream_key
from mlnotes.engine.plot import new_figure, save_figure, sheet_height, show_images
from mlnotes.engine.progress import report_step, warn
from mlnotes.engine.record import Curve, read_curves

_MOST_SAMPLES, _POINTS = 1000, 2000
_CHUNK = 250
# A run has collapsed whose generated examples leave out so many of the classes or modes, or one of which there is less
# than a tenth of its share in the data.
_MISSING_SHARE = 0.1
_SPLITS = 10
# Density and coverage look at this neighbour of each sample; of fewer samples at the last there is.
_NEIGHBOR = 5
_PATHS, _STEPS = 8, 10


def describe_collapse(share: Float[np.ndarray, " M"], what: str, high_quality: float = 1.0) -> str:
  """The sentence about a generator that leaves modes out or makes nothing of any kind; "" for one that does not."""
  missing = int(np.sum(share < _MISSING_SHARE / len(share)))
  if high_quality < 0.5:
    return f"off the data: {high_quality:.0%} of the generated examples lie on one of {len(share)} {what}."
  if not missing:
    return ""
  return f"collapsed: {missing} of {len(share)} {what} are missing (each below {_MISSING_SHARE:.0%} of an even share)."


@jax.jit
def _sample(generator: Any, key: Key[Array, ""], label: Array) -> Array:
  return generator.sample(key, _CHUNK, label)


@jax.jit
def _apply(generator: Any, z: Array, label: Array) -> Array:
  return generator(z, label)


def sample_all(generator: Any, key: Key[Array, ""], count: int, label: np.ndarray | None = None) -> np.ndarray:
  """`count` examples by one compiled program, chunk by chunk."""
  rows = []
  for start in range(0, count, _CHUNK):
    part = np.resize(np.zeros(1, np.int32) if label is None else label[start : start + _CHUNK], _CHUNK)
    rows.append(np.asarray(_sample(generator, jax.random.fold_in(key, start), jnp.asarray(part, jnp.int32))))
  return np.concatenate(rows)[:count]


def report_images(
  generator: Any, score: Callable, key: Key[Array, ""], world: Any, config: Any, directory: Path
) -> dict[str, float]:
  """Writes samples.png, interpolation.png, real_and_generated.png and dynamics.png; returns the figures."""
  data = world.data
  count = config.quality_samples or min(len(data.test), _MOST_SAMPLES)
  reference = make_reference(data, max(count, MIN_SAMPLES))
  count = reference.num_samples
  # Drawn at random, not in the exact proportions: two real samples differ in these too.
  label = np.random.default_rng(0).choice(reference.train["label"], count).astype(np.int32)
  report_step(f"{count} samples")
  signed = sample_all(generator, stream_key(key, "quality"), count, label)
  images = np.asarray(generative.from_unit((signed + 1) / 2, data.levels))
  figures = judge_samples(reference, images, label if generator.num_classes else None)
  figures |= _further_figures(reference, images, data.num_classes)
  said = describe_collapse(_class_shares(reference, images, data.num_classes), "classes")
  figures["collapsed"] = float(bool(said))
  if said:
    warn(said)
  report_step("pictures")
  draw_dynamics(directory, config, directory / "dynamics.png")
  conditional = bool(generator.num_classes)
  rows = label_rows(data, conditional)
  sheet = (sample_all(generator, stream_key(key, "grid"), len(rows), rows) + 1) / 2
  draw_samples(sheet, data, conditional, "", directory / "samples.png")
  _draw_interpolation(generator, key, data, directory / "interpolation.png")
  draw_real_and_generated(reference, images, data.levels, directory / "real_and_generated.png")
  return figures


def _class_shares(reference: Any, images: np.ndarray, num_classes: int) -> np.ndarray:
  """Of each class among the generated images by the judge, where an even share is what the data have of it."""
  found = np.bincount(reference.judge.predict(images), minlength=num_classes) / len(images)
  expected = np.bincount(reference.train["label"], minlength=num_classes) / len(reference.train["label"])
  return np.where(expected > 0, found / np.maximum(expected, 1e-9), 1) / num_classes


def _further_figures(reference: Any, images: np.ndarray, num_classes: int) -> dict[str, float]:
  """By the judge: kernel distance, density, coverage, score, classes; each beside what real images get."""
  count, judge = reference.num_samples, reference.judge
  real, fake = reference.real_features(), judge.features(images)
  k = min(_NEIGHBOR, count - 1)
  density, coverage = generative.density_coverage(real, fake, k)
  halves = reference.two_real_sets()
  real_density, real_coverage = generative.density_coverage(*halves, k)
  splits = min(_SPLITS, count // 2)
  real_images = np.concatenate([reference.test["image"], reference.train["image"]])[:count]
  modes, of_real = (generative.count_modes(judge.predict(x), num_classes) for x in (images, real_images))
  return {
    f"kernel_distance_{count}": generative.kernel_distance(real, fake),
    f"kernel_distance_{count}_real": generative.kernel_distance(*halves),
    f"density_{count}": density,
    f"density_{count}_real": real_density,
    f"coverage_{count}": coverage,
    f"coverage_{count}_real": real_coverage,
    f"judge_score_{count}": generative.inception_score(judge.probabilities(images), splits)[0],
    f"judge_score_{count}_real": generative.inception_score(judge.probabilities(real_images), splits)[0],
    "classes_caught": float(modes.caught),
    "class_divergence": modes.divergence,
    "class_divergence_real": of_real.divergence,
  }


def report_points(
  generator: Any, score: Callable, key: Key[Array, ""], world: Any, config: Any, directory: Path
) -> dict[str, float]:
  """Writes points.png, modes.png and dynamics.png; returns the figures, each beside that of real points."""
  mixture = world.mixture
  count = config.quality_samples or _POINTS
  of_points, of_label = jax.random.split(stream_key(key, "real"))
  real, _ = jax.vmap(lambda key: generative.draw_point(key, mixture))(jax.random.split(of_points, count))
  label = np.asarray(jax.random.randint(of_label, (count,), 0, mixture.num_modes), np.int32)
  fake = sample_all(generator, stream_key(key, "quality"), count, label)
  modes = generative.find_modes(jnp.asarray(fake), mixture)
  found, floor = (
    generative.count_modes(np.asarray(found), mixture.num_modes)
    for found in (modes, generative.find_modes(real, mixture))
  )
  figures = {"modes": float(mixture.num_modes)}
  for name, counts in (("", found), ("_real", floor)):
    figures |= {
      f"modes_caught_{count}{name}": float(counts.caught),
      f"high_quality_{count}{name}": counts.high_quality,
      f"mode_divergence_{count}{name}": counts.divergence,
    }
  if generator.num_classes:
    figures["class_agreement"] = float(np.mean(np.asarray(modes) == label))
  if np.isnan(found.divergence):
    del figures[f"mode_divergence_{count}"]  # not a single point is on a mode
  said = describe_collapse(found.share, "modes", found.high_quality)
  figures["collapsed"] = float(bool(said))
  if said:
    warn(said)
  draw_dynamics(directory, config, directory / "dynamics.png")
  _draw_points(generator, score, key, mixture, np.asarray(real), fake, label, directory / "points.png")
  _draw_modes(directory, config, found.share, floor.share, directory / "modes.png")
  return figures


def draw_dynamics(directory: Path, config: Any, path: Path) -> None:
  """Both players over the training: losses, scores, how much is told apart, gradients."""
  curves = read_curves(directory, config)
  panels = {
    "loss": ("discriminator_loss", "generator_loss"),
    "score": ("real_score", "fake_score"),
    "told apart\n(1/2: a coin)": ("told_apart",),
    "gradient's norm": ("discriminator_gradient", "generator_gradient"),
    "nearest neighbour of its own kind\n(1/2: alike)": ("nearest_neighbor_accuracy",),
  }
  there = {what: names for what, names in panels.items() if any(_find(curves, name) is not None for name in names)}
  if not there:
    return
  figure, axes = new_figure(1, len(there), width=3.3 * len(there), height=2.9)
  for axis, (what, names) in zip(axes[0], there.items()):
    for name in names:
      curve = _find(curves, name)
      if curve is not None:
        player = "generator" if "generator" in name or name.startswith("fake") else "discriminator"
        label = {"real_score": "real", "fake_score": "generated"}.get(name, player if len(names) > 1 else None)
        axis.plot(*curve, linewidth=1.2, label=label)
    if "1/2" in what:
      axis.axhline(0.5, color="gray", linestyle="--", linewidth=1)
      axis.set_ylim(0, 1.03)
    if "gradient" in what:
      axis.set_yscale("log")
    axis.set_title(what, fontsize=9)
    axis.set_xlabel("update")
    axis.locator_params(axis="x", nbins=4)
    if len(names) > 1:
      axis.legend(frameon=False, fontsize=8)
  figure.suptitle(f"{config.loss}, {config.regularizer}", fontsize=10)
  save_figure(figure, path)


def _find(curves: dict[str, Curve], name: str) -> Curve | None:
  return curves.get(f"train/{name}", curves.get(f"eval/{name}"))


def _between(key: Key[Array, ""], latent: int) -> Float[Array, "P S Z"]:
  """Noise along great circles between pairs of draws: a straight line would leave the shell where noise lies."""
  ends = jax.random.normal(key, (2, _PATHS, 1, latent))
  angle = jnp.linspace(0, jnp.pi / 2, _STEPS)[None, :, None]
  return jnp.cos(angle) * ends[0] + jnp.sin(angle) * ends[1]


def _draw_interpolation(generator: Any, key: Key[Array, ""], data: Any, path: Path) -> None:
  z = _between(stream_key(key, "interpolation"), generator.latent).reshape(-1, generator.latent)
  label = jnp.asarray(np.repeat(np.arange(_PATHS) % max(data.num_classes, 1), _STEPS), jnp.int32)
  images = (np.asarray(_apply(generator, z, label)) + 1) / 2
  figure, axes = new_figure(width=5.0, height=sheet_height(4.5, images, _STEPS) + 0.6)
  show_images(axes[0, 0], images, columns=_STEPS)
  axes[0, 0].set_title("From one noise (left) to another")
  save_figure(figure, path)


def _draw_points(generator, score, key, mixture, real, fake, label, path: Path) -> None:
  span = 1.35 * np.abs(mixture.centres).max() + 3 * mixture.deviation
  side = np.linspace(-span, span, 81)
  plane = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2).astype(np.float32)
  surface = np.asarray(score(jnp.asarray(plane), jnp.zeros(len(plane), jnp.int32) if generator.num_classes else None))
  figure, axes = new_figure(1, 3, width=12.6, height=4.3)
  for axis, title in zip(axes[0], ("real and generated", "the discriminator's score", "generated between two noises")):
    axis.set_title(title + (" (as class 0)" if "score" in title and generator.num_classes else ""))
    axis.set_aspect("equal")
    axis.set_xlim(-span, span)
    axis.set_ylim(-span, span)
  left, middle, right = axes[0]
  left.scatter(*real.T, s=3, color="0.6", label="real")
  left.scatter(*fake.T, s=3, color="tab:red", alpha=0.5, label="generated")
  left.legend(frameon=False, fontsize=8, loc="upper right")
  drawn = middle.contourf(side, side, surface.reshape(len(side), -1), levels=20, cmap="viridis")
  figure.colorbar(drawn, ax=middle, shrink=0.8)
  middle.scatter(*mixture.centres.T, s=6, color="white")
  z = _between(stream_key(key, "interpolation"), generator.latent)
  lines = jnp.asarray(np.repeat(np.arange(_PATHS) % mixture.num_modes, _STEPS), jnp.int32)
  paths = np.asarray(_apply(generator, z.reshape(-1, generator.latent), lines)).reshape(_PATHS, _STEPS, 2)
  right.scatter(*mixture.centres.T, s=8, color="0.6")
  for line in paths:
    right.plot(*line.T, ".-", markersize=4, linewidth=0.8)
  save_figure(figure, path)


def _draw_modes(directory: Path, config: Any, share: np.ndarray, real: np.ndarray, path: Path) -> None:
  curves = read_curves(directory, config)
  figure, axes = new_figure(1, 2, width=9.0, height=3.2)
  left, right = axes[0]
  if "train/modes_in_batch" in curves:
    left.plot(*curves["train/modes_in_batch"], color="tab:blue")
    left.axhline(len(share), color="gray", linestyle="--", linewidth=1)
    left.set_ylim(0, 1.06 * len(share))
    left.set_ylabel("modes in a batch", color="tab:blue")
    other = left.twinx()
    other.plot(*curves["train/on_mode"], color="tab:orange")
    other.set_ylim(0, 1.06)
    other.set_ylabel("share within 3 deviations of a mode", color="tab:orange")
  left.set_xlabel("update")
  left.set_title("Over the training")
  place = np.arange(len(share))
  right.bar(place - 0.2, real, 0.4, color="0.7", label="real")
  right.bar(place + 0.2, share, 0.4, color="tab:red", label="generated")
  right.set_xlabel("mode")
  right.set_ylabel("share of the points")
  right.set_title("Of the averaged generator, at the end")
  right.legend(frameon=False, fontsize=8)
  save_figure(figure, path)
