"""Longer texts than those learned from: sinusoids, learned places, rotary ones, ALiBi and none. Press et al. 2022.

  python -m experiments.attention.length                               # Python's manual pages, 64 characters
  python -m experiments.attention.length --positions=rotary,alibi --lengths=64,256,2048
  python -m experiments.attention.length --dataset=FOLDER/book.txt --length=128 --lengths=128,512,2048

A small causal Transformer learns from windows of --length tokens, once with each kind of position, and is then asked
about longer ones. Writes length.png, the loss over the length, table.md and the card.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mlnotes.attention import Mask, TokenModel, Transformer
from mlnotes.data import Corpus, make_resident_feed
from mlnotes.data.flags import TextConfig, load_data
from mlnotes.data.text_floors import ngram_floors
from mlnotes.engine.errors import InputError, nearest, require
from mlnotes.engine.experiment import stream_key
from mlnotes.engine.flags import field, run
from mlnotes.engine.layout import choose_layout
from mlnotes.engine.study import each_seed, run_study
from mlnotes.engine.summary import format_summary, over_seeds
from mlnotes.nn.loss import cross_entropy

TITLES = {
  "sinusoidal": "sinusoids added",
  "learned": "learned, added",
  "rotary": "rotary",
  "alibi": "ALiBi",
  "none": "none",
}
_CAUSAL = Mask.of_self(causal=True)
# Tokens of the windows that are judged at once: of long ones the scores take memory.
_AT_ONCE = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
  """Defaults: five kinds and four seeds; how long it takes stands with its figures."""

  length: int = 64
  stride: int = 1
  batch_size: int = 16
  workdir: str = field("", "directory of picture, table and figures; empty: runs/attention.length-<dataset>", free=True)
  positions: tuple[str, ...] = field(tuple(TITLES), f"kinds of position: {', '.join(TITLES)}")
  lengths: tuple[int, ...] = field((64, 128, 256, 512, 1024), "tokens of the windows that are judged, --length or more")
  seed: int = field(0, "first seed, >= 0")
  seeds: int = field(4, "runs of each kind")
  steps: int = field(800, "updates of each run, by Adam at a rate that is warmed up and lowered to 0 by a cosine")
  learning_rate: float = field(3e-3, "its largest value, > 0")
  depth: int = field(2, "layers")
  width: int = field(64, "features of a token")
  heads: int = field(4, "heads, a divisor of --width")

  def __post_init__(self):
    super().__post_init__()
    require(len(self.positions) > 0, "positions", self.positions, "one or more")
    require(len(set(self.positions)) == len(self.positions), "positions", ",".join(self.positions), "each name once")
    for name in self.positions:
      if name not in TITLES:
        raise InputError(f"--positions={name} is no kind of position: {nearest(name, TITLES)}")
    for name in ("seeds", "steps", "depth", "width", "heads"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.seed >= 0, "seed", self.seed, "0 or more")
    require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
    require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of --width={self.width}")
    ascending = all(a < b for a, b in zip(self.lengths, self.lengths[1:]))
    said = ",".join(map(str, self.lengths))
    fits = len(self.lengths) > 0 and ascending and min(self.lengths, default=0) >= self.length
    require(fits, "lengths", said, f"ascending numbers of --length={self.length} or more")
    if "rotary" in self.positions and self.width // self.heads % 2:
      raise InputError(f"--positions=rotary takes features in pairs: a head has {self.width // self.heads} of them.")
    if "sinusoidal" in self.positions and self.width % 2:
      raise InputError(f"--positions=sinusoidal takes features in pairs: --width is {self.width}.")

  def idle_flags(self):
    return super().idle_flags() | {
      "data_placement": "the text is held on the device",
      "eval_examples": "the whole test text is judged",
    }

  def cpu_layout(self, cores: int):
    return choose_layout(self.seeds, cores, fills_cores=False)


class Losses(NamedTuple):
  """Nats per token of each seed and length, (S, L), of whole windows and of their last tokens."""

  whole: Float[np.ndarray, "S L"]
  last: Float[np.ndarray, "S L"]


def cut_ends(tokens: Int[np.ndarray, " T"], longest: int, step: int) -> Int[np.ndarray, "W L"]:
  """Windows of `longest` + 1 tokens that end `step` tokens apart, the last one with the text.

  Shorter windows are their ends, so that all lengths are judged by the same last tokens.
  """
  starts = np.arange(len(tokens) - longest - 1, -1, -step)[::-1]
  return np.asarray(tokens, np.int32)[starts[:, None] + np.arange(longest + 1)]


def build_model(config: Config, position: str, vocab_size: int) -> TokenModel:
  base = 10000.0 if position == "rotary" else 0.0
  transformer = Transformer(config.depth, config.heads, config.width, rotary_base=base)
  return TokenModel(vocab_size, max(config.lengths), transformer, "none" if position == "rotary" else position)


def token_losses(model: TokenModel, params: Any, tokens: Int[Array, "B L"]) -> Float[Array, "B T"]:
  """Nats of each token behind the first one."""
  return cross_entropy(model.apply({"params": params}, tokens[:, :-1], _CAUSAL), tokens[:, 1:])


def compare(config: Config, corpus: Corpus, position: str) -> Losses:
  """Trains every seed with one kind of position at --length, and judges it at --lengths."""
  model = build_model(config, position, corpus.vocab_size)
  feed = make_resident_feed(corpus.train, config.batch_size)
  windows = jnp.asarray(cut_ends(corpus.test.arrays["tokens"], max(config.lengths), config.length))
  warmup = min(100, config.steps // 10 + 1)
  schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(config.steps, warmup + 1))
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

  def judge(params, length):
    each = lambda window: token_losses(model, params, window[None, -length - 1 :])[0]
    losses = jax.lax.map(each, windows, batch_size=max(1, min(len(windows), _AT_ONCE // length)))
    return jnp.mean(losses), jnp.mean(losses[:, -config.length :])

  def once(key):
    params = model.init(stream_key(key, "init"), windows[:1, : config.length], _CAUSAL)["params"]

    def update(carry, step):
      params, state = carry
      tokens = feed.draw(feed.arrays, key, step)["tokens"]
      grads = jax.grad(lambda params: jnp.mean(token_losses(model, params, tokens)))(params)
      updates, state = optimizer.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), jnp.arange(config.steps))
    found = [judge(params, length) for length in config.lengths]
    return jnp.stack([whole for whole, _ in found]), jnp.stack([last for _, last in found])

  return Losses(*each_seed(once, range(config.seed, config.seed + config.seeds)))


def gather(config: Config, found: dict[str, Losses], floors: dict[str, float]) -> tuple[dict[str, Any], list[str]]:
  """(figures, table). `growth` is what the last tokens' loss gains from the first of --lengths to the last."""
  figures: dict[str, Any] = dict(floors)
  rows = [
    f"| positions | {' | '.join(f'{length} tokens' for length in config.lengths)} | growth |",
    f"|{'---|' * (len(config.lengths) + 2)}",
  ]
  for position, losses in found.items():
    for i, length in enumerate(config.lengths):
      figures |= {f"{position}_{length}/loss": losses.whole[:, i], f"{position}_{length}/last": losses.last[:, i]}
    growth = figures[f"{position}/growth"] = losses.last[:, -1] - losses.last[:, 0]
    cells = [format_summary(over_seeds(losses.last[:, i]), 3) for i in range(len(config.lengths))]
    rows.append(f"| {TITLES[position]} | {' | '.join(cells)} | {format_summary(over_seeds(growth), 2)} |")
  for name, value in floors.items():
    rows.append(f"| {name} frequencies | {value:.3g} |{' |' * len(config.lengths)}")
  return figures, rows


