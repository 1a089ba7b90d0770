"""A small classifier, trained on the same data, whose features and classes judge generated images.

It stands where papers put Inception v3: trained in seconds, with no download, and at home on 8 x 8 digits. Distances
in its features compare generators under the same judge; they are not FID scores and compare with none.
"""

import dataclasses
import functools
import hashlib
import os
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, Key, Num, UInt8

from mlnotes.engine.cache import cache_directory
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.nn.conv import Conv
from mlnotes.nn.norm import GroupNorm

# Part of the cache key: raise it when the same data and config would give another judge.
_VERSION = 1
# Images that are judged at a time.
_CHUNK = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig:
  """How a judge is made.

  width:    channels of the first convolution, doubled at each halving of the image up to 64.
  features: dimension of the features.
  batch_size: examples per update, or all there are where they are fewer.

  Raises ValueError where one of them is out of range.
  """

  width: int = 16
  features: int = 64
  steps: int = 1000
  batch_size: int = 128
  learning_rate: float = 3e-3
  weight_decay: float = 1e-2
  seed: int = 0

  def __post_init__(self):
    for name in ("width", "features", "steps", "batch_size"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be 1 or more, found {getattr(self, name)}.")


class JudgeNetwork(nn.Module):
  """Strided convolutions down to at most 4 x 4 pixels, then a linear feature layer and the logits."""

  num_classes: int
  width: int
  features: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "B H W C"]
  ) -> tuple[Float[Array, "B {self.features}"], Float[Array, "B {self.num_classes}"]]:
    channels, strides = self.width, (1, 1)
    while True:
      x = nn.relu(GroupNorm()(Conv(channels, (3, 3), strides=strides)(x)))
      if max(x.shape[1:3]) <= 4:
        break
      channels, strides = max(self.width, min(2 * channels, 64)), (2, 2)
    features = nn.Dense(self.features)(x.reshape(x.shape[0], -1))
    return features, nn.Dense(self.num_classes)(nn.relu(features))


