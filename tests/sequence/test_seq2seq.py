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


@pytest.fixture(scope="module")
def made(draw_variables):
  """(model, its variables, (source, inputs) -> what it says) by name, compiled once."""

  @functools.cache
  def make(name):
    model = MODELS[name]()
    variables = draw_variables(model, SOURCE, LENGTHS, INPUTS, size=0.7)  # attention is not even
    score = lambda source, inputs: model.score(variables, source, LENGTHS, inputs, attention=True)
    return model, variables, jax.jit(score)

  return make


@each_model
def test_a_row_alone_step_by_step_is_that_of_the_whole_batch(made, name):
  """Without the padding of its source, and without the rows beside it."""
  model, variables, score = made(name)

  @jax.jit
  def by_steps():
    decoder = model.make_decoder(variables, SOURCE[1:2, :3], LENGTHS[1:2], room=4, attention=True)

    def step(state, token):
      found, state, attention = decoder.step(decoder.source, state, token)
      return state, (found, attention)

    return jax.lax.scan(step, decoder.state, INPUTS[1:2].T)[1]

  found, attention = by_steps()
  scored = score(SOURCE, INPUTS)
  np.testing.assert_allclose(found[:, 0], scored.log_probability[1], rtol=1e-4, atol=1e-5)
  assert (attention is None) == (scored.attention is None) == (name == "none")
  if attention is not None:
    np.testing.assert_allclose(attention[:, 0], scored.attention[1, :, :3], rtol=1e-4, atol=1e-5)


@each_model
def test_probabilities_sum_to_one_and_none_is_of_padding_or_start(made, name):
  scored = made(name)[2](SOURCE, INPUTS)
  p = np.exp(scored.log_probability)
  np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
  assert np.all(p[..., list(NEVER)] < 1e-12)
  if scored.attention is not None:
    np.testing.assert_allclose(np.sum(scored.attention, -1), 1, rtol=1e-5)
    assert np.all(np.asarray(scored.attention)[1, :, 3:] == 0)


@each_model
def test_padding_changes_nothing(made, name):
  score = made(name)[2]
  scored, other = (
    score(source, INPUTS).log_probability for source in (SOURCE, SOURCE.at[1, 3:].set(0).at[2, 1:].set(5))
  )
  np.testing.assert_allclose(other, scored, rtol=1e-5, atol=1e-6)


def test_padding_has_no_gradient(made):
  """Of a recurrent model: the embedding of a Transformer is the softmax's too."""
  model, variables, _ = made("copy")

  def loss(embedding):
    params = {**variables["params"], "embed": {"embedding": embedding}}
    return jnp.sum(model.score({"params": params}, SOURCE, LENGTHS, INPUTS).log_probability[:, :2, 0])

  gradient = jax.jit(jax.grad(loss))(variables["params"]["embed"]["embedding"])
  assert np.any(gradient[0]) and not np.any(gradient[PAD])


@each_model
def test_a_later_input_changes_nothing_before_it(made, name):
  score = made(name)[2]
  scored, changed = (score(SOURCE, inputs).log_probability for inputs in (INPUTS, INPUTS.at[:, 2].set(4)))
  np.testing.assert_allclose(changed[:, :2], scored[:, :2], rtol=1e-6, atol=1e-6)
  assert not np.allclose(changed[:, 2:], scored[:, 2:])


@pytest.mark.parametrize("name", ["copy", "transformer, copy"])  # states of cells and coverage; caches
def test_beams_score_what_the_model_says(made, name):
  """The log-probability that a search returns is that of its tokens by the whole pass."""
  model, variables, score = made(name)

  @jax.jit
  def search():
    decoder = model.make_decoder(variables, SOURCE, LENGTHS, room=4)
    return beam_search(decoder, START, END, PAD, 4, 3), greedy(decoder, START, END, PAD, 4)

  found, one = search()
  for tokens, length, total in (
    *((found.tokens[:, k], found.length[:, k], found.log_probability[:, k]) for k in range(3)),
    one[:3],
  ):
    inputs = jnp.concatenate([jnp.full((3, 1), START), tokens[:, :-1]], 1)
    logs = score(SOURCE, inputs).log_probability
    each = np.take_along_axis(np.asarray(logs), np.asarray(tokens)[..., None], -1)[..., 0]
    expected = np.sum(each * (np.arange(4)[None] < np.asarray(length)[:, None]), 1)
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)


def test_what_attention_none_sees_is_the_final_state_alone(made):
  model, variables, _ = made("none")
  decoder = jax.eval_shape(lambda: model.make_decoder(variables, SOURCE, LENGTHS).source)
  assert decoder.memory.size == 0


def test_copies_of_equal_ids_add_up():
  """By loops over the places, in NumPy."""
  numbers = np.random.default_rng(0)
  attention = numbers.dirichlet(np.ones(5), (2, 3)).astype(np.float32)
  tokens = np.array([[0, 1, 1, 3, 1], [2, 2, 2, 2, 2]])
  logs = np.log(numbers.dirichlet(np.ones(6), (2, 3))).astype(np.float32)
  gate = np.linspace(-3.0, 3.0, 6, dtype=np.float32).reshape(2, 3)
  p_gen = 1 / (1 + np.exp(-gate.astype(np.float64)))
  expected = p_gen[..., None] * np.exp(logs.astype(np.float64))
  for b, t, s in np.ndindex(2, 3, 5):
    expected[b, t, tokens[b, s]] += (1 - p_gen[b, t]) * attention[b, t, s]

  @jax.jit
  def mix(gate, attention):
    mixed = lambda attention: mix_copied(jnp.asarray(logs), gate, attention, jnp.asarray(tokens))
    return jnp.exp(mixed(attention)), jax.grad(lambda attention: jnp.sum(mixed(attention)[..., 1]))(attention)

  np.testing.assert_allclose(mix(gate, attention)[0], expected, rtol=1e-5)
  assert np.isfinite(mix(60 * gate, attention)[1]).all()
  sure = mix(np.full_like(gate, -200.0), attention)[0]  # all of it copied
  np.testing.assert_allclose(np.sum(sure, -1), 1, rtol=1e-5)


