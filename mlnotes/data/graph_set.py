"""Many graphs, each of which has a class: resident as a whole, and drawn from by position.

Three models of random graphs need no file, digits are read as grids, and an .npz file has the graphs of a collection
one after the other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32

from mlnotes.data.dataset import name_classes
from mlnotes.data.graph import make_undirected
from mlnotes.data.image import DataError
from mlnotes.data.npz import read_npz
from mlnotes.data.split import Expected, check_arrays

_NAMES = ("graph_label", "num_nodes", "node_label", "features", "senders", "receivers", "fold")
_MODELS = ("Erdos-Renyi", "Barabasi-Albert", "Watts-Strogatz")
_PER_MODEL, _LEAST_NODES, _MOST_NODES = 100, 20, 40
_REWIRED = 0.1  # of a small world's edges


class GraphSet(NamedTuple):
  """G graphs, one after the other: graph g has the nodes node_start[g] to node_start[g + 1] - 1, edges likewise.

  `senders` and `receivers` are numbers of nodes of all graphs together; both directions of each edge are there.
  """

  name: str
  node_start: Int32[np.ndarray, " G1"]
  edge_start: Int32[np.ndarray, " G1"]
  senders: Int32[np.ndarray, " E"]
  receivers: Int32[np.ndarray, " E"]
  features: Float32[np.ndarray, "N D"]
  label: Int32[np.ndarray, " G"]
  class_names: tuple[str, ...]

  @property
  def num_graphs(self) -> int:
    return len(self.label)

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @property
  def num_nodes(self) -> Int[np.ndarray, " G"]:
    return np.diff(self.node_start)

  @property
  def num_edges(self) -> Int[np.ndarray, " G"]:
    """Directed ones: twice as many as edges without direction."""
    return np.diff(self.edge_start)

  @property
  def arrays(self) -> dict[str, np.ndarray]:
    names = ("node_start", "edge_start", "senders", "receivers", "features", "label")
    return {name: getattr(self, name) for name in names}


def make_graph_set(
  flag: str,
  name: str,
  num_nodes: Int[np.ndarray, " G"],
  senders: Int[np.ndarray, " E"],
  receivers: Int[np.ndarray, " E"],
  features: np.ndarray,
  label: np.ndarray,
  class_names: tuple[str, ...] | None = None,
) -> GraphSet:
  """Graphs after the checks that everything behind relies on. Raises DataError that begins with `flag`.

  The edges may stand in any order; loops and repetitions are dropped, missing reverses added. No graph is without
  nodes, and none has an edge to another.
  """
  sizes = check_arrays(flag, {"num_nodes": num_nodes}, {"num_nodes": Expected("G", "iu", np.int64, 1)})["num_nodes"]
  start = np.concatenate([[0], np.cumsum(sizes)])
  total = int(start[-1])
  node = Expected("E", "iu", np.int64, 0, total - 1)
  ends = check_arrays(flag, {"senders": senders, "receivers": receivers}, {"senders": node, "receivers": node}).values()
  values = check_arrays(flag, {"features": features}, {"features": Expected("ND", "fiub", np.float32)})["features"]
  if len(values) != total:
    raise DataError(f"{flag}: the features have {len(values)} rows, expected {total}, the nodes of all graphs.")
  if not values.shape[1]:
    raise DataError(f"{flag}: the features have no column, expected one or more.")
  if len(label) != len(sizes):
    raise DataError(f"{flag}: found {len(label)} labels, expected {len(sizes)}, one for each graph of num_nodes.")
  if class_names is None:
    (label,), class_names = name_classes(flag, label, of="graph")
  of_node = np.repeat(np.arange(len(sizes)), sizes)
  first, second = ends
  if (apart := of_node[first] != of_node[second]).any():
    wrong = int(apart.argmax())
    raise DataError(
      f"{flag}: edge {wrong} goes from node {first[wrong]} of graph {of_node[first[wrong]]} to node {second[wrong]} of "
      f"graph {of_node[second[wrong]]}, expected both in one graph."
    )
  first, second = make_undirected(first, second, total)
  edge_start = np.searchsorted(of_node[second], np.arange(len(sizes) + 1))
  return GraphSet(
    name,
    start.astype(np.int32),
    edge_start.astype(np.int32),
    first,
    second,
    values,
    label.astype(np.int32),
    class_names,
  )


def load_graph_set(dataset: str, graph_seed: int = 0) -> GraphSet:
  """Reads the graphs that `--dataset` names.

  "models":    300 connected graphs of 20 to 40 nodes, a hundred of each of three models: Erdos & Renyi 1959,
               preferential attachment (Barabasi & Albert 1999) and small worlds (Watts & Strogatz 1998), drawn from
               `graph_seed`. All have 2 n - 4 edges, so that nothing is told by counting. One feature, 1.
  "digits":    scikit-learn's 1,797 digits as grids of 8 x 8: a node for each pixel, joined with those beside, above and
               below it; its feature is the grey value on [0, 1].
  "path.npz":  the graphs of a collection one after the other, as in TU Dortmund's: graph_label (G,), num_nodes (G,),
               node_label (N,), which becomes one-hot, or features (N, D) or neither, senders and receivers (E,).

  Raises DataError, one sentence, if there are no such graphs or they cannot be used.
  """
  if dataset == "models":
    return _load_models(graph_seed)
  if dataset == "digits":
    return _load_digits()
  if dataset.endswith(".npz"):
    return _load_npz(dataset)
  raise DataError(f"--dataset={dataset}: no such graphs, expected models, digits or a file.npz.")


# -- models of random graphs -------------------------------------------------------------------------------------------


def _load_models(seed: int) -> GraphSet:
  rng = np.random.default_rng(seed)
  sizes, ends, label = [], [], []
  for kind, draw in enumerate((_draw_uniform, _draw_preferential, _draw_small_world)):
    for _ in range(_PER_MODEL):
      count = int(rng.integers(_LEAST_NODES, _MOST_NODES + 1))
      while not _is_connected(edges := draw(rng, count), count):
        pass
      ends.append(edges + sum(sizes))
      sizes.append(count)
      label.append(kind)
  senders, receivers = np.concatenate(ends).T
  features = np.ones((sum(sizes), 1), np.float32)
  return make_graph_set(
    "--dataset=models", "models", np.array(sizes), senders, receivers, features, np.array(label), _MODELS
  )


def _draw_uniform(rng: np.random.Generator, nodes: int) -> Int[np.ndarray, "M 2"]:
  first, second = np.triu_indices(nodes, 1)
  chosen = rng.choice(len(first), 2 * nodes - 4, replace=False)
  return np.stack([first[chosen], second[chosen]], 1)


def _draw_preferential(rng: np.random.Generator, nodes: int) -> Int[np.ndarray, "M 2"]:
  """Each node after the first two joins two others, drawn by their degrees: 2 (n - 2) edges."""
  edges, ends = [], [0, 1]
  for node in range(2, nodes):
    chosen = set()
    while len(chosen) < 2:
      chosen.add(ends[rng.integers(len(ends))])
    edges += [(other, node) for other in sorted(chosen)]
    ends += [*chosen, node, node]
  return np.array(edges)


def _draw_small_world(rng: np.random.Generator, nodes: int) -> Int[np.ndarray, "M 2"]:
  """A ring whose nodes are joined with two on each side; a tenth of the edges is put elsewhere, four are left out."""
  edges = {(min(a, b), max(a, b)) for a in range(nodes) for b in ((a + 1) % nodes, (a + 2) % nodes)}
  for edge in sorted(edges):
    if rng.random() < _REWIRED:
      other = int(rng.integers(nodes))
      new = (min(edge[0], other), max(edge[0], other))
      if other != edge[0] and new not in edges:
        edges.remove(edge)
        edges.add(new)
  kept = rng.permutation(len(edges))[: 2 * nodes - 4]
  return np.array(sorted(edges))[np.sort(kept)]


def _is_connected(edges: Int[np.ndarray, "M 2"], nodes: int) -> bool:
  near = np.eye(nodes, dtype=bool)
  near[edges[:, 0], edges[:, 1]] = near[edges[:, 1], edges[:, 0]] = True
  for _ in range(nodes.bit_length()):
    near = near @ near
  return bool(near.all())


# -- digits, files -----------------------------------------------------------------------------------------------------


def _load_digits() -> GraphSet:
  from sklearn.datasets import load_digits

  found = load_digits()
  count, (height, width) = len(found.images), found.images.shape[1:]
  place = np.arange(height * width).reshape(height, width)
  senders = np.concatenate([place[:, :-1].ravel(), place[:-1].ravel()])
  receivers = np.concatenate([place[:, 1:].ravel(), place[1:].ravel()])
  shift = place.size * np.arange(count)[:, None]
  return make_graph_set(
    "--dataset=digits", "digits", np.full(count, place.size), (senders + shift).ravel(), (receivers + shift).ravel(),
    found.images.reshape(-1, 1) / 16, found.target, tuple(map(str, range(10))),
  )  # fmt: skip


def _load_npz(path: str) -> GraphSet:
  flag = f"--dataset={path}"
  found = read_npz(path, flag, "graph_label, num_nodes, senders and receivers", _NAMES)
  for name in ("graph_label", "num_nodes", "senders", "receivers"):
    if name not in found:
      raise DataError(f"{flag}: found the arrays {found.listed}, expected {name}.")
  total = int(np.sum(found["num_nodes"])) if found["num_nodes"].dtype.kind in "iu" else 0
  return make_graph_set(
    flag, Path(path).stem, found["num_nodes"], found["senders"], found["receivers"], _features(flag, found, total),
    found["graph_label"],
  )  # fmt: skip


def _features(flag: str, found: Mapping[str, np.ndarray], total: int) -> np.ndarray:
  """One-hot labels of the nodes, beside their features where there are both; without any, one that is 1."""
  parts = []
  if "node_label" in found:
    (label,), names = name_classes(f"{flag}: node_label", found["node_label"], of="node")
    if len(label) != total:
      raise DataError(f"{flag}: node_label has {len(label)} entries, expected {total}, the nodes of all graphs.")
    parts.append(np.eye(len(names), dtype=np.float32)[label])
  if "features" in found:
    parts.append(np.asarray(found["features"]))
  if len({len(part) for part in parts}) > 1:
    raise DataError(
      f"{flag}: node_label has {len(parts[0])} entries and features {len(parts[1])} rows: expected one each."
    )
  return np.concatenate(parts, 1) if parts else np.ones((total, 1), np.float32)
