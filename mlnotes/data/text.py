"""Text: documents, and a corpus of them as one array of token ids that windows are cut from.

The manual pages in Python's own `pydoc_data` and its library's documentation strings need no file; a .txt file is a
document, or each of its lines is; a .jsonl file has one in the field `text` of each line, a TFDS data set in the
feature `text` of each example.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Integer

from mlnotes.data.docstrings import read_docstrings
from mlnotes.data.image import DataError
from mlnotes.data.lines import decode_file, json_fields
from mlnotes.data.order import hold_out
from mlnotes.data.split import Expected, check_arrays
from mlnotes.data.tfds_source import load_tfds_texts
from mlnotes.data.tokenizer import END, UNKNOWN, Tokenizer, load_tokenizer, train_tokenizer


def expect_tokens(vocab_size: int) -> Mapping[str, Expected]:
  """What a corpus is: one array of ids."""
  return {"tokens": Expected("T", "iu", np.int32, 0, vocab_size - 1)}


class Windows:
  """A split of windows: example i is the `length` + 1 tokens from position i * `stride` on, inputs and what follows.

    {"tokens": int32 (B, length + 1)}     inputs tokens[:, :-1], targets tokens[:, 1:]

  With `stride` = `length` (0 means that) an epoch predicts every token once, but for the rest at the end that fills no
  window. The array is resident as a whole, in as few bytes an id as the largest one allows; windows are cut from it on
  the device. Raises ValueError for a length or stride below 1, or fewer tokens than one window.
  """

  def __init__(self, tokens: Integer[np.ndarray, " T"], length: int, stride: int = 0):
    stride = stride or length
    if length < 1 or stride < 1:
      raise ValueError(f"length={length}, stride={stride} are out of range: expected 1 or more.")
    if len(tokens) <= length:
      raise ValueError(f"length={length} is out of range: expected less than the {len(tokens)} tokens that there are.")
    if len(tokens) >= 2**31:
      raise ValueError(f"found {len(tokens)} tokens: expected fewer than 2^31.")
    self.length, self.stride = length, stride
    self.arrays = {"tokens": tokens.astype(np.min_scalar_type(int(tokens.max())))}
    self._size = (len(tokens) - 1 - length) // stride + 1
    self.take: Callable = partial(cut_windows, length=length, stride=stride)

  def __len__(self) -> int:
    return self._size

  @property
  def nbytes(self) -> int:
    return self.arrays["tokens"].nbytes

  def read(self, index: Int[np.ndarray, " B"]) -> Mapping[str, np.ndarray]:
    place = np.asarray(index, np.int64)[:, np.newaxis] * self.stride + np.arange(self.length + 1)
    return {"tokens": self.arrays["tokens"][place].astype(np.int32)}


def cut_windows(
  arrays: Mapping[str, Integer[Array, " T"]], index: Int[Array, " B"], length: int, stride: int
) -> dict[str, Int32[Array, "B L"]]:
  """The windows number `index` of `Windows`, on the device."""
  place = index[:, jnp.newaxis] * stride + jnp.arange(length + 1, dtype=jnp.int32)[jnp.newaxis]
  return {"tokens": arrays["tokens"].at[place].get(mode="promise_in_bounds").astype(jnp.int32)}


class Corpus(NamedTuple):
  """Two splits of windows and the tokenizer that made their ids, trained on the training documents alone."""

  name: str
  train: Windows
  test: Windows
  tokenizer: Tokenizer

  @property
  def vocab_size(self) -> int:
    return self.tokenizer.vocab_size

  @property
  def end(self) -> int:
    """The id of <end>, -1 where the training text has none."""
    end = self.tokenizer.special.get(END, -1)
    return end if np.any(self.train.arrays["tokens"] == end) else -1

  @property
  def notes(self) -> tuple[str, ...]:
    """A sentence for each split of which a hundredth or more is <unknown>, which is easily foretold."""
    unknown, found = self.tokenizer.special.get(UNKNOWN, -1), []
    for name, windows in (("training", self.train), ("test", self.test)):
      share = float(np.mean(windows.arrays["tokens"] == unknown))
      if share >= 0.01:
        found.append(f"{share:.0%} of the {name} text's tokens are {UNKNOWN} to the tokenizer.")
    return tuple(found)


class Documents(NamedTuple):
  name: str
  train: tuple[str, ...]
  test: tuple[str, ...]


def load_corpus(
  dataset: str,
  test_dataset: str = "",
  documents: Literal["file", "line"] = "file",
  tokenizer: str = "characters",
  vocab_size: int = 1024,
  end_token: bool = True,
  length: int = 128,
  stride: int = 0,
  data_dir: str = "",
  train_split: str = "train",
  test_split: str = "test",
) -> Corpus:
  """The text that `--dataset` names (see `load_documents`) as windows of `length` + 1 tokens.

  `tokenizer` is a kind that is trained on the training documents ("characters", "bytes", "words" and "bpe"
  with `vocab_size` ids), or a .json file that one was saved as. With `end_token` each document is followed by the
  special token `<end>`. Windows run on from one document into the next; without `end_token` nothing marks where. The
  test windows lie side by side, whatever `stride` is. Raises DataError, one sentence.
  """
  found = load_documents(dataset, test_dataset, documents, data_dir, train_split, test_split)
  special = (END,) if end_token else ()
  if tokenizer.endswith(".json"):
    codec = load_tokenizer(tokenizer)
    if end_token and END not in codec.special:
      raise DataError(f"--tokenizer={tokenizer}: found no special token {END}, expected one, or --noend_token.")
  else:
    codec = train_tokenizer(tokenizer, found.train, vocab_size, special)
  end = codec.special[END] if end_token else None
  splits = []
  for name, texts, step in (("training", found.train, stride), ("test", found.test, length)):
    tokens = join_documents(texts, codec, end)
    tokens = check_arrays(f"--dataset={dataset} ({name})", {"tokens": tokens}, expect_tokens(codec.vocab_size))[
      "tokens"
    ]
    if len(tokens) <= length:
      said = f"--test_dataset={test_dataset}" if name == "test" and test_dataset else f"--dataset={dataset}"
      raise DataError(f"{said}: the {name} text has {len(tokens)} tokens, expected more than --length={length}.")
    splits.append(Windows(tokens, length, step))
  return Corpus(found.name, *splits, codec)


def join_documents(documents: Sequence[str], tokenizer: Tokenizer, end: int | None) -> Int32[np.ndarray, " T"]:
  """The ids of all documents in one array, `end` after each unless it is None."""
  last = np.zeros(0, np.int32) if end is None else np.array([end], np.int32)
  return np.concatenate([part for text in documents for part in (tokenizer.encode(text), last)] or [last])


def pad_sequences(sequences: Sequence[Any], length: int = 0, padding: int = 0) -> dict[str, Int32[np.ndarray, "..."]]:
  """{"tokens": (N, length), "length": (N,)} of sequences of ids of their own lengths, for `NamedArrays`.

  Cut at `length`, filled up with `padding`; 0: as long as the longest.
  """
  sizes = np.array([len(sequence) for sequence in sequences], np.int32)
  length = length or int(sizes.max(initial=0))
  tokens = np.full((len(sequences), length), padding, np.int32)
  for row, sequence in zip(tokens, sequences):
    row[: len(sequence)] = sequence[:length]
  return {"tokens": tokens, "length": np.minimum(sizes, length)}


# -- documents ---------------------------------------------------------------------------------------------------------


def text_kind(dataset: str) -> Literal["pydoc", "docstrings", "file", "tfds"]:
  """What `--dataset` names, without reading it; a folder by a path with a "/", as TFDS' names may be folders too."""
  folder = "/" in dataset and Path(dataset).expanduser().is_dir()
  if dataset in ("pydoc", "docstrings"):
    return dataset
  return "file" if folder or dataset.endswith((".txt", ".jsonl")) else "tfds"


