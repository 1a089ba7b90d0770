"""What a network of nodes sees in an update, in the choice of its best epoch and in an evaluation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes import graph as graphs
from mlnotes.data.feed import make_whole_eval, make_whole_feed
from mlnotes.data.feeds import Feeds
from mlnotes.data.graph import Graph
from mlnotes.data.image import DataError
from mlnotes.engine.errors import require
from mlnotes.graph.node_network import with_loops

TRAIN, VALID, TEST, NONE = range(4)
# Eigenvectors cost the cube of the nodes: above this many a graph's filter takes too long.
MOST_NODES_OF_BASIS = 4000
# Below this part of entries that are not 0 a product keeps to these.
_SPARSE = 0.2
# What is drawn without replacement from a graph's edges may leave a node with fewer neighbours; these do not mind.
SAMPLED = ("sage_mean", "sage_max", "sage_lstm", "gat", "gat2")


class Batch(NamedTuple):
  """Nodes of an update: what the network sees, their classes, and how much each counts."""

  view: graphs.View
  label: Int[Array, " R"]
  weight: Float[Array, " R"]


class Split(NamedTuple):
  """Which split each node is in, and the nodes in the order of the splits; the first `counts` are of each."""

  code: Int[Array, " N"]
  order: Int[Array, " N"]


def check_classes(data: Graph, config: Any) -> None:
  """Raises DataError where there are not two classes, or a class has fewer nodes than a random split asks for."""
  found = len(np.unique(data.label[data.train])) if config.split == "public" else data.num_classes
  if found < 2:
    raise DataError(f"--dataset={config.dataset}: the nodes to learn from are of {found} class, expected 2 or more.")
  if config.split == "public":
    return
  counts = np.bincount(data.label, minlength=data.num_classes)
  asked = config.per_class + config.valid_per_class + 1
  if (worst := int(counts.argmin())) >= 0 and counts[worst] < asked:
    raise DataError(
      f"--per_class={config.per_class}: class {data.class_names[worst]} of {data.name} has {counts[worst]} nodes, "
      f"expected {asked} or more: {config.per_class} to learn from, {config.valid_per_class} to validate on, 1 to test."
    )


def count_split(data: Graph, config: Any) -> tuple[int, int]:
  """How many nodes are to learn from, and to validate on."""
  if config.split == "public":
    return int(data.train.sum()), int(data.valid.sum())
  return config.per_class * data.num_classes, config.valid_per_class * data.num_classes


def draw_split(key: Key[Array, ""], label: Int[Array, " N"], train: int, valid: int) -> Int[Array, " N"]:
  """The split of each node: of every class `train` nodes to learn from, `valid` to validate on, the rest to test."""
  order = jnp.lexsort((jax.random.uniform(key, label.shape), label))
  sorted_label = label[order]
  rank = jnp.arange(label.shape[0]) - jnp.searchsorted(sorted_label, sorted_label)
  code = jnp.where(rank < train, TRAIN, jnp.where(rank < train + valid, VALID, TEST))
  return jnp.zeros_like(label).at[order].set(code.astype(label.dtype))


def start_split(key: Key[Array, ""], batch: Any, config: Any) -> Split:
  if config.split == "random":
    code = draw_split(key, batch["label"], config.per_class, config.valid_per_class)
  else:
    code = jnp.full(batch["label"].shape, NONE, batch["label"].dtype)
    for number, name in ((TRAIN, "train"), (VALID, "valid"), (TEST, "test")):
      code = jnp.where(batch[name], number, code)
  return Split(code, jnp.argsort(code).astype(jnp.int32))


# -- on the host, once -------------------------------------------------------------------------------------------------


def is_static(config: Any) -> bool:
  """Whether every update sees the same nodes and edges, so that what it does not need is left out beforehand."""
  return config.split == "public" and config.drop_edge == 0 and config.sampling == "none"


def normalize_rows(features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
  total = np.abs(features).sum(1, keepdims=True)
  return features / np.where(total > 0, total, 1)


def prepare_features(config: Any, data: Graph, edges: graphs.Edges) -> Float[np.ndarray, "N ..."]:
  """Features of all nodes; of sgc and dcnn what they take from the graph as well."""
  x = normalize_rows(data.features) if config.normalize_features else data.features
  if config.layer == "sgc":
    return np.asarray(graphs.propagate_powers(edges, jnp.asarray(x), config.hops))
  return np.asarray(graphs.diffuse(edges, jnp.asarray(x), config.hops)) if config.layer == "dcnn" else x


def compress(x: Float[np.ndarray, "N ..."]) -> graphs.SparseMatrix | Float[np.ndarray, "N ..."]:
  return graphs.make_sparse(x) if x.ndim == 2 and x.size and (x != 0).mean() < _SPARSE else x


def make_arrays(config: Any, data: Graph) -> dict[str, Any]:
  """What all seeds share. Raises InputError and DataError for graphs that the flags do not fit."""
  check_classes(data, config)
  if not len(data.senders):
    raise DataError(f"--dataset={config.dataset}: the graph has no edge, expected one or more.")
  kind, size = graphs.LAYERS[config.layer], data.num_nodes
  edges = graphs.make_edges(jnp.asarray(data.senders), jnp.asarray(data.receivers))
  x = prepare_features(config, data, edges)
  arrays: dict[str, Any] = {name: getattr(data, name) for name in ("label", "train", "valid", "test")}
  arrays |= {"edges": edges, "x": compress(x)}
  if config.layer == "spectral":
    if size > MOST_NODES_OF_BASIS:
      raise DataError(f"--layer=spectral: {data.name} has {size} nodes, expected at most {MOST_NODES_OF_BASIS}.")
    arrays["basis"] = graphs.laplacian_basis(edges, size, config.eigenvectors)
  if config.drop_edge:
    arrays["pair"] = graphs.pair_edges(edges)
  known = ~data.test if config.inductive else np.ones(size, bool)
  kept = known[data.senders] & known[data.receivers]
  if is_static(config):
    seen = with_loops(config.layer, edges._replace(mask=jnp.asarray(kept, jnp.float32)), size)
    arrays |= {
      "learn": _pruned(config, x, seen, data.train, arrays),
      "choose": _pruned(config, x, seen, data.valid, arrays),
    }
  elif kind.reach == "prepared" or config.sampling != "none":
    arrays["rows"] = graphs.make_row_table(x) if isinstance(arrays["x"], graphs.SparseMatrix) else x
  ends = data.senders[kept], data.receivers[kept]
  if config.sampling == "neighbors":
    arrays["table"] = graphs.make_neighbor_rows(*reversed(ends), size)
  if config.sampling == "clusters":
    require(config.clusters <= size, "clusters", config.clusters, f"at most {size}, the nodes of {data.name}")
    part = graphs.partition_graph(*ends, size, config.clusters, kind=config.partition)
    arrays["parts"] = graphs.make_parts(*ends, part)
  return arrays


def _pruned(config: Any, x: np.ndarray, edges: graphs.Edges, mask: np.ndarray, arrays: dict[str, Any]) -> graphs.View:
  """What the nodes of `mask` hang on."""
  wanted, kind = np.flatnonzero(mask).astype(np.int32), graphs.LAYERS[config.layer]
  if kind.reach == "prepared":
    return graphs.View(compress(x[wanted]), ())
  if kind.reach == "whole" or config.layers > graphs.MOST_UNROLLED:  # many layers reach nearly all nodes
    hops = graphs.whole_hops(edges, len(x), config.layers)
    return graphs.View(arrays["x"], hops.hops, jnp.asarray(wanted), arrays.get("basis"))
  hops = graphs.prune_hops(edges, len(x), config.layers, wanted)
  return graphs.View(compress(x[np.asarray(hops.inputs)]), hops.hops)


def make_node_feeds(config: Any, data: Graph, feeds: Feeds) -> Feeds:
  """`feeds` with the arrays that the views are made of; its `mask` is that of the whole graph's feeds."""
  arrays = make_arrays(config, data)
  mask = data.arrays[feeds.split].astype(np.float32)
  kept = {name: value for name, value in arrays.items() if name not in ("learn", "choose", "rows", "table", "parts")}
  evaluate = make_whole_eval({**kept, "mask": mask})
  return feeds._replace(train=make_whole_feed({**arrays, "mask": data.train.astype(np.float32)}), evaluate=evaluate)


