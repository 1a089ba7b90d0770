"""Hidden words of two halves, and which came first: the rows, the two losses, what tells the halves apart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlnotes.attention import Mask
from mlnotes.lm import SentenceHead, Vocabulary, make_gpt2
from mlnotes.lm.pair_objective import next_objective, order_objective, pair_length

PAD, MASK, CLASSIFY, SEPARATE, FIRST, SIZE, PLACES = 0, 1, 2, 3, 4, 40, 9
VOCABULARY = Vocabulary(SIZE, (PAD, MASK, CLASSIFY, SEPARATE), mask=MASK, pad=PAD)
TOKENS = jnp.asarray([np.random.default_rng(i).permutation(36)[: PLACES + 1] + FIRST for i in range(200)], jnp.int32)


def test_halves_are_exchanged_and_told_apart():
  module = make_gpt2(SIZE, pair_length(PLACES), 1, 2, 8).clone(causal=False, types=2)
  rates = dict(rate=0.4, mask_share=1.0, random_share=0.0)
  objective = order_objective(module, VOCABULARY, CLASSIFY, SEPARATE, **rates)
  assert objective.weights == {"loss": 1.0, "order_loss": 1.0} and pair_length(PLACES) == pair_length(8) == 11
  found = jax.jit(jax.vmap(objective.prepare))(jax.random.split(jax.random.key(0), 200), TOKENS)
  first, second = np.asarray(TOKENS[:, :4]), np.asarray(TOKENS[:, 4:8])
  mark = lambda i: np.full((200, 1), i)
  follows = np.asarray(found.follows)[:, None]
  halves = np.where(follows, first, second), np.where(follows, second, first)
  row = np.concatenate([mark(CLASSIFY), halves[0], mark(SEPARATE), halves[1], mark(SEPARATE)], 1)
  np.testing.assert_array_equal(found.masked.targets, row)
  np.testing.assert_array_equal(found.segments, np.broadcast_to([0] * 6 + [1] * 5, row.shape))
  chosen = np.asarray(found.masked.weights) == 1
  np.testing.assert_array_equal(found.masked.inputs, np.where(chosen, MASK, row))
  assert not np.any(chosen & (row < FIRST)) and abs(chosen[:, 1:5].mean() - 0.4) < 0.06
  assert abs(follows.mean() - 0.5) < 4 * 0.5 / 200**0.5
  examples = jax.tree.map(lambda x: x[:6], found)
  assert len(set(np.asarray(examples.follows).tolist())) == 2
  params = jax.jit(objective.init)(jax.random.key(1), examples)
  params = jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, params)
  terms = jax.jit(lambda params, examples: objective.terms(params, examples, None))

  @jax.jit
  def directly(params):
    of = lambda *given, **more: module.apply({"params": params["model"]}, *given, **more)
    hidden = of(examples.masked.inputs, Mask(), types=examples.segments, method="hidden")
    head = SentenceHead(1, tanh=True).apply({"params": params["order"]}, hidden, jnp.full(6, 11))
    return of(hidden, method="logits"), head[:, 0]

  logits, said = directly(params)
  told = terms(params, examples)
  masked = examples.masked
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, masked.targets)
  np.testing.assert_allclose(told["loss"].total, jnp.sum(nats * masked.weights, 1), rtol=1e-5)
  np.testing.assert_array_equal(told["loss"].count, masked.weights.sum(1))
  sign = np.where(examples.follows, 1.0, -1.0)
  np.testing.assert_allclose(told["order_loss"].total, np.log1p(np.exp(-sign * said)), rtol=1e-4)
  np.testing.assert_array_equal(told["order_accuracy"].total, sign * said > 0)
  assert np.all(told["order_loss"].count == 1)
  alike = terms(params, examples._replace(segments=jnp.zeros_like(examples.segments)))
  assert np.all(np.abs(alike["order_loss"].total - told["order_loss"].total) > 1e-6)


def test_a_half_is_followed_or_has_another_behind_it():
  """Three stretches a row, a token that is left out among them."""
  module = make_gpt2(SIZE, pair_length(PLACES), 1, 2, 8).clone(causal=False, types=2)
  objective = next_objective(module, VOCABULARY, CLASSIFY, SEPARATE, rate=0.4, mask_share=1.0, random_share=0.0)
  assert objective.weights == {"loss": 1.0, "next_loss": 1.0}
  rows = jnp.concatenate([TOKENS, TOKENS[::-1, 1:5]], 1)  # 9 + 1, and 4 from elsewhere
  found = jax.jit(jax.vmap(objective.prepare))(jax.random.split(jax.random.key(0), 200), rows)
  mark = lambda i: np.full((200, 1), i)
  follows = np.asarray(found.follows)[:, None]
  second = np.where(follows, TOKENS[:, 4:8], TOKENS[::-1, 1:5])
  row = np.concatenate([mark(CLASSIFY), TOKENS[:, :4], mark(SEPARATE), second, mark(SEPARATE)], 1)
  np.testing.assert_array_equal(found.masked.targets, row)
  np.testing.assert_array_equal(found.segments, np.broadcast_to([0] * 6 + [1] * 5, row.shape))
  assert abs(follows.mean() - 0.5) < 4 * 0.5 / 200**0.5
  even = jax.eval_shape(objective.prepare, jax.random.key(0), jnp.zeros(9 + 4, jnp.int32))
  assert even.segments.shape == (pair_length(8),)
  examples = jax.tree.map(lambda x: x[:6], found)
  assert len(set(np.asarray(examples.follows).tolist())) == 2
  params = jax.jit(objective.init)(jax.random.key(1), examples)
  told = jax.jit(lambda params: objective.terms(params, examples, None))(params)
  # Of a pooler that says 3 whatever it reads.
  sure = {**params, "next": jax.tree.map(jnp.zeros_like, params["next"])}
  sure["next"]["logits"]["bias"] += 3
  found = jax.jit(lambda params: objective.terms(params, examples, None))(sure)
  sign = np.where(examples.follows, 1.0, -1.0)
  np.testing.assert_allclose(found["next_loss"].total, np.log1p(np.exp(-3 * sign)), rtol=1e-5)
  np.testing.assert_array_equal(found["next_accuracy"].total, sign > 0)
  np.testing.assert_array_equal(found["loss"].total, told["loss"].total)