def load_documents(
  dataset: str,
  test_dataset: str = "",
  documents: Literal["file", "line"] = "file",
  data_dir: str = "",
  train_split: str = "train",
  test_split: str = "test",
) -> Documents:
  """The documents that `--dataset` names, those of `test_dataset` for testing.

  "pydoc":       the manual pages inside Python's `pydoc_data`, a document each; they differ between Python's versions.
  "docstrings":  the documentation strings of Python's standard library, a document for each module; likewise.
  "path.txt":    one document, or with `documents` = "line" one in each line that is not blank. UTF-8.
  "path.jsonl":  one in the field `text` of each line.
  a folder:      its .txt files, in the order of their names.
  other names:   the feature `text` of a TFDS data set, prepared under `data_dir`; `train_split` and `test_split`
                 choose its splits, slices such as "train[:90%]" included.

  Without `test_dataset` a fixed pseudo-random tenth of the documents is set aside, equal ones together; of a
  single one its end, a tenth, from the start of a line where one starts in its first half; of the lines in a folder
  those that `read_labelled` sets aside. Raises DataError, one sentence.
  """
  if text_kind(dataset) == "tfds":
    return Documents(dataset, *load_tfds_texts(dataset, data_dir, train_split, test_split))
  flag, name = f"--dataset={dataset}", Path(dataset).stem
  texts = _read_documents(dataset, documents, flag)
  if test_dataset:
    return Documents(name, texts, _read_documents(test_dataset, documents, f"--test_dataset={test_dataset}"))
  if len(texts) == 1:
    return Documents(name, *_cut_end(texts[0], flag))
  groups = [list(dict.fromkeys(texts))]
  if documents == "line" and Path(dataset).expanduser().is_dir():
    files = [list(dict.fromkeys(_read_documents(str(file), documents, flag))) for file in _text_files(dataset)]
    groups = files if min(map(len, files)) > 1 else groups
  tested = {distinct[i] for distinct in groups for i in hold_out(len(distinct), flag)[1]}
  parts = ([text for text in texts if text not in tested], [text for text in texts if text in tested])
  return Documents(name, *map(tuple, parts))


