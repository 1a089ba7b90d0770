"""The flags of a decoder, and the modules that they describe."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from experiments.lm._weights import NETWORK, STARTS_FROM_WEIGHTS, build_from_weights, require_folder, tokenizer_of
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field
from mlnotes.lm import EncoderDecoder, LanguageModel, make_bart, make_gpt2, make_llama, make_t5


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(BaseConfig):
  """Of nanoGPT's size for a laptop."""

  weights: str = field(
    "", "folder of Hugging Face's form with the network to go on from, a GPT-2, Llama or BERT; empty: the flags' own"
  )
  model: Literal["llama", "gpt2"] = field(
    "llama", "rotary positions, RMS norms and SwiGLU without biases; or learned positions, layer norms and GELU"
  )
  depth: int = field(4, "layers")
  heads: int = field(4, "heads, a divisor of --width, into even numbers for --model=llama")
  width: int = field(128, "features of a token")
  kv_heads: int = field(0, "of --model=llama: heads of keys and values, a divisor of --heads; 0: as many")
  hidden: int = field(0, "hidden features of a feed-forward network; 0: four --width, of --model=llama 8/3")
  tied: bool = field(True, "the head's matrix is the embedding's")
  dropout: float = field(0.0, "of the embeddings and of what each layer adds, in [0, 1)")
  attention_dropout: float = field(0.0, "of the weights of attention, in [0, 1); GPT-2 and BERT: as --dropout")
  experts: int = field(0, "experts in the place of each feed-forward network; 0: none")
  experts_per_token: int = field(2, "experts that each token goes to")
  capacity_factor: float = field(0.0, "an expert takes this many times its even share of the tokens; 0: all that come")
  remat: bool = field(False, "keep only what goes into each layer, and compute the layer again backward: less memory")

  def __post_init__(self):
    super().__post_init__()
    for name in ("depth", "heads", "width"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    for name in ("kv_heads", "hidden", "experts", "capacity_factor"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    for name in ("dropout", "attention_dropout"):
      require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
    even = self.width % self.heads == 0 and (self.model != "llama" or self.width // self.heads % 2 == 0)
    into = f"a divisor of --width={self.width}{' into even numbers' if self.model == 'llama' else ''}"
    require(even, "heads", self.heads, into)
    divides = not self.kv_heads or self.heads % self.kv_heads == 0
    require(divides, "kv_heads", self.kv_heads, f"a divisor of --heads={self.heads}")
    objective = getattr(self, "objective", "causal")
    if self.weights and objective not in STARTS_FROM_WEIGHTS:
      names = ", ".join(STARTS_FROM_WEIGHTS)
      raise InputError(f"--weights are a network's alone, --objective={objective} has more: expected one of {names}.")
    pairs = getattr(self, "pairs", "none")
    if self.weights and pairs != "none":
      raise InputError(f"--weights are a network's alone, --pairs={pairs} has more: expected --pairs=none.")
    if self.experts:
      k = self.experts_per_token
      require(1 <= k <= self.experts, "experts_per_token", k, f"1 to --experts={self.experts}")

  def idle_flags(self):
    idle = super().idle_flags()
    if self.model == "gpt2":
      idle["kv_heads"] = "--model=gpt2 has as many as --heads"
    if not self.experts:
      idle |= dict.fromkeys(("experts_per_token", "capacity_factor"), "--experts=0 has none")
    if self.weights:
      idle |= dict.fromkeys(NETWORK, f"--weights={self.weights} has its own")
    return idle

  @classmethod
  def tuned(cls, **given: Any) -> Any:
    """Published weights come with a tokenizer. Raises InputError where --weights names no folder."""
    defaults = {}
    if given.get("weights"):
      require_folder(given["weights"])
      defaults = {"tokenizer": tokenizer_of(given["weights"])}
    return super().tuned(**{**defaults, **given})


def build_decoder(config: Any, vocabulary: int) -> LanguageModel:
  """The module of a config that also has `length`, `precision`, `objective` and `tokenizer`."""
  if config.weights:
    return build_from_weights(config, vocabulary)
  options: dict[str, Any] = dict(
    experts=config.experts, experts_per_token=config.experts_per_token, capacity_factor=config.capacity_factor or None,
    **_options(config),
  )  # fmt: skip
  sizes = (vocabulary, config.length, config.depth, config.heads, config.width)
  if config.model == "gpt2":
    return make_gpt2(*sizes, **options)
  return make_llama(*sizes, kv_heads=config.kv_heads or None, **options)


def build_generator(config: Any, vocabulary: int) -> LanguageModel:
  """Likewise, narrower: --generator_share of the heads, rounded to one or more, each as wide as they are."""
  heads = max(1, round(config.generator_share * config.heads))
  share = heads / config.heads
  smaller = dict(heads=heads, width=heads * (config.width // config.heads), kv_heads=0, experts=0)
  hidden = max(1, round(share * config.hidden)) if config.hidden else 0
  return build_decoder(dataclasses.replace(config, **smaller, hidden=hidden), vocabulary)


def build_t5(config: Any, vocabulary: int) -> EncoderDecoder:
  """T5's form, --depth layers on either side."""
  head_dim = config.width // config.heads
  return make_t5(vocabulary, config.depth, config.heads, config.width, head_dim=head_dim, **_options(config))


def build_bart(config: Any, vocabulary: int) -> EncoderDecoder:
  """BART's form with mBART's norms ahead of each step, --depth layers on either side: it learns at higher rates."""
  sizes = (vocabulary, config.length, config.depth, config.heads, config.width)
  return make_bart(*sizes, order="pre", **_options(config))


def _options(config: Any) -> dict[str, Any]:
  return dict(
    hidden=config.hidden or None, tied=config.tied, dropout=config.dropout,
    attention_dropout=config.attention_dropout, remat=config.remat, dtype=jnp.dtype(config.precision),
  )  # fmt: skip
