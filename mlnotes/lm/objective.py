"""What a language model learns from windows of a text: a few pure functions, and the gradient that they all share."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mlnotes.attention.mask import Mask
from mlnotes.engine.experiment import Mean
from mlnotes.lm.loss import head_cross_entropy
from mlnotes.lm.model import LanguageModel
from mlnotes.lm.packing import document_mask

# Of the losses that keep a router's loads even and its logits small.
ROUTER_WEIGHTS = {"balance_loss": 0.01, "z_loss": 0.001}
# Sums and counts of each example, both (B,).
Terms = Mapping[str, Mean]


class Objective(NamedTuple):
  """A way to learn from text.

  init:    (key, examples) -> params.
  prepare: (key, tokens (T + 1,)) -> what is shown and what is asked of one window, a dict of arrays. Corruption is
           drawn here, by the key alone, so that an evaluation corrupts every window the same way each time. Of
           `next_objective` more tokens stand behind the window.
  terms:   (params, examples, key) -> {name: Mean of sums and counts, each (B,)}, one row for each window. `key` is for
           dropout; None where nothing is trained.
  weights: {name: weight}: what is minimised is the weighted sum of these terms' means. The others are only told.
  """

  init: Callable[[Key[Array, ""], Any], chex.ArrayTree]
  prepare: Callable[[Key[Array, ""], Array], Any]
  terms: Callable[[chex.ArrayTree, Any, Key[Array, ""] | None], Terms]
  weights: Mapping[str, float]


def causal_objective(module: LanguageModel, chunks: int = 1, end: int | None = None) -> Objective:
  """Each token is foretold from those before it. Radford et al. 2018, eq. 1.

  `chunks` is `head_cross_entropy`'s. With `end`, documents in a row do not see each other (`document_mask`). Of experts
  the balance and z-losses are terms as well, means over the layers. In training logits are rounded to the module's
  dtype.
  """

  def terms(params, examples, key) -> Terms:
    tokens = examples["tokens"]
    shown, asked = tokens[:, :-1], tokens[:, 1:]
    mask = None if end is None else document_mask(shown, end)
    hidden, of_experts = read_hidden(module, params, shown, mask, key)
    losses, right = head_cross_entropy(make_head(module, params, key), hidden, asked, chunks)
    count = jnp.full(tokens.shape[:1], asked.shape[1], jnp.float32)
    found = {"loss": Mean(jnp.sum(losses, 1), count), "accuracy": Mean(jnp.sum(right, 1).astype(jnp.float32), count)}
    return found | of_experts

  return Objective(
    init=lambda key, examples: module.init(key, examples["tokens"][:, :-1])["params"],
    prepare=lambda key, tokens: {"tokens": tokens},
    terms=terms,
    weights={"loss": 1.0, **router_weights(module)},
  )


def router_weights(module: LanguageModel) -> Mapping[str, float]:
  """Those of the terms that experts add; none where there are none."""
  return {} if module.transformer.make_feed_forward is None else ROUTER_WEIGHTS


def read_hidden(
  module: LanguageModel,
  params: chex.ArrayTree,
  tokens: Int[Array, "B T"],
  mask: Mask | None = None,
  key: Key[Array, ""] | None = None,
  embedded: Float[Array, "B T D"] | None = None,
  types: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], Terms]:
  """(what the head reads, the terms of experts, means over the layers); with dropout where a key is given.

  `embedded` takes the place of the tokens' embeddings; `types` are the tokens' kinds.
  """
  options = {"train": key is not None, "rngs": None if key is None else {"dropout": key}, "method": "hidden"}
  options |= {name: x for name, x in (("embedded", embedded), ("types", types)) if x is not None}
  names = router_weights(module)
  if not names:
    return module.apply({"params": params}, tokens, mask, **options), {}
  hidden, sown = module.apply({"params": params}, tokens, mask, **options, mutable=["intermediates"])
  return hidden, {name: _of_layers(sown, name, jnp.ones(len(tokens))) for name in names}


def make_head(module: Any, params: chex.ArrayTree, key: Key[Array, ""] | None) -> Callable[[Array], Array]:
  """Features to logits; where there is a key, as in training, rounded to the module's dtype."""
  dtype = (module.dtype if key is not None else None) or jnp.float32
  return lambda hidden: module.apply({"params": params}, hidden, dtype, method="logits")


