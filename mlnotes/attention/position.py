"""Where a token stands: added to its features, turned into its queries and keys, or added to the scores."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

RotaryForm = Literal["halves", "interleaved"]


def sinusoidal_positions(
  positions: Int[Array, "*T"], width: int, base: float = 10000.0, interleaved: bool = True
) -> Float[Array, "*T D"]:
  """sin and cos of each position at wavelengths from 2 pi to `base` 2 pi. Vaswani et al. 2017, sec. 3.5.

    PE(p, 2i) = sin(p / base^(2i / D)),    PE(p, 2i + 1) = cos(p / base^(2i / D))

  `interleaved=False` has all sines first, then all cosines, as tensor2tensor: a permutation of the features.
  Raises ValueError for an odd width.
  """
  angle = _angles(positions, width, base)
  parts = (jnp.sin(angle), jnp.cos(angle))
  return jnp.stack(parts, -1).reshape(*positions.shape, width) if interleaved else jnp.concatenate(parts, -1)


def apply_rotary(
  x: Float[Array, "B T N H"], positions: Int[Array, "#B T"], base: float = 10000.0, form: RotaryForm = "halves"
) -> Float[Array, "B T N H"]:
  """Turns each pair of features by an angle that grows with the position. Su et al. 2021, eq. 34.

  Of queries and of keys, not of values: their product then depends on the difference of positions alone. The pair is
  (i, i + H / 2) in `halves` (GPT-NeoX, Hugging Face), (2i, 2i + 1) where `interleaved` (the paper, GPT-J); the two are
  the same up to a permutation of the features. Angles are float32 whatever x is, and grow with
  each position by what is exact to 1e-9.
  Raises ValueError for an odd number of features, or another form.
  """
  if form not in ("halves", "interleaved"):
    raise ValueError(f"form is {form!r}, expected halves or interleaved")
  angle = _angles(positions, x.shape[-1], base)[:, :, None, :]
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if form == "halves":
    first, second = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
  else:
    first, second = wide[..., ::2], wide[..., 1::2]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], -1).reshape(x.shape)
  return turned.astype(x.dtype)


def _angles(positions: Int[Array, "*T"], width: int, base: float) -> Float[Array, "*T D"]:
  if width % 2:
    raise ValueError(f"{width} features cannot be taken in pairs: expected an even number")
  # In parts of a turn of 2^32, whose multiples wrap around exactly: the angles of two positions then differ by that of
  # their difference, wherever these are. Of a float32 product the third digit is gone at position 100,000.
  turn = base ** -(np.arange(0, width, 2, dtype=np.float64) / width) / (2 * np.pi)
  parts = np.round(turn * 2**32).astype(np.uint32).reshape((1,) * positions.ndim + (-1,))
  phase = jax.lax.bitcast_convert_type(positions.astype(jnp.uint32)[..., None] * parts, jnp.int32)
  return phase.astype(jnp.float32) * np.float32(2 * np.pi / 2**32)


def alibi_slopes(heads: int) -> Float[np.ndarray, " N"]:
  """2^(-8 h / N) for h = 1 ... N. Press et al. 2022, sec. 3.

  Where N is no power of two: the slopes of the power below it, then every other one of twice as many heads, as the
  authors' code has it.
  """
  below = 2 ** math.floor(math.log2(heads))
  slopes = lambda count: 2.0 ** (-8 * np.arange(1, count + 1) / count)
  return np.concatenate([slopes(below), slopes(2 * below)[::2][: heads - below]]).astype(np.float32)


def make_alibi(heads: int) -> Callable[[Array, Array], Float[Array, "B N T S"]]:
  """The bias -slope |i - j| of each head, as a function of positions. Press et al. 2022, sec. 3."""
  slopes = alibi_slopes(heads)

  def bias(queries: Int[Array, "B T"], keys: Int[Array, "B S"]) -> Float[Array, "B N T S"]:
    distance = jnp.abs(queries[:, :, None] - keys[:, None, :]).astype(jnp.float32)
    return -slopes[None, :, None, None] * distance[:, None]

  return bias


def relative_buckets(
  distance: Int[Array, "..."], buckets: int = 32, furthest: int = 128, bidirectional: bool = True
) -> Int[Array, "..."]:
  """The bucket of each distance, key's place less query's: one for each near distance, then ever wider ones.

  Half of the buckets are of single distances, the others grow by a constant factor up to `furthest`, beyond which all
  is one. `bidirectional` gives each direction its half; otherwise later keys share the bucket of distance 0. Raffel et
  al. 2020, sec. 2.1, as their code has it. Boundaries are integers, so that no rounding moves them.
  Raises ValueError for fewer than 4 buckets (2 where not bidirectional), or a `furthest` that they pass.
  """
  each = buckets // 2 if bidirectional else buckets
  single = each // 2
  if single < 1 or furthest <= single:
    raise ValueError(f"{buckets} buckets up to {furthest}: expected 4 or more, and more distances than buckets")
  steps = np.arange(1, each - single) / (each - single)
  bounds = np.ceil(single * (furthest / single) ** steps - 1e-6).astype(np.int32)
  later = distance > 0
  far = jnp.abs(distance) if bidirectional else jnp.maximum(-distance, 0)
  wide = single + jnp.sum(far[..., None] >= bounds.reshape((1,) * distance.ndim + (-1,)), -1)
  found = jnp.where(far < single, far, wide)
  return found + each * later if bidirectional else found


def make_relative(
  table: Float[Array, "K N"], furthest: int = 128, bidirectional: bool = True
) -> Callable[[Array, Array], Float[Array, "B N T S"]]:
  """The bias that a learned table gives each head and bucket of distances, as a function of positions."""

  def bias(queries: Int[Array, "B T"], keys: Int[Array, "B S"]) -> Float[Array, "B N T S"]:
    found = relative_buckets(keys[:, None, :] - queries[:, :, None], table.shape[0], furthest, bidirectional)
    return jnp.moveaxis(jnp.take(table, found, axis=0), -1, 1)

  return bias
