"""Speed of the convolution's formulations and of a whole ResNet-18 update, as Markdown tables.

  python -m launch.benchmarks.conv
  NPROC=1 python -m launch.benchmarks.conv

Forms: `native` is XLA's convolution, `shifted` a sum of products of shifted images, `patches` one product of all
patches, `convolve` what `mlnotes.nn` uses; of shapes with groups there are the first and the last. Each is timed as a
call of its own, inside a `fori_loop` whose trip count is known only at run time, and vmapped over four kernels. The
forms take turns, and a table holds medians. Where torch is installed it follows, in its channels-last format and on as
many threads: NPROC of them, all without it.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mlnotes.engine.errors import require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.sharding import count_cores
from mlnotes.nn.conv import Conv, convolve
from mlnotes.nn.resnet import ResNet18


class Shape(NamedTuple):
  """One convolution with "SAME" padding: a square image of `size`, `window` x `window` taps."""

  name: str
  batch: int
  size: int
  inputs: int
  outputs: int
  window: int = 3
  stride: int = 1
  groups: int = 1

  def __str__(self) -> str:
    size = f"{self.batch}x{self.size}x{self.size} {self.inputs}->{self.outputs} {self.window}x{self.window}"
    groups = f", {self.groups} groups" if self.groups > 1 else ""
    return f"{self.name} {size}/{self.stride}{groups}"


SHAPES = (
  Shape("UNet", 32, 32, 32, 32),
  Shape("UNet", 128, 8, 64, 64),
  Shape("UNet", 64, 8, 128, 128),
  Shape("ResNet", 32, 32, 3, 64),
  Shape("ResNet", 32, 32, 64, 64),
  Shape("ResNet", 32, 16, 128, 128),
  Shape("ResNet", 32, 8, 256, 256),
  Shape("ResNet", 32, 4, 512, 512),
  Shape("ResNet", 32, 32, 64, 128, stride=2),
  Shape("ResNet", 32, 32, 64, 128, window=1, stride=2),
  Shape("MAML", 25, 28, 1, 64),
  Shape("MAML", 25, 14, 64, 64),
  Shape("MAML", 25, 7, 64, 64),
  Shape("MAML", 5, 3, 64, 64),
  Shape("depthwise", 32, 32, 64, 64, groups=64),
  Shape("depthwise", 32, 32, 64, 64, stride=2, groups=64),
  Shape("depthwise", 32, 16, 128, 128, groups=128),
  Shape("depthwise", 8, 16, 256, 256, groups=256),
  Shape("depthwise", 16, 16, 96, 96, window=7, groups=96),
  Shape("depthwise", 32, 32, 16, 32, groups=16),
  Shape("grouped", 32, 16, 128, 128, groups=2),
  Shape("grouped", 32, 16, 128, 128, groups=8),
  Shape("grouped", 32, 16, 128, 128, groups=32),
  Shape("grouped", 32, 8, 256, 256, groups=32),
  Shape("grouped", 32, 16, 240, 60, window=1, groups=3),
)
MODELS = tuple(dict.fromkeys(shape.name for shape in SHAPES))
_BATCHED_KERNELS = 4
_LOOP_STEPS = 2


def _native(x, kernel, stride, groups):
  dimensions = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), "SAME", dimension_numbers=dimensions, feature_group_count=groups
  )


def _convolve(x, kernel, stride, groups):
  return convolve(x, kernel, stride, feature_group_count=groups)


def _shifted_images(x, window, stride):
  pads = lax.padtype_to_pads(x.shape[1:3], (window, window), (stride, stride), "SAME")
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  high, wide = (size - window + 1 for size in x.shape[1:3])
  for row, column in itertools.product(range(window), repeat=2):
    yield x[:, row : row + high : stride, column : column + wide : stride]


def _shifted(x, kernel, stride, groups):
  taps = kernel.reshape(-1, *kernel.shape[2:])
  return sum(image @ tap for image, tap in zip(_shifted_images(x, kernel.shape[0], stride), taps))


def _patches(x, kernel, stride, groups):
  patches = jnp.concatenate(list(_shifted_images(x, kernel.shape[0], stride)), axis=-1)
  return patches @ kernel.reshape(-1, kernel.shape[-1])


FORMS = {"native": _native, "shifted": _shifted, "patches": _patches, "convolve": _convolve}
_WITH_GROUPS = ("native", "convolve")


def _forward(form, shape):
  return lambda x, kernel, cotangent: (form(x, kernel, shape.stride, shape.groups),)


def _forward_and_backward(form, shape):
  def compute(x, kernel, cotangent):
    y, pullback = jax.vjp(lambda x, kernel: form(x, kernel, shape.stride, shape.groups), x, kernel)
    return (y, *pullback(cotangent))

  return compute


def _in_loop(compute):
  """`compute` repeated with its outputs fed back, so that nothing can be moved out of the loop."""

  def run(x, kernel, cotangent, steps):
    def body(_, carry):
      x, outputs = carry
      first = sum(output.reshape(-1)[:1] for output in outputs)
      x = lax.dynamic_update_slice(x, 1e-6 * first.reshape(1, 1, 1, 1), (0, 0, 0, 0))
      return x, compute(x, kernel, cotangent)

    start = jax.tree.map(lambda aval: jnp.zeros(aval.shape, aval.dtype), jax.eval_shape(compute, x, kernel, cotangent))
    return lax.fori_loop(0, steps, body, (x, start))

  return run


def measure(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
  """Seconds of each call, `repeats` times in turn, after one call that is not counted."""
  for call in calls.values():
    jax.block_until_ready(call())
  seconds = {name: [] for name in calls}
  for _ in range(repeats):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      seconds[name].append(time.perf_counter() - start)
  return {name: np.array(values) for name, values in seconds.items()}


def print_table(header: Sequence[str], rows) -> None:
  """A Markdown table, row by row as the rows come."""
  print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
  for row in rows:
    print(f"| {' | '.join(str(cell) for cell in row)} |", flush=True)
  print()


def torch_calls(shape: Shape, x, kernel, cotangent):
  """Calls of torch's convolution by direction; none where it is not installed."""
  if find_spec("torch") is None:
    return {}
  import torch

  torch.set_num_threads(count_cores())
  x, cotangent = (torch.from_numpy(np.array(array)).permute(0, 3, 1, 2) for array in (x, cotangent))
  pads = lax.padtype_to_pads((shape.size,), (shape.window,), (shape.stride,), "SAME")[0]
  x = torch.nn.functional.pad(x, pads * 2).contiguous(memory_format=torch.channels_last).requires_grad_()
  kernel = torch.from_numpy(np.array(kernel)).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
  kernel.requires_grad_()

  def forward():
    return torch.nn.functional.conv2d(x, kernel, stride=shape.stride, groups=shape.groups)

  return {
    "forward": torch.no_grad()(forward),
    "with gradients": lambda: torch.autograd.grad(forward(), (x, kernel), cotangent),
  }


