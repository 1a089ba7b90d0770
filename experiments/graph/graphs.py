"""The class of a whole graph, by folds, with what is chosen chosen on other graphs than those that are judged.

  python -m experiments.graph.graphs --seeds=10 --report_seeds=10                       # three models of random graphs
  python -m experiments.graph.graphs --dataset=mutag.npz --seeds=10 --report_seeds=10   # ten folds in one program
  python -m experiments.graph.graphs --aggregate=none                                   # a set of nodes, no edges

A seed is a fold: seed s is judged on fold s modulo --folds, which is stratified by class, chooses on the fold after it
and learns from the rest, so that --seeds=10 is a whole cross-validation. Each seed trains a network for each pair of
--rates and --dropouts side by side; the pair and the pass with the best accuracy on the fold after are kept (Errica et
al. 2020), and the accuracy that choosing on the test fold would have claimed stands beside. A step is a pass.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes import graph
from mlnotes.data import DataError, GraphSet, make_whole_eval, make_whole_feed
from mlnotes.data.feeds import Feeds
from mlnotes.data.flags import GraphSetConfig, load_data
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, make_optimizer

_FOLD_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(GraphSetConfig, OptimConfig, LoopConfig):
  """Defaults: GIN-0 with 32 features and 4 rounds; a fold of the drawn graphs takes seconds on two CPU cores."""

  steps: int = field(100, "passes over the graphs of the training folds", refines=True)
  batch_size: int = field(32, "graphs per update", refines=True)
  learning_rate: float = 1e-2
  schedule: ScheduleName = "cosine"
  log_every: int = 5
  eval_every: int = 20
  checkpoint_every: int = 50

  folds: int = field(
    10, "parts of the graphs, 3 or more: seed s is judged on part s modulo this, and chooses on the next"
  )
  aggregate: graph.Aggregate = field("sum", "what a node takes of its neighbours: sum is GIN; none: no edges are used")
  pooling: graph.Pooling = field("sum", "what a graph takes of its nodes")
  width: int = field(32, "features of a node after each round")
  depth: int = field(4, "rounds of messages; what nodes had before the first is pooled too")
  learn_epsilon: bool = field(False, "learn how much more a node counts than a neighbour; otherwise it counts as much")
  rates: tuple[float, ...] = field((1.0, 0.1), "times --learning_rate: one network for each, > 0")
  dropouts: tuple[float, ...] = field((0.0, 0.5), "of the logits of each round: one network for each, in [0, 1)")

  def __post_init__(self):
    super().__post_init__()
    require(self.folds >= 3, "folds", self.folds, "3 or more: to learn from, to choose on, to judge")
    for name in ("width", "depth"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("rates", "dropouts"):
      require(len(getattr(self, name)) > 0, name, "", "one or more")
    require(min(self.rates) > 0, "rates", self.rates, "above 0 each")
    require(all(0 <= rate < 1 for rate in self.dropouts), "dropouts", self.dropouts, "in [0, 1) each")
    # What looks at all gradients together would mix the networks that are trained side by side.
    require(self.clip_norm == 0, "clip_norm", self.clip_norm, "0: networks are trained side by side")
    alone = self.optimizer not in ("lars", "lamb", "swats")
    require(alone, "optimizer", self.optimizer, "one that takes each parameter by itself: networks are side by side")

    fits = self.lookahead == 0 or set(self.rates) == {1.0}
    require(fits, "lookahead", self.lookahead, "0, or --rates=1: slow weights follow updates before these scale them")

  @property
  def candidates(self) -> tuple[tuple[float, float], ...]:
    """(rate, dropout) of each network."""
    return tuple(itertools.product(self.rates, self.dropouts))

  @property
  def candidate_names(self) -> tuple[str, ...]:
    return tuple(f"rate{rate:g}_dropout{dropout:g}" for rate, dropout in self.candidates)

  def idle_flags(self):
    idle = super().idle_flags()
    if self.aggregate == "none":
      idle["learn_epsilon"] = "--aggregate=none has no neighbours"
    return idle


class Kept(NamedTuple):
  """Of each network where it was best on the fold to choose on."""

  params: chex.ArrayTree
  stats: chex.ArrayTree
  step: Int[Array, " C"]
  valid_accuracy: Float[Array, " C"]
  valid_loss: Float[Array, " C"]
  test_accuracy: Float[Array, " C"]


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  fold: Int[Array, ""]
  params: chex.ArrayTree
  stats: chex.ArrayTree
  opt_state: optax.OptState
  kept: Kept
  last_accuracy: Float[Array, " C"]  # on the fold that is judged, after the last pass
  peak_accuracy: Float[Array, " C"]  # the greatest there after any pass
  hparams: dict[str, Float[Array, ""]]


class Judged(NamedTuple):
  """Of the graphs of one fold, for each network."""

  accuracy: Float[Array, " C"]
  loss: Float[Array, " C"]


class TrainedGraphNetwork(NamedTuple):
  """`model(batch)` gives the logits of a `mlnotes.graph.GraphBatch`, of the network that was kept."""

  network: graph.GraphNetwork
  variables: Any

  def __call__(self, batch: graph.GraphBatch) -> Float[Array, "B K"]:
    return self.network.apply(self.variables, batch)


def assign_folds(label: Int[np.ndarray, " G"], folds: int) -> Int[np.ndarray, " G"]:
  """The fold of each graph, shuffled and stratified, the same for every seed."""
  from sklearn.model_selection import StratifiedKFold

  fold = np.empty(len(label), np.int32)
  parts = StratifiedKFold(folds, shuffle=True, random_state=_FOLD_SEED).split(label, label)
  for number, (_, own) in enumerate(parts):
    fold[own] = number
  return fold


def load_graphs(config: Config) -> GraphSet:
  """Raises InputError where a class has fewer graphs than there are folds, DataError where no folds would fit."""
  data = load_data(config)
  flag, counts = f"--dataset={config.dataset}", np.bincount(data.label, minlength=data.num_classes)
  if data.num_classes < 2:
    raise DataError(f"{flag}: all graphs are of one class, {data.class_names[0]}, expected 2 or more classes.")
  if config.aggregate != "none" and not len(data.senders):
    raise DataError(f"{flag}: no graph has an edge, expected some, or --aggregate=none, which uses none.")
  least = int(counts.min())
  if least < 3:
    name = data.class_names[counts.argmin()]
    raise DataError(
      f"{flag}: class {name} has {least} graphs, expected 3 or more: to learn from, to choose on, to judge."
    )
  require(config.folds <= least, "folds", config.folds, f"at most {least}, the graphs of the smallest class")
  learns = int((1 - 2 / config.folds) * data.num_graphs)
  require(config.batch_size <= learns, "batch_size", config.batch_size, f"at most {learns}, the graphs to learn from")
  return data


def make_feeds(config: Config) -> Feeds:
  """All graphs and their folds, for every update and evaluation."""
  data = load_graphs(config)
  arrays = {**data.arrays, "fold": assign_folds(data.label, config.folds)}
  return Feeds(
    make_whole_feed(arrays), make_whole_eval({**arrays, "mask": np.ones(1, np.float32)}), split="validation fold"
  )


def make(config: Config) -> Experiment:
  data = load_graphs(config)
  fold = assign_folds(data.label, config.folds)
  fold_sizes = np.bincount(fold, minlength=config.folds)
  most_train = data.num_graphs - int(np.sort(fold_sizes)[:2].sum())
  # Of what chooses and is judged nothing may be left out; it comes in the order of the file.
  judged = [own[i : i + config.batch_size] for own in (np.flatnonzero(fold == n) for n in range(config.folds))
            for i in range(0, len(own), config.batch_size)]  # fmt: skip
  budget = graph.choose_budget(data.num_nodes, data.num_edges, config.batch_size, judged)
  num_batches = -(-most_train // config.batch_size)
  network = graph.GraphNetwork(
    data.num_classes, config.width, config.depth, config.aggregate, config.pooling, config.learn_epsilon,
    jnp.dtype(config.precision),
  )  # fmt: skip
  optimizer = make_optimizer(config, config.steps * num_batches)
  rates, dropouts = (jnp.array(values, jnp.float32) for values in zip(*config.candidates))
  count = len(config.candidates)

  def choose(key, members: Array, size: int) -> Int[Array, "P B"]:
    """The graphs that are `members`, in an order drawn by `key`, cut into batches; -1 fills the last ones up."""
    size = -(-size // config.batch_size) * config.batch_size
    # Members come first, in the order of their numbers; where `key` is None in that of the file.
    number = jnp.zeros(members.shape) if key is None else jax.random.uniform(key, members.shape)
    order = jnp.argsort(jnp.where(members, number, 2.0), stable=True)
    order = jnp.where(jnp.arange(len(order)) < jnp.sum(members), order, -1)
    padded = jnp.concatenate([order, jnp.full(max(size - len(order), 0), -1, order.dtype)])[:size]
    return padded.reshape(-1, config.batch_size)

  def losses_of(logits, label, weight):
    each = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return jnp.sum(each * weight) / jnp.maximum(jnp.sum(weight), 1)

  def learn(batch, state: State, carry, inputs):
    """An update of every network by the same graphs."""
    params, stats, opt_state = carry
    number, index = inputs
    taken = graph.take_graphs(batch, index, budget)
    label = batch["label"][jnp.maximum(index, 0)]
    key = jax.random.fold_in(stream_key(state.key, "dropout", state.step), number)

    def loss(params, stats, dropout, key):
      variables = {"params": params, "batch_stats": stats}
      logits, new = network.apply(
        variables, taken, train=True, dropout=dropout, rngs={"dropout": key}, mutable="batch_stats"
      )
      return losses_of(logits, label, taken.kept), new["batch_stats"]

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    gradient = jax.vmap(jax.value_and_grad(loss, has_aux=True))
    (value, new_stats), grads = gradient(params, stats, dropouts, keys)
    # A batch of padding alone is none.
    real = jnp.sum(taken.kept) > 0
    updates, new_state = optimizer.update(grads, opt_state, params)
    scale = lambda update: update * rates.reshape(-1, *(1,) * (update.ndim - 1)).astype(update.dtype)
    new_params = optax.apply_updates(params, jax.tree.map(scale, updates))
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(real, a, b), new, old)
    carry = keep(new_params, params), keep(new_stats, stats), keep(new_state, opt_state)
    left_out = jnp.sum(index >= 0) - jnp.sum(taken.kept)
    return carry, (jnp.mean(value) * real, real, left_out)

  def judge(batch, params, stats, members: Array) -> Judged:
    """Of the graphs that are `members`, by kept statistics; one network after the other, to spare memory."""
    batches = choose(None, members, int(fold_sizes.max()))

    def add(totals, index):
      taken = graph.take_graphs(batch, index, budget)
      label = batch["label"][jnp.maximum(index, 0)]
      logits = jax.vmap(lambda p, s: network.apply({"params": p, "batch_stats": s}, taken))(params, stats)
      nats = jax.vmap(lambda one: optax.softmax_cross_entropy_with_integer_labels(one, label))(logits)
      right = jnp.argmax(logits, -1) == label[None]
      parts = (right @ taken.kept, nats @ taken.kept, jnp.sum(taken.kept))
      return jax.tree.map(jnp.add, totals, parts), None

    start = jnp.zeros(count), jnp.zeros(count), jnp.zeros([])
    (right, nats, total), _ = jax.lax.scan(add, start, batches)
    return Judged(right / jnp.maximum(total, 1), nats / jnp.maximum(total, 1))

  def init(key, batch) -> State:
    # The last word of a key is the seed that it was made of.
    fold = (jax.random.key_data(key)[-1] % jnp.uint32(config.folds)).astype(jnp.int32)
    example = graph.take_graphs(batch, jnp.zeros(config.batch_size, jnp.int32) - 1, budget)
    keys = jax.vmap(lambda i: stream_key(key, "init", i))(jnp.arange(count))
    variables = jax.vmap(lambda key: network.init(key, example))(keys)
    params, stats = variables["params"], variables["batch_stats"]
    copy = lambda tree: jax.tree.map(jnp.copy, tree)
    none = lambda: jnp.zeros(count)
    kept = Kept(
      copy(params), copy(stats), jnp.zeros(count, jnp.int32), none(), none() + jnp.finfo(jnp.float32).max, none()
    )
    return State(jnp.zeros([], jnp.int32), key, fold, params, stats, optimizer.init(params), kept, none(), none(), {})

  def step(state: State, batch):
    valid = (state.fold + 1) % config.folds
    to_learn = (batch["fold"] != state.fold) & (batch["fold"] != valid)
    batches = choose(stream_key(state.key, "order", state.step), to_learn, most_train)
    carry = state.params, state.stats, state.opt_state
    numbered = jnp.arange(len(batches)), batches
    carry, (value, real, left_out) = jax.lax.scan(lambda c, x: learn(batch, state, c, x), carry, numbered)
    params, stats, opt_state = carry
    weights = eval_params(opt_state, params)
    found, judged = (judge(batch, weights, stats, batch["fold"] == fold) for fold in (valid, state.fold))
    kept = state.kept
    better = (found.accuracy > kept.valid_accuracy) | (
      (found.accuracy == kept.valid_accuracy) & (found.loss < kept.valid_loss)
    )
    now = Kept(weights, stats, jnp.full(count, state.step + 1), found.accuracy, found.loss, judged.accuracy)
    pick = lambda new, old: jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
    state = state._replace(
      step=state.step + 1, params=params, stats=stats, opt_state=opt_state, kept=jax.tree.map(pick, now, kept),
      last_accuracy=judged.accuracy, peak_accuracy=jnp.maximum(state.peak_accuracy, judged.accuracy),
    )  # fmt: skip
    metrics = {
      "loss": jnp.sum(value) / jnp.sum(real),
      "valid_loss": found.loss.mean(),
      **{f"valid_accuracy_{name}": found.accuracy[i] for i, name in enumerate(config.candidate_names)},
      "left_out": jnp.sum(left_out) / len(batches),
    }
    return state, metrics

  def evaluate(state: State, batch) -> dict[str, Mean]:
    """What is known so far, of the network that would be chosen now."""
    chosen = choose_candidate(state.kept)
    one = jnp.ones([])
    return {
      "valid_accuracy": Mean(state.kept.valid_accuracy[chosen], one),
      "valid_loss": Mean(state.kept.valid_loss[chosen], one),
    }

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.graph._graphs_report import write_report

    chosen = int(choose_candidate(state.kept))
    return write_report(state, chosen, data, assign_folds(data.label, config.folds), config, directory)

  def trained(state: State) -> TrainedGraphNetwork:
    chosen = choose_candidate(state.kept)
    params, stats = (jax.tree.map(lambda x: x[chosen], tree) for tree in (state.kept.params, state.kept.stats))
    return TrainedGraphNetwork(network, {"params": params, "batch_stats": stats})

  return Experiment(init, step, evaluate, report, model=trained)


def choose_candidate(kept: Kept) -> Int[Array, ""]:
  """The network that is best on the fold to choose on: by accuracy, of equals by the loss."""
  best = kept.valid_accuracy == jnp.max(kept.valid_accuracy)
  return jnp.argmin(jnp.where(best, kept.valid_loss, jnp.inf))


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="valid_accuracy", best_mode="max")


if __name__ == "__main__":
  run(main, Config)
