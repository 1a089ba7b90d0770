"""Every network of this chapter by the name that a flag has."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlnotes.engine.errors import nearest
from mlnotes.nn.blocks import BLOCKS, BlockNet, possible_widths
from mlnotes.nn.convnet import ConvNet
from mlnotes.nn.densenet import DenseNet40, DenseNetBC100
from mlnotes.nn.inception import GoogLeNet
from mlnotes.nn.mlp import MLP
from mlnotes.nn.norm_by_name import choose_norm
from mlnotes.nn.resnet import (
  PreActivationBlock,
  ResNet18,
  ResNet20,
  ResNet32,
  ResNet34,
  ResNet44,
  ResNet50,
  ResNet56,
  ResNet110,
)
from mlnotes.nn.spatial_transformer import TransformedConvNet

# ResNets of ImageNet have a stem for images of CIFAR's size up to this many pixels a side.
_LARGEST_SMALL_IMAGE = 64


class Network(NamedTuple):
  """How a network is made: `make` takes `width`, `num_classes`, `norm`, `dropout` and `dtype`."""

  make: Callable[..., nn.Module]
  width: int
  # Pixels a side that its strides ask for.
  smallest: int = 1
  # Whether it has another stem for images of more than 64 pixels.
  has_stems: bool = False
  images: bool = True
  # The widths it can have are multiples of `step` from `narrowest` on.
  narrowest: int = 1
  step: int = 1


def _dense(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
  """The width of a DenseNet is its growth."""
  return lambda width, **fields: make(growth=width, **fields)


def _blocks(name: str) -> Network:
  width = {"inception": 24, "separable": 40, "shuffled": 96, "dense": 32}.get(name, 16)
  narrowest, step = possible_widths(name)
  return Network(partial(BlockNet, name), width, smallest=2, narrowest=narrowest, step=step)


NETWORKS: dict[str, Network] = {
  "mlp": Network(MLP, 128, images=False),
  "small": Network(ConvNet, 32, smallest=4),
  "resnet18": Network(ResNet18, 64, smallest=8, has_stems=True),
  "resnet34": Network(ResNet34, 64, smallest=8, has_stems=True),
  "resnet50": Network(ResNet50, 64, smallest=8, has_stems=True),
  "resnet20": Network(ResNet20, 16, smallest=4),
  "resnet32": Network(ResNet32, 16, smallest=4),
  "resnet44": Network(ResNet44, 16, smallest=4),
  "resnet56": Network(ResNet56, 16, smallest=4),
  "resnet110": Network(ResNet110, 16, smallest=4),
  "preactivation20": Network(partial(ResNet20, block=PreActivationBlock), 16, smallest=4),
  "preactivation110": Network(partial(ResNet110, block=PreActivationBlock), 16, smallest=4),
  "densenet40": Network(_dense(DenseNet40), 12, smallest=4),
  "densenet_bc100": Network(_dense(DenseNetBC100), 12, smallest=4),
  "googlenet": Network(GoogLeNet, 16, smallest=4),
  "spatial_transformer": Network(TransformedConvNet, 32, smallest=8),
  **{name: _blocks(name) for name in BLOCKS},
}


def make_network(
  name: str,
  num_classes: int | None,
  image_shape: Sequence[int],
  width: int = 0,
  norm: str | Callable[..., nn.Module] = "batch",
  dropout: float = 0.0,
  dtype: DTypeLike = jnp.float32,
) -> nn.Module:
  """The network of that name for images of shape (height, width, channels), called as `network(x, train)`.

  x is (B, *image_shape), float; the result are logits (B, num_classes), or where `num_classes` is None the features
  before the last layer. Running statistics are in "batch_stats", dropout draws from "dropout". `width` is the number of
  channels that the others are multiples of, 0 the network's own; `norm` a name of `NORMS` or a factory; `dtype` that
  of the computation. "mlp" takes examples of any shape.

  Raises ValueError where a name is unknown, an image too small for the strides, or a number out of range.
  """
  if name not in NETWORKS:
    raise ValueError(f"network is {name!r}: {nearest(name, NETWORKS)}")
  network = NETWORKS[name]
  if network.images and len(image_shape) != 3:
    raise ValueError(f"image_shape is {tuple(image_shape)}, expected (height, width, channels) for network {name!r}")
  if min(image_shape, default=0) < 1:
    raise ValueError(f"image_shape is {tuple(image_shape)}, expected positive numbers")
  if network.images and min(image_shape[:2]) < network.smallest:
    raise ValueError(
      f"image_shape is {tuple(image_shape)}: the strides of network {name!r} ask for images of {network.smallest} or "
      "more pixels a side"
    )
  fits = width == 0 or (width >= network.narrowest and width % network.step == 0)
  widths = f"a multiple of {network.step}" if network.step > 1 else f"from {network.narrowest} on"
  for what, value, valid, expected in (
    ("num_classes", num_classes, num_classes is None or num_classes >= 1, "1 or more, or None for the features"),
    ("width", width, fits, f"0 for the network's own, or {widths}, for network {name!r}"),
    ("dropout", dropout, 0 <= dropout < 1, "a share from 0 to below 1"),
  ):
    if not valid:
      raise ValueError(f"{what} is {value}, expected {expected}")
  large = network.has_stems and max(image_shape[:2]) > _LARGEST_SMALL_IMAGE
  return network.make(
    width=width or network.width,
    num_classes=num_classes,
    norm=choose_norm(norm),
    dropout=dropout,
    dtype=dtype,
    **({"stem": "imagenet"} if large else {}),
  )
