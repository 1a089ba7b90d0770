"""Parts of a graph with few edges between them, and batches of several parts: ClusterGCN, Chiang et al. 2019."""

import collections
import heapq
import itertools
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mlnotes.engine.errors import InputError
from mlnotes.graph.edges import Edges

Partition = Literal["auto", "metis", "built_in", "random"]


def partition_graph(
  senders: Int[np.ndarray, " E"],
  receivers: Int[np.ndarray, " E"],
  num_nodes: int,
  parts: int,
  seed: int = 0,
  kind: Partition = "auto",
) -> Int[np.ndarray, " N"]:
  """The part of each node, 0 to parts - 1. On the host.

  metis: pymetis, which "auto" takes where it is installed. built_in: parts grown from node to neighbour, then
  improved by moving single nodes to where most of their neighbours are. random: the floor. Raises InputError for more
  parts than nodes, or none, and for metis where it is not installed.
  """
  if not 1 <= parts <= num_nodes:
    raise InputError(f"{parts} parts of {num_nodes} nodes, expected 1 to {num_nodes}.")
  rng = np.random.default_rng(seed)
  if kind == "random":
    return rng.permutation(num_nodes) * parts // num_nodes
  order = np.argsort(receivers, kind="stable")
  starts = np.concatenate([[0], np.cumsum(np.bincount(receivers, minlength=num_nodes))])
  neighbors = senders[order]
  if kind in ("auto", "metis"):
    try:
      import pymetis
    except ImportError as error:
      if kind == "metis":
        raise InputError("metis needs pymetis, which is not installed: pip install pymetis, or built_in.") from error
    else:
      if parts == 1:
        return np.zeros(num_nodes, np.int64)
      rows = [neighbors[a:b] for a, b in itertools.pairwise(starts)]
      _, found = pymetis.part_graph(parts, adjacency=rows)
      return np.asarray(found).astype(np.int32)
  return _improve(_grow(starts, neighbors, num_nodes, parts, rng), starts, neighbors, parts)


def _grow(starts, neighbors, num_nodes: int, parts: int, rng) -> Int[np.ndarray, " N"]:
  """One part after the other, next always the node with most neighbours in the part, from a node beside the last."""
  found, frontier, size = np.full(num_nodes, -1), [], -(-num_nodes // parts)
  rest = list(rng.permutation(num_nodes))
  for part in range(parts):
    # All parts that are still to come have a node.
    count, goal = 0, min(size, (found < 0).sum() - (parts - 1 - part))
    links: collections.Counter = collections.Counter()
    frontier = frontier[:1]
    while count < goal:
      if not frontier:
        while found[rest[-1]] >= 0:
          rest.pop()
        frontier = [(0, 0, rest.pop())]
      node = heapq.heappop(frontier)[-1]
      if found[node] >= 0:
        continue
      found[node], count = part, count + 1
      for other in neighbors[starts[node] : starts[node + 1]]:
        if found[other] < 0:
          links[other] += 1
          heapq.heappush(frontier, (-links[other], count, other))
  return found


def _improve(found, starts, neighbors, parts: int, rounds: int = 10) -> Int[np.ndarray, " N"]:
  """Moves nodes to the part of most of their neighbours, as long as no part grows or shrinks by more than a tenth."""
  sizes = np.bincount(found, minlength=parts)
  most, least = -(-len(found) // parts) * 1.1 + 1, len(found) // parts * 0.9 - 1
  for _ in range(rounds):
    moved = 0
    for node in range(len(found)):
      votes = np.bincount(found[neighbors[starts[node] : starts[node + 1]]], minlength=parts)
      best, own = int(votes.argmax()), found[node]
      if votes[best] > votes[own] and sizes[best] < most and sizes[own] > max(least, 1):
        found[node], moved = best, moved + 1
        sizes[best], sizes[own] = sizes[best] + 1, sizes[own] - 1
    if not moved:
      break
  return found


def count_cut(senders: Int[np.ndarray, " E"], receivers: Int[np.ndarray, " E"], part: Int[np.ndarray, " N"]) -> int:
  """How many edges go from one part to another."""
  return int((part[senders] != part[receivers]).sum())


class Parts(NamedTuple):
  """The nodes of each part and the edges that arrive at them, padded to the largest.

  `nodes` and `node_mask` are P parts of M nodes; an edge has its sender's number in the whole graph and its receiver's
  place within the part. `part` and `place` say where each node of the graph is.
  """

  nodes: Int[Array, "P M"]
  node_mask: Float[Array, "P M"]
  senders: Int[Array, "P E"]
  receivers: Int[Array, "P E"]
  mask: Float[Array, "P E"]
  part: Int[Array, " N"]
  place: Int[Array, " N"]


def make_parts(senders: Int[np.ndarray, " E"], receivers: Int[np.ndarray, " E"], part: Int[np.ndarray, " N"]) -> Parts:
  """The arrays that batches are joined from, on the host."""
  count = int(part.max()) + 1
  members = [np.flatnonzero(part == p) for p in range(count)]
  arriving = [np.flatnonzero(part[receivers] == p) for p in range(count)]
  place = np.zeros(len(part), np.int32)
  for own in members:
    place[own] = np.arange(len(own))
  pad = lambda rows, width: np.stack([np.pad(row, (0, width - len(row))) for row in rows]).astype(np.int32)
  ones = lambda rows, width: np.stack([np.arange(width) < len(row) for row in rows]).astype(np.float32)
  width, edges = max(map(len, members)), max(1, *map(len, arriving))
  arrays = Parts(
    pad(members, width),
    ones(members, width),
    pad([senders[own] for own in arriving], edges),
    pad([place[receivers[own]] for own in arriving], edges),
    ones(arriving, edges),
    part.astype(np.int32),
    place,
  )
  return Parts(*map(jnp.asarray, arrays))


def join_parts(parts: Parts, chosen: Int[Array, " Q"]) -> tuple[Int[Array, " R"], Float[Array, " R"], Edges]:
  """(nodes, which of them count, their edges) of several parts together, those between the parts among them.

  In the compiled step; the edges' ends are places among `nodes`. Degrees are to be counted, and weights normalised,
  from these edges. Chiang et al. 2019, alg. 1.
  """
  width = parts.nodes.shape[1]
  slot = jnp.full(parts.nodes.shape[0], -1).at[chosen].set(jnp.arange(chosen.shape[0]))
  senders, own = parts.senders[chosen], jnp.arange(chosen.shape[0])[:, None]
  there = slot[parts.part[senders]]
  mask = parts.mask[chosen] * (there >= 0)
  ends = jnp.where(there >= 0, there * width + parts.place[senders], 0), own * width + parts.receivers[chosen]
  edges = Edges(*(end.reshape(-1) for end in ends), mask.reshape(-1))
  return parts.nodes[chosen].reshape(-1), parts.node_mask[chosen].reshape(-1), edges


def enhance_diagonal(edges: Edges, weights: Float[Array, " E"], amount: float) -> Float[Array, " E"]:
  """A' + amount diag(A'): the weights with those of loops raised, ClusterGCN's diagonal enhancement."""
  return weights * jnp.where(edges.senders == edges.receivers, 1 + amount, 1)
