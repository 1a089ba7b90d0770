"""What a small model that drafts saves a large one: speculative decoding. Leviathan et al. 2023; Chen et al. 2023.

  python -m experiments.lm.speculative                                        # trains a target and a draft first
  python -m experiments.lm.speculative --target=runs/large --draft=runs/small --drafted=2,4,8
  python -m experiments.lm.speculative --target=runs/large --draft=runs/small --temperature=0.7 --top_k=20

Each call of the target reads what the draft has written and keeps what it would have drawn as well: texts are
distributed as its own. Both have caches; one sequence at a time. For each number g of --drafted tokens: how many were
accepted, tokens of a call of the target beside (1 - a^(g + 1)) / (1 - a), and how much faster texts came than from
the target alone, by turns, beside that over g c + 1. The formulas' a is measured apart: the overlap sum min(p, q) of
the two models' distributions over texts of the target; c is what a call of the draft costs, in calls of the target.
Writes speculative.png, texts.txt and the card.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from experiments.lm import pretrain
from experiments.lm._speculative_report import draw, write_texts
from experiments.lm._text import Model, window_losses
from experiments.lm._trained import Decoder, cut_prompts, load_decoder
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.engine.layout import Layout, choose_layout
from mlnotes.engine.stage import find_stage
from mlnotes.engine.study import run_study
from mlnotes.lm import (
  Sampling,
  Speculated,
  expected_speedup,
  expected_tokens,
  generate,
  next_distribution,
  speculative_decode,
)
from mlnotes.lm.speculative import cached

_SHARED = dict(length=128, batch_size=8, eval_every=0)
# What is trained first where a flag is empty.
STAGES: dict[str, dict[str, Any]] = {
  "target": dict(depth=4, width=256, learning_rate=2e-3, steps=300, **_SHARED),
  "draft": dict(depth=1, width=64, heads=2, steps=1000, **_SHARED),
}
_READS = 50  # of a measurement of what a call costs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  target: str = field("", "work directory of a causal run of lm.pretrain, the large model; empty: one is trained first")
  draft: str = field("", "likewise the small model, of the same tokenizer")
  checkpoint: Literal["last", "best"] = field("last", "which of the two kept checkpoints; best: the least loss")
  model_seed: int = field(-1, "which seed of runs with several; -1: their first")
  drafted: tuple[int, ...] = field(
    (1, 2, 4, 6, 8), "tokens that the draft writes ahead of each call, several to compare"
  )
  prompts: int = field(8, "stretches of the test text that texts begin with")
  prompt_tokens: int = field(32, "tokens of each prompt")
  tokens: int = field(88, "tokens of each text, the prompt not counted")
  temperature: float = field(1.0, "logits of both are divided by it; 0: the likeliest token each time")
  top_k: int = field(0, "draw from the k likeliest tokens alone; 0: from all")
  rounds: int = field(2, "texts behind each prompt, each by all ways in turns")
  seed: int = field(0, "of what is drawn")
  data_dir: str = field("", "where the runs' TFDS data set is now; empty: as in the runs")
  workdir: str = field("", "directory of the picture and figures; empty: runs/lm.speculative", free=True)

  def __post_init__(self):
    super().__post_init__()
    for name in ("prompts", "prompt_tokens", "tokens", "rounds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("temperature", "top_k", "seed"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    said = ",".join(map(str, self.drafted))
    ascending = all(a < b for a, b in zip(self.drafted, self.drafted[1:]))
    require(ascending and min(self.drafted, default=0) >= 1, "drafted", said, "ascending numbers of 1 or more")
    if not (self.target and self.draft):  # said before that one is trained
      check_room(self, _SHARED["length"])

  def idle_flags(self):
    idle = super().idle_flags()
    if self.temperature == 0:
      idle |= dict.fromkeys(("top_k", "seed"), "--temperature=0 takes the likeliest token")
    if not self.target and not self.draft:
      idle |= dict.fromkeys(("model_seed", "data_dir", "checkpoint"), "both runs are trained here")
    return idle

  def cpu_layout(self, cores: int) -> Layout:
    return choose_layout(1, cores, fills_cores=False, batch_size=_SHARED["batch_size"])


class Way(NamedTuple):
  """What one number of drafted tokens came to: figures of each text, (texts,)."""

  seconds: Float[np.ndarray, " T"]
  rounds: Int[np.ndarray, " T"]
  accepted: Int[np.ndarray, " T"]
  refused: Int[np.ndarray, " T"]

  @property
  def acceptance(self) -> float:
    """Of the draft's tokens that were asked about, those ahead of a refusal and that itself."""
    return self.accepted.sum() / max(self.accepted.sum() + self.refused.sum(), 1)

  @property
  def tokens_per_call(self) -> float:
    return 1 + self.accepted.sum() / self.rounds.sum()


