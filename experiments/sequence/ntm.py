"""A memory that is written and read: copy, repeat copy and associative recall by a neural Turing machine.

  python -m experiments.sequence.ntm                                    # copy 1 to 20 vectors, asked for 20 and 120
  python -m experiments.sequence.ntm --model=lstm --units=256           # beside it: what an LSTM makes of that
  python -m experiments.sequence.ntm --task=repeat_copy --steps=20000
  python -m experiments.sequence.ntm --task=associative_recall --steps=20000
  python -m experiments.sequence.ntm --seeds=8 --report_seeds=8         # `solved` is the share of seeds that do

Sequences are drawn on the device, for every update anew. It learned to copy, and not its training lengths, where it
copies longer ones. No parameter goes by the number of cells: it is trained with few and tested with many. In a small
memory what is written beside the mark is soon in the way; in a large one it is not, until sequences are long.
Writes memory.png: what was asked and said, and where the heads stood.
"""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes.data import Feeds, make_drawn_eval, make_drawn_feed
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, masked_mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, make_optimizer
from mlnotes.sequence import (
  BitExample,
  BitTask,
  LSTMCell,
  NeuralTuringMachine,
  NTMCell,
  RecurrentStack,
  make_associative_recall,
  make_copy,
  make_repeat_copy,
)

