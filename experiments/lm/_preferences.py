"""Pairs of answers to a prompt, one of which is preferred: listed, of a file, or of labelled texts.

{"chosen", "rejected": (B, T) a prompt and an answer, padded; "chosen_length", "rejected_length": of both together;
 "prompt": tokens of the prompt}
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from experiments.lm._listed import Listed, ListedConfig
from experiments.lm._policy import Policy
from mlnotes.data import Feeds, NamedArrays, make_drawn_eval, make_drawn_feed, pad_sequences, read_labelled
from mlnotes.data.lines import decode_file, json_fields
from mlnotes.data.order import hold_out
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import field

Pairs = Mapping[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsConfig(ListedConfig):
  """The flags of pairs."""

  preferences: str = field("", "of --policy: a file.jsonl of fields prompt, chosen, rejected")
  test_pairs: int = field(512, "pairs to be tested on")
  expected_labels: bool = field(
    True, "of the listed task: a pair counts both ways, by how likely each is; otherwise one preference is drawn"
  )

  def __post_init__(self):
    super().__post_init__()
    require(self.test_pairs >= 1, "test_pairs", self.test_pairs, "1 or more")

  @property
  def asks_listed(self) -> bool:
    """New pairs of listed answers for each update."""
    return self.lists_answers

  def idle_flags(self):
    idle = super().idle_flags()
    if not self.asks_listed:
      idle["expected_labels"] = "pairs are labelled"
    if self.preferences:
      idle["test_pairs"] = f"--preferences={self.preferences} has its own pairs"
    return idle


# Of the pairs that are drawn before training, and of those that are evaluated.
PAIR_SEEDS = {"train": 0, "test": 1}


def listed_feeds(listed: Listed, batch_size: int, tested: int, expected: bool = False) -> Feeds:
  """New pairs for each update."""
  draw = lambda key, arrays: draw_listed_pair(listed, key, expected)
  evaluate = make_drawn_eval(draw, (), PAIR_SEEDS["test"], tested, batch_size)
  return Feeds(make_drawn_feed(draw, (), batch_size), evaluate, split="test")


def draw_listed_pair(listed: Listed, key: Key[Array, ""], expected: bool = False) -> dict[str, Array]:
  """A prompt and two of its answers, any two alike; the first is preferred with probability sigmoid(r - r').

  Where all preferences are known, what DPO ends at does not hang on how often each pair is asked. Where they are
  `expected` "certainty" is the probability that what is called chosen is preferred, otherwise it is not there.
  """
  prompts = jnp.asarray(listed.prompts)
  of_prompt, of_answers, of_choice = jax.random.split(key, 3)
  n = jax.random.randint(of_prompt, (), 0, len(prompts))
  pair = jax.random.choice(of_answers, len(listed.answers.tokens), (2,), replace=False)
  first = jax.random.bernoulli(of_choice, jax.nn.sigmoid(listed.reward[n, pair[0]] - listed.reward[n, pair[1]]))
  chosen, rejected = jnp.where(first, pair, pair[::-1])
  tokens, lengths = (jnp.asarray(x) for x in listed.answers[:2])
  row = lambda i: jnp.concatenate([prompts[n], tokens[i]])
  size = prompts.shape[1]
  certainty = {"certainty": jax.nn.sigmoid(listed.reward[n, chosen] - listed.reward[n, rejected])} if expected else {}
  return {
    "chosen": row(chosen), "rejected": row(rejected), "chosen_length": size + lengths[chosen],
    "rejected_length": size + lengths[rejected], "prompt": jnp.int32(size), **certainty,
  }  # fmt: skip


def weigh_labels(margin: Float[Array, " B"], certain: Float[Array, " B"] | float) -> Float[Array, " B"]:
  """-log sigmoid(m) where the label is as it should be, -log sigmoid(-m) where it is not: Mitchell 2023 (cDPO)."""
  return -certain * jax.nn.log_sigmoid(margin) - (1 - certain) * jax.nn.log_sigmoid(-margin)


def read_preferences(path: str, policy: Policy, most: int = 0) -> tuple[NamedArrays, NamedArrays]:
  """(training, test) pairs of --preferences: of each line <end> and a prompt, and the two answers and their <end>.

  A prompt to a policy of lm.sft stands there as it has learned to answer: in front of its separator. A fixed
  pseudo-random tenth of the prompts is for testing. Raises DataError for a file that is none, InputError for two
  answers that are equal, fewer than two prompts, and rows of more than `most` tokens; 0: the policy's window
  and one that is foretold.
  """
  flag, most = f"--preferences={path}", most or policy.module.length + 1
  encode, end = policy.corpus.tokenizer.encode, policy.end
  names = ("prompt", "chosen", "rejected")
  found = list(json_fields(decode_file(path, flag), flag, names))
  rows: list[tuple[Sequence[int], ...]] = []
  for number, (prompt, *answers) in found:
    if answers[0] == answers[1]:
      raise InputError(
        f"{flag}: line {number}: found two answers that are equal, expected a preferred and another one."
      )
    start = policy.encode_prompt(prompt)
    rows.append((start, *([*start, *encode(answer), end] for answer in answers)))
    if rows[-1][1] == rows[-1][2]:
      raise InputError(
        f"{flag}: line {number}: found two answers that are the same tokens to {policy.said}, expected others: its "
        "text did not have some of their words."
      )
    if (size := max(map(len, rows[-1]))) > most:
      raise InputError(f"{flag}: line {number}: found {size} tokens with the prompt, expected {most} at most.")
  texts = [fields[0] for _, fields in found]
  distinct = list(dict.fromkeys(texts))
  if len(distinct) < 2:
    told = f"{len(found)} pairs, of {len(distinct)} prompt" if found else "no pair"
    raise InputError(f"{flag}: found {told}, expected two prompts or more: those of one of them are for testing.")
  tested = {distinct[i] for i in hold_out(len(distinct), flag)[1]}
  return _pad(*([row for row, text in zip(rows, texts) if (text in tested) == of] for of in (False, True)), end)


def pair_labelled(path: str, test_path: str, preferred: str, pairs: int, tested: int, policy: Policy) -> Any:
  """(training, test) pairs of whole texts: one of the class `preferred`, or the last one, and one of another class.

  Behind <end> alone, cut to the policy's window. Which texts meet is pseudo-random and the same in every run. Raises
  InputError where a split has no text of one side.
  """
  found = read_labelled(path, test_path, "labelled")
  wanted = found.classes.index(find_class(preferred, found.classes))
  end, length = policy.end, policy.module.length
  encode = lambda text: [end, *policy.corpus.tokenizer.encode(text)[: length - 2], end]
  splits = []
  given = (("train", found.train, found.train_label, pairs), ("test", found.test, found.test_label, tested))
  for name, texts, label, count in given:
    rng = np.random.default_rng(PAIR_SEEDS[name])
    both = [np.flatnonzero(side) for side in (label == wanted, label != wanted)]
    if not all(map(len, both)):
      flag = f"--test_labelled={test_path}" if test_path else f"--labelled={path}"
      raise InputError(
        f"{flag}: found no {name} text that is {'' if len(both[1]) else 'not '}preferred: expected both."
      )
    sides = [rng.choice(side, count) for side in both]
    splits.append([([end], encode(texts[a]), encode(texts[b])) for a, b in zip(*sides)])
  return _pad(*splits, end)


def find_class(preferred: str, classes: Sequence[str]) -> str:
  """`preferred`, or the last one. Raises InputError for one that is not there."""
  preferred = preferred or classes[-1]
  require(preferred in classes, "preferred", preferred, f"one of {', '.join(classes)}")
  return preferred


Rows = Sequence[tuple[Sequence[int], ...]]


def _pad(train: Rows, test: Rows, end: int) -> tuple[NamedArrays, NamedArrays]:
  """Of (prompt, prompt and chosen answer, prompt and rejected answer), as long as the longest of both splits."""
  longest, splits = max(len(x) for row in (*train, *test) for x in row), []
  for rows in (train, test):
    arrays: dict[str, Any] = {"prompt": np.array([len(prompt) for prompt, _, _ in rows], np.int32)}
    for i, name in enumerate(("chosen", "rejected"), 1):
      padded = pad_sequences([row[i] for row in rows], longest, end)
      arrays |= {name: padded["tokens"], f"{name}_length": padded["length"]}
    splits.append(NamedArrays(arrays))
  return tuple(splits)
