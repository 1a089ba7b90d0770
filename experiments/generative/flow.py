"""Normalizing flows: NICE, RealNVP and Glow, of images in grey levels or of the plane. Data: digits, MNIST, moons, ...

  python -m experiments.generative.flow                                  # RealNVP of digits, bits per dimension
  python -m experiments.generative.flow --flow=glow --couplings=6
  python -m experiments.generative.flow --flow=nice --width=256
  python -m experiments.generative.flow --points=moons                   # a density of the plane that is known exactly
  python -m experiments.generative.flow --dataset=mnist --data_dir=DIR --alpha=1e-6 --steps=4000

Dinh et al. 2015 and 2017, Kingma & Dhariwal 2018. Bits per dimension are those of dequantised levels, with noise that
each test image keeps; beside them stand what histograms of single pixels and one normal give without any network.
"""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.generative._judging import MIN_SAMPLES, check_images
from mlnotes.data import DataSet, Feeds, make_drawn_eval, make_drawn_feed
from mlnotes.data.flags import DataConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, example_keys, masked_mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.generative.flow import dequantize
from mlnotes.generative.flow_networks import ARCHITECTURES, FlowModel, FlowSizes, TrainedFlow
from mlnotes.generative.plane import PLANES
from mlnotes.optim import ScheduleName, eval_params, update_ema
from mlnotes.optim.flags import OptimConfig, make_optimizer

