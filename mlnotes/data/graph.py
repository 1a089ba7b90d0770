"""One graph whose nodes are to be told apart: a split of its own kind, resident as a whole.

Zachary's karate club needs no file, a stochastic block model is drawn from a key, and an .npz file has a graph in the
common sparse form.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key

from mlnotes.data.dataset import name_classes
from mlnotes.data.feed import make_whole_eval, make_whole_feed, on_cpu
from mlnotes.data.feeds import Feeds
from mlnotes.data.fingerprint import fingerprint_splits
from mlnotes.data.image import DataError
from mlnotes.data.npz import Arrays, read_npz
from mlnotes.data.order import permute_index
from mlnotes.data.split import Expected, check_arrays
from mlnotes.engine.experiment import root_key

# Without masks in the file: labelled nodes of each class to learn from, and at most this many to validate on, as of the
# citation graphs of Yang et al. 2016.
_TRAIN_PER_CLASS, _VALID = 20, 500
_MASKS = ("train", "valid", "test")
# The arrays of an .npz file: edges, features, classes and splits, each by any of the names that are in use.
_NAMES = (
  "senders", "receivers",
  *(f"{name}_{part}" for name in ("adj", "attr") for part in ("data", "indices", "indptr", "shape")),
  "features", "attr_matrix", "attr_names", *(f"feature_{part}" for part in ("row", "col", "value", "shape")),
  "labels", "label", *(f"{split}_{kind}" for split in ("train", "val", "valid", "test") for kind in ("mask", "index")),
)  # fmt: skip


def expect_graph(num_nodes: int, num_classes: int) -> Mapping[str, Expected]:
  """What a graph is: E edges, each in its direction, between N nodes with D features; a mask for each split."""
  node = Expected("E", "iu", np.int32, 0, num_nodes - 1)
  edges = {"senders": node, "receivers": node}
  nodes = {"features": Expected("ND", "fiub", np.float32), "label": Expected("N", "iu", np.int32, 0, num_classes - 1)}
  return {**edges, **nodes, **dict.fromkeys(_MASKS, Expected("N", "b", np.bool_))}


class Graph(NamedTuple):
  """An edge i goes from node senders[i] to node receivers[i]; of an undirected graph both directions are there."""

  name: str
  senders: Int32[np.ndarray, " E"]
  receivers: Int32[np.ndarray, " E"]
  features: Float32[np.ndarray, "N D"]
  label: Int32[np.ndarray, " N"]
  train: Bool[np.ndarray, " N"]
  valid: Bool[np.ndarray, " N"]
  test: Bool[np.ndarray, " N"]
  class_names: tuple[str, ...]

  @property
  def num_nodes(self) -> int:
    return len(self.label)

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @property
  def arrays(self) -> dict[str, np.ndarray]:
    return {name: getattr(self, name) for name in expect_graph(1, 1)}


def make_graph(flag: str, name: str, arrays: Mapping[str, np.ndarray], class_names: tuple[str, ...]) -> Graph:
  """A graph of `arrays` after the checks that everything behind relies on. Raises DataError that begins with `flag`."""
  features = np.asarray(arrays["features"])
  checked = check_arrays(flag, arrays, expect_graph(len(features) if features.ndim else 0, len(class_names)))
  if not checked["features"].shape[1]:
    raise DataError(f"{flag}: the features have no column, expected one or more.")
  for first, second in (("train", "valid"), ("train", "test"), ("valid", "test")):
    if (both := checked[first] & checked[second]).any():
      raise DataError(f"{flag}: node {both.argmax()} is in {first} and in {second}, expected it in one of them.")
  for mask in ("train", "test"):
    if not checked[mask].any():
      raise DataError(f"{flag}: {mask} has no node, expected one or more.")
  return Graph(name, **checked, class_names=class_names)


def make_graph_feeds(graph: Graph, split: Literal["valid", "test"] = "test") -> Feeds:
  """The whole graph for every update and evaluation: its arrays, and `mask`: float32 (N,), 1 for the nodes that count.

  Those are the training nodes in an update and those of `split` in an evaluation. Raises DataError for an empty one.
  """
  arrays = graph.arrays
  if not arrays[split].any():
    raise DataError(f"--eval_split={split}: {graph.name} has no node in it, expected the other one.")
  with_mask = lambda name: {**arrays, "mask": arrays[name].astype(np.float32)}
  text = fingerprint_splits(_Whole(graph, "train"), _Whole(graph, "test"))
  return Feeds(make_whole_feed(with_mask("train")), make_whole_eval(with_mask(split)), split=split, fingerprint=text)


class _Whole(NamedTuple):
  """A graph as fingerprints read it; its length is how many nodes are in one split."""

  graph: Graph
  split: str

  def __len__(self) -> int:
    return int(self.arrays[self.split].sum())

  @property
  def arrays(self) -> Mapping[str, np.ndarray]:
    return self.graph.arrays

  @property
  def nbytes(self) -> int:
    return sum(value.nbytes for value in self.arrays.values())


def load_graph(
  dataset: str,
  undirected: bool = True,
  nodes: int = 200,
  blocks: int = 4,
  p_within: float = 0.1,
  p_between: float = 0.01,
  graph_seed: int = 0,
) -> Graph:
  """Reads the graph that `--dataset` names.

  "karate":    Zachary's club of 34 members and 78 friendships (1977), which the two leaders, labelled, split. A
               feature for each member.
  "sbm":       a stochastic block model of `nodes` nodes in `blocks` blocks of (almost) one size, drawn from
               `graph_seed`: an edge has probability `p_within` inside a block and `p_between` elsewhere. The features
               are the block, one-hot, and Gaussian noise of deviation 1 (a contextual model, Deshpande et al. 2018).
  "path.npz":  adj_data, adj_indices, adj_indptr and adj_shape (or senders and receivers), attr_* in the same form (or
               features; feature_row, feature_col, feature_value, feature_shape; without any a feature for each node),
               labels. Masks train_mask, val_mask, test_mask or indices train_index, val_index, test_index; without,
               20 nodes of each class are to learn from, at most 500 and a third of the rest to validate on.

  `undirected` adds the reverse of each edge of a file and drops loops and repetitions. Weights of edges are not used.
  Raises DataError, one sentence, if there is no such graph or it cannot be used.
  """
  if dataset == "karate":
    return _load_karate()
  if dataset == "sbm":
    return _load_block_model(nodes, blocks, p_within, p_between, graph_seed)
  if dataset.endswith(".npz"):
    return _load_npz(dataset, undirected)
  raise DataError(f"--dataset={dataset}: no such graph, expected karate, sbm or a file.npz.")


def make_undirected(
  senders: Int[np.ndarray, " E"], receivers: Int[np.ndarray, " E"], num_nodes: int
) -> tuple[Int32[np.ndarray, " F"], Int32[np.ndarray, " F"]]:
  """Both directions of every edge once, without loops, in the order of the receivers, then of the senders."""
  pairs = [receivers.astype(np.int64) * num_nodes + senders, senders.astype(np.int64) * num_nodes + receivers]
  pairs = np.unique(np.concatenate(pairs))
  receivers, senders = (part.astype(np.int32) for part in np.divmod(pairs, num_nodes))
  return senders[senders != receivers], receivers[senders != receivers]


def split_nodes(
  label: Int[np.ndarray, " N"], per_class: int, num_valid: int
) -> tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
  """Masks (train, valid, test), fixed and pseudo-random: `per_class` nodes of each class, `num_valid`, the rest.

  At most half of a class, but one node of it in any case, is to learn from, and at most a third of what then remains
  to validate on.
  """
  order = permute_index(np.arange(len(label)), len(label), np.zeros(2, np.uint32))
  masks = np.zeros((3, len(label)), bool)
  for name in np.unique(label):
    own = order[label[order] == name]
    masks[0, own[: min(per_class, max(1, len(own) // 2))]] = True
  rest = order[~masks[0, order]]
  count = min(num_valid, len(rest) // 3)
  masks[1, rest[:count]], masks[2, rest[count:]] = True, True
  return masks[0], masks[1], masks[2]


# -- Zachary's club ----------------------------------------------------------------------------------------------------

# The friends of each member that come after him (Zachary 1977, figure 1), counted from 0.
_FRIENDS = {
  0: (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 17, 19, 21, 31), 1: (2, 3, 7, 13, 17, 19, 21, 30),
  2: (3, 7, 8, 9, 13, 27, 28, 32), 3: (7, 12, 13), 4: (6, 10), 5: (6, 10, 16), 6: (16,), 8: (30, 32, 33), 9: (33,),
  13: (33,), 14: (32, 33), 15: (32, 33), 18: (32, 33), 19: (33,), 20: (32, 33), 22: (32, 33),
  23: (25, 27, 29, 32, 33), 24: (25, 27, 31), 25: (31,), 26: (29, 33), 27: (33,), 28: (31, 33), 29: (32, 33),
  30: (32, 33), 31: (32, 33), 32: (33,),
}  # fmt: skip
_WITH_MR_HI = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 16, 17, 19, 21)


def _load_karate() -> Graph:
  edges = np.array([(a, b) for a, friends in _FRIENDS.items() for b in friends])
  senders, receivers = make_undirected(*edges.T, 34)
  label = np.ones(34, np.int32)
  label[list(_WITH_MR_HI)] = 0
  leader = np.isin(np.arange(34), (0, 33))
  rest = permute_index(np.arange(32), 32, np.zeros(2, np.uint32)) + 1
  valid = np.isin(np.arange(34), rest[:8])
  masks = dict(zip(_MASKS, (leader, valid, ~leader & ~valid)))
  arrays = {"senders": senders, "receivers": receivers, "features": np.eye(34), "label": label, **masks}
  return make_graph("--dataset=karate", "karate", arrays, ("Mr. Hi", "Officer"))


# -- the stochastic block model ----------------------------------------------------------------------------------------


def sample_block_model(
  key: Key[Array, ""], label: Int[Array, " N"], probabilities: Float[Array, "K K"]
) -> Bool[Array, "N N"]:
  """The adjacency of a stochastic block model, symmetric and without loops (Holland et al. 1983).

  P(i ~ j) = probabilities[label_i, label_j], independent for i < j; `probabilities` is symmetric.
  """
  size = label.shape[0]
  edges = jax.random.uniform(key, (size, size)) < probabilities[label][:, label]
  upper = jnp.triu(edges, 1)
  return upper | upper.T


def _load_block_model(nodes: int, blocks: int, p_within: float, p_between: float, seed: int) -> Graph:
  if not 1 <= blocks <= nodes:
    raise DataError(f"--dataset=sbm: found {blocks} blocks of {nodes} nodes, expected 1 to as many as there are nodes.")
  for name, value in (("p_within", p_within), ("p_between", p_between)):
    if not 0 <= value <= 1:
      raise DataError(f"--{name}={value}: expected a probability, in [0, 1].")
  label = np.arange(nodes, dtype=np.int32) * blocks // nodes
  probabilities = np.where(np.eye(blocks, dtype=bool), p_within, p_between).astype(np.float32)
  with on_cpu():  # an accelerator rounds the noise in another way
    edge_key, noise_key = jax.random.split(root_key(seed))
    adjacency = np.asarray(sample_block_model(edge_key, jnp.asarray(label), jnp.asarray(probabilities)))
    noise = np.asarray(jax.random.normal(noise_key, (nodes, blocks)))
  receivers, senders = np.nonzero(adjacency)
  masks = dict(zip(_MASKS, split_nodes(label, _TRAIN_PER_CLASS, _VALID)))
  features = np.eye(blocks, dtype=np.float32)[label] + noise
  arrays = {"senders": senders, "receivers": receivers, "features": features, "label": label, **masks}
  return make_graph("--dataset=sbm", "sbm", arrays, tuple(map(str, range(blocks))))


# -- files -------------------------------------------------------------------------------------------------------------


def _load_npz(path: str, undirected: bool) -> Graph:
  flag = f"--dataset={path}"
  found = read_npz(path, flag, "adj_data, adj_indices, adj_indptr, adj_shape and labels", _NAMES)
  if not (label_name := next((name for name in ("labels", "label") if name in found), "")):
    raise _lack(flag, found, "labels")
  (label,), class_names = name_classes(flag, found[label_name], of="node")
  size = len(label)
  senders, receivers = _read_edges(flag, found)
  expected = {name: expect_graph(size, 1)[name] for name in ("senders", "receivers")}
  senders, receivers = check_arrays(flag, {"senders": senders, "receivers": receivers}, expected).values()
  if undirected:
    senders, receivers = make_undirected(senders, receivers, size)
  features = _read_features(flag, found, size)
  if features.shape[:1] != (size,):
    raise DataError(f"{flag}: the features have shape {features.shape}, expected {size} rows as in {label_name}.")
  arrays = {"senders": senders, "receivers": receivers, "features": features, "label": label}
  return make_graph(flag, Path(path).stem, arrays | _read_masks(flag, found, label), class_names)


def _lack(flag: str, found: Arrays, expected: str) -> DataError:
  return DataError(f"{flag}: found the arrays {found.listed}, expected {expected}.")


def _read_edges(flag: str, found: Arrays) -> tuple[np.ndarray, np.ndarray]:
  if "senders" in found and "receivers" in found:
    return found["senders"], found["receivers"]
  rows, columns, _, (height, width) = _read_sparse(flag, found, "adj")
  if height != width:
    raise DataError(f"{flag}: adj_shape is {[height, width]}, expected a square.")
  return rows, columns


def _read_features(flag: str, found: Arrays, size: int) -> np.ndarray:
  for name in ("features", "attr_matrix"):
    if name in found:
      return found[name]
  if "feature_row" in found:
    names = ("feature_row", "feature_col", "feature_value", "feature_shape")
    if lacking := [name for name in names if name not in found]:
      raise _lack(flag, found, lacking[0])
    rows, columns, values, shape = (found[name] for name in names)
  elif any(name.startswith("attr_") and name != "attr_names" for name in found):
    rows, columns, values, shape = _read_sparse(flag, found, "attr")
  else:
    return np.eye(size, dtype=np.float32)
  height, width = _check_shape(flag, "the features", shape)
  expected = {
    "row": Expected("M", "iu", np.int64, 0, height - 1),
    "column": Expected("M", "iu", np.int64, 0, width - 1),
  }
  expected["value"] = Expected("M", "fiub", np.float32)
  entries = check_arrays(f"{flag}: the features", {"row": rows, "column": columns, "value": values}, expected)
  dense = np.zeros((height, width), np.float32)
  np.add.at(dense, (entries["row"], entries["column"]), entries["value"])
  return dense


def _check_shape(flag: str, name: str, shape: np.ndarray | tuple[int, ...]) -> tuple[int, int]:
  shape = np.asarray(shape)
  if shape.shape != (2,) or shape.dtype.kind not in "iu" or shape.min() < 1:
    raise DataError(f"{flag}: {name} have the shape {shape.tolist()}, expected rows and columns.")
  return int(shape[0]), int(shape[1])


def _read_sparse(flag: str, found: Arrays, prefix: str):
  """(rows, columns, values, shape) of the entries other than 0 of a matrix in compressed rows."""
  names = [f"{prefix}_{part}" for part in ("data", "indices", "indptr", "shape")]
  if any(name not in found for name in names):
    raise _lack(flag, found, f"{prefix}_data, {prefix}_indices, {prefix}_indptr and {prefix}_shape")
  data, indices, starts, shape = (found[name] for name in names)
  height, width = _check_shape(flag, names[0], shape)
  expected = {
    names[0]: Expected("M", "fiub", np.float64),
    names[1]: Expected("M", "iu", np.int64, 0, width - 1),
    names[2]: Expected("R", "iu", np.int64, 0, len(data)),
  }
  data, indices, starts = check_arrays(flag, dict(zip(names, (data, indices, starts))), expected).values()
  if len(starts) != height + 1 or starts[0] != 0 or starts[-1] != len(data) or np.any(np.diff(starts) < 0):
    raise DataError(
      f"{flag}: {names[2]} is no row of starts, expected {height + 1} that rise from 0 to {len(data)}, for each "
      "row and the end."
    )
  rows = np.repeat(np.arange(height), np.diff(starts))
  kept = data != 0
  return rows[kept], indices[kept], data[kept], (height, width)


def _read_masks(flag: str, found: Arrays, label: np.ndarray) -> dict[str, np.ndarray]:
  masks = {}
  for split, names in zip(_MASKS, (("train",), ("val", "valid"), ("test",))):
    for name in names:
      if f"{name}_mask" in found:
        masks[split] = found[f"{name}_mask"].astype(bool)
      elif f"{name}_index" in found:
        key = f"{name}_index"
        index = check_arrays(flag, {key: found[key]}, {key: Expected("M", "iu", np.int64, 0, len(label) - 1)})[key]
        masks[split] = np.isin(np.arange(len(label)), index)
  if not masks:
    return dict(zip(_MASKS, split_nodes(label, _TRAIN_PER_CLASS, _VALID)))
  if lacking := [name for name in ("train", "test") if name not in masks]:
    raise DataError(f"{flag}: found masks of {', '.join(masks)}, expected {lacking[0]}_mask or {lacking[0]}_index too.")
  return {"valid": np.zeros(len(label), bool)} | masks
