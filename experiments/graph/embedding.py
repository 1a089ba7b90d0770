"""Vectors of nodes from random walks: DeepWalk and node2vec. Data: one graph (karate, sbm, a file.npz).

  python -m experiments.graph.embedding                                  # Zachary's club, from two labelled members
  python -m experiments.graph.embedding --dataset=sbm --task=links --seeds=5
  python -m experiments.graph.embedding --dataset=cora.npz --walks_per_node=80 --objective=hierarchical
  python -m experiments.graph.embedding --dataset=cora.npz --task=links --method=node2vec --p=0.25 --q=0.25 \\
    --length=80 --walks_per_node=10

Perozzi et al. 2014; Grover & Leskovec 2016: see `mlnotes.graph.walks` and `mlnotes.graph.skip_gram`. An update walks
from `--batch_size` nodes, each node once in a pass over them, and learns from all pairs within the window. What is
learned knows the edges alone. Then a classifier is fitted to the frozen vectors: of nodes from the graph's public split
(--task=classification), or of pairs, where the edges to predict were taken out of the graph first (--task=links).

Differences from the papers: the pairs of an update are learned from at once, by Adam, and negatives are drawn once for
a walk and weighed; frequencies are counted as the walks are made, beginning with degrees.
"""

import dataclasses
import functools
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes import graph
from mlnotes.data import DataError, Feeds, Graph, make_whole_eval, make_whole_feed
from mlnotes.data.flags import GraphConfig, load_data, make_feeds as make_data_feeds
from mlnotes.data.order import order_bits, permute_index
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(GraphConfig, OptimConfig, LoopConfig):
  """Defaults: the club in half a minute on two CPU cores."""

  UNIT: ClassVar[str] = "walks"

  steps: int = 600
  learning_rate: float = 0.01
  schedule: ScheduleName = "linear"
  eval_every: int = 100

  task: Literal["classification", "links"] = field("classification", "what the frozen vectors are judged by")
  method: Literal["deepwalk", "node2vec"] = field("deepwalk", "walks: uniform, or biased by --p and --q")
  p: float = field(1.0, "of node2vec: above 1 a walk seldom goes back to where it has just been, below it often; > 0")
  q: float = field(0.5, "of node2vec: below 1 a walk leads away from where it was, above 1 it stays near; > 0")
  objective: Literal["negatives", "hierarchical"] = field(
    "negatives", "negative sampling (node2vec's), or hierarchical softmax over a Huffman tree (DeepWalk's)"
  )
  batch_size: int = field(32, "walks of an update, each from another node as long as there are some")
  walks_per_node: int = field(0, "walks from each node: sets --steps to what they take; 0: as --steps says")
  length: int = field(40, "nodes of a walk, 2 or more")
  window: int = field(5, "a node predicts those at most so many steps before and after it")
  dimensions: int = field(64, "numbers of a vector")
  negatives: int = field(5, "negatives that each pair counts")
  shared_negatives: int = field(40, "negatives drawn for a walk, which all of its pairs share")
  held_out: float = field(0.1, "of links: share of the edges that are tested on, in (0, 1)")
  held_out_valid: float = field(
    0.05, "of links: share of the edges to choose an operator on, in [0, 1); below 20 edges: none"
  )
  split_seed: int = field(0, "of links: seed that held-out edges and pairs without an edge are drawn from")
  inverse_l2: float = field(1.0, "C of the logistic regressions on frozen vectors, > 0", free="report")

  def __post_init__(self):
    super().__post_init__()
    for name in ("p", "q", "inverse_l2"):
      require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
    for name in ("batch_size", "window", "dimensions", "negatives", "shared_negatives"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("walks_per_node", "split_seed"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    require(self.length >= 2, "length", self.length, "2 or more nodes")
    require(0 < self.held_out < 1, "held_out", self.held_out, "a number in (0, 1)")
    require(0 <= self.held_out_valid < 1, "held_out_valid", self.held_out_valid, "a number in [0, 1)")
    if self.task == "links":
      require(self.undirected, "undirected", self.undirected, "true with --task=links")

  @property
  def fills_cores(self) -> bool:
    return self.batch_size * self.length * self.dimensions >= 2**20

  def idle_flags(self):
    idle = super().idle_flags()
    if self.method != "node2vec":
      idle |= dict.fromkeys(("p", "q"), f"--method={self.method} walks without")
    if self.objective != "negatives":
      idle |= dict.fromkeys(("negatives", "shared_negatives"), f"--objective={self.objective} has none")
    if self.task != "links":
      names = ("held_out", "held_out_valid", "split_seed")
      idle |= dict.fromkeys(names, f"--task={self.task} holds out no edges")
    elif self.held_out_valid == 0:
      idle["eval_split"] = "--held_out_valid=0 leaves the edges that are tested on"
    if self.walks_per_node:
      idle["steps"] = "--walks_per_node says how many"
    if self.report_seeds == 0:
      idle["inverse_l2"] = "--report_seeds=0 fits none"
    return idle


class State(NamedTuple):
  """`params` hold vectors as centres, and as contexts of nodes or of a tree's inner vertices; `counts` nodes so far."""

  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState
  counts: Float[Array, " N"]
  hparams: dict[str, Float[Array, ""]]


class World(NamedTuple):
  """`rows` is the graph that is walked on: without the edges of `links` that are held out."""

  data: Graph
  rows: graph.NeighborRows
  links: graph.LinkSplit | None


def make_world(config: Config) -> World:
  """Raises DataError or InputError, in a sentence, for a graph that cannot serve the task."""
  data = load_data(config)
  flag = f"--dataset={config.dataset}"
  if len(data.senders) == 0:
    raise DataError(f"{flag}: the graph has no edges, expected some to walk along.")
  if config.task == "classification":
    found = len(np.unique(data.label[data.train]))
    if found < 2:
      raise DataError(
        f"{flag}: the nodes to learn from are of {found} class, expected 2 or more, or --task=links, which needs none."
      )
    return World(data, graph.make_neighbor_rows(data.senders, data.receivers, data.num_nodes), None)
  shares = config.held_out, config.held_out_valid
  try:
    links = graph.split_links(data.senders, data.receivers, data.num_nodes, *shares, config.split_seed)
  except InputError as error:
    flags = f"--held_out={config.held_out} --held_out_valid={config.held_out_valid}"
    raise InputError(f"{flag} {flags}: {error}") from None
  both = np.concatenate([links.edges, links.edges[:, ::-1]])
  return World(data, graph.make_neighbor_rows(*both.T, data.num_nodes), links)


def make_feeds(config: Config) -> Feeds:
  """The graph to walk on for every update; for an evaluation the nodes' classes, or the pairs that are held out."""
  world = make_world(config)
  data, links = world.data, world.links
  of_graph = make_data_feeds(data, config)
  arrays = {"rows": world.rows}
  if config.objective == "hierarchical":
    arrays["tree"] = graph.make_huffman_tree(np.asarray(world.rows.degree))
  if not links:
    named = {name: of_graph.evaluate.arrays[name] for name in ("label", "train", "mask")}
    return of_graph._replace(train=make_whole_feed(arrays), evaluate=make_whole_eval(named))
  split = "valid" if config.eval_split == "valid" and len(links.valid) else "test"
  pairs = {"edges": getattr(links, split), "non_edges": getattr(links, f"{split}_non_edges")}
  pairs["mask"] = np.ones(len(pairs["edges"]), np.float32)
  return of_graph._replace(train=make_whole_feed(arrays), evaluate=make_whole_eval(pairs), split=split)


def count_steps(config: Config) -> int:
  """Updates of `--walks_per_node`, the last one filled up with further walks; `--steps` without."""
  walks = config.walks_per_node * load_data(config).num_nodes
  return -(-walks // config.batch_size) or config.steps


def choose_starts(key: Key[Array, ""], step: Int[Array, ""], count: int, num_nodes: int) -> Int[Array, " B"]:
  """The nodes that update number `step` walks from: in each pass every node once, in another order."""
  turn, within = step // num_nodes, step % num_nodes  # so that no product is above count * num_nodes
  place = (within * count) % num_nodes + jnp.arange(count)
  epoch = turn * count + (within * count) // num_nodes + place // num_nodes
  permute = lambda place, epoch: permute_index(place[None], num_nodes, order_bits(key, epoch))[0]
  return jax.vmap(permute)(place % num_nodes, epoch)


def make_mean_loss(config: Config):
  """(params, walks, negatives drawn for each walk, batch) -> mean over the pairs of all walks, in nats."""
  dtype = jnp.dtype(config.precision)

  def losses(params, nodes, mask, negatives, batch):
    pairs = graph.pair_window(mask, config.window)
    centre, context = params["centre"].astype(dtype), params["context"].astype(dtype)
    if config.objective == "hierarchical":
      each = graph.hierarchical_losses(centre[nodes], context, batch["tree"], nodes, pairs)
    else:
      each = graph.shared_negatives_losses(
        centre[nodes], context[nodes], context[negatives], nodes, negatives, pairs, config.negatives
      )
    return jnp.sum(each), jnp.sum(pairs)

  def mean_loss(params, walks: graph.Walks, negatives, batch):
    total, count = jax.vmap(losses, (None, 0, 0, 0, None))(params, *walks, negatives, batch)
    return jnp.sum(total) / jnp.maximum(jnp.sum(count), 1)

  return mean_loss


def look_up(vectors: Float[Array, "N D"], nodes: Int[Array, "..."]) -> Float[Array, "... D"]:
  return vectors[nodes]


def nearest_mean(vectors: Float[Array, "N D"], label, train, num_classes: int) -> Int[Array, " N"]:
  """The class whose training nodes have, on average, the direction nearest to a node's."""
  unit = to_unit(vectors)
  member = (label[:, None] == jnp.arange(num_classes)[None]) & train[:, None]
  means = to_unit(member.astype(jnp.float32).T @ unit)
  score = jnp.where(jnp.any(member, axis=0)[None], unit @ means.T, -jnp.inf)
  return jnp.argmax(score, axis=1)


def to_unit(vectors: Float[Array, "... D"]) -> Float[Array, "... D"]:
  return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def cosine(vectors: Float[Array, "N D"], pairs: Int[Array, "P 2"]) -> Float[Array, " P"]:
  unit = to_unit(vectors)
  return jnp.sum(unit[pairs[:, 0]] * unit[pairs[:, 1]], axis=1)


def make(config: Config) -> Experiment:
  world = make_world(config)
  size, optimizer, mean_loss = world.data.num_nodes, make_optimizer(config, config.steps), make_mean_loss(config)
  expected = count_steps(config)
  require(config.steps == expected, "steps", config.steps, f"{expected}, as --walks_per_node has it")
  require(size * config.batch_size < 2**31, "batch_size", config.batch_size, f"at most {(2**31 - 1) // size}")
  biased = config.method == "node2vec"

  def init(key, batch) -> State:
    drawn = jax.random.uniform(stream_key(key, "init"), (size, config.dimensions), minval=-0.5, maxval=0.5)
    contexts = size - 1 if config.objective == "hierarchical" else size
    params = {"centre": drawn / config.dimensions, "context": jnp.zeros((contexts, config.dimensions))}
    counts = batch["rows"].degree.astype(jnp.float32)
    hparams = {name: jnp.float32(getattr(config, name)) for name in ("p", "q") if biased}
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params), counts, hparams)

  def step(state: State, batch):
    of = lambda name: stream_key(state.key, name, state.step)
    starts = choose_starts(state.key, state.step, config.batch_size, size)
    walks = graph.sample_walks(of("walks"), batch["rows"], starts, config.length, **state.hparams)
    counts = state.counts.at[walks.nodes.reshape(-1)].add(walks.mask.reshape(-1).astype(jnp.float32))
    shape = (config.batch_size, config.shared_negatives if config.objective == "negatives" else 1)
    negatives = graph.sample_negatives(of("negatives"), counts, shape)
    loss, grads = jax.value_and_grad(mean_loss)(state.params, walks, negatives, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state._replace(step=state.step + 1, params=params, opt_state=opt_state, counts=counts)
    return state, {"loss": loss}

  def learned(state: State) -> Float[Array, "N D"]:
    return eval_params(state.opt_state, state.params)["centre"]

  def evaluate(state: State, batch) -> dict[str, Mean]:
    vectors = learned(state)
    if world.links:
      count = jnp.sum(batch["mask"])
      auc = graph.compute_auc(cosine(vectors, batch["edges"]), cosine(vectors, batch["non_edges"]))
      return {"auc_cosine": Mean(auc * count, count)}
    found = nearest_mean(vectors, batch["label"], batch["train"], world.data.num_classes)
    hits = (found == batch["label"]).astype(jnp.float32)
    return {"accuracy_nearest_mean": masked_mean(hits, batch["mask"])}

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.graph._embedding_report import report_classes, report_links

    write = report_links if world.links else report_classes
    return write(np.asarray(learned(state)), world, config, directory)

  return Experiment(init, step, evaluate, report, model=lambda state: functools.partial(look_up, learned(state)))


def main(config: Config) -> int:
  config = dataclasses.replace(config, steps=count_steps(config))
  metric = "auc_cosine" if config.task == "links" else "accuracy_nearest_mean"
  return train(make(config), make_feeds(config), config, best_metric=metric, best_mode="max")


if __name__ == "__main__":
  run(main, Config)
