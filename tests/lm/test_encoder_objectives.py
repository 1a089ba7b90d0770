"""SpanBERT, XLNet and ELECTRA as objectives: what a loss reads, what it is the mean of, what its gradient reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes.attention import Mask, Transformer
from mlnotes.lm import (
  BoundaryHead,
  LanguageModel,
  Vocabulary,
  init_adapters,
  insert_adapters,
  make_gpt2,
  make_llama,
)
from mlnotes.lm.encoder_objectives import permutation_objective, span_objective
from mlnotes.lm.objective import compute_gradients
from mlnotes.lm.replaced import ElectraLosses, electra_losses, electra_objective
from mlnotes.lm.replaced_objective import electra_parts, replaced_objective

SIZE, PLACES = 20, 8
VOCABULARY = Vocabulary(SIZE, (0, 1, 2), mask=2, pad=0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, SIZE, (6, PLACES + 1)), jnp.int32)
SIZES = dict(vocabulary=SIZE, length=PLACES, depth=1, heads=2, width=8)


def start(objective, scale=10.0, tokens=TOKENS):
  """(examples, parameters whose matrices are far from 0, jitted terms)."""
  keys = jax.random.split(jax.random.key(1), len(tokens))
  examples = jax.jit(jax.vmap(objective.prepare))(keys, tokens)
  params = jax.jit(objective.init)(jax.random.key(2), examples)
  params = jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, params)
  return examples, params, jax.jit(lambda params, examples: objective.terms(params, examples, None))


def nats_of(logits, targets, weights):
  return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weights, 1)


# -- SpanBERT ----------------------------------------------------------------------------------------------------------


def test_spans_are_said_from_all_that_is_read_and_from_their_boundary():
  """A stack without layers, where a token's features are of it alone: what is beyond the boundary tells nothing."""
  module = LanguageModel(SIZE, PLACES, Transformer(0, 2, 8), causal=False)
  objective = span_objective(module, VOCABULARY, p=1.0, longest=3, rate=0.4, mask_share=1.0, random_share=0.0)
  assert objective.weights == {"loss": 1.0, "boundary_loss": 1.0}
  examples, params, terms = start(objective)
  np.testing.assert_array_equal(examples.targets, TOKENS[:, :-1])
  np.testing.assert_array_equal(examples.inputs == 2, examples.weights == 1)
  assert params["boundary"]["places"]["embedding"].shape == (3, 8)
  found = terms(params, examples)
  of_model = {"params": params["model"]}
  hidden = jax.jit(lambda: module.apply(of_model, examples.inputs, Mask(), method="hidden"))()
  around = jax.jit(lambda: BoundaryHead(3).apply({"params": params["boundary"]}, hidden, examples))()
  say = jax.jit(lambda x: module.apply(of_model, x, method="logits"))
  for name, x, weights in (("loss", hidden, examples.weights), ("boundary_loss", around, examples.boundary_weights)):
    np.testing.assert_allclose(found[name].total, nats_of(say(x), examples.targets, weights), rtol=1e-5)
    np.testing.assert_array_equal(found[name].count, weights.sum(1))
    right = jnp.sum((jnp.argmax(say(x), -1) == examples.targets) * weights, 1)
    np.testing.assert_array_equal(found[name.replace("loss", "accuracy")].total, right)
  assert np.all(np.asarray(examples.distance)[examples.weights == 1] == 1)
  b, i = np.argwhere(np.asarray(examples.boundary_weights) == 1)[0]
  left, right = int(examples.left[b, i]), int(examples.right[b, i])
  assert left == i - 1 and right == i + 1  # of p = 1 spans are of one word
  alone = examples._replace(
    weights=jnp.zeros_like(examples.weights).at[b, i].set(1), boundary_weights=jnp.zeros((6, PLACES)).at[b, i].set(1)
  )
  before = terms(params, alone)
  for place in range(PLACES):
    after = terms(params, alone._replace(inputs=alone.inputs.at[b, place].set(7 + (alone.inputs[b, place] == 7))))
    moved = lambda name: abs(float(after[name].total[b] - before[name].total[b])) > 1e-6  # noqa: B023
    assert moved("boundary_loss") == (place in (left, right)) and moved("loss") == (place == i)


def test_the_stack_of_spans_reads_both_sides():
  objective = span_objective(make_gpt2(**SIZES).clone(causal=True), VOCABULARY, rate=0.4)
  examples, params, terms = start(objective)
  first = examples._replace(weights=jnp.zeros((6, PLACES)).at[:, 0].set(1), boundary_weights=jnp.zeros((6, PLACES)))
  changed = first._replace(inputs=first.inputs.at[:, -1].add(1) % SIZE)
  assert np.all(np.abs(terms(params, first)["loss"].total - terms(params, changed)["loss"].total) > 1e-6)
  assert np.all(terms(params, first)["boundary_loss"].total == 0)


