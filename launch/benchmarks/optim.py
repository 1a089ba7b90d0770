"""Time of one optimizer update by itself, gradients given, next to optax's and, where it is installed, torch's.

  python -m launch.benchmarks.optim
  python -m launch.benchmarks.optim --millions=1 --leaves=100

Parameters and state are donated. The cases take turns, `--rounds` times, so that a busy machine slows all alike; the
least and the median over rounds of the mean over `--updates` updates are printed, and the ratio of the least to that of
the case that it is compared with: what else runs on the machine only ever adds time.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import optax

from mlnotes.engine.errors import require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.optim import adabound, lookahead, scale_by_centred_rms, swats
from mlnotes.optim.flags import OptimConfig, make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  millions: float = field(10.0, "parameters, in millions, > 0")
  leaves: int = field(10, "arrays that they are in")
  updates: int = field(10, "updates of one measurement; a multiple of Lookahead's 5 counts its synchronisations fairly")
  rounds: int = field(15, "measurements of each case")
  out: str = field("", "file for the figures as JSON")

  def __post_init__(self):
    super().__post_init__()
    require(self.millions > 0, "millions", self.millions, "a number above 0")
    for name in ("leaves", "updates", "rounds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")


RATE = 1e-3


def jax_cases() -> dict[str, tuple[optax.GradientTransformation, str]]:
  """{name: (optimizer, the case that it is compared with)}."""
  flags = lambda **given: make_optimizer(OptimConfig(**given), 1000)
  return {
    "optax.sgd with momentum": (optax.sgd(RATE, 0.9), ""),
    "optax.adam": (optax.adam(RATE), ""),
    "optax.amsgrad": (optax.amsgrad(RATE), ""),
    "optax.rmsprop centered": (optax.rmsprop(RATE, centered=True), ""),
    # SWATS needs sums over all parameters in every update, as these two do.
    "optax clip_by_global_norm, adam": (optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE)), ""),
    "optax.lamb": (optax.lamb(RATE), ""),
    "--optimizer=sgd": (flags(optimizer="sgd"), "optax.sgd with momentum"),
    "--optimizer=adam": (flags(optimizer="adam"), "optax.adam"),
    "--optimizer=amsgrad": (flags(optimizer="amsgrad"), "optax.amsgrad"),
    "adabound": (adabound(RATE), "optax.adam"),
    "amsbound": (adabound(RATE, amsbound=True), "optax.amsgrad"),
    "swats": (swats(RATE), "optax clip_by_global_norm, adam"),
    "centred rms": (
      optax.chain(scale_by_centred_rms(), optax.scale_by_learning_rate(RATE)), "optax.rmsprop centered"
    ),
    "lookahead(sgd)": (lookahead(optax.sgd(RATE, 0.9)), "optax.sgd with momentum"),
    "lookahead(adam)": (lookahead(optax.adam(RATE)), "optax.adam"),
  }  # fmt: skip


def make_jax_step(optimizer: optax.GradientTransformation, shape: tuple[int, ...], leaves: int) -> Callable[[], Any]:
  """A function that makes one update in place and waits for it."""
  draw = lambda seed: [0.01 * jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(seed), leaves)]
  params, grads = draw(0), draw(1)

  def update(params, state, grads):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  update = jax.jit(update, donate_argnums=(0, 1))
  held = [params, jax.jit(optimizer.init)(params)]

  def step():
    held[:] = update(*held, grads)
    jax.block_until_ready(held)

  return step


def torch_steps(shape: tuple[int, ...], leaves: int) -> dict[str, Callable[[], Any]]:
  try:
    import torch
  except ImportError:
    return {}
  makers = {
    "torch Adam, fused": lambda params: torch.optim.Adam(params, lr=RATE, fused=True),
    "torch SGD with momentum, fused": lambda params: torch.optim.SGD(params, lr=RATE, momentum=0.9, fused=True),
  }
  steps = {}
  for name, make in makers.items():
    params = [torch.nn.Parameter(0.01 * torch.randn(shape)) for _ in range(leaves)]
    for param in params:
      param.grad = 0.01 * torch.randn(shape)
    steps[name] = make(params).step
  return steps


def measure(steps: dict[str, Callable[[], Any]], updates: int, rounds: int) -> dict[str, tuple[float, float]]:
  """Milliseconds of an update of each: (least, median) over the rounds."""
  for step in steps.values():
    for _ in range(5):
      step()
  times: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(rounds):
    for name, step in steps.items():
      started = time.perf_counter()
      for _ in range(updates):
        step()
      times[name].append(1e3 * (time.perf_counter() - started) / updates)
  return {name: (min(values), statistics.median(values)) for name, values in times.items()}


def main(config: Config) -> int:
  columns = 1000
  rows = max(round(config.millions * 1e6 / config.leaves / columns), 1)
  shape = (rows, columns)
  cases = jax_cases()
  steps = {name: make_jax_step(optimizer, shape, config.leaves) for name, (optimizer, _) in cases.items()}
  steps |= torch_steps(shape, config.leaves)
  found = measure(steps, config.updates, config.rounds)
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, optax {optax.__version__}", file=sys.stderr)
  print(f"{config.leaves} arrays of {rows} x {columns} float32")
  print(f"{'milliseconds of an update':>32} {'least':>7} {'median':>7}  the least compared with")
  for name, (least, median) in found.items():
    other = cases[name][1] if name in cases else ""
    ratio = f"{least / found[other][0]:.2f} of {other}" if other else ""
    print(f"{name:>32} {least:>7.2f} {median:>7.2f}  {ratio}")
  if config.out:
    with open(config.out, "w", encoding="utf-8") as file:
      json.dump(found, file, indent=2)
  return 0


if __name__ == "__main__":
  run(main, Config)
