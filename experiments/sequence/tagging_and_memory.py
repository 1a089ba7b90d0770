"""What recurrent cells remember: the adding problem, copying, parity, brackets; and slot filling, a tag for each word.

  python -m experiments.sequence.tagging_and_memory                        # two numbers, 400 steps apart: an LSTM
  python -m experiments.sequence.tagging_and_memory --cell=elman           # the same without gates
  python -m experiments.sequence.tagging_and_memory --task=copying --length=50 --cell=gru
  python -m experiments.sequence.tagging_and_memory --task=slots --bidirectional

Sequences are drawn on the device. Writes answers.png: what was said on sequences that were never trained on, beside
what is right.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from experiments.sequence._cells import CellConfig, build_stack
from mlnotes.data import Feeds, make_drawn_eval, make_drawn_feed
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import Experiment, Mean, root_key, stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.loop import LoopConfig, train
from mlnotes.nn.loss import cross_entropy
from mlnotes.optim import ScheduleName, eval_params
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer
from mlnotes.sequence import (
  RecurrentStack,
  Task,
  count_entities,
  make_adding,
  make_copying,
  make_dyck,
  make_parity,
  make_slots,
)
from mlnotes.sequence.tagging import TAGS, read_words, tags_of_words
from mlnotes.sequence.tasks import NOT_ASKED

# Of the test sequences and the pictures': the same in every run; training draws from the run's own seed.
_TEST_SEED, _PICTURE_SEED = 0, 1
# A sum is right within this (Hochreiter & Schmidhuber 1997, sec. 5.4).
_CLOSE = 0.04
# Requests of the picture, and letters that it has room for in a row.
_SHOWN, _ROOM = 6, 150


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CellConfig, OptimConfig, LoopConfig):
  """Defaults: the adding problem over 400 steps, two minutes on two CPU cores."""

  UNIT: ClassVar[str] = "sequences"
  fills_cores: ClassVar[bool] = False

  width: int = 32
  learning_rate: float = 1e-2
  optimizer: OptimizerName = "adam"
  schedule: ScheduleName = "warmup_cosine"
  warmup_steps: int = 100
  clip_norm: float = 1.0
  steps: int = 4000
  log_every: int = 100

  task: Literal["adding", "copying", "parity", "dyck", "slots"] = field("adding", "what is asked")
  length: int = field(400, "steps of adding, parity and dyck; of copying, blanks between hearing and saying")
  kinds: int = field(1, "of dyck: kinds of brackets")
  brackets: int = field(8, "of dyck: how many are open at most")
  batch_size: int = field(32, "sequences per update")
  test_sequences: int = field(1024, "sequences of the evaluation, the same in every run")

  def __post_init__(self):
    super().__post_init__()
    for name in ("batch_size", "test_sequences"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    make_task(self)

  def idle_flags(self):
    idle = super().idle_flags()
    if self.task != "dyck":
      idle |= dict.fromkeys(("kinds", "brackets"), f"they are of --task=dyck, not {self.task}")
    if self.task == "slots":
      idle["length"] = "requests are as long as they are"
    if self.depth == 1:
      if not self.shared_dropout:
        idle["dropout"] = "--depth=1 has no layer behind another"
      if make_task(self).features != self.width * (1 + self.bidirectional):
        idle["residual"] = f"--task={self.task} has not as many features as the layer says"
    return idle


def make_task(config: Config) -> Task:
  """The task of the flags. Raises InputError where its sizes do not fit."""
  makers = {
    "adding": lambda: make_adding(config.length),
    "copying": lambda: make_copying(config.length),
    "parity": lambda: make_parity(config.length),
    "dyck": lambda: make_dyck(config.length, config.kinds, config.brackets),
    "slots": make_slots,
  }
  try:
    return makers[config.task]()
  except ValueError as error:
    raise InputError(f"--task={config.task}: {error}.") from error


class Reader(nn.Module):
  """Recurrent layers, and a linear one on what they say at each step; of a number, at the end of each direction."""

  stack: RecurrentStack
  classes: int

  @nn.compact
  def __call__(self, inputs: Float[Array, "B T D"], lengths: Int[Array, " B"], train: bool = False) -> Array:
    """(B, T, classes), of a number (B,); float32."""
    outputs, _ = self.stack(inputs, lengths, train=train)
    if self.classes:
      return nn.Dense(self.classes, name="head")(outputs).astype(jnp.float32)
    rows = jnp.arange(len(outputs))
    last = outputs[rows, lengths - 1]
    if self.stack.bidirectional:
      forward, backward = jnp.split(outputs, 2, -1)
      last = jnp.concatenate([forward[rows, lengths - 1], backward[:, 0]], -1)
    return nn.Dense(1, name="head")(last)[:, 0].astype(jnp.float32)


class State(NamedTuple):
  step: Int[Array, ""]
  key: Key[Array, ""]
  params: chex.ArrayTree
  opt_state: optax.OptState


class Model(NamedTuple):
  """Inputs (B, T, D) and lengths to logits (B, T, classes), or to a number each."""

  module: Reader
  params: Any

  def __call__(self, inputs: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Array:
    return self.module.apply({"params": self.params}, inputs, lengths)


def make_feeds(config: Config) -> Feeds:
  draw = make_task(config).draw
  train_feed = make_drawn_feed(lambda key, arrays: draw(key), (), config.batch_size)
  test = make_drawn_eval(lambda key, arrays: draw(key), (), _TEST_SEED, config.test_sequences, config.batch_size)
  return Feeds(train_feed, test, split="test")


def judge(said: Array, batch: Any) -> dict[str, Float[Array, " B"]]:
  """Of each sequence: its loss, the share of what is asked that is right, and whether all of it is."""
  target = batch["target"]
  if target.ndim == 1:
    right = jnp.abs(said - target) < _CLOSE
    return {"loss": jnp.square(said - target), "solved": right.astype(jnp.float32)}
  asked = target != NOT_ASKED
  count = jnp.maximum(jnp.sum(asked, 1), 1)
  each = jnp.where(asked, cross_entropy(said, jnp.maximum(target, 0)), 0)
  right = jnp.where(asked, jnp.argmax(said, -1) == target, True)
  accuracy = jnp.sum(right & asked, 1) / count
  return {
    "loss": jnp.sum(each, 1) / count,
    "accuracy": accuracy,
    "solved": jnp.all(right, 1).astype(jnp.float32),
  }


def make(config: Config) -> Experiment:
  task = make_task(config)
  module = Reader(build_stack(config), task.classes)
  optimizer = make_optimizer(config, config.steps)

  def init(key, batch) -> State:
    inputs = jnp.zeros((1, task.length, task.features))
    params = module.init(stream_key(key, "init"), inputs, jnp.full(1, task.length))["params"]
    return State(jnp.zeros([], jnp.int32), key, params, optimizer.init(params))

  def step(state: State, batch):
    rngs = {"dropout": stream_key(state.key, "dropout", state.step)}

    def objective(params):
      said = module.apply({"params": params}, batch["inputs"], batch["length"], True, rngs=rngs)
      found = judge(said, batch)
      return jnp.mean(found["loss"]), found

    (_, found), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {name: jnp.mean(value) for name, value in found.items()}
    metrics["grad_norm"] = optax.global_norm(grads)
    return State(state.step + 1, state.key, optax.apply_updates(state.params, updates), opt_state), metrics

  def trained(state: State) -> Model:
    return Model(module, eval_params(state.opt_state, state.params))

  def evaluate(state: State, batch) -> dict[str, Mean]:
    said = trained(state)(batch["inputs"], batch["length"])
    mask = batch["mask"]
    found = {name: Mean(jnp.sum(value * mask), jnp.sum(mask)) for name, value in judge(said, batch).items()}
    if config.task == "slots":
      right, predicted, there = count_entities(batch["target"], jnp.argmax(said, -1), batch["target"] != NOT_ASKED)
      found["entity_f1"] = Mean(jnp.sum(2 * right * mask), jnp.sum((predicted + there) * mask))
    return found

  def report(state: State, directory: Path) -> dict[str, float]:
    keys = jax.random.split(stream_key(root_key(_PICTURE_SEED), "pictures"), 256)
    drawn = jax.jit(jax.vmap(task.draw))(keys)
    model = trained(state)
    said = np.array(jax.jit(lambda inputs, lengths: model(inputs, lengths))(drawn["inputs"], drawn["length"]))
    shown = jax.tree.map(np.asarray, drawn)
    title = f"{config.cell}, {'both directions, ' * config.bidirectional}{config.task}"
    if not task.classes:
      draw_sums(shown["target"], said, title, directory / "answers.png")
    elif config.task == "slots":
      draw_tags(shown, said.argmax(-1), title, directory / "answers.png")
    else:
      draw_steps(shown, said.argmax(-1), task, title, directory / "answers.png")
    return word_floor(task) if config.task == "slots" else floors(task)

  return Experiment(init, step, evaluate, report, model=trained)


def floors(task: Task) -> dict[str, float]:
  """Of the best answer that knows the step and what stands there, and nothing before."""
  return {"floor_loss": task.floor} | ({"floor_accuracy": task.accuracy} if task.classes else {})


def word_floor(task: Task) -> dict[str, float]:
  """Of the tag that each word has most often, on requests that it was not counted from."""
  draw = jax.jit(jax.vmap(task.draw))
  keys = jax.random.split(stream_key(root_key(_PICTURE_SEED), "floor"), 2048)
  counted, asked = draw(keys[:1024]), draw(keys[1024:])

  @jax.jit
  def compare(tag_of_word, asked):
    tags, real = tag_of_word[jnp.argmax(asked["inputs"], -1)], asked["target"] != NOT_ASKED
    right, predicted, there = (jnp.sum(x) for x in count_entities(asked["target"], tags, real))
    accuracy = jnp.mean(jnp.sum((tags == asked["target"]) & real, 1) / jnp.sum(real, 1))
    return accuracy, 2 * right / (predicted + there)

  accuracy, f1 = compare(tags_of_words(counted["inputs"], counted["target"]), asked)
  return {"floor_accuracy": float(accuracy), "floor_entity_f1": float(f1)}


def draw_sums(target: Any, said: Any, title: str, path: Path) -> None:
  """What was said over what is right: on the line where the network adds, flat where it does not remember."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(width=4.6, height=4.2)
  axis = axes[0, 0]
  axis.plot([0, 2], [0, 2], color="0.6", linewidth=1, label="right")
  axis.plot([0, 2], [1, 1], color="C3", linewidth=1, linestyle="--", label="best without memory")
  axis.plot(target, said, "o", color="C0", markersize=3, alpha=0.6, label="said")
  axis.set(xlabel="sum of the two marked numbers", ylabel="what was said", title=title, xlim=(0, 2), ylim=(-0.2, 2.2))
  axis.legend(frameon=False)
  save_figure(figure, path)


