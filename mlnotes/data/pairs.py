"""Pairs of sequences, such as a sentence and its translation: token ids of a source and of its target.

Dates written in two ways, sentences and their trees need no file; a .tsv file has two columns, a .jsonl file the fields
`source` and `target`, two files a side in each of their lines; of a .txt file each line is paired with itself.
"""

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np

from mlnotes.data.grammar import make_sentences
from mlnotes.data.image import DataError
from mlnotes.data.lines import decode_file, json_fields
from mlnotes.data.order import hold_out, permute_index
from mlnotes.data.split import Expected, NamedArrays, check_arrays
from mlnotes.data.text import END, pad_sequences
from mlnotes.data.tokenizer import UNKNOWN, Tokenizer, load_tokenizer, train_tokenizer

# What fills a sequence up, and what a target begins with; it ends with END.
PAD, START = "<pad>", "<start>"
SPECIAL = (PAD, START, END)

TextPairs: TypeAlias = Sequence[tuple[str, str]]


def expect_pairs(vocab_size: int, longest_source: int, longest_target: int) -> Mapping[str, Expected]:
  """What a split of pairs is: ids and how many of a row are not padding."""
  return {
    "source": Expected("NS", "iu", np.int32, 0, vocab_size - 1),
    "source_length": Expected("N", "iu", np.int32, 1, longest_source),
    "target": Expected("NT", "iu", np.int32, 0, vocab_size - 1),
    "target_length": Expected("N", "iu", np.int32, 2, longest_target + 2),
  }


class Pairs(NamedTuple):
  """Two splits of pairs and the one tokenizer of both sides, trained on the training pairs alone.

    {"source": int32 (B, S), "source_length": int32 (B,), "target": int32 (B, T), "target_length": int32 (B,)}

  A source is its tokens, a target `<start>`, its tokens, `<end>`: inputs target[:, :-1], what is predicted
  target[:, 1:]. Lengths count these and no padding, which is `<pad>`. S and T are those of the longest pairs that are
  kept, of both splits, but for `longest_training`, which leaves training pairs their own. `notes` are sentences about
  what was left out or is unknown, `test_texts` the test pairs as they were written, which unknown tokens do not tell.
  """

  name: str
  train: NamedArrays
  test: NamedArrays
  tokenizer: Tokenizer
  notes: tuple[str, ...] = ()
  test_texts: tuple[tuple[str, str], ...] = ()

  @property
  def vocab_size(self) -> int:
    return self.tokenizer.vocab_size


