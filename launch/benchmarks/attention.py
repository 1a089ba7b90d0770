"""Time and memory of exact attention without its matrix, and of a Transformer's block, next to torch's.

  python -m launch.benchmarks.attention
  python -m launch.benchmarks.attention --lengths=1024,4096 --causal

Attention in blocks, the dense form and torch's scaled_dot_product_attention take turns, `--rounds` times, so that a
busy machine slows all alike; least and median over rounds, and the ratio of the least to torch's: what else runs on the
machine only ever adds time. Memory is what the compiled program of values and gradients needs beside its arguments and
results.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.attention import (
  FeedForward,
  Mask,
  MultiHeadAttention,
  TransformerBlock,
  blockwise_attention,
  dot_product_attention,
)
from mlnotes.engine.errors import require
from mlnotes.engine.flags import BaseConfig, field, run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  lengths: tuple[int, ...] = field((1024, 4096, 16384), "lengths of the sequences that are timed")
  memory_lengths: tuple[int, ...] = field((1024, 2048, 4096), "lengths of those whose memory is told; empty: none")
  dense_length: int = field(4096, "longest sequence for the dense form, whose memory grows with its square")
  batch: int = field(1, "sequences")
  heads: int = field(4, "heads")
  head_dim: int = field(64, "features of a head")
  block: int = field(512, "queries and keys of a block")
  causal: bool = field(False, "hide later keys")
  block_length: int = field(512, "length of the sequences of a Transformer's block, 8 of them; 0: none")
  width: int = field(256, "features of that block; heads have 64")
  rounds: int = field(7, "measurements of each case")
  out: str = field("", "file for the figures as JSON")

  def __post_init__(self):
    super().__post_init__()
    for name in ("batch", "heads", "head_dim", "block", "rounds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("lengths", "memory_lengths"):
      require(all(x >= 1 for x in getattr(self, name)), name, getattr(self, name), "numbers of 1 or more")
    require(self.width % 64 == 0 and self.width > 0, "width", self.width, "a multiple of 64")


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw(config: Config, length: int) -> Arrays:
  draws = np.random.default_rng(0).standard_normal((3, config.batch, length, config.heads, config.head_dim))
  return tuple(draws.astype(np.float32))


def jax_programs(config: Config) -> dict[str, dict[str, Callable[..., Any]]]:
  """{name: {"values": ..., "values and gradients": ...}} of functions of (query, key, value), compiled."""
  kinds = {"in blocks": partial(blockwise_attention, block=config.block), "dense": dot_product_attention}
  mask = Mask(causal=config.causal)

  def with_gradients(attend, *arrays):
    out, pull = jax.vjp(lambda *a: attend(*a, mask), *arrays)
    return out, pull(out)

  return {
    name: {
      "values": jax.jit(lambda *a, attend=attend: attend(*a, mask)),
      "values and gradients": jax.jit(partial(with_gradients, attend)),
    }
    for name, attend in kinds.items()
  }


def attention_steps(config: Config, length: int) -> dict[str, dict[str, Callable[[], Any]]]:
  """{what: {name: a function that runs it once and waits}}."""
  arrays = draw(config, length)
  steps: dict[str, dict[str, Callable[[], Any]]] = {"values": {}, "values and gradients": {}}
  for name, programs in jax_programs(config).items():
    if name == "dense" and length > config.dense_length:
      continue
    for what, program in programs.items():
      given = tuple(map(jnp.asarray, arrays))
      steps[what][name] = lambda program=program, given=given: jax.block_until_ready(program(*given))
  try:
    import torch
  except ImportError:
    return steps
  tensors = [torch.from_numpy(x.transpose(0, 2, 1, 3).copy()) for x in arrays]
  leaves = [x.clone().requires_grad_() for x in tensors]
  attend = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=config.causal)

  def values():
    with torch.no_grad():
      attend(*tensors)

  def gradients():
    out = attend(*leaves)
    torch.autograd.grad(out, leaves, out.detach())

  steps["values"]["torch"], steps["values and gradients"]["torch"] = values, gradients
  return steps


def block_steps(config: Config) -> dict[str, Callable[[], Any]]:
  """Values and gradients of a block, by its parameters and by what goes in."""
  width, heads = config.width, config.width // 64
  x = np.random.default_rng(0).standard_normal((8, config.block_length, width)).astype(np.float32)
  block = TransformerBlock(MultiHeadAttention(heads, use_bias=True), FeedForward(4 * width, "relu"))
  params = jax.jit(block.init)(jax.random.key(0), x)
  program = jax.jit(jax.value_and_grad(lambda params, x: jnp.sum(jnp.square(block.apply(params, x))), (0, 1)))
  given = jnp.asarray(x)
  steps = {"ours": lambda: jax.block_until_ready(program(params, given))}
  try:
    import torch
  except ImportError:
    return steps
  layer = torch.nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, batch_first=True, norm_first=True)
  leaf = torch.from_numpy(x).requires_grad_()

  def step():
    torch.autograd.grad(layer(leaf).square().sum(), [leaf, *layer.parameters()])

  return {**steps, "torch": step}


def measure(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
  """Milliseconds of each: (least, median) over the rounds."""
  for step in steps.values():
    step()
  times: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(rounds):
    for name, step in steps.items():
      started = time.perf_counter()
      step()
      times[name].append(1e3 * (time.perf_counter() - started))
  return {name: (min(values), statistics.median(values)) for name, values in times.items()}


def measure_memory(config: Config) -> dict[int, dict[str, float]]:
  """{length: {name: MiB beside arguments and results}} of values and gradients."""
  found = {}
  for length in config.memory_lengths:
    shape = jax.ShapeDtypeStruct((config.batch, length, config.heads, config.head_dim), jnp.float32)
    compiled = {
      name: programs["values and gradients"].lower(shape, shape, shape).compile()
      for name, programs in jax_programs(config).items()
    }
    found[length] = {name: x.memory_analysis().temp_size_in_bytes / 2**20 for name, x in compiled.items()}
  return found


def show(title: str, found: dict[str, tuple[float, float]]) -> None:
  print(title)
  for name, (least, median) in found.items():
    ratio = f"{least / found['torch'][0]:.2f} of torch" if "torch" in found else ""
    print(f"{name:>24} {least:>9.1f} {median:>9.1f}  {ratio}")


def main(config: Config) -> int:
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", file=sys.stderr)
  figures: dict[str, Any] = {}
  print(f"milliseconds: {'least':>19} {'median':>9}  the least compared with")
  for length in config.lengths:
    for what, steps in attention_steps(config, length).items():
      figures[f"{length}, {what}"] = found = measure(steps, config.rounds)
      show(f"{length} tokens, {config.batch * config.heads} heads of {config.head_dim}, {what}", found)
  if config.block_length:
    figures["block"] = found = measure(block_steps(config), config.rounds)
    show(f"a block of width {config.width}, 8 x {config.block_length} tokens, values and gradients", found)
  if config.memory_lengths:
    figures["memory"] = memory = measure_memory(config)
    print(f"{'MiB of values, gradients':>24} {'in blocks':>9} {'dense':>9}")
    for length, sizes in memory.items():
      print(f"{length:>24} {sizes['in blocks']:>9.1f} {sizes['dense']:>9.1f}")
  if config.out:
    with open(config.out, "w", encoding="utf-8") as file:
      json.dump(figures, file, indent=2)
  return 0


if __name__ == "__main__":
  run(main, Config)
