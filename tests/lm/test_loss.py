"""Cross entropy of large vocabularies against optax's, and the gradient of an objective over parts of a batch."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from mlnotes.engine.experiment import Mean
from mlnotes.lm import (
  Objective,
  causal_objective,
  compute_gradients,
  head_cross_entropy,
  make_gpt2,
  token_cross_entropy,
)

LOGITS = 3 * jax.random.normal(jax.random.key(0), (4, 6, 9))
LABELS = jax.random.randint(jax.random.key(1), (4, 6), 0, 9)
WEIGHTS = jax.random.normal(jax.random.key(2), (4, 6))


def test_values_and_gradients_are_optax():
  expected = optax.softmax_cross_entropy_with_integer_labels
  found, right = token_cross_entropy(LOGITS, LABELS)
  np.testing.assert_allclose(found, expected(LOGITS, LABELS), rtol=1e-5)
  np.testing.assert_array_equal(right, jnp.argmax(LOGITS, -1) == LABELS)
  gradient = lambda loss: jax.grad(lambda logits: jnp.sum(WEIGHTS * loss(logits)))(LOGITS)
  ours, theirs = (gradient(f) for f in (lambda x: token_cross_entropy(x, LABELS)[0], lambda x: expected(x, LABELS)))
  np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_large_logits_and_half_precision():
  """Sums are in float32: of bfloat16 logits as exact as the logits are."""
  half = (LOGITS * 30).astype(jnp.bfloat16)
  found, _ = token_cross_entropy(half, LABELS)
  expected = optax.softmax_cross_entropy_with_integer_labels(half.astype(jnp.float32), LABELS)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  assert jax.grad(lambda x: jnp.sum(token_cross_entropy(x, LABELS)[0]))(half).dtype == jnp.bfloat16


def test_logits_are_kept_once_and_in_their_own_dtype():
  """What goes from the forward to the backward pass of 64 x 1024 logits: themselves and a number for each row."""
  logits, labels = jnp.zeros((64, 1024), jnp.bfloat16), jnp.zeros((64,), jnp.int32)
  _, pull = jax.vjp(lambda x: token_cross_entropy(x, labels)[0], logits)
  sizes = [x.nbytes for x in jax.tree.leaves(pull)]
  assert max(sizes) == logits.nbytes and sum(sizes) < 1.1 * logits.nbytes


def test_labels_outside_are_not_a_number():
  losses, right = token_cross_entropy(LOGITS[0], jnp.array([0, -1, 9, 3, 2, 1]))
  np.testing.assert_array_equal(np.isnan(losses), [False, True, True, False, False, False])
  assert not right[1] and not right[2]


def test_labels_of_another_shape_are_refused():
  jaxtyping.config.update("jaxtyping_disable", True)
  try:
    with pytest.raises(ValueError, match=r"labels have shape \(6, 4\), expected \(4, 6\)"):
      token_cross_entropy(LOGITS, LABELS.T)
  finally:
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("chunks", [1, 2, 8])
def test_parts_of_the_tokens_change_nothing(chunks):
  hidden, table = LOGITS, jax.random.normal(jax.random.key(3), (9, 9))

  def loss(hidden, table, chunks):
    losses, right = head_cross_entropy(lambda x: x @ table, hidden, LABELS, chunks)
    return jnp.sum(losses * WEIGHTS), right

  expected = jax.value_and_grad(lambda *a: loss(*a, 1)[0], (0, 1))(hidden, table)
  found = jax.jit(jax.value_and_grad(lambda *a: loss(*a, chunks)[0], (0, 1)))(hidden, table)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
  np.testing.assert_array_equal(loss(hidden, table, chunks)[1], loss(hidden, table, 1)[1])


def test_parts_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="chunks is 5, expected a divisor of the 24 tokens"):
    head_cross_entropy(lambda x: x, LOGITS, LABELS, 5)


# -- objectives --------------------------------------------------------------------------------------------------------


def unequal_objective():
  """Rows of which other numbers of tokens count, and two terms whose counts differ."""

  def terms(params, examples, key):
    losses, right = token_cross_entropy(examples["x"] @ params["w"], examples["y"])
    sums = lambda values: jnp.sum(values * examples["counted"], 1)
    count = jnp.sum(examples["counted"], 1)
    per_row = jnp.sum(jnp.square(examples["x"][:, 0] @ params["w"]), -1)
    return {
      "nats": Mean(sums(losses), count),
      "square": Mean(per_row, jnp.ones(per_row.shape)),
      "right": Mean(sums(right), count),
    }

  return Objective(lambda key, examples: None, lambda key, tokens: tokens, terms, {"nats": 1.0, "square": 0.1})


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_of_unequal_rows_weigh_what_they_weigh_together(parts):
  objective, params = unequal_objective(), {"w": jax.random.normal(jax.random.key(4), (9, 9))}
  counted = (jnp.arange(6)[None] < jnp.array([1, 6, 2, 5])[:, None]).astype(jnp.float32)
  examples = {"x": LOGITS, "y": LABELS, "counted": counted}
  losses = optax.softmax_cross_entropy_with_integer_labels(LOGITS @ params["w"], LABELS)
  mean = jnp.sum(losses * counted) / 14
  square = jnp.mean(jnp.sum(jnp.square(LOGITS[:, 0] @ params["w"]), -1))
  whole = jax.jit(lambda p: compute_gradients(objective, p, examples, jax.random.key(0)))(params)
  found = jax.jit(lambda p: compute_gradients(objective, p, examples, jax.random.key(0), parts))(params)
  np.testing.assert_allclose(whole[1]["loss"], mean + 0.1 * square, rtol=1e-5)
  np.testing.assert_allclose(whole[1]["nats"], mean, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, found)


def test_parts_must_divide_the_batch():
  with pytest.raises(ValueError, match="parts is 3, expected a divisor of the 4 rows"):
    compute_gradients(unequal_objective(), {}, {"x": LOGITS}, jax.random.key(0), 3)


@pytest.mark.parametrize("chunks, dtype", [(1, None), (4, None), (1, jnp.bfloat16)])
def test_the_causal_objective_is_the_next_tokens_nats(chunks, dtype):
  module = make_gpt2(9, 8, 1, 2, 8, dtype=dtype)
  objective = causal_objective(module, chunks)
  examples = jax.vmap(objective.prepare)(jax.random.split(jax.random.key(0), 4), LABELS)
  params = jax.tree.map(lambda x: 10 * x, jax.jit(objective.init)(jax.random.key(0), examples))
  grads, metrics = jax.jit(lambda p: compute_gradients(objective, p, examples, jax.random.key(1)))(params)

  def nats(params):
    logits = module.apply({"params": params}, LABELS[:, :-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, LABELS[:, 1:])), logits

  (loss, logits), expected = jax.jit(jax.value_and_grad(nats, has_aux=True))(params)
  if dtype is None:
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    right = jnp.argmax(logits, -1) == LABELS[:, 1:]
    np.testing.assert_allclose(metrics["accuracy"], Mean(right.sum(), right.size))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, expected)
  else:  # logits of up to 10 in eight bits
    np.testing.assert_allclose(metrics["loss"], loss, rtol=0.02)
    assert optax.global_norm(jax.tree.map(jnp.subtract, grads, expected)) < 0.1 * optax.global_norm(expected)
  terms = jax.eval_shape(lambda p: objective.terms(p, examples, None), params)
  assert terms["loss"].total.shape == terms["loss"].count.shape == (4,)


def test_dropout_differs_between_parts_and_is_of_training_alone():
  module = make_gpt2(9, 8, 1, 2, 8, dropout=0.5)
  objective, examples = causal_objective(module), {"tokens": jnp.broadcast_to(LABELS[:1], (4, 6))}
  params = jax.tree.map(lambda x: 30 * x, jax.jit(objective.init)(jax.random.key(0), examples))
  rows = jax.jit(objective.terms)(params, examples, None)["loss"].total
  assert np.all(rows == rows[0])
  loss = jax.jit(lambda key: compute_gradients(objective, params, examples, key, 2)[1]["loss"])
  assert loss(jax.random.key(0)) != loss(jax.random.key(1))
