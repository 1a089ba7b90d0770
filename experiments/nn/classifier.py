"""Image classification with any network of the chapter, by flags. Data: digits, MNIST, CIFAR-10, ...

  python -m experiments.nn.classifier                                    # digits, tested on other writers
  python -m experiments.nn.classifier --network=spatial_transformer --distort=rts   # finds and turns them first
  python -m experiments.nn.classifier --dataset=cifar10 --data_dir=DIR --network=resnet20 --optimizer=sgd \
    --learning_rate=.1 --weight_decay=1e-4 --schedule=step --warmup_steps=0 --batch_size=128 --steps=64000

The last is He et al. 2016, section 4.2. Its trained network is what others start from: `load_classifier`.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, Num

from experiments.nn._images import (
  AugmentationName,
  Distortion,
  black,
  centre,
  make_augmentation,
  make_distortion,
  seen_shape,
  to_network,
)
from mlnotes import load_run
from mlnotes.data import DataSet, Feeds
from mlnotes.data.flags import DataConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, example_keys, masked_mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.trained import load_config
from mlnotes.nn.loss import cross_entropy
from mlnotes.nn.networks import NETWORKS, make_network
from mlnotes.nn.spatial_transformer import warp_affine
from mlnotes.optim import ScheduleName, eval_params, update_ema
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer

# Of the test images' distortions: the same in every run.
_TEST_SEED = 0
TRANSFORMER = "spatial_transformer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig, OptimConfig, LoopConfig):
  """Defaults: digits in under a minute on two CPU cores."""

  dataset: str = "digits_halves"
  batch_size: int = 64
  steps: int = 600
  learning_rate: float = 3e-3
  optimizer: OptimizerName = "adamw"
  weight_decay: float = 0.05
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 50
  eval_every: int = 200
  checkpoint_every: int = 200
  report_seeds: int = 8

  network: Literal[tuple(NETWORKS)] = field("small", "which network")
  width: int = field(0, "channels of its first stage, or of its hidden layers; 0: its own")
  norm: Literal["batch", "group", "layer", "none"] = field("batch", "its normalisation")
  dropout: float = field(
    0.0, "in front of the classifier (mlp: after each ReLU, DenseNets: after each convolution), in [0, 1)"
  )
  augmentation: AugmentationName = field(
    "auto",
    "changes of training images: shift (a pixel or two), crop (four pixels, black coming in, mirrored half the time), "
    "crop_reflect (the reflection coming in), none; auto: shift for written characters, crop for others",
  )
  distort: Distortion = field(
    "none", "images on a larger canvas, in training and tests: r turned by up to 90 degrees; rts turned, scaled, moved"
  )
  label_smoothing: float = field(0.0, "share of the target that all classes have in common, in [0, 1)")
  ema_decay: float = field(
    0.0, "of the average of parameters and BatchNorm's statistics that is evaluated, in [0, 1); 0: the last ones are"
  )
  transformer_rate: float = field(
    0.1, "how large the steps of a spatial transformer's theta are, as a share of the others', > 0"
  )

  def __post_init__(self):
    super().__post_init__()
    for name in ("dropout", "label_smoothing", "ema_decay"):
      require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
    require(self.width >= 0, "width", self.width, "0 or more")
    require(self.transformer_rate > 0, "transformer_rate", self.transformer_rate, "a number above 0")

  @property
  def parts_batches(self) -> bool:
    return self.network not in ("small", "mlp")

  def idle_flags(self):
    idle = super().idle_flags()
    if self.network != TRANSFORMER:
      idle["transformer_rate"] = f"--network={self.network} has no spatial transformer"
    return idle


class State(NamedTuple):
  """`average` is the moving average of params and batch_stats; () where the last ones are evaluated."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  batch_stats: chex.ArrayTree
  average: Any
  opt_state: optax.OptState
  hparams: dict[str, Float[Array, ""]]


