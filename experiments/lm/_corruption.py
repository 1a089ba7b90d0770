"""The flags of objectives that hide a part of the text, and the ids that they need behind the tokenizer's."""

import dataclasses
from typing import Any, Literal, NamedTuple

from mlnotes.data import Corpus
from mlnotes.data.text import END
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field
from mlnotes.lm import Vocabulary, corrupted_sizes
from mlnotes.lm.pair_objective import pair_length

ENCODER_DECODERS = ("corrupted", "fragment", "infilling")
_PACKED = ("causal", "masked")
_ENDS = (".", "!", "?", "。", "！", "？", "\n")  # of sentences
_THEIRS = (("[PAD]", "<pad>"), ("[MASK]", "<mask>"))
# {flag: the objectives that it is of}.
_READ_BY = {
  "mask_rate": ("masked", "prefix", "spans", "replaced", "corrupted"),
  "mask_share": ("masked", "prefix", "spans", "replaced", "fragment"),
  "random_share": ("masked", "prefix", "spans", "replaced", "fragment"),
  "pairs": ("masked",),
  "span_p": ("spans",),
  "span_longest": ("spans",),
  "mean_span": ("corrupted", "infilling"),
  "generator_share": ("replaced",),
  "discriminator_weight": ("replaced",),
  "prediction_k": ("permutation",),
  "fragment_share": ("fragment",),
  "infill_rate": ("infilling",),
  "permute_sentences": ("infilling",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorruptionConfig(BaseConfig):
  """Defaults: the papers'. Read where there is an `objective`."""

  mask_rate: float = field(0.15, "share of the tokens that are hidden, in (0, 1)")
  mask_share: float = field(0.8, "of the hidden words: become the mask")
  random_share: float = field(0.1, "of the hidden words: become words drawn at random; the rest stay")
  pairs: Literal["none", "order", "next"] = field(
    "none",
    "of --objective=masked: also tell, order: as ALBERT, whether the two halves of a window were exchanged; next: as "
    "BERT, whether the second half follows or is from elsewhere",
  )
  span_p: float = field(0.2, "of --objective=spans: lengths of spans are geometric, each ends with this probability")
  span_longest: int = field(10, "of --objective=spans: tokens of a span at most")
  mean_span: float = field(3.0, "of --objective=corrupted and infilling: tokens of a span on average")
  generator_share: float = field(0.5, "of --objective=replaced: the generator's share of --heads, and so of --width")
  discriminator_weight: float = field(50.0, "of --objective=replaced: of the discriminator's loss, the paper's lambda")
  prediction_k: int = field(6, "of --objective=permutation: one token of so many is predicted, the last of the order")
  fragment_share: float = field(0.5, "of --objective=fragment: the fragment's share of the tokens, in (0, 1]")
  infill_rate: float = field(0.3, "of --objective=infilling: share of the tokens that are hidden, in (0, 1)")
  permute_sentences: bool = field(True, "of --objective=infilling: sentences come in another order")

  def __post_init__(self):
    super().__post_init__()
    for name in ("mask_rate", "infill_rate"):
      require(0 < getattr(self, name) < 1, name, getattr(self, name), "a number in (0, 1)")
    for name in ("mask_share", "random_share"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    rest = 1 - self.mask_share
    require(self.random_share <= rest + 1e-9, "random_share", self.random_share, "1 - --mask_share at most")
    for name in ("span_p", "generator_share", "fragment_share"):
      require(0 < getattr(self, name) <= 1, name, getattr(self, name), "a number in (0, 1]")
    for name in ("span_longest", "mean_span", "prediction_k"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.discriminator_weight >= 0, "discriminator_weight", self.discriminator_weight, "0 or more")

  def check_objective(self) -> None:
    """Refuses what `objective` has no use for and would compute otherwise with."""
    config: Any = self  # the flags of the experiment
    name = config.objective
    if name == "causal":
      return
    require(config.length >= 2, "length", config.length, f"2 or more with --objective={name}")
    if config.packed and name not in _PACKED:
      raise InputError(f"--packed has no meaning for --objective={name}: expected --nopacked.")
    if config.packed and self.pairs != "none":
      raise InputError(f"--packed has no meaning for --pairs={self.pairs}: expected --nopacked.")
    if config.experts and name in ENCODER_DECODERS:
      raise InputError(f"--experts={config.experts} has no meaning for --objective={name}: expected 0.")

  def count_asked(self) -> int:
    """Tokens of a window whose logits are made."""
    config: Any = self
    if config.objective == "masked" and self.pairs != "none":
      return pair_length(config.length)
    if config.objective == "corrupted":
      return corrupted_sizes(config.length, self.mask_rate, self.mean_span, end=False)[1]
    shares = {"fragment": self.fragment_share, "permutation": 1 / self.prediction_k}
    if config.objective not in shares:
      return config.length
    share = shares[config.objective] * config.length
    return max(1, round(share) if config.objective == "fragment" else int(share))

  def idle_flags(self):
    idle = super().idle_flags()
    name = getattr(self, "objective", "causal")
    for flag, readers in _READ_BY.items():
      if name not in readers:
        known = "hides nothing" if name == "causal" else f"does not read it, as {' and '.join(readers)} would"
        idle[flag] = f"--objective={name} {known}"
    if name in ENCODER_DECODERS:
      idle |= dict.fromkeys(("model", "kv_heads"), f"--objective={name} has an encoder and a decoder of its own form")
    if name == "replaced":
      idle["tied"] = "--objective=replaced has one matrix of embeddings for all that it says"
    return idle


class Ids(NamedTuple):
  """`vocabulary`, the mask among it, with the ids behind the tokenizer's: pad, mask, and `more` of the objective's."""

  vocabulary: Vocabulary
  more: int


def add_ids(corpus: Corpus, more: int = 0) -> Ids:
  """The tokenizer's special tokens are never hidden as words, and drawn for none. One that has a pad and a mask of its
  own, as those of published encoders have, needs no more."""
  named, size = corpus.tokenizer.special, corpus.vocab_size
  theirs = [next((named[name] for name in names if name in named), None) for names in _THEIRS]
  if None in theirs or more:
    pad, mask, size = size, size + 1, size + 2 + more
  else:
    pad, mask = theirs
  special = (*sorted(set(named.values())), *range(corpus.vocab_size, size))
  return Ids(Vocabulary(size, special, mask=mask, pad=pad), more)


def find_ends(corpus: Corpus) -> list[int]:
  """The ids of tokens that end a sentence: their text ends in . ! ? 。 ！ ？ or a new line; and <end>."""
  tokenizer = corpus.tokenizer
  special = set(tokenizer.special.values())
  found = {i for i in range(corpus.vocab_size) if i not in special and tokenizer.decode([i]).endswith(_ENDS)}
  return sorted(found | ({tokenizer.special[END]} if END in tokenizer.special else set()))


MASK = "▁"  # no letter of a text, as _ may be


def name_ids(corpus: Corpus, ids: Ids, tokens: Any) -> str:
  """The text of the tokens on one line: a mask is MASK, padding nothing, sentinels are <1>, <2> and so on."""
  pad, top = ids.vocabulary.pad, ids.vocabulary.size
  special = {pad: "", ids.vocabulary.require_mask(): MASK, **{top - k: f"<{k}>" for k in range(1, ids.more + 1)}}
  parts, words = [], []
  for token in (*tokens, pad):
    if int(token) in special:
      parts += [corpus.tokenizer.decode(words), special[int(token)]]
      words = []
    else:
      words.append(int(token))
  return "".join(parts).replace("\n", "¶")
