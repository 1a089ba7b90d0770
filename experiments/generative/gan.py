"""Generative adversarial networks: two players, any of their losses and regularisers. Data: images, rings, grids.

  python -m experiments.generative.gan                                   # DCGAN on digits
  python -m experiments.generative.gan --dataset=ring --seeds=5          # eight modes in the plane
  python -m experiments.generative.gan --dataset=ring --loss=wasserstein --regularizer=gradient_penalty \\
    --critic_steps=5 --momentum=0 --beta2=0.9
  python -m experiments.generative.gan --dataset=mnist --data_dir=DIR --conditional=projection --regularizer=spectral \\
    --loss=hinge

Goodfellow et al. 2014 and what followed: see `mlnotes.generative.gan`. An update of the loop is `--critic_steps`
updates of the discriminator, each on examples of its own, then one of the generator.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from experiments.generative._judging import MIN_SAMPLES, check_images
from mlnotes import generative
from mlnotes.data import Feeds, make_drawn_eval, make_drawn_feed
from mlnotes.data.flags import DataConfig, load_data, make_feeds as make_data_feeds
from mlnotes.diffusion.process import to_signed
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, example_keys, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.generative.game import (
  Game,
  Player,
  apply_player,
  draw_noise,
  init_player,
  judge,
  update_discriminator,
  update_generator,
)
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, make_optimizer

POINTS = {"ring": generative.make_ring, "grid": generative.make_grid, "moons": generative.make_moons}
_TEST_POINTS, _TEST_SEED = 1024, 0
# EBGAN's margin on MNIST is 10; a distance grows as the root of the number of pixels.
_MARGIN, _MARGIN_NUMBERS = 10.0, 784
_THRESHOLDS = {"minimax": 0.0, "non_saturating": 0.0, "hinge": 0.0, "least_squares": 0.5}
_HPARAMS = (
  "penalty_weight", "clip_bound", "spectral_bound", "auxiliary_weight", "pull_away", "ema_decay", "discriminator_ema",
  "discriminator_rate", "balance", "margin",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig, OptimConfig, LoopConfig):
  """Defaults: digits in a few minutes on two CPU cores."""

  steps: int = 3000
  batch_size: int = field(64, "examples per update of the discriminator, over all devices", refines=True)
  dataset: str = field(
    "digits",
    "digits (built in; digits_halves: tested on other writers), sprites (built in, drawn), a file.npz with image and "
    "label, a folder of class folders, the name of a TFDS set, or points in the plane that are drawn anew: ring, grid, "
    "moons",
    refines=True,
  )
  eval_examples: int = 512
  learning_rate: float = 5e-4
  momentum: float = 0.5
  schedule: ScheduleName = "constant"
  log_every: int = 50
  eval_every: int = 500
  checkpoint_every: int = 1000

  loss: Literal["minimax", "non_saturating", "wasserstein", "hinge", "least_squares", "energy"] = field(
    "non_saturating", "what the players pay; energy: EBGAN, whose discriminator is an auto-encoder"
  )
  regularizer: generative.Regularizer = field(
    "none", "of the discriminator: clipped weights, a gradient penalty, R1, or kernels of spectral norm 1"
  )
  penalty_weight: float = field(10.0, "weight of --regularizer=gradient_penalty and r1, > 0")
  clip_bound: float = field(0.01, "weights of --regularizer=clip stay within this, > 0")
  spectral_bound: float = field(1.0, "spectral norm of each kernel of --regularizer=spectral, > 0; 1 is the paper's")
  conditional: generative.Conditional = field("none", "how the class label enters: see mlnotes.generative.gan_networks")
  auxiliary_weight: float = field(1.0, "weight of the class loss of --conditional=auxiliary, >= 0")
  margin: float = field(0.0, "energy that --loss=energy asks of generated examples; 0: 10 times the root of pixels/784")
  pull_away: float = field(0.1, "weight of the term of --loss=energy against examples that resemble each other, >= 0")

  critic_steps: int = field(1, "updates of the discriminator before each of the generator")
  balance: float = field(
    1.0, "share of a batch told apart above which the discriminator waits for the generator, in (0.5, 1]; 1: never"
  )
  discriminator_rate: float = field(1.0, "times --learning_rate for the discriminator, > 0")
  discriminator_ema: float = field(
    0.0, "the generator learns from this average of the discriminator, in [0, 1); 0: from itself"
  )
  ema_decay: float = field(0.999, "of the average of the generator that is evaluated and sampled, in [0, 1)")

  network: Literal["auto", "dcgan", "mlp"] = field("auto", "both players; auto: dcgan for images, mlp for points")
  norm: Literal["auto", "batch", "layer", "none"] = field(
    "auto", "in the discriminator; auto: batch in dcgan unless a regularizer other than clip forbids or replaces it"
  )
  width: int = field(0, "channels of dcgan's first level, features of an mlp's layers; 0: 32 and 128")
  latent: int = field(0, "numbers of noise per example; 0: 32, of points 4")
  deviation: float = field(0.0, "standard deviation of each mode of drawn points; 0: 0.1, of the grid 0.05")
  quality_samples: int = field(
    0, "samples per figure of quality, 4 or more; 0: as many as test images, at most 1000; 2000 points", free="report"
  )

  def __post_init__(self):
    super().__post_init__()
    for name in ("penalty_weight", "clip_bound", "spectral_bound", "discriminator_rate"):
      require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
    for name in ("auxiliary_weight", "pull_away", "margin", "width", "latent", "deviation"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    require(self.critic_steps >= 1, "critic_steps", self.critic_steps, "1 or more")
    for name in ("ema_decay", "discriminator_ema"):
      require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
    require(0.5 < self.balance <= 1, "balance", self.balance, "a number in (0.5, 1]")
    told = self.loss in _THRESHOLDS
    require(told or self.balance == 1, "balance", self.balance, f"1 with --loss={self.loss}, whose scores name no side")
    count = self.quality_samples
    require(count == 0 or count >= MIN_SAMPLES, "quality_samples", count, f"0, or {MIN_SAMPLES} or more")
    if self.regularizer in ("gradient_penalty", "r1"):
      said = f"layer or none: --regularizer={self.regularizer} is of each example alone"
      require(self.norm != "batch", "norm", self.norm, said)
    if self.points or self.network == "mlp":
      require(self.norm != "batch", "norm", self.norm, "layer or none for the fully connected players")
    if self.points:
      require(self.network != "dcgan", "network", self.network, f"mlp for --dataset={self.dataset}")
    if self.loss == "energy":
      said = "none with --loss=energy, whose discriminator is an auto-encoder"
      require(self.conditional == "none", "conditional", self.conditional, said)
      require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more to pull apart")

  @property
  def points(self) -> bool:
    """Whether the data are points in the plane."""
    return self.dataset in POINTS

  @property
  def fills_cores(self) -> bool:
    return not self.points

  @property
  def units_per_update(self) -> int:
    return self.batch_size * self.critic_steps

  @property
  def noise(self) -> int:
    return self.latent or (4 if self.points else 32)

  @property
  def networks(self) -> str:
    return self.network if self.network != "auto" else "mlp" if self.points else "dcgan"

  @property
  def discriminator_norm(self) -> str:
    if self.norm != "auto":
      return self.norm
    return "batch" if self.networks == "dcgan" and self.regularizer in ("none", "clip") else "none"

  def idle_flags(self):
    idle = {} if self.points else super().idle_flags()
    if self.points:
      names = ("data_dir", "train_split", "test_split", "image_size", "data_placement")
      idle |= OptimConfig.idle_flags(self) | dict.fromkeys(names, f"--dataset={self.dataset} is drawn")
    else:
      idle["deviation"] = f"--dataset={self.dataset} is not drawn"
    if self.regularizer not in ("gradient_penalty", "r1"):
      idle["penalty_weight"] = f"--regularizer={self.regularizer} is no penalty"
    if self.regularizer != "clip":
      idle["clip_bound"] = f"--regularizer={self.regularizer} clips nothing"
    if self.regularizer != "spectral":
      idle["spectral_bound"] = f"--regularizer={self.regularizer} normalises no kernel"
    if self.conditional != "auxiliary":
      idle["auxiliary_weight"] = f"--conditional={self.conditional} says no classes"
    if self.loss != "energy":
      idle |= dict.fromkeys(("margin", "pull_away"), f"--loss={self.loss} is no energy")
    else:
      idle["norm"] = "--loss=energy has an auto-encoder without norms"
    if self.report_seeds == 0:
      idle["quality_samples"] = "--report_seeds=0 draws no samples"
    return idle


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  generator: Player
  discriminator: Player
  hparams: dict[str, Float[Array, ""]]


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["network", "latent", "num_classes"]
)
@dataclasses.dataclass(frozen=True)
class TrainedGenerator:
  """The generator with its averaged parameters, as `mlnotes.load_run` gives it."""

  network: object
  variables: object
  latent: int
  num_classes: int | None

  def __call__(self, z: Float[Array, "B Z"], label: Int[Array, " B"] | None = None) -> Float[Array, "B *shape"]:
    """Examples on [-1, 1] (points as they are) of this noise, standard normal, and of these classes."""
    label = label if self.num_classes else None
    return apply_player(self.network, self.variables["params"], self.variables["batch_stats"], z, label, False)[0]

  def sample(self, key: Key[Array, ""], count: int, label: Int[Array, " B"] | None = None) -> Float[Array, "B *shape"]:
    return self(draw_noise(key, count, self.latent), label)


class World(NamedTuple):
  """What is to be generated: `data` are a `DataSet`, or None for points of `mixture`."""

  data: object
  mixture: generative.PointMixture | None
  shape: tuple[int, ...]
  num_classes: int

  def examples(self, batch) -> Float[Array, "B *shape"]:
    """Points, or images on [-1, 1]."""
    return batch["x"] if self.mixture else to_signed(batch["image"], self.data.levels)


@functools.cache
def make_mixture(dataset: str, deviation: float) -> generative.PointMixture:
  return POINTS[dataset](**({"deviation": deviation} if deviation else {}))


def make_world(config: Config) -> World:
  if config.points:
    mixture = make_mixture(config.dataset, config.deviation)
    return World(None, mixture, (2,), mixture.num_modes)
  data = load_data(config)
  return World(data, None, data.image_shape, data.num_classes)


def make_feeds(config: Config) -> Feeds:
  """Training examples for all the discriminator's updates of a step; the test split twice: its parts, and the whole."""
  of_step = dataclasses.replace(config, batch_size=config.units_per_update)
  if not config.points:
    data = load_data(config)
    if config.batch_size <= len(data.train):
      most = len(data.train) // config.batch_size
      said = f"at most {most}: each has --batch_size={config.batch_size} of {len(data.train)} examples to itself"
      require(config.critic_steps <= most, "critic_steps", config.critic_steps, said)
    feeds = make_data_feeds(data, of_step)
    return feeds._replace(reference=feeds.evaluate)
  mixture = make_mixture(config.dataset, config.deviation)

  def draw_one(key, arrays):
    point, mode = generative.draw_point(key, mixture)
    return {"x": point, "label": mode}

  size = min(of_step.batch_size, _TEST_POINTS)
  evaluate = make_drawn_eval(draw_one, (), _TEST_SEED, config.eval_examples or _TEST_POINTS, size)
  return Feeds(make_drawn_feed(draw_one, (), of_step.batch_size), evaluate, reference=evaluate)


