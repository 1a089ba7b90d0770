"""Tokens a second of beam search and of greedy decoding by a Transformer with a cache, next to Hugging Face's generate.

  python -m launch.benchmarks.decoding
  python -m launch.benchmarks.decoding --beams=1,4,10 --batch=64

Both have networks of one size with random weights, and go on to --tokens tokens, as END is forbidden to both. They take
turns, `--rounds` times, so that a busy machine slows all alike; the least of the rounds counts.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlnotes.engine.errors import require
from mlnotes.engine.experiment import root_key
from mlnotes.engine.flags import BaseConfig, field, run
from mlnotes.sequence import Decoder, TransformerSeq2Seq, beam_search, greedy

PAD, START, END = 0, 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  beams: tuple[int, ...] = field((1, 4), "widths; 1 is greedy decoding")
  batch: int = field(32, "sources at once")
  source: int = field(32, "tokens of a source")
  tokens: int = field(32, "tokens that are decoded")
  vocabulary: int = field(8000, "different tokens")
  width: int = field(256, "features of a token")
  depth: int = field(3, "layers of encoder and of decoder")
  rounds: int = field(5, "measurements of each case")
  out: str = field("", "file for the figures as JSON")

  def __post_init__(self):
    super().__post_init__()
    require(len(self.beams) > 0 and min(self.beams, default=0) >= 1, "beams", self.beams, "numbers of 1 or more")
    for name in ("batch", "source", "tokens", "depth", "rounds"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.vocabulary > END + 1, "vocabulary", self.vocabulary, f"more than {END + 1}")
    require(self.width >= 64 and self.width % 64 == 0, "width", self.width, "a multiple of 64")


def draw(config: Config) -> np.ndarray:
  return np.random.default_rng(0).integers(END + 1, config.vocabulary, (config.batch, config.source)).astype(np.int32)


def our_steps(config: Config) -> dict[int, Callable[[], Any]]:
  model = TransformerSeq2Seq(config.vocabulary, config.width, config.depth, config.width // 64, never=(PAD, START, END))
  source = jnp.asarray(draw(config))
  lengths = jnp.full((config.batch,), config.source)
  variables = jax.jit(model.init)(root_key(0), source, lengths, source[:, :2])

  def decode(width, variables, source, lengths):
    decoder: Decoder = model.make_decoder(variables, source, lengths, config.tokens)
    given = (decoder, START, END, PAD, config.tokens)
    return greedy(*given) if width == 1 else beam_search(*given, width)

  programs = {width: jax.jit(decode, static_argnums=0) for width in config.beams}
  return {
    width: lambda width=width, program=program: jax.block_until_ready(program(width, variables, source, lengths))
    for width, program in programs.items()
  }


def their_steps(config: Config) -> dict[int, Callable[[], Any]]:
  """Empty where transformers or torch is not installed."""
  try:
    import torch
    from transformers import MarianConfig, MarianMTModel
  except ImportError:
    return {}
  heads = config.width // 64
  settings = MarianConfig(
    vocab_size=config.vocabulary, d_model=config.width, encoder_layers=config.depth, decoder_layers=config.depth,
    encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * config.width,
    decoder_ffn_dim=4 * config.width, max_position_embeddings=config.source + config.tokens + 1, pad_token_id=PAD,
    decoder_start_token_id=START, eos_token_id=END, forced_eos_token_id=None, scale_embedding=True,
  )  # fmt: skip
  model = MarianMTModel(settings).eval()
  source = torch.from_numpy(draw(config)).long()

  def step(width):
    with torch.no_grad():
      found = model.generate(
        source, attention_mask=torch.ones_like(source), num_beams=width, do_sample=False, use_cache=True,
        max_new_tokens=config.tokens, min_new_tokens=config.tokens,
      )  # fmt: skip
    assert found.shape[1] == config.tokens + 1

  return {width: lambda width=width: step(width) for width in config.beams}


def main(config: Config) -> int:
  ways = {"mlnotes": our_steps(config), "transformers": their_steps(config)}
  least: dict[tuple[str, int], float] = {}
  for turn in range(config.rounds + 1):  # the first one compiles
    for name, steps in ways.items():
      for width, step in steps.items():
        began = time.perf_counter()
        step()
        seconds = time.perf_counter() - began
        if turn:
          least[name, width] = min(seconds, least.get((name, width), np.inf))
  rates = {key: config.batch * config.tokens / seconds for key, seconds in least.items()}
  print("| beams | " + " | ".join(f"{name}, tokens/s" for name, steps in ways.items() if steps) + " | ratio |")
  print("|" + "---|" * (2 + sum(map(bool, ways.values()))))
  for width in config.beams:
    found = [rates[name, width] for name, steps in ways.items() if steps]
    ratio = f"{found[0] / found[1]:.2f}" if len(found) > 1 else ""
    print(f"| {width} | " + " | ".join(f"{rate:,.0f}" for rate in found) + f" | {ratio} |")
  if config.out:
    with open(config.out, "w", encoding="utf-8") as file:
      json.dump({f"{name}/{width}": rate for (name, width), rate in rates.items()}, file, indent=1)
  if not ways["transformers"]:
    print("note: torch or transformers is not installed: no comparison", file=sys.stderr)
  return 0


if __name__ == "__main__":
  run(main, Config)
