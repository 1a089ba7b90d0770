"""Densely connected networks (DenseNet): each layer sees all earlier ones of its block."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.nn.conv import Conv
from mlnotes.nn.head import average_and_classify
from mlnotes.nn.initializers import he
from mlnotes.nn.norm import BatchNorm
from mlnotes.nn.pooling import avg_pool


class DenseLayer(nn.Module):
  """Concatenates `growth` new channels to x: Huang et al. 2017, eq. 2.

    y = concatenate(x, conv3x3(relu(norm(x))))

  With `bottleneck` a norm, ReLU and 1x1 convolution to 4 `growth` channels stand before (DenseNet-B). `dropout`, which
  draws where `train` is true, follows each convolution.
  """

  growth: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  bottleneck: bool = False
  dropout: float = 0.0
  train: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
    drop = lambda y: nn.Dropout(self.dropout, deterministic=not self.train)(y)
    y = x
    if self.bottleneck:
      y = drop(self.conv(4 * self.growth, (1, 1))(nn.relu(self.norm()(y))))
    y = drop(self.conv(self.growth, (3, 3), padding=((1, 1), (1, 1)))(nn.relu(self.norm()(y))))
    return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
  """Blocks of densely connected layers: Huang et al. 2017, section 3, as for CIFAR's images.

  A 3x3 convolution of `width` channels (0: 16, of DenseNet-BC 2 `growth`), then blocks of `layers` each, which add
  `growth` channels a layer, and between the blocks transitions: norm, ReLU, a 1x1 convolution to `compression` of the
  channels, 2x2 averages. A norm and ReLU stand before the average over space. `dropout` follows each convolution but
  the first, and no linear layer (section 4.2 has it at .2 where images are not augmented).

  `num_classes`, `conv`, `norm`, `dtype` and the return value as in `ResNet`.
  """

  layers: Sequence[int]
  growth: int = 12
  bottleneck: bool = False
  compression: float = 1.0
  num_classes: int | None = None
  width: int = 0
  conv: Callable[..., nn.Module] = Conv
  norm: Callable[..., nn.Module] = BatchNorm
  dtype: Any = None
  dropout: float = 0.0
  kernel_init: Callable[..., Array] = he()

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B D"]:
    conv = partial(self.conv, use_bias=False, dtype=self.dtype, kernel_init=self.kernel_init)
    norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
    width = self.width or (2 * self.growth if self.bottleneck else 16)
    x = conv(width, (3, 3), padding=((1, 1), (1, 1)), name="stem_conv")(x)
    for block, number in enumerate(self.layers):
      if block:
        x = nn.relu(norm(name=f"transition{block}_norm")(x))
        x = conv(int(self.compression * x.shape[-1]), (1, 1), name=f"transition{block}_conv")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = avg_pool(x, 2)
      for index in range(number):
        layer = DenseLayer(
          self.growth, conv, norm, self.bottleneck, self.dropout, train, name=f"block{block}_layer{index}"
        )
        x = layer(x)
    x = nn.relu(norm(name="last_norm")(x))
    return average_and_classify(x, self.num_classes, 0.0, train, self.dtype)


# 3 n + 4 layers; with bottlenecks 6 n + 4. Growth 12.
DenseNet40 = partial(DenseNet, layers=(12, 12, 12))
DenseNetBC100 = partial(DenseNet, layers=(16, 16, 16), bottleneck=True, compression=0.5)


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
  narrowest = 4

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    growth = self.features // 4
    x = self.conv(self.features - 2 * growth, (1, 1))(nn.relu(self.norm()(x)))
    x = avg_pool(x, self.strides)
    for _ in range(2):
      x = DenseLayer(growth, self.conv, self.norm)(x)
    return x
