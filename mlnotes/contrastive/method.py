"""What tells one method of this chapter from another, and what they share: views, the network in training, metrics."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from mlnotes.contrastive.metrics import alignment, embedding_spread, participation_ratio, uniformity
from mlnotes.data import augment
from mlnotes.engine.experiment import example_keys, root_key, stream_key


class State(NamedTuple):
  """`memory` is what a method remembers beside its network: a queue and a momentum encoder, a bank, or ()."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  batch_stats: chex.ArrayTree
  opt_state: optax.OptState
  memory: Any
  hparams: dict[str, Float[Array, ""]]


class Outcome(NamedTuple):
  """What a loss leaves behind; `embeddings` (B, D) of each view are for the metrics of the embedding."""

  batch_stats: chex.ArrayTree
  memory: Any
  embeddings: tuple[Array, ...]
  metrics: Mapping[str, Array]


class Method(NamedTuple):
  """What tells one method of this chapter from another.

  init:  (key, images) -> (variables {"params", "batch_stats"}, memory).
  loss:  (params, state, views, batch, key) -> (mean loss, Outcome). `views` is (B, num_views, H, W, C) on [-1, 1].
  embed: (variables, images) -> (features, embedding) of test images: what a probe sees, what the loss sees.
  judge: (variables, images, mask) -> {name: scalar} of a batch of test images, where `mask` is 0 padding, or None:
         figures that only this method has.
  """

  init: Callable
  loss: Callable
  embed: Callable
  num_views: int
  hparams: Mapping[str, float] = {}
  judge: Callable | None = None


def to_unit(image: UInt8[Array, "*B H W C"], levels: int) -> Float[Array, "*B H W C"]:
  """Stored grey levels 0 .. levels - 1 on [0, 1], where augmentations work."""
  return image.astype(jnp.float32) / (levels - 1)


def to_network(image: Float[Array, "*B H W C"]) -> Float[Array, "*B H W C"]:
  """[0, 1] on [-1, 1], where networks work."""
  return 2 * image - 1


def count_features(encoder: nn.Module, image_shape: tuple[int, ...]) -> int:
  """The length of the encoder's feature vector."""
  init = partial(encoder.init_with_output, train=False)
  return jax.eval_shape(init, root_key(0), jnp.zeros((1, *image_shape)))[0].shape[-1]


def make_views(
  augmentation: augment.Augmentation,
  key: Key[Array, ""],
  step: Int[Array, ""],
  image: Float[Array, "B H W C"],
  index: Int[Array, " B"],
  count: int,
) -> Float[Array, "B {count} H W C"]:
  """`count` views of each image on [-1, 1]; an example's views depend on its index and the step alone."""
  keys = [example_keys(stream_key(key, f"view{view}", step), index) for view in range(count)]
  return to_network(jnp.stack([jax.vmap(augmentation)(k, image) for k in keys], axis=1))


def flatten_views(views: Float[Array, "B V ..."]) -> Float[Array, "B*V ..."]:
  """The views as one batch in which an example's own stand together, so that a sharded batch stays where it is."""
  return views.reshape(-1, *views.shape[2:])


def apply_network(
  network: nn.Module, params: chex.ArrayTree, batch_stats: chex.ArrayTree, images: Float[Array, "B H W C"]
) -> tuple[Any, chex.ArrayTree]:
  """(output, running statistics) in training."""
  variables = {"params": params, "batch_stats": batch_stats}
  output, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
  return output, updated["batch_stats"]


def make_embed(network: nn.Module) -> Callable:
  """`Method.embed` of an `Embedder`."""

  def embed(variables, images):
    features, projection, _ = network.apply(variables, images, train=False)
    return features, projection

  return embed


def embedding_metrics(embeddings: tuple[Array, ...]) -> dict[str, Array]:
  """Uniformity, spread and rank of the first view's embeddings, and the alignment of the first two."""
  first = jax.lax.stop_gradient(embeddings[0])
  metrics = {
    "uniformity": uniformity(first),
    "embedding_spread": embedding_spread(first),
    "embedding_rank": participation_ratio(first),
  }
  if len(embeddings) > 1:
    metrics["alignment"] = jnp.mean(alignment(first, jax.lax.stop_gradient(embeddings[1])))
  return metrics
