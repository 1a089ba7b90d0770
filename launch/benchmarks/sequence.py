"""Time of an LSTM layer next to torch's, and of minGRU by its scan next to step by step, over the length.

  python -m launch.benchmarks.sequence
  python -m launch.benchmarks.sequence --length=1024 --lengths=256,1024,4096

Values and gradients, by the parameters and by what goes in. The programs of a case take turns, `--rounds` times, so
that a busy machine slows all alike; least and median over rounds, and the ratio of the least to torch's or to that
step by step.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmarks.attention import measure
from mlnotes.engine.errors import require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.sequence import LSTMCell, MinGRUCell, Recurrent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  batch: int = field(32, "sequences")
  width: int = field(256, "features that go in and come out")
  length: int = field(256, "steps of the LSTM")
  lengths: tuple[int, ...] = field((64, 256, 1024), "steps of minGRU; empty: none")
  unrolls: tuple[int, ...] = field((1, 4), "steps of the LSTM in each turn of its loop")
  rounds: int = field(7, "measurements of each case")
  out: str = field("", "file for the figures as JSON")

  def __post_init__(self):
    super().__post_init__()
    for name in ("batch", "width", "length", "rounds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("lengths", "unrolls"):
      require(all(x >= 1 for x in getattr(self, name)), name, getattr(self, name), "numbers of 1 or more")


def make_step(layer: nn.Module, x: np.ndarray) -> Callable[[], Any]:
  """A function that computes values and gradients once and waits."""
  params = jax.jit(layer.init)(jax.random.key(0), x)
  program = jax.jit(jax.value_and_grad(lambda params, x: jnp.sum(jnp.square(layer.apply(params, x)[0])), (0, 1)))
  given = jnp.asarray(x)
  return lambda: jax.block_until_ready(program(params, given))


def lstm_steps(config: Config, x: np.ndarray) -> dict[str, Callable[[], Any]]:
  steps = {
    f"{unroll} a turn": make_step(Recurrent(LSTMCell(config.width), unroll=unroll), x) for unroll in config.unrolls
  }
  steps["step by step"] = make_step(Recurrent(_StepByStep(LSTMCell(config.width))), x)
  steps["flax's cell"] = make_step(_OutputsFirst(nn.RNN(nn.OptimizedLSTMCell(config.width))), x)
  try:
    import torch
  except ImportError:
    return steps
  layer = torch.nn.LSTM(config.width, config.width, batch_first=True)
  leaf = torch.from_numpy(x).requires_grad_()
  return {**steps, "torch": lambda: torch.autograd.grad(layer(leaf)[0].square().sum(), [leaf, *layer.parameters()])}


class _OutputsFirst(nn.Module):
  """Another layer in the form of ours: (outputs, nothing)."""

  layer: nn.Module

  def __call__(self, x):
    return self.layer(x), None


class _StepByStep(nn.RNNCellBase):
  """A cell without its scan."""

  cell: nn.RNNCellBase

  def __call__(self, carry, inputs):
    return self.cell(carry, inputs)

  def initialize_carry(self, rng, input_shape):
    return self.cell.initialize_carry(rng, input_shape)

  num_feature_axes = 1


def show(title: str, found: dict[str, tuple[float, float]], beside: str) -> None:
  print(title)
  for name, (least, median) in found.items():
    ratio = f"{least / found[beside][0]:.2f} of {beside}" if beside in found else ""
    print(f"{name:>24} {least:>9.1f} {median:>9.1f}  {ratio}")


def main(config: Config) -> int:
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", file=sys.stderr)
  draw = np.random.default_rng(0)
  make_input = lambda length: draw.standard_normal((config.batch, length, config.width)).astype(np.float32)
  figures: dict[str, Any] = {}
  print(f"milliseconds: {'least':>19} {'median':>9}  the least compared with")
  figures["lstm"] = found = measure(lstm_steps(config, make_input(config.length)), config.rounds)
  show(f"LSTM, {config.batch} x {config.length} steps of {config.width}", found, "torch")
  for length in config.lengths:
    x = make_input(length)
    cell = MinGRUCell(config.width)
    steps = {
      "in one scan": make_step(Recurrent(cell), x),
      "step by step": make_step(Recurrent(_StepByStep(cell)), x),
    }
    figures[f"mingru, {length}"] = found = measure(steps, config.rounds)
    show(f"minGRU, {config.batch} x {length} steps of {config.width}", found, "step by step")
  if config.out:
    with open(config.out, "w", encoding="utf-8") as file:
      json.dump(figures, file, indent=2)
  return 0


if __name__ == "__main__":
  run(main, Config)