def make_game(config: Config, world: World) -> Game:
  dtype = jnp.dtype(config.precision)
  labelled = world.num_classes if config.conditional != "none" else None
  told = dict(
    num_classes=world.num_classes, conditional=config.conditional, norm=config.discriminator_norm, dtype=dtype
  )
  if config.networks == "mlp":
    width = config.width or 128
    bounded = world.mixture is None
    generator = generative.MlpGenerator(world.shape, width, num_classes=labelled, bounded=bounded, dtype=dtype)
    discriminator = generative.MlpDiscriminator(width, **told)
  else:
    width = config.width or 32
    generator = generative.DcganGenerator(world.shape, width, num_classes=labelled, dtype=dtype)
    discriminator = generative.DcganDiscriminator(width, **told)
  if config.loss == "energy":
    discriminator = generative.AutoencoderDiscriminator(width, dtype=dtype)
    make_loss = lambda hparams: generative.make_energy_based(hparams["margin"])
  else:
    make_loss = lambda hparams: generative.LOSSES[config.loss]
  return Game(
    generator=generator,
    discriminator=discriminator,
    generator_optimizer=make_optimizer(config, config.steps),
    discriminator_optimizer=make_optimizer(config, config.steps, per_step=config.critic_steps),
    make_loss=make_loss,
    regularizer=config.regularizer,
    latent=config.noise,
    threshold=_THRESHOLDS.get(config.loss),
    conditional=config.conditional != "none",
    auxiliary=config.conditional == "auxiliary",
    energy=config.loss == "energy",
    averaged=config.discriminator_ema > 0,
  )


