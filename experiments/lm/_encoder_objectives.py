"""Objectives of a stack that reads with any mask: from the flags and the text to what is learned."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.lm._corruption import add_ids
from experiments.lm._models import build_decoder, build_generator
from experiments.lm._task import Applied, Filled, Task, make_task, reader
from mlnotes.data import Corpus
from mlnotes.lm import LanguageModel
from mlnotes.lm.encoder_objectives import (
  features_said,
  masked_objective,
  permutation_objective,
  see_all,
  span_objective,
  unilm_objective,
)
from mlnotes.lm.objective import read_hidden
from mlnotes.lm.pair_objective import next_objective, order_objective, pair_length
from mlnotes.lm.replaced_objective import Electra, electra_parts, replaced_objective


def _build_encoder(config: Any, vocabulary: int) -> LanguageModel:
  """--model under a mask that shows everything where no other is given."""
  return build_decoder(config, vocabulary).clone(causal=False)


def _rates(config: Any) -> dict[str, float]:
  return dict(rate=config.mask_rate, mask_share=config.mask_share, random_share=config.random_share)


def _put(masked: Any, said: Array) -> Filled:
  return Filled(masked.inputs, jnp.where(masked.weights > 0, said, masked.targets), masked.targets)


def masked(config: Any, corpus: Corpus) -> Task:
  """BERT's: hidden words from both sides."""
  if config.pairs != "none":
    return _masked_pairs(config, corpus)
  ids, end = add_ids(corpus), corpus.end if config.packed else None
  module = _build_encoder(config, ids.vocabulary.size)
  objective = masked_objective(module, ids.vocabulary, config.head_chunks, end, **_rates(config))

  def fill(params, examples):
    hidden, _ = read_hidden(module, params, examples.inputs, see_all(examples.targets, end))
    return _put(examples, features_said(module, params, hidden))

  return make_task(corpus, ids, objective, lambda params: Applied(module, params), fill, reader(module))


def _masked_pairs(config: Any, corpus: Corpus) -> Task:
  """Also which half came first, or whether the second follows, of rows [CLS] half [SEP] half [SEP]."""
  ids = add_ids(corpus, 2)
  classify, separate = ids.vocabulary.size - 2, ids.vocabulary.size - 1
  module = _build_encoder(config, ids.vocabulary.size).clone(types=2, length=pair_length(config.length))
  ask = {"order": order_objective, "next": next_objective}[config.pairs]
  objective = ask(module, ids.vocabulary, classify, separate, config.head_chunks, **_rates(config))

  def fill(params, examples):
    hidden, _ = read_hidden(module, params["model"], examples.masked.inputs, types=examples.segments)
    return _put(examples.masked, features_said(module, params["model"], hidden))

  model = lambda params: Applied(module, params["model"])
  return make_task(corpus, ids, objective, model, fill, reader(module, "model"), part="model")


def prefix(config: Any, corpus: Corpus) -> Task:
  """UniLM's: hidden words from both sides, from one, or from a source and what is before."""
  ids = add_ids(corpus)
  module = _build_encoder(config, ids.vocabulary.size)
  objective = unilm_objective(module, ids.vocabulary, config.head_chunks, **_rates(config))

  def fill(params, examples):
    masked, reading = examples
    hidden, _ = read_hidden(module, params, masked.inputs, reading.mask)
    return _put(masked, features_said(module, params, hidden))

  return make_task(corpus, ids, objective, lambda params: Applied(module, params), fill, reader(module))


def spans(config: Any, corpus: Corpus) -> Task:
  """SpanBERT's: hidden spans from both sides, and from the two tokens around each."""
  ids = add_ids(corpus)
  module = _build_encoder(config, ids.vocabulary.size)
  lengths = dict(p=config.span_p, longest=config.span_longest)
  objective = span_objective(module, ids.vocabulary, config.head_chunks, **lengths, **_rates(config))

  def fill(params, examples):
    hidden, _ = read_hidden(module, params["model"], examples.inputs)
    return _put(examples, features_said(module, params["model"], hidden))

  model = lambda params: Applied(module, params["model"])
  return make_task(corpus, ids, objective, model, fill, reader(module, "model"), part="model")


def permutation(config: Any, corpus: Corpus) -> Task:
  """XLNet's: the last of a random order, each from what comes before it. Plain text is read from both sides."""
  ids = add_ids(corpus)
  module = _build_encoder(config, ids.vocabulary.size)
  objective = permutation_objective(module, ids.vocabulary, config.head_chunks, 1 / config.prediction_k)

  def fill(params, examples):
    tokens, count = examples.inputs[:, : config.length], examples.targets.shape[1]
    hidden, _ = read_hidden(module, params, examples.inputs, examples.mask)
    said = features_said(module, params, hidden[:, -count:])
    places = jnp.where(examples.weights > 0, examples.places, config.length)
    rows = jnp.arange(len(tokens))[:, None]
    put = lambda what: tokens.at[rows, places].set(what, mode="drop")
    return Filled(put(ids.vocabulary.mask), put(said), tokens)

  return make_task(corpus, ids, objective, lambda params: Applied(module, params), fill, reader(module))


class Detector(NamedTuple):
  """Tokens (B, T) to logits (B, T) of each being another one than the text's."""

  electra: Electra
  params: Any

  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T"]:
    return self.electra.judge(self.params, tokens)[0]


def replaced(config: Any, corpus: Corpus) -> Task:
  """ELECTRA's: which tokens has a small generator put in?"""
  ids = add_ids(corpus)
  module = _build_encoder(config, ids.vocabulary.size)
  electra = electra_parts(build_generator(config, ids.vocabulary.size).clone(causal=False), module)
  weight = config.discriminator_weight
  objective = replaced_objective(electra, ids.vocabulary, config.head_chunks, weight, **_rates(config))

  def fill(params, examples):
    """What the discriminator read, with the mask where it said that this was put in, and the text."""
    read = electra.fill(params, examples)[2].inputs
    flagged = electra.judge(params, read)[0] > 0
    return Filled(read, jnp.where(flagged, ids.vocabulary.require_mask(), read), examples.masked.targets)

  part = "discriminator"
  read, model = reader(electra.discriminator, part), lambda params: Detector(electra, params)
  return make_task(corpus, ids, objective, model, fill, read, part=part, term="discriminator_loss")