class Judge(NamedTuple):
  """A trained classifier of images with grey levels 0 .. levels - 1, the scale of its training images."""

  network: JudgeNetwork
  levels: int
  params: Mapping[str, Any]

  def features(self, images: Num[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N D"]:
    """The layer before the logits."""
    return self._apply(images)[0]

  def predict(self, images: Num[np.ndarray, "N H W C"]) -> Int[np.ndarray, " N"]:
    """The most likely class."""
    return np.argmax(self._apply(images)[1], axis=-1)

  def probabilities(self, images: Num[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N K"]:
    """Of each class, in float64."""
    logits = self._apply(images)[1].astype(np.float64)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)

  def _apply(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    outputs = []
    for start in range(0, len(images), _CHUNK):
      chunk = images[start : start + _CHUNK]
      padding = [(0, _CHUNK - len(chunk))] + [(0, 0)] * 3  # one shape, one compilation
      features, logits = _apply_network(self.network, self.levels, self.params, np.pad(chunk, padding))
      outputs.append((np.asarray(features)[: len(chunk)], np.asarray(logits)[: len(chunk)]))
    features, logits = zip(*outputs)
    return np.concatenate(features), np.concatenate(logits)


def train_judge(
  images: UInt8[np.ndarray, "N H W C"],
  labels: Int[np.ndarray, " N"],
  num_classes: int,
  levels: int = 256,
  config: JudgeConfig = JudgeConfig(),
) -> Judge:
  """Trains a judge on images with grey levels 0 .. levels - 1 and labels 0 .. num_classes - 1.

  Cross-entropy, AdamW with a warmed-up cosine, images shifted by up to a pixel in each direction; every epoch sees
  each image once. The whole run is one compiled scan. The same arguments give the same judge on the same machine.

  Raises ValueError for images that leave 0 .. levels - 1, labels that leave 0 .. num_classes - 1, no image at all, and
  another number of labels than of images.
  """
  _check_range("images", images, levels)
  _check_range("labels", labels, num_classes)
  if not len(images) or labels.shape != (len(images),):
    raise ValueError(f"a judge needs images and a label for each, found {len(images)} images, labels {labels.shape}.")
  config = dataclasses.replace(config, batch_size=min(config.batch_size, len(images)))
  rng = np.random.default_rng(config.seed)
  drawn = config.steps * config.batch_size
  order = np.concatenate([rng.permutation(len(images)) for _ in range(-(-drawn // len(images)))])
  order = order[:drawn].reshape(config.steps, config.batch_size)
  network = JudgeNetwork(num_classes, config.width, config.features)
  params = _train(network, levels, config, root_key(config.seed), images, labels, order)
  return Judge(network, levels, params)


def load_or_train_judge(
  images: UInt8[np.ndarray, "N H W C"],
  labels: Int[np.ndarray, " N"],
  num_classes: int,
  levels: int = 256,
  config: JudgeConfig = JudgeConfig(),
  cache_dir: Path | None = None,
) -> Judge:
  """`train_judge`, kept in `cache_dir` under a hash of the data and the config; default: the cache's `judge`.

  A file is written whole or not at all, so several processes may ask at once; one that cannot be read is replaced.
  Where none can be written the judge is made all the same, with a warning that names the directory.
  """
  cache_dir = cache_directory() / "judge" if cache_dir is None else cache_dir
  path = cache_dir / f"{_fingerprint(images, labels, num_classes, levels, config)}.npz"
  network = JudgeNetwork(num_classes, config.width, config.features)
  try:
    with np.load(path) as file:
      return Judge(network, levels, unflatten_dict(dict(file), sep="/"))
  except (OSError, ValueError, EOFError, zipfile.BadZipFile):
    judge = train_judge(images, labels, num_classes, levels, config)
  try:
    _keep(judge, path)
  except OSError as error:
    warnings.warn(
      f"the judge is not kept: {cache_dir} cannot be written ({error.strerror or error}), expected a writable "
      "directory in the environment variable MLNOTES_CACHE.",
      stacklevel=2,
    )
  return judge


def _keep(judge: Judge, path: Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
    try:
      np.savez(file, **flatten_dict(jax.device_get(judge.params), sep="/"))
      os.replace(file.name, path)
    except OSError:
      os.unlink(file.name)
      raise


def _scale(images: Num[Array, "B H W C"], levels: int) -> Float[Array, "B H W C"]:
  return images.astype(jnp.float32) * (2 / (levels - 1)) - 1


def _shift(key: Key[Array, ""], images: Num[Array, "B H W C"]) -> Num[Array, "B H W C"]:
  """Each image moved by -1, 0 or 1 pixels along each axis, its edge repeated."""
  padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
  corners = jax.random.randint(key, (images.shape[0], 2), 0, 3)
  crop = lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])
  return jax.vmap(crop)(padded, corners)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply_network(network: JudgeNetwork, levels: int, params: Any, images: Array) -> tuple[Array, Array]:
  return network.apply({"params": params}, _scale(images, levels))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train(
  network: JudgeNetwork, levels: int, config: JudgeConfig, key: Array, images: Array, labels: Array, order: Array
) -> Any:
  schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.steps // 10, config.steps)
  optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)

  def loss_fn(params, key, batch):
    _, logits = network.apply({"params": params}, _scale(_shift(key, images[batch]), levels))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]))

  def update(carry, inputs):
    params, opt_state = carry
    step, batch = inputs
    grads = jax.grad(loss_fn)(params, stream_key(key, "shift", step), batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  params = network.init(stream_key(key, "init"), _scale(images[:1], levels))["params"]
  steps = jnp.arange(config.steps)
  (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), (steps, order))
  return params


def _check_range(name: str, values: np.ndarray, stop: int) -> None:
  if values.size and (values.min() < 0 or values.max() >= stop):
    raise ValueError(f"{name} must be in 0 .. {stop - 1}, found {values.min()} .. {values.max()}")


def _fingerprint(images: np.ndarray, labels: np.ndarray, *rest: Any) -> str:
  digest = hashlib.sha256(repr((_VERSION, images.shape, *rest)).encode())
  digest.update(np.ascontiguousarray(images))
  digest.update(np.ascontiguousarray(labels, np.int64))
  return digest.hexdigest()[:32]
