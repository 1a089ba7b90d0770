"""Tokenizers: text to whole numbers and back.

    tokenizer = train_tokenizer("bpe", documents, vocab_size=1024, special=("<end>",))
    ids = tokenizer.encode("a text")          # int32
    tokenizer.decode(ids)                     # "a text"
    tokenizer.save("tokenizer.json")          # load_tokenizer("tokenizer.json")

Special tokens have the last ids. No text encodes to one, not even its own name, so that nobody's data can end a
document: they are added by who means them, as `tokenizer.special["<end>"]`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from mlnotes.data.image import DataError
from mlnotes.engine.errors import nearest

KINDS = ("characters", "bytes", "words", "bpe")
# What ends a document.
END = "<end>"
# What a character that was not in the training text becomes, and is decoded as (U+FFFD).
UNKNOWN, _REPLACEMENT = "<unknown>", "\ufffd"


class Tokenizer:
  """What all kinds have in common; a kind encodes to ids below `num_pieces` and decodes these.

  Attributes:
    kind: one of KINDS.
    num_pieces: how many ids stand for text.
    special: {name: id} of the special tokens, `num_pieces` and up.
  """

  kind: str
  num_pieces: int

  def __init__(self, special: Sequence[str]):
    if len(set(special)) != len(special):
      raise ValueError(f"special={tuple(special)} names a token twice: expected distinct names.")
    self.special: Mapping[str, int] = {name: self.num_pieces + i for i, name in enumerate(special)}

  @property
  def vocab_size(self) -> int:
    """How many ids there are: all are below it."""
    return self.num_pieces + len(self.special)

  def encode(self, text: str) -> Int32[np.ndarray, " L"]:
    """The ids of `text`. Raises UnicodeEncodeError for lone surrogates, which are no characters."""
    raise NotImplementedError

  def decode(self, ids: Any) -> str:
    """The text of `ids`, without special tokens; U+FFFD for what is no character. Raises ValueError for other ids."""
    ids = np.asarray(ids).reshape(-1).astype(np.int64)
    for bad in ids[(ids < 0) | (ids >= self.vocab_size)][:1]:
      raise ValueError(f"found the id {bad}: expected 0 to {self.vocab_size - 1}.")
    return self._decode(ids)

  def _decode(self, ids: np.ndarray) -> str:
    raise NotImplementedError

  def _settings(self) -> dict[str, Any]:
    return {}

  def save(self, path: str | Path) -> None:
    """Writes it as JSON, for `load_tokenizer`."""
    content = {"tokenizer": self.kind, "special": list(self.special), **self._settings()}
    Path(path).write_text(json.dumps(content, ensure_ascii=True, indent=1) + "\n", encoding="utf-8")

  def __eq__(self, other: Any) -> bool:
    same = type(self) is type(other) and self.special == other.special
    return same and self._settings() == other._settings()

  __hash__ = None


class Characters(Tokenizer):
  """A token for each of `alphabet`'s characters, in their order; any other is `<unknown>`, always a special token."""

  kind = "characters"

  def __init__(self, alphabet: str, special: Sequence[str] = ()):
    if not alphabet or len(set(alphabet)) != len(alphabet):
      raise ValueError(f"alphabet={alphabet!r} is none: expected one or more distinct characters.")
    self.alphabet, self.num_pieces = alphabet, len(alphabet)
    super().__init__((UNKNOWN, *(name for name in special if name != UNKNOWN)))
    points = np.array([ord(character) for character in alphabet])
    self._order = np.argsort(points).astype(np.int32)
    self._points = points[self._order]

  def encode(self, text: str) -> Int32[np.ndarray, " L"]:
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    place = np.minimum(np.searchsorted(self._points, points), self.num_pieces - 1)
    return np.where(self._points[place] == points, self._order[place], np.int32(self.special[UNKNOWN]))

  def _decode(self, ids: np.ndarray) -> str:
    letters = {self.special[UNKNOWN]: _REPLACEMENT, **dict(enumerate(self.alphabet))}
    return "".join(letters.get(i, "") for i in ids.tolist())

  def _settings(self):
    return {"alphabet": self.alphabet}


