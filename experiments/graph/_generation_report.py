"""What was generated: its distances to the test graphs beside two floors, what of it is valid and new, pictures."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from experiments.graph._drawing import lay_out
from mlnotes import graph
from mlnotes.data.drawn_graphs import VALENCES, SmallGraphs, make_grid_graph
from mlnotes.engine.experiment import stream_key
from mlnotes.engine.plot import new_figure, save_figure
from mlnotes.engine.progress import report_step, warn
from mlnotes.graph.isomorphism import OneGraph

_CHUNK = 64
_SHOWN, _SEED = 6, 0
# A run has collapsed whose samples have less than this share of the distinct graphs among as many training graphs.
_DISTINCT_SHARE = 0.2
_COLOURS = ("tab:blue", "tab:red", "tab:green", "tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:gray")


class Judged(NamedTuple):
  """One set of graphs: `graphs` without padding, its statistics."""

  graphs: list[OneGraph]
  statistics: graph.GraphStatistics


@jax.jit
def _sample(trained: Any, key: Key[Array, ""]) -> tuple[Array, Array]:
  return trained.sample(key, _CHUNK)


def sample_all(trained: Any, key: Key[Array, ""], count: int) -> tuple[np.ndarray, np.ndarray]:
  """(adjacency, node_type) of `count` graphs by one compiled program, chunk by chunk."""
  parts = [_sample(trained, jax.random.fold_in(key, start)) for start in range(0, count, _CHUNK)]
  adjacency, node_type = (np.concatenate([np.asarray(x) for x in of])[:count] for of in zip(*parts))
  return adjacency.astype(np.uint8), node_type.astype(np.uint8)


def judge(adjacency: np.ndarray, node_type: np.ndarray) -> Judged:
  """Statistics need nodes first, so graphs are taken out of their padding and put into it again."""
  graphs = [graph.unpad_graph(*one) for one in zip(adjacency, node_type)]
  padded = np.zeros_like(adjacency)
  for place, (edges, types) in zip(padded, graphs):
    place[: len(types), : len(types)] = edges
  return Judged(graphs, graph.describe_graphs(padded, np.array([len(types) for _, types in graphs], np.int32)))


def find_rule(data: SmallGraphs) -> tuple[str, Callable[[OneGraph], bool]]:
  """(in words, as a function) what graphs of the set have in common."""
  rules: dict[str, tuple[str, Callable[[], Callable[[OneGraph], bool]]]] = {
    "community": ("two dense blocks", lambda: graph.is_two_blocks),
    "grid": ("a grid of sides 2 to 6", lambda: _member_of_grids(range(2, 7), range(2, 7))),
    "ladder": ("a ladder of 2 to 10 rungs", lambda: _member_of_grids([2], range(2, 11))),
    "ego": ("a node that knows all others", lambda: graph.is_ego_graph),
    "molecules": ("connected, within the valences", lambda: lambda one: graph.keeps_valences(one, VALENCES)),
  }
  words, make_rule = rules.get(data.name, ("connected", lambda: graph.is_connected))
  return words, make_rule()


def _member_of_grids(rows: Iterable[int], columns: Iterable[int]) -> Callable[[OneGraph], bool]:
  return graph.make_member_rule([make_grid_graph(a, b) for a in rows for b in columns])


def describe_collapse(distinct: int, of_training: int, valid: float, count: int, rule: str) -> str:
  """The sentence about a generator that makes the same graphs again and again, or none of the kind; "" for another."""
  if distinct < _DISTINCT_SHARE * of_training:
    return f"collapsed: {distinct} of {count} samples are distinct, of as many training graphs {of_training}."
  if valid == 0:
    return f"off the data: none of {count} samples is valid ({rule})."
  return ""


def describe_losses(figures: Mapping[str, float], count: int) -> str:
  """The sentence about statistics in which independent edges come as near; "" where there are none."""
  of = lambda name, end="": figures.get(f"{name}_mmd_{count}{end}", np.inf)
  lost = [name for name in ("degree", "clustering", "orbit") if of(name) >= of(name, "_erdos_renyi")]
  return f"no nearer to the test graphs than an Erdos-Renyi fit in {', '.join(lost)}." if lost else ""


def write_report(
  trained: Any, key: Key[Array, ""], data: SmallGraphs, config: Any, directory: Path
) -> dict[str, float]:
  """Writes graphs.png and statistics.png; returns the figures."""
  real = data.train.arrays, data.test.arrays
  # What generates no types is compared with graphs without them.
  typed = (lambda x: x) if config.method == "mol_gan" else lambda x: np.minimum(x, 1)
  train, test = (judge(typed(arrays["adjacency"]), typed(arrays["node_type"])) for arrays in real)
  count = config.samples or len(data.train)
  report_step(f"{count} graphs")
  found = judge(*sample_all(trained, stream_key(key, "samples"), count))
  rng = np.random.default_rng(_SEED)
  fit = graph.fit_erdos_renyi(real[0]["adjacency"], real[0]["num_nodes"])
  adjacency, sizes = graph.sample_erdos_renyi(rng, fit, count, data.most_nodes)
  random = judge(adjacency, (np.arange(data.most_nodes)[None] < sizes[:, None]).astype(np.uint8))
  # As many as are judged: the discrepancy of few graphs is larger.
  some = rng.permutation(len(train.graphs))[:count]
  floor = Judged([train.graphs[i] for i in some], graph.GraphStatistics(*(part[some] for part in train.statistics)))
  figures = {}
  for end, judged in (("", found), ("_train", floor), ("_erdos_renyi", random)):
    if len(judged.statistics.degree):  # not only empty graphs
      compared = graph.compare_graphs(judged.statistics, test.statistics, config.kernel)
      figures |= {f"{name}_mmd_{count}{end}": value for name, value in compared.items()}
  figures |= _count_new(found, floor, test, train, data, count)
  if said := describe_losses(figures, count):
    warn(said)
  report_step("pictures")
  draw_graphs(test.graphs, found.graphs, random.graphs, data, directory / "graphs.png")
  draw_statistics({"test": test, "generated": found, "Erdos-Renyi": random}, directory / "statistics.png")
  return figures


def _count_new(
  found: Judged, floor: Judged, test: Judged, train: Judged, data: SmallGraphs, count: int
) -> dict[str, float]:
  words, is_valid = find_rule(data)
  training = graph.GraphIndex(train.graphs)
  novelty, of_test = (graph.judge_novelty(judged.graphs, training, is_valid) for judged in (found, test))
  distinct, distinct_floor = (len(graph.GraphIndex(judged.graphs)) for judged in (found, floor))
  mean = lambda judged, size: float(np.mean([size(one) for one in judged.graphs]))
  nodes, edges = lambda one: len(one[1]), lambda one: (one[0] > 0).sum() / 2
  figures = {
    **{f"{name}_{count}": value for name, value in novelty._asdict().items()},
    "valid_test": of_test.valid,
    "novel_test": of_test.novel,
    f"distinct_{count}": distinct / len(found.graphs),
    f"distinct_{count}_train": distinct_floor / len(floor.graphs),
    "mean_nodes": mean(found, nodes),
    "mean_nodes_test": mean(test, nodes),
    "mean_edges": mean(found, edges),
    "mean_edges_test": mean(test, edges),
  }
  said = describe_collapse(distinct, distinct_floor, novelty.valid, count, words)
  figures["collapsed"] = float(bool(said))
  if said:
    warn(said)
  return {name: value for name, value in figures.items() if not np.isnan(value)}


# -- pictures ----------------------------------------------------------------------------------------------------------


def _draw_graph(axis: Any, one: OneGraph) -> None:
  adjacency, node_type = one
  if not len(node_type):
    axis.text(0.5, 0.5, "no node", ha="center", va="center", fontsize=8, color="0.5", transform=axis.transAxes)
  place = lay_out(adjacency > 0)
  for i, j in np.argwhere(np.triu(adjacency, 1)):
    axis.plot(*place[[i, j]].T, color="0.5", linewidth=0.6 + 0.9 * (int(adjacency[i, j]) - 1), zorder=1)
  colours = [_COLOURS[(int(kind) - 1) % len(_COLOURS)] for kind in node_type]
  axis.scatter(*place.T, s=14, c=colours, zorder=2)
  axis.set_aspect("equal")
  axis.axis("off")


def draw_graphs(
  test: list[OneGraph], found: list[OneGraph], random: list[OneGraph], data: SmallGraphs, path: Path
) -> None:
  """The first graphs of three sets, row by row."""
  rows = {"test": test, "generated": found, "Erdos-Renyi": random}
  figure, axes = new_figure(len(rows), _SHOWN, width=1.6 * _SHOWN, height=1.7 * len(rows) + 0.3)
  for line, (name, graphs) in zip(axes, rows.items()):
    for axis in line:
      axis.axis("off")
    for axis, one in zip(line, graphs):
      _draw_graph(axis, one)
    line[0].set_title(name, loc="left", fontsize=10)
  if data.typed:
    kinds = ", ".join(f"{name} {colour.removeprefix('tab:')}" for name, colour in zip(data.node_types, _COLOURS))
    figure.supxlabel(kinds, fontsize=8)
  save_figure(figure, path)


def draw_statistics(sets: dict[str, Judged], path: Path) -> None:
  """Shares of degrees and of clustering coefficients, and the mean counts of orbits, set beside set."""
  figure, axes = new_figure(1, 3, width=12.0, height=3.2)
  for number, (name, judged) in enumerate(sets.items()):
    degree, clustering, orbit = (part.sum(0) for part in judged.statistics)
    colour, of = ("0.3", "tab:red", "tab:blue")[number % 3], max(len(judged.statistics.degree), 1)
    options = dict(color=colour, label=name, linewidth=1.3)
    axes[0, 0].plot(degree / max(degree.sum(), 1), "o-", markersize=3, **options)
    axes[0, 1].plot(np.linspace(0, 1, len(clustering)), np.cumsum(clustering) / max(clustering.sum(), 1), **options)
    axes[0, 2].plot(np.maximum(orbit / of, 1e-2), "o-", markersize=3, **options)
  for axis, title, label in zip(
    axes[0], ("degrees", "clustering, cumulative", "orbits, mean count"), ("degree", "coefficient", "orbit")
  ):
    axis.set_title(title)
    axis.set_xlabel(label)
    axis.legend(frameon=False, fontsize=8)
  axes[0, 2].set_yscale("log")
  save_figure(figure, path)