def load_pairs(
  dataset: str,
  test_dataset: str = "",
  tokenizer: str = "characters",
  vocab_size: int = 1024,
  longest_source: int = 256,
  longest_target: int = 256,
  longest_training: int = 0,
) -> Pairs:
  """The pairs that `--dataset` names (see `read_pairs`) as token ids.

  `tokenizer` is a kind that is trained on both sides of the training pairs ("characters", "bytes", "words" and
  "bpe" with `vocab_size` ids), or a .json file that one was saved as. Pairs with more than `longest_source` or
  `longest_target` tokens, `<start>` and `<end>` not counted, are left out. With `longest_training` so are training
  pairs of which a side has more than that, and their arrays are no wider than they need: short pairs cost less, and
  the test is of all, in arrays as wide as the longest pair of both splits. Raises DataError, one sentence.
  """
  flag, parts = f"--dataset={dataset}", read_pairs(dataset, test_dataset)
  if tokenizer.endswith(".json"):
    codec = load_tokenizer(tokenizer)
    if lacking := [name for name in SPECIAL if name not in codec.special]:
      raise DataError(
        f"--tokenizer={tokenizer}: found no special token {lacking[0]}, expected {', '.join(SPECIAL)}, as a tokenizer "
        "of pairs has them."
      )
  else:
    codec = train_tokenizer(tokenizer, [text for pair in parts[0] for text in pair], vocab_size, SPECIAL)
  start, end = (np.array([codec.special[name]], np.int32) for name in (START, END))
  kept, texts, left_out = [], (), []
  for name, pairs in zip(("training", "test"), parts):
    ids = [(codec.encode(source), codec.encode(target)) for source, target in pairs]
    limits = [longest_source, longest_target]
    if name == "training" and longest_training:
      limits = [min(limit, longest_training) for limit in limits]
    inside = [len(x) <= limits[0] and len(y) <= limits[1] for x, y in ids]
    fits = [pair for pair, fit in zip(ids, inside) if fit]
    texts = tuple(pair for pair, fit in zip(pairs, inside) if fit)
    if not fits:
      shortest = [min(map(len, side)) for side in zip(*ids)]
      raise DataError(
        f"{flag}: no {name} pair is within --longest_source={limits[0]} and --longest_target={limits[1]} "
        f"(the shortest sides have {shortest[0]} and {shortest[1]} tokens), expected one or more."
      )
    if len(fits) < len(ids):
      left_out.append(f"{len(ids) - len(fits)} of {len(ids)} {name} pairs")
    kept.append([(x, np.concatenate([start, y, end])) for x, y in fits])
  longest = lambda *splits: [max(len(pair[side]) for pairs in splits for pair in pairs) for side in (0, 1)]
  expected = expect_pairs(codec.vocab_size, longest_source, longest_target)
  splits = []
  for name, pairs in zip(("training", "test"), kept):
    own = name == "training" and longest_training
    arrays, widths = {}, longest(pairs) if own else longest(*kept)
    for side, values, width in zip(("source", "target"), zip(*pairs), widths):
      padded = pad_sequences(values, width, codec.special[PAD])
      arrays |= {side: padded["tokens"], f"{side}_length": padded["length"]}
    splits.append(NamedArrays(check_arrays(flag, arrays, expected)))
  notes = ()
  if left_out:
    named = f"--longest_source={longest_source} or --longest_target={longest_target}"
    if longest_training:
      named += f" (in training --longest_training={longest_training})"
    notes = (f"{' and '.join(left_out)} are longer than {named} and left out.",)
  if unknown := _count_unknown(codec, splits[1].arrays):
    notes += (f"{unknown} tokens of the test pairs are <unknown>: they are not in the training pairs.",)
  return Pairs(Path(dataset).stem, *splits, codec, notes, texts)


def _count_unknown(codec: Tokenizer, arrays: Mapping[str, np.ndarray]) -> int:
  unknown = codec.special.get(UNKNOWN, -1)
  return sum(int(np.sum(arrays[side] == unknown)) for side in ("source", "target"))


# -- texts -------------------------------------------------------------------------------------------------------------


def read_pairs(dataset: str, test_dataset: str = "") -> tuple[TextPairs, TextPairs]:
  """The (source, target) texts to learn from, and those of `test_dataset` for testing.

  "dates":       dates in words and in numbers, "27 November 2026" and "2026-11-27"; no date is in both splits.
  "brackets":    sentences of a small grammar and their trees, "Tom runs" and "(S (NP Tom ) (VP runs ) )".
  "sentences":   these sentences, each with itself.
  "path.tsv":    a pair in each line that is not blank, a tab between its sides; quotes mean nothing. UTF-8.
  "path.jsonl":  one in the fields `source` and `target` of each line.
  "a.en,b.de":   two files of as many lines, sources in the first and targets in the second.
  "path.txt":    each line that is not blank, with itself.

  Without `test_dataset` a fixed pseudo-random tenth of the pairs is set aside, all with the same source together.
  Raises DataError, one sentence, where there are no such pairs, or a side of one is empty.
  """
  if dataset in BUILT_IN:
    return BUILT_IN[dataset]()
  pairs = _read_file(dataset, f"--dataset={dataset}")
  if test_dataset:
    return pairs, _read_file(test_dataset, f"--test_dataset={test_dataset}")
  sources = list(dict.fromkeys(source for source, _ in pairs))
  _, held_out = hold_out(len(sources), f"--dataset={dataset}")
  tested = {sources[i] for i in held_out}
  return [pair for pair in pairs if pair[0] not in tested], [pair for pair in pairs if pair[0] in tested]


