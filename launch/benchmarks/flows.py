"""One update of normalizing flows beside normflows' in torch, as a Markdown table.

  python -m launch.benchmarks.flows
  python -m launch.benchmarks.flows --peer=normflows                        # in turns: pip install normflows
  NPROC=1 python -m launch.benchmarks.flows --peer=normflows

An update is log p of a batch under a standard normal of z, its gradient, and Adam. The flows have the same layers and
as many parameters, and begin with the same loss, which is checked. `realnvp` has affine couplings of channels on images
of 28 x 28 that are squeezed twice, `glow` steps of an actnorm, a 1 x 1 convolution by LU and a coupling on images
squeezed once, `vectors` couplings of halves of 64 numbers. Medians; with one thread the processor's time counts.
"""

import dataclasses
import time
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from launch.benchmarks.conv import print_table
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.sharding import count_cores
from mlnotes.generative.flow_layers import ActNorm, Bijection, Chain, ChannelCoupling, InvertibleLinear, Squeeze
from mlnotes.generative.flow_networks import ConvConditioner, DenseConditioner, FlowModel

FLOWS = ("realnvp", "glow", "vectors")
_COUPLINGS, _IMAGE, _DIMS = 4, (28, 28, 1), 64


def make_flow(name: str, width: int) -> tuple[Bijection, tuple[int, ...]]:
  """(the flow, the shape of what it models)."""
  if name == "vectors":
    halves = lambda i: ChannelCoupling(DenseConditioner(_DIMS, width, 2), "tanh", flip=bool(i % 2))
    return Chain(tuple(halves(i) for i in range(2 * _COUPLINGS))), (_DIMS,)
  coupling = lambda channels, i, scale: ChannelCoupling(
    ConvConditioner(channels, width, 1), scale, flip=scale == "tanh" and bool(i % 2)
  )
  if name == "realnvp":
    couplings = lambda channels: [coupling(channels, i, "tanh") for i in range(_COUPLINGS)]
    return Chain((Squeeze(), *couplings(4), Squeeze(), *couplings(16))), _IMAGE
  steps = [layer for i in range(_COUPLINGS) for layer in (ActNorm(), InvertibleLinear(), coupling(4, i, "sigmoid"))]
  return Chain((Squeeze(), *steps)), _IMAGE


def make_step(name: str, width: int, x: np.ndarray) -> tuple[int, Any]:
  """(parameters, an update that carries its own state on, blocks and gives the loss before it)."""
  network, shape = make_flow(name, width)
  model, optimizer = FlowModel(network, shape), optax.adam(1e-3)
  x = jnp.asarray(x)
  fixed = dict(jax.jit(model.init)(jax.random.key(0), x))
  params = fixed.pop("params")

  @partial(jax.jit, donate_argnums=0)
  def update(state, x):
    params, opt_state = state
    mean_loss = lambda params: -jnp.mean(model.log_density({"params": params, **fixed}, x))
    loss, gradient = jax.value_and_grad(mean_loss)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return (optax.apply_updates(params, updates), opt_state), loss

  state = (params, optimizer.init(params))
  count = sum(leaf.size for leaf in jax.tree.leaves(params))

  def step():
    nonlocal state
    state, loss = jax.block_until_ready(update(state, x))
    return float(loss)

  return count, step


def torch_conditioner(inputs: int, outputs: int, width: int, image: bool, bounded: bool):
  """`ConvConditioner` or `DenseConditioner` as normflows wants it: shifts and log-scales take turns; tanh inside."""
  import torch
  from torch import nn

  class Residual(nn.Module):
    def __init__(self):
      super().__init__()
      self.branch = nn.Sequential(
        nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
      )

    def forward(self, x):
      return x + self.branch(x)

  class Conditioner(nn.Module):
    def __init__(self):
      super().__init__()
      if image:
        last = nn.Conv2d(width, outputs, 3, padding=1)
        layers = [nn.Conv2d(inputs, width, 3, padding=1), Residual(), nn.ReLU(), last]
      else:
        last = nn.Linear(width, outputs)
        layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last]
      nn.init.zeros_(last.weight)
      nn.init.zeros_(last.bias)
      self.layers = nn.Sequential(*layers)
      self.bound = nn.Parameter(torch.ones(())) if bounded else None

    def forward(self, x):
      shift, scale = self.layers(x).chunk(2, 1)
      scale = scale if self.bound is None else self.bound * torch.tanh(scale)
      return torch.stack((shift, scale), 2).flatten(1, 2)

  return Conditioner()


