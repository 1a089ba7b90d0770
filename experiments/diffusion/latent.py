"""Latent diffusion: a diffusion model in the latents of a frozen auto-encoder, trained first. Data: digits, MNIST, ...

  python -m experiments.diffusion.latent                                        # digits, latents of 4 x 4
  python -m experiments.diffusion.latent --dataset=mnist --data_dir=DIR --first_channels=32,64 --steps=4000
  python -m experiments.diffusion.latent --first_stage=runs/vqvae               # of generative.vae or generative.vqvae

Rombach et al. 2022: the first stage has a small KL penalty or a codebook, its latents are scaled to deviation 1 by what
is measured on the training images, and DDPM, DDIM and guidance are those of diffusion.ddpm, unchanged. Writes
samples.png, reconstructions.png, trajectory.png and real_and_generated.png.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from experiments.diffusion import ddpm
from experiments.diffusion._first_stage import (
  FirstStage,
  Frozen,
  count_grid_rows,
  encode_images,
  load_first_stage,
  train_first_stage,
)
from experiments.generative._judging import check_images
from mlnotes import diffusion
from mlnotes.data.flags import load_data
from mlnotes.diffusion.model import DiffusionModel
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, example_keys, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import train
from mlnotes.generative.networks import halvings
from mlnotes.optim.flags import make_optimizer

make_feeds = ddpm.make_feeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ddpm.Config):
  """Defaults: digits in about two minutes on two CPU cores, the first stage included."""

  first_stage: str = field(
    "", "work directory of a run of generative.vae (--network=grid) or generative.vqvae; empty: one is trained first"
  )
  first_steps: int = field(3000, "updates of that training")
  first_channels: tuple[int, ...] = field((32,), "of its convolutions, each halving height and width")
  latent_channels: int = field(3, "latents of each cell of its grid")
  kl_weight: float = field(0.01, "weight of its KL divergence, beside squared errors in units of .1")

  steps: int = 3000
  first_noise: float = 0.02
  variance: Literal["fixed_small", "fixed_large"] = "fixed_small"
  loss_weight: Literal["simple", "min_snr"] = "simple"
  channels: int = 32
  multipliers: tuple[int, ...] = (1,)
  num_blocks: int = 2

  def __post_init__(self):
    super().__post_init__()
    for name in ("first_steps", "latent_channels"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    shape = self.first_channels
    require(len(shape) > 0 and min(shape) >= 1, "first_channels", shape, "1 or more each")
    require(self.kl_weight >= 0, "kl_weight", self.kl_weight, "0 or more")
    require(self.first_noise > 0, "first_noise", self.first_noise, "above 0: latents have no grey levels")

  def count_rows(self) -> int:
    return count_grid_rows(self, load_data(self))

  def idle_flags(self):
    idle = super().idle_flags()
    if self.first_stage:
      names = ("first_steps", "first_channels", "latent_channels", "kl_weight")
      idle |= dict.fromkeys(names, f"--first_stage={self.first_stage} has its own")
    return idle


class TrainedLatentModel(NamedTuple):
  """`sample(key, label)` gives images; `model`, `params` are of the latents, `stage`, `frozen` go to and from these."""

  model: DiffusionModel
  params: Any
  stage: FirstStage
  frozen: Frozen

  def sample(self, key: Key[Array, ""], label: Int[Array, " B"], **options: Any) -> Float[Array, "B H W C"]:
    """Images on [0, 1] of the classes `label`; `options` are those of `DiffusionModel.sample`."""
    latents = self.model.sample(self.params, key, label, **options)
    return jnp.clip(self.stage.decode(self.frozen.params, latents / self.frozen.scale), 0, 1)


def make_model(config: Config, grid: tuple[int, int, int]) -> DiffusionModel:
  """The model of latents of this grid. Expectations of these are not clipped: they have no bounds."""
  return ddpm.make_model(config, load_data(config)._replace(image_shape=grid))._replace(clip=None)


def make(config: Config) -> Experiment:
  """With an empty --first_stage one that has learned nothing: `main` trains it before it comes here."""
  data = load_data(config)
  stage, frozen = load_first_stage(config, data)
  model = make_model(config, stage.grid)
  optimizer = make_optimizer(config, config.steps)
  loss = model.make_loss(config.loss_weight)

  def init(key, batch) -> ddpm.State:
    return ddpm.init_state(config, model, optimizer, key, jax.tree.map(jnp.asarray, frozen))

  def step(state: ddpm.State, batch):
    stream = lambda name: stream_key(state.key, name, state.step)
    image = ddpm.mirror_at_random(stream("flip"), batch["image"]) if config.flip else batch["image"]
    noise = jax.random.normal(stream("posterior"), (len(image), *stage.grid))
    x0 = encode_images(stage, state.frozen, noise, image, data.levels)
    state, metrics = ddpm.update_state(config, model, optimizer, loss, state, x0, batch["label"])
    return state, {**metrics, "latent_deviation": jnp.std(x0)}

  def evaluate(state: ddpm.State, batch) -> dict[str, Mean]:
    t = diffusion.stratified_times(batch["index"], config.timesteps)
    keys = example_keys(stream_key(state.key, "evaluate"), batch["index"])
    draw = lambda key: jax.random.normal(key, (2, *stage.grid))
    posterior, noise = jnp.moveaxis(jax.vmap(draw)(keys), 1, 0)
    x0 = encode_images(stage, state.frozen, posterior, batch["image"], data.levels)
    network = model.make_network(state.ema, model.as_condition(batch["label"]))
    losses = diffusion.compute_denoising_loss(network, model.schedule, x0, noise, t, model.parameterization)
    return {"loss": masked_mean(losses, batch["mask"])}

  def trained(state: ddpm.State) -> TrainedLatentModel:
    return TrainedLatentModel(model, state.ema, stage, state.frozen)

  def report(state: ddpm.State, directory: Path) -> dict[str, float]:
    from experiments.diffusion._latent_report import write_report

    return write_report(trained(state), stream_key(state.key, "report"), data, config, directory)

  return Experiment(init, step, evaluate, report, model=trained)


def main(config: Config) -> int:
  if config.report_seeds:
    check_images(load_data(config))
  if not config.first_stage:
    # What does not fit is said before anything trains.
    size = halvings(load_data(config).image_shape[:2], len(config.first_channels))[-1]
    make_model(config, (*size, config.latent_channels))
  config = train_first_stage("diffusion.latent", config)
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