def check_pair(config: Config, target: Decoder, draft: Decoder) -> None:
  """Raises InputError where the two do not go together, or texts do not fit."""
  if target.corpus.tokenizer != draft.corpus.tokenizer:
    raise InputError(
      f"--draft reads other tokens ({draft.corpus.vocab_size} of --dataset={draft.config.dataset}) than --target "
      f"({target.corpus.vocab_size} of --dataset={target.config.dataset}): expected runs of one tokenizer."
    )
  if target.module.vocabulary != draft.module.vocabulary:
    raise InputError(
      f"--draft has {draft.module.vocabulary} embeddings, --target {target.module.vocabulary}: expected as many."
    )
  check_room(config, min(target.module.length, draft.module.length))


def check_room(config: Config, window: int) -> None:
  """Raises InputError where prompt, text and what is drafted pass a window of so many tokens."""
  most = window + 1 - config.prompt_tokens - max(config.drafted)
  require(config.tokens <= most, "tokens", config.tokens,
          f"at most {most}: prompt, text and what is drafted stand in the runs' windows of {window}")  # fmt: skip


def check_stage(config: Config, name: str, runs: Mapping[str, Decoder]) -> None:
  """Raises InputError, before it is trained, where what is trained for --`name` would not do beside the run given."""
  check_room(config, _SHARED["length"])
  for other, given in runs.items():
    if getattr(config, other) and load_data(pretrain.Config(**STAGES[name])).tokenizer != given.corpus.tokenizer:
      raise InputError(
        f"--{name} is empty, and what would be trained for it reads other tokens than --{other}="
        f"{getattr(config, other)}: expected a --{name} of the same tokenizer."
      )


def make_ways(config: Config, target: Decoder, draft: Decoder) -> tuple[Callable[..., Array], dict[int, Callable]]:
  """(the target alone, {tokens drafted: with the draft}), compiled functions of (key, prompt)."""
  top_k = config.top_k or None
  sampling = Sampling(config.temperature, top_k) if config.temperature else Sampling()

  @jax.jit
  def alone(params: Any, key: Key[Array, ""], prompt: Int[Array, " P"]) -> Int[Array, " N"]:
    keys = key[None] if config.temperature else None
    return generate(target.module, params, prompt[None], None, keys, config.tokens, sampling).tokens[0]

  def together(drafted: int, small: Any, large: Any, key: Key[Array, ""], prompt: Int[Array, " P"]) -> Speculated:
    given = prompt, None, config.tokens, drafted, config.temperature, top_k
    return speculative_decode(key, draft.module, small, target.module, large, *given)

  small, large = {"params": draft.params}, {"params": target.params}
  ways = {g: functools.partial(jax.jit(functools.partial(together, g)), small, large) for g in config.drafted}
  return functools.partial(alone, large), ways