# -- in the compiled step ----------------------------------------------------------------------------------------------


def view_whole(config: Any, batch: Any) -> graphs.View:
  """All nodes of the whole graph: every evaluation."""
  return _view_edges(config, batch, batch["edges"], None)


def _view_edges(config: Any, batch: Any, edges: graphs.Edges, rows: Int[Array, " R"] | None) -> graphs.View:
  if graphs.LAYERS[config.layer].reach == "prepared":
    return graphs.View(batch["x"] if rows is None else graphs.take_rows(batch["rows"], rows), ())
  size = batch["label"].shape[0]
  hops = graphs.whole_hops(with_loops(config.layer, edges, size), size, config.layers)
  return graphs.View(batch["x"], hops.hops, rows, batch.get("basis"))


def _known_edges(config: Any, batch: Any, split: Split) -> graphs.Edges:
  """Those that are there while the network learns."""
  edges = batch["edges"]
  if not config.inductive:
    return edges
  known = split.code != TEST
  return edges._replace(mask=edges.mask * (known[edges.senders] & known[edges.receivers]))


def view_learning(config: Any, batch: Any, split: Split, count: int, key: Key[Array, ""], drop: Any) -> Batch:
  """What an update learns from: all training nodes (`count`), some of them, or those of some clusters."""
  if config.sampling == "clusters":
    return _view_clusters(config, batch, split, key)
  nodes = split.order[:count]
  if config.sampling == "neighbors":
    drawn, of_neighbors = jax.random.split(key)
    nodes = jax.random.permutation(drawn, nodes)[: min(config.batch_nodes, count)]
    view = _view_neighbors(config, batch, nodes, of_neighbors)
  elif "learn" in batch:
    view, nodes = batch["learn"], jnp.nonzero(batch["train"], size=count)[0]
  else:
    edges = _known_edges(config, batch, split)
    edges = graphs.drop_edges(key, edges, drop, batch["pair"]) if config.drop_edge else edges
    view = _view_edges(config, batch, edges, nodes)
  return Batch(view, batch["label"][nodes], jnp.ones(nodes.shape))