def draw_steps(drawn: Any, said: Any, task: Task, title: str, path: Path) -> None:
  """Above, how often each step is right; below, a few sequences: heard, right, said, and in red where they differ."""
  from mlnotes.engine.plot import new_figure, save_figure

  heard, target = drawn["inputs"].argmax(-1), drawn["target"]
  figure, axes = new_figure(2, 1, width=8.0, height=5.6)
  share = 100 * (said == target).mean(0)
  axes[0, 0].plot(np.arange(task.length), share, color="C0")
  axes[0, 0].axhline(100 * task.accuracy, color="C3", linestyle="--", linewidth=1)
  axes[0, 0].text(0, 100 * task.accuracy, "best without memory, all steps", color="C3", fontsize=8, va="bottom")
  axes[0, 0].set(ylabel="right (%)", ylim=(0, 103), title=title, xlim=(-0.5, task.length - 0.5))
  rows, names, wrong = [], [], []
  for i in range(3):
    for name, row in (("heard", heard[i]), ("right", target[i]), ("said", said[i])):
      wrong += [(len(rows), t) for t in np.flatnonzero(said[i] != target[i])] if name == "said" else []
      rows.append(row)
      names.append(name)
    rows.append(np.full(task.length, np.nan))
    names.append("")
  axes[1, 0].imshow(np.array(rows, float)[:-1], aspect="auto", interpolation="none", cmap="viridis")
  for row, t in wrong[:2000]:
    axes[1, 0].plot([t - 0.5, t + 0.5], [row + 0.42] * 2, color="C3", linewidth=2)
  named = [i for i, name in enumerate(names) if name]
  axes[1, 0].set_yticks(named, [names[i] for i in named], fontsize=8)
  axes[1, 0].set(xlabel="step")
  save_figure(figure, path)


