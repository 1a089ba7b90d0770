"""A small convolutional network for images of 8 to 40 pixels."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mlnotes.nn.conv import Conv
from mlnotes.nn.head import average_and_classify
from mlnotes.nn.norm import BatchNorm


class ConvNet(nn.Module):
  """3x3 convolutions with normalisation and ReLU, averaged over space: the encoder of quick experiments.

  The first keeps the image's size and has `width` channels; each of the others halves the size and doubles the
  channels, until at most 4 pixels a side are left, and twice at least: 8x8 gives 4 `width` features, 28x28 and 32x32
  give 8 `width`. `norm`, `dtype`, `num_classes` and `dropout` as in `ResNet`.
  """

  width: int = 32
  conv: Callable[..., nn.Module] = Conv
  norm: Callable[..., nn.Module] = BatchNorm
  dtype: Any = None
  num_classes: int | None = None
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B D"]:
    conv = partial(self.conv, kernel_size=(3, 3), use_bias=False, dtype=self.dtype, padding=((1, 1), (1, 1)))
    norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
    halvings = max(2, math.ceil(math.log2(max(x.shape[1:3]) / 4)))
    for stage in range(halvings + 1):
      x = conv(self.width * 2**stage, strides=2 if stage else 1, name=f"conv{stage}")(x)
      x = nn.relu(norm(name=f"norm{stage}")(x))
    return average_and_classify(x, self.num_classes, self.dropout, train, self.dtype)
