"""Flax Linen modules shared by chapters (notes: 模块, layers)."""

from mlnotes.nn.attention import SpatialAttention as SpatialAttention
from mlnotes.nn.conv import Conv as Conv
from mlnotes.nn.conv import contains_slow_convolution as contains_slow_convolution
from mlnotes.nn.conv import convolve as convolve
from mlnotes.nn.convnet import ConvNet as ConvNet
from mlnotes.nn.norm import BatchNorm as BatchNorm
from mlnotes.nn.norm import GroupNorm as GroupNorm
from mlnotes.nn.resnet import ResNet as ResNet
from mlnotes.nn.resnet import ResNet18 as ResNet18
from mlnotes.nn.resnet import ResNet34 as ResNet34
from mlnotes.nn.resnet import ResNet50 as ResNet50
