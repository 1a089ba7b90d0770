"""Data sets in, batches out: images, tables, texts, pairs of sequences, sounds, graphs, and any named arrays."""

from mlnotes.data.arrays import make_array_feeds
from mlnotes.data.audio import Audio, load_audio, read_wav
from mlnotes.data.dataset import ArraySplit, DataError, DataSet, RecordSplit
from mlnotes.data.distant import DistantWindows
from mlnotes.data.drawn import make_drawn_eval, make_drawn_feed
from mlnotes.data.drawn_graphs import SmallGraphs, load_small_graphs
from mlnotes.data.feed import (
  EMPTY_FEED,
  EvalBatches,
  ResidentFeed,
  StreamFeed,
  choose_placement,
  make_eval_batches,
  make_resident_feed,
  make_stream_feed,
  make_whole_eval,
  make_whole_feed,
)
from mlnotes.data.feeds import Feeds, make_split_feeds
from mlnotes.data.graph import Graph, load_graph, make_graph, make_graph_feeds
from mlnotes.data.graph_set import GraphSet, load_graph_set, make_graph_set
from mlnotes.data.instructions import Instructions, read_instructions
from mlnotes.data.labelled import LabelledTexts, read_labelled
from mlnotes.data.order import fixed_subset
from mlnotes.data.pairs import Pairs, load_pairs, read_pairs
from mlnotes.data.source import load
from mlnotes.data.split import Expected, NamedArrays, Split, check_arrays
from mlnotes.data.table import Table, load_table, standardize
from mlnotes.data.text import Corpus, Windows, load_corpus, load_documents, pad_sequences
from mlnotes.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

__all__ = [
  "EMPTY_FEED",
  "ArraySplit",
  "Audio",
  "Corpus",
  "DataError",
  "DataSet",
  "DistantWindows",
  "EvalBatches",
  "Expected",
  "Feeds",
  "Graph",
  "GraphSet",
  "Instructions",
  "LabelledTexts",
  "NamedArrays",
  "Pairs",
  "RecordSplit",
  "ResidentFeed",
  "SmallGraphs",
  "Split",
  "StreamFeed",
  "Table",
  "Tokenizer",
  "Windows",
  "check_arrays",
  "choose_placement",
  "fixed_subset",
  "load",
  "load_audio",
  "load_corpus",
  "load_documents",
  "load_graph",
  "load_graph_set",
  "load_pairs",
  "load_small_graphs",
  "load_table",
  "load_tokenizer",
  "make_array_feeds",
  "make_drawn_eval",
  "make_drawn_feed",
  "make_eval_batches",
  "make_graph",
  "make_graph_feeds",
  "make_graph_set",
  "make_resident_feed",
  "make_split_feeds",
  "make_stream_feed",
  "make_whole_eval",
  "make_whole_feed",
  "pad_sequences",
  "read_instructions",
  "read_labelled",
  "read_pairs",
  "read_wav",
  "standardize",
  "train_tokenizer",
]