def view_choosing(config: Any, batch: Any, split: Split, start: int, count: int) -> Batch:
  """The validation nodes, `count` from `start` on in the order of the splits, by which the best epoch is chosen."""
  if "choose" in batch:
    view, nodes = batch["choose"], jnp.nonzero(batch["valid"], size=count)[0]
  else:
    nodes = split.order[start : start + count]
    view = _view_edges(config, batch, _known_edges(config, batch, split), nodes)
  return Batch(view, batch["label"][nodes], jnp.ones(nodes.shape))


def _view_neighbors(config: Any, batch: Any, nodes: Int[Array, " R"], key: Key[Array, ""]) -> graphs.View:
  hops = graphs.sample_hops(key, batch["table"], nodes, config.fanout, config.replace)
  looped = tuple(hop._replace(edges=with_loops(config.layer, hop.edges, hop.num_nodes)) for hop in hops.hops)
  return graphs.View(graphs.take_rows(batch["rows"], hops.inputs), looped)


def _view_clusters(config: Any, batch: Any, split: Split, key: Key[Array, ""]) -> Batch:
  parts = batch["parts"]
  chosen = jax.random.permutation(key, parts.nodes.shape[0])[: config.clusters_each]
  nodes, mask, edges = graphs.join_parts(parts, chosen)
  size = nodes.shape[0]
  hops = graphs.whole_hops(with_loops(config.layer, edges, size), size, config.layers)
  weight = mask * (split.code[nodes] == TRAIN)
  return Batch(graphs.View(graphs.take_rows(batch["rows"], nodes), hops.hops), batch["label"][nodes], weight)
