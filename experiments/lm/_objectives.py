"""What --objective names: from the flags and the text to what is learned, and how it is shown."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.lm._corruption import Ids, add_ids, name_ids
from experiments.lm._models import build_decoder
from experiments.lm._text import Model, report_text
from mlnotes.attention.mask import Mask
from mlnotes.data import Corpus
from mlnotes.engine.experiment import example_keys, root_key
from mlnotes.lm import LanguageModel, Objective, causal_objective
from mlnotes.lm.encoder_objectives import features_said, masked_objective, see_all, unilm_objective
from mlnotes.lm.objective import read_hidden

EVAL_SEED = 0  # of what an evaluation corrupts
_SHOWN = 8  # windows of filled.txt


class Task(NamedTuple):
  """An objective of a text.

  model:  (params) -> what `mlnotes.load_run` gives.
  report: (params, directory) -> {name: number}; writes what there is to see.
  read:   (params, tokens (B, T), lengths (B,), key) -> features (B, T, D) of a text of which nothing is hidden, as this
          model reads it: what tuning puts its heads on. With dropout where a key is given; padding is seen by nobody.
  """

  objective: Objective
  model: Callable[[Any], Any]
  report: Callable[[Any, Path], Mapping[str, float]]
  read: Callable[[Any, Array, Array, Array | None], Array]


def causal(config: Any, corpus: Corpus) -> Task:
  """GPT's: each token from those before it."""
  module, end = build_decoder(config, corpus.vocab_size), corpus.end
  packed = end if config.packed else None
  objective = causal_objective(module, config.head_chunks, packed)
  model = lambda params: Model(module, params, packed)
  report = lambda params, directory: report_text(config, corpus, model(params), directory)
  return Task(objective, model, report, reader(module))


def reader(module: LanguageModel):
  """`Task.read` of a stack, under the mask that is its own."""

  def read(params, tokens, lengths, key):
    return read_hidden(module, params, tokens, Mask.of_self(causal=module.causal, lengths=lengths), key)[0]

  return read


class Applied(NamedTuple):
  """The module with its parameters: what it is given goes to the module."""

  module: Any
  params: Any

  def __call__(self, *args: Any, **options: Any) -> Any:
    return self.module.apply({"params": self.params}, *args, **options)


class Filled(NamedTuple):
  """Tokens (B, .): what was read, what was said of it, and what stood there."""

  read: Array
  said: Array
  stood: Array


def _task(config, corpus, ids: Ids, objective: Objective, model, fill: Callable[[Any, Any], Filled], read) -> Task:
  """`fill` is (params, examples) -> Filled."""

  def report(params, directory):
    rows = corpus.test.read(np.arange(min(_SHOWN, len(corpus.test))))
    tokens = jnp.asarray(rows["tokens"])
    keys = example_keys(root_key(EVAL_SEED), jnp.arange(len(tokens)))
    filled = jax.jit(lambda params: fill(params, jax.vmap(objective.prepare)(keys, tokens)))(params)
    lines = []
    for row in zip(*(np.asarray(x) for x in filled)):
      lines += [f"{name:6}{name_ids(corpus, ids, tokens)}" for name, tokens in zip(Filled._fields, row)]
      lines.append("")
    (directory / "filled.txt").write_text("\n".join(lines), encoding="utf-8")
    return {}

  return Task(objective, model, report, read)


def _build_encoder(config: Any, vocabulary: int) -> LanguageModel:
  """--model under a mask that shows everything where no other is given."""
  return build_decoder(config, vocabulary).clone(causal=False)


def _rates(config: Any) -> dict[str, float]:
  return dict(rate=config.mask_rate, mask_share=config.mask_share, random_share=config.random_share)


def _put(masked: Any, said: Array) -> Filled:
  return Filled(masked.inputs, jnp.where(masked.weights > 0, said, masked.targets), masked.targets)


def masked(config: Any, corpus: Corpus) -> Task:
  """BERT's: hidden words from both sides."""
  ids, end = add_ids(corpus), corpus.end if config.packed else None
  module = _build_encoder(config, ids.vocabulary.size)
  objective = masked_objective(module, ids.vocabulary, config.head_chunks, end, **_rates(config))

  def fill(params, examples):
    hidden, _ = read_hidden(module, params, examples.inputs, see_all(examples.targets, end))
    return _put(examples, features_said(module, params, hidden))

  return _task(config, corpus, ids, objective, lambda params: Applied(module, params), fill, reader(module))


def prefix(config: Any, corpus: Corpus) -> Task:
  """UniLM's: hidden words from both sides, from one, or from a source and what is before."""
  ids = add_ids(corpus)
  module = _build_encoder(config, ids.vocabulary.size)
  objective = unilm_objective(module, ids.vocabulary, config.head_chunks, **_rates(config))

  def fill(params, examples):
    masked, reading = examples
    hidden, _ = read_hidden(module, params, masked.inputs, reading.mask)
    return _put(masked, features_said(module, params, hidden))

  return _task(config, corpus, ids, objective, lambda params: Applied(module, params), fill, reader(module))


# {name: (config, corpus) -> Task}.
OBJECTIVES: dict[str, Callable[[Any, Corpus], Task]] = {"causal": causal, "masked": masked, "prefix": prefix}
