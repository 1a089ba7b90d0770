"""Classifier-free guidance: one network with and without its label, and the way to train it."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from mlnotes.diffusion.process import Network

# (x_t, t, label) -> output, batched.
ConditionalNetwork: TypeAlias = Callable[[Array, Array, Array], Array]


def guide(
  network: ConditionalNetwork,
  label: Shaped[Array, "B *label"],
  null_label: Shaped[Array, "*label"],
  weight: Float[Array, ""] | float,
) -> Network:
  """The network (x_t, t) -> output of a conditional one, pushed towards its label.

    output = unconditional + weight (conditional - unconditional)

  weight 0 ignores the label, 1 is the plain conditional network, above 1 trades diversity for likeness. Both halves are
  evaluated as one batch of twice the size. A variance half of the output (more channels than `x_t`) is the
  conditional network's, unguided. Ho & Salimans 2022, eq. 6.

  Differences from the paper: its weight is this one minus 1.
  """

  def guided(x_t: Float[Array, "B *dims"], t: Int[Array, " B"]) -> Float[Array, "B ..."]:
    labels = jnp.concatenate([label, jnp.broadcast_to(null_label, label.shape)])
    output = network(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), labels)
    conditional, unconditional = jnp.split(output, 2)
    channels = x_t.shape[-1]
    mean = unconditional[..., :channels] + weight * (conditional - unconditional)[..., :channels]
    return jnp.concatenate([mean, conditional[..., channels:]], axis=-1)

  return guided


def drop_label(
  key: Key[Array, ""], label: Int[Array, " B"], null_label: int, rate: Float[Array, ""] | float
) -> Int[Array, " B"]:
  """`label` with each entry replaced by `null_label` with probability `rate`. Ho & Salimans 2022, algorithm 1.

  Raises ValueError for a number `rate` outside [0, 1].
  """
  if isinstance(rate, int | float) and not 0 <= rate <= 1:
    raise ValueError(f"rate must lie in [0, 1], found {rate}.")
  return jnp.where(jax.random.bernoulli(key, rate, label.shape), null_label, label)