def score_words(
  head: Callable[[Array], Array],
  hidden: Float[Array, "B T D"],
  targets: Int[Array, "B T"],
  weights: Float[Array, "B T"],
  chunks: int = 1,
) -> dict[str, Mean]:
  """The cross entropy and how often nothing was likelier, where `weights` is 1. `chunks` is `head_cross_entropy`'s."""
  losses, right = head_cross_entropy(head, hidden, targets, chunks)
  over = lambda x: Mean(jnp.sum(x * weights, 1), jnp.sum(weights, 1))
  return {"loss": over(losses), "accuracy": over(right.astype(jnp.float32))}


def _of_layers(sown: Mapping[str, Any], name: str, like: Float[Array, " B"]) -> Mean:
  """What every layer's experts have sown by that name, the mean over layers, the same for every row."""
  leaves = jax.tree_util.tree_leaves_with_path(sown["intermediates"])
  found = [x for path, x in leaves if any(getattr(entry, "key", "") == name for entry in path)]
  mean = jnp.mean(jnp.stack(found))
  return Mean(jnp.full_like(like, mean), jnp.ones_like(like))


def compute_gradients(
  objective: Objective, params: chex.ArrayTree, examples: Any, key: Key[Array, ""], parts: int = 1
) -> tuple[chex.ArrayTree, dict[str, Float[Array, ""] | Mean]]:
  """(gradient of the weighted sum, {name: mean of each term}) of a batch, that of its `parts` one after the other.

  Terms without a weight are a `Mean` of sum and count: a batch may have nothing that one is of, and means over many
  batches are then of those that have. Of several weights the sum is there too, as "objective", and as "loss" where no
  term has that name.

  Sums are divided by the counts of the whole batch, whatever the parts: rows of unequal counts weigh what they would
  weigh together. Parts take every `parts`-th row, so that each of several devices keeps rows of all; they are added in
  the parameters' dtype, and differ in their dropout. Raises ValueError where `parts` does not divide the batch.
  """
  rows = jax.tree.leaves(examples)[0].shape[0]
  if parts < 1 or rows % parts:
    raise ValueError(f"parts is {parts}, expected a divisor of the {rows} rows")
  total = lambda terms: jax.tree.map(jnp.sum, terms)
  counts_of = lambda terms: {name: jnp.maximum(term.count, 1) for name, term in terms.items()}
  # What the counts do not need is not computed.
  counts = counts_of(total(objective.terms(params, examples, None))) if parts > 1 else None

  def part_of_loss(params, examples, key):
    found = total(objective.terms(params, examples, key))
    over = counts or counts_of(found)
    return sum(weight * found[name].total / over[name] for name, weight in objective.weights.items()), found

  gradient = jax.value_and_grad(part_of_loss, has_aux=True)
  if parts == 1:
    (minimised, found), grads = gradient(params, examples, key)
  else:
    split = lambda x: jnp.moveaxis(x.reshape(rows // parts, parts, *x.shape[1:]), 1, 0)
    given = jax.tree.map(split, examples), jax.random.split(key, parts)
    like = jax.eval_shape(lambda: gradient(params, *jax.tree.map(lambda x: x[0], given)))
    add = lambda carry, one: (jax.tree.map(jnp.add, carry, gradient(params, *one)), None)
    ((minimised, found), grads), _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), given)
  over = counts_of(found)
  means = {name: term.total / over[name] if name in objective.weights else term for name, term in found.items()}
  whole = {"objective": minimised} if len(objective.weights) > 1 else {}
  return grads, {"loss": minimised, **whole, **means}
