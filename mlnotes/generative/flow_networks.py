"""NICE, RealNVP and Glow: what their couplings are told by, how they are put together, and the density they give."""

import dataclasses
import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, UInt8

from mlnotes.engine.errors import InputError
from mlnotes.generative.flow import (
  bits_per_dim,
  dequantize,
  inverse_logit,
  logistic_log_density,
  logit,
  normal_log_density,
  to_grey_levels,
)
from mlnotes.generative.flow_layers import (
  ActNorm,
  Bijection,
  Chain,
  ChannelCoupling,
  DiagonalScale,
  Flatten,
  InvertibleLinear,
  MaskedCoupling,
  MultiScale,
  Squeeze,
)
from mlnotes.nn.conv import Conv
from mlnotes.nn.dense import Dense
from mlnotes.nn.initializers import he

_LOG_DENSITIES = {"normal": normal_log_density, "logistic": logistic_log_density}


class DenseConditioner(nn.Module):
  """A perceptron with ReLU whose last layer starts at 0, so that a coupling starts as the identity."""

  features: int
  width: int
  depth: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B F"]:
    h = x
    for i in range(self.depth):
      h = nn.relu(Dense(self.width, kernel_init=he(), dtype=self.dtype, name=f"dense{i}")(h))
    y = Dense(self.features, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="last")(h)
    return y.astype(x.dtype)


class ConvConditioner(nn.Module):
  """A residual network without norms whose last convolution starts at 0.

  A 3 x 3 convolution, `depth` blocks h + conv1x1(relu(conv3x3(relu(h)))), a 3 x 3 convolution. Differences from the
  papers: no batch norm (which would count in the density and differ at test), a 1 x 1 convolution in each block.
  """

  features: int
  width: int
  depth: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W F"]:
    h = Conv(self.width, (3, 3), dtype=self.dtype, name="first")(x)
    for i in range(self.depth):
      inner = Conv(self.width, (3, 3), kernel_init=he(), dtype=self.dtype, name=f"wide{i}")(nn.relu(h))
      h += Conv(self.width, (1, 1), kernel_init=he(), dtype=self.dtype, name=f"narrow{i}")(nn.relu(inner))
    y = Conv(self.features, (3, 3), kernel_init=nn.initializers.zeros, dtype=self.dtype, name="last")(nn.relu(h))
    return y.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class FlowSizes:
  """couplings: of each step of a level, or of all where there are no levels; width, depth: of each conditioner.

  levels: of the multi-scale architectures; 0: as many as halve the image evenly while it has 4 pixels a side or more.
  """

  couplings: int = 4
  width: int = 64
  depth: int = 2
  levels: int = 0
  dtype: Any = None


def count_levels(shape: tuple[int, int, int], levels: int = 0) -> int:
  """How often an image of this shape is squeezed. Raises InputError where it cannot be squeezed `levels` times."""
  most, (height, width) = 0, shape[:2]
  while height % 2 == 0 == width % 2 and min(height, width) >= 4:
    height, width, most = height // 2, width // 2, most + 1
  if most == 0 or levels > most:
    raise InputError(
      f"levels: an image of {shape[0]} x {shape[1]} can be squeezed {most} times while it has 4 pixels a side or more, "
      f"expected {levels or 1} or more."
    )
  return levels or most


def make_nice(shape: tuple[int, ...], sizes: FlowSizes, *, from_data: bool = True) -> Bijection:
  """Additive couplings of every other dimension, then a diagonal scale: Dinh et al. 2015, sections 3.2, 3.3.

  `from_data`: as in `DiagonalScale`.
  """
  dims = math.prod(shape)
  network = lambda: DenseConditioner(dims, sizes.width, sizes.depth, sizes.dtype)
  couplings = [MaskedCoupling(network(), "none", parity=i % 2) for i in range(sizes.couplings)]
  flatten = [Flatten(shape)] if len(shape) > 1 else []
  return Chain((*flatten, *couplings, DiagonalScale(from_data)))


def make_realnvp(shape: tuple[int, ...], sizes: FlowSizes, *, from_data: bool = True) -> Bijection:
  """Affine couplings: of checkerboards, squeeze, of channels, half leaves, and again; of vectors every other dimension.

  Dinh et al. 2017, sections 3.4 to 3.6: `couplings` checkerboards (3 in the paper) and as many of channels a level,
  one more checkerboard at the end. Differences from the paper: no batch norm; with `from_data`, `ActNorm` before each
  step of couplings in its place.
  """
  norm = lambda: [ActNorm()] if from_data else []
  if len(shape) == 1:
    network = lambda: DenseConditioner(2 * shape[0], sizes.width, sizes.depth, sizes.dtype)
    steps = [[*norm(), MaskedCoupling(network(), "tanh", parity=i % 2)] for i in range(sizes.couplings)]
    return Chain(tuple(layer for step in steps for layer in step))
  channels, levels = shape[-1], []

  def checkerboards(channels, count):
    network = lambda: ConvConditioner(2 * channels, sizes.width, sizes.depth, sizes.dtype)
    return [*norm(), *(MaskedCoupling(network(), "tanh", parity=i % 2) for i in range(count))]

  for _ in range(count_levels(shape, sizes.levels)):
    before, channels = channels, 4 * channels
    network = lambda: ConvConditioner(channels, sizes.width, sizes.depth, sizes.dtype)  # noqa: B023 - called here
    halves = [ChannelCoupling(network(), "tanh", flip=bool(i % 2)) for i in range(sizes.couplings)]
    levels.append(Chain((*checkerboards(before, sizes.couplings), Squeeze(), *norm(), *halves)))
    channels //= 2
  levels.append(Chain(tuple(checkerboards(channels, sizes.couplings + 1))))
  return MultiScale(tuple(levels), shape)


