"""Tokens a second of a GPT-2 that trains and that writes, next to nanoGPT's model in torch and transformers' generate.

  python -m launch.benchmarks.language                                       # ours, on whatever device there is
  python -m launch.benchmarks.language --peer                                # and torch's, in turns
  python -m launch.benchmarks.language --sizes=124m --precision=bfloat16 --peer --generate=124m

Updates are of AdamW at a norm clipped to 1, on windows of random tokens that lie on the device; the network is
`make_gpt2`, the gradient `compute_gradients`', both as `experiments.lm.pretrain` has them. MFU is the share of the
device's peak that 6 N + 12 L D T operations a token are, N the parameters without positions (Chowdhery et al. 2022,
appendix B; nanoGPT counts alike). The peer has torch's fused attention and AdamW; on a GPU also autocast and
torch.compile. All take turns, `--rounds` times; the median of the rounds counts.
"""

import dataclasses
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from launch.flops import find_peak
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import root_key
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.layout import Layout, choose_layout
from mlnotes.engine.loop import enable_compilation_cache
from mlnotes.engine.sharding import make_mesh
from mlnotes.lm import causal_objective, compute_gradients, generate, make_gpt2
from mlnotes.optim.flags import OptimConfig, make_optimizer


class Size(NamedTuple):
  depth: int
  heads: int
  width: int
  vocabulary: int
  length: int
  batch: int


