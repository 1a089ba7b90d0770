"""Hidden words of two stretches of a text, and a question about the two: BERT's, or ALBERT's on BERT's rows."""

from collections.abc import Callable
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
from mlnotes.lm.pairs import Pairs, Sentences, next_sentence_pairs, pack_pairs, sentence_order_pairs
from mlnotes.lm.vocabulary import Vocabulary

MARKS = 3  # [CLS] first [SEP] second [SEP]


class MaskedPair(NamedTuple):
  """Rows of two stretches, some of whose words are hidden. `follows`: the second is what follows the first."""

  masked: Masked
  segments: Int[Array, "B T"]
  follows: Bool[Array, " B"]


class _Question(NamedTuple):
  """What is asked of two stretches.

  Attributes:
    name: of its parameters and figures.
    cut: tokens of one row -> its stretches, of which the first pair is asked about.
    pair: (key, sentences) -> pairs.
  """

  name: str
  cut: Callable[[Int[Array, " U"]], Sentences]
  pair: Callable[[Key[Array, ""], Sentences], Pairs]


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
  cut = lambda tokens: _stretches(tokens, (len(tokens) - 1) // 2, (0, 0))
  question = _Question("order", cut, sentence_order_pairs)
  return _pair_objective(question, module, vocabulary, classify, separate, chunks, rates)


def next_objective(
  module: LanguageModel, vocabulary: Vocabulary, classify: int, separate: int, chunks: int = 1, **rates: Any
) -> Objective:
  """Hidden words as BERT's, and whether what stands behind a stretch follows it. Devlin et al. 2019, sec. 3.1, task 2.

  Rows are `DistantWindows`': T + 1 tokens, and T // 2 more from elsewhere, which in half of the pairs take the place of
  the window's second half. Terms, parameters and arguments as `order_objective`'s, called "next".
  Differences from the paper: stretches are half a window each and not cut where sentences end; what does not follow is
  drawn by its place, so that long documents are drawn from more often.
  """
  cut = lambda tokens: _stretches(tokens, (len(tokens) - 1) // 3, (0, 0, 1))
  question = _Question("next", cut, next_sentence_pairs)
  return _pair_objective(question, module, vocabulary, classify, separate, chunks, rates)


def _stretches(tokens: Int[Array, " U"], half: int, document: tuple[int, ...]) -> Sentences:
  """The two halves of a window, and of three the one at the row's end, with the document that each is of."""
  found = [tokens[:half], tokens[half : 2 * half], tokens[len(tokens) - half :]][: len(document)]
  return Sentences(
    jnp.stack(found).astype(jnp.int32), jnp.full((len(found),), half, jnp.int32), jnp.asarray(document, jnp.int32)
  )


def _pair_objective(
  question: _Question, module: LanguageModel, vocabulary: Vocabulary, classify: int, separate: int, chunks: int,
  rates: dict[str, Any],
) -> Objective:  # fmt: skip
  name, head = question.name, SentenceHead(1, "first", tanh=True, dtype=module.dtype)

  def prepare(key: Key[Array, ""], tokens: Int[Array, " U"]) -> MaskedPair:
    of_pair, of_words = jax.random.split(key)
    sentences = question.cut(tokens)
    pairs = question.pair(of_pair, sentences)
    packed = pack_pairs(sentences, pairs, classify, separate, vocabulary.pad)
    masked = mask_words(of_words, packed.tokens[:1], vocabulary, **rates)
    return row_of(MaskedPair(masked, packed.segments, pairs.label))

  def init(key, examples):
    of_model, of_question = jax.random.split(key)
    tokens = examples.masked.inputs
    hidden = jnp.zeros((*tokens.shape, module.transformer.width), module.dtype or jnp.float32)
    model = module.init(of_model, tokens, types=examples.segments)["params"]
    return {"model": model, name: head.init(of_question, hidden, _full(tokens))["params"]}

  def terms(params, examples, key):
    masked = examples.masked
    hidden, of_experts = read_hidden(module, params["model"], masked.inputs, Mask(), key, types=examples.segments)
    found = score_words(make_head(module, params["model"], key), hidden, masked.targets, masked.weights, chunks)
    logits = head.apply({"params": params[name]}, hidden, _full(masked.inputs))[:, 0]
    nats = optax.sigmoid_binary_cross_entropy(logits, examples.follows.astype(jnp.float32))
    right, ones = ((logits > 0) == examples.follows).astype(jnp.float32), jnp.ones_like(nats)
    return found | {f"{name}_loss": Mean(nats, ones), f"{name}_accuracy": Mean(right, ones)} | of_experts

  return Objective(init, prepare, terms, {"loss": 1.0, f"{name}_loss": 1.0, **router_weights(module)})


def _full(tokens: Int[Array, "B T"]) -> Int[Array, " B"]:
  return jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32)
