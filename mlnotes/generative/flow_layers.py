"""Bijections with known log-determinants, as Flax modules; flows are chains of them.

Each has two methods: `forward(x) -> (z, log_det)`, with one log-determinant per example, and `inverse(z) -> x`; and
`output_shape(shape)`, that of one example's z. Parameters come from `init(key, x, method="forward")`: `ActNorm` and
`DiagonalScale` take their first ones from that x, so it must be a batch of data.
"""

import math
from typing import Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from mlnotes.engine.errors import InputError
from mlnotes.generative.flow import (
  assemble_lu,
  checkerboard_mask,
  factorize_lu,
  squeeze,
  sum_dims,
  unsqueeze,
)
from mlnotes.nn.initializers import orthogonal

# (z, log |det dz/dx|), the second per example.
Forward: TypeAlias = tuple[Float[Array, "B *out"], Float[Array, " B"]]
ScaleName: TypeAlias = Literal["none", "tanh", "sigmoid"]
# Added to a batch's standard deviations before they divide.
_LEAST_DEVIATION = 1e-6
# In Glow's sigmoid(s + 2), what makes a scale that is near 1 of an output of 0.
_SIGMOID_SHIFT = 2.0


class Bijection(nn.Module):
  """An invertible map with a known log-determinant."""

  def forward(self, x: Float[Array, "B *shape"]) -> Forward:
    raise NotImplementedError

  def inverse(self, z: Float[Array, "B *shape"]) -> Float[Array, "B *out"]:
    raise NotImplementedError

  def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape


class Chain(Bijection):
  """One bijection after the other; their log-determinants add up."""

  layers: tuple[Bijection, ...]

  def forward(self, x: Float[Array, "B *shape"]) -> Forward:
    total = jnp.zeros(x.shape[:1], x.dtype)
    for layer in self.layers:
      x, log_det = layer.forward(x)
      total += log_det
    return x, total

  def inverse(self, z: Float[Array, "B *shape"]) -> Float[Array, "B *out"]:
    for layer in reversed(self.layers):
      z = layer.inverse(z)
    return z

  def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    for layer in self.layers:
      shape = layer.output_shape(shape)
    return shape


class Squeeze(Bijection):
  """Half the height and width, four times the channels."""

  def forward(self, x: Float[Array, "B H W C"]) -> Forward:
    return squeeze(x), jnp.zeros(x.shape[:1], x.dtype)

  def inverse(self, z: Float[Array, "B H W C"]) -> Float[Array, "B *out"]:
    return unsqueeze(z)

  def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[0] // 2, shape[1] // 2, 4 * shape[2]


class Flatten(Bijection):
  """An image as a vector."""

  shape: tuple[int, ...]

  def forward(self, x: Float[Array, "B *shape"]) -> Forward:
    return x.reshape(len(x), -1), jnp.zeros(x.shape[:1], x.dtype)

  def inverse(self, z: Float[Array, "B D"]) -> Float[Array, "B *out"]:
    return z.reshape(len(z), *self.shape)

  def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (math.prod(shape),)


class ActNorm(Bijection):
  """z = exp(log_scale) (x + bias) for each channel: Kingma & Dhariwal 2018, section 3.1.

  Parameters start where the batch of `init` has mean 0 and deviation 1 in each channel, and are then learned: no
  statistics of later batches, and nothing that differs between training and evaluation.
  """

  @nn.compact
  def _affine(self, x):
    axes = tuple(range(x.ndim - 1))
    bias = self.param("bias", lambda _: -jnp.mean(x, axes))
    log_scale = self.param("log_scale", lambda _: -jnp.log(jnp.std(x, axes) + _LEAST_DEVIATION))
    return (jnp.expand_dims(value, axes) for value in (bias, log_scale))

  def forward(self, x: Float[Array, "B *shape"]) -> Forward:
    bias, log_scale = self._affine(x)
    positions = math.prod(x.shape[1:-1])
    log_det = jnp.broadcast_to(positions * jnp.sum(log_scale), x.shape[:1])
    return jnp.exp(log_scale) * (x + bias), log_det

  def inverse(self, z: Float[Array, "B *shape"]) -> Float[Array, "B *out"]:
    bias, log_scale = self._affine(z)
    return z * jnp.exp(-log_scale) - bias


