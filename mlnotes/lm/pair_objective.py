"""Hidden words of two halves of a text, and which of the halves came first: BERT's rows with ALBERT's question."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, Key

from mlnotes.attention.mask import Mask
from mlnotes.engine.experiment import Mean
from mlnotes.lm.encoder_objectives import row_of
from mlnotes.lm.heads import SentenceHead
from mlnotes.lm.masking import Masked, mask_words
from mlnotes.lm.model import LanguageModel
from mlnotes.lm.objective import Objective, make_head, read_hidden, router_weights, score_words
from mlnotes.lm.pairs import Sentences, pack_pairs, sentence_order_pairs
from mlnotes.lm.vocabulary import Vocabulary

MARKS = 3  # [CLS] first [SEP] second [SEP]


class MaskedPair(NamedTuple):
  """Rows of two halves, some of whose words are hidden. `in_order` is True where the halves stand as in the text."""

  masked: Masked
  segments: Int[Array, "B T"]
  in_order: Bool[Array, " B"]


def pair_length(length: int) -> int:
  """Tokens of a row made of a window of `length`, whose last token is left out where it is odd."""
  return 2 * (length // 2) + MARKS


def order_objective(
  module: LanguageModel, vocabulary: Vocabulary, classify: int, separate: int, chunks: int = 1, **rates: Any
) -> Objective:
  """Hidden words as BERT's, and whether two halves of a window were exchanged. Lan et al. 2020, sec. 3.1.

  Terms of weight 1 each: "loss" of the words, and "order_loss" from the features of the id `classify` at the front, by
  BERT's pooler and a number. `module` tells two types of tokens apart; parameters are {"model", "order"}. `classify`
  and `separate` must be special ids. `rates` are `mask_words`'.
  Differences from the paper: halves are not cut where sentences end; single words are hidden.
  """
  head = SentenceHead(1, "first", tanh=True, dtype=module.dtype)

  def prepare(key: Key[Array, ""], tokens: Int[Array, " U"]) -> MaskedPair:
    of_order, of_words = jax.random.split(key)
    half = (len(tokens) - 1) // 2
    halves = tokens[: 2 * half].reshape(2, half).astype(jnp.int32)
    sentences = Sentences(halves, jnp.full((2,), half, jnp.int32), jnp.zeros((2,), jnp.int32))
    pairs = sentence_order_pairs(of_order, sentences)
    packed = pack_pairs(sentences, pairs, classify, separate, vocabulary.pad)
    masked = mask_words(of_words, packed.tokens[:1], vocabulary, **rates)
    return row_of(MaskedPair(masked, packed.segments, pairs.label))

  def init(key, examples):
    of_model, of_order = jax.random.split(key)
    tokens = examples.masked.inputs
    hidden = jnp.zeros((*tokens.shape, module.transformer.width), module.dtype or jnp.float32)
    model = module.init(of_model, tokens, types=examples.segments)["params"]
    return {"model": model, "order": head.init(of_order, hidden, _full(tokens))["params"]}

  def terms(params, examples, key):
    masked = examples.masked
    hidden, of_experts = read_hidden(module, params["model"], masked.inputs, Mask(), key, types=examples.segments)
    found = score_words(make_head(module, params["model"], key), hidden, masked.targets, masked.weights, chunks)
    logits = head.apply({"params": params["order"]}, hidden, _full(masked.inputs))[:, 0]
    nats = optax.sigmoid_binary_cross_entropy(logits, examples.in_order.astype(jnp.float32))
    right, ones = (logits > 0) == examples.in_order, jnp.ones_like(nats)
    return (
      found | {"order_loss": Mean(nats, ones), "order_accuracy": Mean(right.astype(jnp.float32), ones)} | of_experts
    )

  return Objective(init, prepare, terms, {"loss": 1.0, "order_loss": 1.0, **router_weights(module)})


def _full(tokens: Int[Array, "B T"]) -> Int[Array, " B"]:
  return jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32)
