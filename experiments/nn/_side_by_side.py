"""Seeds of one network trained side by side as one program: for networks that the classifier has no flags for."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from experiments.nn._images import black, to_network
from mlnotes.data import ArraySplit, DataSet, make_resident_feed
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import stream_key
from mlnotes.engine.study import each_seed
from mlnotes.nn.loss import cross_entropy

# Of a larger test split a chunk at a time.
_CHUNK = 512


class Curves(NamedTuple):
  """(S, P) mean training loss between two points of the curve, (S,) figures of each seed.

  `first_gradient` is the norm of the first matrix' gradient in the first update, `last_gradient` of the last matrix'.
  """

  loss: Float[np.ndarray, "S P"]
  accuracy: Float[np.ndarray, " S"]
  first_gradient: Float[np.ndarray, " S"]
  last_gradient: Float[np.ndarray, " S"]


def require_resident(data: DataSet, **batches: int) -> None:
  """Raises InputError where the data set is too large to hold as arrays, or smaller than one of the flags' batches."""
  if not isinstance(data.train, ArraySplit) or not isinstance(data.test, ArraySplit):
    raise InputError(f"--dataset={data.name} does not fit into memory: expected one that does, such as digits.")
  for flag, size in batches.items():
    require(size <= len(data.train), flag, size, f"at most {len(data.train)} examples")


def train_seeds(
  network: nn.Module,
  data: DataSet,
  optimizer: optax.GradientTransformation,
  *,
  seeds: range,
  steps: int,
  batch_size: int,
  points: int,
  first: str = "dense0",
  last: str = "head",
) -> Curves:
  """Trains `network` from each of the seeds; `first` and `last` name the layers whose gradients are measured.

  `points` divides `steps`. The order of the batches is that of the seed, whatever the network.
  """
  feed = make_resident_feed(data.train, batch_size)
  seen = lambda image: to_network(image, data.levels, black(data))
  image, label = (jnp.asarray(data.test.arrays[name]) for name in ("image", "label"))

  def loss(params, batch_stats, batch):
    variables = {"params": params, "batch_stats": batch_stats}
    logits, updated = network.apply(variables, seen(batch["image"]), train=True, mutable=["batch_stats"])
    return jnp.mean(cross_entropy(logits.astype(jnp.float32), batch["label"])), updated.get("batch_stats", {})

  gradient = jax.value_and_grad(loss, has_aux=True)

  def update(carry, step, key, arrays):
    params, batch_stats, state = carry
    (value, batch_stats), grads = gradient(params, batch_stats, feed.draw(arrays, key, step))
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), batch_stats, state), value

  def once(key, arrays):
    variables = network.init(stream_key(key, "init"), seen(image[:1]), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    _, grads = gradient(params, batch_stats, feed.draw(arrays, key, 0))
    norms = [jnp.linalg.norm(grads[name]["kernel"]) for name in (first, last)]

    def window(carry, start):
      steps_here = start + jnp.arange(steps // points)
      carry, values = jax.lax.scan(lambda carry, step: update(carry, step, key, arrays), carry, steps_here)
      return carry, jnp.mean(values)

    carry = (params, batch_stats, optimizer.init(params))
    (params, batch_stats, _), losses = jax.lax.scan(window, carry, jnp.arange(0, steps, steps // points))
    variables = {"params": params, "batch_stats": batch_stats}
    right = [
      jnp.sum(network.apply(variables, seen(image[i : i + _CHUNK]), train=False).argmax(-1) == label[i : i + _CHUNK])
      for i in range(0, len(label), _CHUNK)
    ]
    return losses, sum(right) / len(label), *norms

  return Curves(*each_seed(lambda key: once(key, feed.arrays), seeds))
