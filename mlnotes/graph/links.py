"""Predicting edges: which are held out, what a pair of nodes' vectors makes of them, how well scores rank them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from mlnotes.engine.errors import InputError


class LinkSplit(NamedTuple):
  """Undirected pairs of nodes. `edges` are those that are left; each of the others has as many pairs without an edge.

  `non_edges` stand beside `edges`: they have none among those either, whatever is held out.
  """

  edges: Int32[np.ndarray, "E 2"]
  non_edges: Int32[np.ndarray, "E 2"]
  valid: Int32[np.ndarray, "V 2"]
  valid_non_edges: Int32[np.ndarray, "V 2"]
  test: Int32[np.ndarray, "T 2"]
  test_non_edges: Int32[np.ndarray, "T 2"]


def split_links(
  senders: Int[np.ndarray, " E"], receivers: Int[np.ndarray, " E"], num_nodes: int, test: float, valid: float, seed: int
) -> LinkSplit:
  """Holds out shares `test` and `valid` of the undirected edges, drawn from `seed`, rounded, at least one for testing.

  On the host. Loops, and the second of both directions, are no edges here. The pairs without an edge that the held-out
  ones stand beside are drawn evenly among all and never twice.

  Differences from Grover & Leskovec 2016: an edge may be held out although its node has no other, so that what is left
  need not be connected. Raises InputError where no edge or fewer non-edges than edges would be left.
  """
  pairs = np.sort(np.stack([senders, receivers], axis=1).astype(np.int64), axis=1)
  code = np.unique((pairs[:, 0] * num_nodes + pairs[:, 1])[pairs[:, 0] != pairs[:, 1]])
  rng = np.random.default_rng(seed)
  code = rng.permutation(code)
  num_test, num_valid = max(1, round(test * len(code))), round(valid * len(code))
  if num_test + num_valid >= len(code):
    raise InputError(f"{num_test + num_valid} of {len(code)} edges are to be held out, expected fewer than all.")
  held, kept = code[: num_test + num_valid], code[num_test + num_valid :]
  free = num_nodes * (num_nodes - 1) // 2 - len(code)
  if free < len(code):
    raise InputError(f"{free} pairs of nodes have no edge, expected as many as have one, {len(code)}.")
  beside = _draw_non_edges(rng, num_nodes, code, len(held))
  # Not from what is held out: a pair that never is a non-edge of training would be one that is held out.
  of_training = _draw_non_edges(rng, num_nodes, np.union1d(kept, beside), len(kept))
  as_pairs = lambda code: np.stack([code // num_nodes, code % num_nodes], axis=1).astype(np.int32)
  parts = (kept, of_training, held[num_test:], beside[num_test:], held[:num_test], beside[:num_test])
  return LinkSplit(*map(as_pairs, parts))


def _draw_non_edges(rng: np.random.Generator, num_nodes: int, taken: np.ndarray, count: int) -> np.ndarray:
  """`count` codes of pairs, lower node first, that are not in `taken`, none twice."""
  found = np.zeros(0, np.int64)
  while len(found) < count:
    ends = np.sort(rng.integers(num_nodes, size=(2 * count + 16, 2)), axis=1)
    code = (ends[:, 0] * num_nodes + ends[:, 1])[ends[:, 0] != ends[:, 1]]
    code = np.concatenate([found, code[~np.isin(code, taken)]])
    _, first = np.unique(code, return_index=True)
    found = code[np.sort(first)]
  return found[:count]


# Of the vectors of both ends, the features of a pair: Grover & Leskovec 2016, table 1.
PAIR_OPERATORS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
  "average": lambda u, v: (u + v) / 2,
  "hadamard": lambda u, v: u * v,
  "l1": lambda u, v: np.abs(u - v),
  "l2": lambda u, v: np.square(u - v),
}


def compute_auc(positive: Float[Array, " P"], negative: Float[Array, " M"]) -> Float[Array, ""]:
  """The share of (positive, negative) pairs whose positive has the higher score; a tie counts half.

  The area under the ROC curve: .5 when nothing is known.
  """
  order = jnp.sort(negative)
  below = jnp.searchsorted(order, positive, side="left")
  not_above = jnp.searchsorted(order, positive, side="right")
  return jnp.mean((below + not_above) / 2) / negative.shape[0]
