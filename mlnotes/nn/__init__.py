"""Flax Linen modules shared by chapters."""

from mlnotes.nn.conv import Conv as Conv
from mlnotes.nn.conv import contains_slow_convolution as contains_slow_convolution
from mlnotes.nn.conv import convolve as convolve
