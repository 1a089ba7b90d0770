"""The auto-encoder in whose latents a diffusion model works: a frozen run of generative.vae or generative.vqvae."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from experiments.generative import vae, vqvae
from experiments.generative._chunks import in_chunks
from mlnotes.data import DataSet, fixed_subset
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.engine.loop import default_workdir
from mlnotes.engine.stage import find_stage
from mlnotes.engine.trained import load_config, restore_seed, unplace
from mlnotes.generative import TrainedVAE, quantize, reparameterize, to_unit
from mlnotes.generative.networks import halvings

RUNS = {"generative.vae": vae.Config, "generative.vqvae": vqvae.Config}
# Training images by whose latents the scale is measured.
_MEASURED = 1000
# Latents that are decoded at a time.
_CHUNK = 500


class Frozen(NamedTuple):
  """What is used and never updated. `scale`: latents times it have the deviation 1 over the training images."""

  params: chex.ArrayTree
  scale: Float[Array, ""]


class FirstStage(NamedTuple):
  """Images on [0, 1] to latents (B, *grid) and back, with the auto-encoder's parameters as an argument.

  encode: (params, x, noise) -> latents; of a VAE they are drawn from its posterior with standard normal `noise`, of a
          VQ-VAE they are the vectors before they become codes
  decode: (params, latents) -> images; a VQ-VAE takes the nearest code of each vector first
  """

  grid: tuple[int, int, int]
  encode: Callable[..., Float[Array, "B h w D"]]
  decode: Callable[..., Float[Array, "B H W C"]]


def train_first_stage(name: str, config: Any) -> Any:
  """`config` with a run in `first_stage`: that of the flag, or of generative.vae with a grid, trained first."""
  workdir = Path(config.workdir).expanduser() if config.workdir else default_workdir(name, config)
  shared = ("seed", "devices", "threads", "tensorboard", "dataset", "data_dir", "train_split", "test_split")
  settings = {name: getattr(config, name) for name in (*shared, "image_size", "precision")}
  settings["batch_size"] = min(vae.Config.batch_size, len(load_data(config).train))
  directory = find_stage(
    "first_stage", config.first_stage, vae, workdir, **stage_settings(config), **settings, steps=config.first_steps,
    report_seeds=0, eval_every=0,
  )  # fmt: skip
  return dataclasses.replace(config, first_stage=str(directory), workdir=str(workdir))


def stage_settings(config: Any) -> dict[str, Any]:
  """The flags of the auto-encoder that the flags of latent diffusion describe."""
  return {
    "network": "grid", "likelihood": "gaussian", "sigma": 0.1, "latents": config.latent_channels,
    "channels": config.first_channels, "beta": config.kl_weight,
  }  # fmt: skip


def count_grid_rows(config: Any, data: DataSet) -> int:
  """Of the latents' grid, by settings alone."""
  channels = config.first_channels
  if config.first_stage:
    directory = Path(config.first_stage).expanduser()
    channels = load_config(directory, RUNS, f"--first_stage={config.first_stage}")[1].channels
  return halvings(data.image_shape[:2], len(channels))[-1][0]


def load_first_stage(config: Any, data: DataSet) -> tuple[FirstStage, Frozen]:
  """The run that --first_stage names; where that is empty, one of the flags' sizes that has learned nothing.

  Raises InputError for a run of other images, of black and white ones, or whose latents are no grid.
  """
  if not config.first_stage:
    own = vae.Config(**stage_settings(config), dataset=config.dataset, data_dir=config.data_dir)
    module = vae.make_model(own, data)
    x = jnp.zeros((1, *data.image_shape))
    params = module.init(stream_key(root_key(0), "first_stage"), x, jnp.zeros((1, module.num_latents)))["params"]
    return _measure(of_vae(module), params, data)
  directory, said = Path(config.first_stage).expanduser(), f"--first_stage={config.first_stage}"
  name, found = load_config(directory, RUNS, said)
  found = dataclasses.replace(found, devices=1, data_dir=config.data_dir or found.data_dir)
  experiment, state = restore_seed(vae if name == "generative.vae" else vqvae, directory, found, said=said)
  if name == "generative.vae":
    if found.likelihood == "bernoulli" and data.levels > 2:
      raise InputError(f"{said} knows black and white pixels alone: expected a run with --likelihood=gaussian.")
    trained = experiment.model(state)
    stage, params = of_vae(trained.module), unplace(trained.params)
    shape = trained.module.image_shape
  else:
    model, state = vqvae.make_model(found, data), vqvae.as_evaluated(state)
    stage, params = of_vqvae(model, found), unplace({"networks": state.params, "codes": state.codebook.codes})
    shape = load_data(found).image_shape if found.dataset == config.dataset else ()
  if tuple(shape) != tuple(data.image_shape):
    raise InputError(
      f"{said} is of images {tuple(shape) or found.dataset}, expected {data.image_shape}, as --dataset has."
    )
  return _measure(stage, params, data)


def of_vae(module: Any) -> FirstStage:
  """Raises InputError for one whose latents are no grid."""
  if module.kind != "grid":
    raise InputError(f"--first_stage has --network={module.kind}: expected latents in a grid, --network=grid.")

  def encode(params, x, noise):
    q = TrainedVAE(module, params).encode(x)
    return reparameterize(q, noise.reshape(len(x), -1)).reshape(len(x), *module.grid)

  return FirstStage(module.grid, encode, lambda params, z: TrainedVAE(module, params).decode(z.reshape(len(z), -1)))


def of_vqvae(model: Any, config: Any) -> FirstStage:
  """Its parameters are {"networks": of encoder and decoder, "codes": (K, D)}."""

  def decode(params, z):
    return model.decode(params["networks"], quantize(z, params["codes"]).codes)

  return FirstStage(
    (*model.grid, config.code_width), lambda params, x, noise: model.encode(params["networks"], x), decode
  )


def _measure(stage: FirstStage, params: Any, data: DataSet) -> tuple[FirstStage, Frozen]:
  image = data.train.read(fixed_subset(len(data.train), _MEASURED))["image"]
  noise = jax.random.normal(stream_key(root_key(0), "scale"), (len(image), *stage.grid))
  latents = jax.jit(stage.encode)(params, to_unit(image, data.levels), noise)
  return stage, Frozen(params, 1 / jnp.std(latents))


def encode_images(
  stage: FirstStage, frozen: Frozen, noise: Float[Array, "B h w D"], image: UInt8[Array, "B H W C"], levels: int
) -> Float[Array, "B h w D"]:
  """Latents of deviation 1, as the diffusion model has them; `noise` is standard normal."""
  return frozen.scale * stage.encode(frozen.params, to_unit(image, levels), noise)


def decode_latents(stage: FirstStage, frozen: Frozen, z: Float[Array, "B h w D"]) -> Float[np.ndarray, "B H W C"]:
  """Images on [0, 1] of latents of deviation 1."""
  decode = jax.jit(stage.decode)
  return np.clip(in_chunks(lambda z: decode(frozen.params, z / frozen.scale), z, size=_CHUNK), 0, 1)
