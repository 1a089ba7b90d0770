"""A task whose answers can all be listed: a random network is the reference, rewards are drawn, the best is known."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mlnotes.engine.errors import require
from mlnotes.engine.experiment import root_key, stream_key
from mlnotes.engine.flags import BaseConfig, field
from mlnotes.lm import LanguageModel, make_gpt2
from mlnotes.lm.tasks import Answers, enumerate_answers, find_answers

# Those that make the task, but for what an answer that does not end scores.
LISTED_FLAGS = ("answer_tokens", "prompts", "words", "depth", "width")
# Of its rewards, and its reference.
_TABLE_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedConfig(BaseConfig):
  """Of a subclass that also has `policy`, a run whose texts are in the place of the task."""

  answer_tokens: int = field(3, "tokens of an answer, <end> among them")
  penalize_unended: bool = field(False, "an answer without <end> scores --unended_reward in the place of its reward")
  unended_reward: float = field(-1.0, "what it scores then")
  prompts: int = field(4, "of the listed task: prompts")
  words: int = field(3, "of the listed task: words that answers are made of")
  depth: int = field(2, "of the listed task: layers")
  width: int = field(32, "of the listed task: features")

  def __post_init__(self):
    super().__post_init__()
    require(self.words >= 2, "words", self.words, "2 or more")
    for name in ("answer_tokens", "prompts", "depth"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
    require(self.width >= 4 and self.width % 4 == 0, "width", self.width, "a multiple of 4, the heads")
    if self.lists_answers:
      many = self.words**self.answer_tokens
      require(many <= 4096, "answer_tokens", self.answer_tokens, f"--words^--answer_tokens of 4096 at most, not {many}")

  @property
  def lists_answers(self) -> bool:
    return not self.policy

  def idle_flags(self):
    idle = super().idle_flags()
    if not self.lists_answers:
      idle |= dict.fromkeys(("prompts", "words", "depth", "width"), "answers are texts of --policy")
    if not self.penalize_unended:
      idle["unended_reward"] = "--penalize_unended is not set"
    return idle


class Listed(NamedTuple):
  """The task.

  Attributes:
    reference: parameters of `module`, which the policy begins with and is held to.
    prompts: (N, P) numbers whose digits are the words, so that all that can be said behind one is an answer.
    reward: (N, A) of each of the answers to each prompt.
    decode: tokens to text.
  """

  module: LanguageModel
  reference: Any
  prompts: Int[np.ndarray, "N P"]
  answers: Answers
  reward: Float[Array, "N A"]
  end: int
  decode: Callable[[Any], str]

  def score(self, prompts: Int[Array, "B P"], tokens: Int[Array, "B L"]) -> Float[Array, " B"]:
    """The reward of each answer, padded with `end`, to its prompt."""
    powers = jnp.asarray(self.end ** np.arange(self.prompts.shape[1])[::-1], jnp.int32)
    return self.reward[jnp.sum(prompts * powers[None], 1), find_answers(self.answers, tokens)]

  def every_row(self) -> tuple[Array, Array, Array]:
    """(prompts (N A, P), answers (N A, L), their lengths): each answer behind each prompt."""
    count, number = len(self.answers.tokens), len(self.prompts)
    many = lambda x: jnp.tile(jnp.asarray(x), (number, *(1,) * (x.ndim - 1)))
    return jnp.repeat(jnp.asarray(self.prompts), count, 0), many(self.answers.tokens), many(self.answers.lengths)


def list_answers(config: Any) -> Listed:
  """The task of the flags; the same in every run."""
  unended = config.penalize_unended and config.unended_reward
  return _list_answers(*(getattr(config, name) for name in LISTED_FLAGS), unended)


@functools.lru_cache(maxsize=2)
def _list_answers(length: int, count: int, words: int, depth: int, width: int, unended: float | bool) -> Listed:
  answers = enumerate_answers(words, length, words)
  digits = max(1, math.ceil(math.log(count, words) - 1e-9))
  prompts = np.arange(count)[:, None] // words ** np.arange(digits)[::-1] % words
  module = make_gpt2(words + 1, digits + length, depth, 4, width)
  key = root_key(_TABLE_SEED)
  params = module.init(stream_key(key, "reference"), jnp.zeros((1, 2), jnp.int32))["params"]
  # Features behind the last norm have a length of sqrt(width): logits then have a deviation of 1/2 or so, so that no
  # answer is so rare that who learns from its own answers alone never meets it.
  params["embed"]["embedding"] *= 0.5 / (0.02 * width**0.5)
  reward = jax.random.normal(stream_key(key, "reward"), (count, len(answers.tokens)))
  if unended is not False:
    reward = jnp.where(jnp.asarray(answers.ended)[None], reward, unended)
  names = [*(chr(97 + i) if i < 26 else f"w{i}" for i in range(words)), "."]
  decode = lambda tokens: " ".join(names[i] for i in np.asarray(tokens).tolist())
  return Listed(module, params, prompts.astype(np.int32), answers, reward, words, decode)