class Model(NamedTuple):
  """What was trained: images to logits, and to the features that the last layer sees.

  Images are integers as they are stored, or floats on [0, 1], through which it can be differentiated. Where distorted
  images were learned from, those of the data's own size are laid in the middle of the same canvas.
  """

  network: nn.Module
  variables: chex.ArrayTree
  levels: int
  black: float  # what black is on the scale of the network
  canvas: tuple[int, int, int] | None  # of a network that learned from distorted images

  def __call__(self, images: Num[Array, "B H W C"]) -> Float[Array, "B K"]:
    return self._apply(self.network, images)

  def features(self, images: Num[Array, "B H W C"]) -> Float[Array, "B D"]:
    return self._apply(self.network.clone(num_classes=None), images)

  def _apply(self, network: nn.Module, images: Num[Array, "B H W C"]) -> Float[Array, "B D"]:
    if self.canvas and images.shape[1:] != self.canvas:
      images = jax.vmap(lambda image: centre(image, self.canvas))(jnp.asarray(images))
    return _apply(network, self.levels, self.black, self.variables, images)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(network, levels, black, variables, images):
  return network.apply(variables, to_network(images, levels, black), train=False).astype(jnp.float32)


def make_feeds(config: Config) -> Feeds:
  return make_data_feeds(load_data(config), config)


def build_network(config: Config, data: DataSet) -> nn.Module:
  """The network that the flags name, for images like those of `data`. Raises InputError for what cannot be built."""
  shape = seen_shape(config.distort, data.image_shape)
  try:
    network = make_network(
      config.network, data.num_classes, shape, width=config.width, norm=config.norm, dropout=config.dropout,
      dtype=jnp.dtype(config.precision),
    )  # fmt: skip
    if config.network == TRANSFORMER:
      network = network.clone(scale=config.transformer_rate)
    jax.eval_shape(functools.partial(network.init, train=False), root_key(0), jnp.zeros((1, *shape)))
  except InputError:
    raise
  except ValueError as error:
    flags = f"--network={config.network} --width={config.width} --norm={config.norm}"
    raise InputError(f"{flags}: {str(error).rstrip('.')}.") from error
  return network


def thetas(found: Any) -> list[Float[Array, "B 2 3"]]:
  """The transforms that a spatial transformer has sown, none where there is none."""
  leaves = jax.tree_util.tree_leaves_with_path(found.get("intermediates", {}))
  return [leaf for path, leaf in leaves if "theta" in jax.tree_util.keystr(path)]


class Inputs(NamedTuple):
  """Batches as the network sees them, and the degrees that each image was turned by.

  training: (root key, step, batch); test: (batch), always the same; upright: (batch), as test but not distorted.
  """

  training: Callable[..., tuple[Float[Array, "B H W C"], Float[Array, " B"]]]
  test: Callable[..., tuple[Float[Array, "B H W C"], Float[Array, " B"]]]
  upright: Callable[..., Float[Array, "B H W C"]]


def make_inputs(config: Config, data: DataSet) -> Inputs:
  augmentation = make_augmentation(config.augmentation, data)
  distortion = make_distortion(config.distort)
  shape = seen_shape(config.distort, data.image_shape)
  to_unit = lambda batch: batch["image"].astype(jnp.float32) / (data.levels - 1)

  def finish(key, index, image):
    image, degrees = jax.vmap(distortion)(example_keys(key, index), image)
    return to_network(image, data.levels, black(data)), degrees

  def training(root, step, batch):
    image = jax.vmap(augmentation)(example_keys(stream_key(root, "augment", step), batch["index"]), to_unit(batch))
    return finish(stream_key(root, "distort", step), batch["index"], image)

  test = lambda batch: finish(stream_key(root_key(_TEST_SEED), "distort_test"), batch["index"], to_unit(batch))
  placed = lambda batch: jax.vmap(lambda image: centre(image, shape))(to_unit(batch))
  upright = lambda batch: to_network(placed(batch), data.levels, black(data))
  return Inputs(training, test, upright)


