"""Flax Linen modules shared by chapters (notes: 模块, layers)."""

from mlnotes.nn.attention import SpatialAttention as SpatialAttention
from mlnotes.nn.conv import Conv as Conv, contains_slow_convolution as contains_slow_convolution, convolve as convolve
from mlnotes.nn.convnet import ConvNet as ConvNet
from mlnotes.nn.norm import BatchNorm as BatchNorm, GroupNorm as GroupNorm
from mlnotes.nn.pooling import avg_pool as avg_pool, max_pool as max_pool
from mlnotes.nn.resnet import ResNet as ResNet, ResNet18 as ResNet18, ResNet34 as ResNet34, ResNet50 as ResNet50
from mlnotes.nn.separable import SeparableConv as SeparableConv, channel_shuffle as channel_shuffle
from mlnotes.nn.torch_weights import convert_torch_weights as convert_torch_weights
