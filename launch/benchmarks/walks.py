"""Random walks with p and q beside those of torch-geometric's kernels and of the node2vec package, as a Markdown table.

  python -m launch.benchmarks.walks
  python -m launch.benchmarks.walks --peer_python=VENV/bin/python          # node2vec there: it needs NumPy below 2
  python -m launch.benchmarks.walks --peer=torch_cluster                   # pip install torch-cluster, a build
  python -m launch.benchmarks.walks --dataset=cora.npz --nodes=0

The graph has `--nodes` nodes and `--degree` neighbours of each on average, some many (preferential attachment), or is a
file's. A walk starts from each node of a fixed random choice; seconds are those of the walks, compiled, the median of
`--rounds`; with one thread (NPROC=1) the processor's time counts. What the tables of the node2vec package, which ours
does not need, take beforehand is told apart.
"""

import dataclasses
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmarks.conv import print_table
from mlnotes.data import load_graph
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.sharding import count_cores
from mlnotes.graph import make_neighbor_rows, sample_walks

# What runs in the interpreter of --peer_python: the arguments are the file of edges, the clock, the walks' length, p
# and q; the answer is one line of JSON.
_NODE2VEC = """
import json, sys, time
import numpy as np, networkx as nx
from node2vec import Node2Vec
path, clock, length, p, q = sys.argv[1:]
clock = getattr(time, clock)
edges = np.load(path)
graph = nx.Graph(); graph.add_edges_from(edges["pairs"].tolist())
times = []
class Timed(Node2Vec):
  def _precompute_probabilities(self):
    start = clock(); super()._precompute_probabilities(); times.append(clock() - start)
  def _generate_walks(self):
    start = clock(); walks = super()._generate_walks(); times.append(clock() - start)
    return walks
model = Timed(graph, walk_length=int(length), num_walks=1, p=float(p), q=float(q), workers=1, quiet=True)
print(json.dumps({"before": times[0], "seconds": times[1], "walks": len(model.walks)}))
"""