def _text_files(folder: str) -> list[Path]:
  return sorted(Path(folder).expanduser().glob("*.txt"))


def _cut_end(text: str, flag: str) -> tuple[tuple[str], tuple[str]]:
  """A text without its last tenth, and that: from the start of a line on, where one starts in its first half."""
  if len(text) < 2:
    raise DataError(f"{flag}: found a single character, expected 2 or more to set a test split aside.")
  cut = len(text) - max(1, len(text) // 10)
  line = text.find("\n", cut - 1) + 1
  cut = line if line > 0 and 2 * (line - cut) < len(text) - cut else cut
  return (text[:cut],), (text[cut:],)


def _read_documents(dataset: str, documents: str, flag: str) -> tuple[str, ...]:
  if dataset == "pydoc":
    from pydoc_data.topics import topics

    return tuple(topics[name] for name in sorted(topics))
  if dataset == "docstrings":
    return read_docstrings()
  if text_kind(dataset) != "file":
    raise DataError(
      f"{flag}: no such text, expected pydoc, docstrings, a file.txt, a file.jsonl or a folder of .txt files."
    )
  if Path(dataset).expanduser().is_dir():
    files = _text_files(dataset)
    if not files:
      raise DataError(f"{flag}: found no .txt file in the folder, expected one or more.")
    return tuple(text for file in files for text in _read_documents(str(file), documents, f"{flag} ({file.name})"))
  text = decode_file(dataset, flag)
  if dataset.endswith(".jsonl"):
    found = [fields[0] for _, fields in json_fields(text, flag, ("text",))]
  else:
    found = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()] if documents == "line" else [text]
  found = [text for text in found if text]
  if not found:
    raise DataError(f"{flag}: found no text, expected a character or more.")
  return tuple(found)