def compare_forms(shape: Shape, forms: Sequence[str], repeats: int, native_in_loop: bool):
  """Yields a table's rows: milliseconds of each form for one shape."""
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (shape.batch, shape.size, shape.size, shape.inputs))
  kernel = jax.random.normal(keys[1], (shape.window, shape.window, shape.inputs // shape.groups, shape.outputs))
  output = jax.eval_shape(partial(_native, stride=shape.stride, groups=shape.groups), x, kernel)
  cotangent = jax.random.normal(keys[2], output.shape)
  forms = [name for name in forms if shape.groups == 1 or name in _WITH_GROUPS]
  stacked = tuple(jnp.stack([value] * _BATCHED_KERNELS) for value in (x, kernel, cotangent))
  for direction, make in (("forward", _forward), ("with gradients", _forward_and_backward)):
    calls = {}
    for name in forms:
      compute = make(FORMS[name], shape)
      calls[name, "call"] = partial(jax.jit(compute), x, kernel, cotangent)
      fast = native_in_loop or name != "native" or direction == "forward"
      if fast:
        calls[name, "loop"] = partial(jax.jit(_in_loop(compute)), x, kernel, cotangent, _LOOP_STEPS)
      if fast or shape.groups == 1:
        calls[name, "vmap"] = partial(jax.jit(jax.vmap(compute)), *stacked)
    seconds = {key: 1e3 * np.median(values) for key, values in measure(calls, repeats).items()}
    for name in forms:
      loop = seconds.get((name, "loop"), np.nan) / _LOOP_STEPS
      yield (
        str(shape),
        direction,
        name,
        f"{seconds[name, 'call']:.2f}",
        f"{loop:.2f}",
        f"{seconds.get((name, 'vmap'), np.nan) / _BATCHED_KERNELS:.2f}",
      )
    # After the others, because its idle threads take theirs their time.
    for name, call in torch_calls(shape, x, kernel, cotangent).items():
      if name == direction:
        milliseconds = 1e3 * np.median(measure({name: call}, repeats)[name])
        yield str(shape), direction, "torch", f"{milliseconds:.2f}", "", ""


def make_step(conv: Callable[..., nn.Module], images: jax.Array, labels: jax.Array):
  """(start, step): one update of a CIFAR ResNet-18 by cross-entropy and SGD with momentum, `step(state) -> state`."""
  model, optimizer = ResNet18(num_classes=10, conv=conv), optax.sgd(0.1, momentum=0.9)

  def step(state):
    params, statistics, opt_state = state

    def loss(params):
      variables = {"params": params, "batch_stats": statistics}
      logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return jnp.mean(losses), updated["batch_stats"]

    gradient, statistics = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), statistics, opt_state

  variables = jax.jit(partial(model.init, train=True))(jax.random.key(0), images)
  return (variables["params"], variables["batch_stats"], optimizer.init(variables["params"])), step


def torch_step(batch: int) -> Callable[[], None]:
  """One update of the same network by torch, in its channels-last format."""
  import torch

  torch.set_num_threads(count_cores())

  def convolution(inputs, outputs, window, stride):
    layer = torch.nn.Conv2d(inputs, outputs, window, stride, window // 2, bias=False)
    return torch.nn.Sequential(layer, torch.nn.BatchNorm2d(outputs))

  class Block(torch.nn.Module):
    def __init__(self, inputs, outputs, stride):
      super().__init__()
      relu = torch.nn.ReLU()
      self.branch = torch.nn.Sequential(
        convolution(inputs, outputs, 3, stride), relu, convolution(outputs, outputs, 3, 1)
      )
      self.shortcut = torch.nn.Identity() if inputs == outputs else convolution(inputs, outputs, 1, stride)

    def forward(self, x):
      return torch.relu(self.branch(x) + self.shortcut(x))

  widths = (64, 64, 128, 256, 512)
  blocks = [
    block
    for inputs, outputs in itertools.pairwise(widths)
    for block in (Block(inputs, outputs, 1 + (inputs != outputs)), Block(outputs, outputs, 1))
  ]
  head = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(512, 10))
  model = torch.nn.Sequential(convolution(3, 64, 3, 1), torch.nn.ReLU(), *blocks, *head)
  model = model.to(memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
  images = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
  labels = torch.randint(10, (batch,))

  def step():
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()

  return step


def compare_steps(batch: int, repeats: int, native_in_loop: bool):
  """Yields a table's rows: images per second of whole updates."""
  keys = jax.random.split(jax.random.key(0))
  images = jax.random.normal(keys[0], (batch, 32, 32, 3))
  labels = jax.random.randint(keys[1], (batch,), 0, 10)
  calls, compile_seconds = {}, {}
  for name, conv in (("flax.linen.Conv", nn.Conv), ("mlnotes.nn.Conv", Conv)):
    start, step = make_step(conv, images, labels)
    began = time.perf_counter()
    compiled = jax.jit(step).lower(start).compile()
    compile_seconds[name] = time.perf_counter() - began

    def dispatch(compiled=compiled, start=start):
      state = start
      for _ in range(_LOOP_STEPS):
        state = compiled(state)
      return state

    calls[name, "python"] = dispatch
    if native_in_loop or conv is Conv:
      loop = jax.jit(lambda state, steps, step=step: lax.fori_loop(0, steps, lambda _, s: step(s), state))
      calls[name, "loop"] = partial(loop, start, _LOOP_STEPS)
  seconds = measure(calls, repeats)
  for name in compile_seconds:
    python, loop = seconds[name, "python"], seconds.get((name, "loop"), np.full(repeats, np.nan))
    rate = [f"{_LOOP_STEPS * batch / np.median(values):.1f}" for values in (python, loop)]
    yield name, f"{compile_seconds[name]:.1f}", *rate, f"{np.median(python / loop):.2f}"
  if find_spec("torch"):
    seconds = measure({"torch": torch_step(batch)}, repeats)["torch"]
    yield "torch.nn.Conv2d", "", f"{batch / np.median(seconds):.1f}", "", ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  forms: tuple[str, ...] = field(tuple(FORMS), "forms to compare; empty: none")
  models: tuple[str, ...] = field(MODELS, "whose shapes to time")
  batch_size: int = field(64, "images in a whole update; 0 leaves whole updates out")
  repeats: int = field(5, "times that each form is timed")
  native_in_loop: bool = field(
    False, "also time the native gradient in a loop and, of groups, vmapped: on the CPU, minutes"
  )

  def __post_init__(self):
    super().__post_init__()
    for name, known in (("forms", FORMS), ("models", MODELS)):
      for value in getattr(self, name):
        require(value in known, name, value, f"some of {', '.join(known)}")
    require(self.batch_size >= 0, "batch_size", self.batch_size, "0 or more")
    require(self.repeats >= 1, "repeats", self.repeats, "1 or more")


def main(config: Config) -> None:
  device = jax.devices()[0]
  peer = f", torch {version('torch')}" if find_spec("torch") else ""
  print(f"{device.platform} ({device.device_kind}), {count_cores()} threads, jax {jax.__version__}{peer}\n")
  if config.forms:
    header = ("convolution", "direction", "form", "call, ms", "in a loop, ms", "vmapped, ms per kernel")
    shapes = [shape for shape in SHAPES if shape.name in config.models]
    compare = partial(compare_forms, forms=config.forms, repeats=config.repeats, native_in_loop=config.native_in_loop)
    print_table(header, itertools.chain.from_iterable(map(compare, shapes)))
  if config.batch_size:
    print(f"ResNet-18, {config.batch_size} images of 32x32, one update:\n")
    header = ("convolution", "compile, s", "images/s called from Python", "images/s in a loop", "loop / Python")
    print_table(header, compare_steps(config.batch_size, config.repeats, config.native_in_loop))


if __name__ == "__main__":
  run(main, Config)