def attach(nodes: int, degree: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Edges by preferential attachment: each node joins degree / 2 ends of earlier edges. Barabasi & Albert 1999."""
  rng, each = np.random.default_rng(seed), max(1, degree // 2)
  ends = np.zeros(2 * each * nodes, np.int64)
  ends[: 2 * each] = np.arange(2 * each) % (each + 1)
  filled = 2 * each
  for node in range(each + 1, nodes):
    ends[filled : filled + each] = node
    ends[filled + each : filled + 2 * each] = ends[rng.integers(filled, size=each)]
    filled += 2 * each
  pairs = ends[:filled].reshape(-1, 2, each).transpose(0, 2, 1).reshape(-1, 2)
  pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)
  return pairs[:, 0], pairs[:, 1]


def load_pairs(config: "Config") -> tuple[np.ndarray, int]:
  """(edges once, number of nodes)."""
  if not config.dataset:
    return np.stack(attach(config.nodes, config.degree), axis=1), config.nodes
  data = load_graph(config.dataset)
  pairs = np.stack([data.senders, data.receivers], axis=1)
  return pairs[pairs[:, 0] < pairs[:, 1]], data.num_nodes


def name_clock() -> str:
  """Of one thread the processor's time counts, which other programs do not stretch."""
  return "process_time" if count_cores() == 1 else "perf_counter"


def median_seconds(walk: Callable[[int], Any], rounds: int) -> float:
  """Of `walk(round number)`, which blocks; the first call, which compiles, does not count."""
  seconds, clock = [], getattr(time, name_clock())
  for turn in range(rounds + 1):
    start = clock()
    walk(turn)
    seconds.append(clock() - start)
  return float(np.median(seconds[1:]))


def time_ours(pairs: np.ndarray, size: int, starts: np.ndarray, p: float, q: float, config: "Config") -> float:
  rows = make_neighbor_rows(*np.concatenate([pairs, pairs[:, ::-1]]).T, size)
  if p == q == 1:
    call = jax.jit(partial(sample_walks, length=config.length))
  else:
    call = jax.jit(lambda key, rows, starts: sample_walks(key, rows, starts, config.length, p, q))
  parts = jnp.asarray(starts[: len(starts) // config.batch_size * config.batch_size]).reshape(-1, config.batch_size)

  def walk(turn):
    keys = jax.random.split(jax.random.key(turn), len(parts))
    return [call(key, rows, part).nodes.block_until_ready() for key, part in zip(keys, parts)]

  return median_seconds(walk, config.rounds) / parts.size


def time_torch_cluster(pairs: np.ndarray, size: int, starts: np.ndarray, p: float, q: float, config: "Config") -> float:
  """The kernel that torch-geometric's Node2Vec calls."""
  import torch
  import torch_cluster  # noqa: F401  (registers it)

  torch.set_num_threads(count_cores())
  row, column = np.concatenate([pairs, pairs[:, ::-1]]).T
  order = np.lexsort((column, row))
  pointer = torch.from_numpy(np.searchsorted(row[order], np.arange(size + 1)))
  neighbors, starts = torch.from_numpy(column[order].astype(np.int64)), torch.from_numpy(starts)
  kernel = torch.ops.torch_cluster.random_walk
  walk = lambda turn: kernel(pointer, neighbors, starts, config.length - 1, p, q)
  return median_seconds(walk, config.rounds) / len(starts)


def time_node2vec(pairs: np.ndarray, p: float, q: float, config: "Config") -> tuple[float, float]:
  """(seconds a walk, seconds of its tables) of the node2vec package, one process, in its own interpreter."""
  with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "edges.npz"
    np.savez(path, pairs=pairs)
    arguments = [str(path), name_clock(), str(config.length), str(p), str(q)]
    call = [config.peer_python, "-c", _NODE2VEC, *arguments]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    raise InputError(f"--peer_python={config.peer_python} could not run node2vec: {last}")
  found = json.loads(done.stdout.strip().splitlines()[-1])
  return found["seconds"] / found["walks"], found["before"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  dataset: str = field("", "a graph of mlnotes.data.load_graph; empty: one is drawn")
  nodes: int = field(10_000, "nodes of the graph that is drawn")
  degree: int = field(10, "neighbours of a node of it, on average")
  length: int = field(80, "nodes of a walk")
  walks: int = field(8192, "walks of a round")
  batch_size: int = field(1024, "walks side by side")
  p: tuple[float, ...] = field((1.0, 0.25, 4.0), "values of p, each with the value of q at its place")
  q: tuple[float, ...] = field((1.0, 4.0, 0.25), "values of q")
  rounds: int = field(5, "rounds of each that count")
  peer: Literal["none", "torch_cluster"] = field("none", "torch_cluster: torch-geometric's kernel takes turns")
  peer_python: str = field("", "an interpreter with the node2vec package; empty: it is not measured")

  def __post_init__(self):
    super().__post_init__()
    for name in ("nodes", "degree", "batch_size", "rounds"):
      require(getattr(self, name) >= 1 or (name == "nodes" and self.dataset), name, getattr(self, name), "1 or more")
    require(self.length >= 2, "length", self.length, "2 or more")
    require(self.walks >= self.batch_size, "walks", self.walks, f"{self.batch_size} or more, one batch")
    require(len(self.p) == len(self.q) >= 1, "q", ",".join(map(str, self.q)), f"{len(self.p)} values, as many as of p")
    require(min(*self.p, *self.q) > 0, "p", ",".join(map(str, self.p)), "numbers above 0, and of q too")


def main(config: Config) -> None:
  if config.peer == "torch_cluster" and not (find_spec("torch_cluster") and find_spec("torch")):
    raise InputError("--peer=torch_cluster needs torch and torch-cluster, which are not installed.")
  pairs, size = load_pairs(config)
  starts = np.random.default_rng(0).integers(size, size=config.walks)
  name = config.dataset or "drawn graph"
  print(
    f"{jax.devices()[0].device_kind}, {count_cores()} threads, jax {jax.__version__}; walks of {config.length} nodes"
  )
  print(f"{name}: {size:,} nodes, {len(pairs):,} edges, largest degree {np.bincount(pairs.ravel()).max():,}\n")

  def compare(p: float, q: float) -> tuple[str, ...]:
    rate = lambda seconds: f"{1 / seconds:,.0f}"
    ours = time_ours(pairs, size, starts, p, q, config)
    cluster, package, before = "not measured", "not measured", ""
    if config.peer == "torch_cluster":
      cluster = rate(time_torch_cluster(pairs, size, starts, p, q, config))
    if config.peer_python:
      seconds, tables = time_node2vec(pairs, p, q, config)
      package, before = rate(seconds), f"{tables:.1f}"
    return f"{p:g}, {q:g}", rate(ours), cluster, package, before

  header = ("p, q", "mlnotes, walks/s", "torch-cluster, walks/s", "node2vec, walks/s", "its tables, s")
  print_table(header, (compare(p, q) for p, q in zip(config.p, config.q)))


if __name__ == "__main__":
  run(main, Config)
