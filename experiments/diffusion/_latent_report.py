"""What a latent diffusion model is worth: its images judged beside real ones, and beside what its decoder can do."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from experiments.diffusion._first_stage import decode_latents, encode_images
from experiments.diffusion._report import Sampler, Studio, choose_num_samples
from experiments.generative._judging import (
  MIN_SAMPLES,
  draw_pairs,
  draw_real_and_generated,
  draw_samples,
  judge_samples,
  label_rows,
  make_reference,
)
from mlnotes.data import DataSet, fixed_subset
from mlnotes.engine.experiment import stream_key
from mlnotes.engine.plot import new_figure, save_figure, sheet_height, show_images
from mlnotes.engine.progress import report_step
from mlnotes.generative import from_unit

_COLUMNS = 10


def write_report(trained: Any, key: Key[Array, ""], data: DataSet, config: Any, directory: Path) -> dict[str, float]:
  """Writes the four pictures and returns the figures of the chosen sampler.

  `reconstruction_mse` and `reconstruction_distance_N` are of test images through the first stage and back: no sample
  of its latents can be expected to look better.
  """
  model, stage, frozen = trained.model, trained.stage, trained.frozen
  reference = make_reference(data, max(choose_num_samples(data, config), MIN_SAMPLES))
  studio = Studio(model, trained.params, config.guidance)
  sampler = Sampler(config.sampler, min(config.sample_steps, model.schedule.num_steps))
  label = np.random.default_rng(0).choice(reference.train["label"], reference.num_samples).astype(np.int32)
  draw = lambda name, label: decode_latents(stage, frozen, studio.sample(stream_key(key, name), label, sampler))
  images = np.asarray(from_unit(draw("quality", label), data.levels))
  figures = judge_samples(reference, images, label if model.num_classes else None)

  index = fixed_subset(len(data.test), reference.num_samples)
  test = np.resize(data.test.read(index)["image"], (reference.num_samples, *data.image_shape))
  noise = jax.random.normal(stream_key(key, "posterior"), (len(test), *stage.grid))
  encoded = encode_images(stage, frozen, noise, jnp.asarray(test), data.levels)
  rebuilt = decode_latents(stage, frozen, encoded)
  figures["reconstruction_mse"] = float(np.mean((rebuilt - test / (data.levels - 1)) ** 2))
  features = reference.judge.features(np.asarray(from_unit(rebuilt, data.levels)))
  figures[f"reconstruction_distance_{reference.num_samples}"] = reference.distance(features)
  report_step("pictures")
  title = "test images above, through the first stage and back below"
  draw_pairs(test / (data.levels - 1), rebuilt, title, directory / "reconstructions.png", _COLUMNS)
  conditional = bool(model.num_classes)
  sheet = draw("grid", label_rows(data, conditional))
  draw_samples(sheet, data, conditional, f" ({sampler.label} steps)", directory / "samples.png")
  _draw_trajectory(studio, stage, frozen, stream_key(key, "trajectory"), data, sampler, directory / "trajectory.png")
  draw_real_and_generated(reference, images, data.levels, directory / "real_and_generated.png")
  return figures


def _draw_trajectory(studio: Studio, stage, frozen, key, data: DataSet, sampler: Sampler, path: Path) -> None:
  """Latents on their way from noise, and the images that they would be."""
  label = np.arange(4, dtype=np.int32) % data.num_classes
  steps = list(studio.iterate(key, label, sampler))
  picked = [steps[i] for i in np.linspace(0, len(steps) - 1, min(8, len(steps))).round().astype(int)]
  latents = np.stack([np.asarray(step[1]) for step in picked], axis=1)
  images = decode_latents(stage, frozen, latents.reshape(-1, *latents.shape[2:]))
  first = (np.clip(latents[..., :1], -2.5, 2.5) + 2.5) / 5
  figure, axes = new_figure(1, 2, width=10.0, height=sheet_height(4.6, images, len(picked)) + 0.8)
  titles = ("the latents (the first of each cell)", "decoded")
  for axis, sheet, title in zip(axes[0], (first.reshape(-1, *first.shape[2:]), images), titles):
    show_images(axis, sheet, columns=len(picked))
    width = sheet.shape[2] + 1
    ticks = [str(step[0]) if step[0] >= 0 else "sample" for step in picked]
    axis.set_xticks([width * i + width / 2 - 1 for i in range(len(picked))], ticks)
    axis.tick_params(length=0)
    axis.set_xlabel("time t")
    axis.set_title(title, fontsize=9)
  save_figure(figure, path)
