"""What a trained diffusion model is worth: figures and pictures, from one compilation of its network."""

import csv
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from experiments.generative._judging import (
  MIN_SAMPLES,
  draw_real_and_generated,
  draw_samples,
  label_rows,
  make_reference,
  read_part,
)
from mlnotes.data import DataSet
from mlnotes.diffusion.model import DiffusionModel
from mlnotes.diffusion.process import add_noise, to_levels
from mlnotes.diffusion.sample import ddim_step, ddpm_step
from mlnotes.diffusion.schedule import compute_log_snr, make_timesteps
from mlnotes.engine.experiment import example_keys, stream_key
from mlnotes.engine.plot import new_figure, save_figure, sheet_height, show_images
from mlnotes.engine.progress import report_step

# Most images that go through the network at a time.
_CHUNK = 512
# Most samples per figure of quality, and most test images for the bound, where no number is asked for.
_AUTO_LIMIT = 1000
# Fewer of them say nothing.
_AUTO_LEAST = 100
# An update passes its batch through the network forwards and backwards, which takes about three times as long as
# sampling, forwards alone; the third is left to the judge.
_PASSES_PER_UPDATE = 2
_DDIM_STEPS = (5, 10, 20, 50)


class Sampler(NamedTuple):
  """A way to sample: `name` is ddpm or ddim, `num_steps` how many of the T times it visits."""

  name: str
  num_steps: int

  @property
  def label(self) -> str:
    return f"{self.name} {self.num_steps}"


class Studio:
  """Samples and bounds of one model with fixed parameters, in batches of one size.

  Here the loop over times is in Python around a compiled network, so that every sampler and every number of steps runs
  the same executable; `DiffusionModel.sample` gives the same samples from one compiled loop.
  """

  def __init__(self, model: DiffusionModel, params: chex.ArrayTree, guidance: float = 1.0):
    self.model = model
    self.params = params
    self._guided = jax.jit(functools.partial(self._network_output, guidance))
    # Likelihoods are those of the unguided network; where the two are one they share the executable.
    self._plain = self._guided if guidance == 1.0 else jax.jit(functools.partial(self._network_output, 1.0))
    self._move = jax.jit(self._move_example, static_argnums=0)
    self._bound = jax.jit(self._bound_at)

  def _network_output(self, weight, params, x, t, label):
    return self.model.make_network(params, self.model.as_condition(label), weight)(x, t)

  def _move_example(self, name, output, x_t, key, t, s):
    prediction = self.model.make_denoiser(lambda *_: output)(x_t, jnp.full(x_t.shape[:1], t))
    noise = jax.random.normal(jax.random.fold_in(key, t), x_t.shape)
    step = functools.partial(ddpm_step, variance=self.model.variance) if name == "ddpm" else ddim_step
    move = jax.vmap(functools.partial(step, self.model.schedule), (0, 0, 0, None, None))
    return move(prediction, x_t, noise, t, s), prediction.x0

  def iterate(
    self, key: Key[Array, ""], label: Int[Array, " N"] | Int[np.ndarray, " N"], sampler: Sampler
  ) -> Iterator[tuple[int, Array, Array]]:
    """(t, x_t, clean image seen from there) from most noise to least, then (-1, sample, sample)."""
    start_key, noise_key = jax.random.split(key)
    x = jax.random.normal(start_key, (len(label), *self.model.image_shape))
    times = make_timesteps(self.model.schedule.num_steps, sampler.num_steps)
    for t, s in zip(times[::-1], np.append(-1, times[:-1])[::-1]):
      output = self._guided(self.params, x, jnp.full(len(label), t), label)
      moved, x0 = self._move(sampler.name, output, x, noise_key, t, s)
      yield int(t), x, x0
      x = moved
    yield -1, x, x

  def sample(self, key: Key[Array, ""], label: Int[np.ndarray, " N"], sampler: Sampler) -> Float[np.ndarray, "N H W C"]:
    """Images on [-1, 1] of the given classes."""

    total = min(sampler.num_steps, self.model.schedule.num_steps)

    def one(i, count, chunk):
      for done, (_, _, x) in enumerate(self.iterate(jax.random.fold_in(key, i), chunk["label"], sampler)):
        jax.block_until_ready(x)  # or the clock would run ahead of the device
        report_step(f"{len(label)} samples, {sampler.label} steps", i * total + done, count * total)
      return x

    return _by_chunk(one, {"label": label})

  def _bound_at(self, image, index, key, t):
    keys = jax.vmap(jax.random.fold_in, (0, None))(example_keys(key, index), t)
    noise = jax.vmap(lambda key: jax.random.normal(key, self.model.image_shape))(keys)
    times = jnp.full(index.shape, t)
    x0 = self.model.to_input(image)
    x_t = jax.vmap(add_noise)(x0, noise, compute_log_snr(self.model.schedule, times))
    return x0, noise, times, x_t

  def bits_per_dim(self, key: Key[Array, ""], split: Mapping[str, np.ndarray]) -> Float[np.ndarray, " N"]:
    """The variational bound of each image with all T terms, in bits per dimension."""
    term = jax.jit(lambda output, x0, noise, t: self.model.estimate_bits_per_dim(lambda *_: output, x0, noise, t))

    num_images, total = len(split["label"]), self.model.schedule.num_steps

    def one(i, count, chunk):
      terms = []
      for t in range(total):
        report_step(f"bits per dimension of {num_images} test images", i * total + t, count * total)
        x0, noise, times, x_t = self._bound(chunk["image"], chunk["index"], key, t)
        terms.append(
          jax.block_until_ready(term(self._plain(self.params, x_t, times, chunk["label"]), x0, noise, times))
        )
      return jnp.mean(jnp.stack(terms), axis=0)

    index = np.arange(len(split["label"]), dtype=np.int32)
    return _by_chunk(one, {**split, "index": index})


