"""Graphs in the plane: where nodes go, their colours, the picture."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

# Nodes above which a drawing is a ball of hair.
most_drawn = 400


def lay_out(
  senders: Int[np.ndarray, " E"], receivers: Int[np.ndarray, " E"], num_nodes: int, steps: int = 300
) -> Float[np.ndarray, "N 2"]:
  """Places of nodes that neighbours draw together and all others push apart: Fruchterman & Reingold 1991.

  The same for the same graph, in [-1, 1]^2; for some hundreds of nodes.
  """
  adjacency = np.zeros((num_nodes, num_nodes))
  adjacency[receivers, senders] = adjacency[senders, receivers] = 1
  np.fill_diagonal(adjacency, 0)
  points = np.random.default_rng(0).uniform(-1, 1, (num_nodes, 2))
  length = 2 / np.sqrt(num_nodes)
  for step in range(steps):
    offset = points[:, None] - points
    distance = np.maximum(np.linalg.norm(offset, axis=-1), 1e-3)
    force = length**2 / distance**2 - adjacency * distance / length
    move = (offset * force[..., None]).sum(1) - 0.3 * points  # a weak pull keeps components together
    size = np.maximum(np.linalg.norm(move, axis=1, keepdims=True), 1e-9)
    points = points + move / size * np.minimum(size, 0.15 * (1 - step / steps))
  points = points - points.mean(0)
  return points / np.abs(points).max()


def color_nodes(num_classes: int) -> Float[np.ndarray, "K 3"]:
  """A colour for each class."""
  from matplotlib import colormaps

  named = colormaps["tab10" if num_classes <= 10 else "tab20"].colors
  return np.array([named[i % len(named)] for i in range(num_classes)])


def draw_graph(
  axis: Any,
  points: Float[np.ndarray, "N 2"],
  senders: Int[np.ndarray, " E"],
  receivers: Int[np.ndarray, " E"],
  colors: Float[np.ndarray, "N 3"],
  strength: Float[np.ndarray, " N"] | None = None,
  known: Bool[np.ndarray, " N"] | None = None,
) -> None:
  """Edges as lines, nodes in their colours over white by `strength`; those of `known` have a ring."""
  from matplotlib.collections import LineCollection

  once = senders < receivers
  lines = np.stack([points[senders[once]], points[receivers[once]]], axis=1)
  axis.add_collection(LineCollection(lines, colors="lightgray", linewidths=0.7, zorder=1))
  strength = np.ones(len(points)) if strength is None else strength
  shown = 1 - strength[:, None] * (1 - colors)
  axis.scatter(*points.T, s=60, c=shown, edgecolors="gray", linewidths=0.5, zorder=2)
  if known is not None:
    axis.scatter(*points[known].T, s=110, facecolors="none", edgecolors="black", linewidths=1.5, zorder=3)
  axis.set_xticks([])
  axis.set_yticks([])
  axis.margins(0.05)