_MONTHS = (
  *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November"),
  "December",
)
_FIRST, _LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
_NUM_DATES, _NUM_TEST = 4000, 400


def _make_dates() -> tuple[TextPairs, TextPairs]:
  """Distinct days of two centuries, fixed and pseudo-random."""
  size = (_LAST - _FIRST).days + 1
  days = [_FIRST + datetime.timedelta(int(i)) for i in permute_index(np.arange(_NUM_DATES), size, np.zeros(2, "u4"))]
  pairs = [(f"{day.day} {_MONTHS[day.month - 1]} {day.year}", day.isoformat()) for day in days]
  return pairs[_NUM_TEST:], pairs[:_NUM_TEST]


def _make_trees() -> TextPairs:
  return [(sentence.words, sentence.tree) for sentence in make_sentences(_NUM_DATES)]


def _cut(pairs: TextPairs) -> tuple[TextPairs, TextPairs]:
  """(training, test) pairs, drawn: sentences that are found late are longer than the first."""
  kept, held_out = hold_out(len(pairs), "--dataset")
  return [pairs[i] for i in kept], [pairs[i] for i in held_out]


BUILT_IN: Mapping[str, Callable[[], tuple[TextPairs, TextPairs]]] = MappingProxyType(
  {
    "dates": _make_dates,
    "brackets": lambda: _cut(_make_trees()),
    "sentences": lambda: _cut([(words, words) for words, _ in _make_trees()]),
  }
)


def _read_file(path: str, flag: str) -> TextPairs:
  if "," in path:
    lines = _join_files(path.split(","), flag)
  elif path.endswith(".txt"):
    lines = ((number, (line, line)) for number, line in _lines_of(path, flag) if line.strip())
  elif path.endswith(".jsonl"):
    lines = json_fields(decode_file(path, flag), flag, ("source", "target"))
  elif path.endswith(".tsv"):
    lines = _split_lines(decode_file(path, flag), flag)
  else:
    expected = f"{', '.join(BUILT_IN)}, a file.tsv, a file.jsonl, two files a.en,b.de or the lines of a file.txt"
    raise DataError(f"{flag}: no such pairs, expected {expected}.")
  pairs = []
  for number, pair in lines:
    for name, side in zip(("source", "target"), pair):
      if not side.strip():
        raise DataError(f"{flag}: line {number}: found an empty {name}, expected a text on both sides.")
    pairs.append(pair)
  if not pairs:
    raise DataError(f"{flag}: found no pair, expected one or more.")
  return pairs


def _lines_of(path: str, flag: str) -> list[tuple[int, str]]:
  """(number, line), without the one that the last line break would begin."""
  lines = decode_file(path, flag).replace("\r\n", "\n").split("\n")
  return list(enumerate(lines[:-1] if lines[-1] == "" else lines, 1))


def _join_files(paths: Sequence[str], flag: str) -> Iterator[tuple[int, tuple[str, str]]]:
  """The lines of two files side by side; those that are blank in both are left out."""
  if len(paths) != 2 or not all(paths):
    raise DataError(f"{flag}: found {len(paths)} names, expected two, a file of sources and one of targets.")
  sides = [_lines_of(path, f"{flag}: {path}") for path in paths]
  if len(sides[0]) != len(sides[1]):
    raise DataError(
      f"{flag}: {paths[0]} has {len(sides[0])} lines and {paths[1]} {len(sides[1])}, expected as many in both."
    )
  for (number, source), (_, target) in zip(*sides):
    if source.strip() or target.strip():
      yield number, (source, target)


def _split_lines(text: str, flag: str) -> Iterator[tuple[int, tuple[str, ...]]]:
  for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
    cells = tuple(line.split("\t"))
    if len(cells) == 1 and not line.strip():
      continue
    if len(cells) != 2:
      raise DataError(
        f"{flag}: line {number} has {len(cells)} column{'s' * (len(cells) > 1)}, expected 2 with a tab between them."
      )
    yield number, cells
