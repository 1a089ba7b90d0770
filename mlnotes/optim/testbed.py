"""A small classifier that optimizers are measured on: many runs of one optimizer as one program."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from mlnotes.data import ArraySplit, DataSet, fixed_subset, make_resident_feed
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import set_hparams, stream_key
from mlnotes.optim.lookahead import eval_params


class MLP(nn.Module):
  """Layers of the given widths on flat pixels, then one output per class."""

  widths: Sequence[int]
  num_classes: int
  activation: Callable[[Array], Array] = nn.relu

  @nn.compact
  def __call__(self, x):
    for width in self.widths:
      x = self.activation(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))
    return nn.Dense(self.num_classes)(x)


class Classifier(NamedTuple):
  """`init`: key -> params; `loss`, `accuracy`: (params, {"image": uint8, "label"}) -> mean over the batch.

  `draw`: (key, step) -> training batch, without replacement within an epoch; `train`, `test`: what figures are of, as
  batches.
  """

  init: Callable[[Key[Array, ""]], Any]
  loss: Callable[[Any, Any], Float[Array, ""]]
  accuracy: Callable[[Any, Any], Float[Array, ""]]
  draw: Callable[[Key[Array, ""], Any], Any]
  train: Any
  test: Any


def make_classifier(
  data: DataSet,
  widths: Sequence[int],
  batch_size: int,
  most_examples: int = 4096,
  activation: Callable[[Array], Array] = nn.relu,
) -> Classifier:
  """An MLP on `data`. `train` and `test` are looked at often: of a larger split they hold `most_examples`; 0: all.

  Those are a fixed pseudo-random subset, the same that `make_eval_batches` takes: a split may be sorted by class.

  Raises InputError where the data set is too large to hold as arrays or smaller than a batch.
  """
  if not isinstance(data.train, ArraySplit) or not isinstance(data.test, ArraySplit):
    raise InputError(
      f"--dataset={data.name} does not fit into memory: expected one that does, such as digits or mnist."
    )
  if batch_size > len(data.train):
    raise InputError(f"--batch_size={batch_size} is out of range: expected at most {len(data.train)} examples.")
  network = MLP(tuple(widths), data.num_classes, activation)
  pixels = lambda image: (image.reshape(len(image), -1) / (data.levels - 1)).astype(jnp.float32)
  feed = make_resident_feed(data.train, batch_size)

  def at_most(split: ArraySplit):
    index = fixed_subset(len(split), most_examples or len(split))
    return {"image": split.image[index], "label": split.label[index]}

  def loss(params, batch):
    logits = network.apply(params, pixels(batch["image"]))
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

  def accuracy(params, batch):
    return jnp.mean(network.apply(params, pixels(batch["image"])).argmax(-1) == batch["label"])

  return Classifier(
    init=lambda key: network.init(key, jnp.zeros((1, data.train.image[0].size))),
    loss=loss,
    accuracy=accuracy,
    draw=lambda key, step: feed.draw(feed.arrays, key, step),
    train=at_most(data.train),
    test=at_most(data.test),
  )


class Curves(NamedTuple):
  """Figures after every `every` updates of one run, and its parameters at the end: those that `eval_params` takes."""

  train_loss: Float[Array, " R"]
  test_accuracy: Float[Array, " R"]
  params: Any


def train_once(
  classifier: Classifier,
  optimizer: optax.GradientTransformation,
  key: Key[Array, ""],
  learning_rate: Float[Array, ""],
  steps: int,
  every: int,
) -> Curves:
  """One run from one key: the initial parameters and the order of the batches are the same whatever the optimizer.

  Pure: callers vmap it over keys and learning rates. `steps` must be a multiple of `every`.
  """
  params = classifier.init(stream_key(key, "init"))
  state = set_hparams(optimizer.init(params), learning_rate=learning_rate)

  def update(step, carry):
    params, state = carry
    batch = classifier.draw(key, step)
    grads = jax.grad(classifier.loss)(params, batch)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  def window(carry, start):
    carry = jax.lax.fori_loop(start, start + every, update, carry)
    returned = eval_params(carry[1], carry[0])
    return carry, (classifier.loss(returned, classifier.train), classifier.accuracy(returned, classifier.test))

  (params, state), (losses, accuracies) = jax.lax.scan(window, (params, state), jnp.arange(0, steps, every))
  return Curves(losses, accuracies, eval_params(state, params))