_TEST_SEED = 0
# Of each task: the longest sequence that is trained on, and the lengths that are asked for.
SIZES = {"copy": (20, (20, 120)), "repeat_copy": (10, (10, 20)), "associative_recall": (6, (6, 15))}
# Wrong bits of a sequence at which a length is solved: one that was trained on, and a longer one; never more than
# `_OF_COIN` of what a coin gets wrong.
MOST_WRONG = (0.1, 5.0)
_OF_COIN = 1 / 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimConfig, LoopConfig):
  """Defaults: copying of 8 bits, one sequence an update."""

  UNIT: ClassVar[str] = "sequences"
  fills_cores: ClassVar[bool] = False

  steps: int = 30000
  batch_size: int = field(1, "sequences per update")
  learning_rate: float = 1e-3
  beta2: float = 0.95
  schedule: ScheduleName = "linear"
  clip_value: float = 10.0
  clip_norm: float = 1.0
  log_every: int = 500
  eval_every: int = 5000
  checkpoint_every: int = 5000

  task: Literal[tuple(SIZES)] = field("copy", "what is asked")
  model: Literal["ntm", "lstm"] = field("ntm", "what answers")
  bits: int = field(8, "bits of a vector")
  least: int = field(0, "vectors of the shortest sequence, of associative recall items; 0: 1, of items 2")
  most: int = field(0, "of the longest one that is trained on; 0: 20 of copy, 10 of repeat_copy, 6 items")
  repeats: int = field(10, "of repeat_copy: up to so many times, which the tests ask for")
  lengths: tuple[int, ...] = field(
    (), "vectors or items of the tests, ascending; empty: 20,120 of copy, 10,20 of repeat_copy, 6,15 of recall"
  )
  test_sequences: int = field(128, "sequences of each test")
  controller: Literal["feedforward", "lstm"] = field("feedforward", "of the ntm; an LSTM remembers by itself too")
  units: int = field(100, "units of the controller, or of a layer of the LSTM")
  depth: int = field(1, "of the lstm: layers")
  cells: int = field(32, "cells of the memory in training")
  test_cells: int = field(128, "cells of the memory in tests")
  width: int = field(20, "numbers in a cell")
  read_heads: int = field(1, "heads that read")
  write_heads: int = field(1, "heads that write")
  reach: int = field(1, "cells that a head can move in a step")

  def __post_init__(self):
    super().__post_init__()
    names = ("batch_size", "bits", "repeats", "test_sequences", "units", "depth", "cells", "test_cells", "width",
             "read_heads", "write_heads", "reach")  # fmt: skip
    for name in names:
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("least", "most"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    lengths = self.test_lengths
    ascending = lengths[0] >= 1 and all(a < b for a, b in itertools.pairwise(lengths))
    require(ascending, "lengths", ",".join(map(str, lengths)), "ascending numbers of 1 or more")
    make_task(self)
    for length in lengths:
      make_task(self, length)
    if self.model == "ntm":
      fewest = min(self.cells, self.test_cells)
      require(2 * self.reach < fewest, "reach", self.reach, f"less than half of the {fewest} cells")

  def idle_flags(self):
    idle = super().idle_flags() | {"precision": "it computes in float32"}
    if self.model == "lstm":
      names = ("controller", "cells", "test_cells", "width", "read_heads", "write_heads", "reach")
      idle |= dict.fromkeys(names, "they are of --model=ntm")
    else:
      idle["depth"] = "it is of --model=lstm"
    if self.task != "repeat_copy":
      idle["repeats"] = f"they are of --task=repeat_copy, not {self.task}"
    return idle

  @property
  def longest(self) -> int:
    """The vectors or items of the longest sequence that is trained on."""
    return self.most or SIZES[self.task][0]

  @property
  def test_lengths(self) -> tuple[int, ...]:
    return self.lengths or SIZES[self.task][1]


def make_task(config: Config, length: int = 0) -> BitTask:
  """The task of the flags, trained on or, with a `length`, tested. Raises InputError where sizes do not fit."""
  least = length or config.least or (2 if config.task == "associative_recall" else 1)
  most = length or config.longest
  fewest = config.repeats if length else 1
  makers = {
    "copy": lambda: make_copy(config.bits, least, most),
    "repeat_copy": lambda: make_repeat_copy(config.bits, least, most, fewest, config.repeats, (1, config.repeats)),
    "associative_recall": lambda: make_associative_recall(config.bits, least, most),
  }
  try:
    return makers[config.task]()
  except ValueError as error:
    raise InputError(f"--task={config.task}: {error}.") from error


def make_feeds(config: Config) -> Feeds:
  task = make_task(config)
  tests = {str(length): make_task(config, length) for length in config.test_lengths}

  def draw_tests(key, arrays):
    return {name: test.draw(stream_key(key, name)) for name, test in tests.items()}

  train = make_drawn_feed(lambda key, arrays: task.draw(key), (), config.batch_size)
  test = make_drawn_eval(draw_tests, (), _TEST_SEED, config.test_sequences, config.batch_size)
  return Feeds(train, test, split="test")


class LSTMReader(nn.Module):
  """LSTM layers and a layer on top: x (B, T, D) to (B, T, features), and the carry."""

  features: int
  units: int
  depth: int

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T F"], Any]:
    y, carry = RecurrentStack(LSTMCell(self.units), self.depth, name="layers")(x)
    return nn.Dense(self.features, name="output")(y), carry


def build_model(config: Config, cells: int) -> nn.Module:
  """The model of the flags, with a memory of so many cells."""
  task = make_task(config)
  if config.model == "lstm":
    return LSTMReader(task.targets, config.units, config.depth)
  cell = NTMCell(
    task.targets, cells, config.width, config.read_heads, config.write_heads, config.units, config.controller,
    config.reach,
  )  # fmt: skip
  return NeuralTuringMachine(cell)


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState


class Model(NamedTuple):
  """Inputs (B, T, D) to logits of the bits (B, T, K); of an ntm, the `trace` of its memory and heads."""

  module: nn.Module
  params: Any

  def __call__(self, inputs: Float[Array, "B T D"]) -> Float[Array, "B T K"]:
    return self.module.apply({"params": self.params}, inputs)[0]

  def trace(self, inputs: Float[Array, "B T D"]) -> Any:
    return self.module.apply({"params": self.params}, inputs, method="trace")


def bit_losses(logits: Float[Array, "B T K"], example: BitExample) -> Float[Array, " B"]:
  """Nats of all bits that are asked of a sequence."""
  each = optax.sigmoid_binary_cross_entropy(logits, example.targets)
  return jnp.sum(jnp.where(example.asked[..., None] > 0, each, 0), (1, 2))


def wrong_bits(logits: Float[Array, "B T K"], example: BitExample) -> Float[Array, " B"]:
  """How many of the bits that are asked of a sequence are on the wrong side of one half."""
  wrong = (logits > 0) != (example.targets > 0.5)
  return jnp.sum(jnp.where(example.asked[..., None] > 0, wrong, False), (1, 2)).astype(jnp.float32)


def asked_bits(example: BitExample) -> Float[Array, " B"]:
  return jnp.sum(example.asked, 1) * example.targets.shape[-1]


def make(config: Config) -> Experiment:
  optimizer = make_optimizer(config, config.steps)
  module, tested = (build_model(config, cells) for cells in (config.cells, config.test_cells))

  def init(key, batch) -> State:
    params = module.init(stream_key(key, "init"), batch.inputs[:1])["params"]
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def step(state: State, batch: BitExample):
    def mean_loss(params):
      logits = Model(module, params)(batch.inputs)
      return jnp.sum(bit_losses(logits, batch)) / jnp.sum(asked_bits(batch)), jnp.mean(wrong_bits(logits, batch))

    (loss, wrong), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss, "wrong_bits": wrong, "grad_norm": optax.global_norm(grads)}
    return State(state.step + 1, state.key, params, opt_state), metrics

  def trained(state: State) -> Model:
    return Model(tested, eval_params(state.opt_state, state.params))

  def evaluate(state: State, batch) -> dict[str, Mean]:
    model, found = trained(state), {}
    for i, length in enumerate(config.test_lengths):
      example = batch[str(length)]
      logits = model(example.inputs)
      found[f"wrong_bits_{length}"] = masked_mean(wrong_bits(logits, example), batch["mask"])
      if i == 0:
        found["loss"] = masked_mean(bit_losses(logits, example) / asked_bits(example), batch["mask"])
    return found

  def report(state: State, directory: Path) -> dict[str, float]:
    draw_memory(trained(state), config, directory / "memory.png")
    return judge(config, measure(evaluate, state, make_feeds(config)))

  return Experiment(init, step, evaluate, report, model=trained)


