"""How alike two nodes are by their neighbours: link predictors that need no learning (notes: Jaccard 相似度).

Liben-Nowell & Kleinberg 2007, section 3. A predictor of edges must not see those it is to predict: they are left out of
the graph first. The neighbours of a node, N(v), are without the node itself.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mlnotes.graph.neighbors import NeighborRows, are_neighbors


def common_neighbors(rows: NeighborRows, pairs: Int[Array, "P 2"]) -> Float[Array, " P"]:
  """|N(u) & N(v)|."""
  return _sum_common(rows, pairs, jnp.ones(rows.num_nodes))


def jaccard(rows: NeighborRows, pairs: Int[Array, "P 2"]) -> Float[Array, " P"]:
  """|N(u) & N(v)| / |N(u) | N(v)|, 0 where neither has a neighbour. Jaccard 1901."""
  common, degree = common_neighbors(rows, pairs), _count_others(rows)
  union = degree[pairs[:, 0]] + degree[pairs[:, 1]] - common
  # A node beside itself: N(u) is both and their union.
  return jnp.where(union > 0, common / jnp.maximum(union, 1), 0)


def adamic_adar(rows: NeighborRows, pairs: Int[Array, "P 2"]) -> Float[Array, " P"]:
  """The sum of 1 / log |N(x)| over the common neighbours x: one that few have says more. Adamic & Adar 2003.

  Of two different nodes each common neighbour has two or more; one that has fewer, of a node beside itself, adds 0.
  """
  degree = _count_others(rows)
  value = jnp.where(degree >= 2, 1 / jnp.log(jnp.maximum(degree, 2)), 0)
  return _sum_common(rows, pairs, value)


def degree_product(rows: NeighborRows, pairs: Int[Array, "P 2"]) -> Float[Array, " P"]:
  """|N(u)| |N(v)|: preferential attachment, the score that knows nothing of where the two nodes are."""
  degree = _count_others(rows)
  return degree[pairs[:, 0]] * degree[pairs[:, 1]]


def _count_others(rows: NeighborRows) -> Float[Array, " N"]:
  """|N(v)|."""
  own = jnp.arange(rows.num_nodes, dtype=rows.neighbors.dtype)
  return (rows.degree - are_neighbors(rows, own, own)).astype(jnp.float32)


def _sum_common(rows: NeighborRows, pairs: Int[Array, "P 2"], value: Float[Array, " N"]) -> Float[Array, " P"]:
  """The sum of `value` over N(u) & N(v): each neighbour of the end that has fewer is looked up at the other end.

  One place of all the rows after the other, so that memory is a number or two for each pair.
  """
  first, second = pairs[:, 0], pairs[:, 1]
  swap = rows.degree[first] > rows.degree[second]
  fewer, more = jnp.where(swap, second, first), jnp.where(swap, first, second)
  count, start = rows.degree[fewer], rows.starts[fewer]

  def add(place, total):
    node = rows.neighbors[jnp.minimum(start + place, rows.neighbors.shape[0] - 1)]
    shared = (place < count) & are_neighbors(rows, more, node) & (node != first) & (node != second)
    return total + jnp.where(shared, value[node], 0)

  return jax.lax.fori_loop(0, jnp.max(count, initial=0), add, jnp.zeros(len(pairs)))
