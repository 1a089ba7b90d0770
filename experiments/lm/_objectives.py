"""What --objective names: from the flags and the text to what is learned, and how it is shown."""

from collections.abc import Callable
from typing import Any

from experiments.lm._encoder_objectives import masked, permutation, prefix, replaced, spans
from experiments.lm._models import build_decoder
from experiments.lm._sequence_objectives import corrupted, fragment, infilling
from experiments.lm._task import EVAL_SEED as EVAL_SEED, Applied as Applied, Task, reader
from experiments.lm._text import Model, report_text
from experiments.lm._weights import start_from_weights
from mlnotes.data import Corpus, DistantWindows
from mlnotes.data.flags import load_data
from mlnotes.engine.errors import InputError
from mlnotes.lm import causal_objective


def causal(config: Any, corpus: Corpus) -> Task:
  """GPT's: each token from those before it."""
  module, end = build_decoder(config, corpus.vocab_size), corpus.end
  packed = end if config.packed else None
  objective = causal_objective(module, config.head_chunks, packed)
  model = lambda params: Model(module, params, packed)
  report = lambda params, directory: report_text(config, corpus, model(params), directory)
  return Task(objective, model, report, reader(module))


def load_text(config: Any) -> Corpus:
  """The text of the flags; with --pairs=next a stretch from elsewhere stands behind each window.

  Raises as `load_data` does, and InputError for a text that is too short for that.
  """
  corpus = load_data(config)
  if config.objective != "masked" or config.pairs != "next":
    return corpus
  try:
    return corpus._replace(**{name: DistantWindows(getattr(corpus, name), corpus.end) for name in ("train", "test")})
  except ValueError as error:
    raise InputError(f"--pairs=next: {error}") from error


def make_task(config: Any, corpus: Corpus) -> Task:
  """The task of --objective, whose first parameters are those of --weights where there are any."""
  task = OBJECTIVES[config.objective](config, corpus)
  return start_from_weights(config, task) if config.weights else task


# {name: (config, corpus) -> Task}.
OBJECTIVES: dict[str, Callable[[Any, Corpus], Task]] = {
  "causal": causal,
  "masked": masked,
  "prefix": prefix,
  "spans": spans,
  "permutation": permutation,
  "replaced": replaced,
  "corrupted": corrupted,
  "fragment": fragment,
  "infilling": infilling,
}
