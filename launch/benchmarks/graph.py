"""Epochs of graph networks on one graph beside torch-geometric's, and a large graph that is learned from by samples.

  python -m launch.benchmarks.graph                                    # a random graph of Cora's size
  python -m launch.benchmarks.graph --dataset=cora.npz --peer          # and torch-geometric's, in turns
  python -m launch.benchmarks.graph --dataset=cora.npz --networks=gcn --seeds=32
  python -m launch.benchmarks.graph --networks=sampled --nodes=100000 --edges=1000000

gcn, gat: an epoch as `experiments.graph.nodes` trains it with the layer's published settings, an update from the
training nodes and one look at the validation nodes; torch-geometric's has its own layers, features as a dense matrix
and the normalised graph kept, as its examples have them. The two take turns, `--rounds` times; medians, and the ratio
of theirs to ours: above 1 ours is faster. On as many threads. sampled: an update of a mean GraphSAGE on a random graph,
`--batch` nodes of which each layer draws `--fanout` neighbours inside the compiled step; no peer, whose loader needs
extensions that have to be compiled.
"""

import dataclasses
import json
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.graph import nodes
from experiments.graph._node_views import make_node_feeds, normalize_rows
from mlnotes import graph as graphs
from mlnotes.data.feeds import Feeds
from mlnotes.data.graph import Graph, load_graph, make_graph, make_graph_feeds, make_undirected
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.program import Program, make_mesh
from mlnotes.engine.sharding import count_cores

# A function that makes so many epochs and waits.
Epochs = Callable[[int], None]
# The sizes of Cora: nodes, edges, words, words of a node, classes; nodes to learn from a class, to validate on.
_CORA = dict(nodes=2708, edges=5278, words=1433, each=18, classes=7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  networks: tuple[str, ...] = field(("gcn", "gat", "sampled"), "which of these")
  dataset: str = field("random", "of gcn and gat: random, of Cora's size, or a file.npz")
  seeds: int = field(1, "of gcn and gat: networks side by side in one program; the peer trains one")
  epochs: int = field(50, "epochs, or updates, in a measurement")
  rounds: int = field(5, "measurements of each")
  peer: bool = field(False, "measure torch-geometric as well")
  nodes: int = field(100_000, "of sampled: nodes of the random graph")
  edges: int = field(1_000_000, "of sampled: its edges, each in one direction")
  batch: int = field(512, "of sampled: nodes of an update")
  fanout: tuple[int, ...] = field((10, 10), "of sampled: neighbours that each layer draws")
  out: str = field("", "file for the figures as JSON")

  def __post_init__(self):
    super().__post_init__()
    for name in self.networks:
      require(name in PROGRAMS, "networks", name, f"names among {', '.join(PROGRAMS)}")
    for name in ("seeds", "epochs", "rounds", "batch", "edges"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.nodes >= self.batch, "nodes", self.nodes, f"--batch={self.batch} or more")
    require(len(self.fanout) >= 1 and min(self.fanout) >= 1, "fanout", self.fanout, "numbers of 1 or more")


def read_graph(dataset: str) -> Graph:
  """The graph of a file, or a random one of Cora's size."""
  if dataset != "random":
    return load_graph(dataset)
  rng, size = np.random.default_rng(0), _CORA["nodes"]
  senders, receivers = make_undirected(*rng.integers(0, size, (2, _CORA["edges"])).astype(np.int32), size)
  features = np.zeros((size, _CORA["words"]), np.float32)
  features[np.arange(size)[:, None], rng.integers(0, _CORA["words"], (size, _CORA["each"]))] = 1
  place, label = rng.permutation(size), np.arange(size) % _CORA["classes"]
  masks = {name: np.isin(place, np.arange(*ends)) for name, ends in
           (("train", (0, 140)), ("valid", (140, 640)), ("test", (640, 1640)))}  # fmt: skip
  arrays = {"senders": senders, "receivers": receivers, "features": features, "label": label, **masks}
  return make_graph("--dataset=random", "random", arrays, tuple(map(str, range(_CORA["classes"]))))


def our_network(layer: str, config: Config) -> tuple[int, Epochs]:
  """(number of parameters of a network, epochs)."""
  data = read_graph(config.dataset)
  # A random graph is not the experiment's to load: its feeds and its network are made from the graph at hand.
  settings = nodes.Config.tuned(layer=layer, dataset=config.dataset)
  feeds: Feeds = make_node_feeds(settings, data, make_graph_feeds(data, "valid"))
  experiment = nodes.make_of(settings, data)
  program = Program(experiment, feeds, range(config.seeds), make_mesh(0 if config.seeds > 1 else 1))
  state, window = program.init(), program.empty_window()
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params)) // config.seeds

  def epochs(count: int) -> None:
    nonlocal state, window
    state, window = jax.block_until_ready(program.update(state, window, count))

  return parameters, epochs