class DiagonalScale(Bijection):
  """z = exp(log_scale) x, one number for each dimension: Dinh et al. 2015, section 3.3.

  Differences from the paper: with `from_data` it starts at 1 / the deviations of the batch of `init`, not at 1.
  """

  from_data: bool = False

  @nn.compact
  def _log_scale(self, x):
    first = lambda _: -jnp.log(jnp.std(x, 0) + _LEAST_DEVIATION) if self.from_data else jnp.zeros(x.shape[1:], x.dtype)
    return self.param("log_scale", first)[None]

  def forward(self, x: Float[Array, "B *shape"]) -> Forward:
    log_scale = self._log_scale(x)
    return jnp.exp(log_scale) * x, jnp.broadcast_to(jnp.sum(log_scale), x.shape[:1])

  def inverse(self, z: Float[Array, "B *shape"]) -> Float[Array, "B *out"]:
    return jnp.exp(-self._log_scale(z)) * z


class InvertibleLinear(Bijection):
  """z = W x over the channels of each position (a 1 x 1 convolution), W = P L U: Kingma & Dhariwal 2018, section 3.2.

    log_det = H W sum(log |diagonal of U|)

  W starts as a random rotation. P and the signs of U's diagonal stay as they were drawn: they are in the collection
  "fixed", beside "params".
  """

  @nn.compact
  def _factors(self, channels, dtype):
    def draw():
      order, lower, upper = factorize_lu(orthogonal()(self.make_rng("params"), (channels, channels)).astype(dtype))
      return {"order": order, "lower": lower, "upper": upper}

    drawn = draw() if self.is_initializing() else None
    diagonal = lambda: jnp.diag(drawn["upper"])
    order = self.variable("fixed", "order", lambda: drawn["order"]).value
    sign = self.variable("fixed", "sign", lambda: jnp.sign(diagonal())).value
    empty = jnp.zeros((channels, channels), dtype)
    lower = self.param("lower", lambda _: jnp.tril(drawn["lower"], -1) if drawn else empty)
    upper = self.param("upper", lambda _: jnp.triu(drawn["upper"], 1) if drawn else empty)
    log_scale = self.param("log_scale", lambda _: jnp.log(jnp.abs(diagonal())) if drawn else empty[0])
    return order, *assemble_lu(lower, upper, log_scale, sign), log_scale

  def forward(self, x: Float[Array, "B *shape"]) -> Forward:
    order, lower, upper, log_scale = self._factors(x.shape[-1], x.dtype)
    matrix = (lower @ upper)[jnp.argsort(order)]
    log_det = math.prod(x.shape[1:-1]) * jnp.sum(log_scale)
    return x @ matrix.T, jnp.broadcast_to(log_det, x.shape[:1])

  def inverse(self, z: Float[Array, "B *shape"]) -> Float[Array, "B *out"]:
    order, lower, upper, _ = self._factors(z.shape[-1], z.dtype)
    rows = z[..., order].reshape(-1, z.shape[-1]).T
    rows = solve_triangular(upper, solve_triangular(lower, rows, lower=True, unit_diagonal=True))
    return rows.T.reshape(z.shape)


class _Affine(Bijection):
  """What couplings share: from a conditioner's output to a shift and a log-scale.

  scale: "none" is additive (NICE); "tanh" a learned bound times tanh (RealNVP), 1 for an output of 0; "sigmoid"
    sigmoid(s + 2) (Glow), .88 for an output of 0. The conditioner has twice the channels for the latter two, shifts
    first.
  """

  conditioner: nn.Module
  scale: ScaleName = "tanh"

  def setup(self):
    if self.scale == "tanh":
      self.bound = self.param("bound", nn.initializers.ones, ())

  def shift_and_log_scale(self, x, context):
    raw = self.conditioner(context)
    width = x.shape[-1]
    expected = width if self.scale == "none" else 2 * width
    if raw.shape != (*x.shape[:-1], expected):
      raise InputError(
        f"the conditioner of {type(self).__name__} gives {raw.shape}, expected {(*x.shape[:-1], expected)} with "
        f"scale={self.scale}."
      )
    if self.scale == "none":
      return raw, jnp.zeros_like(raw)
    shift, raw = raw[..., :width], raw[..., width:]
    if self.scale == "tanh":
      return shift, self.bound * jnp.tanh(raw)
    return shift, jax.nn.log_sigmoid(raw + _SIGMOID_SHIFT)


