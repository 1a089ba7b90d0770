"""What sets of graphs are compared by: degrees, clustering, orbits of small graphlets, and the distance between them.

Counts are taken from padded adjacency matrices, many graphs at once; a graph whose `num_nodes` is less than N has its
nodes first and nothing behind them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from mlnotes.engine.errors import InputError

NUM_ORBITS = 15
# Of the GraphRNN authors' code: the degree's kernel has deviation 1, in degrees; the clustering coefficient's .1, of a
# histogram with 100 bins on [0, 1]; that of the mean orbit counts 30.
DEGREE_SIGMA, CLUSTERING_SIGMA, ORBIT_SIGMA, CLUSTERING_BINS = 1.0, 0.1, 30.0, 100

Matrix = Float[Array, "N N"]


def _as_edges(adjacency: Num[Array, "N N"]) -> Matrix:
  """1 for an edge of whatever type, 0 on the diagonal."""
  edges = (jnp.asarray(adjacency) > 0).astype(jnp.float32)
  return edges * (1 - jnp.eye(len(edges)))


def compute_clustering(adjacency: Num[Array, "N N"]) -> Float[Array, " N"]:
  """The share of pairs of a node's neighbours that are joined, 0 with fewer than two: Watts & Strogatz 1998."""
  edges = _as_edges(adjacency)
  degree = jnp.sum(edges, 1)
  triangles = jnp.einsum("ij,jk,ki->i", edges, edges, edges) / 2
  return jnp.where(degree > 1, 2 * triangles / jnp.maximum(degree * (degree - 1), 1), 0)


@jax.default_matmul_precision("highest")
def count_orbits(adjacency: Num[Array, "N N"]) -> Float[Array, "N 15"]:
  """How often each node stands at each place of an induced connected subgraph of two, three or four nodes.

  Places as Przulj 2007 and the program ORCA number them: 0 edge; 1, 2 end and middle of a path of three; 3 triangle;
  4, 5 end and inner node of a path of four; 6, 7 leaf and centre of a star; 8 cycle of four; 9, 10, 11 the nodes of
  degree 1, 2, 3 of a triangle with a tail; 12, 13 those of degree 2 and 3 of a cycle with a chord; 14 all joined.

  Subgraphs that need not be induced are counted by products of matrices, then those that a denser one contains are
  taken off, as Hocevar & Demsar 2014 solve linear equations between counts. Costs N^4 for the last alone.
  Exact where no number on the way passes 2^24.
  """
  a = _as_edges(adjacency)
  d = jnp.sum(a, 1)
  common = a @ a * (1 - jnp.eye(len(a)))  # neighbours that two nodes share
  two = lambda n: n * (n - 1) / 2
  triangles = jnp.sum(a * common, 1) / 2
  # Triangles among the neighbours of i alone.
  inside = lambda near: a * near[:, None] * near[None]
  all_joined = jax.vmap(lambda near: jnp.sum(inside(near) * (inside(near) @ inside(near))))(a) / 6
  row = lambda values: values[None, :]
  column = lambda values: values[:, None]
  n1, n2 = a @ (d - 1), two(d)
  n4 = a @ (a @ (d - 1)) - d * (d - 1) - 2 * triangles
  n5 = jnp.sum(a * (column(d - 1) * row(d - 1) - common), 1)
  n6, n7 = a @ two(d - 1), d * (d - 1) * (d - 2) / 6
  n8 = jnp.sum(two(common), 1)
  n9 = jnp.sum(a * (row(triangles) - common), 1)
  n10 = jnp.sum(a * common * row(d - 2), 1)
  n11 = triangles * (d - 2)
  # Two nodes j, k beside i in a triangle, and another that j and k share.
  n12 = jnp.sum(a * (a @ (a * (common - 1))), 1) / 2
  n13 = jnp.sum(a * two(common), 1)
  o14 = all_joined
  o12, o13 = n12 - 3 * o14, n13 - 3 * o14
  o11, o10, o9 = n11 - 2 * o13 - 3 * o14, n10 - 2 * (o12 + o13) - 6 * o14, n9 - 2 * o12 - 3 * o14
  o8 = n8 - o12 - o13 - 3 * o14
  o7 = n7 - o11 - o13 - o14
  o6 = n6 - o9 - o10 - 2 * o12 - o13 - 3 * o14
  o5 = n5 - o10 - 2 * o11 - 2 * o8 - 2 * o12 - 4 * o13 - 6 * o14
  o4 = n4 - 2 * o9 - o10 - 2 * o8 - 4 * o12 - 2 * o13 - 6 * o14
  o1, o2 = n1 - 2 * triangles, n2 - triangles
  # A division by 6 may have been a product with its rounded inverse.
  return jnp.round(jnp.stack([d, o1, o2, triangles, o4, o5, o6, o7, o8, o9, o10, o11, o12, o13, o14], axis=1))


