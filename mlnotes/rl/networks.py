"""The small networks of reinforcement learning, with the initialisation that decides whether they learn.

Orthogonal matrices with gain sqrt(2) in the hidden layers; the last layer's gain is small for a policy (so that the
first actions are nearly uniform) and 1 for a value (Engstrom et al. 2020; Huang et al. 2022, detail 2).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.nn.initializers import orthogonal

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class MLP(nn.Module):
  """A multilayer perceptron on the flattened observation: hidden layers, each followed by `activation`, and an output.

  Attributes:
    features: widths of the hidden layers.
    outputs: width of the linear output; 0: none, the last hidden layer is the result.
    output_scale: gain of the output's orthogonal initialisation.
    dtype: of the arithmetic; parameters are float32.
  """

  features: Sequence[int]
  outputs: int
  activation: str = "tanh"
  output_scale: float = 1.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    for width in self.features:
      x = nn.Dense(width, kernel_init=orthogonal(math.sqrt(2)), dtype=self.dtype)(x)
      x = ACTIVATIONS[self.activation](x)
    if self.outputs:
      x = nn.Dense(self.outputs, kernel_init=orthogonal(self.output_scale), dtype=self.dtype)(x)
    return x.astype(jnp.float32)
