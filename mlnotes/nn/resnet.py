"""Residual networks (ResNet) for images of CIFAR's and of ImageNet's size, and the skeleton of other blocks."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.nn.conv import Conv
from mlnotes.nn.head import average_and_classify
from mlnotes.nn.norm import BatchNorm

# He et al. 2015 (arXiv:1502.01852), eq. 14: the backward pass keeps its variance.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


_BESIDE = ((1, 1), (1, 1))  # padding of a 3x3 convolution


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut: He et al. 2016, figure 5 left.

  `conv` and `norm` are module factories; `norm` takes `scale_init`. `attention`, the factory of a module that keeps
  the shape, is applied to the branch before the addition (`SqueezeExcitation`, `CBAM`).

  shortcut: where the shape changes, "B" is a 1x1 convolution with a norm, "A" every `strides`-th pixel with channels
  of zeros after those of x, without parameters (He et al. 2016, section 3.3).
  """

  features: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  strides: int = 1
  zero_init_residual: bool = True
  shortcut: str = "B"
  attention: Callable[[], nn.Module] | None = None
  expansion = 1

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    y = self.conv(self.features, (3, 3), self.strides, padding=_BESIDE)(x)
    y = nn.relu(self.norm()(y))
    y = self.conv(self.features, (3, 3), padding=_BESIDE)(y)
    return _add_shortcut(self, x, y)


class BottleneckBlock(nn.Module):
  """1x1, 3x3 and 1x1 convolutions and a shortcut: He et al. 2016, figure 5 right. Fields as of `BasicBlock`.

  Differences from the paper: the stride stands in the 3x3 convolution, as in torchvision ("ResNet v1.5").
  """

  features: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  strides: int = 1
  zero_init_residual: bool = True
  shortcut: str = "B"
  attention: Callable[[], nn.Module] | None = None
  expansion = 4

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    y = nn.relu(self.norm()(self.conv(self.features, (1, 1))(x)))
    y = self.conv(self.features, (3, 3), self.strides, padding=_BESIDE)(y)
    y = nn.relu(self.norm()(y))
    y = self.conv(self.features * self.expansion, (1, 1))(y)
    return _add_shortcut(self, x, y)


class PreActivationBlock(nn.Module):
  """Norm and ReLU before each of two 3x3 convolutions, nothing after the addition: He et al. 2016b, figure 1b, eq. 3.

    y = x + conv(relu(norm(conv(relu(norm(x))))))

  Where the shape changes, shortcut "B" is a 1x1 convolution, without a norm, of relu(norm(x)); "A" as in `BasicBlock`.
  With `activate_input` relu(norm(x)) takes the place of x in the shortcut too: a network's first unit; what the last
  one gives needs a norm and ReLU of its own (section 4.1 of the paper). With `zero_init_residual` the last kernel is
  zero: no norm stands behind it.
  """

  features: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  strides: int = 1
  zero_init_residual: bool = True
  shortcut: str = "B"
  activate_input: bool = False
  expansion = 1
  preactivated = True

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    y = nn.relu(self.norm()(x))
    changes = self.strides != 1 or self.features != x.shape[-1]
    if self.activate_input or (changes and self.shortcut == "B"):
      x = y
    y = self.conv(self.features, (3, 3), self.strides, padding=_BESIDE)(y)
    y = nn.relu(self.norm()(y))
    last = {"kernel_init": nn.initializers.zeros} if self.zero_init_residual else {}
    y = self.conv(self.features, (3, 3), padding=_BESIDE, **last)(y)
    return _change_shape(self, x, y) + y


def _add_shortcut(block: nn.Module, x: Array, y: Array) -> Array:
  """relu(shortcut(x) + attention(norm(y))): the end of either block, inside its compact scope."""
  scale_init = nn.initializers.zeros if block.zero_init_residual else nn.initializers.ones
  y = block.norm(scale_init=scale_init)(y)
  if block.attention is not None:
    y = block.attention()(y)
  return nn.relu(_change_shape(block, x, y) + y)


def _change_shape(block: nn.Module, x: Array, y: Array) -> Array:
  """x with the shape of y, by the block's kind of shortcut."""
  if x.shape == y.shape:
    return x
  if block.shortcut == "A":
    if x.shape[-1] > y.shape[-1]:
      raise ValueError(f"shortcut A adds channels, found {x.shape[-1]} before the block and {y.shape[-1]} after")
    x = x[:, :: block.strides, :: block.strides]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1])))
  if block.shortcut != "B":
    raise ValueError(f"shortcut is {block.shortcut!r}, expected 'A' or 'B'")
  x = block.conv(y.shape[-1], (1, 1), block.strides, name="shortcut_conv")(x)
  return x if is_preactivated(block) else block.norm(name="shortcut_norm")(x)


