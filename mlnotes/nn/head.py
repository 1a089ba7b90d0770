"""The end that the networks of this chapter share."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


def average_and_classify(
  x: Float[Array, "B *space D"], num_classes: int | None, dropout: float, train: bool, dtype: Any
) -> Float[Array, "B O"]:
  """Features averaged over space, then dropout and a linear layer called "head"; for a compact method.

  Without `num_classes` the features themselves, without dropout.
  """
  x = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
  if num_classes is None:
    return x
  x = nn.Dropout(dropout, deterministic=not train)(x)
  return nn.Dense(num_classes, dtype=dtype, name="head")(x)
