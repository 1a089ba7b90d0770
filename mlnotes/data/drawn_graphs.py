"""Sets of small graphs to be generated anew: drawn from a seed, or read from a file; padded to one size.

The sets are those that GraphRNN is measured on (You et al. 2018), small ones, and one of molecule-like graphs whose
nodes and edges have types.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from mlnotes.data.image import DataError
from mlnotes.data.npz import read_npz
from mlnotes.data.order import hold_out
from mlnotes.data.split import Expected, NamedArrays, check_arrays

DRAWN = ("community", "grid", "ladder", "ego", "molecules")
# Atoms, how many bonds each has, and how often it is drawn; bonds by their order.
ATOMS, VALENCES, ATOM_SHARES = ("C", "N", "O"), (4, 3, 2), (0.7, 0.14, 0.16)
BONDS = ("single", "double", "triple")
_COUNTS = {"ego": 200, "molecules": 2000}
_TEST_SHARE = 0.2
_LEAST_EGO, _MOST_EGO = 4, 18

Adjacency = Integer[np.ndarray, "N N"]
# One graph: its adjacency, uint8 (N, N), and the types of its nodes, uint8 (N,).
Drawn = tuple[np.ndarray, np.ndarray]


class SmallGraphs(NamedTuple):
  """Two splits of G graphs each, of N nodes at most.

  adjacency: uint8 (G, N, N), symmetric: 0 for no edge, else the edge's type from 1; 0 where there is no node.
  node_type: uint8 (G, N): 0 for no node, else the node's type from 1; the nodes of a graph come first.
  num_nodes: int32 (G,).
  """

  name: str
  train: NamedArrays
  test: NamedArrays
  node_types: tuple[str, ...] = ("node",)
  edge_types: tuple[str, ...] = ("edge",)
  notes: tuple[str, ...] = ()

  @property
  def most_nodes(self) -> int:
    return self.train.arrays["adjacency"].shape[-1]

  @property
  def typed(self) -> bool:
    return len(self.node_types) > 1 or len(self.edge_types) > 1


# -- graphs one by one -------------------------------------------------------------------------------------------------


def _plain(edges: Bool[np.ndarray, "N N"]) -> Drawn:
  """An undirected graph without types from one half of its edges."""
  return (edges | edges.T).astype(np.uint8), np.ones(len(edges), np.uint8)


def find_component(adjacency: Adjacency, start: int = 0) -> Bool[np.ndarray, " N"]:
  """The nodes that can be reached from `start`, itself among them."""
  reached = np.arange(len(adjacency)) == start
  while True:
    further = reached | (adjacency[reached] > 0).any(axis=0)
    if (further == reached).all():
      return reached
    reached = further


def find_largest_component(adjacency: Adjacency) -> Bool[np.ndarray, " N"]:
  """The nodes of the largest connected part; of several the first."""
  left, best = np.ones(len(adjacency), bool), np.zeros(len(adjacency), bool)
  while left.any():
    part = find_component(adjacency, int(left.argmax()))
    best = part if part.sum() > best.sum() else best
    left &= ~part
  return best


def draw_community(rng: np.random.Generator, within: float = 0.8, between: float = 0.1) -> Drawn:
  """Two blocks of k nodes, k from 6 to 10: inside each an edge with probability `within`, k * `between` edges between.

  The largest connected part of it, as in the GraphRNN authors' code for community-small.
  """
  k = int(rng.integers(6, 11))
  edges = np.triu(rng.random((2 * k, 2 * k)) < within, 1)
  edges[:k, k:] = False
  for _ in range(max(int(np.ceil(between * k)), 1)):
    edges[rng.integers(k), k + rng.integers(k)] = True
  adjacency, node_type = _plain(edges)
  kept = find_largest_component(adjacency)
  return adjacency[np.ix_(kept, kept)], node_type[kept]


def make_grid_graph(rows: int, columns: int) -> Drawn:
  """`rows` x `columns` nodes, each with an edge to the next ones on its right and below."""
  number = np.arange(rows * columns).reshape(rows, columns)
  edges = np.zeros((rows * columns, rows * columns), bool)
  edges[number[:, :-1].ravel(), number[:, 1:].ravel()] = True
  edges[number[:-1].ravel(), number[1:].ravel()] = True
  return _plain(edges)


def draw_grid(rng: np.random.Generator) -> Drawn:
  """A grid whose sides are from 2 to 6."""
  return make_grid_graph(int(rng.integers(2, 7)), int(rng.integers(2, 7)))


def draw_ladder(rng: np.random.Generator) -> Drawn:
  """A ladder of 2 to 10 rungs."""
  return make_grid_graph(2, int(rng.integers(2, 11)))


def draw_clustered_graph(
  rng: np.random.Generator, num_nodes: int, each: int = 2, triads: float = 0.5
) -> Bool[np.ndarray, "N N"]:
  """A graph that grows by preferential attachment, `each` edges a node, `triads` of them closing a triangle.

  Holme & Kim 2002: degrees by a power law, and clustered.
  """
  adjacency = np.zeros((num_nodes, num_nodes), bool)
  adjacency[: each + 1, : each + 1] = ~np.eye(each + 1, dtype=bool)
  for new in range(each + 1, num_nodes):
    last = -1
    for _ in range(each):
      near = (adjacency[last] & ~adjacency[new]) if last >= 0 and rng.random() < triads else np.zeros(num_nodes, bool)
      near[new] = False
      weight = near if near.any() else adjacency.sum(0) * ~adjacency[new]
      weight = weight * (np.arange(num_nodes) < new)
      last = int(rng.choice(num_nodes, p=weight / weight.sum()))
      adjacency[new, last] = adjacency[last, new] = True
  return adjacency


def draw_egos(rng: np.random.Generator, count: int) -> list[Drawn]:
  """The neighbourhoods, of 4 to 18 nodes, of `count` nodes of one drawn graph: each node with all its neighbours."""
  adjacency = draw_clustered_graph(rng, max(3 * count, 60))
  size = adjacency.sum(0) + 1
  centres = np.flatnonzero((size >= _LEAST_EGO) & (size <= _MOST_EGO))
  if len(centres) < count:  # never of the sizes above; a caller may ask for another
    raise DataError(f"found {len(centres)} neighbourhoods of {_LEAST_EGO} to {_MOST_EGO} nodes, expected {count}.")
  graphs = []
  for centre in rng.choice(centres, count, replace=False):
    kept = np.flatnonzero(adjacency[centre])
    kept = np.concatenate([[centre], kept])
    graphs.append(_plain(adjacency[np.ix_(kept, kept)]))
  return graphs


def draw_molecule(rng: np.random.Generator, least: int = 4, most: int = 9) -> Drawn:
  """A molecule-like graph of `least` to `most` atoms: a tree, then rings, then higher bonds, as far as valences go.

  No atom has more bonds than its valence (4, 3, 2 of C, N, O; a double bond counts twice), hydrogen is left out. Not
  chemistry: what is drawn is not weighed by whether it exists.
  """
  size = int(rng.integers(least, most + 1))
  kind = rng.choice(len(ATOMS), size, p=ATOM_SHARES)
  kind[0] = 0
  free = np.array(VALENCES)[kind]
  bonds = np.zeros((size, size), np.uint8)

  def bind(i: int | np.integer, j: int | np.integer) -> None:
    bonds[i, j] += 1
    bonds[j, i] += 1
    free[[i, j]] -= 1

  for new in range(1, size):
    if not free[:new].any():
      bonds, kind, free, size = bonds[:new, :new], kind[:new], free[:new], new
      break
    bind(new, int(rng.choice(np.flatnonzero(free[:new]))))
  for _ in range(rng.integers(0, 3)):
    pairs = np.argwhere(np.triu((free[:, None] > 0) & (free[None] > 0) & (bonds == 0), 1))
    if len(pairs):
      bind(*pairs[rng.integers(len(pairs))])
  for i, j in np.argwhere(np.triu(bonds, 1)):
    while free[i] and free[j] and bonds[i, j] < len(BONDS) and rng.random() < 0.25:
      bind(i, j)
  return bonds, (kind + 1).astype(np.uint8)


# -- sets --------------------------------------------------------------------------------------------------------------


def _repeat(draw_one: Callable[[np.random.Generator], Drawn]) -> Callable[[np.random.Generator, int], list[Drawn]]:
  return lambda rng, count: [draw_one(rng) for _ in range(count)]


_DRAW: Mapping[str, Callable[[np.random.Generator, int], list[Drawn]]] = {
  "community": _repeat(draw_community),
  "grid": _repeat(draw_grid),
  "ladder": _repeat(draw_ladder),
  "ego": draw_egos,
  "molecules": _repeat(draw_molecule),
}


def pad_graphs(graphs: list[Drawn], most_nodes: int) -> dict[str, np.ndarray]:
  """The arrays of `SmallGraphs` of graphs of at most `most_nodes` nodes."""
  adjacency = np.zeros((len(graphs), most_nodes, most_nodes), np.uint8)
  node_type = np.zeros((len(graphs), most_nodes), np.uint8)
  for i, (edges, types) in enumerate(graphs):
    adjacency[i, : len(types), : len(types)] = edges
    node_type[i, : len(types)] = types
  num_nodes = np.array([len(types) for _, types in graphs], np.int32)
  return {"adjacency": adjacency, "node_type": node_type, "num_nodes": num_nodes}


def load_small_graphs(dataset: str, graphs: int = 0, graph_seed: int = 0, most_nodes: int = 40) -> SmallGraphs:
  """The set of graphs that `--dataset` names, parted into training and test.

  "community", "grid", "ladder", "ego", "molecules": `graphs` of them (0: 100; 200 of ego, 2000 of molecules), drawn
              from `graph_seed`, the last fifth for testing. Grids and ladders are few up to isomorphism: of these the
              test split has copies of training graphs.
  "path.npz": num_nodes (G), senders and receivers of all graphs' edges with nodes numbered throughout, optionally
              node_label (nodes): the form of the TU sets. The largest connected part of each graph of at most
              `most_nodes` nodes; a fixed pseudo-random tenth for testing.

  Raises DataError, one sentence, where there is no such set or too few graphs in it.
  """
  notes: tuple[str, ...] = ()
  types: tuple[tuple[str, ...], ...] = ()
  if dataset in DRAWN:
    count = graphs or _COUNTS.get(dataset, 100)
    if count < 10:
      raise DataError(f"--graphs={count}: expected 10 or more, of which a fifth is for testing.")
    found = _DRAW[dataset](np.random.default_rng(graph_seed), count)
    number = round((1 - _TEST_SHARE) * len(found))
    parts = np.arange(number), np.arange(number, len(found))
    types = (ATOMS, BONDS) if dataset == "molecules" else ()
  elif dataset.endswith(".npz"):
    found, types, notes = _read_graphs(dataset, most_nodes)
    parts = hold_out(len(found), f"--dataset={dataset}")
  else:
    known = ", ".join(DRAWN)
    raise DataError(f"--dataset={dataset}: no such set of graphs, expected {known} or a file.npz.")
  arrays = pad_graphs(found, max(len(node_type) for _, node_type in found))
  train, test = (NamedArrays({name: value[index] for name, value in arrays.items()}) for index in parts)
  return SmallGraphs(dataset, train, test, *types, notes=notes)


def _read_graphs(dataset: str, most_nodes: int) -> tuple[list[Drawn], tuple[tuple[str, ...], ...], tuple[str, ...]]:
  """(graphs, names of the types of nodes and of edges, notes)."""
  flag = f"--dataset={dataset}"
  sizes, senders, receivers, label = _read_arrays(dataset, flag)
  values, label = np.unique(label, return_inverse=True)
  starts = np.concatenate([[0], np.cumsum(sizes)])
  graph, other = (np.searchsorted(starts, ends, side="right") - 1 for ends in (senders, receivers))
  if (graph != other).any():
    place = int((graph != other).argmax())
    ends = f"{senders[place]} and {receivers[place]}"
    raise DataError(f"{flag}: edge {place} joins nodes {ends} of two graphs, expected both in one.")
  found = []
  for number, (first, size) in enumerate(zip(starts, sizes)):
    edges, own = np.zeros((size, size), bool), graph == number
    edges[senders[own] - first, receivers[own] - first] = True
    np.fill_diagonal(edges, False)
    adjacency, _ = _plain(edges)
    kept = find_largest_component(adjacency)
    if 2 <= kept.sum() <= most_nodes:
      found.append((adjacency[np.ix_(kept, kept)], (label[first : first + size][kept] + 1).astype(np.uint8)))
  if len(found) < 10:
    connected = f"graphs whose largest connected part has 2 to {most_nodes} nodes"
    raise DataError(f"{flag}: found {len(found)} {connected}, expected 10 or more.")
  left = len(sizes) - len(found)
  notes = (f"{left} of {len(sizes)} graphs are left out, expected 2 to {most_nodes} nodes",) if left else ()
  return found, (tuple(str(value) for value in values), ("edge",)), notes


def _read_arrays(dataset: str, flag: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """(nodes of each graph, senders, receivers, label of each node), checked."""
  names = ("num_nodes", "senders", "receivers", "node_label")
  read = read_npz(dataset, flag, "num_nodes, senders and receivers", names)
  if not set(names[:3]) <= read.keys():
    raise DataError(f"{flag}: found the arrays {read.listed}, expected num_nodes, senders and receivers.")
  sizes = check_arrays(flag, {"num_nodes": read["num_nodes"]}, {"num_nodes": Expected("G", "iu", np.int64, 1)})
  total = int(sizes["num_nodes"].sum())
  node = Expected("E", "iu", np.int64, 0, total - 1)
  ends = check_arrays(flag, {name: read[name] for name in names[1:3]}, dict.fromkeys(names[1:3], node))
  label = {"node_label": read.get("node_label", np.zeros(total, np.int64))}
  label = check_arrays(flag, label, {"node_label": Expected("N", "iu", np.int64)})["node_label"]
  if len(label) != total:
    raise DataError(f"{flag}: node_label has {len(label)} numbers, expected {total}, one for each node.")
  if len(kinds := np.unique(label)) > 250:
    raise DataError(f"{flag}: node_label has {len(kinds)} different numbers, expected 250 at most.")
  return sizes["num_nodes"], ends["senders"], ends["receivers"], label