def is_preactivated(block: Callable[..., nn.Module] | nn.Module) -> bool:
  """Whether a block (its class, a partial of it, an instance) normalises its input and leaves its output as it is."""
  return getattr(getattr(block, "func", block), "preactivated", False)


class ResNet(nn.Module):
  """Residual network: He et al. 2016 (Deep residual learning, arXiv:1512.03385), table 1.

  stem "cifar": one 3x3 convolution of stride 1. "imagenet": 7x7 of stride 2, then 3x3 max-pooling of stride 2.
  Returns the features averaged over space, or logits where `num_classes` is given, with `dropout` before the last
  layer. Convolutions have no bias and start with `kernel_init`. Stage s has `width` 2^s features.

  `block` is a module factory with the fields `features`, `conv`, `norm` and `strides` of `BasicBlock`, and takes
  `zero_init_residual` where it has that field. Around blocks that are preactivated (`is_preactivated`) the norm and
  ReLU of the stem stand after the last block instead.

  `conv` is a module factory with the arguments of `flax.linen.Conv`; `norm` one that takes `use_running_average`,
  `dtype` and `scale_init`. BatchNorm keeps its running statistics in the collection "batch_stats", which must be
  mutable where `train` is true. `dtype` is that of the computation.

  Differences from the paper: each block starts as the identity (its last scale is zero: Goyal et al. 2017, section
  5.1) unless `zero_init_residual` is false; projection shortcuts only where the shape changes (option B).
  """

  stage_sizes: Sequence[int]
  block: Callable[..., nn.Module] = BasicBlock
  stem: str = "cifar"
  num_classes: int | None = None
  width: int = 64
  zero_init_residual: bool = True
  conv: Callable[..., nn.Module] = Conv
  norm: Callable[..., nn.Module] = BatchNorm
  dtype: Any = None
  dropout: float = 0.0
  kernel_init: Callable[..., Array] = he_normal_fan_out

  def __post_init__(self):
    if self.stem not in ("cifar", "imagenet"):
      raise ValueError(f"stem is {self.stem!r}, expected 'cifar' or 'imagenet'")
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B D"]:
    conv = partial(self.conv, use_bias=False, dtype=self.dtype, kernel_init=self.kernel_init)
    norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
    if self.stem == "cifar":
      x = conv(self.width, (3, 3), padding=((1, 1), (1, 1)), name="stem_conv")(x)
    else:
      x = conv(self.width, (7, 7), 2, padding=((3, 3), (3, 3)), name="stem_conv")(x)
    preactivated = is_preactivated(self.block)
    if not preactivated:
      x = nn.relu(norm(name="stem_norm")(x))
    if self.stem == "imagenet":
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    known = {field.name for field in dataclasses.fields(getattr(self.block, "func", self.block))}
    common = {"zero_init_residual": self.zero_init_residual} if "zero_init_residual" in known else {}
    for stage, size in enumerate(self.stage_sizes):
      for index in range(size):
        x = self.block(
          features=self.width * 2**stage,
          conv=conv,
          norm=norm,
          strides=2 if stage > 0 and index == 0 else 1,
          name=f"stage{stage}_block{index}",
          **common,
          **({"activate_input": True} if stage == index == 0 and "activate_input" in known else {}),
        )(x)
    if preactivated:
      x = nn.relu(norm(name="last_norm")(x))
    return average_and_classify(x, self.num_classes, self.dropout, train, self.dtype)


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BottleneckBlock)

# For CIFAR's images: 6n + 2 layers of 16, 32 and 64 features, without parameters in the shortcuts (He et al. 2016,
# section 4.2); `block=BasicBlock` has 1x1 convolutions there, `block=PreActivationBlock` has them too.
_cifar = partial(ResNet, block=partial(BasicBlock, shortcut="A"), width=16)
ResNet20 = partial(_cifar, stage_sizes=(3, 3, 3))
ResNet32 = partial(_cifar, stage_sizes=(5, 5, 5))
ResNet44 = partial(_cifar, stage_sizes=(7, 7, 7))
ResNet56 = partial(_cifar, stage_sizes=(9, 9, 9))
ResNet110 = partial(_cifar, stage_sizes=(18, 18, 18))