# -- XLNet -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [make_gpt2, make_llama])
def test_a_prediction_depends_on_what_comes_before_it_alone(form):
  """Half of the words are predicted: token by token is exchanged for another, its own included."""
  objective = permutation_objective(form(**SIZES).clone(causal=False), VOCABULARY, share=0.5)
  examples, params, terms = start(objective)
  assert examples.targets.shape == (6, PLACES // 2)
  np.testing.assert_array_equal(jnp.take_along_axis(TOKENS, examples.places, 1), examples.targets)
  one = jax.tree.map(lambda x: jnp.repeat(x[:1], 1 + PLACES, 0), examples)  # of one row as it is, and with each changed
  row = one.inputs[0]
  other = one._replace(inputs=one.inputs.at[1 + jnp.arange(PLACES), jnp.arange(PLACES)].set((row[:PLACES] + 1) % SIZE))
  order = np.asarray(examples.order[0])
  for q, place in enumerate(np.asarray(examples.places[0])):
    asked = other._replace(weights=jnp.zeros_like(one.weights).at[:, q].set(1))
    total = np.asarray(terms(params, asked)["loss"].total)
    np.testing.assert_array_equal(np.abs(total[1:] - total[0]) > 1e-6, order < order[place])
    assert np.all(terms(params, asked)["loss"].count == 1)


@pytest.mark.parametrize("form", [make_gpt2, make_llama])
def test_a_query_stands_where_its_token_stands(form):
  """One word of each row is predicted. In one layer that is the mask read at its place, itself unseen."""
  module = form(**SIZES).clone(causal=False)
  examples, params, terms = start(permutation_objective(module, VOCABULARY, share=1e-6))
  place = jnp.broadcast_to(jnp.arange(PLACES), (6, PLACES))
  hidden = place == examples.places
  tokens = TOKENS[:, :-1]
  mask = Mask(
    causal=True, key_order=hidden.astype(jnp.int32), query_order=jnp.zeros((6, PLACES), jnp.int32),
    key_positions=place, query_positions=place,
  )  # fmt: skip
  logits = jax.jit(module.apply)({"params": params}, jnp.where(hidden, 2, tokens), mask)
  found = terms(params, examples)
  np.testing.assert_allclose(found["loss"].total, nats_of(logits, tokens, hidden), rtol=1e-4)
  np.testing.assert_array_equal(found["accuracy"].total, jnp.sum((jnp.argmax(logits, -1) == tokens) & hidden, 1))


# -- ELECTRA -----------------------------------------------------------------------------------------------------------

RATES = dict(rate=0.4, mask_share=1.0, random_share=0.0)


@pytest.fixture(scope="module")
def electra():
  of = lambda heads, width: make_gpt2(**{**SIZES, "heads": heads, "width": width}).clone(causal=False)
  parts = electra_parts(of(1, 4), of(2, 8))
  objective = replaced_objective(parts, VOCABULARY, **RATES)
  return parts, objective, *start(objective)


def test_both_losses_are_of_what_the_generator_drew(electra):
  """Against the sum that is verified by itself, of logits that are asked for one after the other."""
  parts, objective, examples, params, terms = electra

  @jax.jit
  def all_of_it(params, examples):
    features, head, replaced = parts.fill(params, examples)
    return head(features), replaced, parts.judge(params, replaced.inputs)[0]

  logits, replaced, seen = all_of_it(params, examples)
  chosen = np.asarray(examples.masked.weights) == 1
  np.testing.assert_array_equal(np.asarray(replaced.inputs)[~chosen], TOKENS[:, :-1][~chosen])
  np.testing.assert_array_equal(replaced.labels, replaced.inputs != TOKENS[:, :-1])
  assert np.all(examples.masked.inputs[chosen] == 2) and not np.any(np.asarray(replaced.inputs)[~chosen] == 2)
  real = jnp.ones((6, PLACES), bool)
  losses = electra_losses(logits, seen, examples.masked, replaced, real)
  found = terms(params, examples)
  np.testing.assert_allclose(found["loss"].total, losses.generator.sum(1), rtol=1e-5)
  np.testing.assert_allclose(found["discriminator_loss"].total, losses.discriminator.sum(1), rtol=1e-5)
  np.testing.assert_array_equal(found["replaced"].total, replaced.labels.sum(1))
  np.testing.assert_array_equal(found["detected"].total, np.sum(replaced.labels & (seen > 0), 1))
  np.testing.assert_array_equal(found["discriminator_accuracy"].total, np.sum(replaced.labels == (seen > 0), 1))
  assert objective.weights == {"loss": 1.0, "discriminator_loss": 50.0}
  expected = electra_objective(ElectraLosses(*losses), examples.masked.weights, real, 50.0)
  _, metrics = jax.jit(lambda: compute_gradients(objective, params, examples, jax.random.key(0)))()
  np.testing.assert_allclose(metrics["objective"], expected, rtol=1e-5)
  parted = jax.jit(lambda: compute_gradients(objective, params, examples, jax.random.key(0), 3)[1])()
  np.testing.assert_allclose(parted["objective"], expected, rtol=1e-5)


def test_what_each_loss_reaches(electra):
  """The discriminator's reaches nothing of the generator but the embeddings that both read, and the other way round."""
  _, objective, examples, params, _ = electra

  @jax.jit
  def slopes(params):
    of = lambda name: jax.grad(lambda params: jnp.sum(objective.terms(params, examples, None)[name].total))(params)
    return of("loss"), of("discriminator_loss")

  generator, discriminator = slopes(params)
  moves = lambda tree: {bool(np.any(np.asarray(x) != 0)) for x in jax.tree.leaves(tree)}
  assert True in moves(generator["generator"]) and moves(discriminator["generator"]) == {False}
  assert moves(generator["discriminator"]["transformer"]) == {False}
  assert True in moves(discriminator["discriminator"]["transformer"])
  for slope, read, unread in ((generator, True, False), (discriminator, False, True)):
    assert moves(slope["discriminator"]["embed"]) == moves(slope["discriminator"]["positions"]) == {True}
    for name in ("to_generator", "from_generator", "norm", "bias"):
      assert (True in moves(slope["heads"][name])) == read
    for name in ("judge_dense", "judge_out"):
      assert (True in moves(slope["heads"][name])) == unread
  assert set(params["generator"]) == {"transformer"}  # embeddings, places and head are the discriminator's


def test_the_draw_goes_by_the_example_and_by_the_generator(electra):
  parts, _, examples, params, _ = electra
  fill = jax.jit(lambda params, examples: parts.fill(params, examples)[2])
  first = fill(params, examples)
  in_chunks = jax.jit(lambda params, examples: parts.fill(params, examples, 3)[2])(params, examples)
  jax.tree.map(np.testing.assert_array_equal, first, in_chunks)
  other = fill(params, examples._replace(seed=examples.seed + 1))
  assert np.any(first.inputs != other.inputs)
  # A generator that says one word: where that is the text's, it counts as the text's.
  chosen = np.asarray(examples.masked.weights) == 1
  word = int(np.asarray(TOKENS[:, :-1])[chosen][0])
  sure = {**params, "heads": {**params["heads"], "bias": jnp.zeros(SIZE).at[word].set(1e4)}}
  found = fill(sure, examples)
  assert np.all(np.asarray(found.inputs)[chosen] == word)
  hit = chosen & (TOKENS[:, :-1] == word)
  assert hit.any() and not np.any(np.asarray(found.labels)[hit]) and np.all(np.asarray(found.labels)[chosen & ~hit])


def test_both_parts_read_both_sides_and_the_places(electra):
  parts, _, examples, params, _ = electra
  tokens = examples.masked.inputs
  judge = jax.jit(lambda tokens: parts.judge(params, tokens)[0])
  say = jax.jit(lambda tokens: parts.generate(params, tokens)[0])
  for read in (judge, say):
    found = read(tokens)
    changed = read(tokens.at[:, -1].set((tokens[:, -1] + 1) % SIZE))
    assert np.all(np.abs(changed - found).reshape(6, PLACES, -1)[:, 0].max(-1) > 1e-6)
    # Two tokens that are exchanged: without places the others would not notice.
    exchanged = read(tokens.at[:, -2:].set(tokens[:, -2:][:, ::-1]))
    differ = np.asarray(tokens[:, -1] != tokens[:, -2])
    assert differ.any() and np.all(np.abs(exchanged - found).reshape(6, PLACES, -1)[differ, 0].max(-1) > 1e-6)


def test_what_is_put_behind_the_discriminators_modules_is_not_the_generators():
  """Both stacks alike: adapters go by paths, which begin elsewhere in the generator."""
  stack = make_gpt2(**SIZES).clone(causal=False)
  parts = electra_parts(stack, stack)
  examples, params, _ = start(replaced_objective(parts, VOCABULARY, **RATES))
  tokens = examples.masked.inputs
  adapters = init_adapters(jax.random.key(4), 3, lambda: parts.judge(params, tokens), scale=1.0)
  assert set(adapters) == {"transformer"}

  @jax.jit
  def run():
    plain = parts.generate(params, tokens)[0], parts.judge(params, tokens)[0]
    with insert_adapters(adapters):
      given = parts.generate(params, tokens)[0], parts.judge(params, tokens)[0]
    return plain, given

  (said, judged), (said_with, judged_with) = run()
  np.testing.assert_array_equal(said, said_with)
  assert np.abs(judged - judged_with).max() > 1e-3