def make(config: Config) -> Experiment:
  data = load_data(config)
  network, inputs = build_network(config, data), make_inputs(config, data)
  optimizer = make_optimizer(config, config.steps)
  shape = seen_shape(config.distort, data.image_shape)

  def init(key, batch) -> State:
    variables = network.init(stream_key(key, "init"), jnp.zeros((1, *shape)), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # A copy: parameters and average are updated in place, each its own.
    average = jax.tree.map(jnp.copy, (params, batch_stats)) if config.ema_decay else ()
    hparams = {name: jnp.float32(getattr(config, name)) for name in ("label_smoothing", "ema_decay")}
    return State(jnp.zeros([], jnp.int32), key, params, batch_stats, average, optimizer.init(params), hparams)

  def step(state: State, batch):
    image, _ = inputs.training(state.key, state.step, batch)
    rngs = {"dropout": stream_key(state.key, "dropout", state.step)}

    def mean_loss(params):
      variables = {"params": params, "batch_stats": state.batch_stats}
      logits, updated = network.apply(variables, image, train=True, mutable=["batch_stats"], rngs=rngs)
      logits = logits.astype(jnp.float32)
      losses = cross_entropy(logits, batch["label"], state.hparams["label_smoothing"])
      return jnp.mean(losses), (logits, updated.get("batch_stats", {}))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if config.ema_decay:
      evaluated = (eval_params(opt_state, params), batch_stats)
      average = update_ema(average, evaluated, state.step, state.hparams["ema_decay"])
    accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
    metrics = {"loss": loss, "accuracy": accuracy, "error": 1 - accuracy, "grad_norm": optax.global_norm(grads)}
    new = {"params": params, "batch_stats": batch_stats, "average": average, "opt_state": opt_state}
    return state._replace(step=state.step + 1, **new), metrics

  def variables(state: State):
    params, batch_stats = state.average or (eval_params(state.opt_state, state.params), state.batch_stats)
    return {"params": params, "batch_stats": batch_stats}

  def evaluate(state: State, batch) -> dict[str, Mean]:
    logits = network.apply(variables(state), inputs.test(batch)[0], train=False).astype(jnp.float32)
    right = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
    figures = {"loss": cross_entropy(logits, batch["label"]), "accuracy": right, "error": 1 - right}
    return {name: masked_mean(values, batch["mask"]) for name, values in figures.items()}

  @jax.jit
  def predict(variables, batch):
    image, degrees = inputs.test(batch)
    logits, found = network.apply(variables, image, train=False, mutable=["intermediates"])
    to_unit = lambda image: (image - black(data)) / (1 - black(data))
    out = {"logits": logits.astype(jnp.float32), "image": to_unit(image), "degrees": degrees}
    if theta := thetas(found):
      _, upright = network.apply(variables, inputs.upright(batch), train=False, mutable=["intermediates"])
      out |= {"theta": theta[0], "upright_theta": thetas(upright)[0], "seen": to_unit(warp_affine(image, theta[0]))}
    return out

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.nn._report import write_report

    return write_report(predict, variables(state), data, config, directory)

  canvas = shape if config.distort != "none" else None
  model = lambda state: Model(network, variables(state), data.levels, black(data), canvas)
  return Experiment(init, step, evaluate, report, model=model)


class Trained(NamedTuple):
  """A classifier as others start from it.

  Attributes:
    apply: images, as stored or floats on [0, 1], to logits (B, K).
    features: the same images to what the last layer sees (B, D).
    data: the data set that it was trained on.
    config: the settings that it was trained with.
    model: its network and variables.
  """

  apply: Callable[[Num[Array, "B H W C"]], Float[Array, "B K"]]
  features: Callable[[Num[Array, "B H W C"]], Float[Array, "B D"]]
  data: DataSet
  config: Config
  model: Model


def load_classifier(
  directory: str | Path,
  *,
  seed: int | None = None,
  checkpoint: Literal["last", "best"] = "last",
  data_dir: str = "",
) -> Trained:
  """What a run of this experiment has trained, with the parameters that are evaluated.

    victim = load_classifier(find_stage("victim", config.victim, classifier, workdir))

  Arguments as those of `mlnotes.load_run`. Raises InputError as that does, and for a run of another experiment.
  """
  load_config(Path(directory).expanduser(), {"nn.classifier": Config}, str(directory))
  run = load_run(directory, seed=seed, checkpoint=checkpoint, data_dir=data_dir, experiment="nn.classifier")
  return Trained(run.model, run.model.features, load_data(run.config), run.config, run.model)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="accuracy", best_mode="max")


if __name__ == "__main__":
  run(main, Config)