def draw(config: Config, found: dict[str, Losses], floors: dict[str, float], path: Path) -> None:
  """Loss over the length, a line for each kind of position: of whole windows, and of the same last tokens."""
  from mlnotes.engine.plot import new_figure, save_figure

  figure, axes = new_figure(1, 2, width=11.0, height=4.3)
  most = 1.5 * floors["unigram"]
  for axis, what in zip(axes[0], Losses._fields):
    for color, (position, losses) in enumerate(found.items()):
      values = np.nan_to_num(getattr(losses, what), nan=np.inf, posinf=1e3)
      axis.plot(config.lengths, values.mean(0), "o-", color=f"C{color}", markersize=4, label=TITLES[position])
      axis.fill_between(config.lengths, values.min(0), values.max(0), color=f"C{color}", alpha=0.2, linewidth=0)
    for (name, value), style in zip(floors.items(), (":", "--")):
      axis.axhline(value, color="0.5", linestyle=style, linewidth=1)
      axis.text(1.01, value, name, color="0.4", fontsize=8, va="center", transform=axis.get_yaxis_transform())
    axis.axvline(config.length, color="0.7", linewidth=1)
    axis.set(xscale="log", xlabel="tokens of the test window", ylabel="nats per token")
    axis.set_xticks(config.lengths, [str(length) for length in config.lengths])
    axis.minorticks_off()
    axis.set_ylim(None, min(axis.get_ylim()[1], most))
  axes[0, 0].set_title("all tokens of the window", fontsize=10)
  axes[0, 1].set_title(f"its last {config.length}, the same for all lengths", fontsize=10)
  figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=5, fontsize=9)
  seeds = f"{config.seeds} seeds, the band from the least to the most" if config.seeds > 1 else "one seed"
  figure.suptitle(f"learned from windows of {config.length} tokens, asked about longer ones; {seeds}", fontsize=11)
  save_figure(figure, path)


def main(config: Config) -> int:
  corpus = load_data(config)
  size = len(corpus.test.arrays["tokens"])
  require(max(config.lengths) < size, "lengths", max(config.lengths), f"fewer than the {size} tokens of the test text")
  require(
    config.batch_size <= len(corpus.train), "batch_size", config.batch_size, f"at most {len(corpus.train)} windows"
  )

  def study(directory: Path) -> dict[str, Any]:
    floors, found = ngram_floors(corpus), {}
    for position in config.positions:
      found[position] = losses = compare(config, corpus, position)
      ends = [f"{length}: {losses.last[:, i].mean():.3f}" for i, length in enumerate(config.lengths)]
      print(f"{TITLES[position]:>16}  {', '.join(ends)} nats per token", flush=True)
    figures, rows = gather(config, found, floors)
    (directory / "table.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(rows))
    draw(config, found, floors, directory / "length.png")
    return figures

  return run_study("attention.length", config, study, f"-{Path(config.dataset).stem}")


if __name__ == "__main__":
  run(main, Config)
