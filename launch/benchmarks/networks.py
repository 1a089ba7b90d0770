"""One update of small image networks beside the same networks in torch, as a Markdown table.

  python -m launch.benchmarks.networks
  NPROC=1 MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=4000000000 python -m launch.benchmarks.networks

An update is the forward pass, the gradient of the cross-entropy and SGD with momentum, on random images of 32 x 32. The
two take turns, and medians are printed; with one thread (NPROC=1) the processor's time counts, to which other programs
do little. Torch's networks are in its channels-last format. The two settings keep glibc from giving large arrays back
to the system after each update, for both.
"""

import dataclasses
import time
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import jax
import numpy as np
import optax

from launch.benchmarks.conv import print_table
from mlnotes.engine.errors import require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.sharding import count_cores
from mlnotes.nn.networks import make_network

_CLASSES, _SHAPE = 10, (32, 32, 3)


def make_step(name: str, batch: int):
  """(parameters, an update that carries its own state on and blocks)."""
  network, optimizer = make_network(name, _CLASSES, _SHAPE), optax.sgd(0.01, momentum=0.9)
  rng = np.random.default_rng(0)
  images, labels = rng.normal(size=(batch, *_SHAPE)).astype(np.float32), rng.integers(0, _CLASSES, batch)
  images, labels = jax.device_put((images, labels))
  # Drawn here: compiling the initialisation of forty layers takes a minute.
  shapes = jax.eval_shape(partial(network.init, train=True), jax.random.key(0), images)
  variables = jax.tree.map(lambda a: jax.device_put(0.1 * rng.normal(size=a.shape).astype(a.dtype)), shapes)

  @partial(jax.jit, donate_argnums=0)
  def update(state, images, labels):
    params, statistics, opt_state = state

    def loss(params):
      variables = {"params": params, "batch_stats": statistics}
      logits, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated["batch_stats"]

    gradient, statistics = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), statistics, opt_state

  state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state[0]))

  def step():
    nonlocal state
    state = jax.block_until_ready(update(state, images, labels))

  return parameters, step


def torch_network(name: str):
  """The same network, with as many parameters, in torch."""
  import torch
  from torch import nn

  functional = nn.functional

  def conv_norm_relu(inputs, outputs, window=3, stride=1, groups=1, bias=False):
    conv = nn.Conv2d(inputs, outputs, window, stride, window // 2, groups=groups, bias=bias)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

  def norm_relu_conv(inputs, outputs, window):
    return [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, window, padding=window // 2, bias=False)]

  class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride):
      super().__init__()
      second = conv_norm_relu(outputs, outputs)[:-1]
      self.branch = nn.Sequential(*conv_norm_relu(inputs, outputs, stride=stride), *second)
      self.stride, self.more = stride, outputs - inputs

    def forward(self, x):
      shortcut = x[:, :, :: self.stride, :: self.stride]
      return functional.relu(self.branch(x) + functional.pad(shortcut, (0, 0, 0, 0, 0, self.more)))

  class Dense(nn.Module):
    def __init__(self, inputs, growth):
      super().__init__()
      self.branch = nn.Sequential(*norm_relu_conv(inputs, growth, 3))

    def forward(self, x):
      return torch.cat([x, self.branch(x)], 1)

  if name == "resnet20":
    layers, width = conv_norm_relu(3, 16), 16
    for outputs in (16, 32, 64):
      for _ in range(3):
        layers.append(Residual(width, outputs, 1 + (outputs != width)))
        width = outputs
  elif name == "densenet40":
    layers, width = [nn.Conv2d(3, 16, 3, padding=1, bias=False)], 16
    for block in range(3):
      if block:
        layers += [*norm_relu_conv(width, width, 1), nn.AvgPool2d(2)]
      for _ in range(12):
        layers.append(Dense(width, 12))
        width += 12
    layers += [nn.BatchNorm2d(width), nn.ReLU()]
  else:
    layers, width = conv_norm_relu(3, 40), 40
    for outputs, stride in ((40, 1), (40, 1), (40, 1), (40, 1), (80, 2), (80, 1), (80, 1), (80, 1)):
      layers += [*conv_norm_relu(width, width, 3, stride, width), *conv_norm_relu(width, outputs, 1)]
      width = outputs
  return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, _CLASSES))


NETWORKS = ("resnet20", "densenet40", "separable")


def make_torch_step(name: str, batch: int):
  import torch

  torch.set_num_threads(count_cores())
  network = torch_network(name).to(memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
  images = torch.randn(batch, 3, *_SHAPE[:2]).to(memory_format=torch.channels_last)
  labels = torch.randint(_CLASSES, (batch,))

  def step():
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    optimizer.step()

  return sum(parameter.numel() for parameter in network.parameters()), step


def compare(name: str, batch: int, rounds: int):
  """A row of the table: parameters, milliseconds of an update of both, torch's time over ours."""
  parameters, step = make_step(name, batch)
  steps = {"mlnotes": step}
  if find_spec("torch"):
    theirs, steps["torch"] = make_torch_step(name, batch)
    assert theirs == parameters, f"{name} has {parameters} parameters here and {theirs} in torch"
  clock = time.process_time if count_cores() == 1 else time.perf_counter
  seconds = {which: [] for which in steps}
  for turn in range(rounds + 1):  # the first one compiles
    for which, call in steps.items():
      start = clock()
      call()
      if turn:
        seconds[which].append(clock() - start)
  ours = np.median(seconds["mlnotes"])
  if "torch" not in seconds:
    return name, f"{parameters:,}", f"{1e3 * ours:.1f}", "not installed", ""
  torch = np.median(seconds["torch"])
  return name, f"{parameters:,}", f"{1e3 * ours:.1f}", f"{1e3 * torch:.1f}", f"{torch / ours:.2f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  networks: tuple[str, ...] = field(NETWORKS, "which networks")
  batch_size: int = field(64, "images of an update")
  rounds: int = field(7, "updates of each that count")

  def __post_init__(self):
    super().__post_init__()
    for name in self.networks:
      require(name in NETWORKS, "networks", name, f"some of {', '.join(NETWORKS)}")
    for name in ("batch_size", "rounds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")


def main(config: Config) -> None:
  peer = f", torch {version('torch')}" if find_spec("torch") else ""
  print(f"{jax.devices()[0].device_kind}, {count_cores()} threads, jax {jax.__version__}{peer}\n")
  header = ("network", "parameters", "mlnotes, ms", "torch, ms", "torch / mlnotes")
  print_table(header, (compare(name, config.batch_size, config.rounds) for name in config.networks))


if __name__ == "__main__":
  run(main, Config)
