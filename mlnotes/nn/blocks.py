"""Nine kinds of block for one skeleton, and the width at which a network of each has a given number of parameters."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mlnotes.engine.errors import nearest
from mlnotes.engine.experiment import root_key
from mlnotes.nn.cbam import CBAM
from mlnotes.nn.densenet import DenseBlock
from mlnotes.nn.inception import InceptionBlock
from mlnotes.nn.initializers import he
from mlnotes.nn.norm_by_name import choose_norm
from mlnotes.nn.pooling import avg_pool
from mlnotes.nn.resnet import BasicBlock, PreActivationBlock, ResNet
from mlnotes.nn.separable import SeparableConv, channel_shuffle
from mlnotes.nn.squeeze_excitation import SqueezeExcitation


class PlainBlock(nn.Module):
  """Two 3x3 convolutions, each with a norm and ReLU: `BasicBlock` without its shortcut."""

  features: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  strides: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    for strides in (self.strides, 1):
      x = self.conv(self.features, (3, 3), strides, padding=((1, 1), (1, 1)))(x)
      x = nn.relu(self.norm()(x))
    return x


class SeparableBlock(nn.Module):
  """Two depthwise separable convolutions as in MobileNet, without a shortcut: Howard et al. 2017, figure 3.

  The depthwise kernels start with He's variance of their own fan, 9, whatever initialiser `conv` has.
  """

  features: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  strides: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    for strides in (self.strides, 1):
      x = SeparableConv(self.features, (3, 3), strides, "TORCH", conv=self.conv, norm=self.norm, depthwise_init=he())(x)
    return x


class ShuffledBlock(nn.Module):
  """ShuffleNet's unit: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1: Zhang et al. 2018, figure 2b and c.

  Between the 1x1 convolutions there is a quarter of the features, as a multiple of `groups`. Where the shape is kept
  the unit is added to its input; where it changes, x (in 3x3 averages where `strides` is above 1) makes the first of
  the features and the unit the others. Kernels start with He's variance of the inputs of a group, whatever initialiser
  `conv` has.

  Raises ValueError where `groups` does not divide the channels or the features, or where these are fewer than the
  channels.
  """

  features: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  strides: int = 1
  groups: int = 2
  multiple = 2

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    channels = x.shape[-1]
    added = self.features if self.strides == 1 and self.features == channels else self.features - channels
    if channels % self.groups or self.features % self.groups or added <= 0:
      raise ValueError(
        f"a shuffled block has multiples of groups={self.groups} channels and at least as many features as channels, "
        f"with strides more: found {channels} channels and {self.features} features"
      )
    between = max(self.groups, self.features // 4 // self.groups * self.groups)
    grouped, alone = ({"feature_group_count": n, "kernel_init": he()} for n in (self.groups, between))
    y = nn.relu(self.norm()(self.conv(between, (1, 1), **grouped)(x)))
    y = channel_shuffle(y, self.groups)
    y = self.norm()(self.conv(between, (3, 3), self.strides, padding=((1, 1), (1, 1)), **alone)(y))
    y = self.norm()(self.conv(added, (1, 1), **grouped)(y))
    if added == self.features:
      return nn.relu(x + y)
    if self.strides > 1:
      x = avg_pool(x, 3, self.strides, "TORCH")
    return nn.relu(jnp.concatenate([x, y], axis=-1))


# Networks of a few dozen channels: a sixteenth of them would be one or two.
BLOCKS: dict[str, Callable[..., nn.Module]] = {
  "plain": PlainBlock,
  "inception": InceptionBlock,
  "residual": BasicBlock,
  "preactivation": PreActivationBlock,
  "dense": DenseBlock,
  "se": partial(BasicBlock, attention=partial(SqueezeExcitation, reduction=4)),
  "cbam": partial(BasicBlock, attention=partial(CBAM, reduction=4)),
  "separable": SeparableBlock,
  "shuffled": ShuffledBlock,
}


def BlockNet(
  block: str = "residual",
  stage_sizes: Sequence[int] = (2, 2),
  width: int = 16,
  norm: str | Callable[..., nn.Module] = "batch",
  **fields: Any,
) -> ResNet:
  """The skeleton of `ResNet` with a block of `BLOCKS` by its name and a norm of `NORMS` by its name.

  Stem of one 3x3 convolution; stage s has `stage_sizes[s]` blocks of `width` 2^s features, and each stage but the first
  halves the image. `fields` are those of `ResNet`: `num_classes`, `dropout`, `dtype` and others.

  Raises ValueError where a name is unknown.
  """
  return ResNet(tuple(stage_sizes), choose_block(block), width=width, norm=choose_norm(norm), **fields)


def choose_block(block: str) -> Callable[..., nn.Module]:
  """The factory of that name. Raises ValueError where it is none of `BLOCKS`."""
  if block not in BLOCKS:
    raise ValueError(f"block is {block!r}: {nearest(block, BLOCKS)}")
  return BLOCKS[block]


def possible_widths(block: str) -> tuple[int, int]:
  """(narrowest, step): the widths that a block can have are the multiples of `step` from `narrowest` on."""
  kind = choose_block(block)
  kind = getattr(kind, "func", kind)
  step = getattr(kind, "multiple", 1)
  return getattr(kind, "narrowest", step), step


def count_parameters(network: nn.Module, image_shape: Sequence[int]) -> int:
  """Numbers in the collection "params" for images of shape (height, width, channels); nothing is computed."""
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  variables = jax.eval_shape(partial(network.init, train=False), root_key(0), image)
  return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def match_width(
  block: str, budget: int, image_shape: Sequence[int], num_classes: int, stage_sizes: Sequence[int] = (2, 2)
) -> int:
  """The width at which `BlockNet` has the number of parameters nearest to `budget`.

  Raises ValueError where even the narrowest network has more than twice the budget.
  """
  narrowest, step = possible_widths(block)

  @functools.cache  # a count takes a tenth of a second or more
  def count(steps: int) -> int:
    network = BlockNet(block, stage_sizes, steps * step, num_classes=num_classes)
    return count_parameters(network, image_shape)

  low = narrowest // step
  if count(low) > 2 * budget:
    raise ValueError(
      f"budget is {budget} parameters: the narrowest network of {block} blocks, of width {low * step}, has {count(low)}"
    )
  # Parameters grow about as the square of the width: each guess is scaled by the root of what is missing.
  high = None
  while high is None or high - low > 1:
    guess = round((high or low) * (budget / count(high or low)) ** 0.5)
    guess = max(guess, low + 1) if high is None else min(max(guess, low + 1), high - 1)
    if count(guess) <= budget:
      low = guess
    else:
      high = guess
  return min((low, high), key=lambda steps: abs(count(steps) - budget)) * step
