"""What a trained VQ-VAE is worth: its reconstructions, its use of the codes, and images that its prior writes."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Key, UInt8

from experiments.generative._chunks import in_chunks
from experiments.generative._judging import (
  MIN_SAMPLES,
  draw_real_and_generated,
  draw_samples,
  judge_samples,
  label_rows,
  make_reference,
  one_of_each,
)
from mlnotes.data import DataSet, fixed_subset
from mlnotes.engine.experiment import example_keys, stream_key
from mlnotes.engine.plot import new_figure, save_figure, sheet_height, show_images
from mlnotes.engine.progress import report_step, warn
from mlnotes.generative import from_unit

_CHUNK = 250
_MOST = 1000
# Below this share of K the codes have collapsed.
COLLAPSED_SHARE = 0.05


def sample_images(
  trained: Any, key: Key, label: Int[np.ndarray, " N"], temperature: float
) -> Float[np.ndarray, "N H W C"]:
  """Images on [0, 1] of the classes `label`."""
  draw = lambda index, label: trained.decode(trained.sample(example_keys(key, index), label, temperature))
  return in_chunks(draw, np.arange(len(label)), label, size=_CHUNK)


def entropy_bits(counts: Float[np.ndarray, "... K"]) -> Float[np.ndarray, "..."]:
  from scipy.special import entr

  return entr(counts / counts.sum(-1, keepdims=True)).sum(-1) / np.log(2)


def write_report(
  trained: Any, state: Any, data: DataSet, config: Any, grid: tuple[int, int], directory: Path
) -> dict[str, float]:
  """Writes reconstructions.png, samples.png, codes.png and real_and_generated.png; returns the figures.

  Samples are judged as `judge_samples` does; beside them, in names that end so, test images through the auto-encoder
  (`_reconstructed`), the best that a prior can do, and codes drawn for each place by themselves (`_independent`).
  """
  to_levels = lambda x: np.asarray(from_unit(x, data.levels))
  wanted = config.quality_samples or min(len(data.test), _MOST)
  reference = make_reference(data, max(wanted, MIN_SAMPLES))
  count = reference.num_samples
  some = fixed_subset(len(data.train), min(10 * _MOST, len(data.train)))
  index = in_chunks(trained, data.train.read(some)["image"], size=_CHUNK)
  label = np.random.default_rng(0).choice(reference.train["label"], count).astype(np.int32)
  report_step(f"{count} samples of {grid[0] * grid[1]} codes each")
  samples = to_levels(sample_images(trained, stream_key(state.key, "quality"), label, config.temperature))
  figures = judge_samples(reference, samples, label)
  back = to_levels(in_chunks(lambda x: trained.decode(trained(x)), reference.test["image"][:count], size=_CHUNK))
  if len(back) == count:
    figures |= _named(judge_samples(reference, back, reference.test["label"][:count]), "reconstructed")
  rng = np.random.default_rng(1)
  drawn = np.stack([rng.choice(column, count) for column in index.T], 1)
  independent = to_levels(in_chunks(trained.decode, drawn, size=_CHUNK))
  figures |= _named(judge_samples(reference, independent), "independent")
  counts = np.bincount(index.ravel(), minlength=config.num_codes)
  places = np.stack([np.bincount(column, minlength=config.num_codes) for column in index.T])
  perplexity = 2 ** float(entropy_bits(counts))
  figures |= {
    "used_codes": float(np.mean(counts > 0)),
    "independent_bits_per_code": float(entropy_bits(places).mean()),
    "bits_per_code_of_k": float(np.log2(config.num_codes)),
    "collapsed": float(perplexity < max(COLLAPSED_SHARE * config.num_codes, 1.5)),
  }
  if figures["collapsed"]:
    warn(f"collapsed: codes have a perplexity of {perplexity:.1f} of {config.num_codes}.")
  report_step("pictures")
  _draw_reconstructions(reference, back, data, directory / "reconstructions.png")
  sheet = sample_images(trained, stream_key(state.key, "grid"), label_rows(data, True), config.temperature)
  draw_samples(sheet, data, True, ": codes from the prior, decoded", directory / "samples.png")
  _draw_codes(trained, counts, grid, config, directory / "codes.png")
  draw_real_and_generated(reference, samples, data.levels, directory / "real_and_generated.png")
  return figures


def _named(figures: dict[str, float], name: str) -> dict[str, float]:
  """Only those of the images themselves, under a name of their own."""
  return {
    f"{figure}_{name}": value
    for figure, value in figures.items()
    if not figure.endswith("_real") and figure != "judge_accuracy"
  }


def _draw_reconstructions(reference: Any, back: UInt8[np.ndarray, "N H W C"], data: DataSet, path: Path) -> None:
  label = reference.test["label"][: len(back)]
  picked = one_of_each(label, 20)
  sheet = np.concatenate([reference.test["image"][picked], back[picked]]) / (data.levels - 1)
  figure, axes = new_figure(width=10.0, height=sheet_height(9.2, sheet, len(picked)) + 0.4)
  show_images(axes[0, 0], sheet, columns=len(picked))
  height = sheet.shape[1] + 1
  axes[0, 0].set_yticks([height / 2 - 1, 1.5 * height - 1], ["image", "from its codes"])
  axes[0, 0].tick_params(length=0)
  axes[0, 0].set_title("test images", fontsize=9)
  save_figure(figure, path)


def _draw_codes(trained: Any, counts: np.ndarray, grid: tuple[int, int], config: Any, path: Path) -> None:
  """How often each code is used, and what the most used ones stand for: an image of nothing else."""
  order = np.argsort(-counts)
  figure, axes = new_figure(1, 2, width=11.0, height=4.2)
  axes[0, 0].bar(np.arange(len(counts)), counts[order] / counts.sum(), width=1.0)
  even = 1 / len(counts)
  axes[0, 0].axhline(even, color="gray", linestyle="--", label="all alike")
  axes[0, 0].set_xlabel("codes, the most used first")
  axes[0, 0].set_ylabel("share of the grid places of training images")
  perplexity = 2 ** entropy_bits(counts)
  axes[0, 0].set_title(
    f"perplexity {perplexity:.1f} of {len(counts)} codes; {np.mean(counts > 0):.0%} used", fontsize=9
  )
  axes[0, 0].legend(frameon=False)
  shown = order[: min(100, len(order))]
  alone = np.tile(shown[:, None], (1, grid[0] * grid[1])).astype(np.int32)
  columns = 10
  show_images(axes[0, 1], in_chunks(trained.decode, alone, size=_CHUNK), columns=columns)
  axes[0, 1].set_title("images of one code alone, the most used first", fontsize=9)
  save_figure(figure, path)
