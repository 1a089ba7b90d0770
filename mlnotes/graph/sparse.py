"""Matrices that are mostly 0, such as the words of documents: their first product needs what is there alone."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

Rate = Float[Array, ""] | float


class SparseMatrix(NamedTuple):
  """Row rows[i], column columns[i] has values[i], all others 0. `like` is (N, 0, D): a trace knows height and width."""

  rows: Int[Array, " M"]
  columns: Int[Array, " M"]
  values: Float[Array, " M"]
  like: Float[Array, "N 0 D"]

  @property
  def height(self) -> int:
    return self.like.shape[0]

  @property
  def width(self) -> int:
    return self.like.shape[2]


def make_sparse(dense: Num[np.ndarray, "N D"]) -> SparseMatrix:
  """The entries of `dense` that are not 0, row after row. On the host."""
  rows, columns = np.nonzero(dense)
  values = dense[rows, columns].astype(np.float32)
  like = np.zeros((len(dense), 0, dense.shape[1]), np.float32)
  return SparseMatrix(jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32), jnp.asarray(values), like)


def sparse_dot(matrix: SparseMatrix, kernel: Float[Array, "D F"]) -> Float[Array, "N F"]:
  """matrix @ kernel."""
  return jax.ops.segment_sum(matrix.values[:, None] * kernel[matrix.columns], matrix.rows, matrix.height)


def to_dense(x: SparseMatrix | Float[Array, "N D"]) -> Float[Array, "N D"]:
  """`x` with its zeros."""
  return sparse_dot(x, jnp.eye(x.width)) if isinstance(x, SparseMatrix) else x


def sparse_dropout(key: Key[Array, ""], matrix: SparseMatrix, rate: Rate) -> SparseMatrix:
  """Dropout of what is not 0, which is all that dropout of the whole matrix would change."""
  return matrix._replace(values=matrix.values * draw_kept(key, matrix.values.shape, rate))


def draw_kept(key: Key[Array, ""], shape: tuple[int, ...], rate: Rate) -> Float[Array, "..."]:
  """Factors of dropout: 0 with probability `rate`, and what keeps the mean otherwise.

  Random bits are what dropout on a graph costs most, so a number has eight of them and not 32: the rate is rounded to
  256ths, and what is kept is scaled by what was rounded to. Where a rate is not 0, at most 255 of 256 are dropped.
  """
  size = math.prod(shape)
  words = jax.random.bits(key, (-(-size // 4),), jnp.uint32)
  drawn = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:size].reshape(shape)
  dropped = jnp.clip(jnp.round(256 * jnp.asarray(rate, jnp.float32)), 0, 255)
  return jnp.where(drawn.astype(jnp.float32) >= dropped, 256 / (256 - dropped), 0.0)


class RowTable(NamedTuple):
  """Row i has values[i, j] in column columns[i, j], each row as many as the fullest; what is left over is 0."""

  columns: Int[Array, "N W"]
  values: Float[Array, "N W"]
  like: Float[Array, "0 D"]


def make_row_table(dense: Num[np.ndarray, "N D"]) -> RowTable:
  """The entries of `dense` that are not 0, in a table from which rows can be taken in a compiled step. On the host."""
  width = max(1, int((dense != 0).sum(1).max()))
  order = np.argsort(dense == 0, axis=1, kind="stable")[:, :width]
  values = np.take_along_axis(dense, order, 1).astype(np.float32)
  like = np.zeros((0, dense.shape[1]), np.float32)
  return RowTable(jnp.asarray(order, jnp.int32), jnp.asarray(values), jnp.asarray(like))


def take_rows(x: RowTable | Float[Array, "N D"], nodes: Int[Array, " R"]) -> SparseMatrix | Float[Array, "R D"]:
  """The rows of `nodes`, which may come more than once."""
  if not isinstance(x, RowTable):
    return x[nodes]
  size, width = nodes.shape[0], x.columns.shape[1]
  rows = jnp.repeat(jnp.arange(size), width, total_repeat_length=size * width)
  like = jnp.zeros((size, 0, x.like.shape[1]))
  return SparseMatrix(rows, x.columns[nodes].reshape(-1), x.values[nodes].reshape(-1), like)