class MaskedCoupling(_Affine):
  """Positions of one colour of the checkerboard stay, the others are scaled and shifted by what these say.

    z = b x + (1 - b) (x exp(s(b x)) + t(b x))                                          Dinh et al. 2017, eq. 9

  log_det = sum((1 - b) s). The colour that stays is the one of `checkerboard_mask(shape, parity)`; of vectors every
  other dimension.
  """

  parity: int = 0

  def _parameters(self, kept, mask):
    shift, log_scale = self.shift_and_log_scale(kept, kept)
    return jnp.where(mask, 0, shift), jnp.where(mask, 0, log_scale)

  def forward(self, x: Float[Array, "B *shape"]) -> Forward:
    mask = checkerboard_mask(x.shape[1:], self.parity)[None]
    shift, log_scale = self._parameters(jnp.where(mask, x, 0), mask)
    return x * jnp.exp(log_scale) + shift, sum_dims(log_scale)

  def inverse(self, z: Float[Array, "B *shape"]) -> Float[Array, "B *out"]:
    mask = checkerboard_mask(z.shape[1:], self.parity)[None]
    shift, log_scale = self._parameters(jnp.where(mask, z, 0), mask)
    return (z - shift) * jnp.exp(-log_scale)


class ChannelCoupling(_Affine):
  """One half of the channels stays, the other is scaled and shifted by what it says; `flip`: the second half stays.

  z = (x_1, x_2 exp(s(x_1)) + t(x_1))                                                 Dinh et al. 2017, eq. 4, 5
  """

  flip: bool = False

  def _halves(self, x):
    size = x.shape[-1]
    if size < 2:
      raise InputError(f"ChannelCoupling: found {size} channel, expected 2 or more, or MaskedCoupling.")
    first, second = x[..., : size // 2], x[..., size // 2 :]
    return (second, first) if self.flip else (first, second)

  def _join(self, kept, changed):
    return jnp.concatenate((changed, kept) if self.flip else (kept, changed), -1)

  def forward(self, x: Float[Array, "B *shape"]) -> Forward:
    kept, changed = self._halves(x)
    shift, log_scale = self.shift_and_log_scale(changed, kept)
    return self._join(kept, changed * jnp.exp(log_scale) + shift), sum_dims(log_scale)

  def inverse(self, z: Float[Array, "B *shape"]) -> Float[Array, "B *out"]:
    kept, changed = self._halves(z)
    shift, log_scale = self.shift_and_log_scale(changed, kept)
    return self._join(kept, (changed - shift) * jnp.exp(-log_scale))


class MultiScale(Bijection):
  """Levels, after each of which but the last half of the channels leave: an image becomes a vector of as many numbers.

  With `priors`, one coupling for each level but the last, what leaves is first normalised by what stays: in the place
  of a learned prior N(mean(stays), deviation(stays)) (Kingma & Dhariwal's code), so that all of z is standard.
  Dinh et al. 2017, section 3.6. The vector's order: what left first, in rows and columns, comes first.
  """

  levels: tuple[Bijection, ...]
  shape: tuple[int, int, int]
  priors: tuple[ChannelCoupling, ...] = ()

  def forward(self, x: Float[Array, "B H W C"]) -> Forward:
    outputs, total = [], jnp.zeros(x.shape[:1], x.dtype)
    for i, level in enumerate(self.levels):
      x, log_det = level.forward(x)
      total += log_det
      if i < len(self.levels) - 1:
        if self.priors:
          x, log_det = self.priors[i].forward(x)
          total += log_det
        half = x.shape[-1] // 2
        outputs.append(x[..., half:].reshape(len(x), -1))
        x = x[..., :half]
    return jnp.concatenate([*outputs, x.reshape(len(x), -1)], -1), total

  def inverse(self, z: Float[Array, "B D"]) -> Float[Array, "B *out"]:
    shapes = self._level_shapes()
    parts, start = [], 0
    for height, width, channels in shapes[:-1]:
      leaving = (height, width, channels - channels // 2)
      parts.append(z[:, start : start + math.prod(leaving)].reshape(len(z), *leaving))
      start += math.prod(leaving)
    x = z[:, start:].reshape(len(z), *shapes[-1])
    for i in reversed(range(len(self.levels))):
      if i < len(self.levels) - 1:
        x = jnp.concatenate([x, parts[i]], -1)
        if self.priors:
          x = self.priors[i].inverse(x)
      x = self.levels[i].inverse(x)
    return x

  def _level_shapes(self) -> list[tuple[int, int, int]]:
    """What each level gives for one example, before half of it leaves."""
    shape, shapes = self.shape, []
    for level in self.levels:
      shape = level.output_shape(shape)
      shapes.append(shape)
      shape = (*shape[:-1], shape[-1] // 2)
    return shapes

  def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (math.prod(shape),)
