"""Vectors of nodes by which those nearby in a walk are told from others (notes: 图嵌入, skip-gram).

A walk is read as a sentence: each node is to predict those at most `window` steps before and after it, by the vector it
has as a centre and theirs as contexts. Mikolov et al. 2013; DeepWalk, Perozzi et al. 2014, algorithm 2.
"""

import heapq
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mlnotes.engine.errors import InputError


def pair_window(mask: Bool[Array, " L"], window: int) -> Bool[Array, "L L"]:
  """Whether place j of a walk is a context of place i: another one at most `window` away, where both count.

  Differences from the paper: word2vec, by which DeepWalk and node2vec are computed, draws a smaller window for each
  place; here all pairs of the window count alike, as in DeepWalk's algorithm 2.
  """
  place = jnp.arange(mask.shape[0])
  apart = jnp.abs(place[:, None] - place[None])
  return (apart >= 1) & (apart <= window) & mask[:, None] & mask[None]


# -- negative sampling -------------------------------------------------------------------------------------------------


def negative_sampling_loss(
  centre: Float[Array, " D"], context: Float[Array, " D"], negatives: Float[Array, "K D"]
) -> Float[Array, ""]:
  """Of one pair, in nats; (K + 1) log 2 when nothing is learned.

  -log s(z.c) - sum_k log s(-z.n_k), s the logistic function       Mikolov et al. 2013b, section 2.2
  """
  return jax.nn.softplus(-context @ centre) + jnp.sum(jax.nn.softplus(negatives @ centre))


def sample_negatives(
  key: Key[Array, ""], counts: Float[Array, " N"], shape: tuple[int, ...], power: float = 0.75
) -> Int[Array, "..."]:
  """Nodes in proportion to counts^power, with replacement; a node that was counted 0 times is never drawn."""
  weight = jnp.cumsum(counts**power)
  height = jax.random.uniform(key, shape) * weight[-1]
  found = jnp.searchsorted(weight, height, side="right")
  return jnp.minimum(found, jnp.searchsorted(weight, weight[-1], side="left")).astype(jnp.int32)


def shared_negatives_losses(
  centre: Float[Array, "L D"],
  context: Float[Array, "L D"],
  negatives: Float[Array, "M D"],
  nodes: Int[Array, " L"],
  negative_nodes: Int[Array, " M"],
  pairs: Bool[Array, "L L"],
  num_negatives: int,
) -> Float[Array, " L"]:
  """The sum of `negative_sampling_loss` over the contexts of each place of a walk, its negatives drawn once for all.

  Each of M draws counts num_negatives / M for every pair but those whose context it is, which word2vec passes over
  too. The expectation is that of negatives of their own for each pair, and two matrix products are all there is.
  """
  score = lambda others: jnp.matmul(centre, others.T, preferred_element_type=jnp.float32)
  near = jnp.where(pairs, jax.nn.softplus(-score(context)), 0)
  same = (nodes[:, None] == negative_nodes[None]).astype(jnp.float32)
  counted = jnp.sum(pairs, axis=1, keepdims=True) - pairs.astype(jnp.float32) @ same
  far = jax.nn.softplus(score(negatives)) * counted * (num_negatives / negatives.shape[0])
  return jnp.sum(near, axis=1) + jnp.sum(far, axis=1)


# -- hierarchical softmax ----------------------------------------------------------------------------------------------


class HuffmanTree(NamedTuple):
  """The way from the root to each node's leaf: inner vertices, and the side taken there, 1 or -1; 0 behind the leaf.

  There are N - 1 inner vertices, each of which has a vector in the place of a node's as a context.
  """

  path: Int[Array, "N H"]
  side: Float[Array, "N H"]


def make_huffman_tree(counts: Int[np.ndarray, " N"] | Float[np.ndarray, " N"]) -> HuffmanTree:
  """The tree whose mean way, weighted by `counts`, is shortest. On the host. Raises InputError for fewer than 2 nodes.

  Differences from DeepWalk: gensim's counts are those of finished walks; whoever has none yet takes degrees, which is
  what walks on an undirected graph count in the long run.
  """
  size = len(counts)
  if size < 2:
    raise InputError(f"counts has {size} node, expected 2 or more to tell apart.")
  heap = [(float(count), node) for node, count in enumerate(counts)]
  heapq.heapify(heap)
  parent, taken = [0] * (2 * size - 1), [0.0] * (2 * size - 1)
  for vertex in range(size, 2 * size - 1):
    (first, left), (second, other) = heapq.heappop(heap), heapq.heappop(heap)
    parent[left], parent[other], taken[left], taken[other] = vertex, vertex, 1.0, -1.0
    heapq.heappush(heap, (first + second, vertex))
  ways = [_climb(node, parent, taken, size) for node in range(size)]
  longest = max(len(way) for way in ways)
  path, side = np.zeros((size, longest), np.int32), np.zeros((size, longest), np.float32)
  for node, way in enumerate(ways):
    path[node, : len(way)], side[node, : len(way)] = zip(*reversed(way))
  return HuffmanTree(jnp.asarray(path), jnp.asarray(side))


def _climb(node: int, parent: list[int], taken: list[float], size: int) -> list[tuple[int, float]]:
  """(inner vertex counted from 0, side of it) from the leaf up; the root is the last vertex."""
  way = []
  while node != 2 * size - 2:
    way.append((parent[node] - size, taken[node]))
    node = parent[node]
  return way


def hierarchical_losses(
  centre: Float[Array, "L D"],
  inner: Float[Array, "V D"],
  tree: HuffmanTree,
  nodes: Int[Array, " L"],
  pairs: Bool[Array, "L L"],
) -> Float[Array, " L"]:
  """The sum of -log P(context | centre) over the contexts of each place of a walk, in nats.

  P(u | z) = prod over the vertices b of u's way of s(side_b z.v_b)         Perozzi et al. 2014, section 4.2
  The P(u | z) of all nodes u add up to 1.
  """
  path, side = tree.path[nodes], tree.side[nodes]
  logits = jnp.einsum("id,jhd->ijh", centre, inner[path], preferred_element_type=jnp.float32) * side[None]
  each = jnp.where(side[None] != 0, jax.nn.softplus(-logits), 0)
  return jnp.sum(jnp.where(pairs, jnp.sum(each, axis=2), 0), axis=1)