# -- sets of graphs ----------------------------------------------------------------------------------------------------


class GraphStatistics(NamedTuple):
  """Of G graphs: how many nodes have each degree, each clustering coefficient (by bins), and the mean orbit counts."""

  degree: Float[np.ndarray, "G N"]
  clustering: Float[np.ndarray, "G bins"]
  orbit: Float[np.ndarray, "G 15"]


def describe_graphs(adjacency: Num[np.ndarray, "G N N"], num_nodes: Int[np.ndarray, " G"]) -> GraphStatistics:
  """The statistics of graphs that have a node at least; empty ones are left out, as the GraphRNN authors' code does."""
  there = np.asarray(num_nodes) > 0
  adjacency, num_nodes = np.asarray(adjacency)[there], np.asarray(num_nodes)[there]
  most = adjacency.shape[-1]
  degree, clustering = np.zeros((len(adjacency), most)), np.zeros((len(adjacency), CLUSTERING_BINS))
  orbit = np.zeros((len(adjacency), NUM_ORBITS))
  for i, (coefficients, counts) in enumerate(zip(*_count(adjacency))):
    size = num_nodes[i]
    degree[i] = np.bincount(counts[:size, 0].astype(int), minlength=most)
    clustering[i] = np.histogram(coefficients[:size], CLUSTERING_BINS, (0.0, 1.0))[0]
    orbit[i] = counts[:size].sum(0) / size
  return GraphStatistics(degree, clustering, orbit)


_CHUNK = 64


@jax.jit
def _count_chunk(adjacency: Num[Array, "G N N"]) -> tuple[Float[Array, "G N"], Float[Array, "G N 15"]]:
  return jax.vmap(compute_clustering)(adjacency), jax.vmap(count_orbits)(adjacency)


def _count(adjacency: Num[np.ndarray, "G N N"]) -> tuple[np.ndarray, np.ndarray]:
  """Chunk by chunk, so that one program serves any number of graphs."""
  parts = []
  for start in range(0, len(adjacency), _CHUNK):
    chunk = adjacency[start : start + _CHUNK]
    padded = np.zeros((_CHUNK, *adjacency.shape[1:]), np.uint8)
    padded[: len(chunk)] = chunk > 0
    parts.append([np.asarray(x)[: len(chunk)] for x in _count_chunk(padded)])
  if not parts:
    most = adjacency.shape[-1]
    return np.zeros((0, most)), np.zeros((0, most, NUM_ORBITS))
  clustering, orbits = (np.concatenate(of) for of in zip(*parts))
  return clustering, orbits


def earth_movers_distances(
  x: Num[np.ndarray, "G D"], y: Num[np.ndarray, "H D"], unit: float = 1.0
) -> Float[np.ndarray, "G H"]:
  """The work of turning each histogram of `x` into each of `y`, both with sum 1 then, with bins `unit` apart.

  On a line it is the area between the two distribution functions.
  """
  cumulate = lambda h: np.cumsum(h / np.maximum(h.sum(1, keepdims=True), 1e-12), axis=1)
  return unit * np.abs(cumulate(x)[:, None] - cumulate(y)[None]).sum(-1)


def total_variations(x: Num[np.ndarray, "G D"], y: Num[np.ndarray, "H D"]) -> Float[np.ndarray, "G H"]:
  """Half the sum of the differences of each two histograms, both with sum 1 then."""
  normalize = lambda h: h / np.maximum(h.sum(1, keepdims=True), 1e-12)
  return np.abs(normalize(x)[:, None] - normalize(y)[None]).sum(-1) / 2


