"""The flags of an experiment that learns from a data set, and the data and feeds that they describe."""

import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mlnotes.data.audio import Audio, audio_kind, load_audio
from mlnotes.data.dataset import DataSet, describe_classes
from mlnotes.data.feeds import Feeds, make_split_feeds
from mlnotes.data.fingerprint import fingerprint
from mlnotes.data.graph import Graph, load_graph, make_graph_feeds
from mlnotes.data.graph_set import GraphSet, load_graph_set
from mlnotes.data.pairs import BUILT_IN as BUILT_IN_PAIRS, Pairs, load_pairs
from mlnotes.data.source import kind_of, load
from mlnotes.data.table import BUILT_IN, Table, load_table
from mlnotes.data.text import Corpus, load_corpus, text_kind
from mlnotes.engine.errors import InputError, require
from mlnotes.engine.flags import BaseConfig, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedConfig(BaseConfig):
  """The flags of an experiment that learns from batches of examples, of whatever kind."""

  batch_size: int = field(128, "examples per update, over all devices")
  data_placement: Literal["auto", "device", "stream"] = field(
    "auto", "where training data lives: on the device, streamed from the host, or whichever fits", free=True
  )
  eval_examples: int = field(0, "evaluate on a fixed subset of this many test examples; 0: all")

  def __post_init__(self):
    super().__post_init__()
    require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
    require(self.eval_examples >= 0, "eval_examples", self.eval_examples, "0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(FeedConfig):
  """The flags of an experiment that learns from images."""

  dataset: str = field(
    "digits",
    "digits (built in; digits_halves: tested on other writers), sprites (built in, drawn), a file.npz with image and "
    "label, a folder of class folders, or the name of a TFDS set",
  )
  data_dir: str = field(
    "", "directory of prepared TFDS data sets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets", free=True
  )
  train_split: str = field(
    "train", "split of a TFDS data set (slices such as train[:90%] work) or folder, to learn from"
  )
  test_split: str = field("test", "split of a TFDS set or folder to evaluate on")
  image_size: int = field(0, "pixels a side that images are resized to; 0: as they are")

  def __post_init__(self):
    super().__post_init__()
    require(self.image_size >= 0, "image_size", self.image_size, "0 or more")

  def idle_flags(self):
    idle, kind = super().idle_flags(), kind_of(self.dataset, self.data_dir)
    if kind != "tfds":
      idle["data_dir"] = f"--dataset={self.dataset} is no TFDS data set"
    if kind in ("digits", "sprites", "npz"):
      idle |= dict.fromkeys(("train_split", "test_split"), f"--dataset={self.dataset} has its own two splits")
    return idle


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableConfig(FeedConfig):
  """The flags of an experiment that learns from a table."""

  dataset: str = field("diabetes", "diabetes, iris, wine, breast_cancer (built in), a file.csv or a file.npz")
  test_dataset: str = field("", "a file of the same kind to evaluate on; empty: a fixed part of --dataset")
  target: str = field("", "column of a file.csv to predict; empty: the last, none: no one")
  target_kind: Literal["auto", "number", "class"] = field(
    "auto", "what the target is; auto: words of a .csv, whole numbers and truth values of an .npz are classes"
  )
  categories: Literal["refuse", "encode"] = field(
    "refuse", "columns of words in a file.csv: refuse them, or encode them as whole numbers"
  )
  standardize: Literal["none", "x", "xy"] = field(
    "x", "bring x, or a number y as well, to mean 0 and deviation 1 over the training split"
  )
  batch_size: int = 32

  def idle_flags(self):
    idle = super().idle_flags()
    if not self.dataset.endswith(".csv"):
      idle |= dict.fromkeys(("target", "categories"), f"--dataset={self.dataset} is no .csv file")
    if self.dataset in BUILT_IN:
      idle["test_dataset"] = f"--dataset={self.dataset} has its own two splits"
    if self.target == "none" and "target" not in idle:
      idle["target_kind"] = "--target=none leaves nothing to predict"
    return idle


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(FeedConfig):
  """The flags of an experiment that learns from windows of a text."""

  dataset: str = field(
    "pydoc",
    "pydoc (built in: the manual pages of Python), docstrings (of its library), a file.txt, a file.jsonl, a folder of "
    ".txt files, or the name of a TFDS set",
  )
  test_dataset: str = field("", "a file of the same kind to evaluate on; empty: a fixed part of --dataset")
  documents: Literal["file", "line"] = field("file", "what is a document in a file.txt: the whole file, or each line")
  tokenizer: str = field(
    "characters", "characters, bytes, words or bpe, trained on the training text, or a file.json of one"
  )
  vocab_size: int = field(1024, "how many ids --tokenizer=bpe has, and words at most")
  end_token: bool = field(
    True, "put the special token <end> after each document; windows run across documents, nothing else marks their ends"
  )
  length: int = field(128, "tokens of a window that are predicted")
  stride: int = field(
    0, "tokens between the starts of two training windows; 0: --length, each is predicted once an epoch"
  )
  data_dir: str = field(
    "", "directory of prepared TFDS data sets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets", free=True
  )
  train_split: str = field("train", "split of a TFDS data set (slices such as train[:90%] work) to learn from")
  test_split: str = field("test", "split of a TFDS data set to evaluate on")
  batch_size: int = 32

  def __post_init__(self):
    super().__post_init__()
    require(self.length >= 1, "length", self.length, "1 or more")
    require(self.stride >= 0, "stride", self.stride, "0 or more")

  def idle_flags(self):
    idle = super().idle_flags()
    has_lines = lambda path: text_kind(path) == "file" and not path.endswith(".jsonl")
    if not has_lines(self.dataset) and not has_lines(self.test_dataset):
      other = f" and --test_dataset={self.test_dataset}" if self.test_dataset else ""
      idle["documents"] = f"--dataset={self.dataset}{other} {'are' if other else 'is'} no .txt file and no folder"
    if self.tokenizer not in ("words", "bpe"):
      idle["vocab_size"] = f"--tokenizer={self.tokenizer} has the size that it has"
    if text_kind(self.dataset) != "tfds":
      idle |= dict.fromkeys(("data_dir", "train_split", "test_split"), f"--dataset={self.dataset} is no TFDS data set")
    else:
      idle["test_dataset"] = f"--dataset={self.dataset} has its own splits"
    return idle


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig(FeedConfig):
  """The flags of an experiment that learns from pairs of sequences."""

  dataset: str = field(
    "dates",
    "dates (built in: one date in words and in numbers), brackets (sentences and their trees), sentences (each with "
    "itself), a file.tsv, a file.jsonl, two files a.en,b.de, or a file.txt whose lines are paired with themselves",
  )
  test_dataset: str = field("", "a file (or two) of such a kind to evaluate on; empty: a fixed part of --dataset")
  tokenizer: str = field(
    "characters", "characters, bytes, words or bpe, trained on both sides of the training pairs, or a file.json of one"
  )
  vocab_size: int = field(1024, "how many ids --tokenizer=bpe has, and words at most")
  longest_source: int = field(256, "leave out pairs whose source has more tokens than this")
  longest_target: int = field(256, "leave out pairs whose target has more tokens, <start> and <end> not counted")
  longest_training: int = field(
    0, "leave out training pairs of which a side has more tokens than this, and test on all; 0: the limits above"
  )
  batch_size: int = 32

  def __post_init__(self):
    super().__post_init__()
    require(self.longest_training >= 0, "longest_training", self.longest_training, "0 or more")
    require(self.longest_source >= 1, "longest_source", self.longest_source, "1 or more")
    require(self.longest_target >= 1, "longest_target", self.longest_target, "1 or more")

  def idle_flags(self):
    idle = super().idle_flags()
    if self.dataset in BUILT_IN_PAIRS:
      idle["test_dataset"] = f"--dataset={self.dataset} has its own two splits"
    if self.tokenizer not in ("words", "bpe"):
      idle["vocab_size"] = f"--tokenizer={self.tokenizer} has the size that it has"
    return idle


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioConfig(FeedConfig):
  """The flags of an experiment that learns from clips of sound."""

  dataset: str = field(
    "tones", "tones (built in), a folder of class folders of .wav, or a file.npz with audio and label"
  )
  train_split: str = field("train", "split of a folder to learn from")
  test_split: str = field("test", "split of a folder to evaluate on")
  seconds: float = field(1.0, "cut clips at this many seconds, or fill them up with zeros; 0: as long as the longest")
  batch_size: int = 32

  def __post_init__(self):
    super().__post_init__()
    require(0 <= self.seconds < float("inf"), "seconds", self.seconds, "0 or more")

  def idle_flags(self):
    idle = super().idle_flags()
    if audio_kind(self.dataset) != "folder":
      idle |= dict.fromkeys(("train_split", "test_split"), f"--dataset={self.dataset} has its own two splits")
    return idle


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphConfig(BaseConfig):
  """The flags of an experiment that learns from one graph, whole in every update."""

  dataset: str = field("karate", "karate (built in), sbm (drawn from --graph_seed) or a file.npz in the sparse form")
  undirected: bool = field(True, "add the reverse of each edge of a file, drop loops and repetitions")
  nodes: int = field(200, "nodes of --dataset=sbm")
  blocks: int = field(4, "blocks of --dataset=sbm, its classes")
  p_within: float = field(0.1, "probability of an edge inside a block of --dataset=sbm")
  p_between: float = field(0.01, "probability of an edge between two blocks of --dataset=sbm")
  graph_seed: int = field(0, "seed that --dataset=sbm is drawn from")
  eval_split: Literal["valid", "test"] = field(
    "valid", "nodes to evaluate on, which choose the best checkpoint; test where no node is in valid"
  )

  def __post_init__(self):
    super().__post_init__()
    require(self.nodes >= 4, "nodes", self.nodes, "4 or more")
    require(1 <= self.blocks <= self.nodes // 4, "blocks", self.blocks, "1 to a quarter of --nodes")
    require(0 <= self.p_within <= 1, "p_within", self.p_within, "0 to 1")
    require(0 <= self.p_between <= 1, "p_between", self.p_between, "0 to 1")
    require(0 <= self.graph_seed < 2**32, "graph_seed", self.graph_seed, "0 to 2^32 - 1")

  def idle_flags(self):
    idle = super().idle_flags()
    if self.dataset != "sbm":
      names = ("nodes", "blocks", "p_within", "p_between", "graph_seed")
      idle |= dict.fromkeys(names, f"--dataset={self.dataset} is not drawn")
    if not self.dataset.endswith(".npz"):
      idle["undirected"] = f"--dataset={self.dataset} is undirected"
    return idle


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphSetConfig(BaseConfig):
  """The flags of an experiment that learns from many graphs, each of which has a class."""

  dataset: str = field(
    "models", "models (of random graphs, drawn from --graph_seed), digits (as grids), or a file.npz of a collection"
  )
  graph_seed: int = field(0, "seed that --dataset=models is drawn from")

  def __post_init__(self):
    super().__post_init__()
    require(0 <= self.graph_seed < 2**32, "graph_seed", self.graph_seed, "0 to 2^32 - 1")

  def idle_flags(self):
    idle = super().idle_flags()
    if self.dataset != "models":
      idle["graph_seed"] = f"--dataset={self.dataset} is not drawn"
    return idle


Data: TypeAlias = DataSet | Table | Corpus | Pairs | Audio | Graph | GraphSet

# (a part of a config, what reads the data that its flags name); the fields are the arguments of the same names.
_KINDS = (
  (TableConfig, load_table),
  (TextConfig, load_corpus),
  (PairConfig, load_pairs),
  (AudioConfig, load_audio),
  (GraphConfig, load_graph),
  (GraphSetConfig, load_graph_set),
)


@functools.lru_cache(maxsize=1)
def _load(read: Callable[..., Data], arguments: tuple[tuple[str, Any], ...]) -> Data:
  return read(**dict(arguments))


def load_data(config: Any) -> Data:
  """The data that the fields of `DataConfig` or another kind's config name, kept for another call.

  Images are a `DataSet`, the others a `Table`, a `Corpus` of text, `Pairs`, `Audio`, a `Graph`, a `GraphSet`. Raises
  DataError as what reads them does: `load`, `load_table`, `load_corpus`, `load_pairs`, `load_audio`, `load_graph`,
  `load_graph_set`.
  """
  _require_same_tokens(config)
  read = next((read for part, read in _KINDS if isinstance(config, part)), load)
  return _load(
    read, tuple((name, getattr(config, name)) for name in inspect.signature(read).parameters if hasattr(config, name))
  )


def _require_same_tokens(config: Any) -> None:
  """A run that starts from another must mean the same by each token: a tokenizer is trained on its own text."""
  run = getattr(config, "start_from", "")
  if not run or not hasattr(config, "tokenizer") or config.tokenizer == "bytes" or config.tokenizer.endswith(".json"):
    return
  try:
    was = json.loads((Path(run).expanduser() / "config.json").read_text(encoding="utf-8"))["config"]
  except (OSError, ValueError, KeyError, TypeError):
    return  # the loop says so
  sized = ("vocab_size",) if config.tokenizer in ("words", "bpe") else ()
  names = ("dataset", "tokenizer", *sized, "documents", "train_split", "end_token")
  spell = lambda value: str(value).lower() if isinstance(value, bool) else str(value)
  for name in names:
    if hasattr(config, name) and name in was and spell(was[name]) != spell(getattr(config, name)):
      raise InputError(
        f"--start_from={run} has learned the tokens of --{name}={was[name]}, found --{name}={getattr(config, name)}: "
        "expected the same, or --tokenizer=FILE.json of one tokenizer for both."
      )


@functools.cache
def note(text: str) -> None:
  """Once, however often the feeds are made."""
  print(f"note: {text}", file=sys.stderr)


def make_feeds(data: Data, config: Any) -> Feeds:
  """Training batches drawn on the device or streamed to it, and the test split in order; or the whole graph for both.

  `config` has the fields of the kind's config, and `seed`, `seeds` and `fsdp`. Raises InputError as `make_split_feeds`
  does, DataError as `make_graph_feeds` and `describe_classes` do. Notes say what the latter says of images and clips,
  that a y is no number where `standardize` asks for one, which pairs were left out, and which clips cut.
  """
  if isinstance(data, Graph):
    return make_graph_feeds(data, config.eval_split if data.arrays[config.eval_split].any() else "test")
  said = [*getattr(data, "notes", ())]
  if isinstance(data, DataSet | Audio):
    said += describe_classes(data, "clip" if isinstance(data, Audio) else "image")
  for sentence in said:
    note(f"--dataset={config.dataset}: {sentence}")
  if isinstance(data, Table) and config.standardize == "xy" and ("y" not in data.train.arrays or data.num_classes):
    found = f"y is one of {data.num_classes} classes" if data.num_classes else "there is no y"
    note(f"--standardize=xy: {found}, so that x alone is standardised.")
  return make_split_feeds(data.train, data.test, config, fingerprint(data) if isinstance(data, DataSet) else "")
