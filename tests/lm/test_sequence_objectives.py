"""T5, MASS and BART as objectives: what the encoder reads, what the decoder is shown, where each target stands."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes.lm import Vocabulary, make_bart, make_t5
from mlnotes.lm.sequence_objectives import (
  corruption_by_infilling,
  corruption_of_fragment,
  corruption_of_spans,
  encode_text,
  sequence_objective,
)

PLACES, PAD, MASK, START, STOP, FIRST, SENTINELS = 12, 0, 1, 2, 3, 4, 6
SIZE = FIRST + 30 + SENTINELS
VOCABULARY = Vocabulary(SIZE, (PAD, MASK, START, *range(SIZE - SENTINELS, SIZE)), mask=MASK, pad=PAD)
# No two tokens of a row are the same, but the last of each is not used.
TOKENS = jnp.asarray([np.random.default_rng(i).permutation(30)[: PLACES + 1] + FIRST for i in range(40)], jnp.int32)


def prepare(objective, tokens=TOKENS):
  return jax.jit(jax.vmap(objective.prepare))(jax.random.split(jax.random.key(1), len(tokens)), tokens)


def start(objective, examples):
  """Of a few rows: (examples, parameters far from 0, jitted terms)."""
  examples = jax.tree.map(lambda x: x[:4], examples)
  params = jax.jit(objective.init)(jax.random.key(2), examples)
  return examples, params, jax.jit(lambda params, examples: objective.terms(params, examples, None))


def check_loss(found, logits, examples):
  """Each target's nats from what was shown before it."""
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, examples.targets)
  np.testing.assert_allclose(found["loss"].total, jnp.sum(nats * examples.weights, 1), rtol=1e-5)
  np.testing.assert_array_equal(found["loss"].count, examples.weights.sum(1))
  right = jnp.sum((jnp.argmax(logits, -1) == examples.targets) * examples.weights, 1)
  np.testing.assert_array_equal(found["accuracy"].total, right)


def check_shown(params, examples, terms):
  """A target is said from what is shown up to its place, not from what comes behind."""
  early = examples._replace(weights=jnp.zeros_like(examples.weights).at[:, 1].set(1))
  total = lambda place: terms(params, early._replace(shown=early.shown.at[:, place].add(1) % SIZE))["loss"].total
  before = terms(params, early)["loss"].total
  np.testing.assert_allclose(total(2), before, rtol=1e-6)
  assert np.all(np.abs(total(1) - before) > 1e-6) and np.all(np.abs(total(0) - before) > 1e-6)


def test_spans_of_t5():
  """The sentinels are at the top of the ids. What the decoder says stands nowhere in what the encoder reads."""
  module = make_t5(SIZE, 1, 2, 8, head_dim=4)
  corrupt = corruption_of_spans(VOCABULARY, rate=0.3, mean_span=2.0, sentinels=SENTINELS)
  objective = sequence_objective(module, corrupt)
  assert objective.weights == {"loss": 1.0}
  found = prepare(objective)
  for source, length, shown, targets, weights, row in zip(*map(np.asarray, found[:5]), np.asarray(TOKENS)):
    asked = int(weights.sum())
    assert np.all(weights[:asked] == 1) and shown[0] == PAD and np.all(targets[asked:] == PAD)
    np.testing.assert_array_equal(shown[1:], targets[:-1])
    is_word = lambda ids: (ids >= FIRST) & (ids < SIZE - SENTINELS)
    read, said = source[:length], targets[:asked]
    sentinels = SIZE - 1 - np.arange(SENTINELS)
    np.testing.assert_array_equal(said[~is_word(said)], sentinels[: np.sum(~is_word(said))])
    np.testing.assert_array_equal(read[~is_word(read)], sentinels[: np.sum(~is_word(said)) - 1])
    text = [token for token in read if is_word(token)]
    assert not set(text) & set(said) and set(text) | set(said[is_word(said)]) == set(row[:-1])
    assert np.sum(is_word(said)) == round(0.3 * PLACES)
  examples, params, terms = start(objective, found)
  logits = jax.jit(module.apply)({"params": params}, examples.source, examples.shown, examples.lengths)
  check_loss(terms(params, examples), logits, examples)
  check_shown(params, examples, terms)
  padded = jnp.arange(examples.source.shape[1])[None] >= examples.lengths[:, None]
  other = examples._replace(source=jnp.where(padded, 9, examples.source))
  assert np.any(padded)
  np.testing.assert_allclose(terms(params, other)["loss"].total, terms(params, examples)["loss"].total, rtol=1e-6)


