"""Initial weights that keep the variance of what flows through a layer.

Each takes the kernel's shape as Flax has it, (*window, C_in / groups, C_out), and draws with variance scale / fan:
"normal" and "uniform" are what torch's `kaiming_` and `xavier_` functions draw; "truncated_normal" is cut at two
deviations and widened by 1 / .8796, so that its variance is the same. `jax.nn.initializers.he_normal` and
`lecun_normal` (Flax's default for Dense and Conv) are the truncated form; Keras' too.

fan_in = window * C_in / groups and fan_out = window * C_out / groups: how many values a value is summed from, and how
many it goes to. jax and torch leave `groups` out of fan_out, as nothing in the kernel's shape tells it.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

Distribution = Literal["normal", "uniform", "truncated_normal"]
Mode = Literal["fan_in", "fan_out", "fan_avg"]


def compute_fans(shape: Sequence[int], groups: int = 1) -> tuple[int, int]:
  """(fan_in, fan_out) of a kernel of shape (*window, C_in / groups, C_out).

  Raises ValueError for fewer than two axes, or where `groups` does not divide the channels out.
  """
  if len(shape) < 2 or groups < 1 or shape[-1] % groups:
    raise ValueError(
      f"kernel of shape {tuple(shape)}, groups={groups}: expected (*window, in, out), out / groups whole"
    )
  window = math.prod(shape[:-2])
  return window * shape[-2], window * shape[-1] // groups


def he(
  distribution: Distribution = "normal", slope: float = 0.0, mode: Mode = "fan_in", groups: int = 1
) -> Initializer:
  """Variance 2 / ((1 + slope^2) fan): He et al. 2015 (Delving deep), eq. 10, 14, 15.

  For layers behind ReLU (`slope` 0), leaky ReLU (its slope), or nothing (`slope` 1). `mode` "fan_in" keeps the
  variance of activations, "fan_out" that of gradients.
  """
  return _scaled(2 / (1 + slope**2), mode, distribution, groups)


def glorot(distribution: Distribution = "uniform", groups: int = 1) -> Initializer:
  """Variance 2 / (fan_in + fan_out): Glorot & Bengio 2010, eq. 12 and, uniform, 16. For tanh and linear layers."""
  return _scaled(1.0, "fan_avg", distribution, groups)


def lecun(distribution: Distribution = "truncated_normal") -> Initializer:
  """Variance 1 / fan_in: LeCun et al. 1998 (Efficient BackProp), sec. 4.6. As it stands here Flax's default.

  For linear and SELU layers; each ReLU halves the variance, 50 of them leave 2^-50.
  """
  return _scaled(1.0, "fan_in", distribution, 1)


def torch_linear() -> Initializer:
  """U(-b, b), b = 1 / sqrt(fan_in): the kernels of `torch.nn.Linear` and `ConvNd`, of variance 1 / (3 fan_in)."""
  return _scaled(1 / 3, "fan_in", "uniform", 1)


def torch_bias(fan_in: int) -> Initializer:
  """U(-b, b), b = 1 / sqrt(fan_in): the biases of `torch.nn.Linear` and `ConvNd`; `fan_in` is that of the kernel."""

  def init(key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = jnp.float32, **kwargs) -> Float[Array, "..."]:
    return jax.random.uniform(key, shape, dtype, -1, 1, **kwargs) / math.sqrt(fan_in)

  return init


def orthogonal(scale: float = 1.0) -> Initializer:
  """`scale` times a matrix (inputs, outputs) with orthonormal rows or columns, whichever fit. Saxe et al. 2014.

  Uniform over such matrices: Gram-Schmidt, twice for accuracy, on Gaussian vectors.
  `jax.nn.initializers.orthogonal` has the same distribution, but batched over seeds its QR factorisations can block
  all threads of XLA's pool on a machine of few cores, for ever.
  """

  def init(key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Float[Array, "rows columns"]:
    short, long = sorted(shape)
    vectors = jax.random.normal(key, (short, long))

    def one(i, vectors):
      row = vectors[i]
      before = jnp.where(jnp.arange(short)[:, None] < i, vectors, 0)
      for _ in range(2):
        row = row - (before @ row) @ before
      return vectors.at[i].set(row / jnp.linalg.norm(row))

    vectors = jax.lax.fori_loop(0, short, one, vectors)
    return (scale * (vectors if shape[0] == short else vectors.T)).astype(dtype)

  return init


def _scaled(scale: float, mode: str, distribution: str, groups: int) -> Initializer:
  if mode not in ("fan_in", "fan_out", "fan_avg"):
    raise ValueError(f"mode is {mode!r}, expected 'fan_in', 'fan_out' or 'fan_avg'")
  if distribution not in ("normal", "uniform", "truncated_normal"):
    raise ValueError(f"distribution is {distribution!r}, expected 'normal', 'uniform' or 'truncated_normal'")

  def init(key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = jnp.float32, **kwargs) -> Float[Array, "..."]:
    fan_in, fan_out = compute_fans(shape, groups)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    return variance_scaling(scale * fan_in / fan, "fan_in", distribution)(key, shape, dtype, **kwargs)

  return init
