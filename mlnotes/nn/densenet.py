"""Densely connected networks (DenseNet): each layer sees all earlier ones of its block."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class DenseBlock(nn.Module):
  """A transition to half of the features, then two dense layers that add a quarter of them each.

  DenseNet's parts (Huang et al. 2017, section 3) in a block of given width: where a stage keeps its width the
  transition compresses by .5. Norm and ReLU before each convolution; 2x2 averages where `strides` is 2.
  """

  features: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  strides: int = 1
  preactivated = True

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    growth = self.features // 4
    x = self.conv(self.features - 2 * growth, (1, 1))(nn.relu(self.norm()(x)))
    if self.strides > 1:
      window = (self.strides, self.strides)
      x = nn.avg_pool(x, window, window)
    for _ in range(2):
      y = self.conv(growth, (3, 3), padding=((1, 1), (1, 1)))(nn.relu(self.norm()(x)))
      x = jnp.concatenate([x, y], axis=-1)
    return x
