"""What every experiment of this chapter shares: its flags, views, the update, evaluation by neighbours.

method = Method(init, loss, embed, num_views=2, hparams={"temperature": config.temperature})
return make_pretraining(method, data, config)
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mlnotes.contrastive.knn import choose_k, knn_votes, score_votes
from mlnotes.contrastive.method import (
  Method,
  State,
  embedding_metrics,
  make_views,
  to_network,
  to_unit,
)
from mlnotes.contrastive.metrics import embedding_spread, participation_ratio
from mlnotes.data import DataSet, Feeds, augment, make_eval_batches
from mlnotes.data.dataset import is_written
from mlnotes.data.flags import DataConfig, load_data, make_feeds as make_data_feeds
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, masked_mean, stream_key
from mlnotes.engine.flags import BaseConfig, field
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.nn import BatchNorm, ConvNet, ResNet18, ResNet34, ResNet50
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, make_optimizer

_RESNETS = {"resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}
AugmentationName: TypeAlias = Literal["auto", "digits", "grey", "simclr", "moco_v1", "moco_v2", "crop", "none"]
# Images up to this many pixels a side get the stem and the colours of CIFAR, larger ones those of ImageNet.
_LARGEST_SMALL_IMAGE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(DataConfig, OptimConfig, LoopConfig):
  """The flags of every experiment that learns features without labels."""

  batch_size: int = 128
  learning_rate: float = 3e-3
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 50
  steps: int = 400
  eval_every: int = 100
  checkpoint_every: int = 200
  report_seeds: int = 8

  encoder: Literal["small", "resnet18", "resnet34", "resnet50"] = field(
    "small", "small: a few convolutions for images of 8 to 40 pixels"
  )
  width: int = field(0, "channels of the encoder's first convolution; 0: 32 for small, 64 for ResNets")
  augmentation: AugmentationName = field(
    "auto",
    "how views are made; simclr is at half strength up to 64 pixels; auto: simclr for colour, grey for grey images, "
    "digits for data sets of the name mnist, emnist, kmnist, usps and such",
  )
  projection: int = field(128, "length of the embedding that the loss sees")
  knn_k: int = field(200, "neighbours that vote in the kNN monitor, or a tenth of the images searched if that is less")
  knn_temperature: float = field(0.1, "of the votes, > 0")
  knn_examples: int = field(0, "training images that the monitor searches: a fixed subset of this size; 0: all")
  labels_per_class: int = field(10, "of the linear probe with few labels in the report", free="report")

  def __post_init__(self):
    super().__post_init__()
    require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more, for something to contrast with")
    require(self.width >= 0, "width", self.width, "0 or more")
    for name in ("projection", "knn_k", "labels_per_class"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.knn_temperature > 0, "knn_temperature", self.knn_temperature, "a number above 0")
    require(self.knn_examples >= 0, "knn_examples", self.knn_examples, "0 or more")

  @property
  def parts_batches(self) -> bool:
    return self.encoder != "small"

  def idle_flags(self):
    idle = {}
    if self.knn_k == 1:
      idle["knn_temperature"] = "one neighbour (--knn_k=1) is right or wrong whatever its vote weighs"
    if self.report_seeds == 0:
      idle["labels_per_class"] = "the report that would fit this probe is left out (--report_seeds=0)"
    return super().idle_flags() | idle


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemperatureConfig(BaseConfig):
  """The flag of methods whose loss is a softmax over similarities."""

  temperature: float = field(0.1, "of the cosine similarities, > 0")

  def __post_init__(self):
    super().__post_init__()
    require(self.temperature > 0, "temperature", self.temperature, "a number above 0")


def make_encoder(config: ContrastiveConfig, data: DataSet, norm: Callable[..., nn.Module] = BatchNorm) -> nn.Module:
  """The encoder that the flags name, for images like those of `data`."""
  common = {"norm": norm, "dtype": jnp.dtype(config.precision)}
  if config.encoder == "small":
    return ConvNet(width=config.width or 32, **common)
  stem = "cifar" if max(data.image_shape[:2]) <= _LARGEST_SMALL_IMAGE else "imagenet"
  return _RESNETS[config.encoder](stem=stem, width=config.width or 64, **common)


def choose_augmentation(config: ContrastiveConfig, data: DataSet) -> str:
  """The recipe that --augmentation names, or that auto stands for with this data set."""
  if config.augmentation != "auto":
    return config.augmentation
  if data.image_shape[-1] != 1:
    return "simclr"
  return "digits" if is_written(data) else "grey"


def make_augmentation(config: ContrastiveConfig, data: DataSet) -> augment.Augmentation:
  """One view of one image on [0, 1]."""
  shape = data.image_shape
  name = choose_augmentation(config, data)
  if name not in ("crop", "none") and shape[-1] not in (1, 3):
    raise InputError(
      f"--augmentation={config.augmentation}: found images of {shape[-1]} channels, expected 1 or 3 for changes of "
      "colour; crop and none take any."
    )
  strength = 0.5 if max(shape[:2]) <= _LARGEST_SMALL_IMAGE else 1.0
  recipes = {
    "none": lambda: lambda key, image: image,
    "crop": lambda: augment.compose(augment.random_resized_crop(shape[:2], scale=(0.2, 1.0)), augment.random_flip()),
    "digits": lambda: augment.digit_augmentation(shape),
    "grey": lambda: augment.grey_augmentation(shape),
    "simclr": lambda: augment.simclr_augmentation(shape, strength),
    "moco_v1": lambda: augment.moco_augmentation(shape),
    "moco_v2": lambda: augment.moco_v2_augmentation(shape),
  }
  return recipes[name]()


def make_pretraining(method: Method, data: DataSet, config: ContrastiveConfig) -> Experiment:
  """The experiment that trains by `method` and watches its features by a weighted kNN classifier."""
  optimizer = make_optimizer(config, config.steps)
  augmentation = make_augmentation(config, data)
  k = choose_k(config.knn_k, min(config.knn_examples or len(data.train), len(data.train)))

  def init(key, batch) -> State:
    variables, memory = method.init(stream_key(key, "init"), to_network(to_unit(batch["image"], data.levels)))
    params = variables["params"]
    hparams = {name: jnp.float32(value) for name, value in method.hparams.items()}
    batch_stats = variables.get("batch_stats", {})
    return State(jnp.zeros([], jnp.int32), key, params, batch_stats, optimizer.init(params), memory, hparams)

  def step(state: State, batch):
    image = to_unit(batch["image"], data.levels)
    views = make_views(augmentation, state.key, state.step, image, batch["index"], method.num_views)
    key = stream_key(state.key, "loss", state.step)
    grad = jax.value_and_grad(method.loss, has_aux=True)
    (loss, outcome), grads = grad(state.params, state, views, batch, key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss, **outcome.metrics, **embedding_metrics(outcome.embeddings)}
    metrics["grad_norm"] = optax.global_norm(grads)
    new = {"params": params, "batch_stats": outcome.batch_stats, "opt_state": opt_state, "memory": outcome.memory}
    return state._replace(step=state.step + 1, **new), metrics

  def variables(state: State):
    return {"params": eval_params(state.opt_state, state.params), "batch_stats": state.batch_stats}

  def embed(state: State, batch):
    features, embedding = method.embed(variables(state), to_network(to_unit(batch["image"], data.levels)))
    return {"features": features, "embedding": embedding, "label": batch["label"], "mask": batch["mask"]}

  def evaluate(state: State, batch, reference) -> dict[str, Mean]:
    own = embed(state, batch)
    votes = knn_votes(
      own["features"], reference["features"], reference["label"], data.num_classes, k, config.knn_temperature,
      reference["mask"],
    )  # fmt: skip
    once = lambda metric: Mean(metric(reference["embedding"], reference["mask"]), jnp.float32(1))
    own_figures = {}
    if method.judge is not None:
      size = jnp.sum(batch["mask"])
      judged = method.judge(variables(state), to_network(to_unit(batch["image"], data.levels)), batch["mask"])
      own_figures = {name: Mean(size * value, size) for name, value in judged.items()}
    return {
      **own_figures,
      "knn_accuracy": masked_mean(score_votes(votes, batch["label"]), batch["mask"]),
      "embedding_spread": once(embedding_spread),
      "embedding_rank": once(participation_ratio),
    }

  compiled_embed, augment_batch = jax.jit(embed), jax.jit(jax.vmap(augmentation))

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.contrastive._report import write_report

    recipe = choose_augmentation(config, data)
    return write_report(compiled_embed, augment_batch, state, data, config, directory, recipe)

  # Images as they are stored, uint8, to features.
  to_features = lambda state, images: method.embed(variables(state), to_network(to_unit(images, data.levels)))[0]
  model = lambda state: jax.jit(partial(to_features, state))
  return Experiment(init, step, evaluate, report, embed, model)


def make_feeds(config: ContrastiveConfig) -> Feeds:
  """Training batches, the test split, and the training images that the kNN monitor searches."""
  data = load_data(config)
  feeds = make_data_feeds(data, config)
  return feeds._replace(reference=make_eval_batches(data.train, config.batch_size, config.knn_examples or None))


def pretrain(experiment: Experiment, config: ContrastiveConfig) -> int:
  """`mlnotes.engine.loop.train` with the best checkpoint by kNN accuracy."""
  return train(experiment, make_feeds(config), config, best_metric="knn_accuracy", best_mode="max")
