"""Matrices that are mostly 0, such as the words of documents: their first product needs what is there alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num


class SparseMatrix(NamedTuple):
  """Row rows[i], column columns[i] has values[i], all others 0. `like` is (N, 0), so that a trace knows the height."""

  rows: Int[Array, " M"]
  columns: Int[Array, " M"]
  values: Float[Array, " M"]
  like: Float[Array, "N 0"]

  @property
  def height(self) -> int:
    return self.like.shape[0]


def make_sparse(dense: Num[np.ndarray, "N D"]) -> SparseMatrix:
  """The entries of `dense` that are not 0, row after row. On the host."""
  dense = np.asarray(dense)
  rows, columns = np.nonzero(dense)
  values = dense[rows, columns].astype(np.float32)
  like = np.zeros((len(dense), 0), np.float32)
  return SparseMatrix(jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32), jnp.asarray(values), like)


def sparse_dot(matrix: SparseMatrix, kernel: Float[Array, "D F"]) -> Float[Array, "N F"]:
  """matrix @ kernel."""
  return jax.ops.segment_sum(matrix.values[:, None] * kernel[matrix.columns], matrix.rows, matrix.height)


def sparse_dropout(key: Key[Array, ""], matrix: SparseMatrix, rate: Float[Array, ""] | float) -> SparseMatrix:
  """Dropout of what is not 0, which is all that dropout of the whole matrix would change."""
  kept = jax.random.bernoulli(key, 1 - rate, matrix.values.shape)
  return matrix._replace(values=jnp.where(kept, matrix.values / (1 - rate), 0))
