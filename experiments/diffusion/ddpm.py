"""Denoising diffusion (DDPM, DDIM): trains a U-Net, then measures and draws what it samples. Data: digits, MNIST, ...

  python -m experiments.diffusion.ddpm                                   # digits
  python -m experiments.diffusion.ddpm --dataset=mnist --data_dir=DIR --channels=64 --multipliers=1,2,2 --steps=20000

Ho et al. 2020 with class labels (classifier-free guidance), learned variances (Nichol & Dhariwal 2021) and v or x0 as
alternatives to the noise (Salimans & Ho 2022).
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.generative._judging import MIN_SAMPLES, check_images
from mlnotes import diffusion
from mlnotes.data import DataSet, Feeds
from mlnotes.data.flags import DataConfig, load_data, make_feeds as make_data_feeds
from mlnotes.diffusion.model import DiffusionModel, TrainedModel
from mlnotes.diffusion.schedule import MAX_STRATA
from mlnotes.diffusion.unet import UNet
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, example_keys, masked_mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.optim import ScheduleName, eval_params, update_ema
from mlnotes.optim.flags import OptimConfig, make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig, OptimConfig, LoopConfig):
  """Defaults: recognisable digits in a few minutes on two CPU cores."""

  steps: int = 1500
  batch_size: int = 64
  learning_rate: float = 3e-3
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0
  eval_every: int = 500
  checkpoint_every: int = 500

  timesteps: int = field(128, "T, the number of noise levels, 2 to 65536")
  noise_schedule: Literal["linear", "cosine"] = field("cosine", "how the noise grows with time")
  first_noise: float = field(
    0.0, "standard deviation of the noise at t = 0, below 1; 0: 0.8 of half the distance between two grey levels"
  )
  parameterization: Literal["epsilon", "x0", "v"] = field("v", "what the network predicts")
  variance: Literal["learned", "fixed_small", "fixed_large"] = field("learned", "variance of the reverse process")
  loss_weight: Literal["simple", "min_snr", "vlb"] = field(
    "simple", "weight of the squared error over time; vlb: the variational bound itself instead of it"
  )
  vlb_weight: float = field(1e-3, "weight of the variational bound beside it, where the variance is learned")
  conditional: bool = field(True, "condition on the class label")
  label_dropout: float = field(0.0, "share of labels hidden in training, in [0, 1); --guidance needs some, such as 0.1")
  flip: bool = field(False, "mirror training images at random")

  channels: int = field(16, "of the U-Net's first level")
  multipliers: tuple[int, ...] = field((1, 2), "of --channels, one per level; each level halves height and width")
  num_blocks: int = field(1, "residual blocks per level")
  attention_resolutions: tuple[int, ...] = field((4,), "heights at which the U-Net attends to itself")
  dropout: float = field(0.0, "in the residual blocks, in [0, 1)")
  ema_decay: float = field(0.999, "of the average of the parameters that is evaluated and sampled, in [0, 1)")

  sampler: Literal["ddim", "ddpm"] = field("ddim", "for the pictures", free="report")
  sample_steps: int = field(50, "steps of that sampler, or --timesteps if that is less", free="report")
  guidance: float = field(
    1.0, "classifier-free guidance of it: 0 no label, 1 plain conditional, more: stronger", free="report"
  )
  quality_samples: int = field(
    0,
    "samples per figure of quality, 4 or more; 0: as many as test images, at most 1000, and no more than take about as "
    "long as the training",
    free="report",
  )

  def __post_init__(self):
    super().__post_init__()
    require(2 <= self.timesteps <= MAX_STRATA, "timesteps", self.timesteps, f"2 to {MAX_STRATA}")
    for name in ("channels", "num_blocks", "sample_steps"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(len(self.multipliers) > 0 and min(self.multipliers) >= 1, "multipliers", self.multipliers, "1 or more each")
    for name in ("dropout", "ema_decay"):
      require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
    require(0 <= self.first_noise < 0.9, "first_noise", self.first_noise, "a number in [0, 0.9)")
    require(0 <= self.label_dropout < 1, "label_dropout", self.label_dropout, "a number in [0, 1)")
    require(self.vlb_weight >= 0, "vlb_weight", self.vlb_weight, "0 or more")
    count = self.quality_samples
    require(count == 0 or count >= MIN_SAMPLES, "quality_samples", count, f"0, or {MIN_SAMPLES} or more")
    for name, plain in (("label_dropout", 0.0), ("guidance", 1.0)):
      value = getattr(self, name)
      require(self.conditional or value == plain, name, value, f"{plain:g} with --noconditional, which has no labels")
    require_null_label("--label_dropout", self.guidance, self.label_dropout)

  def count_rows(self) -> int:
    """Of what the network sees."""
    return load_data(self).image_shape[0]

  def idle_flags(self):
    idle = super().idle_flags()
    if self.loss_weight == "vlb":
      idle["vlb_weight"] = "--loss_weight=vlb is the bound itself"
    elif self.variance != "learned":
      idle["vlb_weight"] = f"--variance={self.variance} is not learned"
    if self.report_seeds == 0:
      why = "--report_seeds=0 draws no samples"
      idle |= dict.fromkeys(("sampler", "sample_steps", "guidance", "quality_samples"), why)
    try:
      height = self.count_rows()
    except InputError:  # said where the data are needed
      return idle
    heights = [height // 2**level for level in range(len(self.multipliers))]
    if not set(heights) & set(self.attention_resolutions):
      levels = ", ".join(map(str, heights))
      idle["attention_resolutions"] = f"the heights of the levels are {levels} (its middle attends anyway)"
    return idle


def require_null_label(flag: str, guidance: float, label_dropout: float) -> None:
  """Raises InputError for a `guidance` that asks the network without its label where `label_dropout`, the value of
  `flag`, never showed it that."""
  if guidance != 1.0 and label_dropout == 0:
    raise InputError(
      f"--guidance={guidance:g} needs a network that was also trained without labels: found {flag}=0, expected a share "
      "of hidden labels above 0 in training, such as 0.1, or --guidance=1."
    )


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  ema: chex.ArrayTree
  opt_state: optax.OptState
  hparams: dict[str, Float[Array, ""]]
  frozen: Any = ()  # what is used and never updated: of latent diffusion its first stage


def make_feeds(config: Config) -> Feeds:
  return make_data_feeds(load_data(config), config)


def make_model(config: Config, data: DataSet) -> DiffusionModel:
  """The network and the process that the flags describe, for images like those of `data`."""
  log_snr = {"linear": diffusion.linear_log_snr, "cosine": diffusion.cosine_log_snr}[config.noise_schedule]
  # Where it is not given, the first noise is a little less than half the distance between two grey levels.
  first_noise = config.first_noise or 0.8 / (data.levels - 1)
  bounds = (-12.0, math.log1p(-(first_noise**2)) - 2 * math.log(first_noise))
  channels = data.image_shape[-1]
  num_classes = data.num_classes if config.conditional else None
  network = UNet(
    channels=config.channels,
    multipliers=config.multipliers,
    num_blocks=config.num_blocks,
    attention_resolutions=config.attention_resolutions,
    out_channels=2 * channels if config.variance == "learned" else channels,
    num_classes=num_classes,
    dropout=config.dropout,
    dtype=jnp.dtype(config.precision),
  )
  try:
    schedule = diffusion.make_schedule_from_log_snr(log_snr, config.timesteps, bounds)
  except ValueError as error:
    flags = f"--timesteps={config.timesteps} --noise_schedule={config.noise_schedule} --first_noise={first_noise:g}"
    raise InputError(f"{flags}: {error}") from error
  model = DiffusionModel(
    network=network,
    schedule=schedule,
    parameterization=diffusion.PARAMETERIZATIONS[config.parameterization],
    variance=diffusion.VARIANCES[config.variance],
    num_classes=num_classes,
    num_levels=data.levels,
    image_shape=data.image_shape,
  )
  try:
    jax.eval_shape(model.init, root_key(0))
  except ValueError as error:  # sizes that do not go together
    raise InputError(f"--channels={config.channels} --multipliers={config.multipliers}: {error}.") from error
  return model


def init_state(config: Config, model: DiffusionModel, optimizer, key, frozen: Any = ()) -> State:
  params = model.init(stream_key(key, "init"))
  hparams = {name: jnp.float32(getattr(config, name)) for name in ("ema_decay", "label_dropout", "vlb_weight")}
  # A copy: parameters and average are updated in place, each its own.
  ema = jax.tree.map(jnp.copy, params)
  return State(jnp.zeros([], jnp.int32), key, params, ema, optimizer.init(params), hparams, frozen)


def update_state(config: Config, model: DiffusionModel, optimizer, loss, state: State, x0, label):
  """One update on clean inputs `x0` (B, H, W, C) of the classes `label`: (state, metrics)."""
  stream = lambda name: stream_key(state.key, name, state.step)
  t = jax.random.randint(stream("time"), label.shape, 0, config.timesteps)
  noise = jax.random.normal(stream("noise"), x0.shape)
  label = model.drop_label(stream("label"), label, state.hparams["label_dropout"])

  def mean_loss(params):
    network = model.make_network(params, label, dropout_key=stream("dropout"))
    return jnp.mean(loss(network, x0, noise, t, state.hparams["vlb_weight"]))

  value, grads = jax.value_and_grad(mean_loss)(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = update_ema(state.ema, eval_params(opt_state, params), state.step, state.hparams["ema_decay"])
  metrics = {"loss": value, "grad_norm": optax.global_norm(grads)}
  return state._replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), metrics


def mirror_at_random(key, image):
  """Images (B, H, W, C), half of them mirrored."""
  mirrored = jax.random.bernoulli(key, shape=image.shape[:1])
  return jnp.where(mirrored[:, None, None, None], image[:, :, ::-1], image)


def make(config: Config) -> Experiment:
  data = load_data(config)
  model = make_model(config, data)
  optimizer = make_optimizer(config, config.steps)
  loss = model.make_loss(config.loss_weight)

  def init(key, batch) -> State:
    return init_state(config, model, optimizer, key)

  def step(state: State, batch):
    x0 = model.to_input(batch["image"])
    if config.flip:
      x0 = mirror_at_random(stream_key(state.key, "flip", state.step), x0)
    return update_state(config, model, optimizer, loss, state, x0, batch["label"])

  def evaluate(state: State, batch) -> dict[str, Mean]:
    # One time per test image, the same in every evaluation.
    t = diffusion.stratified_times(batch["index"], config.timesteps)
    keys = example_keys(stream_key(state.key, "evaluate"), batch["index"])
    x0 = model.to_input(batch["image"])
    noise = jax.vmap(lambda key: jax.random.normal(key, model.image_shape))(keys)
    network = model.make_network(state.ema, model.as_condition(batch["label"]))
    losses = diffusion.compute_denoising_loss(network, model.schedule, x0, noise, t, model.parameterization)
    bound = model.estimate_bits_per_dim(network, x0, noise, t)
    return {"loss": masked_mean(losses, batch["mask"]), "bits_per_dim_estimate": masked_mean(bound, batch["mask"])}

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.diffusion._report import write_report

    return write_report(model, state.ema, stream_key(state.key, "report"), data, config, directory)

  return Experiment(init, step, evaluate, report, model=lambda state: TrainedModel(model, state.ema))


def main(config: Config) -> int:
  if config.report_seeds:
    check_images(load_data(config))
  return train(make(config), make_feeds(config), config, best_metric="bits_per_dim_estimate")


if __name__ == "__main__":
  run(main, Config)
