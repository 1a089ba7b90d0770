"""Residual networks (ResNet) for images of CIFAR's and of ImageNet's size."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.nn.conv import Conv
from mlnotes.nn.norm import BatchNorm

# He et al. 2015 (arXiv:1502.01852), eq. 14: the backward pass keeps its variance.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut: He et al. 2016, figure 5 left.

  `conv` and `norm` are module factories; `norm` takes `scale_init`.
  """

  features: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  strides: int = 1
  zero_init_residual: bool = True
  expansion = 1

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    y = self.conv(self.features, (3, 3), self.strides, padding=((1, 1), (1, 1)))(x)
    y = nn.relu(self.norm()(y))
    y = self.conv(self.features, (3, 3), padding=((1, 1), (1, 1)))(y)
    return _add_shortcut(self, x, y)


class BottleneckBlock(nn.Module):
  """1x1, 3x3 and 1x1 convolutions and a shortcut: He et al. 2016, figure 5 right.

  Differences from the paper: the stride stands in the 3x3 convolution, as in torchvision ("ResNet v1.5").
  """

  features: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  strides: int = 1
  zero_init_residual: bool = True
  expansion = 4

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    y = nn.relu(self.norm()(self.conv(self.features, (1, 1))(x)))
    y = self.conv(self.features, (3, 3), self.strides, padding=((1, 1), (1, 1)))(y)
    y = nn.relu(self.norm()(y))
    y = self.conv(self.features * self.expansion, (1, 1))(y)
    return _add_shortcut(self, x, y)


def _add_shortcut(block: nn.Module, x: Array, y: Array) -> Array:
  """relu(shortcut(x) + norm(y)): the end of either block, inside its compact scope."""
  scale_init = nn.initializers.zeros if block.zero_init_residual else nn.initializers.ones
  y = block.norm(scale_init=scale_init)(y)
  if x.shape != y.shape:
    x = block.conv(y.shape[-1], (1, 1), block.strides, name="shortcut_conv")(x)
    x = block.norm(name="shortcut_norm")(x)
  return nn.relu(x + y)


class ResNet(nn.Module):
  """Residual network: He et al. 2016 (Deep residual learning, arXiv:1512.03385), table 1.

  stem "cifar": one 3x3 convolution of stride 1. "imagenet": 7x7 of stride 2, then 3x3 max-pooling of stride 2.
  Returns the features averaged over space, or logits where `num_classes` is given. Convolutions have no bias.

  `conv` is a module factory with the arguments of `flax.linen.Conv`; `norm` one that takes `use_running_average`,
  `dtype` and `scale_init`. BatchNorm keeps its running statistics in the collection "batch_stats", which must be
  mutable where `train` is true. `dtype` is that of the computation.

  Differences from the paper: each block starts as the identity (its last scale is zero: Goyal et al. 2017, section
  5.1) unless `zero_init_residual` is false; projection shortcuts only where the shape changes (option B).
  """

  stage_sizes: Sequence[int]
  block: type[nn.Module] = BasicBlock
  stem: str = "cifar"
  num_classes: int | None = None
  width: int = 64
  zero_init_residual: bool = True
  conv: Callable[..., nn.Module] = Conv
  norm: Callable[..., nn.Module] = BatchNorm
  dtype: Any = None

  def __post_init__(self):
    if self.stem not in ("cifar", "imagenet"):
      raise ValueError(f"stem is {self.stem!r}, expected 'cifar' or 'imagenet'")
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B D"]:
    conv = partial(self.conv, use_bias=False, dtype=self.dtype, kernel_init=he_normal_fan_out)
    norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
    if self.stem == "cifar":
      x = conv(self.width, (3, 3), padding=((1, 1), (1, 1)), name="stem_conv")(x)
    else:
      x = conv(self.width, (7, 7), 2, padding=((3, 3), (3, 3)), name="stem_conv")(x)
    x = nn.relu(norm(name="stem_norm")(x))
    if self.stem == "imagenet":
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for stage, size in enumerate(self.stage_sizes):
      for index in range(size):
        x = self.block(
          features=self.width * 2**stage,
          conv=conv,
          norm=norm,
          strides=2 if stage > 0 and index == 0 else 1,
          zero_init_residual=self.zero_init_residual,
          name=f"stage{stage}_block{index}",
        )(x)
    x = jnp.mean(x, axis=(1, 2))
    if self.num_classes is not None:
      x = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)
    return x


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BottleneckBlock)