SIZES = {
  "smoke": Size(2, 2, 32, 65, 16, 4),
  "cpu": Size(4, 4, 128, 65, 64, 12),  # nanoGPT's form for a laptop
  "characters": Size(6, 6, 384, 65, 256, 64),  # nanoGPT's form of tiny Shakespeare on a GPU
  "124m": Size(12, 12, 768, 50304, 1024, 32),
  "350m": Size(24, 16, 1024, 50304, 1024, 16),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  sizes: tuple[str, ...] = field(("cpu",), f"networks to train: {', '.join(SIZES)}; empty: none")
  batch: int = field(0, "windows of an update; 0: the size's own")
  precision: str = field("float32", "arithmetic of the network, float32 or bfloat16; parameters are float32")
  chunks: int = field(1, "parts of the tokens whose logits are made one after the other")
  remat: bool = field(False, "compute each block again backward")
  peer: bool = field(False, "measure torch as well")
  compile: bool = field(True, "torch.compile, on a GPU")
  generate: tuple[str, ...] = field((), "networks to write with; empty: none")
  prompts: int = field(8, "prompts at once")
  prompt: int = field(64, "tokens of a prompt, at most half of the size's length")
  count: int = field(128, "tokens that are written behind each, cut to what fits")
  rounds: int = field(5, "measurements of each case")
  seconds: float = field(2.0, "about how long a measurement of training takes")
  out: str = field("", "file for the figures as JSON")

  def __post_init__(self):
    super().__post_init__()
    for name in ("sizes", "generate"):
      known = all(size in SIZES for size in getattr(self, name))
      require(known, name, getattr(self, name), f"some of {', '.join(SIZES)}")
    require(self.precision in ("float32", "bfloat16"), "precision", self.precision, "float32 or bfloat16")
    for name in ("chunks", "prompts", "prompt", "count", "rounds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.batch >= 0, "batch", self.batch, "0 or more")
    require(self.seconds > 0, "seconds", self.seconds, "a number above 0")

  def cpu_layout(self, cores: int) -> Layout:
    """Training has the layout of `lm.pretrain`, writing that of `lm.generate`; together that of the latter."""
    batches = {size_of(self, name).batch for name in self.sizes}
    if self.generate or not batches:
      return Layout(1, cores)
    return choose_layout(1, cores, fills_cores=False, batch_size=math.gcd(*batches))


# Something that works `count` times and waits for the end of it.
Step = Callable[[int], Any]


# -- training ----------------------------------------------------------------------------------------------------------


def size_of(config: Config, name: str) -> Size:
  return SIZES[name]._replace(batch=config.batch or SIZES[name].batch)


def draw(size: Size) -> np.ndarray:
  return np.random.default_rng(0).integers(0, size.vocabulary, (size.batch, size.length + 1)).astype(np.int32)


def our_model(config: Config, size: Size):
  vocabulary, length, sizes = size.vocabulary, size.length, (size.depth, size.heads, size.width)
  return make_gpt2(vocabulary, length, *sizes, remat=config.remat, dtype=jnp.dtype(config.precision))


def our_training(config: Config, size: Size) -> tuple[Step, int]:
  """(updates, parameters that count)."""
  objective = causal_objective(our_model(config, size), config.chunks)
  settings = OptimConfig(optimizer="adamw", learning_rate=6e-4, weight_decay=0.1, beta2=0.95, clip_norm=1.0)
  optimizer = make_optimizer(settings, 1000)

  def init(key, tokens):
    params = objective.init(key, {"tokens": tokens})
    return params, optimizer.init(params)

  def update(carry, tokens, key):
    params, opt_state = carry
    grads, metrics = compute_gradients(objective, params, {"tokens": tokens}, key)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), metrics["loss"]

  mesh, key = make_mesh(), root_key(0)
  tokens = jax.device_put(draw(size), NamedSharding(mesh, PartitionSpec("data")))
  began = time.perf_counter()
  carry = jax.jit(init, out_shardings=NamedSharding(mesh, PartitionSpec()))(key, tokens)
  weights = sum(x.size for x in jax.tree.leaves(carry[0])) - carry[0]["positions"]["embedding"].size
  program = jax.jit(update, donate_argnums=0).lower(carry, tokens, key).compile()
  need = program.memory_analysis()
  print(
    f"ours: compiled in {time.perf_counter() - began:.0f} s, {need.temp_size_in_bytes / 2**30:.2f} GiB temporary",
    file=sys.stderr,
  )

  def step(count: int) -> float:
    nonlocal carry
    for _ in range(count):
      carry, loss = program(carry, tokens, key)
    return float(loss)

  return step, weights


def torch_training(config: Config, size: Size) -> Step:
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
  model = make_torch_gpt2(size).to(device)
  matrices = [p for p in model.parameters() if p.dim() >= 2]
  others = [p for p in model.parameters() if p.dim() < 2]
  groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
  optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
  forward = torch.compile(model) if device == "cuda" and config.compile else model
  tokens = torch.from_numpy(draw(size)).long().to(device)
  half = config.precision == "bfloat16"

  def step(count: int) -> float:
    for _ in range(count):
      with torch.autocast(device, torch.bfloat16, enabled=half):
        loss = forward(tokens[:, :-1], tokens[:, 1:])
      loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
      optimizer.zero_grad(set_to_none=True)
    return loss.item()

  return step


def make_torch_gpt2(size: Size):
  """nanoGPT's network: one matrix for queries, keys and values, a tied head."""
  import torch
  from torch import nn

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norms = nn.ModuleList([nn.LayerNorm(size.width) for _ in range(2)])
      self.project, self.out = nn.Linear(size.width, 3 * size.width), nn.Linear(size.width, size.width)
      self.widen, self.narrow = nn.Linear(size.width, 4 * size.width), nn.Linear(4 * size.width, size.width)

    def forward(self, x):
      heads = self.project(self.norms[0](x)).split(size.width, -1)
      heads = [h.view(*h.shape[:2], size.heads, -1).transpose(1, 2) for h in heads]
      found = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
      x = x + self.out(found.transpose(1, 2).reshape(x.shape))
      return x + self.narrow(nn.functional.gelu(self.widen(self.norms[1](x)), approximate="tanh"))

  class GPT2(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed, self.places = nn.Embedding(size.vocabulary, size.width), nn.Embedding(size.length, size.width)
      self.blocks = nn.ModuleList([Block() for _ in range(size.depth)])
      self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, size.vocabulary, bias=False)
      self.head.weight = self.embed.weight
      self.apply(
        lambda layer: hasattr(layer, "weight") and layer.weight.dim() > 1 and nn.init.normal_(layer.weight, 0, 0.02)
      )

    def forward(self, tokens, asked):
      x = self.embed(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
      for block in self.blocks:
        x = block(x)
      return nn.functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), asked.flatten())

  torch.manual_seed(0)
  return GPT2()


# -- writing -----------------------------------------------------------------------------------------------------------


