"""Every kind of attention on the same small tasks, in the same Transformer: accuracy, parameters, arithmetic, time.

  python -m experiments.attention.kinds                                  # recall, sorting and ListOps, sixteen kinds
  python -m experiments.attention.kinds --tasks=sorting --kinds=dense,reformer,linear --seeds=8
  python -m experiments.attention.kinds --tasks=state --kinds=linear,performer   # recall over the size of the state

Writes tasks.png, accuracy of every seed of every kind beside the floor, table.md and, of --tasks=state, state.png.
Times are of this machine while it ran.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.attention import _tokens, recall
from mlnotes.attention import KINDS
from mlnotes.engine.arithmetic import count_flops
from mlnotes.engine.errors import InputError, nearest, require
from mlnotes.engine.experiment import root_key
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.layout import Layout, choose_layout
from mlnotes.engine.study import compile_seeds, run_study
from mlnotes.engine.summary import format_summary, over_seeds

TASKS = ("recall", "sorting", "listops", "state")
# What they have read is in a matrix for each head, of as many rows and columns as a head has features.
_LINEAR = ("linear", "performer")
_STATE_HEADS = (16, 8, 4, 2, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  """Defaults: five seeds of sixteen kinds on three tasks."""

  workdir: str = field("", "directory of pictures, table and figures; empty: runs/attention.kinds", free=True)
  tasks: tuple[str, ...] = field(("recall", "sorting", "listops"), f"which of {', '.join(TASKS)}")
  kinds: tuple[str, ...] = field(tuple(KINDS), "which kinds")
  seed: int = field(0, "first seed, >= 0")
  seeds: int = field(5, "runs of each")
  steps: int = field(1200, "updates of each run, by AdamW")
  learning_rate: float = field(3e-3, "its peak rate, > 0")
  batch_size: int = field(32, "sequences per update")
  width: int = field(32, "features of a token")
  heads: int = field(2, "heads")
  depth: int = field(2, "layers")
  window: int = field(
    8,
    "keys that local and global attention see; block of blockwise and sinkhorn, chunk of reformer, cluster of routing",
  )
  rank: int = field(32, "mixed keys of linformer, features of performer")
  test_sequences: int = field(512, "sequences of the evaluation")

  def __post_init__(self):
    super().__post_init__()
    for name, known in (("tasks", TASKS), ("kinds", KINDS)):
      found = getattr(self, name)
      require(len(found) > 0 and len(set(found)) == len(found), name, ",".join(found), "one or more, each once")
      for one in found:
        if one not in known:
          raise InputError(f"--{name}={one} is not there: {nearest(one, known)}")
    require(self.seeds >= 1, "seeds", self.seeds, "1 or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")
    if "recall" in self.tasks and not any(KINDS[kind].causal for kind in self.kinds):
      raise InputError(
        f"--tasks=recall asks for what comes next: none of --kinds={','.join(self.kinds)} has a causal form."
      )
    for kind in self.kinds:
      if self.tasks != ("state",):
        run_config(self, "sorting", kind)
      if "state" in self.tasks:
        if not KINDS[kind].causal:
          raise InputError(f"--tasks=state asks for what comes next: --kinds={kind} has no causal form.")
        for heads in state_heads(self):
          if kind == "strided" and heads == 1:
            raise InputError("--tasks=state goes down to one head, of which --kinds=strided has no form.")
          state_config(self, kind, heads)

  def idle_flags(self):
    idle = [name for name in ("window", "rank") if not any(name in KINDS[kind].uses for kind in self.kinds)]
    state = dict.fromkeys(("heads", "rank"), "--tasks=state has its own") if self.tasks == ("state",) else {}
    return super().idle_flags() | dict.fromkeys(idle, "none of --kinds uses it") | state

  def cpu_layout(self, cores: int) -> Layout:
    return choose_layout(self.seeds, cores, fills_cores=False)


def run_config(config: Config, task: str, kind: str, **more: Any) -> recall.Config:
  """The settings of one run. Raises InputError for what does not fit."""
  sizes = {
    "recall": dict(pairs=4, queries=4, symbols=8),
    "sorting": dict(length=24, symbols=16),
    "listops": dict(length=32),
  }[task]
  shared = {
    name: getattr(config, name)
    for name in ("steps", "learning_rate", "batch_size", "width", "heads", "depth", "window", "rank", "test_sequences")
  }
  # Not every kind takes a bias: places are learned by all of them.
  given = {**shared, **sizes, **more, "weight_decay": 0.1, "position": "learned"}
  warmup = min(100, config.steps // 2)
  return recall.Config(task=task, kind=kind, warmup_steps=warmup, **given)


def state_heads(config: Config) -> list[int]:
  return [heads for heads in _STATE_HEADS if config.width % heads == 0]


def state_config(config: Config, kind: str, heads: int) -> recall.Config:
  """The settings of one run of --tasks=state. Raises InputError for what does not fit."""
  features = config.width // heads
  return run_config(config, "recall", kind, heads=heads, rank=features)


class Trained(NamedTuple):
  """Figures of one kind on one task; `accuracy` of each seed."""

  accuracy: Float[np.ndarray, " S"]
  floor: float
  parameters: int
  flops: float
  exact: bool
  seconds: float  # of an update of one seed, while all of them were trained


def train_kind(config: recall.Config, seeds: range) -> Trained:
  """Trains all seeds as one program, compiled before the clock starts."""
  experiment, feeds = recall.make(config), recall.make_feeds(config)
  draw = lambda key, step: feeds.train.draw(feeds.train.arrays, key, step)

  def once(key):
    state = experiment.init(key, draw(key, 0))
    state, _ = jax.lax.scan(lambda state, i: (experiment.step(state, draw(key, i))[0], None), state,
                            jnp.arange(config.steps))  # fmt: skip
    parts = jax.lax.map(
      lambda i: experiment.evaluate(state, feeds.evaluate.draw(feeds.evaluate.arrays, i))["accuracy"],
      jnp.arange(feeds.evaluate.num_batches),
    )
    return jnp.sum(parts[0]) / jnp.sum(parts[1])

  train = compile_seeds(once, seeds)
  started = time.perf_counter()
  accuracy = train()
  seconds = time.perf_counter() - started
  key = root_key(0)
  state = jax.eval_shape(experiment.init, key, draw(key, 0))
  work = count_flops(jax.make_jaxpr(experiment.step)(state, draw(key, 0)))
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  return Trained(
    accuracy, _tokens.constant_floor(feeds), parameters, work.flops, work.exact, seconds / config.steps / len(seeds)
  )


def measure_tasks(config: Config, directory: Path) -> tuple[dict[str, Any], list[str]]:
  """(figures, table) of each task and kind that has a form for it."""
  found: dict[str, dict[str, Trained]] = {}
  seeds = range(config.seed, config.seed + config.seeds)
  figures: dict[str, Any] = {}
  head = "| task | kind | accuracy (%) | worst seed (%) | parameters | MFLOP an update | ms an update |"
  rows = [head, "|" + "---|" * 7]
  for task in (task for task in config.tasks if task != "state"):
    found[task] = {}
    for kind in config.kinds:
      if task == "recall" and not KINDS[kind].causal:
        print(f"{task}, {kind}: has no causal form", flush=True)
        continue
      trained = found[task][kind] = train_kind(run_config(config, task, kind), seeds)
      figures[f"{task}/{kind}"] = trained.accuracy
      percent = format_summary(over_seeds(100 * trained.accuracy))
      print(f"{task}, {kind}: {percent} %, floor {100 * trained.floor:.1f} %", flush=True)
      rows.append(
        f"| {task} | {kind} | {percent} | {100 * trained.accuracy.min():.1f} | {trained.parameters:,} | "
        f"{'' if trained.exact else '>= '}{trained.flops / 1e6:.0f} | {1e3 * trained.seconds:.1f} |"
      )
    floor = next(iter(found[task].values())).floor
    figures[f"{task}/floor"] = floor
    rows.append(f"| {task} | the likeliest answer at each place | {100 * floor:.1f} | | 0 | | |")
  if found:
    draw_tasks(found, directory / "tasks.png")
  return figures, rows if found else []


def draw_tasks(found: dict[str, dict[str, Trained]], path: Path) -> None:
  """A panel for each task: a dot for each seed, a bar for the mean, the floor as a line."""
  from mlnotes.engine.plot import new_figure, save_figure

  kinds = [kind for kind in KINDS if any(kind in of_task for of_task in found.values())]
  figure, axes = new_figure(1, len(found), width=4.0 * len(found) + 1, height=0.32 * len(kinds) + 1.6)
  for axis, (task, of_task) in zip(axes[0], found.items()):
    for row, kind in enumerate(kinds):
      if kind not in of_task:
        axis.text(2, row, "no causal form", va="center", fontsize=8, color="0.5")
        continue
      accuracy = 100 * of_task[kind].accuracy
      axis.barh(row, accuracy.mean(), color="C0", alpha=0.35)
      axis.plot(accuracy, np.full(len(accuracy), row), "o", color="C0", markersize=4)
    floor = 100 * next(iter(of_task.values())).floor
    axis.axvline(floor, color="C3", linewidth=1, linestyle="--")
    axis.text(floor, -0.9, f" floor {floor:.0f} %", color="C3", fontsize=8, va="center")
    axis.set(xlim=(0, 102), ylim=(len(kinds) - 0.5, -1.4), xlabel="accuracy on what is asked (%)", title=task)
    axis.set_yticks(range(len(kinds)), kinds if axis is axes[0, 0] else [""] * len(kinds))
  save_figure(figure, path)


def measure_state(config: Config, directory: Path) -> tuple[dict[str, Any], list[str]]:
  """Recall of four pairs over the heads that share the features: as many parameters, a state of width^2 / heads."""
  seeds = range(config.seed, config.seed + config.seeds)
  figures: dict[str, Any] = {}
  rows = ["| kind | heads | numbers in the state of a layer | accuracy (%) |", "|---|---|---|---|"]
  curves: dict[str, list[np.ndarray]] = {kind: [] for kind in config.kinds}
  width = config.width
  heads = state_heads(config)
  for kind in config.kinds:
    for count in heads:
      features = width // count
      trained = train_kind(state_config(config, kind, count), seeds)
      figures[f"{count}_heads/{kind}"] = trained.accuracy
      curves[kind].append(100 * trained.accuracy)
      percent = format_summary(over_seeds(100 * trained.accuracy))
      print(f"state, {kind}, {count} heads: {percent} %", flush=True)
      kept = f"{count * features * (features + 1):,}" if kind in _LINEAR else f"{2 * width} for each token"
      rows.append(f"| {kind} | {count} | {kept} | {percent} |")
  draw_state([width**2 // count for count in heads], curves, directory / "state.png")
  return figures, rows


def draw_state(sizes: list[int], curves: dict[str, list[np.ndarray]], path: Path) -> None:
  """Accuracy over the size that a linear kind's state has, every seed a dot, the mean a line."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 1, width=6.0, height=3.8)
  axis = axes[0, 0]
  for i, (kind, of_kind) in enumerate(curves.items()):
    label = kind if kind in _LINEAR else f"{kind}, which keeps every token"
    axis.plot(sizes, [x.mean() for x in of_kind], color=f"C{i}", label=label)
    for size, accuracy in zip(sizes, of_kind):
      axis.plot(np.full(len(accuracy), size), accuracy, "o", color=f"C{i}", markersize=4, alpha=0.6)
  axis.set_xscale("log", base=2)
  axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
  axis.set(ylim=(0, 102), xlabel="numbers in a layer's state, width² / heads", ylabel="accuracy (%)")
  axis.set_title("recall of 4 pairs by two layers of equal parameters", fontsize=10)
  axis.legend(frameon=False)
  save_figure(figure, path)


def main(config: Config) -> int:
  def study(directory: Path) -> dict[str, Any]:
    figures, lines = measure_tasks(config, directory)
    if "state" in config.tasks:
      more, table = measure_state(config, directory)
      figures |= more
      lines += ["", *table] if lines else table
    (directory / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return figures

  return run_study("attention.kinds", config, study)


if __name__ == "__main__":
  run(main, Config)
