"""Inception: convolutions of several sizes side by side."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class Inception(nn.Module):
  """Four branches over the same input, concatenated: Szegedy et al. 2015, figure 2b.

    1x1;   1x1, 3x3;   1x1, 5x5;   3x3 max-pooling of stride 1, 1x1

  `features` are those of the 1x1 branch, of the 3x3 branch's 1x1 and 3x3, of the 5x5 branch's 1x1 and 5x5, and of the
  pooling's 1x1, the order of the columns of table 1. `norm` and ReLU follow each convolution.

  Differences from the paper: it has no norms (`NoNorm` gives that).
  """

  features: Sequence[int]
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
    def convolve(x: Array, features: int, size: int, name: str) -> Array:
      beside = ((size // 2, size // 2),) * 2
      x = self.conv(features, (size, size), padding=beside, name=f"{name}_conv")(x)
      return nn.relu(self.norm(name=f"{name}_norm")(x))

    one, before_three, three, before_five, five, pooled = self.features
    branches = (
      convolve(x, one, 1, "one"),
      convolve(convolve(x, before_three, 1, "before_three"), three, 3, "three"),
      convolve(convolve(x, before_five, 1, "before_five"), five, 5, "five"),
      convolve(nn.max_pool(x, (3, 3), padding=((1, 1), (1, 1))), pooled, 1, "pooled"),
    )
    return jnp.concatenate(branches, axis=-1)


class InceptionBlock(nn.Module):
  """Two `Inception` modules of `features` channels, after 3x3 max-pooling where `strides` is above 1.

  Of the features a quarter comes from 1x1, half from 3x3, an eighth each from 5x5 and from pooling, with 3/8 and 1/16
  before the larger windows: about the shares of the first module of Szegedy et al. 2015, table 1. At least 16.
  """

  features: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  strides: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    if self.features < 16:
      raise ValueError(f"features is {self.features}, expected 16 or more: six convolutions share them")
    if self.strides > 1:
      x = nn.max_pool(x, (3, 3), (self.strides, self.strides), padding=((1, 1), (1, 1)))
    of = lambda sixteenths: self.features * sixteenths // 16
    three, five, pooled = of(8), of(2), of(2)
    branches = (self.features - three - five - pooled, of(6), three, of(1), five, pooled)
    for _ in range(2):
      x = Inception(branches, self.conv, self.norm)(x)
    return x
