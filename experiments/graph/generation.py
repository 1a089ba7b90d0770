"""Generates graphs (GraphRNN, GraphVAE, MolGAN-like), judged by degrees, clustering, orbits and by what is new.

  python -m experiments.graph.generation                                        # GraphRNN on community-small
  python -m experiments.graph.generation --method=graph_rnn_simple --dataset=grid
  python -m experiments.graph.generation --method=graph_vae --order=breadth_first   # no matching
  python -m experiments.graph.generation --method=mol_gan --dataset=molecules
  python -m experiments.graph.generation --dataset=mutag.npz --most_nodes=28    # the graphs of a file

Figures stand beside those of training graphs (the floor) and of a fit of independent edges (Erdos-Renyi). Writes
graphs.png and statistics.png.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.graph._generators import GENERATORS, Drawn, Generator
from mlnotes.data import Feeds, make_split_feeds
from mlnotes.data.drawn_graphs import DRAWN, SmallGraphs, load_small_graphs
from mlnotes.data.flags import FeedConfig, note
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, example_keys, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig

MIN_SAMPLES = 4
_HPARAMS = ("beta", "penalty_weight", "temperature", "ema_decay")


_TWO_PLAYERS = dict(
  momentum=0.5, beta2=0.9, learning_rate=1e-3, schedule="constant", clip_norm=0.0, steps=2000
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(FeedConfig, OptimConfig, LoopConfig):
  """Defaults: GraphRNN on a hundred graphs of two communities, a few minutes on two CPU cores."""

  method: Literal["graph_rnn", "graph_rnn_simple", "graph_vae", "mol_gan"] = field(
    "graph_rnn", "what generates; graph_rnn_simple: the edges of a node all at once (GraphRNN-S)"
  )
  dataset: str = field(
    "community",
    "community (two blocks, 12 to 20 nodes), grid, ladder, ego, molecules (typed, for mol_gan), all drawn from "
    "--graph_seed, or a file.npz of many graphs: num_nodes, senders, receivers, node_label",
  )
  graphs: int = field(0, "how many graphs to draw, 10 or more; 0: 100, of ego 200, of molecules 2000")
  graph_seed: int = field(0, "seed that the graphs are drawn from")
  most_nodes: int = field(40, "leave out graphs of a file with more nodes than this")

  width: int = field(64, "units of the network of graph_rnn; of the others of their narrowest layers")
  depth: int = field(2, "recurrent layers of graph_rnn over nodes, and of that over edges")
  edge_width: int = field(16, "units of the network over edges of --method=graph_rnn")
  max_previous: int = field(0, "a node of graph_rnn can have edges to so many before it; 0: as the data need")
  latents: int = field(16, "latent variables of graph_vae, numbers of noise of mol_gan")
  beta: float = field(1.0, "weight of the KL divergence of graph_vae, 0 or more")
  anneal_steps: int = field(1000, "updates over which --beta grows from 0; at once, latents stay unused")
  order: Literal["matching", "breadth_first", "degree"] = field(
    "matching", "where graph_vae has the nodes of a graph: where they fit, or in a canonical order"
  )
  matching_iterations: int = field(30, "iterations of max-pooling matching")
  matching_rounds: int = field(2, "rounds that improve what was matched by the likelihood; 0: none, the paper's")
  critic_steps: int = field(5, "updates of mol_gan's critic before each of the generator")
  penalty_weight: float = field(10.0, "weight of the penalty on the critic's gradient, 0 or more")
  temperature: float = field(1.0, "of mol_gan's Gumbel softmax, whose gradient it smooths, > 0")
  batch_features: int = field(0, "features of a whole batch that mol_gan's critic sees; 0: none")
  ema_decay: float = field(0.99, "of the average of mol_gan's generator that is sampled, in [0, 1)")
  samples: int = field(0, "graphs that are judged, 4 or more; 0: as many as training graphs", free="report")
  kernel: Literal["earth_mover", "total_variation"] = field(
    "earth_mover",
    "of the discrepancies of degrees and clustering: GraphRNN's, or a faster one of later work",
    free="report",
  )

  steps: int = 4000
  batch_size: int = field(32, "graphs per update, of mol_gan's critic; over all devices", refines=True)
  learning_rate: float = 3e-3
  clip_norm: float = 1.0
  schedule: ScheduleName = "cosine"
  log_every: int = 50
  eval_every: int = 500
  checkpoint_every: int = 1000

  @classmethod
  def tuned(cls, **given):
    """Two players are trained as those of WGAN-GP: without the first moment's memory, at one rate."""
    return cls(**{**(_TWO_PLAYERS if given.get("method") == "mol_gan" else {}), **given})

  def __post_init__(self):
    super().__post_init__()
    for name in ("width", "depth", "edge_width", "latents", "matching_iterations", "critic_steps"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("max_previous", "beta", "anneal_steps", "matching_rounds", "penalty_weight", "batch_features"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    require(self.graphs == 0 or self.graphs >= 10, "graphs", self.graphs, "0, or 10 or more")
    require(0 <= self.graph_seed < 2**32, "graph_seed", self.graph_seed, "0 to 2^32 - 1")
    require(self.most_nodes >= 2, "most_nodes", self.most_nodes, "2 or more")
    require(self.temperature > 0, "temperature", self.temperature, "a number above 0")
    require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "a number in [0, 1)")
    require(self.samples == 0 or self.samples >= MIN_SAMPLES, "samples", self.samples, f"0, or {MIN_SAMPLES} or more")
    typed = self.dataset == "molecules" and self.method != "mol_gan"
    require(not typed, "method", self.method, "mol_gan with --dataset=molecules: the others have no types of edges")

  @property
  def fills_cores(self) -> bool:
    return False

  @property
  def units_per_update(self) -> int:
    return self.batch_size * (self.critic_steps if self.method == "mol_gan" else 1)

  def idle_flags(self):
    idle = super().idle_flags() | {"precision": "these networks compute in float32"}
    if self.dataset in DRAWN:
      idle["most_nodes"] = f"--dataset={self.dataset} is drawn"
    else:
      idle |= dict.fromkeys(("graphs", "graph_seed"), f"--dataset={self.dataset} is not drawn")
    why = f"--method={self.method} has none"
    rnn, vae = ("depth", "max_previous"), ("beta", "anneal_steps", "order", "matching_iterations", "matching_rounds")
    gan = ("critic_steps", "penalty_weight", "temperature", "batch_features", "ema_decay")
    if not self.method.startswith("graph_rnn"):
      idle |= dict.fromkeys(rnn, why)
    if self.method != "graph_rnn":
      idle["edge_width"] = why
    if self.method.startswith("graph_rnn"):
      idle["latents"] = why
    if self.method != "graph_vae":
      idle |= dict.fromkeys(vae, why)
    elif self.order != "matching":
      idle |= dict.fromkeys(("matching_iterations", "matching_rounds"), f"--order={self.order} matches nothing")
    if self.method != "mol_gan":
      idle |= dict.fromkeys(gan, why)
    if self.report_seeds == 0:
      idle |= dict.fromkeys(("samples", "kernel"), "--report_seeds=0 measures nothing")
    return idle


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState
  hparams: dict[str, Float[Array, ""]]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["generator"])