def draw_tags(drawn: Any, said: Any, title: str, path: Path) -> None:
  """Some requests with the tag of each word: grey where it is right, red with the right one where it is not."""
  from mlnotes.engine.plot import new_figure, save_figure

  mistakes = np.sum((said != drawn["target"]) & (drawn["target"] != NOT_ASKED), 1)
  worst = np.argsort(-mistakes, kind="stable")[:2]
  shown = [*range(_SHOWN - len(worst)), *worst]
  figure, axes = new_figure(width=12.0, height=0.62 * len(shown) + 0.6)
  axis = axes[0, 0]
  for row, i in enumerate(shown):
    left = 0.0
    for word, tag, right in zip(read_words(drawn["inputs"][i]), said[i], drawn["target"][i]):
      label = TAGS[tag] if tag == right else f"{TAGS[tag]} ({TAGS[right]})"
      size = max(len(word), 0.8 * len(label) * (tag > 0 or right > 0)) + 1.5
      if left + size > _ROOM:
        axis.text(left, row, "...", fontsize=8, family="monospace", va="bottom", in_layout=False)
        break
      axis.text(left, row, word, fontsize=8, family="monospace", va="bottom", in_layout=False)
      color = "0.35" if tag == right else "C3"
      if tag or right:
        axis.text(left, row + 0.05, label, fontsize=6, va="top", color=color, in_layout=False)
      left += size
  axis.set(xlim=(0, _ROOM), ylim=(len(shown) - 0.3, -0.7))
  what = f"tags that were said, wrong ones red with the right one; last {len(worst)}: the worst of {len(said)}"
  axis.set_title(f"{title}: {what}", fontsize=9)
  axis.axis("off")
  save_figure(figure, path)


def main(config: Config) -> int:
  return train(make(config), make_feeds(config), config, best_metric="loss")


if __name__ == "__main__":
  run(main, Config)
