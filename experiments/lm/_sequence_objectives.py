"""Objectives of an encoder with a decoder: from the flags and the text to what is learned."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.lm._corruption import Ids, add_ids, find_ends
from experiments.lm._models import build_bart, build_t5
from experiments.lm._task import Applied, Filled, Task, make_task
from mlnotes.data import Corpus
from mlnotes.lm import EncoderDecoder
from mlnotes.lm.encoder_objectives import features_said
from mlnotes.lm.sequence_objectives import (
  Corruption,
  corruption_by_infilling,
  corruption_of_fragment,
  corruption_of_spans,
  decode_shown,
  encode_text,
  sequence_objective,
)
from mlnotes.lm.span_corruption import count_sentinels


def _task(config: Any, corpus: Corpus, ids: Ids, module: EncoderDecoder, corrupt: Corruption) -> Task:
  """What is said is said beside what stood before it; what tuning reads are the encoder's features."""
  objective = sequence_objective(module, corrupt, config.head_chunks)

  def fill(params, examples):
    said = features_said(module, params, decode_shown(module, params, examples))
    return Filled(examples.source, jnp.where(examples.weights > 0, said, ids.vocabulary.pad), examples.targets)

  read = lambda params, tokens, lengths, key: encode_text(module, params, tokens, lengths, key)
  return make_task(corpus, ids, objective, lambda params: Applied(module, params), fill, read)


def corrupted(config: Any, corpus: Corpus) -> Task:
  """T5's: what the sentinels stand for."""
  rates = dict(rate=config.mask_rate, mean_span=config.mean_span)
  sentinels = count_sentinels(config.length, **rates)
  ids = add_ids(corpus, sentinels)
  module = build_t5(config, ids.vocabulary.size)
  corrupt = corruption_of_spans(ids.vocabulary, sentinels=sentinels, **rates)
  return _task(config, corpus, ids, module, corrupt)


def fragment(config: Any, corpus: Corpus) -> Task:
  """MASS's: a fragment that the encoder does not see."""
  ids = add_ids(corpus)
  module = build_bart(config, ids.vocabulary.size)
  shares = dict(share=config.fragment_share, mask_share=config.mask_share, random_share=config.random_share)
  return _task(config, corpus, ids, module, corruption_of_fragment(ids.vocabulary, **shares))


def infilling(config: Any, corpus: Corpus) -> Task:
  """BART's: the text as it was, from one with spans hidden and its sentences in another order."""
  ids = add_ids(corpus, 1)
  module, found = build_bart(config, ids.vocabulary.size), np.array(find_ends(corpus))
  ends = (lambda tokens: jnp.isin(tokens, found)) if config.permute_sentences else None
  rates = dict(rate=config.infill_rate, mean_span=config.mean_span)
  corrupt = corruption_by_infilling(ids.vocabulary, ids.vocabulary.size - 1, ends, **rates)
  return _task(config, corpus, ids, module, corrupt)
