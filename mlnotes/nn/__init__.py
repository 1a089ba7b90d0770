"""Flax Linen modules shared by chapters (notes: 模块, layers)."""

from mlnotes.nn.attention import SpatialAttention as SpatialAttention
from mlnotes.nn.blocks import BLOCKS as BLOCKS, BlockNet as BlockNet, match_width as match_width
from mlnotes.nn.cbam import CBAM as CBAM
from mlnotes.nn.conv import Conv as Conv, contains_slow_convolution as contains_slow_convolution, convolve as convolve
from mlnotes.nn.convnet import ConvNet as ConvNet
from mlnotes.nn.norm import (
  BatchNorm as BatchNorm,
  GroupNorm as GroupNorm,
  InstanceNorm as InstanceNorm,
  LayerNorm as LayerNorm,
  RMSNorm as RMSNorm,
)
from mlnotes.nn.resnet import ResNet as ResNet, ResNet18 as ResNet18, ResNet34 as ResNet34, ResNet50 as ResNet50
