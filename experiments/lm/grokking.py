"""Grokking: a Transformer of one layer that first memorises a table, and long afterwards understands it.

  python -m experiments.lm.grokking                                        # a + b modulo 59, of half of the pairs
  python -m experiments.lm.grokking --weight_decay=0                       # memorises, and that is all
  python -m experiments.lm.grokking --operation=divide
  python -m experiments.lm.grokking --prime=113 --share=0.3 --width=128 --steps=14000   # Nanda et al. 2023

A share of all pairs is learned, all of it in every update; the others are tested on. Writes grokking.png: loss and
accuracy of both over the updates; and frequencies.png: how much of the embedding is of each frequency. Few remain:
a network that has understood a + b turns a and b into angles and adds these.
Grokking is of Power et al. 2022, what the network does of Nanda et al. 2023.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from experiments.lm._task import Applied
from mlnotes.attention.multi_head import MultiHeadAttention
from mlnotes.attention.transformer import FeedForward
from mlnotes.data import Feeds
from mlnotes.data.feed import EvalBatches, ResidentFeed
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.record import Curve, read_curves
from mlnotes.lm.loss import token_cross_entropy
from mlnotes.lm.tasks import (
  Operation,
  Table,
  frequency_energy,
  group_order,
  key_frequencies,
  modular_table,
  split_pairs,
  wave_logits,
)
from mlnotes.nn.dense import Dense
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer

_KNOWN = 0.99  # the accuracy at which a table counts as known
_ENERGY = 0.9  # of the embedding, that key frequencies hold
_DEVICES = 8  # pairs are a multiple of it, so that so many devices can share them
_SIGNS = {"add": "+", "subtract": "-", "multiply": "x", "divide": "/"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimConfig, LoopConfig):
  """Defaults: a smaller table than the published one, and a network that understands it in minutes on two CPU cores."""

  fills_cores: ClassVar[bool] = False
  parts_batches: ClassVar[bool] = True

  operation: Operation = field("add", "what is made of a and b modulo --prime; multiply and divide are without 0")
  prime: int = field(59, "a prime number, 5 or more")
  share: float = field(0.5, "of all pairs, that are learned, in (0, 1)")
  split_seed: int = field(0, "seed that these are drawn from")
  width: int = field(64, "features of a token")
  heads: int = field(4, "heads, a divisor of --width")
  hidden: int = field(0, "features between the two matrices of the feed-forward network; 0: four times --width")

  steps: int = 5000
  learning_rate: float = 1e-3
  optimizer: OptimizerName = "adamw"
  beta2: float = 0.98
  weight_decay: float = 1.0
  schedule: ScheduleName = "constant"
  warmup_steps: int = 10
  log_every: int = 10
  eval_every: int = 50
  checkpoint_every: int = 1000

  def __post_init__(self):
    super().__post_init__()
    prime = self.prime >= 5 and all(self.prime % divisor for divisor in range(2, int(self.prime**0.5) + 1))
    require(prime and self.prime < 2048, "prime", self.prime, "a prime number from 5 to 2039")
    for name in ("width", "heads"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.hidden >= 0, "hidden", self.hidden, "0 or more")
    require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of --width={self.width}")
    require(0 < self.share < 1, "share", self.share, "a number in (0, 1)")
    require(0 <= self.split_seed < 2**32, "split_seed", self.split_seed, "0 to 2^32 - 1")

  @property
  def units_per_update(self) -> int:
    return count_learned(self)


def count_learned(config: Config) -> int:
  """The nearest number of pairs to the share that devices can divide, some of which are left for testing."""
  pairs = len(group_order(config.operation, config.prime)) ** 2
  wanted = round(config.share * pairs / _DEVICES) * _DEVICES
  return min(max(wanted, _DEVICES), (pairs - 1) // _DEVICES * _DEVICES)


class Pairs(NamedTuple):
  """The table, and which of its pairs are learned and which are tested on."""

  table: Table
  learned: Int[np.ndarray, " L"]
  tested: Int[np.ndarray, " R"]


def make_pairs(config: Config) -> Pairs:
  table = modular_table(config.operation, config.prime)
  key = stream_key(root_key(config.split_seed), "pairs")
  learned, tested = split_pairs(key, len(table.answer), count_learned(config))
  return Pairs(table, np.asarray(learned), np.asarray(tested))


def make_feeds(config: Config) -> Feeds:
  """Every batch is all that is learned; the one of the evaluation is all the rest."""
  pairs = make_pairs(config)
  take = lambda rows: {name: jnp.asarray(getattr(pairs.table, name)[rows]) for name in ("first", "second", "answer")}
  count = len(pairs.tested)
  filled = np.minimum(np.arange(-(-count // _DEVICES) * _DEVICES), count - 1)
  mask = {"mask": jnp.asarray(np.arange(len(filled)) < count, jnp.float32)}
  learned = ResidentFeed(take(pairs.learned), lambda arrays, key, step: arrays)
  return Feeds(learned, EvalBatches(take(pairs.tested[filled]) | mask, lambda arrays, i: arrays, 1), split="test")


class Network(nn.Module):
  """a, b, = to logits of what stands behind: one layer of attention and a ReLU network, without norms.

  Only the last token asks, for only its answer is read. Nanda et al. 2023, sec. 3.
  """

  prime: int
  width: int
  heads: int
  hidden: int
  dtype: Any = None

  @nn.compact
  def __call__(self, first: Int[Array, " N"], second: Int[Array, " N"]) -> Float[Array, "N P"]:
    init = nn.initializers.normal(self.width**-0.5)
    embedding = self.param("embedding", init, (self.prime + 1, self.width))
    positions = self.param("positions", init, (3, self.width))
    tokens = jnp.stack([first, second, jnp.full_like(first, self.prime)], 1)
    x = (embedding[tokens] + positions[None]).astype(self.dtype or jnp.float32)
    attention = MultiHeadAttention(self.heads, kernel_init=init, dense=Dense, dtype=self.dtype, name="attention")
    last = x[:, -1:]
    last = last + attention(last, x)
    network = FeedForward(self.hidden, "relu", kernel_init=init, dense=Dense, dtype=self.dtype, name="network")
    last = last + network(last)
    head = Dense(self.prime, False, kernel_init=nn.initializers.normal(self.prime**-0.5), name="head")
    return head(last[:, 0].astype(jnp.float32))


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState


def build_module(config: Config) -> Network:
  hidden = config.hidden or 4 * config.width
  return Network(config.prime, config.width, config.heads, hidden, jnp.dtype(config.precision))


def make(config: Config) -> Experiment:
  module, optimizer = build_module(config), make_optimizer(config, config.steps)
  learned = lambda state: eval_params(state.opt_state, state.params)

  def score(params, batch) -> tuple[Float[Array, " N"], Bool[Array, " N"]]:
    return token_cross_entropy(module.apply({"params": params}, batch["first"], batch["second"]), batch["answer"])

  def init(key, batch) -> State:
    params = module.init(stream_key(key, "init"), batch["first"], batch["second"])["params"]
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def step(state: State, batch):
    def objective(params):
      losses, right = score(params, batch)
      return jnp.mean(losses), jnp.mean(right.astype(jnp.float32))

    (loss, accuracy), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {"loss": loss, "accuracy": accuracy, "grad_norm": optax.global_norm(grads)}
    return State(state.step + 1, state.key, optax.apply_updates(state.params, updates), opt_state), metrics

  def evaluate(state: State, batch) -> dict[str, Mean]:
    """Of the pairs that are not learned; and how many frequencies most of the embedding is of."""
    params, mask = learned(state), batch["mask"]
    losses, right = score(params, batch)
    over = lambda x: Mean(jnp.sum(x * mask), jnp.sum(mask))
    found = jnp.sum(key_frequencies(embedding_energy(config, params), _ENERGY))
    return {"loss": over(losses), "accuracy": over(right), "key_frequencies": over(found)}

  def report(state: State, directory: Path) -> dict[str, float]:
    params, pairs, curves = learned(state), make_pairs(config), read_accuracy(config, directory)
    energy = np.asarray(embedding_energy(config, params))
    start = np.asarray(embedding_energy(config, init(state.key, make_feeds(config).train.arrays).params))
    draw_curves(config, curves, directory / "grokking.png")
    draw_frequencies(config, start, energy, directory / "frequencies.png")
    return compute_waves(config, module, params, pairs) | when_known(curves)

  return Experiment(init, step, evaluate, report, model=lambda state: Applied(module, learned(state)))


def embedding_energy(config: Config, params: Any) -> Float[Array, " F"]:
  """Of each frequency, of the numbers' embeddings in the order in which the operation is addition."""
  return frequency_energy(params["embedding"][group_order(config.operation, config.prime)])