def fit(config: Config, size: Size) -> tuple[int, int]:
  """(tokens of a prompt, tokens behind it)."""
  prompt = min(config.prompt, size.length // 2)
  return prompt, min(config.count, size.length - prompt)


def our_writing(config: Config, size: Size) -> Step:
  model, (prompt, count) = our_model(config, size), fit(config, size)
  prompts = jnp.asarray(draw(size._replace(batch=config.prompts, length=prompt - 1)))
  variables = jax.jit(model.init)(root_key(0), prompts)
  variables = jax.tree.map(lambda x: x.astype(config.precision), variables)
  program = jax.jit(lambda variables, prompts: generate(model, variables, prompts, count=count).tokens)
  return lambda times: [jax.block_until_ready(program(variables, prompts)) for _ in range(times)]


def their_writing(config: Config, size: Size) -> Step:
  import torch
  from transformers import GPT2Config, GPT2LMHeadModel

  device = "cuda" if torch.cuda.is_available() else "cpu"
  prompt, count = fit(config, size)
  settings = GPT2Config(
    vocab_size=size.vocabulary, n_positions=size.length, n_embd=size.width, n_layer=size.depth, n_head=size.heads,
    bos_token_id=0, eos_token_id=None, pad_token_id=0,
  )  # fmt: skip
  model = GPT2LMHeadModel(settings).eval().to(device, getattr(torch, config.precision))
  prompts = torch.from_numpy(draw(size._replace(batch=config.prompts, length=prompt - 1))).long().to(device)

  def step(times: int) -> None:
    with torch.no_grad():
      for _ in range(times):
        found = model.generate(
          prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=count,
          min_new_tokens=count, use_cache=True,
        )  # fmt: skip
        assert found.shape[1] == prompt + count and found[0, -1].item() >= 0

  return step


# -- measuring and telling ---------------------------------------------------------------------------------------------


def take_turns(steps: dict[str, Step], counts: dict[str, int], rounds: int) -> dict[str, list[float]]:
  """Seconds of one step, `rounds` times, the programs in turns."""
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(rounds):
    for name, step in steps.items():
      began = time.perf_counter()
      step(counts[name])
      seconds[name].append((time.perf_counter() - began) / counts[name])
  return seconds


def warm_up(steps: dict[str, Step], seconds: float) -> dict[str, int]:
  """How many steps of each take about so long, after the first, which compiles."""
  counts = {}
  for name, step in steps.items():
    began = time.perf_counter()
    step(1)
    first, began = time.perf_counter() - began, time.perf_counter()
    step(2)
    each = (time.perf_counter() - began) / 2
    print(f"{name}: first step in {first:.0f} s, then {1e3 * each:.1f} ms", file=sys.stderr, flush=True)
    counts[name] = max(1, round(seconds / each))
  return counts


def measure_training(config: Config, name: str) -> dict[str, Any]:
  size = size_of(config, name)
  ours, weights = our_training(config, size)
  steps = {"mlnotes": ours}
  if config.peer:
    steps["torch"] = torch_training(config, size)
  seconds = take_turns(steps, warm_up(steps, config.seconds), config.rounds)
  tokens, peak = size.batch * size.length, find_peak(jax.devices(), config.precision)
  each = 6 * weights + 12 * size.depth * size.width * size.length
  figures: dict[str, Any] = {"size": name, **size._asdict(), "parameters": weights, "flops_per_token": each}
  for which, found in seconds.items():
    rate = tokens / statistics.median(found)
    used = rate * each / peak.flops_per_second if peak.flops_per_second else None
    figures[which] = {"tokens_per_second": rate, "mfu": used, "step_seconds": found}
  return figures


def measure_writing(config: Config, name: str) -> dict[str, Any]:
  size = SIZES[name]
  steps = {"mlnotes": our_writing(config, size)} | (
    {"transformers": their_writing(config, size)} if config.peer else {}
  )
  warm_up(steps, 1.0)
  seconds = take_turns(steps, dict.fromkeys(steps, 1), config.rounds)
  written = config.prompts * fit(config, size)[1]
  rates = {which: {"tokens_per_second": written / statistics.median(found)} for which, found in seconds.items()}
  return {
    "size": name,
    "prompts": config.prompts,
    "prompt": fit(config, size)[0],
    "count": fit(config, size)[1],
    **rates,
  }


def show(title: str, rows: list[dict[str, Any]], peer: str) -> None:
  if not rows:
    return
  print(f"\n| {title} | mlnotes, tokens/s | MFU | {peer}, tokens/s | MFU | ratio |\n|---|---|---|---|---|---|")
  for row in rows:
    told = [row["size"]]
    for which in ("mlnotes", peer):
      found = row.get(which, {})
      told.append(f"{found['tokens_per_second']:,.0f}" if found else "")
      told.append(f"{100 * found['mfu']:.1f} %" if found.get("mfu") else "")
    both = row["mlnotes"]["tokens_per_second"] / row[peer]["tokens_per_second"] if peer in row else 0
    print(f"| {' | '.join(told)} | {f'{both:.2f}' if both else ''} |", flush=True)


def main(config: Config) -> int:
  versions = f"jax {jax.__version__}"
  if config.peer:
    try:
      import torch
      import transformers
    except ImportError as error:
      raise InputError(f"--peer needs torch and transformers, which are not installed: {error}.") from error
    versions += f", torch {torch.__version__}, transformers {transformers.__version__}"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two programs share the device's memory
  enable_compilation_cache()
  device = jax.devices()[0].device_kind
  print(f"{device}, {versions}, {config.precision}", file=sys.stderr)
  trained, written = [], []
  for name in config.sizes:
    trained.append(measure_training(config, name))
    show("training", trained[-1:], "torch")
  for name in config.generate:
    written.append(measure_writing(config, name))
    show("writing", written[-1:], "transformers")
  if config.out:
    with open(config.out, "w", encoding="utf-8") as file:
      json.dump(
        {"device": device, "precision": config.precision, "training": trained, "writing": written}, file, indent=1
      )
  return 0


if __name__ == "__main__":
  run(main, Config)
