"""Node classification: a graph network of any layer tells the nodes of one graph apart from a few labelled ones.

  python -m experiments.graph.nodes                                               # GCN, Zachary's club, two labels
  python -m experiments.graph.nodes --layer=gat --dataset=cora.npz --seeds=10     # published defaults of the layer
  python -m experiments.graph.nodes --layer=sage_mean --inductive --dataset=cora.npz
  python -m experiments.graph.nodes --split=random --dataset=cora.npz --seeds=20  # another split for each seed
  python -m experiments.graph.nodes --sampling=neighbors --layer=sage_mean --dataset=sbm --nodes=2000
  python -m experiments.graph.nodes --sampling=clusters --clusters=20 --dataset=cora.npz

Layers: gcn, gat, gat2, sage_mean, sage_max, sage_lstm, gin, monet, gcnii, chebyshev, dgc, nn4g, appnp, spectral; sgc
and dcnn, whose graph is in the features; mlp, which sees no graph. Two test accuracies are figures, of the last epoch
and of the epoch that validation chose; floors that need no training stand beside them. Writes map.png, confusion.png,
graph.png (of small graphs) and attention.png (of gat, gat2). What `mlnotes.load_run` gives maps a `mlnotes.graph.View`
(`make_view`) to the logits of its nodes, with the parameters of the best epoch.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.graph._node_views import (
  SAMPLED,
  TEST,
  VALID,
  Split,
  count_split,
  make_arrays,
  make_node_feeds,
  start_split,
  view_choosing,
  view_learning,
  view_whole,
)
from mlnotes import graph as graphs
from mlnotes.data import Feeds
from mlnotes.data.flags import GraphConfig, load_data, make_feeds as make_data_feeds
from mlnotes.data.graph import Graph
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.graph.node_network import LayerName, Residual
from mlnotes.optim import eval_params
from mlnotes.optim.decay import is_decayed
from mlnotes.optim.flags import OptimConfig, make_optimizer

# Settings of each layer for citation graphs; GCN's are the config's own. GCN's and GAT's are their papers', gcnii has
# one penalty where its authors have two, and those of monet, gin, dcnn, dgc, nn4g and spectral were not searched for.
_ATTENTION = dict(hidden=8, dropout=0.6, l2=5e-4, l2_of="all", learning_rate=5e-3)
_SAGE = dict(hidden=64, l2_of="all", steps=100)
SETTINGS = {
  "gat": _ATTENTION,
  "gat2": _ATTENTION,
  "sage_mean": _SAGE,
  "sage_max": _SAGE,
  "sage_lstm": _SAGE,
  "gin": dict(l2_of="all", steps=100),
  "monet": dict(l2_of="all"),
  "gcnii": dict(hidden=64, layers=8, dropout=0.6, l2=1e-2, l2_of="inner"),
  "appnp": dict(hidden=64, l2=5e-3),
  "sgc": dict(dropout=0.0, l2=5e-6, learning_rate=0.2, layers=1, steps=100),
  "dcnn": dict(learning_rate=0.05, l2=1e-4, l2_of="all"),
}
# Layers that are whole networks: their number of layers is their own.
_FIXED_DEPTH = {"sgc": 1, "dcnn": 2, "appnp": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(GraphConfig, OptimConfig, LoopConfig):
  """Defaults: GCN as Kipf & Welling (2017) trained it, seconds on two CPU cores; other layers as SETTINGS has them."""

  UNIT: ClassVar[str] = "updates"

  layer: LayerName = field("gcn", "which layer; sgc and dcnn have the graph in their features, mlp has none")
  hidden: int = field(16, "features of a hidden layer, of gat and gat2 of each head")
  layers: int = field(2, "layers, the last of which gives the classes; of gcnii those between two linear ones")
  heads: int = field(8, "of gat and gat2: heads of the hidden layers")
  last_heads: int = field(1, "of gat and gat2: heads of the last layer, which are averaged")
  terms: int = field(3, "of chebyshev: K, neighbours K - 1 steps away; of dgc likewise; of monet: Gaussians")
  hops: int = field(2, "of sgc and dcnn: powers of the graph in the features")
  teleport: float = field(0.1, "of appnp: chance to go back to the node itself, in [0, 1]")
  eigenvectors: int = field(500, "of spectral: how many of the smoothest, at most")
  residual: Residual = field("none", "skip: add a layer's input to its output where both are as wide")
  dropout: float = field(0.5, "of each layer's input, features too, and of attention's weights, in [0, 1)")
  l2: float = field(5e-4, "half of this times the squared weights is added to the loss, 0 or more")
  l2_of: Literal["first", "all", "inner"] = field(
    "first", "whose weights: the first layer's alone (GCN), all (GAT), or all, at both ends a twentieth of it (GCNII)"
  )
  normalize_features: bool = field(True, "divide each node's features by their sum")
  split: Literal["public", "random"] = field("public", "the data set's nodes to learn from, or others for each seed")
  per_class: int = field(20, "of --split=random: nodes of each class to learn from")
  valid_per_class: int = field(30, "of --split=random: nodes of each class to validate on; all others are to test")
  inductive: bool = field(False, "learn on a graph without the test nodes, which are met in evaluations alone")
  drop_edge: float = field(0.0, "part of the edges that each update leaves out, both directions together, in [0, 1)")
  sampling: Literal["none", "neighbors", "clusters"] = field(
    "none", "what an update sees: all, some neighbours of some nodes (GraphSAGE), or some parts (ClusterGCN)"
  )
  fanout: tuple[int, ...] = field((25, 10), "of --sampling=neighbors: how many each layer draws, the first one's first")
  replace: bool = field(True, "of --sampling=neighbors: a neighbour may be drawn more than once")
  batch_nodes: int = field(64, "of --sampling=neighbors: training nodes of an update")
  clusters: int = field(10, "of --sampling=clusters: parts of the graph")
  clusters_each: int = field(2, "of --sampling=clusters: parts that an update sees, with the edges between them")
  partition: graphs.Partition = field("auto", "how the parts are found; auto: METIS where pymetis is installed")
  choose_by: Literal["accuracy", "loss"] = field(
    "accuracy", "of the validation nodes, after each update: what names the best epoch; a tie goes to the other"
  )
  map: Literal["pca", "tsne"] = field("pca", "projection of the hidden features in map.png", free="pictures")

  steps: int = 200
  learning_rate: float = 1e-2
  eval_every: int = 0
  checkpoint_every: int = 0
  log_every: int = 10

  @classmethod
  def tuned(cls, **given):
    return cls(**{**SETTINGS.get(given.get("layer", "gcn"), {}), **given})

  def __post_init__(self):
    super().__post_init__()
    for name in ("hidden", "layers", "heads", "last_heads", "terms", "hops", "eigenvectors", "per_class",
                 "valid_per_class", "batch_nodes", "clusters", "clusters_each"):  # fmt: skip
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("dropout", "drop_edge"):
      require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
    require(0 <= self.teleport <= 1, "teleport", self.teleport, "a number in [0, 1]")
    require(self.l2 >= 0, "l2", self.l2, "0 or more")
    require(self.layer in get_args(LayerName), "layer", self.layer, f"one of {', '.join(get_args(LayerName))}")
    reach = graphs.LAYERS[self.layer].reach
    require(self.layer != "nn4g" or self.layers >= 2, "layers", self.layers, "2 or more with --layer=nn4g")
    if self.inductive or self.drop_edge or self.sampling == "clusters":
      flag = "inductive" if self.inductive else "drop_edge" if self.drop_edge else "sampling"
      fits = reach != "prepared" and self.layer != "spectral"
      require(fits, flag, getattr(self, flag), f"nothing of it with --layer={self.layer}, whose graph is computed once")
    if self.sampling == "neighbors":
      fits = self.layer in SAMPLED
      require(fits, "sampling", self.sampling, f"--layer={', '.join(SAMPLED)}: sums over a sample mean something else")
      once = len(self.fanout) == self.layers and min(self.fanout) >= 1
      require(
        once, "fanout", ",".join(map(str, self.fanout)), f"{self.layers} numbers of 1 or more, one for each layer"
      )
    if self.sampling != "none":
      require(self.drop_edge == 0, "drop_edge", self.drop_edge, f"0 with --sampling={self.sampling}")
      fits = not (self.inductive and self.split == "random")
      require(
        fits, "split", self.split, f"public with --inductive and --sampling={self.sampling}, whose graph is one for all"
      )
    if self.sampling == "clusters":
      within = self.clusters_each <= self.clusters
      require(within, "clusters_each", self.clusters_each, f"at most --clusters={self.clusters}")

  def idle_flags(self):
    idle = super().idle_flags() | {"precision": "graph networks are computed in float32"}
    users = {
      "heads": ("gat", "gat2"), "last_heads": ("gat", "gat2"), "terms": ("chebyshev", "dgc", "monet"),
      "hops": ("sgc", "dcnn"), "teleport": ("appnp",), "eigenvectors": ("spectral",),
    }  # fmt: skip
    for name, layers in users.items():
      if self.layer not in layers:
        idle[name] = f"--layer={self.layer} has none"
    if self.layer in _FIXED_DEPTH:
      idle["layers"] = f"--layer={self.layer} has its own"
    if self.layer in ("sgc", "dcnn"):
      idle["hidden"] = f"--layer={self.layer} has no hidden layer of another width"
    if self.layer in ("sgc", "dcnn", "appnp", "nn4g", "gcnii") or self.layers < 3:
      idle["residual"] = "it stands between the first and the last of three layers or more, of one width"
    if self.l2 == 0:
      idle["l2_of"] = "--l2=0 adds nothing"
    owners = {
      "split": ("random", ("per_class", "valid_per_class")),
      "sampling": ("neighbors", ("fanout", "replace", "batch_nodes")),
    }
    for flag, (value, names) in owners.items():
      if getattr(self, flag) != value:
        idle |= dict.fromkeys(names, f"it is of --{flag}={value}")
    if self.sampling != "clusters":
      idle |= dict.fromkeys(("clusters", "clusters_each", "partition"), "it is of --sampling=clusters")
    if self.report_seeds == 0:
      idle["map"] = "--report_seeds=0 draws none"
    return idle


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState
  split: Split
  best_params: chex.ArrayTree
  best: dict[str, Array]  # step, accuracy and loss of the validation nodes
  hparams: dict[str, Float[Array, ""]]


def make_feeds(config: Config) -> Feeds:
  data = load_data(config)
  return make_node_feeds(config, data, make_data_feeds(data, config))


def make_view(config: Config, data: Graph) -> graphs.View:
  """All nodes of `data` as a network of `config` sees them: what the model of `mlnotes.load_run` takes."""
  return view_whole(config, jax.tree.map(jnp.asarray, make_arrays(config, data)))


def make_network(config: Config, num_classes: int) -> graphs.NodeNetwork:
  names = ("hidden", "layers", "heads", "last_heads", "terms", "teleport", "residual")
  return graphs.NodeNetwork(config.layer, num_classes, **{name: getattr(config, name) for name in names})


def count_penalty(params: chex.ArrayTree, which: str) -> Float[Array, ""]:
  """Half the sum of the squared weights, biases not: of the first layer, of all, or less at both ends."""
  total = jnp.zeros([])
  decayed = jax.tree.leaves(is_decayed(params))
  for (path, leaf), counts in zip(jax.tree_util.tree_leaves_with_path(params), decayed):
    of_first, at_end = path[0].key in ("layer_0", "input", "input_0"), path[0].key in ("input", "output")
    weight = {"first": float(of_first), "all": 1.0, "inner": 0.05 if at_end else 1.0}[which]
    if counts and weight:
      total = total + 0.5 * weight * jnp.sum(leaf**2)
  return total


def keep_better(state: State, params: chex.ArrayTree, step: Array, accuracy: Array, loss: Array, by: str) -> State:
  """`state` with `params` as the best if they are: by accuracy, then loss, or the other way round."""
  best = state.best
  if by == "accuracy":
    better = (accuracy > best["accuracy"]) | ((accuracy == best["accuracy"]) & (loss < best["loss"]))
  else:
    better = (loss < best["loss"]) | ((loss == best["loss"]) & (accuracy > best["accuracy"]))
  pick = lambda new, old: jnp.where(better, new, old)
  new = {"step": step, "accuracy": accuracy, "loss": loss}
  return state._replace(
    best_params=jax.tree.map(pick, params, state.best_params), best=jax.tree.map(pick, new, dict(best))
  )


def make(config: Config) -> Experiment:
  return make_of(config, load_data(config))


def make_of(config: Config, data: Graph) -> Experiment:
  """`make` for a graph that is at hand."""
  network, optimizer = make_network(config, data.num_classes), make_optimizer(config, config.steps)
  learned, chosen = count_split(data, config)
  entropy = optax.softmax_cross_entropy_with_integer_labels

  def init(key, batch) -> State:
    view = view_whole(config, batch)
    params = network.init(stream_key(key, "init"), view).get("params", {})
    split = start_split(stream_key(key, "split"), batch, config)
    best = {"step": jnp.int32(0), "accuracy": jnp.float32(-1), "loss": jnp.float32(jnp.finfo(jnp.float32).max)}
    hparams = {name: jnp.float32(getattr(config, name)) for name in ("dropout", "l2", "drop_edge")}
    copy = jax.tree.map(jnp.copy, params)  # both are updated in place, each its own
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params), split, copy, best, hparams)

  def step(state: State, batch):
    stream = lambda name: stream_key(state.key, name, state.step)
    seen = view_learning(config, batch, state.split, learned, stream("view"), state.hparams["drop_edge"])
    rngs = {"dropout": stream("dropout"), "order": stream("order")}

    def loss_fn(params):
      rate = state.hparams["dropout"] if config.dropout else None
      each = entropy(network.apply({"params": params}, seen.view, rate, rngs=rngs), seen.label)
      loss = jnp.sum(each * seen.weight) / jnp.maximum(jnp.sum(seen.weight), 1)
      return loss + (state.hparams["l2"] * count_penalty(params, config.l2_of) if config.l2 else 0.0), loss

    (_, loss), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics, weights = {"loss": loss}, eval_params(opt_state, params)
    if chosen:
      judged = view_choosing(config, batch, state.split, learned, chosen)
      logits = network.apply({"params": weights}, judged.view)
      accuracy, valid_loss = jnp.mean(is_right(logits, judged.label)), jnp.mean(entropy(logits, judged.label))
      state = keep_better(state, weights, state.step + 1, accuracy, valid_loss, config.choose_by)
      metrics |= {"valid_accuracy": accuracy, "valid_loss": valid_loss}
    else:
      state = state._replace(best_params=weights, best={**state.best, "step": state.step + 1})
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  def evaluate(state: State, batch) -> dict[str, Mean]:
    view, label = view_whole(config, batch), batch["label"]
    weights = eval_params(state.opt_state, state.params), state.best_params
    last, best = (network.apply({"params": params}, view) for params in weights)
    judged = VALID if chosen and config.eval_split == "valid" else TEST
    mask, tested = ((state.split.code == code).astype(jnp.float32) for code in (judged, TEST))
    return {
      "loss": masked_mean(entropy(last, label), mask),
      "accuracy": masked_mean(is_right(last, label), mask),
      "test_accuracy_last": masked_mean(is_right(last, label), tested),
      "test_accuracy_best_valid": masked_mean(is_right(best, label), tested),
      "best_epoch": Mean(state.best["step"].astype(jnp.float32), jnp.float32(1)),
    }

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.graph._nodes_report import write_report

    return write_report(network, state, data, config, directory)

  as_model = lambda state: partial(network.apply, {"params": state.best_params})
  return Experiment(init, seeds_in_turn(step), evaluate, report, model=as_model)


def seeds_in_turn(step: Callable[..., Any]) -> Callable[..., Any]:
  """`step` whose vmap computes one seed after the other on a CPU.

  There gathers and scatters of many seeds at once do not fuse with what is between them: of five seeds an update of GAT
  takes 74 ms vmapped and 21 in turn, of GCN as long as in turn.
  """

  def chosen(state, batch):
    if jax.default_backend() != "cpu":
      return step(state, batch)
    impl = jax.random.key_impl(state.key)
    typed = lambda state: state._replace(key=jax.random.wrap_key_data(state.key, impl=impl))
    plain = lambda state: state._replace(key=jax.random.key_data(state.key))

    @jax.custom_batching.sequential_vmap
    def one(state, batch):  # takes bits, for what checks that keys are used once does not see into it
      state, metrics = step(typed(state), batch)
      return plain(state), metrics

    after, metrics = one(plain(state), batch)
    return after._replace(key=state.key), metrics

  return chosen


def is_right(logits: Float[Array, "R K"], label: Int[Array, " R"]) -> Float[Array, " R"]:
  return (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
