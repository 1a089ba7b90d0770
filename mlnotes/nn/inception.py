"""Inception: convolutions of several sizes side by side."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.engine.errors import nearest
from mlnotes.nn.conv import Conv
from mlnotes.nn.head import average_and_classify
from mlnotes.nn.norm import BatchNorm
from mlnotes.nn.pooling import max_pool

# Szegedy et al. 2015, table 1: features of the six convolutions of each module.
GOOGLENET: dict[str, tuple[int, ...]] = {
  "3a": (64, 96, 128, 16, 32, 32),
  "3b": (128, 128, 192, 32, 96, 64),
  "4a": (192, 96, 208, 16, 48, 64),
  "4b": (160, 112, 224, 24, 64, 64),
  "4c": (128, 128, 256, 24, 64, 64),
  "4d": (112, 144, 288, 32, 64, 64),
  "4e": (256, 160, 320, 32, 128, 128),
  "5a": (256, 160, 320, 32, 128, 128),
  "5b": (384, 192, 384, 48, 128, 128),
}


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
      convolve(max_pool(x, 3, 1, padding=1), pooled, 1, "pooled"),
    )
    return jnp.concatenate(branches, axis=-1)


class InceptionBlock(nn.Module):
  """Two `Inception` modules of `features` channels, after 3x3 max-pooling where `strides` is above 1.

  Of the features a quarter comes from 1x1, half from 3x3, an eighth each from 5x5 and from pooling, with 3/8 and 1/16
  before the larger windows: about the shares of the first module of Szegedy et al. 2015, table 1.

  Raises ValueError for fewer than 16 features.
  """

  features: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  strides: int = 1
  narrowest = 16

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    if self.features < self.narrowest:
      raise ValueError(f"features is {self.features}, expected {self.narrowest} or more: six convolutions share them")
    if self.strides > 1:
      x = max_pool(x, 3, self.strides, padding=1)
    of = lambda sixteenths: self.features * sixteenths // 16
    three, five, pooled = of(8), of(2), of(2)
    branches = (self.features - three - five - pooled, of(6), three, of(1), five, pooled)
    for _ in range(2):
      x = Inception(branches, self.conv, self.norm)(x)
    return x


class GoogLeNet(nn.Module):
  """Inception modules of Szegedy et al. 2015, table 1, for small images.

  A 3x3 convolution of 3 `width` channels (192 before the first module at the paper's width of 64), then `modules`,
  rows of `GOOGLENET` with all features times width / 64 (rounded up), and 3x3 max-pooling of stride 2 where the first
  figure of a module's name changes. `num_classes`, `conv`, `norm`, `dtype`, `dropout` (.4 in the paper) and the return
  value as in `ResNet`.

  Differences from the paper: the stem keeps the image's size; norms; no auxiliary heads, which weigh .3 in its training
  and are gone at test time; five of its nine modules unless `modules` says otherwise.

  Raises ValueError where a module has no row.
  """

  modules: Sequence[str] = ("3a", "3b", "4a", "4e", "5b")
  num_classes: int | None = None
  width: int = 16
  conv: Callable[..., nn.Module] = Conv
  norm: Callable[..., nn.Module] = BatchNorm
  dtype: Any = None
  dropout: float = 0.0

  def __post_init__(self):
    for module in self.modules:
      if module not in GOOGLENET:
        raise ValueError(f"modules has {module!r}: {nearest(module, GOOGLENET)}")
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B D"]:
    he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    conv = partial(self.conv, use_bias=False, dtype=self.dtype, kernel_init=he_normal)
    norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
    x = conv(3 * self.width, (3, 3), padding=((1, 1), (1, 1)), name="stem_conv")(x)
    x = nn.relu(norm(name="stem_norm")(x))
    for before, module in zip((self.modules[0], *self.modules), self.modules):
      if module[0] != before[0]:
        x = max_pool(x, 3, 2, padding=1)
      features = tuple(-(-number * self.width // 64) for number in GOOGLENET[module])
      x = Inception(features, conv, norm, name=f"module{module}")(x)
    return average_and_classify(x, self.num_classes, self.dropout, train, self.dtype)