def compute_waves(config: Config, module: Network, params: Any, pairs: Pairs) -> dict[str, float]:
  """Key frequencies, what they hold, and the losses with nothing but them and without them.

  restricted_loss is of all pairs, excluded_loss of those that were learned. Nanda et al. 2023, sec. 5.
  """
  table, size = pairs.table, len(group_order(config.operation, config.prime))

  @jax.jit
  def compute(params):
    energy = embedding_energy(config, params)
    kept = key_frequencies(energy, _ENERGY)
    logits = module.apply({"params": params}, jnp.asarray(table.first), jnp.asarray(table.second))
    restricted, excluded = wave_logits(logits, jnp.asarray(table.place), size, kept)
    loss = lambda logits: token_cross_entropy(logits, jnp.asarray(table.answer))[0]
    return {
      "key_frequencies": jnp.sum(kept),
      "energy_of_five": jnp.sum(jnp.sort(energy[1:])[-5:]) / jnp.sum(energy[1:]),
      "loss_of_all": jnp.mean(loss(logits)),
      "restricted_loss": jnp.mean(loss(restricted)),
      "excluded_loss": jnp.mean(loss(excluded)[pairs.learned]),
    }

  return {name: float(value) for name, value in compute(params).items()}


def read_accuracy(config: Config, directory: Path) -> dict[str, Curve]:
  """{"train/accuracy": ...} of the run, of one seed of it where the directory is that seed's; empty where none is."""
  names = ("train/accuracy", "train/loss", "eval/accuracy", "eval/loss")
  return dict.fromkeys(names, Curve(np.zeros(0), np.zeros(0))) | read_curves(directory, config)