_TEST_SEED = 0
_PLANE_TEST_POINTS = 2000
# What suits a density of the plane where no other is asked for.
_PLANE = dict(steps=4000, batch_size=256, width=64, depth=2, eval_every=1000, checkpoint_every=1000, log_every=100)
# Of each flow: the couplings where no number is asked for, of images and of the plane.
COUPLINGS = {"nice": (4, 8), "realnvp": (3, 8), "glow": (4, 8)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig, OptimConfig, LoopConfig):
  """Defaults: RealNVP of digits in a few minutes on two CPU cores."""

  steps: int = 600
  batch_size: int = 64
  learning_rate: float = 2e-3
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 50.0
  eval_every: int = 200
  checkpoint_every: int = 200

  flow: Literal["nice", "realnvp", "glow"] = field("realnvp", "which bijections")
  points: Literal["none", "moons", "rings", "grid"] = field(
    "none", "learn this density of the plane, which is known exactly, in the place of images"
  )
  couplings: int = field(
    0, "of nice all of them, of realnvp checkerboards and halves of channels a level, of glow steps a level; 0: 3 or 4 "
    "of images, 8 of the plane"
  )  # fmt: skip
  width: int = field(32, "channels of a coupling's network, or units of a layer")
  depth: int = field(1, "residual blocks of a coupling's network, or layers")
  levels: int = field(0, "of realnvp and glow of images: how often they are squeezed; 0: as often as they can be")
  alpha: float = field(0.05, "of the logit that images go through, below 0.5; 0: none, the flow begins on [0, 1]")
  base: Literal["auto", "normal", "logistic"] = field("auto", "density of z; auto: logistic of nice, normal of others")
  data_start: bool = field(
    True, "actnorms (realnvp, glow) or the last scale (nice) that start from the first batch; otherwise no actnorms, "
    "and a last scale of 1"
  )  # fmt: skip
  ema_decay: float = field(0.995, "of the average of the parameters that is evaluated and sampled, in [0, 1)")

  temperature: float = field(0.8, "factor of z in the samples, above 0", free="pictures")
  quality_samples: int = field(
    0, "samples that are judged, 4 or more; 0: as many as test images, at most 1000", free="report"
  )

  @classmethod
  def tuned(cls, **given):
    """The plane has little to compute and much to bend."""
    return cls(**{**(_PLANE if given.get("points", "none") != "none" else {}), **given})

  def __post_init__(self):
    super().__post_init__()
    for name in ("width", "depth"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("couplings", "levels"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    require(0 <= self.alpha < 0.5, "alpha", self.alpha, "a number in [0, 0.5)")
    require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "a number in [0, 1)")
    require(self.temperature > 0, "temperature", self.temperature, "a number above 0")
    count = self.quality_samples
    require(count == 0 or count >= MIN_SAMPLES, "quality_samples", count, f"0, or {MIN_SAMPLES} or more")

  def idle_flags(self):
    idle = super().idle_flags()
    if self.points != "none":
      why = f"--points={self.points} is no data set of images"
      names = ("dataset", "data_dir", "train_split", "test_split", "image_size", "data_placement", "eval_examples",
               "levels", "alpha", "quality_samples", "temperature")  # fmt: skip
      idle |= dict.fromkeys(names, why)
    elif self.flow == "nice":
      idle["levels"] = "--flow=nice has none: it takes an image as a vector"
    if self.report_seeds == 0:
      idle |= dict.fromkeys(("temperature", "quality_samples"), "--report_seeds=0 draws no samples")
    return idle


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  fixed: chex.ArrayTree  # what stays as it was drawn: the order of rows in a 1 x 1 convolution
  ema: chex.ArrayTree
  opt_state: optax.OptState
  hparams: dict[str, Float[Array, ""]]


def make_feeds(config: Config) -> Feeds:
  if config.points == "none":
    return make_data_feeds(load_data(config), config)
  density = PLANES[config.points]()
  draw = lambda key, _: {"x": density.draw(key)}
  return Feeds(
    make_drawn_feed(draw, (), config.batch_size, "points"),
    make_drawn_eval(draw, (), _TEST_SEED, _PLANE_TEST_POINTS, config.batch_size),
    split="test",
  )


def make_model(config: Config, data: DataSet | None) -> FlowModel:
  """The density that the flags describe: of images like those of `data`, or of the plane where there are none."""
  shape = data.image_shape if data else (2,)
  couplings = config.couplings or COUPLINGS[config.flow][data is None]
  sizes = FlowSizes(couplings, config.width, config.depth, config.levels, jnp.dtype(config.precision))
  try:
    network = ARCHITECTURES[config.flow](shape, sizes, from_data=config.data_start)
  except InputError as error:
    said = f"--flow={config.flow} --levels={config.levels}: {error}"
    raise InputError(f"{said} --flow=nice takes any size, --image_size makes another one.") from error
  base = {"auto": "logistic" if config.flow == "nice" else "normal"}.get(config.base, config.base)
  return FlowModel(network, shape, data.levels if data else 0, base, config.alpha if data else 0.0)


def draw_noise(key: Key[Array, ""], index: Int[Array, " B"], shape: tuple[int, ...]) -> Float[Array, "B *shape"]:
  """Of dequantisation, on [0, 1): the same for an image in every evaluation."""
  return jax.vmap(lambda own: jax.random.uniform(own, shape))(example_keys(key, index))


def make(config: Config) -> Experiment:
  data = load_data(config) if config.points == "none" else None
  model = make_model(config, data)
  optimizer = make_optimizer(config, config.steps)

  def to_points(batch, noise):
    return batch["x"] if data is None else dequantize(batch["image"], noise, model.num_levels)

  def losses(params, fixed, batch, noise):
    """Nats of points of the plane, bits per dimension of images."""
    variables = {"params": params, **fixed}
    if data is None:
      return -model.log_density(variables, batch["x"])
    return model.bits_per_dim(variables, batch["image"], noise)

  def batch_noise(state, batch):
    if data is None:
      return None
    return jax.random.uniform(stream_key(state.key, "dequantize", state.step), batch["image"].shape)

  def init(key, batch) -> State:
    noise = None if data is None else jax.random.uniform(stream_key(key, "first"), batch["image"].shape)
    fixed = dict(model.init(stream_key(key, "init"), to_points(batch, noise)))
    params = fixed.pop("params")
    hparams = {"ema_decay": jnp.float32(config.ema_decay)}
    # A copy: parameters and average are updated in place, each its own.
    ema = jax.tree.map(jnp.copy, params)
    return State(jnp.zeros([], jnp.int32), key, params, fixed, ema, optimizer.init(params), hparams)

  def step(state: State, batch):
    mean_loss = lambda params: jnp.mean(losses(params, state.fixed, batch, batch_noise(state, batch)))
    value, grads = jax.value_and_grad(mean_loss)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = update_ema(state.ema, eval_params(opt_state, params), state.step, state.hparams["ema_decay"])
    metrics = {"loss": value, "grad_norm": optax.global_norm(grads)}
    return state._replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), metrics

  def evaluate(state: State, batch) -> dict[str, Mean]:
    noise = None
    if data is not None:
      noise = draw_noise(stream_key(state.key, "evaluate"), batch["index"], model.shape)
    found = masked_mean(losses(state.ema, state.fixed, batch, noise), batch["mask"])
    return {"loss": found, ("nll" if data is None else "bits_per_dim"): found}

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.generative._flow_report import report_images, report_plane

    trained, key = TrainedFlow(model, {"params": state.ema, **state.fixed}), stream_key(state.key, "report")
    if data is None:
      return report_plane(trained, key, PLANES[config.points](), evaluated_points(config.points), directory)
    return report_images(trained, key, data, config, directory)

  as_model = lambda state: TrainedFlow(model, {"params": state.ema, **state.fixed})
  return Experiment(init, step, evaluate, report, model=as_model)


def evaluated_points(name: str, count: int = _PLANE_TEST_POINTS) -> Float[Array, "N 2"]:
  """The points of the plane that are evaluated."""
  keys = example_keys(root_key(_TEST_SEED), jnp.arange(count, dtype=jnp.int32))
  return jax.vmap(PLANES[name]().draw)(keys)


def main(config: Config) -> int:
  if config.points == "none" and config.report_seeds:
    check_images(load_data(config))
  best = "bits_per_dim" if config.points == "none" else "nll"
  return train(make(config), make_feeds(config), config, best_metric=best)


if __name__ == "__main__":
  run(main, Config)