def measure(evaluate: Any, state: State, feeds: Feeds) -> dict[str, float]:
  """The figures of an evaluation over all its batches."""
  one = jax.jit(lambda state, i: evaluate(state, feeds.evaluate.draw(feeds.evaluate.arrays, i)))
  parts = [one(state, i) for i in range(feeds.evaluate.num_batches)]
  return {name: float(sum(p[name].total for p in parts) / sum(p[name].count for p in parts)) for name in parts[0]}


def judge(config: Config, found: dict[str, float]) -> dict[str, float]:
  """Whether all lengths are `solved`, 0 or 1, and how many bits a coin gets wrong."""
  coins = {length: coin_errors(config, length) for length in config.test_lengths}
  allowed = {length: min(MOST_WRONG[length > config.longest], coin * _OF_COIN) for length, coin in coins.items()}
  solved = all(found[f"wrong_bits_{length}"] <= most for length, most in allowed.items())
  return {"solved": float(solved), **{f"coin_{length}": coin for length, coin in coins.items()}}


def coin_errors(config: Config, length: int) -> float:
  """Half of the bits that are asked at a length: tests of one length ask for as many each."""
  key = stream_key(root_key(_TEST_SEED), "coin")
  draw = jax.jit(lambda: jnp.sum(asked_bits(jax.vmap(make_task(config, length).draw)(key[None]))))
  return float(draw()) / 2


def draw_memory(model: Model, config: Config, path: Path) -> None:
  """A column for each test length: what was seen, asked and said, what of it is wrong, and where the heads stood."""
  from mlnotes.engine.plot import new_figure, save_figure

  has_memory = config.model == "ntm"
  rows = ("seen", "asked for", "said", "wrong") + (("where it writes", "where it reads") if has_memory else ())
  lengths = config.test_lengths
  figure, axes = new_figure(
    len(rows), len(lengths), width=6.0 * len(lengths), height=1.0 + 0.9 * 4 + 2.6 * 2 * has_memory
  )
  if has_memory:
    axes[0, 0].get_gridspec().set_height_ratios([1, 1, 1, 1, 3, 3])

  @functools.partial(jax.jit, static_argnums=1)
  def ask(params, length: int):
    key = stream_key(root_key(_TEST_SEED), f"picture {length}")
    example = jax.tree.map(lambda x: x[None], make_task(config, length).draw(key))
    asks = model._replace(params=params)
    said = jax.nn.sigmoid(asks(example.inputs)) * example.asked[..., None]
    wrong = ((said > 0.5) != (example.targets > 0.5)) * example.asked[..., None]
    panels = [example.inputs, example.targets, said, wrong]
    if has_memory:
      weights = asks.trace(example.inputs).weights
      panels += [jnp.sum(weights[:, :, config.read_heads :], 2), jnp.sum(weights[:, :, : config.read_heads], 2)]
    return panels, jnp.sum(wrong), asked_bits(example)[0]

  for column, length in enumerate(lengths):
    panels, wrong, count = ask(model.params, length)
    for axis, name, panel in zip(axes[:, column], rows, panels):
      heads = name.startswith("where")
      image = np.asarray(panel[0]).T
      first, last = _touched(panels[4:]) if heads else (0, len(image) - 1)
      image = image[first : last + 1]
      axis.imshow(image, cmap="magma" if heads else "gray_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
      axis.set_yticks([0, len(image) - 1], [f"cell {first}", f"{last}"] if heads else ["", ""], fontsize=7)
      axis.tick_params(labelbottom=axis is axes[-1, column], labelsize=7)
      if column == 0:
        axis.set_ylabel(name, fontsize=8)
    title = f"length {length}: {int(wrong)} of {int(count)} bits wrong"
    axes[0, column].set_title(title, fontsize=10)
    axes[-1, column].set_xlabel("step", fontsize=8)
  what = f"NTM, {config.controller} controller" if has_memory else "LSTM"
  figure.suptitle(f"{config.task.replace('_', ' ')} by {what}, trained on lengths up to {config.longest}", fontsize=11)
  save_figure(figure, path)


def _touched(weights: Any) -> tuple[int, int]:
  """The first and the last cell that some head stands at with a weight worth seeing; one more on either side."""
  most = np.max([np.max(np.asarray(each[0]), axis=0) for each in weights], axis=0)
  cells = np.flatnonzero(most > 0.1)
  return (max(cells[0] - 1, 0), min(cells[-1] + 1, len(most) - 1)) if len(cells) else (0, len(most) - 1)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config)


if __name__ == "__main__":
  run(main, Config)