@dataclasses.dataclass(frozen=True)
class TrainedGenerator:
  """What was trained, as `mlnotes.load_run` gives it."""

  generator: Generator
  params: chex.ArrayTree

  def sample(self, key: Key[Array, ""], count: int) -> Drawn:
    """(adjacency (B, N, N), type of each node (B, N)) of new graphs; 0 where there is no edge or no node."""
    return self.generator.sample(self.params, key, count)


@functools.lru_cache(maxsize=1)
def _load(*arguments) -> SmallGraphs:
  return load_small_graphs(*arguments)


def load_graphs(config: Config) -> SmallGraphs:
  return _load(config.dataset, config.graphs, config.graph_seed, config.most_nodes)


def make_feeds(config: Config) -> Feeds:
  """Training graphs, for all of the critic's updates of a step, and the test graphs in order."""
  data = load_graphs(config)
  for sentence in data.notes:
    note(f"--dataset={config.dataset}: {sentence}")
  if config.method == "mol_gan":
    size = len(data.train)
    require(config.batch_size <= size, "batch_size", config.batch_size, f"1 to {size} examples, the training split")
    most = size // config.batch_size
    said = f"at most {most}: each has --batch_size={config.batch_size} of {len(data.train)} graphs to itself"
    require(config.critic_steps <= most, "critic_steps", config.critic_steps, said)
  return make_split_feeds(data.train, data.test, dataclasses.replace(config, batch_size=config.units_per_update))


def make(config: Config) -> Experiment:
  data = load_graphs(config)
  generator = GENERATORS[config.method](config, data)

  def init(key, batch) -> State:
    hparams = {name: jnp.float32(getattr(config, name)) for name in _HPARAMS}
    return State(jnp.zeros([], jnp.int32), key, *generator.init(key, batch), hparams)

  def step(state: State, batch):
    params, opt_state, metrics = generator.update(state, batch)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  def evaluated(state: State) -> chex.ArrayTree:
    # Of mol_gan the players have an optimizer each; its average is what is sampled.
    return state.params if config.method == "mol_gan" else eval_params(state.opt_state, state.params)

  def evaluate(state: State, batch) -> dict[str, Mean]:
    keys = example_keys(stream_key(state.key, "evaluate"), batch["index"])
    values = generator.evaluate(evaluated(state), batch, keys)
    return {name: masked_mean(value, batch["mask"]) for name, value in values.items()}

  def report(state: State, directory: Path) -> dict[str, float]:
    from experiments.graph._generation_report import write_report

    return write_report(trained(state), stream_key(state.key, "report"), data, config, directory)

  def trained(state: State) -> TrainedGenerator:
    return TrainedGenerator(generator, evaluated(state))

  return Experiment(init, step, evaluate, report, model=trained)


def main(config: Config) -> int:
  judged_by = GENERATORS[config.method](config, load_graphs(config)).judged_by
  return train(make(config), make_feeds(config), config, best_metric=judged_by)


if __name__ == "__main__":
  run(main, Config)
