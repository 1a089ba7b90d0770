"""Meta-updates per second of the four-block network, and the memory that inner steps take.

  python -m launch.benchmarks.meta                                    tasks per second, 1 and 15 queries per class
  python -m launch.benchmarks.meta --peer=torch                       beside torch.func, in turns
  python -m launch.benchmarks.meta --memory                           second order, first order, rematerialised

An update is the outer gradient of a batch of tasks and Adam. Images are random. Memory is what the compiled gradient
needs beside its arguments and results, as the compiler reports it: exact, and the same in every run.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlnotes.engine.errors import require
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.loop import enable_compilation_cache
from mlnotes.meta import Conv4, Task, make_classifier, meta_loss
from mlnotes.meta.method import mean_over_chunks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  memory: bool = field(False, "report compiled memory instead of time")
  peer: Literal["none", "torch"] = field("none", "torch: a torch.func version of the same update takes turns")
  tasks: int = field(8, "tasks per update")
  side_by_side: int = field(1, "of which so many are computed at once; 0: all")
  ways: int = field(5, "classes of an episode")
  shots: int = field(1, "support images per class")
  queries: tuple[int, ...] = field((1, 15), "query images per class")
  inner_steps: tuple[int, ...] = field((1, 5, 10), "for --memory; timings take one step")
  width: int = field(64, "channels")
  image_size: int = field(28, "pixels a side")
  repeats: int = field(7, "measurements of each row")
  out: str = field("", "file for the figures as JSON")

  def __post_init__(self):
    super().__post_init__()
    for name in ("tasks", "ways", "shots", "width", "image_size", "repeats"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("queries", "inner_steps"):
      values = getattr(self, name)
      require(bool(values) and min(values) >= 1, name, values, "numbers of 1 or more")
    chunk = self.side_by_side
    fits = chunk == 0 or (chunk > 0 and self.tasks % chunk == 0)
    require(fits, "side_by_side", chunk, f"0 or a divisor of --tasks={self.tasks}")

  def idle_flags(self):
    memory = dict.fromkeys(("peer", "repeats"), "--memory times nothing")
    return super().idle_flags() | (memory if self.memory else {"inner_steps": "timings take one step"})


def random_tasks(config: Config, queries: int) -> Task:
  """Numbered images of each class are its prototype with noise, so that there is something to learn."""
  rng = np.random.default_rng(0)
  shape = (config.tasks, config.ways, 1, config.image_size, config.image_size, 1)
  prototype = rng.random(shape, dtype=np.float32)

  def side(count):
    image = prototype + 0.3 * rng.random((*shape[:2], count, *shape[3:]), dtype=np.float32)
    label = np.repeat(np.arange(config.ways, dtype=np.int32), count)
    return {"image": image.reshape(config.tasks, -1, *shape[3:]), "label": np.tile(label, (config.tasks, 1))}

  return Task(side(config.shots), side(queries))


def outer_gradient(config: Config, steps: int, **options: Any) -> Callable:
  """(params, tasks) -> (mean query loss, gradient)."""
  learner, inner = make_classifier(Conv4(config.ways, config.width), "transductive"), optax.sgd(0.4)

  def one(params, task):
    return meta_loss(learner.support_loss, params, task, inner, steps, query_loss_fn=learner.query_loss, **options)[0]

  def gradient(params, tasks):
    mean = lambda params, tasks: jnp.mean(jax.vmap(one, (None, 0))(params, tasks))
    return mean_over_chunks(lambda some: jax.value_and_grad(mean)(params, some), tasks, config.side_by_side)

  return gradient


def init_params(config: Config) -> Any:
  image = jnp.zeros((1, config.image_size, config.image_size, 1))
  return Conv4(config.ways, config.width).init(jax.random.key(0), image, True)["params"]


def make_jax_update(config: Config, queries: int) -> Callable[[], float]:
  optimizer, gradient = optax.adam(1e-3), outer_gradient(config, 1)

  @jax.jit
  def update(params, state, tasks):
    loss, grads = gradient(params, tasks)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  params = init_params(config)
  carry, tasks = [params, optimizer.init(params)], jax.tree.map(jnp.asarray, random_tasks(config, queries))

  def call():
    *carry[:], loss = update(*carry, tasks)
    return float(loss)

  return call


def make_torch_update(config: Config, queries: int) -> Callable[[], float]:
  """The same update by torch.func, one task after the other: its `vmap` is far slower on a CPU."""
  import torch
  from torch.nn.functional import cross_entropy

  def block(inputs):
    norm = torch.nn.BatchNorm2d(config.width, track_running_stats=False)
    convolution = torch.nn.Conv2d(inputs, config.width, 3, padding=1)
    return torch.nn.Sequential(convolution, norm, torch.nn.ReLU(), torch.nn.MaxPool2d(2))

  features = config.width * max(config.image_size // 16, 1) ** 2
  blocks = [block(1 if i == 0 else config.width) for i in range(4)]
  network = torch.nn.Sequential(*blocks, torch.nn.Flatten(), torch.nn.Linear(features, config.ways))
  optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
  to_torch = lambda x: torch.tensor(np.moveaxis(x, -1, 2) if x.ndim == 5 else x)
  support, query = ({name: to_torch(x) for name, x in side.items()} for side in random_tasks(config, queries))

  def loss(params, data, i):
    return cross_entropy(torch.func.functional_call(network, params, (data["image"][i],)), data["label"][i].long())

  def call():
    optimizer.zero_grad()
    params, total = dict(network.named_parameters()), 0.0
    for i in range(config.tasks):
      grads = torch.func.grad(loss)(params, support, i)
      total = total + loss({name: p - 0.4 * grads[name] for name, p in params.items()}, query, i) / config.tasks
    total.backward()
    optimizer.step()
    return total.item()

  return call


def measure_speed(config: Config) -> list[dict[str, Any]]:
  rows = []
  for queries in config.queries:
    calls = {"mlnotes": make_jax_update(config, queries)}
    if config.peer == "torch":
      calls["torch.func"] = make_torch_update(config, queries)
    for call in calls.values():
      call(), call()
    seconds = {name: [] for name in calls}
    for _ in range(config.repeats):
      for name, call in calls.items():
        start = time.perf_counter()
        call()
        seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
      rate = config.tasks / statistics.median(values)
      rows.append({"name": name, "queries": queries, "tasks_per_second": rate, "seconds": values})
      spread = f"{config.tasks / max(values):.1f} to {config.tasks / min(values):.1f}"
      print(f"{queries:>3} queries  {name:<11} {rate:8.1f} tasks/s ({spread})", flush=True)
  return rows


MODES = {
  "second order": {},
  "second order, remat": {"remat": True},
  "first order": {"first_order": True},
}


def measure_memory(config: Config) -> list[dict[str, Any]]:
  """One row per number of inner steps and mode; parameters and tasks are arguments and do not count."""
  params, rows = init_params(config), []
  for queries in config.queries:
    tasks = random_tasks(config, queries)
    for steps in config.inner_steps:
      for mode, options in MODES.items():
        compiled = jax.jit(outer_gradient(config, steps, **options)).lower(params, tasks).compile()
        row = {"queries": queries, "inner_steps": steps, "mode": mode}
        row["temporary_bytes"] = compiled.memory_analysis().temp_size_in_bytes
        rows.append(row)
        mebibytes = row["temporary_bytes"] / 2**20
        print(f"{queries:>3} queries  {steps:>3} inner steps  {mode:<20} {mebibytes:8.1f} MiB", flush=True)
  return rows


def main(config: Config) -> int:
  enable_compilation_cache()
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", file=sys.stderr)
  rows = (measure_memory if config.memory else measure_speed)(config)
  if config.out:
    Path(config.out).write_text(json.dumps(rows, indent=2), encoding="utf-8")
  return 0


if __name__ == "__main__":
  run(main, Config)