def race(config: Config, alone: Callable, ways: dict[int, Callable], prompts: Int[np.ndarray, "B P"]):
  """(seconds of the target alone for each text, {drafted: Way}, the target's texts, {drafted: the last text}).

  Each text by all ways in turns: what else the machine does meets them alike.
  """
  root = root_key(config.seed)
  prompts = jnp.asarray(prompts)
  for run_one in (alone, *ways.values()):  # compilation
    jax.block_until_ready(run_one(root, prompts[0]))
  clock, found, texts, shown = [], {drafted: [] for drafted in ways}, [], {}

  def timed(run_one, *given):
    started = time.perf_counter()
    result = jax.block_until_ready(run_one(*given))
    return result, time.perf_counter() - started

  for turn in range(config.rounds):
    for i in range(len(prompts)):
      key = stream_key(root, "text", turn * len(prompts) + i)
      text, seconds = timed(alone, key, prompts[i])
      clock.append(seconds)
      texts.append(np.concatenate([prompts[i], text]))
      for drafted, run_one in ways.items():
        text, seconds = timed(run_one, key, prompts[i])
        found[drafted].append((seconds, int(text.rounds), int(text.accepted), int(text.refused)))
        shown.setdefault(drafted, []).append(text)
  gathered = {drafted: Way(*map(np.array, zip(*rows))) for drafted, rows in found.items()}
  return np.array(clock), gathered, np.stack(texts), shown


def measure_overlap(config: Config, target: Decoder, draft: Decoder, texts: Int[np.ndarray, "B T"]) -> float:
  """Mean of sum_x min(p(x), q(x)) over the places of the target's texts. Leviathan et al. 2023, sec. 3.1 and 3.2."""

  def one(text: Int[Array, " T"]):
    p, q = (
      next_distribution(run.module.apply({"params": run.params}, text[None])[0], config.temperature,
                        config.top_k or None)
      for run in (target, draft)
    )  # fmt: skip
    return jnp.mean(jnp.sum(jnp.minimum(p, q), -1)[config.prompt_tokens - 1 : -1])

  return float(jnp.mean(jax.jit(lambda texts: jax.lax.map(one, texts))(jnp.asarray(texts))))


def time_call(run_of: Decoder, prompt: Int[Array, " P"], count: int, room: int) -> Callable[[], float]:
  """What gives the seconds of a call that reads `count` tokens behind the prompt, with a cache of `room`; compiled."""

  @jax.jit
  def many(params, tokens):
    reader = cached(run_of.module, {"params": params}, tokens[:1], room)

    def one(_, carry):
      tokens, memory = carry
      logits, memory = reader.read(memory, tokens, len(prompt), count)
      return tokens.at[-1].set(jnp.argmax(logits[-1]).astype(tokens.dtype)), memory

    return jax.lax.fori_loop(0, _READS, one, (tokens, reader.memory))[0]

  tokens = jnp.concatenate([prompt, jnp.zeros(count + 1, prompt.dtype)])
  jax.block_until_ready(many(run_of.params, tokens))

  def seconds() -> float:
    started = time.perf_counter()
    jax.block_until_ready(many(run_of.params, tokens))
    return (time.perf_counter() - started) / _READS

  return seconds


class Costs(NamedTuple):
  """Of calls, in those of the target for one token: one of the draft, and of the target for g + 1 tokens, by g."""

  draft: float
  target: dict[int, float]


def measure_costs(config: Config, target: Decoder, draft: Decoder, prompt: Int[np.ndarray, " P"]) -> Costs:
  """The least of five turns: a call is short, and whatever else the machine does makes it longer."""
  prompt, room = jnp.asarray(prompt), config.prompt_tokens + config.tokens + max(config.drafted)
  clocks = {f"target {g}": time_call(target, prompt, g + 1, room) for g in (0, *config.drafted)}
  clocks["draft"] = time_call(draft, prompt, 1, room)
  turns = [{name: clock() for name, clock in clocks.items()} for _ in range(5)]
  least = {name: min(turn[name] for turn in turns) for name in clocks}
  one = least["target 0"]
  return Costs(least["draft"] / one, {g: least[f"target {g}"] / one for g in config.drafted})


