"""VQ-VAE: images as a grid of codes out of K, and a Transformer that writes such grids. Data: digits, MNIST, ...

  python -m experiments.generative.vqvae                                              # digits, 4 x 4 codes
  python -m experiments.generative.vqvae --dataset=mnist --data_dir=DIR --num_codes=128 --channels=32,64 --steps=4000

Van den Oord et al. 2017. Each update trains both: the auto-encoder on images, and the prior on the codes that it gives
them, which stop changing as the learning rate falls to 0. Nothing of the prior's reaches the auto-encoder.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from experiments.generative._judging import MIN_SAMPLES, check_images
from mlnotes import generative
from mlnotes.data import DataSet, Feeds, fixed_subset, make_eval_batches
from mlnotes.data.flags import DataConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.generative.code_grid import (
  CodePrior,
  GridDecoder,
  GridEncoder,
  code_nats,
  make_code_prior,
  sample_codes,
)
from mlnotes.generative.networks import halvings, to_unit
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, make_optimizer

# Training images whose variance scales the squared error.
_MEASURED = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig, OptimConfig, LoopConfig):
  """Defaults: digits in two minutes on two CPU cores."""

  steps: int = 2000
  batch_size: int = 64
  learning_rate: float = 2e-3
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100

  num_codes: int = field(64, "K, how many codes there are, 2 or more")
  code_width: int = field(16, "features of a code")
  channels: tuple[int, ...] = field((32,), "of the encoder's convolutions, each halving height and width")
  blocks: int = field(2, "residual blocks of the encoder, and of the decoder")
  beta: float = field(0.25, "weight of the commitment loss, which moves the encoder to its codes, >= 0")
  codebook: Literal["ema", "gradient"] = field("ema", "what moves codes: averages of their vectors, or their own loss")
  decay: float = field(0.99, "of these averages, in [0, 1)")
  restart: float = field(1.0, "codes with an average count below this start anew among the batch's vectors; 0: none")
  code_init: Literal["data", "uniform"] = field("data", "codes at first: vectors of a batch, or within 1 / K of 0")

  prior_depth: int = field(2, "blocks of the Transformer over codes")
  prior_width: int = field(64, "its features, a multiple of --prior_heads")
  prior_heads: int = field(4, "heads of its attention")
  prior_dropout: float = field(0.1, "in its residual steps, in [0, 1)")
  prior_learning_rate: float = field(2e-3, "its peak learning rate, > 0; the schedule is the same")

  temperature: float = field(1.0, "of the codes that are drawn for pictures and figures, > 0", free="report")
  perplexity_examples: int = field(10_000, "training images over which the perplexity of an epoch is taken; 0: all")
  quality_samples: int = field(
    0, "samples that are judged, 4 or more; 0: as many as test images, at most 1000", free="report"
  )

  def __post_init__(self):
    super().__post_init__()
    require(self.num_codes >= 2, "num_codes", self.num_codes, "2 or more")
    for name in ("code_width", "prior_depth", "prior_width", "prior_heads"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(len(self.channels) > 0 and min(self.channels) >= 1, "channels", self.channels, "1 or more each")
    for name in ("blocks", "beta", "restart", "perplexity_examples"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    for name in ("decay", "prior_dropout"):
      require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
    for name in ("prior_learning_rate", "temperature"):
      require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
    width, heads = self.prior_width, self.prior_heads
    require(width % heads == 0, "prior_width", width, f"a multiple of --prior_heads={heads}")
    count = self.quality_samples
    require(count == 0 or count >= MIN_SAMPLES, "quality_samples", count, f"0, or {MIN_SAMPLES} or more")

  def idle_flags(self):
    idle = super().idle_flags()
    if self.codebook == "gradient":
      idle |= dict.fromkeys(("restart", "decay"), "--codebook=gradient moves codes by their loss alone")
    if self.report_seeds == 0:
      idle |= dict.fromkeys(("temperature", "quality_samples"), "--report_seeds=0 draws no samples")
    return idle


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  codebook: generative.Codebook
  opt_state: optax.OptState
  prior: chex.ArrayTree
  prior_opt_state: optax.OptState
  hparams: dict[str, Float[Array, ""]]


def as_evaluated(state: State) -> State:
  """`state` with the parameters that its optimizers return: of Lookahead the slow weights."""
  params = eval_params(state.opt_state, state.params)
  codebook = state.codebook._replace(codes=params.get("codes", state.codebook.codes))
  return state._replace(params=params, codebook=codebook, prior=eval_params(state.prior_opt_state, state.prior))


class Model(NamedTuple):
  """The networks and the size (h, w) of the grid."""

  encoder: GridEncoder
  decoder: GridDecoder
  prior: CodePrior
  grid: tuple[int, int]

  def encode(self, params: chex.ArrayTree, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    return self.encoder.apply({"params": params["encoder"]}, x)

  def decode(self, params: chex.ArrayTree, z: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
    return self.decoder.apply({"params": params["decoder"]}, z)

  def decode_index(self, params, codes: Float[Array, "K D"], index: Int[Array, "B N"]) -> Float[Array, "B H W C"]:
    return self.decode(params, jnp.take(codes, index.reshape(len(index), *self.grid), axis=0))


def make_model(config: Config, data: DataSet) -> Model:
  grid = halvings(data.image_shape[:2], len(config.channels))[-1]
  dtype = jnp.dtype(config.precision)
  prior = make_code_prior(
    config.num_codes, data.num_classes, grid[0] * grid[1], depth=config.prior_depth, heads=config.prior_heads,
    width=config.prior_width, dropout=config.prior_dropout, dtype=dtype,
  )  # fmt: skip
  layers = {"channels": config.channels, "depth": config.blocks, "dtype": dtype}
  return Model(GridEncoder(config.code_width, **layers), GridDecoder(data.image_shape, **layers), prior, grid)


def make_feeds(config: Config) -> Feeds:
  """Training batches, the test split, and the training images over which the perplexity of an epoch is taken."""
  data = load_data(config)
  feeds = make_data_feeds(data, config)
  return feeds._replace(reference=make_eval_batches(data.train, config.batch_size, config.perplexity_examples or None))


def measure_variance(data: DataSet) -> float:
  """Of pixels on [0, 1] about the mean image."""
  image = data.train.read(fixed_subset(len(data.train), min(_MEASURED, len(data.train))))["image"]
  return max(float((image / (data.levels - 1.0)).var(0).mean()), 1e-6)


class TrainedVQVAE:
  """`trained(images)` are the codes (B, N) of images as stored, `trained.decode(codes)` images on [0, 1], and
  `trained.sample(keys, label)` codes of images of these classes."""

  def __init__(self, model: Model, state: State, levels: int):
    codes = state.codebook.codes
    nearest = lambda images: generative.find_nearest_code(model.encode(state.params, to_unit(images, levels)), codes)
    self._encode = jax.jit(lambda images: nearest(images).reshape(len(images), -1))
    self._decode = jax.jit(lambda index: jnp.clip(model.decode_index(state.params, codes, index), 0, 1))
    self._sample = jax.jit(partial(sample_codes, model.prior, {"params": state.prior}))

  def __call__(self, images: UInt8[Array, "B H W C"]) -> Int[Array, "B N"]:
    return self._encode(images)

  def decode(self, codes: Int[Array, "B N"]) -> Float[Array, "B H W C"]:
    return self._decode(codes)

  def sample(self, keys: Key[Array, " B"], label: Int[Array, " B"], temperature: float = 1.0) -> Int[Array, "B N"]:
    return self._sample(keys, label, temperature)


def make(config: Config) -> Experiment:
  data = load_data(config)
  model = make_model(config, data)
  optimizer = make_optimizer(config, config.steps)
  prior_optimizer = make_optimizer(dataclasses.replace(config, learning_rate=config.prior_learning_rate), config.steps)
  variance = measure_variance(data)
  moved = config.codebook == "gradient"

  def init(key, batch) -> State:
    x = to_unit(batch["image"], data.levels)
    keys = {name: stream_key(key, f"init_{name}") for name in ("encoder", "decoder", "codes", "prior")}
    grid = jnp.zeros((1, *model.grid, config.code_width))
    params = {
      "encoder": model.encoder.init(keys["encoder"], x[:1])["params"],
      "decoder": model.decoder.init(keys["decoder"], grid)["params"],
    }
    z = model.encode(params, x)
    codes = generative.init_codes(keys["codes"], config.num_codes, config.code_width, config.code_init, z)
    if moved:
      params["codes"] = jnp.copy(codes)
    tokens = jnp.zeros((1, model.prior.length), jnp.int32)
    prior = model.prior.init(keys["prior"], tokens)["params"]
    hparams = {name: jnp.float32(getattr(config, name)) for name in ("beta", "decay", "restart")}
    opt_states = optimizer.init(params), prior_optimizer.init(prior)
    codebook = generative.make_codebook(codes)
    return State(jnp.zeros([], jnp.int32), key, params, codebook, opt_states[0], prior, opt_states[1], hparams)

  def step(state: State, batch):
    x = to_unit(batch["image"], data.levels)

    def mean_loss(params):
      z = model.encode(params, x)
      found = generative.quantize(z, params["codes"] if moved else state.codebook.codes)
      error = jnp.sum((model.decode(params, found.straight) - x) ** 2, (1, 2, 3))
      loss = error / variance + state.hparams["beta"] * jnp.sum(found.commitment_loss, (1, 2))
      if moved:
        loss = loss + jnp.sum(found.codebook_loss, (1, 2))
      return jnp.mean(loss), (z, found, jnp.mean(error) / x[0].size)

    (loss, (z, found, mse)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    codebook = generative.update_codebook(state.codebook, z, found.index, state.hparams["decay"])
    restarted = jnp.zeros([], jnp.int32)
    if moved:
      codebook = codebook._replace(codes=jnp.copy(params["codes"]))
    else:
      key = stream_key(state.key, "restart", state.step)
      codebook, restarted = generative.restart_codes(key, codebook, z, state.hparams["restart"])

    def prior_loss(prior):
      index, key = found.index.reshape(len(x), -1), stream_key(state.key, "dropout", state.step)
      return jnp.mean(code_nats(model.prior, {"params": prior}, index, batch["label"], True, key))

    nats, prior_grads = jax.value_and_grad(prior_loss)(state.prior)
    updates, prior_opt_state = prior_optimizer.update(prior_grads, state.prior_opt_state, state.prior)
    prior = optax.apply_updates(state.prior, updates)
    metrics = {
      "loss": loss,
      "mse": mse,
      "commitment": jnp.mean(found.commitment_loss),
      "batch_perplexity": generative.compute_perplexity(generative.count_codes(found.index, config.num_codes)),
      "restarted_codes": restarted.astype(jnp.float32),
      "prior_bits_per_code": nats / jnp.log(2.0),
    }
    new = {"params": params, "codebook": codebook, "opt_state": opt_state}
    return state._replace(step=state.step + 1, prior=prior, prior_opt_state=prior_opt_state, **new), metrics

  def embed(state: State, batch):
    state = as_evaluated(state)
    z = model.encode(state.params, to_unit(batch["image"], data.levels))
    index = generative.find_nearest_code(z, state.codebook.codes)
    return {"index": index.reshape(len(z), -1), "mask": batch["mask"]}

  def evaluate(state: State, batch, reference) -> dict[str, Mean]:
    index, state = embed(state, batch)["index"], as_evaluated(state)
    x = to_unit(batch["image"], data.levels)
    error = jnp.mean((model.decode_index(state.params, state.codebook.codes, index) - x) ** 2, (1, 2, 3))
    nats = jnp.mean(code_nats(model.prior, {"params": state.prior}, index, batch["label"]), 1)
    weight = jnp.broadcast_to(reference["mask"][:, None], reference["index"].shape)
    counts = generative.count_codes(reference["index"], config.num_codes, weight)
    return {
      "mse": masked_mean(error, batch["mask"]),
      "prior_bits_per_code": masked_mean(nats / jnp.log(2.0), batch["mask"]),
      "epoch_perplexity": Mean(generative.compute_perplexity(counts), jnp.float32(1)),
    }

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.generative._codes import write_report

    return write_report(trained(state), state, data, config, model.grid, directory)

  trained = lambda state: TrainedVQVAE(model, as_evaluated(state), data.levels)
  return Experiment(init, step, evaluate, report, embed, trained)


def main(config: Config) -> int:
  if config.report_seeds:
    check_images(load_data(config))
  return train(make(config), make_feeds(config), config, best_metric="mse")


if __name__ == "__main__":
  run(main, Config)
