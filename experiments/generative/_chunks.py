"""Networks over more rows than they are given at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num


def in_chunks(function: Callable[..., Any], *arrays: Num[np.ndarray, "N ..."] | Num[Array, "N ..."], size: int) -> Any:
  """`function(*arrays)` over `size` rows at a time, the last ones filled up with copies: one shape, one compilation.

  Its results, a tree of arrays with a row for each row, are joined on the host.
  """
  count, parts = len(arrays[0]), []
  for start in range(0, count, size):
    index = np.minimum(np.arange(start, start + size), count - 1)
    parts.append(jax.tree.map(np.asarray, function(*(jnp.asarray(array[index]) for array in arrays))))
  return jax.tree.map(lambda *rows: np.concatenate(rows)[:count], *parts)
