"""What --objective names: from the flags and the text to what is learned, and how it is shown."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.lm._models import build_decoder
from experiments.lm._text import Model, report_text
from experiments.sequence.char_lm import end_of
from mlnotes.data import Corpus
from mlnotes.lm import Objective, causal_objective


class Task(NamedTuple):
  """An objective of a text.

  model:  (params) -> what `mlnotes.load_run` gives.
  report: (params, directory) -> {name: number}; writes what there is to see.
  """

  objective: Objective
  model: Callable[[Any], Any]
  report: Callable[[Any, Path], Mapping[str, float]]


def causal(config: Any, corpus: Corpus) -> Task:
  """GPT's: each token from those before it."""
  module, end = build_decoder(config, corpus.vocab_size), end_of(corpus)
  packed = end if config.packed else None
  objective = causal_objective(module, config.head_chunks, packed)
  model = lambda params: Model(module, params, packed)
  return Task(objective, model, lambda params, directory: report_text(config, corpus, model(params), directory))


# {name: (config, corpus) -> Task}.
OBJECTIVES: dict[str, Callable[[Any, Corpus], Task]] = {"causal": causal}