def make_glow(shape: tuple[int, ...], sizes: FlowSizes, *, from_data: bool = True) -> Bijection:
  """Steps of actnorm, an invertible 1 x 1 convolution and an affine coupling of channels, in levels that squeeze first.

  Kingma & Dhariwal 2018, section 3, figure 2. What leaves is normalised by what stays. `couplings` is K, the steps of a
  level. Without `from_data` there is no actnorm.
  """
  norm = lambda: [ActNorm()] if from_data else []

  def steps(channels, image):
    kind = ConvConditioner if image else DenseConditioner
    network = lambda: kind(2 * (channels - channels // 2), sizes.width, sizes.depth, sizes.dtype)
    step = lambda: [*norm(), InvertibleLinear(), ChannelCoupling(network(), "sigmoid")]
    return [layer for _ in range(sizes.couplings) for layer in step()]

  if len(shape) == 1:
    return Chain(tuple(steps(shape[0], False)))
  channels, levels, priors = shape[-1], [], []
  for _ in range(count_levels(shape, sizes.levels)):
    channels *= 4
    levels.append(Chain((Squeeze(), *steps(channels, True))))
    channels //= 2
    prior = ConvConditioner(2 * channels, sizes.width, 0, sizes.dtype)
    priors.append(ChannelCoupling(prior, "tanh"))
  return MultiScale(tuple(levels), shape, tuple(priors[:-1]))


ARCHITECTURES = {"nice": make_nice, "realnvp": make_realnvp, "glow": make_glow}


@dataclasses.dataclass(frozen=True)
class FlowModel:
  """A density of images in `num_levels` grey levels, or of vectors where `num_levels` is 0.

  network:  from x, or its logit, to z; variables are what `init` gives, {"params": .., and what stays as it was drawn}.
  base:     the density of z: "normal" or "logistic".
  alpha:    images go through `logit` with it; 0: as they are, on [0, 1].
  shape:    of an image or a vector.
  """

  network: Bijection
  shape: tuple[int, ...]
  num_levels: int = 0
  base: str = "normal"
  alpha: float = 0.0

  @property
  def num_dims(self) -> int:
    return math.prod(self.shape)

  def init(self, key: Key[Array, ""], x: Float[Array, "B *shape"]) -> chex.ArrayTree:
    """Variables, those of actnorms from this batch of points."""
    return self.network.init(key, self._before(x)[0], method="forward")

  def _before(self, x):
    return logit(x, self.alpha) if self.alpha else (x, jnp.zeros(x.shape[:1], x.dtype))

  def encode(
    self, variables: chex.ArrayTree, x: Float[Array, "B *shape"]
  ) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
    """(z, log-determinant) of points."""
    y, first = self._before(x)
    z, log_det = self.network.apply(variables, y, method="forward")
    return z, first + log_det

  def decode(self, variables: chex.ArrayTree, z: Float[Array, "B D"]) -> Float[Array, "B *shape"]:
    """The points of z: images on [0, 1], up to what the logit's ends leave over."""
    y = self.network.apply(variables, z, method="inverse")
    return inverse_logit(y, self.alpha) if self.alpha else y

  def log_density(self, variables: chex.ArrayTree, x: Float[Array, "B *shape"]) -> Float[Array, " B"]:
    """Nats, of points: of images on [0, 1]^D."""
    z, log_det = self.encode(variables, x)
    return _LOG_DENSITIES[self.base](z) + log_det

  def bits_per_dim(
    self,
    variables: chex.ArrayTree,
    image: UInt8[Array, "B *shape"] | Int[Array, "B *shape"],
    noise: Float[Array, "B *shape"],
  ) -> Float[Array, " B"]:
    """Of images in grey levels, dequantised by noise on [0, 1)."""
    points = dequantize(image, noise, self.num_levels)
    return bits_per_dim(self.log_density(variables, points), self.num_levels, self.num_dims)

  def sample_latents(self, key: Key[Array, ""], count: int) -> Float[Array, "N D"]:
    draw = {"normal": jax.random.normal, "logistic": jax.random.logistic}[self.base]
    return draw(key, (count, self.num_dims))

  def sample(
    self, variables: chex.ArrayTree, key: Key[Array, ""], count: int, temperature: float = 1.0
  ) -> Float[Array, "N *shape"]:
    """Points of z drawn from its density and multiplied by `temperature`."""
    return self.decode(variables, temperature * self.sample_latents(key, count))

  def to_levels(self, x: Float[Array, "B *shape"]) -> UInt8[Array, "B *shape"]:
    return to_grey_levels(x, self.num_levels)


class TrainedFlow:
  """A trained flow as functions of its inputs; calling it gives the log-density of points, in nats."""

  def __init__(self, model: FlowModel, variables: chex.ArrayTree):
    self.model, self.variables = model, variables

  def __call__(self, x: Float[Array, "B *shape"]) -> Float[Array, " B"]:
    return self.model.log_density(self.variables, x)

  def encode(self, x: Float[Array, "B *shape"]) -> Float[Array, "B D"]:
    return self.model.encode(self.variables, x)[0]

  def decode(self, z: Float[Array, "B D"]) -> Float[Array, "B *shape"]:
    return self.model.decode(self.variables, z)

  def sample(self, key: Key[Array, ""], count: int, temperature: float = 1.0) -> Float[Array, "N *shape"]:
    return self.model.sample(self.variables, key, count, temperature)