def _by_chunk(function: Any, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  """`function(i, number of chunks, chunk)` over chunks of one size, the last one filled up, and the results joined."""
  total = len(next(iter(arrays.values())))
  count = -(-total // _CHUNK)
  size = -(-total // count)  # chunks of one size, with little to fill up
  results = []
  for i, start in enumerate(range(0, total, size)):
    index = np.minimum(np.arange(start, start + size), total - 1)
    results.append(np.asarray(function(i, count, {name: value[index] for name, value in arrays.items()})))
  return np.concatenate(results)[:total]


def to_unit(x: Shaped[Array, "..."] | Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """[-1, 1] to [0, 1], for pictures."""
  return np.clip((np.asarray(x, np.float32) + 1) / 2, 0, 1)


def choose_num_samples(data: DataSet, config: Any) -> int:
  """Samples per figure of quality: `config.quality_samples`, or as many as take about as long as the training.

  See `count_affordable`.
  """
  return config.quality_samples or count_affordable(data, config)


def count_affordable(data: DataSet, config: Any) -> int:
  """How many images can be sampled by every sampler, and as many bounded, in about the time of the training.

  Counted in passes through the network, of which an update is worth two for each example of its batch, a sampler one
  for each step, the bound T. At least 100, at most 1000, and no more than there are test images.
  """
  sampler_steps = sum(sampler.num_steps for sampler in _samplers(config))
  affordable = _PASSES_PER_UPDATE * config.steps * config.batch_size // (sampler_steps + config.timesteps)
  return min(len(data.test), _AUTO_LIMIT, max(affordable, _AUTO_LEAST))


def _samplers(config: Any) -> list[Sampler]:
  """The chosen one, the ancestral one with all steps, and DDIM with few."""
  total = config.timesteps
  chosen = Sampler(config.sampler, min(config.sample_steps, total))
  return sorted({chosen, Sampler("ddpm", total), *(Sampler("ddim", n) for n in _DDIM_STEPS if n <= total)})


def write_report(
  model: DiffusionModel, params: chex.ArrayTree, key: Key[Array, ""], data: DataSet, config: Any, directory: Path
) -> dict[str, float]:
  """Writes samples.png, trajectory.png, real_and_generated.png, quality.png and quality.csv; returns the figures.

  `config` has `sampler`, `sample_steps`, `timesteps`, `guidance`, `quality_samples`, `steps` and `batch_size`.
  Distances are in the features of a judge trained on the same data, so they are not FID. Parts of splits are fixed
  pseudo-random ones; how large they were is among the figures. Says on standard error what it is doing.
  """
  from mlnotes.generative import class_agreement, compute_novelty, precision_recall

  reference = make_reference(data, max(choose_num_samples(data, config), MIN_SAMPLES))
  studio = Studio(model, params, config.guidance)
  # Drawn at random, not in the exact proportions: two real samples differ in these too.
  label = np.random.default_rng(0).choice(reference.train["label"], reference.num_samples).astype(np.int32)
  total = model.schedule.num_steps
  chosen = Sampler(config.sampler, min(config.sample_steps, total))
  images, rows = {}, []
  for sampler in _samplers(config):
    images[sampler] = to_levels(
      jnp.asarray(studio.sample(stream_key(key, "quality"), label, sampler)), model.num_levels
    )
    images[sampler] = np.asarray(images[sampler]).astype(np.uint8)
    features = reference.judge.features(images[sampler])
    agreement = class_agreement(reference.judge.predict(images[sampler]), label) if model.num_classes else np.nan
    rows.append({"sampler": sampler.name, "steps": sampler.num_steps, "frechet_distance": reference.distance(features),
                 "real_distance": reference.real_distance, "class_agreement": agreement})  # fmt: skip
  figures = dict(next(row for row in rows if (row["sampler"], row["steps"]) == chosen))
  ancestral = next(row for row in rows if (row["sampler"], row["steps"]) == ("ddpm", total))
  precision, recall = precision_recall(reference.real_features(), reference.judge.features(images[chosen]))
  bounded = read_part(data.test, count_affordable(data, config))
  searched = len(reference.train["label"])
  report_step(f"the nearest of {searched} training images (of {len(data.train)} in all) to each sample and test image")
  novelty = compute_novelty(images[chosen], reference.test["image"], reference.train["image"])
  with (directory / "quality.csv").open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
  report_step("pictures")
  _draw_quality(rows, directory / "quality.png")
  conditional = bool(model.num_classes)
  sheet = to_unit(studio.sample(stream_key(key, "grid"), label_rows(data, conditional), chosen))
  draw_samples(sheet, data, conditional, f" ({chosen.label} steps)", directory / "samples.png")
  _draw_trajectory(studio, key, data, chosen, directory / "trajectory.png")
  draw_real_and_generated(reference, images[chosen], model.num_levels, directory / "real_and_generated.png")
  figures = {name: value for name, value in figures.items() if name not in ("sampler", "steps")}
  if not model.num_classes:
    del figures["class_agreement"]
  return {
    "bits_per_dim": float(np.mean(studio.bits_per_dim(stream_key(key, "bound"), bounded))),
    **figures,
    "frechet_distance_ancestral": ancestral["frechet_distance"],
    "judge_accuracy": reference.judge_accuracy,
    "precision": precision,
    "recall": recall,
    "nearest_train_distance": novelty.generated,
    "nearest_train_distance_real": novelty.held_out,
    "closer_than_real": novelty.closer,
    "copies": novelty.copies,
    "copies_real": novelty.copies_held_out,
    "bounded_test_images": len(bounded["label"]),
    "searched_training_images": searched,
    "quality_samples": reference.num_samples,
  }


def _draw_trajectory(studio: Studio, key, data: DataSet, sampler: Sampler, path: Path) -> None:
  columns = 8
  label = label_rows(data, bool(studio.model.num_classes), 1)[:4]
  steps = list(studio.iterate(stream_key(key, "trajectory"), label, sampler))
  picked = [steps[i] for i in np.linspace(0, len(steps) - 1, min(columns, len(steps))).round().astype(int)]
  height = sheet_height(4.6, np.concatenate([step[1] for step in picked]), len(picked)) + 0.8
  figure, axes = new_figure(1, 2, width=10.0, height=height)
  for axis, which, title in ((axes[0, 0], 1, "the chain $x_t$"), (axes[0, 1], 2, "the clean image it expects")):
    sheet = np.stack([to_unit(step[which]) for step in picked], axis=1)
    show_images(axis, sheet.reshape(-1, *sheet.shape[2:]), columns=len(picked))
    width = data.image_shape[1] + 1
    ticks = [str(step[0]) if step[0] >= 0 else "sample" for step in picked]
    axis.set_xticks([width * i + width / 2 - 1 for i in range(len(picked))], ticks)
    if studio.model.num_classes and which == 1:
      height = data.image_shape[0] + 1
      rows = [data.class_names[i] for i in label]
      axis.set_yticks([height * i + height / 2 - 1 for i in range(len(rows))], rows, parse_math=False)
    axis.tick_params(length=0)
    axis.set_xlabel("time t")
    axis.set_title(title)
  save_figure(figure, path)


def _draw_quality(rows: list[dict[str, Any]], path: Path) -> None:
  figure, axes = new_figure(width=5.5, height=3.8)
  axis = axes[0, 0]
  for name, style in (("ddim", "o-"), ("ddpm", "s")):
    points = [(row["steps"], row["frechet_distance"]) for row in rows if row["sampler"] == name]
    if points:
      axis.plot(*zip(*points), style, label={"ddim": "DDIM", "ddpm": "DDPM, ancestral"}[name])
  axis.axhline(rows[0]["real_distance"], color="gray", linestyle="--", label="real against real")
  axis.set_xscale("log")
  axis.set_ylim(bottom=0)
  axis.set_xticks([row["steps"] for row in rows], [str(row["steps"]) for row in rows])
  axis.minorticks_off()
  axis.set_xlabel("sampling steps")
  axis.set_ylabel("Fréchet distance (judge's features)")
  axis.legend(frameon=False)
  save_figure(figure, path)