def test_the_fragment_of_mass():
  """The encoder sees nothing of it, the decoder nothing else, and where it stands."""
  module = make_bart(SIZE, PLACES, 1, 2, 8)
  corrupt = corruption_of_fragment(VOCABULARY, share=0.5, mask_share=1.0, random_share=0.0)
  objective = sequence_objective(module, corrupt)
  found = prepare(objective)
  tokens = np.asarray(TOKENS)[:, :-1]
  for source, shown, targets, positions, row in zip(
    *map(np.asarray, (*found[:1], *found[2:4], found.positions)), tokens
  ):
    np.testing.assert_array_equal(targets, row[positions])
    np.testing.assert_array_equal(np.diff(positions), 1)
    np.testing.assert_array_equal(source[positions], MASK)
    outside = np.setdiff1d(np.arange(PLACES), positions)
    np.testing.assert_array_equal(source[outside], row[outside])
    np.testing.assert_array_equal(shown, [MASK, *targets[:-1]])
  assert found.targets.shape[1] == PLACES // 2 and np.all(found.weights == 1) and found.lengths is None
  examples, params, terms = start(objective, found)

  @jax.jit
  def logits(params, examples):
    of = lambda *given, **more: module.apply({"params": params}, *given, **more)
    context = of(examples.source, method="encode")
    return of(of(examples.shown, context, positions=examples.positions, method="decode"), method="logits")

  check_loss(terms(params, examples), logits(params, examples), examples)
  check_shown(params, examples, terms)
  moved = terms(params, examples._replace(positions=(examples.positions + 1) % PLACES))["loss"].total
  assert np.all(np.abs(moved - terms(params, examples)["loss"].total) > 1e-5)


@pytest.mark.parametrize("permuted", [True, False])
def test_the_text_of_bart_is_said_whole(permuted):
  """As it was, whatever the order of the sentences and the holes that the encoder reads."""
  module = make_bart(SIZE, PLACES, 1, 2, 8, order="pre")
  ends = (lambda tokens: tokens == STOP) if permuted else None
  objective = sequence_objective(module, corruption_by_infilling(VOCABULARY, START, ends, rate=0.3, mean_span=2.0))
  tokens = TOKENS.at[:, 4].set(STOP).at[:, 8].set(STOP)
  found = prepare(objective, tokens)
  np.testing.assert_array_equal(found.targets, tokens[:, :-1])
  np.testing.assert_array_equal(found.shown[:, 1:], tokens[:, :-2])
  assert np.all(found.shown[:, 0] == START) and np.all(found.weights == 1) and found.positions is None
  moved = 0
  for source, length, row in zip(np.asarray(found.source), np.asarray(found.lengths), np.asarray(tokens)):
    read = source[:length]
    kept = [token for token in read if token not in (MASK, STOP)]
    places = [int(np.flatnonzero(row[:-1] == token)[0]) for token in kept]
    assert np.any(read == MASK) and np.all(source[length:] == PAD) and len(set(places)) == len(places)
    moved += places != sorted(places)
  assert (moved > 10) == permuted and (moved > 0) == permuted
  if permuted:
    return
  examples, params, terms = start(objective, found)
  logits = jax.jit(module.apply)({"params": params}, examples.source, examples.shown, examples.lengths)
  check_loss(terms(params, examples), logits, examples)
  check_shown(params, examples, terms)


def test_text_is_read_by_the_encoder_with_dropout_where_a_key_is_given():
  module = make_bart(SIZE, PLACES, 1, 2, 8, dropout=0.5)
  params = jax.jit(module.init)(jax.random.key(0), TOKENS[:2, :6], TOKENS[:2, :3])["params"]
  read = jax.jit(lambda tokens, key: encode_text(module, params, tokens, jnp.array([4, 6]), key))
  found = read(TOKENS[:2, :6], None)
  np.testing.assert_allclose(found[0, :4], read(TOKENS[:2, :6].at[0, 4:].set(9), None)[0, :4], atol=1e-6)
  assert np.all(np.abs(read(TOKENS[:2, :6].at[1, 5].add(1), None) - found)[1, 0].max() > 1e-6)
  assert np.any(read(TOKENS[:2, :6], jax.random.key(1)) != found)
