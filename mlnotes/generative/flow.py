"""What normalizing flows (notes: 标准化流) stand on: dequantisation, logits, masks, squeezing, LU, bits per dimension.

A flow is a bijection z = f(x) with a known density of z:

  log p(x) = log p_z(f(x)) + log |det df/dx|                            Dinh et al. 2015, section 2; 2017, section 3.1

Everything here is pure. Densities are in nats, of images as points of [0, 1]^D; log-determinants are per example.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from mlnotes.engine.errors import InputError

LOG_2 = math.log(2.0)


def sum_dims(values: Float[Array, "B *shape"]) -> Float[Array, " B"]:
  """Sum over all axes but the first: a log-determinant is one number per example, never one per batch."""
  return jnp.sum(values, tuple(range(1, values.ndim)))


# -- from grey levels to points and back -------------------------------------------------------------------------------


def dequantize(
  image: UInt8[Array, "B *shape"] | Int[Array, "B *shape"], noise: Float[Array, "B *shape"], num_levels: int
) -> Float[Array, "B *shape"]:
  """(image + noise) / num_levels: levels 0 .. num_levels - 1 spread over [0, 1) by noise that is uniform on [0, 1).

  The mean log-density of such points, less D log(num_levels), is a lower bound on the log-probability of the levels:
  Theis et al. 2016, section 3.1. Raises InputError for fewer than two levels.
  """
  if num_levels < 2:
    raise InputError(f"num_levels is {num_levels}, expected 2 or more.")
  return (image.astype(noise.dtype) + noise) / num_levels


def to_grey_levels(x: Float[Array, "B *shape"], num_levels: int) -> UInt8[Array, "B *shape"]:
  """The level that each value of [0, 1) stands for; what lies outside goes to the nearest one."""
  return jnp.clip(jnp.floor(x * num_levels), 0, num_levels - 1).astype(jnp.uint8)


def logit(x: Float[Array, "B *shape"], alpha: float) -> tuple[Float[Array, "B *shape"], Float[Array, " B"]]:
  """(log(p) - log(1 - p) of p = alpha + (1 - 2 alpha) x, its log-determinant) for x on [0, 1].

    log |dy/dx| = log(1 - 2 alpha) - log(p) - log(1 - p)                                   Papamakarios et al. 2017

  Differences from the paper: Dinh et al. 2017, section 4.1, have alpha + (1 - alpha) x, which is 1 at x = 1.
  Raises InputError for alpha outside (0, 0.5).
  """
  _require_alpha(alpha)
  p = alpha + (1 - 2 * alpha) * x
  low, high = jnp.log(p), jnp.log1p(-p)
  return low - high, sum_dims(math.log(1 - 2 * alpha) - low - high)


def inverse_logit(y: Float[Array, "B *shape"], alpha: float) -> Float[Array, "B *shape"]:
  """x of `logit`; between -alpha / (1 - 2 alpha) and 1 + that, for the logits of any y."""
  _require_alpha(alpha)
  return (jax.nn.sigmoid(y) - alpha) / (1 - 2 * alpha)


def _require_alpha(alpha: float) -> None:
  if not 0 < alpha < 0.5:
    raise InputError(f"alpha is {alpha}, expected a number between 0 and 0.5.")


def bits_per_dim(
  log_density: Float[Array, "*B"] | Float[np.ndarray, "*B"], num_levels: int, num_dims: int
) -> Float[Array, "*B"] | Float[np.ndarray, "*B"]:
  """Bits per dimension of levels whose dequantised points, on [0, 1]^D, have this log-density in nats.

    (-log p(x) / D + log(num_levels)) / log 2

  A uniform density gives log2(num_levels). Raises InputError for fewer than two levels or no dimension.
  """
  if num_levels < 2 or num_dims < 1:
    raise InputError(f"num_levels is {num_levels}, num_dims {num_dims}: expected 2 or more, and 1 or more.")
  return (math.log(num_levels) - log_density / num_dims) / LOG_2


# -- densities of z ----------------------------------------------------------------------------------------------------


def normal_log_density(z: Float[Array, "B D"]) -> Float[Array, " B"]:
  """Of independent standard normals."""
  return sum_dims(-0.5 * (jnp.square(z) + math.log(2 * math.pi)))


def logistic_log_density(z: Float[Array, "B D"]) -> Float[Array, " B"]:
  """Of independent standard logistics, -log(1 + e^z) - log(1 + e^-z): Dinh et al. 2015, section 3.4."""
  return sum_dims(-jax.nn.softplus(z) - jax.nn.softplus(-z))


# -- masks and shapes --------------------------------------------------------------------------------------------------


def checkerboard_mask(shape: tuple[int, ...], parity: int) -> Bool[np.ndarray, "*shape"]:
  """True where row + column is even (parity 0) or odd (1); of vectors, by position. Channels are of one colour.

  Dinh et al. 2017, section 3.4.
  """
  axes = shape[:-1] if len(shape) > 1 else shape
  board = (sum(np.indices(axes)) + parity) % 2 == 0
  return np.broadcast_to(board[..., None], shape) if len(shape) > 1 else board


def squeeze(x: Num[Array, "B H W C"]) -> Num[Array, "B H2 W2 C4"]:
  """Each 2 x 2 square of a channel becomes four channels, row by row: Dinh et al. 2017, section 3.6.

  Raises InputError for an odd height or width.
  """
  batch, height, width, channels = x.shape
  if height % 2 or width % 2:
    raise InputError(f"an image of {height} x {width} cannot be squeezed: expected an even height and width.")
  x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
  return x.reshape(batch, height // 2, width // 2, 4 * channels)


def unsqueeze(x: Num[Array, "B H W C"]) -> Num[Array, "B H2 W2 C4"]:
  """The inverse of `squeeze`. Raises InputError for channels that are no multiple of 4."""
  batch, height, width, channels = x.shape
  if channels % 4:
    raise InputError(f"{channels} channels cannot be unsqueezed: expected a multiple of 4.")
  x = x.reshape(batch, height, width, channels // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
  return x.reshape(batch, 2 * height, 2 * width, channels // 4)


# -- linear maps of known determinant ----------------------------------------------------------------------------------


def factorize_lu(
  matrix: Float[Array, "C C"],
) -> tuple[Int[Array, " C"], Float[Array, "C C"], Float[Array, "C C"]]:
  """(permutation, L, U) with matrix[permutation] = L U: L unit lower, U upper triangular, pivots the largest.

  Gaussian elimination in plain operations: LAPACK's, batched over seeds, waits for threads that wait for it.
  """
  size = len(matrix)
  rows = jnp.arange(size)

  def eliminate(i, carry):
    order, work = carry
    pivot = jnp.argmax(jnp.where(rows >= i, jnp.abs(work[:, i]), -1.0))
    swap = rows.at[i].set(pivot).at[pivot].set(i)
    order, work = order[swap], work[swap]
    below = rows > i
    factor = jnp.where(below, work[:, i] / work[i, i], 0.0)
    right = jnp.where(rows > i, work[i], 0.0)
    work = work - factor[:, None] * right[None, :]
    return order, work.at[:, i].set(jnp.where(below, factor, work[:, i]))

  order, work = jax.lax.fori_loop(0, size, eliminate, (rows, matrix))
  return order, jnp.tril(work, -1) + jnp.eye(size, dtype=matrix.dtype), jnp.triu(work)


def assemble_lu(
  lower: Float[Array, "C C"], upper: Float[Array, "C C"], log_scale: Float[Array, " C"], sign: Float[Array, " C"]
) -> tuple[Float[Array, "C C"], Float[Array, "C C"]]:
  """(L, U) from what is learned: L's part below the diagonal, U's above it, and log |diagonal of U| with its signs.

  log |det P L U| = sum(log_scale)                                                  Kingma & Dhariwal 2018, eq. 10, 11
  """
  eye = jnp.eye(len(lower), dtype=lower.dtype)
  return jnp.tril(lower, -1) + eye, jnp.triu(upper, 1) + jnp.diag(sign * jnp.exp(log_scale))
