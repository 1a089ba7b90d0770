"""Mask-Predict: which places are masked, how often, what a round may change, which length is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.sequence.mask_predict import MaskedSeq2Seq, draw_masked, mask_predict, refine

V, PAD, START, END = 9, 8, 7, 6
SOURCE = jnp.array([[0, 1, 2, 1, 3], [4, 4, 5, PAD, PAD], [2, PAD, PAD, PAD, PAD]])
LENGTHS = jnp.array([5, 3, 1])
SIZES = jnp.array([4, 2, 1])
TOKENS = jnp.array([[0, 1, 2, 3], [3, 3, PAD, PAD], [5, PAD, PAD, PAD]])


@pytest.fixture(scope="module")
def made(draw_variables):
  """(model, its variables, what it says of inputs, compiled)."""
  model = MaskedSeq2Seq(V, 4, 8, 1, 2, never=(PAD, START, END))
  return model, draw_variables(model, SOURCE, LENGTHS, TOKENS, SIZES), jax.jit(model.apply)


def test_training_masks_any_number_of_real_places(key):
  lengths = jnp.array([4, 1, 6, 0])
  draw = jax.jit(jax.vmap(lambda key: draw_masked(key, lengths, 6)))
  masked = np.asarray(draw(jax.random.split(key, 600)))
  counts = masked.sum(-1)
  for row, length in enumerate((4, 1, 6, 0)):
    assert not masked[:, row, length:].any()
    share = np.bincount(counts[:, row], minlength=7)[1 : length + 1] / 600
    np.testing.assert_allclose(share, 1 / length if length else share, atol=0.08)
    if length:
      places = masked[:, row, :length].mean(0)
      np.testing.assert_allclose(places, places.mean(), atol=0.08)


def test_each_round_masks_the_least_sure_and_changes_these_alone():
  """A stand-in for the model, whose answers follow the round, as a loop in NumPy."""
  lengths, rounds, mask = jnp.array([6, 4, 1]), 3, 99
  seen = []

  def predict(tokens):
    number = jnp.sum(tokens == mask)
    seen.append(tokens)
    logits = jnp.sin(jnp.arange(3 * 6 * 5).reshape(3, 6, 5) * (1.0 + number))
    return jax.nn.log_softmax(3 * logits)

  tokens, sure = jax.jit(lambda: refine(predict, lengths, 6, rounds, mask))()

  expected, chance = np.full((3, 6), mask), np.zeros((3, 6))
  for t in range(rounds):
    given, masked = expected.copy(), np.zeros((3, 6), bool)
    for row, length in enumerate((6, 4, 1)):
      count = length * (rounds - t) // rounds
      masked[row, np.argsort(chance[row, :length], kind="stable")[:count]] = True
    given[masked] = mask
    logs = np.asarray(predict(jnp.asarray(given)))
    expected[masked], chance[masked] = logs.argmax(-1)[masked], logs.max(-1)[masked]
  np.testing.assert_array_equal(tokens, expected)
  np.testing.assert_allclose(sure, chance, rtol=1e-5)
  assert np.all(np.asarray(tokens)[1, 4:] == mask) and np.all(np.asarray(sure)[1, 4:] == 0)


def test_one_round_takes_the_likeliest_token_of_each_place(made):
  model, variables, apply = made
  found = jax.jit(lambda v: mask_predict(model, v, SOURCE, LENGTHS, END, PAD, 1, 1))(variables)
  size = np.asarray(found.length) - 1
  scored = apply(variables, SOURCE, LENGTHS, np.full((3, 4), model.mask_id), size)
  best = np.asarray(scored.log_probability).argmax(-1)
  for row in range(3):
    assert size[row] == np.asarray(scored.length)[row, 1:].argmax() + 1
    expected = [*best[row, : size[row]], END, *[PAD] * 5][:5]
    np.testing.assert_array_equal(found.tokens[row], expected)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_length_with_the_best_mean_is_taken(made, weight):
  model, variables, _ = made
  found = jax.jit(lambda v: mask_predict(model, v, SOURCE, LENGTHS, END, PAD, 2, 4, weight))(variables)

  @jax.jit
  def sure_of(sizes):
    memory, of_length = model.apply(variables, SOURCE, LENGTHS, method="encode")
    predict = lambda tokens: model.apply(variables, memory, LENGTHS, tokens, sizes, method="predict")
    return refine(predict, sizes, 4, 2, model.mask_id)[1], of_length

  best = np.full(3, -np.inf)
  for size in range(1, 5):
    sure, of_length = (np.asarray(x) for x in sure_of(np.full(3, size)))
    best = np.maximum(best, (np.sum(sure, 1) + weight * of_length[:, size]) / size)
  np.testing.assert_allclose(found.score, best, rtol=1e-4)
  size = found.length - 1
  of_taken = of_length[np.arange(3), size]
  np.testing.assert_allclose(found.score * size, found.log_probability + weight * of_taken, rtol=1e-5)
  with pytest.raises(ValueError, match="length_beam=5"):
    mask_predict(model, variables, SOURCE, LENGTHS, END, PAD, 2, 5)


def test_an_impossible_length_is_not_taken_however_sure_its_tokens_are(made):
  model, variables, _ = made
  alone = jax.jit(lambda v: mask_predict(model, v, SOURCE, LENGTHS, END, PAD, 2, 4, 0.0))(variables)
  worst = int(np.asarray(alone.length)[0] - 1)
  head = variables["params"]["length_head"]
  barred = jax.tree.map(lambda x: x, variables)
  barred["params"]["length_head"] = {**head, "bias": head["bias"].at[worst].add(-100.0)}
  found = jax.jit(lambda v: mask_predict(model, v, SOURCE, LENGTHS, END, PAD, 2, 4))(barred)
  assert found.length[0] != worst + 1


def test_padding_of_both_sides_changes_nothing_and_later_places_are_seen(made):
  model, variables, apply = made
  scored = apply(variables, SOURCE, LENGTHS, TOKENS, SIZES)
  other = apply(variables, SOURCE.at[1, 3:].set(0), LENGTHS, TOKENS.at[1, 2:].set(5), SIZES)
  np.testing.assert_allclose(other.log_probability[1, :2], scored.log_probability[1, :2], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(other.length, scored.length, rtol=1e-5, atol=1e-6)
  later = apply(variables, SOURCE, LENGTHS, TOKENS.at[0, 3].set(model.mask_id), SIZES)
  assert not np.allclose(later.log_probability[0, 0], scored.log_probability[0, 0])
  assert np.all(np.exp(scored.log_probability)[..., [PAD, START, END]] < 1e-12)