def make(config: Config) -> Experiment:
  world = make_world(config)
  game = make_game(config, world)
  margin = config.margin or _MARGIN * (np.prod(world.shape) / _MARGIN_NUMBERS) ** 0.5

  def init(key, batch) -> State:
    real = world.examples(batch)[:2]
    label = batch["label"][:2] if game.conditional else None
    noise = jnp.zeros((len(real), config.noise))
    of = lambda name: stream_key(key, name)
    spectral = config.regularizer == "spectral"
    generator = init_player(game.generator, game.generator_optimizer, of("generator"), noise, label, False)
    discriminator = init_player(
      game.discriminator, game.discriminator_optimizer, of("discriminator"), real, label, spectral
    )
    hparams = {name: jnp.float32(margin if name == "margin" else getattr(config, name)) for name in _HPARAMS}
    return State(jnp.zeros([], jnp.int32), key, generator, discriminator, hparams)

  def step(state: State, batch):
    real, label = world.examples(batch), batch["label"]
    parts = lambda x: x.reshape(config.critic_steps, -1, *x.shape[1:])
    key = stream_key(state.key, "discriminator", state.step)

    def update(discriminator, inputs):
      number, real, label = inputs
      return update_discriminator(
        game, discriminator, state.generator, real, label, jax.random.fold_in(key, number), state.step, state.hparams
      )

    rounds = (jnp.arange(config.critic_steps), parts(real), parts(label))
    discriminator, metrics = jax.lax.scan(update, state.discriminator, rounds)
    key = stream_key(state.key, "generator", state.step)
    labels = parts(label)[-1]
    generator, more, fake = update_generator(
      game, state.generator, discriminator, labels, key, state.step, state.hparams
    )
    metrics = {**jax.tree.map(jnp.mean, metrics), **more}
    if world.mixture:
      modes = generative.find_modes(fake, world.mixture)
      caught = jnp.any(modes[:, None] == jnp.arange(world.num_classes)[None], axis=0)
      metrics |= {"modes_in_batch": jnp.sum(caught.astype(jnp.float32)), "on_mode": jnp.mean(modes >= 0)}
    return state._replace(step=state.step + 1, generator=generator, discriminator=discriminator), metrics

  def generate(state: State, batch):
    keys = example_keys(stream_key(state.key, "evaluate"), batch["index"])
    noise = jax.vmap(lambda key: draw_noise(key, 1, config.noise)[0])(keys)
    return TrainedGenerator(game.generator, state.generator.average, config.noise, game.conditional or None)(
      noise, batch["label"]
    )

  def embed(state: State, batch):
    flat = lambda x: x.reshape(len(x), -1)
    examples = {"real": flat(world.examples(batch)), "fake": flat(generate(state, batch))}
    return {**examples, "index": batch["index"], "mask": batch["mask"]}

  def tell(state: State, x, label):
    """The discriminator's verdict as it is evaluated."""
    player = state.discriminator
    return judge(game, player, eval_params(player.opt_state, player.params), state.hparams, x, label, train=False)

  def evaluate(state: State, batch, reference) -> dict[str, Mean]:
    own, mask = embed(state, batch), batch["mask"]
    hits = [
      generative.nearest_is_own(
        own[name], own["index"], reference[name], reference["index"], reference[other], reference["mask"]
      )
      for name, other in (("real", "fake"), ("fake", "real"))
    ]
    metrics = {"nearest_neighbor_accuracy": masked_mean((hits[0] + hits[1]) / 2, mask)}
    for name in ("real", "fake"):
      x = own[name].reshape(-1, *world.shape)
      label = batch["label"] if game.conditional else None
      verdict = tell(state, x, label)
      metrics[f"{name}_score"] = masked_mean(verdict.score, mask)
    if world.mixture:
      on_mode = generative.find_modes(own["fake"], world.mixture) >= 0
      metrics["on_mode"] = masked_mean(on_mode.astype(jnp.float32), mask)
    return metrics

  def trained(state: State) -> TrainedGenerator:
    num_classes = world.num_classes if game.conditional else None
    return TrainedGenerator(game.generator, state.generator.average, config.noise, num_classes)

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.generative._gan_report import report_images, report_points

    score = jax.jit(lambda x, label: tell(state, x, label).score)
    write = report_points if world.mixture else report_images
    return write(trained(state), score, stream_key(state.key, "report"), world, config, directory)

  return Experiment(init, step, evaluate, report, embed=embed, model=trained)


def main(config: Config) -> int:
  if config.report_seeds and not config.points:
    check_images(load_data(config))
  return train(make(config), make_feeds(config), config, best_metric="nearest_neighbor_accuracy")


if __name__ == "__main__":
  run(main, Config)
