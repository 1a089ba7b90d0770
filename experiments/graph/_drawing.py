"""Graphs in the plane: where nodes go, their colours, the picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mlnotes.engine.plot import as_text

# Nodes above which a drawing is a ball of hair.
MOST_DRAWN = 400
MOST_NAMED = 20


def lay_out(adjacency: Bool[np.ndarray, "N N"], iterations: int = 60) -> Float[np.ndarray, "N 2"]:
  """Places in which nodes are about as far apart as the paths between them are long.

  Stress majorization (Gansner et al. 2004) with equal weights, from the first coordinates of classical scaling; what
  is not connected is a step further apart than anything that is.
  """
  size = len(adjacency)
  if size < 2:
    return np.zeros((size, 2))
  distance = np.where(adjacency, 1.0, np.inf)
  np.fill_diagonal(distance, 0)
  for k in range(size):
    distance = np.minimum(distance, distance[:, k : k + 1] + distance[k : k + 1])
  distance[np.isinf(distance)] = distance[np.isfinite(distance)].max() + 1
  centre = np.eye(size) - 1 / size
  values, vectors = np.linalg.eigh(-centre @ distance**2 @ centre / 2)
  x = vectors[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 1e-3))
  x = x + 1e-3 * np.random.default_rng(0).normal(size=x.shape)
  for _ in range(iterations):
    apart = np.linalg.norm(x[:, None] - x[None], axis=-1)
    pull = np.where(apart > 1e-9, -distance / np.maximum(apart, 1e-9), 0)
    np.fill_diagonal(pull, 0)
    np.fill_diagonal(pull, -pull.sum(1))
    x = pull @ x / size
  return x


def lay_out_edges(
  senders: Int[np.ndarray, " E"], receivers: Int[np.ndarray, " E"], num_nodes: int
) -> Float[np.ndarray, "N 2"]:
  """The same, of edges."""
  adjacency = np.zeros((num_nodes, num_nodes), bool)
  adjacency[receivers, senders] = adjacency[senders, receivers] = True
  return lay_out(adjacency)


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

  # Once where both directions are there, in a graph with directions whichever is.
  ends = np.unique(np.sort(np.stack([senders, receivers], axis=1), axis=1), axis=0)
  lines = points[ends]
  axis.add_collection(LineCollection(lines, colors="lightgray", linewidths=0.7, zorder=1))
  strength = np.ones(len(points)) if strength is None else strength
  shown = 1 - strength[:, None] * (1 - colors)
  axis.scatter(*points.T, s=60, c=shown, edgecolors="gray", linewidths=0.5, zorder=2)
  if known is not None:
    axis.scatter(*points[known].T, s=110, facecolors="none", edgecolors="black", linewidths=1.5, zorder=3)
  axis.set_xticks([])
  axis.set_yticks([])
  axis.margins(0.05)


def cut_name(name: str) -> str:
  """A class's name for a legend, no longer than leaves room for the picture."""
  return as_text(name if len(name) <= 24 else f"{name[:23]}…")


def name_colors(figure: Any, colors: Float[np.ndarray, "K 3"], names: Sequence[str]) -> None:
  """The classes' names beside their colours, under all pictures of a figure; none where they are too many."""
  from matplotlib.lines import Line2D

  if len(names) > MOST_NAMED:
    return
  marks = dict(marker="o", linestyle="none", markersize=6)
  handles = [Line2D([], [], color=color, label=cut_name(name), **marks) for color, name in zip(colors, names)]
  figure.legend(handles=handles, loc="outside lower center", ncols=min(len(names), 7), frameon=False, fontsize=8)
