"""The flags of objectives that hide a part of the text, and the ids that they need behind the tokenizer's."""

import dataclasses
from typing import Any, NamedTuple

from mlnotes.data import Corpus
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field
from mlnotes.lm import Vocabulary

_PACKED = ("causal", "masked")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorruptionConfig(BaseConfig):
  """Defaults: the papers'. Read where there is an `objective`."""

  mask_rate: float = field(0.15, "share of the tokens that are hidden, in (0, 1)")
  mask_share: float = field(0.8, "of the hidden words: become the mask")
  random_share: float = field(0.1, "of the hidden words: become words drawn at random; the rest stay")

  def __post_init__(self):
    super().__post_init__()
    require(0 < self.mask_rate < 1, "mask_rate", self.mask_rate, "a number in (0, 1)")
    for name in ("mask_share", "random_share"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
    rest = 1 - self.mask_share
    require(self.random_share <= rest + 1e-9, "random_share", self.random_share, "1 - --mask_share at most")

  def check_objective(self) -> None:
    """Refuses what `objective` has no use for and would compute otherwise with."""
    config: Any = self  # the flags of the experiment
    name = config.objective
    if name == "causal":
      return
    require(config.length >= 2, "length", config.length, f"2 or more with --objective={name}")
    if config.packed and name not in _PACKED:
      raise InputError(f"--packed has no meaning for --objective={name}: expected --nopacked.")

  def idle_flags(self):
    idle = super().idle_flags()
    if getattr(self, "objective", "causal") == "causal":
      idle |= dict.fromkeys(("mask_rate", "mask_share", "random_share"), "--objective=causal hides nothing")
    return idle


class Ids(NamedTuple):
  """`vocabulary`, the mask among it, with the ids behind the tokenizer's: pad, mask."""

  vocabulary: Vocabulary


def add_ids(corpus: Corpus) -> Ids:
  """The tokenizer's special tokens are never hidden, and drawn for no word."""
  pad = corpus.vocab_size
  special = (*sorted(set(corpus.tokenizer.special.values())), pad, pad + 1)
  return Ids(Vocabulary(pad + 2, special, mask=pad + 1, pad=pad))


def name_ids(corpus: Corpus, ids: Ids, tokens: Any) -> str:
  """The text of the tokens on one line: a mask is _, padding nothing."""
  special = {ids.vocabulary.pad: "", ids.vocabulary.require_mask(): "_"}
  parts, words = [], []
  for token in (*tokens, ids.vocabulary.pad):
    if int(token) in special:
      parts += [corpus.tokenizer.decode(words), special[int(token)]]
      words = []
    else:
      words.append(int(token))
  return "".join(parts).replace("\n", "¶")