class Bytes(Tokenizer):
  """A token for each of the 256 bytes of UTF-8: nothing to learn, nothing unknown."""

  kind = "bytes"
  num_pieces = 256

  def __init__(self, special: Sequence[str] = ()):
    super().__init__(special)

  def encode(self, text: str) -> Int32[np.ndarray, " L"]:
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

  def _decode(self, ids: np.ndarray) -> str:
    return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class Words(Tokenizer):
  """A token for each of `words`, as whitespace parts them; any other word is `<unknown>`, always a special token.

  Text comes back with one space between words: what else stood there is lost.
  """

  kind = "words"

  def __init__(self, words: Sequence[str], special: Sequence[str] = ()):
    if not words or len(set(words)) != len(words) or any(word.split() != [word] for word in words):
      raise ValueError(f"words={tuple(words)[:8]} are none: expected one or more distinct words without whitespace.")
    self.words, self.num_pieces = tuple(words), len(words)
    self._ids = {word: i for i, word in enumerate(words)}
    super().__init__((UNKNOWN, *(name for name in special if name != UNKNOWN)))

  @classmethod
  def train(cls, documents: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> "Words":
    """The words that are most frequent in `documents`, up to `vocab_size` ids in all, the special ones included.

    Of equally frequent ones the first in the alphabet. Raises ValueError where there is no word or no room for one.
    """
    room = vocab_size - len({UNKNOWN, *special})
    if room < 1:
      raise ValueError(f"vocab_size={vocab_size} is out of range: expected {vocab_size - room + 1} or more.")
    counts = Counter(word for text in documents for word in text.split())
    return cls(sorted(counts, key=lambda word: (-counts[word], word))[:room], special)

  def encode(self, text: str) -> Int32[np.ndarray, " L"]:
    unknown = self.special[UNKNOWN]
    return np.array([self._ids.get(word, unknown) for word in text.split()], np.int32)

  def _decode(self, ids: np.ndarray) -> str:
    pieces = {self.special[UNKNOWN]: _REPLACEMENT, **dict(enumerate(self.words))}
    return " ".join(pieces[i] for i in ids.tolist() if i in pieces)

  def _settings(self):
    return {"words": list(self.words)}


class BytePairs(Tokenizer):
  """Byte-pair encoding (Sennrich et al. 2016) over the bytes of UTF-8, as GPT-2 has it: nothing is unknown.

  `model` is the JSON of a tokenizer of the package `tokenizers`, which does the work. It keeps no token of its own
  apart from the text's pieces: these, unlike the special ones here, are met in the text.
  """

  kind = "bpe"

  def __init__(self, model: str, special: Sequence[str] = ()):
    self._model = _tokenizers().Tokenizer.from_str(model)
    self.num_pieces = self._model.get_vocab_size()
    super().__init__(special)

  @classmethod
  def train(cls, documents: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> "BytePairs":
    """The pairs that are most frequent in `documents`, up to `vocab_size` ids in all, the special ones included.

    Fewer where the text has no more pairs. Raises ValueError for less than the 256 bytes and the special tokens.
    """
    library = _tokenizers()
    if vocab_size < 256 + len(special):
      raise ValueError(f"vocab_size={vocab_size} is out of range: expected {256 + len(special)} or more.")
    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    model.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
      vocab_size=vocab_size - len(special),
      special_tokens=[],
      initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
      show_progress=False,
    )
    model.train_from_iterator(documents, trainer)
    return cls(model.to_str(), special)

  def encode(self, text: str) -> Int32[np.ndarray, " L"]:
    text.encode("utf-8")  # the package ends in a panic
    return np.array(self._model.encode(text, add_special_tokens=False).ids, np.int32)

  def _decode(self, ids: np.ndarray) -> str:
    return self._model.decode(ids[ids < self.num_pieces].tolist(), skip_special_tokens=False)

  def _settings(self):
    return {"model": json.loads(self._model.to_str())}


# The names that special tokens have in the files of others, those that come first before the others.
_THEIRS = {END: ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]"), UNKNOWN: ("[UNK]", "<unk>")}


class HuggingFace(Tokenizer):
  """A tokenizer.json of Hugging Face's form, its ids as they are: special tokens have ids among the others.

  What ends a text there is `<end>` here as well, what stands for nothing known `<unknown>`. `encode` adds no token, and
  takes a special token's name in a text for text. Truncation and padding that the file asks for are left out.
  """

  kind = "hugging_face"

  def __init__(self, model: str):
    self._model = _tokenizers().Tokenizer.from_str(model)
    self._model.no_truncation()
    self._model.no_padding()
    self._model.encode_special_tokens = True
    self.num_pieces = self._model.get_vocab_size(with_added_tokens=True)
    super().__init__(())
    added = {token.content: i for i, token in self._model.get_added_tokens_decoder().items() if token.special}
    named = {ours: [added[name] for name in theirs if name in added] for ours, theirs in _THEIRS.items()}
    self.special = added | {name: ids[0] for name, ids in named.items() if ids}

  @property
  def vocab_size(self) -> int:
    return self.num_pieces

  def encode(self, text: str) -> Int32[np.ndarray, " L"]:
    text.encode("utf-8")  # the package ends in a panic
    return np.array(self._model.encode(text, add_special_tokens=False).ids, np.int32)

  def _decode(self, ids: np.ndarray) -> str:
    return self._model.decode(ids.tolist(), skip_special_tokens=True)

  def _settings(self):
    return {"model": json.loads(self._model.to_str())}


def _tokenizers() -> Any:
  try:
    import tokenizers
    import tokenizers.decoders
    import tokenizers.models
    import tokenizers.pre_tokenizers
    import tokenizers.trainers
  except ImportError as error:
    raise DataError(
      "--tokenizer=bpe: the package tokenizers is not installed, expected pip install -e '.[text]', or "
      "--tokenizer=bytes."
    ) from error
  return tokenizers


def train_tokenizer(
  kind: str, documents: Sequence[str], vocab_size: int = 1024, special: Sequence[str] = ()
) -> Tokenizer:
  """A tokenizer of `kind` for `documents`, the training split alone; `vocab_size` is for "words" and "bpe".

  "characters" takes those that occur. Raises DataError for another kind, no word, or a vocabulary that is too small.
  """
  if kind == "bytes":
    return Bytes(special)
  if kind == "characters":
    return Characters("".join(sorted(set().union(*documents))), special)
  if kind == "words":
    try:
      return Words.train(documents, vocab_size, special)
    except ValueError as error:
      raise DataError(f"--tokenizer=words: {error}") from error
  if kind != "bpe":
    expected = nearest(kind, KINDS, f"expected one of {', '.join(KINDS)}, or a file.json.")
    raise DataError(f"--tokenizer={kind} is none: {expected}")
  least = 256 + len(special)
  if vocab_size < least:
    raise DataError(f"--vocab_size={vocab_size} is out of range: expected {least} or more, a token for each byte.")
  return BytePairs.train(documents, vocab_size, special)


def load_tokenizer(path: str | Path) -> Tokenizer:
  """What `save` wrote, or a tokenizer.json of Hugging Face's form. Raises DataError for a file that is neither."""
  flag, expected = f"--tokenizer={path}", "a .json file that a tokenizer's save has written, or a tokenizer.json"
  try:
    content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise DataError(f"{flag}: no such file, expected {expected}.") from error
  except (OSError, ValueError) as error:
    raise DataError(f"{flag}: not readable ({error}), expected {expected}.") from error
  try:
    if "model" in content and "added_tokens" in content:
      return HuggingFace(json.dumps(content))
    if content["tokenizer"] == "hugging_face":
      return HuggingFace(json.dumps(content["model"]))
    special = tuple(content["special"])
    if content["tokenizer"] == "characters":
      return Characters(content["alphabet"], special)
    if content["tokenizer"] == "bytes":
      return Bytes(special)
    if content["tokenizer"] == "words":
      return Words(content["words"], special)
    if content["tokenizer"] == "bpe":
      return BytePairs(json.dumps(content["model"]), special)
    reason = f"the kind {content['tokenizer']!r}"
  except DataError:
    raise
  except Exception as error:  # the package raises Exception itself
    reason = f"{type(error).__name__}: {error}"
  raise DataError(f"{flag}: no tokenizer ({reason}), expected {expected}.")