def when_known(curves: dict[str, Curve]) -> dict[str, float]:
  """Updates after which what is learned and what is tested on are known; left out where they never are."""
  found = {}
  for name, curve in (("memorised_after", curves["train/accuracy"]), ("understood_after", curves["eval/accuracy"])):
    known = curve.step[curve.value >= _KNOWN]
    found |= {name: float(known[0])} if len(known) else {}
  return found


def draw_curves(config: Config, curves: dict[str, Curve], path: Path) -> None:
  """Accuracy and loss of both, with the time between knowing the one and knowing the other."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=10.4, height=4.0)
  known = when_known(curves)
  for axis, metric, scale in zip(axes[0], ("accuracy", "loss"), (100, 1)):
    for split, label, color in (("train", "pairs that are learned", "C0"), ("eval", "pairs never seen", "C3")):
      curve = curves[f"{split}/{metric}"]
      axis.plot(curve.step, scale * curve.value, "-" if len(curve.step) > 1 else "o", color=color, label=label)
    axis.set(xscale="log", xlabel="updates")
    for name, color in (("memorised_after", "C0"), ("understood_after", "C3")):
      if name in known:
        axis.axvline(known[name], color=color, linestyle=":", linewidth=1)
    if len(known) == 2 and known["memorised_after"] < known["understood_after"]:
      axis.axvspan(*known.values(), color="0.93", zorder=0)
  axes[0, 0].set(ylabel="right (%)", ylim=(-3, 104))
  axes[0, 1].set(ylabel="loss (nats)", yscale="log")
  axes[0, 0].legend(frameon=False)
  count = f"{count_learned(config)} of {len(group_order(config.operation, config.prime)) ** 2} pairs learned"
  axes[0, 0].set_title(f"a {_SIGNS[config.operation]} b mod {config.prime}, {count}", fontsize=10)
  said = [f"{name.replace('_', ' ')} {known[name]:.0f}" for name in known] or ["nothing is known yet"]
  axes[0, 1].set_title(", ".join(said) + " updates" * bool(known), fontsize=10)
  save_figure(figure, path)


def draw_frequencies(config: Config, start: Any, energy: Any, path: Path) -> None:
  """Share of the embedding that is of each frequency, before training and after it."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=10.4, height=3.6)
  share = lambda energy: 100 * energy[1:] / energy[1:].sum()
  top = 1.12 * max(share(energy).max(), share(start).max())
  for axis, title, given in zip(axes[0], ("before training", "after it"), (start, energy)):
    kept = np.asarray(key_frequencies(jnp.asarray(given), _ENERGY))[1:]
    place = np.arange(1, len(given))
    axis.bar(place, share(given), color=np.where(kept, "C0", "0.75"))
    title = f"{title}: {kept.sum()} of {len(kept)} frequencies hold {_ENERGY:.0%} (blue)"
    axis.set(xlabel="frequency: turns over all numbers", title=title, ylim=(0, top))
    for k in place[kept] if kept.sum() <= 10 else ():
      axis.annotate(f"{k}", (k, share(given)[k - 1]), (0, 2), textcoords="offset points", ha="center", fontsize=8)
  axes[0, 0].set(ylabel="share of the embedding (%)")
  save_figure(figure, path)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="accuracy", best_mode="max")


if __name__ == "__main__":
  run(main, Config)
