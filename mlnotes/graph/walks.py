"""Random walks on the device: uniform ones (DeepWalk) and node2vec's with true p and q, by rejection sampling.

node2vec weighs the step from v, having come from t, to x by

  w_vx / p  where x = t,    w_vx  where x is a neighbour of t,    w_vx / q  elsewhere.       Grover & Leskovec 2016, 3.2

No table of these is needed (the paper has an alias table for each edge): x is drawn as if they were w_vx and accepted
with the odds of what they are, so that memory is that of the graph. Rejection for such walks is KnightKing's (Yang et
al. 2019), which also tells the way back apart.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.engine.errors import InputError
from mlnotes.graph.neighbors import NeighborRows, are_neighbors, find_in_cumulative, find_in_rows

Scalar: TypeAlias = Float[Array, ""] | float


class Walks(NamedTuple):
  """Node nodes[b, i] is where walk b is after i steps; it counts where mask is 1.

  A walk ends at a node without neighbours, whose number fills its rest.
  """

  nodes: Int[Array, "B L"]
  mask: Bool[Array, "B L"]


def sample_walks(
  key: Key[Array, ""],
  rows: NeighborRows,
  starts: Int[Array, " B"],
  length: int,
  p: Scalar | None = None,
  q: Scalar | None = None,
) -> Walks:
  """Walks over `length` nodes, the first of them `starts`; a step follows an edge in proportion to its weight.

  With `p` and `q`, both above 0, they are node2vec's: the first step is as without, and every other one looks back at
  the node before (d(t, x) counts from it, not from the first). p = q = 1 changes nothing but the time. Raises
  InputError for a length below 1, and where one of p and q alone is given.
  """
  if length < 1:
    raise InputError(f"length is {length}, expected 1 or more nodes of a walk.")
  if (p is None) != (q is None):
    raise InputError(f"p is {p} and q is {q}, expected both or neither.")
  if p is None:
    return _sample_uniform(key, rows, starts, length)
  return _sample_biased(key, rows, starts, length, jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32))


def _total_weight(rows: NeighborRows, node: Int[Array, " B"]) -> Float[Array, " B"]:
  degree = rows.degree[node]
  if rows.cumulative is None:
    return degree.astype(jnp.float32)
  last = jnp.maximum(rows.starts[node + 1] - 1, 0)
  return jnp.where(degree > 0, rows.cumulative[last], 0)


def _take_neighbor(rows: NeighborRows, node: Int[Array, " B"], height: Float[Array, " B"]) -> Int[Array, " B"]:
  """The neighbour at `height`, in [0, total weight), of the weights laid end to end; `node` where it has none."""
  if rows.cumulative is None:
    place = jnp.minimum(height.astype(jnp.int32), rows.degree[node] - 1) + rows.starts[node]
  else:
    place = find_in_cumulative(rows, node, height)
  place = jnp.clip(place, 0, rows.neighbors.shape[0] - 1)
  return jnp.where(rows.degree[node] > 0, rows.neighbors[place], node)


def _sample_uniform(key, rows: NeighborRows, starts, length: int) -> Walks:
  starts = starts.astype(rows.neighbors.dtype)

  def step(node, number):
    height = jax.random.uniform(jax.random.fold_in(key, number), starts.shape) * _total_weight(rows, node)
    after = _take_neighbor(rows, node, height)
    return after, (after, rows.degree[node] > 0)

  _, (nodes, moved) = jax.lax.scan(step, starts, jnp.arange(length - 1))
  nodes = jnp.concatenate([starts[:, None], nodes.T], axis=1)
  return Walks(nodes, jnp.concatenate([jnp.ones_like(starts, bool)[:, None], moved.T], axis=1))


class _Progress(NamedTuple):
  nodes: Int[Array, "B L"]
  position: Int[Array, " B"]  # of the next node
  node: Int[Array, " B"]
  previous: Int[Array, " B"]
  trial: Int[Array, ""]


def _sample_biased(key, rows: NeighborRows, starts, length: int, p, q) -> Walks:
  """Each walk goes on as soon as its own trial is accepted, so that none waits at each step for the unluckiest."""
  starts = starts.astype(rows.neighbors.dtype)
  batch = jnp.arange(starts.shape[0])

  def attempt(progress: _Progress) -> _Progress:
    of_trial = jax.random.fold_in(key, progress.trial)
    after, accepted = _try_step(of_trial, rows, progress.node, progress.previous, progress.position == 1, p, q)
    ended = rows.degree[progress.node] == 0
    accepted &= (progress.position < length) & ~ended
    nodes = progress.nodes.at[batch, jnp.where(accepted, progress.position, length)].set(after, mode="drop")
    keep = lambda new, old: jnp.where(accepted, new, old)
    position = jnp.where(ended, length, progress.position + accepted)
    return _Progress(
      nodes, position, keep(after, progress.node), keep(progress.node, progress.previous), progress.trial + 1
    )

  nodes = jnp.full((starts.shape[0], length), -1, starts.dtype).at[:, 0].set(starts)
  first = _Progress(nodes, jnp.ones_like(starts), starts, starts, jnp.int32(0))
  found = jax.lax.while_loop(lambda progress: jnp.any(progress.position < length), attempt, first)
  mask = found.nodes >= 0
  return Walks(jnp.where(mask, found.nodes, found.node[:, None]), mask)


def _try_step(key, rows: NeighborRows, node, previous, first, p, q) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
  """(the neighbour that is tried, whether it is accepted).

  A dart falls on the weights w_vx of all neighbours but t, laid end to end under a ceiling of max(1, 1/q), and counts
  where it is below 1 or 1/q; behind them lies w_vt / p, where every dart counts. So at least min(q, 1/q) of the darts
  count, whatever p: with t among the others a walk would long be held where it has nothing but the way back.
  """
  across, up = jax.random.uniform(key, (2, *node.shape))
  ceiling = jnp.maximum(1.0, 1 / q)
  back = jnp.where(first, -1, find_in_rows(rows, node, previous))
  if rows.cumulative is None:
    weight = (back >= 0).astype(jnp.float32)
    before = (back - rows.starts[node]).astype(jnp.float32)
  else:
    weight = jnp.where(back >= 0, rows.weights[back], 0)
    before = rows.cumulative[back] - weight
  others = _total_weight(rows, node) - weight
  place = across * (others + weight / (p * ceiling))
  returns = place >= others
  passed = (back >= 0) & (place >= before)
  after = jnp.where(returns, previous, _take_neighbor(rows, node, jnp.where(passed, place + weight, place)))
  odds = jnp.where(are_neighbors(rows, previous, after), 1.0, 1 / q)
  rounded = (back >= 0) & (after == previous)  # sums of weights are not exact: t once more, which counts no dart
  return after, first | returns | ((up * ceiling < odds) & ~rounded)


def transition_probabilities(weights: Float[Array, "N N"], p: Scalar, q: Scalar) -> Float[Array, "N N N"]:
  """P(x | v, t) at [t, v, x]: node2vec's next node x at v having come from t, of a small graph with these weights.

  weights[v, x] is that of the edge from v to x, 0 where there is none. Rows of a v that is not next to t, and of a v
  without neighbours, are 0.
  """
  size = weights.shape[0]
  edge = weights > 0
  same = jnp.eye(size, dtype=bool)
  bias = jnp.where(same, 1 / p, jnp.where(edge, 1.0, 1 / q))  # [t, x]
  mass = jnp.where(edge[:, :, None], bias[:, None, :] * weights[None], 0)
  total = jnp.sum(mass, axis=2, keepdims=True)
  return mass / jnp.where(total > 0, total, 1)