def maximum_mean_discrepancy(
  within_x: Float[np.ndarray, "G G"],
  within_y: Float[np.ndarray, "H H"],
  between: Float[np.ndarray, "G H"],
  sigma: float,
) -> float:
  """The squared MMD of two sets from their distances, by the kernel exp(-d^2 / (2 sigma^2)); the biased estimate.

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y)                    Gretton et al. 2012; pairs of one with itself too

  Not below 0 but for rounding. What two samples of one distribution get falls as 1/G + 1/H, never to 0: compare it with
  that of real graphs as many. NaN where a set is empty.
  """
  if not len(within_x) or not len(within_y):
    return float("nan")
  kernel = lambda distance: float(np.mean(np.exp(-np.square(distance) / (2 * sigma**2))))
  return kernel(within_x) + kernel(within_y) - 2 * kernel(between)


def compare_graphs(found: GraphStatistics, real: GraphStatistics, kernel: str = "earth_mover") -> dict[str, float]:
  """Squared MMDs {"degree", "clustering", "orbit"} of two sets of graphs.

  kernel: "earth_mover": as GraphRNN's (You et al. 2018, by the authors' code): a Gaussian of the earth
          mover's distance of the histograms; "total_variation": of their total variation, with the same deviations, as
          later work has it because it is faster. Figures of the two do not compare. Orbits have a Gaussian of the
          Euclidean distance of their mean counts in both.

  Raises InputError for another kernel and for sets that are padded to different sizes.
  """
  if kernel not in ("earth_mover", "total_variation"):
    raise InputError(f"kernel is {kernel!r}, expected earth_mover or total_variation.")
  if found.degree.shape[1] != real.degree.shape[1]:
    raise InputError(
      f"graphs are padded to {found.degree.shape[1]} and {real.degree.shape[1]} nodes, expected one size."
    )
  euclidean = lambda x, y: np.linalg.norm(x[:, None] - y[None], axis=-1)
  if kernel == "earth_mover":
    degrees, coefficients = earth_movers_distances, lambda x, y: earth_movers_distances(x, y, 1 / CLUSTERING_BINS)
  else:
    degrees = coefficients = total_variations
  of = {
    "degree": (degrees, DEGREE_SIGMA),
    "clustering": (coefficients, CLUSTERING_SIGMA),
    "orbit": (euclidean, ORBIT_SIGMA),
  }
  result = {}
  for name, (distance, sigma) in of.items():
    x, y = getattr(found, name), getattr(real, name)
    result[name] = maximum_mean_discrepancy(distance(x, x), distance(y, y), distance(x, y), sigma)
  return result


# -- a floor without learning ------------------------------------------------------------------------------------------


class ErdosRenyi(NamedTuple):
  """Graphs of independent edges: sizes as they are in the data, one probability of an edge for all."""

  num_nodes: Int[np.ndarray, " G"]
  probability: float


def fit_erdos_renyi(adjacency: Num[np.ndarray, "G N N"], num_nodes: Int[np.ndarray, " G"]) -> ErdosRenyi:
  """By the greatest likelihood: the share of all pairs of nodes that are joined."""
  pairs = (num_nodes.astype(float) * (num_nodes - 1)).sum()
  return ErdosRenyi(np.asarray(num_nodes), float((adjacency > 0).sum() / max(pairs, 1)))


def sample_erdos_renyi(
  rng: np.random.Generator, model: ErdosRenyi, count: int, most_nodes: int
) -> tuple[Num[np.ndarray, "G N N"], Int[np.ndarray, " G"]]:
  """(adjacency, num_nodes) of `count` graphs padded to `most_nodes` nodes."""
  size = rng.choice(model.num_nodes, count)
  edges = np.triu(rng.random((count, most_nodes, most_nodes)) < model.probability, 1)
  there: Bool[np.ndarray, "G N"] = np.arange(most_nodes)[None] < size[:, None]
  edges &= there[:, :, None] & there[:, None]
  return (edges | edges.transpose(0, 2, 1)).astype(np.uint8), size.astype(np.int32)