def torch_flow(name: str, width: int):
  """The same flow of normflows' layers; they are listed from z to x."""
  import normflows as nf
  import torch

  def coupling(channels, i, scale, image=True):
    mode = "channel_inv" if scale == "exp" and i % 2 else "channel"
    network = torch_conditioner(channels // 2, channels, width, image, scale == "exp")
    return nf.flows.AffineCouplingBlock(network, scale_map=scale, split_mode=mode)

  if name == "vectors":
    layers, base = [coupling(_DIMS, i, "exp", False) for i in range(2 * _COUPLINGS)], (_DIMS,)
  elif name == "realnvp":
    couplings = lambda channels: [coupling(channels, i, "exp") for i in range(_COUPLINGS)]
    layers, base = [*couplings(16), nf.flows.Squeeze(), *couplings(4), nf.flows.Squeeze()], (16, 7, 7)
  else:
    step = lambda i: [
      coupling(4, i, "sigmoid"),
      nf.flows.Invertible1x1Conv(4, use_lu=True),
      nf.flows.ActNorm((4, 1, 1)),
    ]
    layers, base = [*(layer for i in range(_COUPLINGS) for layer in step(i)), nf.flows.Squeeze()], (4, 14, 14)
  return nf.NormalizingFlow(nf.distributions.DiagGaussian(base, trainable=False), layers), torch


def make_torch_step(name: str, width: int, x: np.ndarray) -> tuple[int, Any]:
  model, torch = torch_flow(name, width)
  torch.set_num_threads(count_cores())
  images = torch.from_numpy(x if x.ndim == 2 else np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
  model.forward_kld(images)  # starts the actnorms
  optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

  def step():
    optimizer.zero_grad()
    loss = model.forward_kld(images)
    loss.backward()
    optimizer.step()
    return float(loss.detach())

  return sum(parameter.numel() for parameter in model.parameters()), step


def compare(name: str, config: "Config") -> tuple[str, ...]:
  """A row of the table: parameters, milliseconds of an update of both, normflows' time over ours."""
  shape = (_DIMS,) if name == "vectors" else _IMAGE
  x = np.random.default_rng(0).normal(size=(config.batch_size, *shape)).astype(np.float32)
  parameters, step = make_step(name, config.width, x)
  steps = {"mlnotes": step}
  if config.peer == "normflows":
    _theirs, steps["normflows"] = make_torch_step(name, config.width, x)
  clock = time.process_time if count_cores() == 1 else time.perf_counter
  seconds, first = {which: [] for which in steps}, {}
  for turn in range(config.rounds + 1):  # the first one compiles
    for which, call in steps.items():
      start = clock()
      loss = call()
      if turn:
        seconds[which].append(clock() - start)
      else:
        first[which] = loss
  ours = np.median(seconds["mlnotes"])
  if "normflows" not in seconds:
    return name, f"{parameters:,}", f"{1e3 * ours:.1f}", "not measured", ""
  if not np.isclose(first["mlnotes"], first["normflows"], rtol=1e-2):
    raise AssertionError(f"{name} begins at {first['mlnotes']} here and at {first['normflows']} in normflows")
  theirs = np.median(seconds["normflows"])
  return name, f"{parameters:,}", f"{1e3 * ours:.1f}", f"{1e3 * theirs:.1f}", f"{theirs / ours:.2f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  flows: tuple[str, ...] = field(FLOWS, "which flows")
  batch_size: int = field(64, "examples of an update")
  width: int = field(32, "channels or units of a coupling's network")
  rounds: int = field(15, "updates of each that count")
  peer: Literal["none", "normflows"] = field("none", "normflows: the same flow in torch takes turns")

  def __post_init__(self):
    super().__post_init__()
    for name in self.flows:
      require(name in FLOWS, "flows", name, f"some of {', '.join(FLOWS)}")
    for name in ("batch_size", "width", "rounds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")


def main(config: Config) -> None:
  if config.peer == "normflows" and not (find_spec("normflows") and find_spec("torch")):
    raise InputError("--peer=normflows needs torch and normflows, which are not installed.")
  peer = f", normflows {version('normflows')}, torch {version('torch')}" if config.peer == "normflows" else ""
  print(f"{jax.devices()[0].device_kind}, {count_cores()} threads, jax {jax.__version__}{peer}\n")
  header = ("flow", "parameters", "mlnotes, ms", "normflows, ms", "normflows / mlnotes")
  print_table(header, (compare(name, config) for name in config.flows))


if __name__ == "__main__":
  run(main, Config)
