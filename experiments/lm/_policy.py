"""The run whose texts are aligned: a causal one of lm.pretrain, or one of lm.sft that goes on from it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.lm import pretrain, sft
from experiments.lm._text import decode_text
from experiments.lm._trained import restore_model
from mlnotes.data import Corpus, NamedArrays, pad_sequences
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError
from mlnotes.engine.trained import load_config
from mlnotes.lm import LanguageModel


class Policy(NamedTuple):
  """What writes.

  Attributes:
    said: the flag and its value.
    answered: the rows that a run of lm.sft has learned from and is tested on; None of lm.pretrain.
    separator: what a run of lm.sft has learned to answer behind.
  """

  module: LanguageModel
  params: Any
  corpus: Corpus
  said: str
  answered: sft.Answered | None
  separator: str = ""

  @property
  def end(self) -> int:
    return self.corpus.end

  def decode(self, tokens: Any) -> str:
    return decode_text(self.corpus.tokenizer, tokens, self.end).strip("\n")

  def encode_prompt(self, prompt: str) -> list[int]:
    """<end> and the prompt, as lm.sft writes it: without space around it, and with the separator; "" is <end> alone."""
    asked = sft.ask(prompt, self.separator) if self.answered else prompt
    return [self.end, *self.corpus.tokenizer.encode(asked)]


@functools.lru_cache(maxsize=2)
def load_policy(run: str, flag: str = "policy") -> Policy:
  """Raises InputError for a run that is none of these, or whose texts do not end."""
  said, directory = f"--{flag}={run}", Path(run).expanduser()
  name, trained = load_config(directory, {"lm.pretrain": pretrain.Config, "lm.sft": sft.Config}, said)
  trained, module = dataclasses.replace(trained, devices=1, fsdp=1, rows=""), {"lm.sft": sft}.get(name, pretrain)
  if trained.objective not in pretrain.WRITERS:
    raise InputError(
      f"{said} learned by --objective={trained.objective}: expected causal, which foretells what follows."
    )
  network, answered = sft.build(trained) if name == "lm.sft" else (None, None)
  corpus = network.corpus if network else load_data(trained)
  if corpus.end < 0:
    raise InputError(f"{said} has a text without <end>, so that no answer would end: expected a run with --end_token.")
  found = restore_model(module, trained, directory, said)
  return Policy(found.module, found.params, corpus, said, answered, trained.separator if name == "lm.sft" else "")


def find_prompts(policy: Policy, count: int, room: int) -> tuple[NamedArrays, NamedArrays]:
  """(training, test) {"tokens": (N, P), "length": (N,)}: those of its instructions, or how its documents begin.

  Of documents <end> and the `count` - 1 tokens that follow it, of those that have more. Prompts that leave no `room`
  tokens for an answer are left out. Raises InputError where none is left.
  """
  length = policy.module.length
  if policy.answered:
    splits = (policy.answered.train, policy.answered.test)
    return tuple(_short_prompts(split, length - room, policy.said, room) for split in splits)
  if count + room > length:
    raise InputError(
      f"--prompt_tokens={count} and --answer_tokens={room} pass the {length} tokens of {policy.said}: expected as many "
      "at most, together."
    )
  return tuple(_first_tokens(part, policy, count) for part in (policy.corpus.train, policy.corpus.test))


def _short_prompts(rows: NamedArrays, most: int, said: str, room: int) -> NamedArrays:
  kept = [(row[:size], size) for row, size in zip(rows.arrays["tokens"], rows.arrays["prompt"]) if size <= most]
  if not kept:
    raise InputError(f"--answer_tokens={room} leaves no prompt of {said} room in its window: expected fewer.")
  return NamedArrays(pad_sequences([row for row, _ in kept]))


def _first_tokens(windows: Any, policy: Policy, count: int) -> NamedArrays:
  tokens = windows.arrays["tokens"].astype(np.int32)
  starts = np.flatnonzero(tokens[:-count] == policy.end)
  rows = tokens[starts[:, None] + np.arange(count)]
  rows = rows[(rows[:, 1:] != policy.end).all(1)]
  if not len(rows):
    raise InputError(
      f"{policy.said}: found no document of {count} tokens or more, expected some: a lower --prompt_tokens."
    )
  return NamedArrays({"tokens": rows, "length": np.full(len(rows), count, np.int32)})
