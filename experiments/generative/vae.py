"""Variational auto-encoders (VAE, IWAE, beta-VAE, beta-TCVAE): trains one, then measures, samples and takes it apart.

  python -m experiments.generative.vae                                          # digits, drawn black and white
  python -m experiments.generative.vae --dataset=mnist --data_dir=DIR --latents=50 --steps=20000
  python -m experiments.generative.vae --bound=iwae --importance_samples=50     # Burda et al. 2016
  python -m experiments.generative.vae --dataset=sprites --network=conv --latents=10 --beta=4
  python -m experiments.generative.vae --likelihood=gaussian --free_bits=0.1

Writes reconstructions.png, samples.png, traversal.png, latent_map.png and interpolation.png. Bounds are in nats, sums
over pixels; --likelihood says of what pixels, and bounds of different likelihoods do not compare.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.generative._judging import MIN_SAMPLES, check_images
from experiments.generative._pixels import pixels_once, to_pixels
from mlnotes.data import DataSet, Feeds
from mlnotes.data.flags import DataConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, example_keys, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.generative import (
  VAE,
  TrainedVAE,
  clip_free_bits,
  compute_elbo,
  compute_iwae,
  decompose_kl,
  reparameterize,
)
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, make_optimizer

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig, OptimConfig, LoopConfig):
  """Defaults: digits in black and white, about a minute on two CPU cores."""

  latents: int = field(16, "latent variables of an image; of --network=grid of each of its cells")
  likelihood: Literal["bernoulli", "continuous_bernoulli", "gaussian"] = field(
    "bernoulli", "of a pixel; bernoulli: of pixels drawn black or white with their grey value, the others: of grey ones"
  )
  binarize: Literal["dynamic", "fixed"] = field(
    "dynamic", "training pixels of bernoulli: drawn anew at each use, or once; test pixels are drawn once"
  )
  sigma: float = field(0.0, "deviation of the gaussian likelihood, pixels on [0, 1]; 0: learned, one for all pixels")
  bound: Literal["elbo", "iwae"] = field("elbo", "what is maximised; iwae: with --importance_samples weights")
  importance_samples: int = field(1, "latent vectors drawn for each image of an update")
  doubly_reparameterized: bool = field(False, "gradient of iwae's encoder by Tucker et al. 2019")
  beta: float = field(1.0, "weight of the KL divergence, 0 or more")
  penalty: Literal["kl", "total_correlation"] = field(
    "kl", "what --beta weighs: the whole KL, or its total correlation alone (beta-TCVAE)"
  )
  anneal_steps: int = field(0, "updates over which --beta grows from 0")
  free_bits: float = field(0.0, "nats of each latent's KL that cost nothing, mean over the batch")
  network: Literal["mlp", "conv", "grid"] = field(
    "mlp", "of encoder and decoder; grid: latents stand in a grid, as latent diffusion has them"
  )
  hidden: tuple[int, ...] = field((200, 200), "widths of the dense layers; conv has one, the last of them")
  channels: tuple[int, ...] = field((32, 64), "of the convolutions of conv and grid, each halving height and width")
  activation: Literal["tanh", "relu"] = field("tanh", "between layers")
  nll_samples: int = field(200, "importance samples of an image for its likelihood in the report", free="report")
  nll_examples: int = field(500, "test images whose likelihood the report estimates", free="report")
  quality_samples: int = field(
    0, "samples that the judge compares, 4 or more; 0: as many as test images, at most 1000", free="report"
  )

  steps: int = 20000
  batch_size: int = 64
  learning_rate: float = 1e-3
  adam_eps: float = 1e-4
  schedule: ScheduleName = "cosine"
  eval_every: int = 2000
  checkpoint_every: int = 5000
  log_every: int = 500

  def __post_init__(self):
    super().__post_init__()
    for name in ("latents", "importance_samples", "nll_samples", "nll_examples"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("sigma", "beta", "anneal_steps", "free_bits"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    require(len(self.hidden) > 0 and min(self.hidden) >= 1, "hidden", self.hidden, "1 or more each")
    require(len(self.channels) > 0 and min(self.channels) >= 1, "channels", self.channels, "1 or more each")
    count = self.quality_samples
    require(count == 0 or count >= MIN_SAMPLES, "quality_samples", count, f"0, or {MIN_SAMPLES} or more")
    if self.bound == "iwae":
      # Its KL is not a term of its own: there is nothing to weigh.
      for name, plain in (("beta", 1.0), ("free_bits", 0.0), ("anneal_steps", 0), ("penalty", "kl")):
        value = getattr(self, name)
        require(value == plain, name, value, f"{plain} with --bound=iwae, which has no KL of its own to weigh")
    if self.penalty == "total_correlation":
      for name, plain in (("free_bits", 0), ("anneal_steps", 0), ("importance_samples", 1)):
        require(getattr(self, name) == plain, name, getattr(self, name), f"{plain} with --penalty={self.penalty}")
      require(self.batch_size >= 2, "batch_size", self.batch_size, f"2 or more with --penalty={self.penalty}")

  def idle_flags(self):
    idle = super().idle_flags()
    if self.likelihood != "bernoulli":
      idle["binarize"] = f"--likelihood={self.likelihood} is of grey pixels"
    elif load_data_quietly(self, lambda data: data.levels == 2):
      idle["binarize"] = f"the pixels of {self.dataset} are black and white"
    if self.likelihood != "gaussian":
      idle["sigma"] = f"--likelihood={self.likelihood} has none"
    if self.bound == "elbo":
      idle["doubly_reparameterized"] = "--bound=elbo has no weights"
    elif self.importance_samples == 1:
      idle["bound"] = "with --importance_samples=1 both bounds are one but for the estimate of the KL"
    if self.penalty == "total_correlation" and self.beta == 1:
      idle["penalty"] = "with --beta=1 the total correlation weighs what the whole KL does: it is the plain bound"
    if self.network == "mlp":
      idle["channels"] = "--network=mlp has no convolutions"
    if self.network == "grid":
      idle |= dict.fromkeys(("hidden", "activation"), "--network=grid has convolutions and ReLU alone")
    if self.report_seeds == 0:
      why = "--report_seeds=0 measures nothing"
      idle |= dict.fromkeys(("nll_samples", "nll_examples", "quality_samples"), why)
    return idle


def load_data_quietly(config: Config, ask) -> bool:
  """`ask(data)`, False where there are no data: that is said where they are needed."""
  try:
    return ask(load_data(config))
  except InputError:
    return False


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState
  hparams: dict[str, Float[Array, ""]]


def make_feeds(config: Config) -> Feeds:
  return make_data_feeds(load_data(config), config)


def make_model(config: Config, data: DataSet) -> VAE:
  return VAE(
    image_shape=data.image_shape,
    latents=config.latents,
    likelihood=config.likelihood,
    sigma=config.sigma,
    kind=config.network,
    hidden=config.hidden,
    channels=config.channels,
    activation=ACTIVATIONS[config.activation],
    dtype=jnp.dtype(config.precision),
  )


def make(config: Config) -> Experiment:
  data = load_data(config)
  module, optimizer = make_model(config, data), make_optimizer(config, config.steps)
  num_examples = len(data.train)

  def learned(state: State) -> TrainedVAE:
    return TrainedVAE(module, eval_params(state.opt_state, state.params))

  def init(key, batch) -> State:
    x = jnp.zeros((1, *data.image_shape))
    params = module.init(stream_key(key, "init"), x, jnp.zeros((1, module.num_latents)))["params"]
    hparams = {name: jnp.float32(getattr(config, name)) for name in ("beta", "free_bits")}
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params), hparams)

  def compute_objective(params, state: State, x, noise):
    """What is to rise: the mean over the batch of the bound, with its KL weighed; and the bound."""
    model = TrainedVAE(module, params)
    q, log_likelihood = model.encode(x), partial(model.log_likelihood, x)
    if config.bound == "iwae":
      bound = compute_iwae(noise, q, log_likelihood, config.doubly_reparameterized)
      return jnp.mean(bound.objective), bound
    bound = compute_elbo(noise, q, log_likelihood)
    grown = jnp.minimum(1.0, (state.step + 1) / max(config.anneal_steps, 1))
    beta = state.hparams["beta"] * grown
    if config.penalty == "total_correlation":
      z = reparameterize(q, noise[0])  # the latents that were decoded
      cost = jnp.mean(jnp.sum(bound.kl, -1)) + (beta - 1) * decompose_kl(z, q, num_examples).total_correlation
    else:
      cost = beta * clip_free_bits(bound.kl, state.hparams["free_bits"])
    return jnp.mean(bound.log_likelihood) - cost, bound

  def step(state: State, batch):
    stream = lambda name: stream_key(state.key, name, state.step)
    if config.binarize == "fixed":
      x = pixels_once(config, data.levels, batch["image"], batch["index"])
    else:
      x = to_pixels(config, data.levels, batch["image"], jax.random.split(stream("pixels"), len(batch["image"])))
    noise = jax.random.normal(stream("noise"), (config.importance_samples, len(x), module.num_latents))

    def loss_fn(params):
      objective, bound = compute_objective(params, state, x, noise)
      return -objective, bound

    (loss, bound), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
      "loss": loss,
      "negative_elbo": jnp.mean(jnp.sum(bound.kl, -1) - bound.log_likelihood),
      "kl": jnp.mean(jnp.sum(bound.kl, -1)),
      "grad_norm": optax.global_norm(grads),
    }
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  def evaluate(state: State, batch) -> dict[str, Mean]:
    model = learned(state)
    x = pixels_once(config, data.levels, batch["image"], batch["index"])
    keys = example_keys(stream_key(state.key, "evaluate"), batch["index"])
    noise = jax.vmap(lambda key: jax.random.normal(key, (module.num_latents,)))(keys)
    bound = compute_elbo(noise[None], model.encode(x), partial(model.log_likelihood, x))
    values = {
      "negative_elbo": -bound.bound,
      "kl": jnp.sum(bound.kl, axis=-1),
      "reconstruction": -bound.log_likelihood,
    }
    return {name: masked_mean(value, batch["mask"]) for name, value in values.items()}

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.generative._vae_report import write_report

    return write_report(learned(state), stream_key(state.key, "report"), data, config, directory)

  return Experiment(init, step, evaluate, report, model=learned)


def main(config: Config) -> int:
  if config.report_seeds:
    check_images(load_data(config))
  return train(make(config), make_feeds(config), config, best_metric="negative_elbo")


if __name__ == "__main__":
  run(main, Config)
