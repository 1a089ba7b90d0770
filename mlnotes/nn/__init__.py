"""Flax Linen modules shared by chapters (notes: 模块, layers)."""

from mlnotes.nn.activation import Maxout as Maxout, gelu_erf as gelu_erf, gelu_tanh as gelu_tanh, softmax as softmax
from mlnotes.nn.attention import SpatialAttention as SpatialAttention
from mlnotes.nn.blocks import BLOCKS as BLOCKS, BlockNet as BlockNet, match_width as match_width
from mlnotes.nn.calibration import (
  CalibrationBins as CalibrationBins,
  calibration_bins as calibration_bins,
  confusion_matrix as confusion_matrix,
  expected_calibration_error as expected_calibration_error,
  maximum_calibration_error as maximum_calibration_error,
)
from mlnotes.nn.cbam import CBAM as CBAM
from mlnotes.nn.conv import Conv as Conv, contains_slow_convolution as contains_slow_convolution, convolve as convolve
from mlnotes.nn.conv_transpose import ConvTranspose as ConvTranspose, convolve_transpose as convolve_transpose
from mlnotes.nn.convnet import ConvNet as ConvNet
from mlnotes.nn.densenet import DenseNet as DenseNet, DenseNet40 as DenseNet40, DenseNetBC100 as DenseNetBC100
from mlnotes.nn.dropout import (
  Dropout as Dropout,
  SharedDropout as SharedDropout,
  draw_dropout_mask as draw_dropout_mask,
)
from mlnotes.nn.inception import GoogLeNet as GoogLeNet, Inception as Inception
from mlnotes.nn.initializers import (
  compute_fans as compute_fans,
  glorot as glorot,
  he as he,
  lecun as lecun,
  orthogonal as orthogonal,
)
from mlnotes.nn.loss import (
  absolute_error as absolute_error,
  cross_entropy as cross_entropy,
  smooth_l1 as smooth_l1,
  squared_error as squared_error,
)
from mlnotes.nn.mlp import INITIALIZERS as INITIALIZERS, MLP as MLP
from mlnotes.nn.networks import NETWORKS as NETWORKS, make_network as make_network
from mlnotes.nn.norm import (
  BatchNorm as BatchNorm,
  GroupNorm as GroupNorm,
  InstanceNorm as InstanceNorm,
  LayerNorm as LayerNorm,
  RMSNorm as RMSNorm,
)
from mlnotes.nn.norm_by_name import NORMS as NORMS, choose_norm as choose_norm
from mlnotes.nn.pooling import avg_pool as avg_pool, max_pool as max_pool
from mlnotes.nn.residual import PostNorm as PostNorm, PreNorm as PreNorm
from mlnotes.nn.resnet import (
  ResNet as ResNet,
  ResNet18 as ResNet18,
  ResNet20 as ResNet20,
  ResNet32 as ResNet32,
  ResNet34 as ResNet34,
  ResNet44 as ResNet44,
  ResNet50 as ResNet50,
  ResNet56 as ResNet56,
  ResNet110 as ResNet110,
)
from mlnotes.nn.separable import SeparableConv as SeparableConv, channel_shuffle as channel_shuffle
from mlnotes.nn.spatial_transformer import (
  SpatialTransformer as SpatialTransformer,
  affine_grid as affine_grid,
  sample_bilinear as sample_bilinear,
  warp_affine as warp_affine,
)
from mlnotes.nn.squeeze_excitation import SqueezeExcitation as SqueezeExcitation
from mlnotes.nn.torch_weights import convert_torch_weights as convert_torch_weights
