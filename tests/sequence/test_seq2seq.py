"""Sequence to sequence models: step by step is all at once, padding is nothing, copies add up, losses by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.sequence import losses
from mlnotes.sequence.decoding import beam_search, greedy
from mlnotes.sequence.seq2seq import RecurrentSeq2Seq, mix_copied
from mlnotes.sequence.transformer_seq2seq import TransformerSeq2Seq

V, PAD, START, END = 9, 8, 7, 6
SOURCE = jnp.array([[0, 1, 2, 1, 3], [4, 4, 5, PAD, PAD], [2, PAD, PAD, PAD, PAD]])
LENGTHS = jnp.array([5, 3, 1])
INPUTS = jnp.array([[START, 0, 1, 2], [START, 3, 3, END], [START, 5, END, PAD]])
NEVER = (PAD, START)
MODELS = {
  "additive": lambda: RecurrentSeq2Seq(V, 8, "gru", 1, "additive", never=NEVER),
  "copy": lambda: RecurrentSeq2Seq(V, 8, "lstm", 2, "additive", copy=True, coverage=True, never=NEVER),
  "dot": lambda: RecurrentSeq2Seq(V, 8, "gru", 1, "dot", never=NEVER),
  "none": lambda: RecurrentSeq2Seq(V, 8, "mingru", 1, "none", never=NEVER),
  "transformer": lambda: TransformerSeq2Seq(V, 8, 2, 2, never=NEVER),
  "transformer, copy": lambda: TransformerSeq2Seq(V, 8, 1, 2, copy=True, never=NEVER),
}
each_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def made(name):
  model = MODELS[name]()
  variables = jax.jit(model.init)(jax.random.key(0), SOURCE, LENGTHS, INPUTS)
  # Far from the start, where attention is nearly even.
  variables = jax.tree.map(lambda x: x + 0.5 * jnp.sin(7.0 * jnp.arange(x.size).reshape(x.shape)), variables)
  return model, variables, jax.jit(functools.partial(model.score, attention=True))


@each_model
def test_a_step_at_a_time_gives_what_the_whole_target_gives(name):
  model, variables, score = made(name)
  scored = score(variables, SOURCE, LENGTHS, INPUTS)
  decoder = model.make_decoder(variables, SOURCE, LENGTHS, room=4, attention=True)
  step, state = jax.jit(decoder.step), decoder.state
  for t in range(4):
    found, state, attention = step(decoder.source, state, INPUTS[:, t])
    np.testing.assert_allclose(found, scored.log_probability[:, t], rtol=1e-4, atol=1e-5)
    if attention is not None:
      np.testing.assert_allclose(attention, scored.attention[:, t], rtol=1e-4, atol=1e-5)


@each_model
def test_probabilities_sum_to_one_and_none_is_of_padding_or_start(name):
  _, variables, score = made(name)
  scored = score(variables, SOURCE, LENGTHS, INPUTS)
  p = np.exp(scored.log_probability)
  np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
  assert np.all(p[..., list(NEVER)] < 1e-12)
  if scored.attention is not None:
    np.testing.assert_allclose(np.sum(scored.attention, -1), 1, rtol=1e-5)
    assert np.all(np.asarray(scored.attention)[1, :, 3:] == 0)


@each_model
def test_padding_changes_nothing_and_has_no_gradient(name):
  """Other tokens there, and more of them: a row of a batch is that row alone."""
  model, variables, score = made(name)
  scored = score(variables, SOURCE, LENGTHS, INPUTS).log_probability
  other = SOURCE.at[1, 3:].set(0).at[2, 1:].set(5)
  np.testing.assert_allclose(score(variables, other, LENGTHS, INPUTS).log_probability, scored, rtol=1e-5, atol=1e-6)
  alone = jax.jit(model.score)(variables, SOURCE[1:2, :3], LENGTHS[1:2], INPUTS[1:2]).log_probability
  np.testing.assert_allclose(alone[0], scored[1], rtol=1e-4, atol=1e-5)

  def loss(variables):
    return jnp.sum(model.score(variables, SOURCE[2:], LENGTHS[2:], INPUTS[2:]).log_probability[:, :2, 0])

  gradient = jax.jit(jax.grad(loss))(variables)["params"]["embed"]["embedding"]
  if "transformer" not in name:  # whose embedding is the softmax's too
    assert np.all(np.asarray(gradient)[PAD] == 0)


@each_model
def test_a_later_input_changes_nothing_before_it(name):
  _, variables, score = made(name)
  changed = score(variables, SOURCE, LENGTHS, INPUTS.at[:, 2].set(4)).log_probability
  scored = score(variables, SOURCE, LENGTHS, INPUTS).log_probability
  np.testing.assert_allclose(changed[:, :2], scored[:, :2], rtol=1e-6, atol=1e-6)
  assert not np.allclose(changed[:, 2:], scored[:, 2:])


@each_model
def test_beams_score_what_the_model_says(name):
  """The log-probability that a search returns is that of its tokens by the whole pass."""
  model, variables, score = made(name)

  @jax.jit
  def search(variables):
    decoder = model.make_decoder(variables, SOURCE, LENGTHS, room=4)
    return beam_search(decoder, START, END, PAD, 4, 3), greedy(decoder, START, END, PAD, 4)

  found, one = search(variables)
  for tokens, length, total in (
    *((found.tokens[:, k], found.length[:, k], found.log_probability[:, k]) for k in range(3)),
    one[:3],
  ):
    inputs = jnp.concatenate([jnp.full((3, 1), START), tokens[:, :-1]], 1)
    logs = score(variables, SOURCE, LENGTHS, inputs).log_probability
    each = np.take_along_axis(np.asarray(logs), np.asarray(tokens)[..., None], -1)[..., 0]
    expected = np.sum(each * (np.arange(4)[None] < np.asarray(length)[:, None]), 1)
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)


def test_what_attention_none_sees_is_the_final_state_alone():
  model, variables, _ = made("none")
  decoder = model.make_decoder(variables, SOURCE, LENGTHS)
  assert decoder.source.memory.size == 0


def test_copies_of_equal_ids_add_up():
  """By loops over the places, in NumPy."""
  attention = jax.nn.softmax(jnp.sin(jnp.arange(30.0)).reshape(2, 3, 5), -1)
  tokens = jnp.array([[0, 1, 1, 3, 1], [2, 2, 2, 2, 2]])
  logs = jax.nn.log_softmax(jnp.cos(jnp.arange(36.0)).reshape(2, 3, 6))
  gate = jnp.linspace(-3.0, 3.0, 6).reshape(2, 3)
  p_gen = 1 / (1 + np.exp(-np.asarray(gate, np.float64)))
  expected = p_gen[..., None] * np.exp(np.asarray(logs, np.float64))
  for b, t, s in np.ndindex(2, 3, 5):
    expected[b, t, tokens[b, s]] += (1 - p_gen[b, t]) * attention[b, t, s]
  np.testing.assert_allclose(np.exp(mix_copied(logs, gate, attention, tokens)), expected, rtol=1e-5)
  sure = mix_copied(logs, jnp.full((2, 3), -200.0), attention, tokens)  # all of it copied
  assert np.all(np.isfinite(jax.grad(lambda a: jnp.sum(mix_copied(logs, gate * 60, a, tokens)[..., 1]))(attention)))
  np.testing.assert_allclose(np.exp(sure).sum(-1), 1, rtol=1e-5)


def test_scheduled_sampling_mixes_within_a_row_and_keeps_the_first():
  model, variables, _ = made("additive")
  inputs = jnp.concatenate([jnp.full((3, 1), START), jnp.zeros((3, 30), jnp.int32)], 1)
  draw = jax.jit(lambda p, key: model.score(variables, SOURCE, LENGTHS, inputs, sampling=p, rngs={"sampling": key}))
  half = np.asarray(draw(0.5, jax.random.key(1)).inputs)
  assert np.all(half[:, 0] == START)
  for row in half:
    assert 4 < np.sum(row[1:] != 0) < 26  # of 30, half from the model, which seldom says 0
  np.testing.assert_array_equal(draw(0.0, jax.random.key(1)).inputs, inputs)
  plain = model.score(variables, SOURCE, LENGTHS, inputs).log_probability
  np.testing.assert_allclose(draw(0.0, jax.random.key(1)).log_probability, plain, rtol=1e-4, atol=1e-5)
  # What it says of the inputs that it read is what a second pass over these says.
  mixed = draw(0.5, jax.random.key(1))
  again = model.score(variables, SOURCE, LENGTHS, mixed.inputs).log_probability
  np.testing.assert_allclose(mixed.log_probability, again, rtol=1e-4, atol=1e-5)


def test_own_tokens_are_drawn_from_what_was_said_one_step_before():
  model, variables, _ = made("additive")
  inputs = jnp.tile(jnp.array([[START, 0, 0]]), (3000, 1))
  source, lengths = jnp.tile(SOURCE[:1], (3000, 1)), jnp.full((3000,), 5)
  found = model.score(variables, source, lengths, inputs, sampling=1.0, rngs={"sampling": jax.random.key(2)})
  share = np.bincount(np.asarray(found.inputs[:, 1]), minlength=V) / 3000
  np.testing.assert_allclose(share, np.exp(found.log_probability[0, 0]), atol=0.04)


# -- losses ------------------------------------------------------------------------------------------------------------


def test_two_passes_mix_tokens_and_shift_what_was_drawn():
  logs = jnp.log(jax.nn.one_hot(jnp.arange(40)[None] % 5, 5) * 0.999 + 0.0002)
  inputs = jnp.full((1, 40), 9)
  mixed = np.asarray(losses.draw_inputs(jax.random.key(0), inputs, logs, 0.5))[0]
  assert mixed[0] == 9 and 8 < np.sum(mixed != 9) < 32
  own = np.flatnonzero(mixed != 9)
  np.testing.assert_array_equal(mixed[own], (own - 1) % 5)


def test_guided_attention_by_loops_over_each_examples_own_lengths():
  attention = jax.nn.softmax(jnp.sin(jnp.arange(60.0)).reshape(2, 5, 6), -1)
  for descending in (False, True):
    found = losses.guided_attention_loss(attention, jnp.array([6, 3]), jnp.array([5, 2]), 0.3, descending)
    for b, (n_all, t_all) in enumerate(((6, 5), (3, 2))):
      total = 0.0
      for t in range(t_all):
        for n in range(n_all):
          at = (t_all - 1 - t if descending else t) / t_all
          total += attention[b, t, n] * (1 - np.exp(-((n / n_all - at) ** 2) / (2 * 0.3**2)))
      np.testing.assert_allclose(found[b], total / (n_all * t_all), rtol=1e-5)
  one = jnp.eye(4)[None]
  assert losses.guided_attention_loss(one, jnp.array([4]), jnp.array([4]))[0] < 1e-6
  turned = losses.guided_attention_loss(one[:, ::-1], jnp.array([4]), jnp.array([4]), descending=True)
  assert turned[0] < 1e-6


def test_coverage_costs_what_is_looked_at_twice():
  once, twice = jnp.eye(3)[None], jnp.tile(jnp.array([[[1.0, 0, 0]]]), (1, 3, 1))
  lengths = jnp.array([3])
  np.testing.assert_allclose(losses.coverage_loss(once, lengths, lengths), [0.0])
  np.testing.assert_allclose(losses.coverage_loss(twice, lengths, lengths), [2 / 3])
  np.testing.assert_allclose(losses.coverage_loss(twice, lengths, jnp.array([2])), [1 / 2])


def test_the_chance_of_the_true_token_falls_as_an_inverse_sigmoid():
  for step in (0, 10, 300):
    np.testing.assert_allclose(losses.inverse_sigmoid_decay(step, 40.0), 40 / (40 + np.exp(step / 40)), rtol=1e-5)
  with pytest.raises(ValueError, match=r"k=0\.5"):
    losses.inverse_sigmoid_decay(0, 0.5)


def test_the_self_critical_gradient_is_that_of_the_expected_reward():
  """Two steps of three tokens, END is 2: all sequences enumerated, a baseline that changes nothing in the mean."""
  rewards = {(2,): 0.3, (0, 2): 1.0, (1, 2): -0.5, (0, 0): 0.1, (0, 1): 0.2, (1, 0): 0.7, (1, 1): 0.0}
  logits = jnp.sin(jnp.arange(6.0)).reshape(2, 3)

  def expected(logits):
    p = jax.nn.softmax(logits)
    return sum(r * jnp.prod(jnp.stack([p[t, k] for t, k in enumerate(w)])) for w, r in rewards.items())

  def of_draws(logits):
    logs, total = jax.nn.log_softmax(logits), 0.0
    for w, r in rewards.items():
      padded = jnp.array([*w, 0][:2])
      each = jnp.take_along_axis(logs, padded[:, None], -1)[None, :, 0]
      chance = jax.lax.stop_gradient(jnp.exp(jnp.sum(each[0, : len(w)])))
      loss = losses.self_critical_loss(each, jnp.array([len(w)]), jnp.array([r]), jnp.array([0.4]))
      total += chance * loss[0]
    return total

  np.testing.assert_allclose(jax.grad(of_draws)(logits), -jax.grad(expected)(logits), atol=1e-6)


def test_the_risk_is_the_mean_cost_under_a_sharpened_distribution():
  logs, cost = np.log([[0.5, 0.2, 0.1]]), np.array([[0.0, 1.0, 2.0]])
  q = np.exp(logs) ** 0.7 / np.sum(np.exp(logs) ** 0.7)
  found = losses.minimum_risk_loss(jnp.array(logs, jnp.float32), jnp.array(cost, jnp.float32), 0.7)
  np.testing.assert_allclose(found, [np.sum(q * cost)], rtol=1e-5)
