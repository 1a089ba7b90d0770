"""Sentences of a small grammar with their trees: parsing as translation (Vinyals et al. 2015), sentences to compress.

    S  -> NP VP              NP -> name | det (adj) noun | NP of-PP | NP that VP
    VP -> verb | verb NP | verb NP with-PP

Every sentence has one tree: `of` and `that` belong to the noun before them, `with` to the verb.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

_WORDS = {
  "det": ("the", "a", "every", "no"),
  "adj": ("young", "small", "red", "quiet", "happy"),
  "noun": ("dog", "cat", "child", "king", "farmer", "bird", "sailor", "house", "book", "star"),
  "name": ("Anna", "Tom", "Mira", "Paul"),
  "verb": ("sleeps", "runs", "sings", "waits"),
  "verb with an object": ("sees", "likes", "finds", "draws", "hears"),
}
# How deep one form may stand inside another.
_DEEPEST = 2


class Sentence(NamedTuple):
  words: str
  tree: str


def make_sentences(count: int, seed: int = 0) -> Sequence[Sentence]:
  """`count` distinct ones, the same in every run. Trees as "(S (NP the dog ) (VP sees (NP Anna ) ) )"."""
  source = random.Random(seed)
  found: dict[str, str] = {}
  while len(found) < count:
    words, tree = _sentence(source)
    found[" ".join(words)] = tree
  return [Sentence(*pair) for pair in found.items()]


def _sentence(source: random.Random) -> tuple[list[str], str]:
  subject, subject_tree = _noun_phrase(source, 0)
  rest, rest_tree = _verb_phrase(source, 0)
  return subject + rest, f"(S {subject_tree} {rest_tree} )"


def _choose(source: random.Random, kind: str) -> str:
  return _WORDS[kind][int(source.random() * len(_WORDS[kind]))]


def _noun_phrase(source: random.Random, depth: int) -> tuple[list[str], str]:
  form = source.random()
  if form < 0.2:
    name = _choose(source, "name")
    return [name], f"(NP {name} )"
  words = [_choose(source, "det")]
  words += [_choose(source, "adj")] if source.random() < 0.4 else []
  words.append(_choose(source, "noun"))
  inner = " ".join(words)
  if depth < _DEEPEST and form > 0.8:
    more, tree = _verb_phrase(source, depth + 1)
    return [*words, "that", *more], f"(NP {inner} (SBAR that {tree} ) )"
  if depth < _DEEPEST and form > 0.65:
    more, tree = _noun_phrase(source, _DEEPEST)
    return [*words, "of", *more], f"(NP {inner} (PP of {tree} ) )"
  return words, f"(NP {inner} )"


def _verb_phrase(source: random.Random, depth: int) -> tuple[list[str], str]:
  if source.random() < 0.4:
    verb = _choose(source, "verb")
    return [verb], f"(VP {verb} )"
  verb = _choose(source, "verb with an object")
  words, tree = _noun_phrase(source, _DEEPEST if depth else 1)
  if not depth and source.random() < 0.25:
    more, with_tree = _noun_phrase(source, _DEEPEST)
    return [verb, *words, "with", *more], f"(VP {verb} {tree} (PP with {with_tree} ) )"
  return [verb, *words], f"(VP {verb} {tree} )"