def torch_network(layer: str, config: Config) -> tuple[int, Epochs]:
  import torch
  from torch.nn import functional
  from torch_geometric.nn import GATConv, GCNConv

  torch.set_num_threads(count_cores())
  data, settings = read_graph(config.dataset), nodes.Config.tuned(layer=layer)
  x, label = torch.as_tensor(normalize_rows(data.features)), torch.as_tensor(data.label, dtype=torch.long)
  ends = torch.as_tensor(np.stack([data.senders, data.receivers]), dtype=torch.long)
  train, valid = torch.as_tensor(data.train), torch.as_tensor(data.valid)
  width, heads = settings.hidden, settings.heads
  if layer == "gcn":
    layers = (
      GCNConv(x.shape[1], width, cached=True, bias=False),
      GCNConv(width, data.num_classes, cached=True, bias=False),
    )
    groups = [{"params": layers[0].parameters(), "weight_decay": settings.l2}, {"params": layers[1].parameters()}]
  else:
    kept = {"dropout": settings.dropout}
    layers = GATConv(x.shape[1], width, heads, **kept), GATConv(width * heads, data.num_classes, concat=False, **kept)
    groups = [{"params": [p for part in layers for p in part.parameters()], "weight_decay": settings.l2}]
  module = torch.nn.ModuleList(layers)
  optimizer = torch.optim.Adam(groups, settings.learning_rate)
  activate = torch.relu if layer == "gcn" else functional.elu

  def forward(training: bool):
    drop = partial(functional.dropout, p=settings.dropout, training=training)
    return layers[1](drop(activate(layers[0](drop(x), ends))), ends)

  def epochs(count: int) -> None:
    for _ in range(count):
      module.train()
      optimizer.zero_grad()
      functional.cross_entropy(forward(True)[train], label[train]).backward()
      optimizer.step()
      module.eval()
      with torch.no_grad():
        (forward(False)[valid].argmax(1) == label[valid]).float().mean().item()

  return sum(p.numel() for p in module.parameters()), epochs


def our_sampled(config: Config) -> tuple[int, Epochs]:
  """(number of parameters, updates) of a GraphSAGE of mean aggregates on a large graph with 64 features."""
  rng = np.random.default_rng(0)
  ends = make_undirected(*rng.integers(0, config.nodes, (2, config.edges)).astype(np.int32), config.nodes)
  table = graphs.make_neighbor_rows(ends[1], ends[0], config.nodes)
  x = jnp.asarray(rng.normal(size=(config.nodes, 64)), jnp.float32)
  label = jnp.asarray(rng.integers(0, 10, config.nodes))
  network, adam = graphs.NodeNetwork("sage_mean", 10, hidden=64, layers=len(config.fanout)), optax.adam(1e-2)

  def draw(key, arrays):
    table, x, label = arrays
    of_nodes, of_neighbors = jax.random.split(key)
    chosen = jax.random.randint(of_nodes, (config.batch,), 0, config.nodes)
    hops = graphs.sample_hops(of_neighbors, table, chosen, config.fanout, replace=True)
    return graphs.View(x[hops.inputs], hops.hops), label[chosen]

  def update(carry, step, arrays):
    params, state = carry
    view, label = draw(jax.random.fold_in(jax.random.key(1), step), arrays)
    entropy = lambda params: jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(network.apply({"params": params}, view), label)
    )
    updates, state = adam.update(jax.grad(entropy)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  arrays = (table, x, label)
  params = jax.jit(lambda arrays: network.init(jax.random.key(0), draw(jax.random.key(0), arrays)[0])["params"])(arrays)
  loop = jax.jit(
    lambda carry, steps, arrays: jax.lax.scan(lambda c, step: update(c, step, arrays), carry, steps)[0],
    donate_argnums=0,
  )
  carry, size = (params, adam.init(params)), sum(leaf.size for leaf in jax.tree.leaves(params))

  def updates(count: int) -> None:
    nonlocal carry
    carry = jax.block_until_ready(loop(carry, jnp.arange(count), arrays))

  return size, updates


PROGRAMS: dict[str, tuple[Any, Any]] = {
  "gcn": (partial(our_network, "gcn"), partial(torch_network, "gcn")),
  "gat": (partial(our_network, "gat"), partial(torch_network, "gat")),
  "sampled": (our_sampled, None),
}


def measure(config: Config, name: str) -> dict[str, Any]:
  """Parameters and seconds of an epoch of each, with all its rounds."""
  ours, theirs = PROGRAMS[name]
  start = time.perf_counter()
  programs = {"mlnotes": ours(config)}
  programs["mlnotes"][1](config.epochs)  # compiled
  first = time.perf_counter() - start
  if config.peer and theirs:
    try:
      programs["torch"] = theirs(config)
    except ImportError as error:
      raise InputError(f"--peer needs torch-geometric, which is not installed: {error}.") from error
    programs["torch"][1](config.epochs)
  if len({parameters for parameters, _ in programs.values()}) > 1:
    raise AssertionError(f"the networks differ: { ({name: p for name, (p, _) in programs.items()}) }")
  found: dict[str, list[float]] = {name: [] for name in programs}
  for _ in range(config.rounds):
    for peer, (_, epochs) in programs.items():
      start = time.perf_counter()
      epochs(config.epochs)
      found[peer].append((time.perf_counter() - start) / config.epochs)
  seconds = {peer: statistics.median(values) for peer, values in found.items()}
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of Linux, in MiB
  return {
    "network": name, "parameters": programs["mlnotes"][0], "seconds": seconds, "rounds": found,
    "first_seconds": first, "peak_mib": peak,
  }  # fmt: skip


def main(config: Config) -> int:
  rows = []
  print("| network | parameters | mlnotes, ms | torch-geometric, ms | theirs / ours | start, s | peak, MiB |")
  print("|---|---|---|---|---|---|---|")
  for name in config.networks:
    rows.append(measure(config, name))
    ours, theirs = rows[-1]["seconds"]["mlnotes"], rows[-1]["seconds"].get("torch")
    told = [f"{1e3 * theirs:.2f}", f"{theirs / ours:.2f}"] if theirs else ["not measured", ""]
    rest = f"{rows[-1]['first_seconds']:.1f} | {rows[-1]['peak_mib']:.0f}"
    print(f"| {name} | {rows[-1]['parameters']:,} | {1e3 * ours:.2f} | {' | '.join(told)} | {rest} |", flush=True)
  if config.out:
    with open(config.out, "w", encoding="utf-8") as file:
      json.dump({"config": dataclasses.asdict(config), "rows": rows}, file, indent=1)
  return 0


if __name__ == "__main__":
  run(main, Config)
