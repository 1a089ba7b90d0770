"""Whether graphs are the same but for the order of their nodes; and what of generated graphs is valid, unique, novel.

On the host: colours of refinement part graphs that differ, and a search that maps node to node decides the rest.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Integer

from mlnotes.data.drawn_graphs import find_component
from mlnotes.engine.errors import InputError

# (adjacency (n, n): 0 or the type of an edge, type of each node (n,)); no padding.
OneGraph: TypeAlias = tuple[np.ndarray, np.ndarray]


def unpad_graph(adjacency: Integer[np.ndarray, "N N"], node_type: Integer[np.ndarray, " N"]) -> OneGraph:
  """A graph without the places where no node is (node_type 0), wherever they are."""
  there = np.flatnonzero(node_type)
  return adjacency[np.ix_(there, there)], node_type[there]


def refine_colours(graph: OneGraph, rounds: int | None = None) -> list[int]:
  """A number for each node that is the same in isomorphic graphs: Weisfeiler & Leman 1968, in one dimension.

  It begins with the node's type, then each round takes in the numbers of the neighbours with the edges' types; as many
  rounds as there are nodes without `rounds`.
  """
  adjacency, node_type = graph
  near = [[(int(j), int(adjacency[i, j])) for j in np.flatnonzero(adjacency[i])] for i in range(len(node_type))]
  colours = [hash((int(kind),)) for kind in node_type]
  distinct = len(set(colours))
  for _ in range(len(node_type) if rounds is None else rounds):
    # Tuples of whole numbers have the same hash in every process.
    colours = [hash((own, *sorted((kind, colours[j]) for j, kind in near[i]))) for i, own in enumerate(colours)]
    if rounds is None and len(set(colours)) == distinct:
      break
    distinct = len(set(colours))
  return colours


def hash_graph(graph: OneGraph) -> int:
  """The same for isomorphic graphs, and for few others (some regular ones)."""
  return hash((len(graph[1]), *sorted(refine_colours(graph))))


def are_isomorphic(first: OneGraph, second: OneGraph) -> bool:
  """Whether the nodes of one can be put in the other's order: types of nodes and of edges agree. Exact.

  A search with backtracking over nodes of the same refined colour, neighbours of what is placed first.
  """
  (a, _), (b, _) = first, second
  colours_a, colours_b = refine_colours(first), refine_colours(second)
  if Counter(colours_a) != Counter(colours_b):
    return False
  order = _connected_order(a, colours_a)
  by_colour = defaultdict(list)
  for j, colour in enumerate(colours_b):
    by_colour[colour].append(j)
  placed: list[int] = []

  def place() -> bool:
    if len(placed) == len(order):
      return True
    i = order[len(placed)]
    before = order[: len(placed)]
    for j in by_colour[colours_a[i]]:
      if j not in placed and (a[i, before] == b[j, placed]).all():
        placed.append(j)
        if place():
          return True
        placed.pop()
    return False

  return place()


def _connected_order(adjacency: np.ndarray, colours: Sequence[int]) -> list[int]:
  """All nodes, those of rare colours early and, where there is one, each a neighbour of an earlier one."""
  count = Counter(colours)
  left, order = set(range(len(colours))), []
  while left:
    reached = [i for i in left if order and adjacency[i, order].any()] or left
    order.append(min(reached, key=lambda i: (count[colours[i]], i)))
    left.remove(order[-1])
  return order


class GraphIndex:
  """Distinct graphs, to ask whether one is among them."""

  def __init__(self, graphs: Sequence[OneGraph] = ()):
    self._found: dict[int, list[OneGraph]] = defaultdict(list)
    for graph in graphs:
      self.add(graph)

  def __contains__(self, graph: OneGraph) -> bool:
    return any(are_isomorphic(graph, other) for other in self._found.get(hash_graph(graph), ()))

  def add(self, graph: OneGraph) -> bool:
    """Whether it is new."""
    if new := graph not in self:
      self._found[hash_graph(graph)].append(graph)
    return new

  def __len__(self) -> int:
    return sum(map(len, self._found.values()))


class Novelty(NamedTuple):
  """Shares of generated graphs, which say little one without the others.

  valid:  of all.
  unique: distinct graphs among the valid ones, of these.
  novel:  not isomorphic to one of the training graphs, of the distinct valid ones.
  all_three: valid graphs that are distinct and novel, of all: the product of the three.
  NaN where there is nothing to take a share of.
  """

  valid: float
  unique: float
  novel: float
  all_three: float


def judge_novelty(found: Sequence[OneGraph], training: GraphIndex, is_valid: Callable[[OneGraph], bool]) -> Novelty:
  """Counts the generated graphs `found` as `Novelty` says."""
  valid = [graph for graph in found if is_valid(graph)]
  distinct = GraphIndex()
  novel = sum(graph not in training for graph in valid if distinct.add(graph))
  share = lambda part, whole: part / whole if whole else float("nan")
  return Novelty(
    share(len(valid), len(found)),
    share(len(distinct), len(valid)),
    share(novel, len(distinct)),
    share(novel, len(found)),
  )


# -- rules that graphs of a set keep -----------------------------------------------------------------------------------


def is_connected(graph: OneGraph) -> bool:
  """Whether all nodes, one at least, hang together."""
  adjacency, _ = graph
  return len(adjacency) > 0 and bool(find_component(adjacency).all())


def is_two_blocks(graph: OneGraph, least: int = 4, most: int = 12, within: float = 0.5, between: int = 4) -> bool:
  """Whether a connected graph parts into two dense blocks with few edges between.

  By the sign of the Laplacian's second eigenvector (Fiedler 1973): each part has `least` to `most` nodes and at least
  the share `within` of its pairs joined, and at most `between` edges join the two.
  """
  if not is_connected(graph):
    return False
  edges = (graph[0] > 0).astype(float)
  side = np.linalg.eigh(np.diag(edges.sum(0)) - edges)[1][:, min(1, len(edges) - 1)] > 0
  parts = [edges[np.ix_(part, part)] for part in (side, ~side)]
  dense = lambda part: part.sum() >= within * len(part) * (len(part) - 1)
  fits = all(least <= len(part) <= most and dense(part) for part in parts)
  return fits and bool(edges[side][:, ~side].sum() <= between)


def is_ego_graph(graph: OneGraph) -> bool:
  """Whether a node has all the others as neighbours."""
  return bool(((graph[0] > 0).sum(0) == len(graph[1]) - 1).any())


def keeps_valences(graph: OneGraph, valences: Sequence[int]) -> bool:
  """Whether a molecule is connected and no atom of type i has edges whose types add up to more than valences[i - 1].

  Raises InputError for a type beyond the valences.
  """
  adjacency, node_type = graph
  if len(node_type) and node_type.max() > len(valences):
    raise InputError(f"found a node of type {node_type.max()}, expected 1 to {len(valences)} as there are valences.")
  return is_connected(graph) and bool((adjacency.sum(0) <= np.asarray(valences)[node_type - 1]).all())


def make_member_rule(graphs: Sequence[OneGraph]) -> Callable[[OneGraph], bool]:
  """The rule of being isomorphic to one of `graphs`."""
  index = GraphIndex(graphs)
  return lambda graph: graph in index
