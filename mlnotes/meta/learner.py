"""A network with its loss, as the inner and the outer loop see it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from mlnotes.meta.task import Task

Normalization = Literal["transductive", "support"]


class Learner(NamedTuple):
  """What can be meta-trained.

  init:         (key, task) -> parameters.
  support_loss: (params, support) -> scalar, what the inner loop descends.
  query_loss:   (params, task) -> (scalar, {name: scalar}), what the outer loop descends, and figures beside it.
  predict:      (params, support, inputs) -> outputs, for pictures.
  """

  init: Callable[[Key[Array, ""], Task], chex.ArrayTree]
  support_loss: Callable[[chex.ArrayTree, Any], Float[Array, ""]]
  query_loss: Callable[[chex.ArrayTree, Task], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
  predict: Callable[[chex.ArrayTree, Any, Array], Array]


def is_head(path: str) -> bool:
  """Whether a parameter belongs to the last layer, the one that ANIL adapts (a layer named "head")."""
  return "head" in path.split("/")


def make_regressor(network: nn.Module) -> Learner:
  """Mean squared error of `network` on {"x": (K, D), "y": (K, outputs)}."""

  def loss(params, data):
    return jnp.mean(jnp.square(network.apply({"params": params}, data["x"]) - data["y"]))

  return Learner(
    init=lambda key, task: network.init(key, task.support["x"])["params"],
    support_loss=loss,
    query_loss=lambda params, task: (loss(params, task.query), {}),
    predict=lambda params, support, x: network.apply({"params": params}, x),
  )


def make_classifier(network: nn.Module, normalization: Normalization, levels: int = 256) -> Learner:
  """Cross-entropy, in nats, of a network with BatchNorm on {"image": uint8 of 0 .. levels - 1, or float, "label"}.

  The support set is always normalised by its own statistics. Query images are normalised

    transductive: by their own statistics, as in Finn et al. 2017: an image's prediction depends on the other query
                  images, a leak that raises accuracy and that a single test image does not have;
    support:      by those of the support set under the same parameters ("MetaBN" in Bronskill et al. 2020, section
                  3.3): an image's prediction is the same whatever its companions.
  """

  def to_unit(images):
    return images.astype(jnp.float32) / (levels - 1) if images.dtype == jnp.uint8 else images

  def normalized_by_itself(params, images):
    return network.apply({"params": params}, images, True, mutable=["batch_stats"])

  def predict(params, support, images):
    images = to_unit(images)
    if normalization == "transductive":
      return normalized_by_itself(params, images)[0]
    statistics = normalized_by_itself(params, to_unit(support["image"]))[1]
    return network.apply({"params": params, **statistics}, images, False)

  def cross_entropy(logits, label):
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, label))

  def support_loss(params, support):
    return cross_entropy(normalized_by_itself(params, to_unit(support["image"]))[0], support["label"])

  def query_loss(params, task):
    logits = predict(params, task.support, task.query["image"])
    right = jnp.argmax(logits, axis=-1) == task.query["label"]
    return cross_entropy(logits, task.query["label"]), {"accuracy": jnp.mean(right.astype(jnp.float32))}

  def init(key, task):
    return network.init(key, to_unit(task.support["image"]), True)["params"]

  return Learner(init, support_loss, query_loss, predict)
