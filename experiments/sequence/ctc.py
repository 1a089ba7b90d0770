"""Reading strings by CTC: lines of handwritten digits, spoken digits, whatever clips; nobody says where each one is.

  python -m experiments.sequence.ctc                                      # lines of five to ten digits, other writers
  python -m experiments.sequence.ctc --cell=transformer --beam=8          # another network, prefix search
  python -m experiments.sequence.ctc --dataset=tones --longest=5          # strings of notes, without a file
  python -m experiments.sequence.ctc --dataset=fsdd.npz --split=official  # strings of spoken digits
  python -m experiments.sequence.ctc --dataset=fsdd.npz --split=speaker:theo  # tested on a speaker never heard

Graves et al. 2006. Strings are drawn on the device from the parts of the training split, those of the evaluation from
the test split. Writes spikes.png, what the network says at each place of some test strings, and mistakes.png, the same
of the worst, where there are any.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from experiments.sequence import _ctc_pictures, _strings
from experiments.sequence._ctc_network import Model, build_cell, build_network, decode
from mlnotes.data import Feeds, make_drawn_eval, make_drawn_feed
from mlnotes.engine.errors import require
from mlnotes.engine.experiment import Experiment, Mean, masked_mean, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.engine.progress import warn
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer
from mlnotes.sequence import CELLS, ctc_greedy, ctc_loss, edit_distance, mask_features

# Of the strings of the evaluation: the same in every run.
_TEST_SEED = 0
# Of the two convolutions in time, by what they come to.
_STRIDES = {1: (1, 1), 2: (1, 2), 4: (2, 2), 8: (2, 4)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimConfig, LoopConfig):
  """Defaults: lines of digits in two minutes on two CPU cores."""

  UNIT: ClassVar[str] = "strings"
  fills_cores: ClassVar[bool] = False

  learning_rate: float = 3e-3
  optimizer: OptimizerName = "adamw"
  weight_decay: float = 0.01
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0
  steps: int = 2000
  log_every: int = 100
  eval_every: int = 500

  dataset: str = field(
    "digit_lines",
    "digit_lines (built in), tones (built in), a folder of class folders of .wav, or a file.npz of clips with their "
    "labels, of the same length or one after the other with their `start`",
  )
  split: str = field(
    "",
    "of clips one after the other: official, or speaker:NAME to test on one; empty: official where recordings have an "
    "index, else a fixed tenth",
  )
  clip_seconds: float = field(1.0, "cut clips at this many seconds; 0: not")
  shortest: int = field(0, "least labels of a string; 0: 5 of a line, 1 of sounds")
  longest: int = field(0, "most labels of a string; 0: 10 of a line, 5 of sounds")
  test_strings: int = field(1024, "strings of the evaluation, made of the test split")
  batch_size: int = field(32, "strings per update")
  mels: int = field(40, "bands of a frame of sound")
  masks: bool = field(True, "hide bands and spans of training frames of sound (SpecAugment)")
  stride: int = field(
    0,
    "frames that become one, of which each label needs one, and one more between equal neighbours: 1, 2, 4 or 8; "
    "0: 2 of a line, 4 of sounds",
  )
  cell: Literal[(*CELLS, "transformer", "none")] = field("lstm", "what follows the convolutions")
  bidirectional: bool = field(True, "cells in both directions")
  depth: int = field(1, "layers of cells, or of the Transformer")
  width: int = field(64, "features of a frame, and of a cell")
  heads: int = field(4, "heads of the Transformer, a divisor of --width")
  dropout: float = field(0.3, "in [0, 1)")
  beam: int = field(0, "prefixes that the evaluation keeps; 0: greedy", free="report")

  def __post_init__(self):
    super().__post_init__()
    for name in ("batch_size", "test_strings", "depth", "width", "heads"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.mels >= 2, "mels", self.mels, "2 or more")
    require(0 <= self.clip_seconds < float("inf"), "clip_seconds", self.clip_seconds, "0 or more")
    require(self.shortest >= 0, "shortest", self.shortest, "0 or more")
    require(self.longest == 0 or self.longest >= 1, "longest", self.longest, "0 or more")
    require(self.stride in (0, *_STRIDES), "stride", self.stride, "1, 2, 4 or 8, or 0")
    low, high = self.counts
    require(low <= high, "shortest", low, f"at most --longest={high}")
    require(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
    require(self.beam >= 0, "beam", self.beam, "0 or more")
    if self.cell == "transformer":
      require(self.width % (2 * self.heads) == 0, "heads", self.heads, f"half of --width={self.width} or a part of it")
    elif self.cell != "none":
      build_cell(self)

  @property
  def counts(self) -> tuple[int, int]:
    """Least and most labels of a string."""
    usual = (5, 10) if self.dataset == _strings.LINES else (1, 5)
    return self.shortest or min(usual[0], self.longest or usual[0]), self.longest or max(usual[1], self.shortest)

  @property
  def time_strides(self) -> tuple[int, ...]:
    stride = self.stride or (2 if self.dataset == _strings.LINES else 4)
    return _STRIDES[stride]

  def idle_flags(self):
    idle = super().idle_flags()
    if self.dataset == _strings.LINES:
      idle |= dict.fromkeys(("split", "clip_seconds", "mels", "masks"), f"--dataset={self.dataset} is no sound")
    if self.cell != "transformer":
      idle["heads"] = f"--cell={self.cell} has none"
    if self.cell in ("transformer", "none"):
      idle["bidirectional"] = f"--cell={self.cell} has no direction"
    if self.cell == "none":
      idle["depth"] = "--cell=none has no layer"
    return idle


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState


def load_source(config: Config) -> _strings.Source:
  return _strings.load_source(config.dataset, config.split, config.clip_seconds, *config.counts, config.mels)


def make_feeds(config: Config) -> Feeds:
  source = load_source(config)
  for note in source.notes:
    _note(f"--dataset={config.dataset}: {note}")
  train_feed = make_drawn_feed(source.draw[0], source.arrays[0], config.batch_size, "strings")
  test = make_drawn_eval(source.draw[1], source.arrays[1], _TEST_SEED, config.test_strings, config.batch_size)
  return Feeds(train_feed, test, split="test", fingerprint=source.fingerprint)


@functools.cache
def _note(text: str) -> None:
  """Once, however often the feeds are made."""
  print(f"note: {text}", file=sys.stderr)


def make(config: Config) -> Experiment:
  source = load_source(config)
  network = build_network(config, len(source.class_names))
  optimizer = make_optimizer(config, config.steps)
  masked = config.masks and config.dataset != _strings.LINES

  def init(key, batch) -> State:
    frames = source.front(batch["input"][:1], batch["length"][:1])
    params = network.init(stream_key(key, "init"), *frames)["params"]
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def step(state: State, batch):
    rngs = {"dropout": stream_key(state.key, "dropout", state.step)}
    frames, lengths = source.front(batch["input"], batch["length"])
    if masked:
      keys = jax.random.split(stream_key(state.key, "masks", state.step), len(frames))
      frames = jax.vmap(mask_features)(keys, frames, lengths)

    def mean_loss(params):
      logits, counts = network.apply({"params": params}, frames, lengths, True, rngs=rngs)
      losses, feasible = ctc_loss(logits, counts, batch["labels"], batch["label_length"])
      labels = ctc_greedy(logits, counts)
      return jnp.sum(losses) / jnp.maximum(jnp.sum(feasible), 1), (feasible, labels)

    (loss, (feasible, labels)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    wrong = edit_distance(*labels, batch["labels"], batch["label_length"])
    metrics = {
      "loss": loss,
      "label_error": jnp.sum(wrong) / jnp.sum(batch["label_length"]),
      "exact": jnp.mean(wrong == 0),
      "infeasible": jnp.mean(~feasible),
      "grad_norm": optax.global_norm(grads),
    }
    return State(state.step + 1, state.key, params, opt_state), metrics

  def trained(state: State) -> Model:
    return Model(network, eval_params(state.opt_state, state.params), source.front, config.beam, source.class_names)

  def evaluate(state: State, batch) -> dict[str, Mean]:
    logits, counts = trained(state)(batch["input"], batch["length"])
    losses, feasible = ctc_loss(logits, counts, batch["labels"], batch["label_length"])
    wrong = edit_distance(*decode(logits, counts, config.beam), batch["labels"], batch["label_length"])
    mask = batch["mask"]
    loss = masked_mean(losses, mask * feasible)
    return {
      # Where no string has a path: 0, not NaN; too little to count where one has.
      "loss": loss._replace(count=jnp.maximum(loss.count, 1e-9)),
      "label_error": Mean(jnp.sum(wrong * mask), jnp.sum(batch["label_length"] * mask)),
      "exact": masked_mean((wrong == 0).astype(jnp.float32), mask),
      "infeasible": masked_mean((~feasible).astype(jnp.float32), mask),
    }

  def report(state: State, directory: Path) -> dict[str, float]:
    read = _ctc_pictures.read_all(trained(state), make_feeds(config))
    if len(read.infeasible):
      warn(
        f"{len(read.infeasible)} of {len(read.labels)} test strings have fewer frames than their labels need, and no "
        f"loss: numbers {', '.join(map(str, read.infeasible[:10]))}{' ...' if len(read.infeasible) > 10 else ''}."
      )
    _ctc_pictures.draw_spikes(trained(state), read, source.class_names, directory / "spikes.png")
    _ctc_pictures.draw_mistakes(trained(state), read, source.class_names, directory / "mistakes.png")
    floors = source.floors()
    counts = np.asarray(read.label_lengths)
    return {
      **floors,
      "exact_floor": float(np.mean(max(floors.values()) ** counts)),
      "infeasible_rows": len(read.infeasible),
    }

  return Experiment(init, step, evaluate, report, model=trained)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="exact", best_mode="max")


if __name__ == "__main__":
  run(main, Config)
