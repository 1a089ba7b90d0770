"""Samples from a trained diffusion model with any sampler, number of steps and guidance: a grid and an .npz.

python -m experiments.diffusion.sample                                   # trains ddpm on digits first
python -m experiments.diffusion.sample --run=runs/digits --sampler=ddpm --num_samples=100 --out=samples
"""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.diffusion import ddpm
from mlnotes.data.flags import load_data
from mlnotes.diffusion.model import DiffusionModel
from mlnotes.diffusion.process import to_levels
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.loop import enable_compilation_cache
from mlnotes.engine.stage import find_stage
from mlnotes.engine.trained import load_config, restore_states


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  run: str = field("", "work directory of a training run of diffusion.ddpm; empty: one is trained first")
  checkpoint: Literal["last", "best"] = field(
    "last", "which of the two kept checkpoints; best: fewest bits per dimension"
  )
  model_seed: int = field(-1, "which seed of a run with several; -1: its first")
  sampler: Literal["ddim", "ddpm"] = field("ddim", "deterministic, or ancestral")
  sample_steps: int = field(50, "of the sampler; 0, or more than the model was trained with: as many as that")
  eta: float = field(0.0, "noise of ddim: 0 none, 1 as much as ancestral sampling, in [0, 1]")
  guidance: float = field(1.0, "classifier-free guidance: 0 no label, 1 plain conditional, more: stronger")
  label: int = field(-1, "the class to sample; -1: all in turn")
  num_samples: int = field(100, "how many images")
  sample_batch: int = field(500, "images sampled at a time")
  seed: int = field(0, "of the samples")
  data_dir: str = field("", "where the run's TFDS data set is now; empty: as in the run")
  out: str = field("", "directory for samples.png and samples.npz; empty: samples/ in the run's own")

  def __post_init__(self):
    super().__post_init__()
    require(self.label >= -1, "label", self.label, "-1 or a class")
    require(0 <= self.eta <= 1, "eta", self.eta, "a number in [0, 1]")
    require(self.sample_steps >= 0, "sample_steps", self.sample_steps, "0 or more")
    for name in ("num_samples", "sample_batch"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")

  def idle_flags(self):
    return super().idle_flags() | ({"eta": "it is for --sampler=ddim"} if self.sampler == "ddpm" else {})


def draw(config: Config, model: DiffusionModel, params, label: np.ndarray) -> np.ndarray:
  """Images as levels, uint8, in batches of one compiled size."""
  size = min(config.sample_batch, len(label))
  num_steps = min(config.sample_steps or model.schedule.num_steps, model.schedule.num_steps)

  @jax.jit
  def one(params, key, label):
    images = model.sample(
      params, key, label, sampler=config.sampler, num_steps=num_steps, eta=config.eta,
      weight=config.guidance,
    )  # fmt: skip
    return to_levels(images, model.num_levels).astype(jnp.uint8)

  key = root_key(config.seed)
  batches = []
  for i, start in enumerate(range(0, len(label), size)):
    chunk = np.resize(label[start : start + size], size)
    batches.append(np.asarray(one(params, stream_key(key, "sample", i), chunk)))
  return np.concatenate(batches)[: len(label)]


def main(config: Config) -> int:
  from mlnotes.engine.plot import new_figure, save_figure, sheet_height, show_images

  enable_compilation_cache()
  directory = find_stage("run", config.run, ddpm, Path(config.out or "runs/diffusion.sample").expanduser())
  out = Path(config.out).expanduser() if config.out else directory / "samples"
  _, trained = load_config(directory, {"diffusion.ddpm": ddpm.Config})
  trained = dataclasses.replace(trained, data_dir=config.data_dir or trained.data_dir, devices=1)
  if trained.conditional:
    ddpm.require_null_label(f"--label_dropout of {directory}", config.guidance, trained.label_dropout)
  else:
    without = f"-1: {directory} was trained with --noconditional, without labels"
    require(config.label < 0, "label", config.label, without)
    require(config.guidance == 1, "guidance", config.guidance, without.replace("-1", "1", 1))
  data = load_data(trained)
  model = ddpm.make_model(trained, data)
  classes = model.num_classes or 1
  require(config.label < classes, "label", config.label, f"-1 to {classes - 1}")
  seed = trained.seed if config.model_seed < 0 else config.model_seed
  states, step = restore_states(
    directory, ddpm.make(trained), ddpm.make_feeds(trained), trained, config.checkpoint, seed
  )
  params = states[seed].ema
  label = np.arange(config.num_samples, dtype=np.int32) % classes
  label = label if config.label < 0 else np.full_like(label, config.label)
  images = draw(config, model, params, label)
  try:
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "samples.npz", image=images, label=label)
    figure, axes = new_figure(width=5.0, height=sheet_height(5.0, images[:100], 10))
    order = np.argsort(label[:100], kind="stable")
    show_images(axes[0, 0], images[:100][order] / (model.num_levels - 1), columns=10)
    save_figure(figure, out / "samples.png")
  except OSError as error:
    raise InputError(f"--out={out} cannot be written: {error.strerror or error}.") from error
  print(f"{len(images)} images of step {step}: {out / 'samples.png'}, {out / 'samples.npz'}")
  return 0


if __name__ == "__main__":
  run(main, Config)
