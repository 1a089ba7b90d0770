"""What a stack that reads with any mask learns from hidden words: BERT, UniLM, SpanBERT, XLNet.

Windows hold T + 1 tokens, of which the first T are used: those of a test text that lie side by side share none. What is
hidden is drawn by `prepare`. Each loss is the sum over the chosen words, divided by their number in the whole batch.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mlnotes.attention.mask import Mask
from mlnotes.engine.experiment import Mean
from mlnotes.lm.masking import BoundaryHead, mask_spans, mask_words
from mlnotes.lm.model import EncoderDecoder, LanguageModel
from mlnotes.lm.objective import Objective, make_head, read_hidden, router_weights, score_words
from mlnotes.lm.packing import document_mask
from mlnotes.lm.permutation import permute
from mlnotes.lm.prefix import draw_reading
from mlnotes.lm.vocabulary import Vocabulary

# Of the kinds of masks, in the order of their numbers. Dong et al. 2019, sec. 2.
UNILM_SHARES = {"bidirectional": 1 / 3, "forward": 1 / 6, "backward": 1 / 6, "prefix": 1 / 3}


def see_all(tokens: Int[Array, "B T"], end: int | None) -> Mask:
  """Every token sees every other, or with `end` those of its own document."""
  return Mask() if end is None else document_mask(tokens, end, causal=False)


def row_of(batch: Any) -> Any:
  """The one row of arrays (1, ...)."""
  return jax.tree.map(lambda x: x[0], batch)


def masked_objective(
  module: LanguageModel, vocabulary: Vocabulary, chunks: int = 1, end: int | None = None, **rates: Any
) -> Objective:
  """Hidden words are said from both sides. Devlin et al. 2019, sec. 3.1, task 1; `rates` are `mask_words`'.

  With `end`, documents do not see each other. Special tokens are never hidden, so `end` stays where it was.
  """

  def terms(params, examples, key):
    hidden, of_experts = read_hidden(module, params, examples.inputs, see_all(examples.targets, end), key)
    return score_words(make_head(module, params, key), hidden, *examples[1:], chunks) | of_experts

  return Objective(
    init=lambda key, examples: module.init(key, examples.inputs)["params"],
    prepare=lambda key, tokens: row_of(mask_words(key, tokens[None, :-1], vocabulary, **rates)),
    terms=terms,
    weights={"loss": 1.0, **router_weights(module)},
  )


def unilm_objective(module: LanguageModel, vocabulary: Vocabulary, chunks: int = 1, **rates: Any) -> Objective:
  """Hidden words are said from what one of four masks shows, drawn for each row. Dong et al. 2019, sec. 2.

  The second segment of a row begins at a place drawn uniformly. The loss of each kind of mask is told as well.
  Differences from the paper: single words are hidden, no pairs of sentences are told apart.
  """

  def prepare(key, tokens):
    of_words, of_source, of_kind = jax.random.split(key, 3)
    places = len(tokens) - 1
    source = jax.random.randint(of_source, (1,), 1, max(places, 2))
    masked = mask_words(of_words, tokens[None, :-1], vocabulary, **rates)
    return row_of((masked, draw_reading(of_kind, source, places, shares=tuple(UNILM_SHARES.values()))))

  def terms(params, examples, key):
    masked, reading = examples
    hidden, of_experts = read_hidden(module, params, masked.inputs, reading.mask, key)
    found = score_words(make_head(module, params, key), hidden, masked.targets, masked.weights, chunks)
    kinds = {
      f"{name}_loss": Mean(*(jnp.where(reading.kind == i, x, 0) for x in found["loss"]))
      for i, name in enumerate(UNILM_SHARES)
    }
    return found | kinds | of_experts

  return Objective(
    init=lambda key, examples: module.init(key, examples[0].inputs)["params"],
    prepare=prepare,
    terms=terms,
    weights={"loss": 1.0, **router_weights(module)},
  )


def span_objective(
  module: LanguageModel,
  vocabulary: Vocabulary,
  chunks: int = 1,
  p: float = 0.2,
  longest: int = 10,
  **rates: Any,
) -> Objective:
  """Hidden spans are said twice: from all that is read, and from the two tokens around each. Joshi et al. 2020, sec. 3.

  Terms of weight 1 each: "loss" as BERT's, and "boundary_loss" of the spans that have a token on both sides, whose
  features are `BoundaryHead`'s and whose matrix is the same. Parameters are {"model", "boundary"}. `p`, `longest` and
  `rates` are `mask_spans`'.
  Difference from the paper: each of the two is a mean over its own words; there both are over all that are hidden.
  """
  boundary = BoundaryHead(longest, dtype=module.dtype)

  def init(key, examples):
    of_model, of_boundary = jax.random.split(key)
    hidden = jnp.zeros((*examples.inputs.shape, module.transformer.width), module.dtype or jnp.float32)
    model = module.init(of_model, examples.inputs)["params"]
    return {"model": model, "boundary": boundary.init(of_boundary, hidden, examples)["params"]}

  def terms(params, examples, key):
    hidden, of_experts = read_hidden(module, params["model"], examples.inputs, Mask(), key)
    around = boundary.apply({"params": params["boundary"]}, hidden, examples)
    head = make_head(module, params["model"], key)
    found = score_words(head, hidden, examples.targets, examples.weights, chunks)
    beside = score_words(head, around, examples.targets, examples.boundary_weights, chunks)
    return found | {f"boundary_{name}": term for name, term in beside.items()} | of_experts

  return Objective(
    init=init,
    prepare=lambda key, tokens: row_of(
      mask_spans(key, tokens[None, :-1], vocabulary, None, p=p, longest=longest, **rates)
    ),
    terms=terms,
    weights={"loss": 1.0, "boundary_loss": 1.0, **router_weights(module)},
  )


def permutation_objective(
  module: LanguageModel, vocabulary: Vocabulary, chunks: int = 1, share: float = 1 / 6
) -> Objective:
  """The last `share` of a random order, each from what comes before it. Yang et al. 2019, sec. 2.2, 2.3.

  Queries stand behind the tokens, `permute`: the module reads 7/6 of a window for K = 6, and must tell places apart by
  the mask's positions. Differences from the paper: no memory of earlier windows; positions are told as the module tells
  them.
  """

  def terms(params, examples, key):
    hidden, of_experts = read_hidden(module, params, examples.inputs, examples.mask, key)
    asked = hidden[:, -examples.targets.shape[1] :]
    return score_words(make_head(module, params, key), asked, examples.targets, examples.weights, chunks) | of_experts

  return Objective(
    init=lambda key, examples: module.init(key, examples.inputs, examples.mask)["params"],
    prepare=lambda key, tokens: row_of(permute(key, tokens[None, :-1], vocabulary, None, share)),
    terms=terms,
    weights={"loss": 1.0, **router_weights(module)},
  )


def features_said(
  module: LanguageModel | EncoderDecoder, params: Any, hidden: Float[Array, "B T D"]
) -> Int[Array, "B T"]:
  """The likeliest token of each."""
  return jnp.argmax(make_head(module, params, None)(hidden), -1)
