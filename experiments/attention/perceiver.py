"""Image classification by a Perceiver: latents that ask all pixels, of which none knows its neighbours but by position.

  python -m experiments.attention.perceiver                              # digits, tested on other writers
  python -m experiments.attention.perceiver --permute=along              # pixels in another order: nothing changes
  python -m experiments.attention.perceiver --permute=alone              # but not where their positions stay behind
  python -m experiments.attention.perceiver --dataset=mnist --data_dir=DIR --latents=32 --bands=14 --steps=4000

Jaegle et al. 2021. Writes latents.png: where on the image each latent looks first.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, Num

from mlnotes.attention import Perceiver, fourier_positions
from mlnotes.data import DataSet, Feeds, augment
from mlnotes.data.flags import DataConfig, load_data, make_feeds as make_data_feeds
from mlnotes.data.floors import floors
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, example_keys, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.nn.loss import cross_entropy
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer

Permute = Literal["none", "along", "alone"]
# Of the order of pixels: the same in every run.
_ORDER_SEED = 0
_EXAMPLES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig, OptimConfig, LoopConfig):
  """Defaults: digits in two minutes on two CPU cores."""

  fills_cores: ClassVar[bool] = False

  dataset: str = "digits_halves"
  batch_size: int = 64
  steps: int = 1000
  learning_rate: float = 3e-3
  optimizer: OptimizerName = "adamw"
  weight_decay: float = 0.05
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0
  latents: int = field(16, "vectors that ask the pixels")
  width: int = field(32, "features of a latent")
  repeats: int = field(2, "how often they ask; from the second time on by the same weights")
  depth: int = field(2, "layers in which they ask each other, after each time")
  heads: int = field(4, "heads of these layers, a divisor of --width")
  bands: int = field(4, "frequencies of the positions, from 1 up to half the pixels of a side")
  dropout: float = field(0.0, "of what each of these layers adds, in [0, 1)")
  shift: int = field(1, "training images are moved by up to so many pixels each way")
  permute: Permute = field(
    "none", "pixels in another order, the same for all images: along with their positions, or alone"
  )

  def __post_init__(self):
    super().__post_init__()
    for name in ("latents", "width", "repeats", "depth", "heads", "bands"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of --width={self.width}")
    require(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
    require(self.shift >= 0, "shift", self.shift, "0 or more")


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState


class Pixels(NamedTuple):
  """How images become what the latents ask.

  order:      (S,) the pixel that stands at each place of the sequence.
  positions:  (S, P) the features of the position that it is said to have.
  levels:     values of a stored pixel are 0 .. levels - 1.
  """

  order: Int[np.ndarray, " S"]
  positions: Float[np.ndarray, "S P"]
  levels: int

  def __call__(self, images: Num[Array, "B H W C"]) -> Float[Array, "B S F"]:
    """Integers as they are stored, or floats on [0, 1], to pixels on [-1, 1] with their positions."""
    images = jnp.asarray(images)
    unit = images if jnp.issubdtype(images.dtype, jnp.floating) else images.astype(jnp.float32) / (self.levels - 1)
    values = (2 * unit - 1).reshape(len(images), -1, images.shape[-1])[:, self.order]
    positions = jnp.broadcast_to(self.positions[None], (*values.shape[:2], self.positions.shape[-1]))
    return jnp.concatenate([values, positions.astype(values.dtype)], -1)

  def to_image(self, sequence: Float[np.ndarray, "... S"], shape: tuple[int, int]) -> Float[np.ndarray, "... H W"]:
    """What belongs to the pixels of a sequence, where these stand in the image."""
    out = np.empty_like(sequence)
    out[..., self.order] = sequence
    return out.reshape(*sequence.shape[:-1], *shape)


class Model(NamedTuple):
  """Images, as stored or on [0, 1], to logits, and to the weights by which the latents first ask the pixels."""

  network: Perceiver
  params: Any
  pixels: Pixels

  def __call__(self, images: Num[Array, "B H W C"]) -> Float[Array, "B K"]:
    return _logits(self.network, self.params, self.pixels(images))

  def looks(self, images: Num[Array, "B H W C"]) -> Float[Array, "B N H W"]:
    """Where each of the N latents looks the first time; over the pixels these weights sum to 1."""
    weights = _first_weights(self.network, self.params, self.pixels(images))
    return self.pixels.to_image(np.asarray(weights[:, 0], np.float32), images.shape[1:3])


@functools.partial(jax.jit, static_argnums=0)
def _logits(network, params, sequence):
  return network.apply({"params": params}, sequence).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _first_weights(network, params, sequence):
  _, found = network.apply({"params": params}, sequence, mutable=["weights"])
  return found["weights"]["cross0"]["attention"]["weights"][0]


def make_pixels(config: Config, data: DataSet) -> Pixels:
  height, width, _ = data.image_shape
  natural = np.arange(height * width)
  order = natural if config.permute == "none" else np.random.default_rng(_ORDER_SEED).permutation(natural)
  positions = fourier_positions((height, width), config.bands)
  return Pixels(order, positions[order] if config.permute == "along" else positions, data.levels)


def make_feeds(config: Config) -> Feeds:
  return make_data_feeds(load_data(config), config)


def make(config: Config) -> Experiment:
  data = load_data(config)
  pixels = make_pixels(config, data)
  network = Perceiver(
    data.num_classes, config.latents, config.width, config.repeats, config.depth, config.heads,
    dropout=config.dropout, dtype=jnp.dtype(config.precision),
  )  # fmt: skip
  optimizer = make_optimizer(config, config.steps)
  move = augment.random_translation(config.shift)

  def init(key, batch) -> State:
    params = network.init(stream_key(key, "init"), pixels(jnp.zeros((1, *data.image_shape))))["params"]
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def step(state: State, batch):
    unit = batch["image"].astype(jnp.float32) / (data.levels - 1)
    image = jax.vmap(move)(example_keys(stream_key(state.key, "augment", state.step), batch["index"]), unit)
    rngs = {"dropout": stream_key(state.key, "dropout", state.step)}

    def mean_loss(params):
      logits = network.apply({"params": params}, pixels(image), train=True, rngs=rngs).astype(jnp.float32)
      return jnp.mean(cross_entropy(logits, batch["label"])), jnp.mean(jnp.argmax(logits, -1) == batch["label"])

    (loss, accuracy), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss, "accuracy": accuracy, "grad_norm": optax.global_norm(grads)}
    return State(state.step + 1, state.key, params, opt_state), metrics

  trained = lambda state: Model(network, eval_params(state.opt_state, state.params), pixels)

  def evaluate(state: State, batch):
    logits = trained(state)(batch["image"])
    right = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
    figures = {"loss": cross_entropy(logits, batch["label"]), "accuracy": right}
    return {name: masked_mean(values, batch["mask"]) for name, values in figures.items()}

  def report(state: State, directory: Path) -> dict[str, float]:
    model = trained(state)
    batch = data.test.read(np.arange(min(256, len(data.test))))
    draw_looks(model, batch["image"], batch["label"], data.levels, directory / "latents.png")
    return floors(data)

  return Experiment(init, step, evaluate, report, model=trained)


def draw_looks(
  model: Model, images: Num[np.ndarray, "B H W C"], labels: Int[np.ndarray, " B"], levels: int, path: Path
) -> None:
  """Where the latents look the first time: above the mean over the images, below in some of them, one of a class."""
  from mlnotes.engine.plot import new_figure, save_figure, show_images

  looks = model.looks(images)
  mean = looks.mean(0)
  # Those that look at different places first: the others are much like them.
  order = spread(mean)[:8]
  _, first = np.unique(labels, return_index=True)
  shown = np.sort(first)[:_EXAMPLES]
  columns, rows = len(order) + 1, len(shown) + 1
  figure, axes = new_figure(rows, columns, width=1.15 * columns, height=1.2 * rows + 0.9)
  pictures = np.concatenate([images.mean(0)[None], images[shown]]) / (levels - 1)
  for row, (picture, maps) in enumerate(zip(pictures, [mean, *looks[shown]])):
    show_images(axes[row, 0], picture[None], 1)
    axes[row, 0].set_ylabel(f"mean of {len(images)}" if row == 0 else "one image", fontsize=8)
    for column, latent in enumerate(order, 1):
      axis = axes[row, column]
      axis.imshow(maps[latent], cmap="magma", vmin=0, vmax=maps[latent].max(), interpolation="nearest")
      axis.set_xticks([])
      axis.set_yticks([])
      if row == 0:
        axis.set_title(f"latent {latent + 1}", fontsize=8)
  axes[0, 0].set_title("images", fontsize=8)
  figure.suptitle(
    f"where {len(order)} of {len(mean)} latents look first, the brightest the most; each map by itself", fontsize=10
  )
  save_figure(figure, path)


def spread(maps: Float[np.ndarray, "N H W"]) -> Int[np.ndarray, " N"]:
  """An order of maps in which each is the one farthest from all before it, the most uneven one first."""
  flat = maps.reshape(len(maps), -1)
  order = [int(np.argmax(flat.std(1)))]
  nearest = np.linalg.norm(flat - flat[order[0]], axis=1)
  while len(order) < len(flat):
    nearest[order] = -1
    order.append(int(np.argmax(nearest)))
    nearest = np.minimum(nearest, np.linalg.norm(flat - flat[order[-1]], axis=1))
  return np.array(order)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="accuracy", best_mode="max")


if __name__ == "__main__":
  run(main, Config)