def test_scheduled_sampling_mixes_within_a_row_and_keeps_the_first(made):
  model, variables, _ = made("additive")
  inputs = jnp.concatenate([jnp.full((3, 1), START), jnp.zeros((3, 30), jnp.int32)], 1)
  draw = jax.jit(lambda p, key: model.score(variables, SOURCE, LENGTHS, inputs, sampling=p, rngs={"sampling": key}))
  score = jax.jit(lambda inputs: model.score(variables, SOURCE, LENGTHS, inputs).log_probability)
  mixed = draw(0.5, jax.random.key(1))
  half = np.asarray(mixed.inputs)
  assert np.all(half[:, 0] == START)
  for row in half:
    assert 4 < np.sum(row[1:] != 0) < 26  # of 30, half from the model, which seldom says 0
  none = draw(0.0, jax.random.key(1))
  np.testing.assert_array_equal(none.inputs, inputs)
  np.testing.assert_allclose(none.log_probability, score(inputs), rtol=1e-4, atol=1e-5)
  # What it says of the inputs that it read is what a second pass over these says.
  np.testing.assert_allclose(mixed.log_probability, score(mixed.inputs), rtol=1e-4, atol=1e-5)


def test_own_tokens_are_drawn_from_what_was_said_one_step_before(made):
  model, variables, _ = made("additive")
  inputs = jnp.tile(jnp.array([[START, 0, 0]]), (3000, 1))
  source, lengths = jnp.tile(SOURCE[:1], (3000, 1)), jnp.full((3000,), 5)
  draw = jax.jit(lambda key: model.score(variables, source, lengths, inputs, sampling=1.0, rngs={"sampling": key}))
  found = draw(jax.random.key(2))
  share = np.bincount(np.asarray(found.inputs[:, 1]), minlength=V) / 3000
  np.testing.assert_allclose(share, np.exp(found.log_probability[0, 0]), atol=0.04)


# -- losses ------------------------------------------------------------------------------------------------------------


def test_two_passes_mix_tokens_and_shift_what_was_drawn():
  logs = jnp.asarray(np.log(np.eye(5, dtype=np.float32)[np.arange(40) % 5] * 0.999 + 0.0002)[None])
  inputs = jnp.full((1, 40), 9)
  mixed = np.asarray(jax.jit(losses.draw_inputs)(jax.random.key(0), inputs, logs, 0.5))[0]
  assert mixed[0] == 9 and 8 < np.sum(mixed != 9) < 32
  own = np.flatnonzero(mixed != 9)
  np.testing.assert_array_equal(mixed[own], (own - 1) % 5)


def test_guided_attention_by_loops_over_each_examples_own_lengths():
  attention = np.random.default_rng(0).dirichlet(np.ones(6), (2, 5)).astype(np.float32)
  guided = jax.jit(losses.guided_attention_loss, static_argnames="descending")
  for descending in (False, True):
    found = guided(attention, np.array([6, 3]), np.array([5, 2]), 0.3, descending=descending)
    for b, (n_all, t_all) in enumerate(((6, 5), (3, 2))):
      total = 0.0
      for t in range(t_all):
        for n in range(n_all):
          at = (t_all - 1 - t if descending else t) / t_all
          total += attention[b, t, n] * (1 - np.exp(-((n / n_all - at) ** 2) / (2 * 0.3**2)))
      np.testing.assert_allclose(found[b], total / (n_all * t_all), rtol=1e-5)
    along = np.eye(4, dtype=np.float32)[:: -1 if descending else 1]
    padded = np.pad(np.stack([along, along]), ((0, 0), (0, 1), (0, 2)))
    assert guided(padded, np.array([4, 4]), np.array([4, 4]), 0.2, descending=descending)[0] < 1e-6


def test_coverage_costs_what_is_looked_at_twice():
  """Nothing, all from the second step on, and that in one place and one step fewer, which are padding."""
  attention = np.stack([np.eye(3), *[np.eye(3)[[0, 0, 0]]] * 2, np.eye(3)[[0, 2, 2]]]).astype(np.float32)
  found = jax.jit(losses.coverage_loss)(attention, np.array([3, 3, 3, 2]), np.array([3, 3, 2, 3]))
  np.testing.assert_allclose(found, [0, 2 / 3, 1 / 2, 0], rtol=1e-6)


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

  found, wanted = jax.jit(lambda logits: (jax.grad(of_draws)(logits), -jax.grad(expected)(logits)))(logits)
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_risk_is_the_mean_cost_under_a_sharpened_distribution():
  logs, cost = np.log([[0.5, 0.2, 0.1]]), np.array([[0.0, 1.0, 2.0]])
  q = np.exp(logs) ** 0.7 / np.sum(np.exp(logs) ** 0.7)
  found = losses.minimum_risk_loss(jnp.array(logs, jnp.float32), jnp.array(cost, jnp.float32), 0.7)
  np.testing.assert_allclose(found, [np.sum(q * cost)], rtol=1e-5)