def greedy_agreement(config: Config, target: Decoder, draft: Decoder, prompts: Int[np.ndarray, "B P"]) -> float:
  """The share of tokens that are those of `generate` where both take the likeliest: 1, but for rounding."""
  greedy = dataclasses.replace(config, temperature=0.0, drafted=config.drafted[-1:])
  alone, ways = make_ways(greedy, target, draft)
  key, same = root_key(0), []
  for prompt in jnp.asarray(prompts):
    text = ways[config.drafted[-1]](key, prompt).tokens[len(prompt) :]
    same.append(np.mean(np.asarray(text == alone(key, prompt))))
  return float(np.mean(same))


def gather(config: Config, clock: Float[np.ndarray, " T"], found: dict[int, Way], overlap: float, costs: Costs):
  """The card's figures: of each number of drafted tokens what was measured, and what the formulas say."""
  plain = float(np.median(clock))
  figures: dict[str, Any] = {
    "overlap": overlap, "cost_ratio": costs.draft, "target_tokens_per_second": config.tokens / plain,
  }  # fmt: skip
  for drafted, way in found.items():
    figures |= {
      f"drafted_{drafted}/acceptance": way.acceptance,
      f"drafted_{drafted}/tokens_per_call": way.tokens_per_call,
      f"drafted_{drafted}/expected_tokens": float(expected_tokens(overlap, drafted)),
      f"drafted_{drafted}/speedup": plain / float(np.median(way.seconds)),
      f"drafted_{drafted}/expected_speedup": float(expected_speedup(overlap, drafted, costs.draft)),
      f"drafted_{drafted}/expected_speedup_of_calls": float(
        expected_speedup(overlap, drafted, costs.draft, costs.target[drafted])
      ),
    }
  best = max(found, key=lambda drafted: figures[f"drafted_{drafted}/speedup"])
  return figures | {"best_drafted": best, "best_speedup": figures[f"drafted_{best}/speedup"]}


def main(config: Config) -> int:
  workdir = Path(config.workdir or "runs/lm.speculative").expanduser()
  load = functools.partial(
    load_decoder, checkpoint=config.checkpoint, model_seed=config.model_seed, data_dir=config.data_dir
  )
  runs: dict[str, Decoder] = {}
  for name in sorted(STAGES, key=lambda name: not getattr(config, name)):  # what is given says what the other must be
    if not getattr(config, name):
      check_stage(config, name, runs)
    runs[name] = load(name, find_stage(name, getattr(config, name), pretrain, workdir, **STAGES[name]))
  target, draft = runs["target"], runs["draft"]
  check_pair(config, target, draft)
  prompts = cut_prompts(target.corpus, config.prompts, config.prompt_tokens)

  def study(directory: Path) -> dict[str, Any]:
    print("texts by the target alone and with the draft, in turns; compilation first", file=sys.stderr, flush=True)
    alone, ways = make_ways(config, target, draft)
    clock, found, texts, shown = race(config, alone, ways, prompts)
    overlap = measure_overlap(config, target, draft, texts)
    costs = measure_costs(config, target, draft, prompts[0])
    figures = gather(config, clock, found, overlap, costs)
    figures["greedy_agreement"] = greedy_agreement(config, target, draft, prompts)
    for name, run_of in runs.items():
      figures[f"{name}_loss"] = float(np.mean(window_losses(run_of.corpus, Model(run_of.module, run_of.params))))
    best = int(figures["best_drafted"])
    write_texts(target.corpus, config.prompt_tokens, shown[best], directory / "texts.txt")
    draw(target.corpus, figures, config.drafted, config.prompt_tokens, shown[best][0], directory / "speculative.png")
    return figures

  return run_study("lm.speculative", dataclasses.replace(config, workdir=str(workdir)), study)


if __name__ == "__main__":
  run(main, Config)
