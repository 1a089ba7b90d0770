"""Policies of two or three tokens, whose sequences are all enumerated, against what the functions estimate."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes import generative

V, T = 3, 3


def all_sequences(vocabulary=V, length=T):
  return jnp.array(list(itertools.product(range(vocabulary), repeat=length)), jnp.int32)


def table_policy(seed=0, vocabulary=V):
  return generative.make_table_policy(jax.random.normal(jax.random.key(seed), (vocabulary + 1, vocabulary)))


def network(vocabulary=V, seed=0):
  return generative.make_oracle(vocabulary, 4, jax.random.key(seed))


def probabilities(policy, sequences):
  return np.exp(np.sum(jax.jit(functools.partial(generative.token_log_probability, policy))(sequences), 1))


def test_probabilities_of_all_sequences_sum_to_one_and_agree_with_those_token_by_token():
  """`read` and `start`/`advance` are two implementations of one model."""
  sequences = all_sequences()
  code = jnp.broadcast_to(jnp.array([0.6, -0.8]), (len(sequences), 2))
  model = generative.SequenceModel(V, 4)
  params = jax.jit(model.init)(jax.random.key(1), sequences[:1], code[:1])["params"]
  policies = [table_policy(), generative.make_policy(*network()), generative.make_policy(model, params, code)]
  policies.append(generative.at_temperature(policies[1], 0.5))
  for policy in policies:
    found = probabilities(policy, sequences)
    assert found.sum() == pytest.approx(1, abs=1e-5) and found.std() > 0.005

    def step_by_step(policy):
      carry, logits = policy.start(len(sequences))
      chance = 1.0
      for token in sequences.T:
        chance *= jnp.take_along_axis(jax.nn.softmax(logits), token[:, None], 1)[:, 0]
        carry, logits = policy.advance(carry, token)
      return chance

    np.testing.assert_allclose(found, jax.jit(functools.partial(step_by_step, policy))(), rtol=1e-4)


def test_a_temperature_divides_the_logits():
  logits = jnp.log(jnp.array([[0.2, 0.3, 0.5]]))
  policy = generative.at_temperature(generative.make_table_policy(logits), 0.5)
  squares = np.array([0.04, 0.09, 0.25]) / 0.38
  found = np.exp(generative.token_log_probability(policy, jnp.array([[0], [1], [2]])))[:, 0]
  np.testing.assert_allclose(found, squares, rtol=1e-5)
  np.testing.assert_allclose(jax.nn.softmax(policy.start(1)[1])[0], squares, rtol=1e-5)
  np.testing.assert_allclose(jax.nn.softmax(policy.advance((), jnp.array([1]))[1])[0], squares, rtol=1e-5)


def test_weights_over_tokens_are_read_as_the_tokens_that_they_choose():
  tokens = jnp.array([0, 2, 1])
  for policy in (table_policy(), generative.make_policy(*network())):
    carry, _ = policy.start(3)
    expected, found = (policy.advance(carry, x)[1] for x in (tokens, jax.nn.one_hot(tokens, V)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  discriminator = generative.SequenceDiscriminator(V, 4, 2)
  params = discriminator.init(jax.random.key(0), tokens[None])
  np.testing.assert_allclose(
    discriminator.apply(params, jax.nn.one_hot(tokens, V)[None]), discriminator.apply(params, tokens[None]), rtol=1e-5
  )


def test_sampled_sequences_have_the_models_probabilities():
  policy, count = generative.make_policy(*network()), 20_000
  tokens = jax.jit(lambda u: generative.sample_sequences(policy, u))(jax.random.uniform(jax.random.key(0), (count, 2)))
  sequences = all_sequences(length=2)
  expected = probabilities(policy, sequences)
  found = np.bincount(np.asarray(tokens) @ [3, 1], minlength=9) / count
  np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / count))


def test_a_token_of_probability_zero_is_never_picked():
  logits = jnp.array([-jnp.inf, 0.0, -jnp.inf, 1.0, -jnp.inf])
  uniform = jnp.array([0.0, 0.2, 0.5, 1 - 2.0**-24])
  np.testing.assert_array_equal(generative.pick_token(jnp.broadcast_to(logits, (4, 5)), uniform), [1, 1, 3, 3])
  # The edges are those of the cumulated probabilities.
  halves = jnp.zeros((3, 2))
  np.testing.assert_array_equal(generative.pick_token(halves, jnp.array([0.49, 0.5, 0.51])), [0, 1, 1])


def test_roll_outs_keep_their_beginnings_and_their_values_are_the_enumerated_ones():
  """Q(y_1 .. y_t) = sum over all endings of p(ending | y_1 .. y_t) r."""
  policy = generative.make_policy(*network(seed=2))
  of_sequence = jax.random.normal(jax.random.key(5), (V,) * T)
  reward = lambda x: of_sequence[tuple(x.T)]
  tokens, num = jnp.array([[0, 1, 2], [2, 2, 0]]), 4000
  uniform = jax.random.uniform(jax.random.key(3), (num, T - 1, 2, T))
  found = jax.jit(lambda u: generative.roll_out_values(reward, policy, tokens, u))(uniform)
  sequences = all_sequences()
  joint = probabilities(policy, sequences).reshape((V,) * T)
  rewards = np.asarray(of_sequence)
  expected = np.zeros((2, T))
  for i, (a, b, c) in enumerate(np.asarray(tokens)):
    expected[i, 0] = np.sum(joint[a] * rewards[a]) / joint[a].sum()
    expected[i, 1] = np.sum(joint[a, b] * rewards[a, b]) / joint[a, b].sum()
    expected[i, 2] = rewards[a, b, c]
  np.testing.assert_allclose(found[:, :2], expected[:, :2], atol=5 * rewards.std() / np.sqrt(num))
  np.testing.assert_allclose(found[:, 2], expected[:, 2], rtol=1e-6)
  completed = generative.roll_out(policy, tokens, uniform[:5])
  np.testing.assert_array_equal(completed[:, 0, :, :1], jnp.broadcast_to(tokens[:, :1], (5, 2, 1)))
  np.testing.assert_array_equal(completed[:, 1, :, :2], jnp.broadcast_to(tokens[:, :2], (5, 2, 2)))


def test_roll_outs_refuse_numbers_of_another_shape():
  with pytest.raises(ValueError, match=r"uniform has shape \(1, 3, 2, 3\), expected \(N, 2, 2, 3\)"):
    generative.roll_out(table_policy(), jnp.zeros((2, 3), jnp.int32), jnp.zeros((1, 3, 2, 3)))


@pytest.mark.parametrize("with_baseline", [False, True])
def test_the_gradient_is_unbiased_on_a_bandit_of_two_arms(with_baseline):
  """Averaged over all draws of two pulls, weighted by their probabilities, it is that of -sum_a p(a) r(a), exactly."""
  logits, rewards = jnp.array([0.3, -0.4]), jnp.array([1.0, 3.0])
  expected = jax.grad(lambda x: -jnp.sum(jax.nn.softmax(x) * rewards))(logits)

  def estimate(tokens):
    values = rewards[tokens][:, None]
    baseline = generative.leave_one_out(values) if with_baseline else 0.0

    def loss(x):
      policy = generative.make_table_policy(x[None])
      log_probability = generative.token_log_probability(policy, tokens[:, None])
      return jnp.mean(generative.policy_gradient_loss(log_probability, values, baseline))

    return jax.grad(loss)(logits)

  draws = all_sequences(2, 2)
  chance = jnp.prod(jax.nn.softmax(logits)[draws], 1)
  found = jnp.sum(chance[:, None] * jax.vmap(estimate)(draws), 0)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # A mean that includes one's own reward would halve it.
  assert float(jnp.max(jnp.abs(expected))) > 0.3


def test_a_constant_reward_leaves_no_advantage():
  values = jnp.full((5, 4), 0.1)
  np.testing.assert_array_equal(values - generative.leave_one_out(values), 0)
  mixed = jax.random.normal(jax.random.key(0), (4, 2))
  np.testing.assert_allclose(generative.leave_one_out(mixed)[1], np.delete(mixed, 1, 0).mean(0), rtol=1e-5)
  with pytest.raises(ValueError, match="found 1 sequence, expected two or more"):
    generative.leave_one_out(values[:1])


def test_maligans_weights_make_a_sample_of_the_model_one_of_the_data():
  """With the best discriminator's scores, log(p_data / p_model), and each token drawn as often as the model says."""
  data, model = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.4, 0.4])
  tokens = np.repeat(np.arange(3), np.round(model * 10).astype(int))
  weights = generative.maligan_values(jnp.asarray(np.log(data / model)[tokens]))
  found = np.bincount(tokens, weights=np.asarray(weights) / len(tokens), minlength=3)
  np.testing.assert_allclose(found, data, rtol=1e-5)
  assert bool(jnp.all(jnp.isfinite(generative.maligan_values(jnp.array([1e4, -1e4])))))


def test_gumbel_noise_is_finite_at_the_ends_and_draws_from_the_softmax():
  ends = generative.gumbel_noise(jnp.array([0.0, 1e-45, 1 - 2.0**-24, 1.0]))
  assert bool(jnp.all(jnp.isfinite(ends))) and bool(jnp.all(jnp.diff(ends) >= 0))
  uniform = jax.random.uniform(jax.random.key(0), (20_000, 3))
  chosen = jnp.argmax(jnp.log(jnp.array([[0.2, 0.3, 0.5]])) + generative.gumbel_noise(uniform), -1)
  np.testing.assert_allclose(np.bincount(chosen, minlength=3) / 20_000, [0.2, 0.3, 0.5], atol=0.015)
  # Standard Gumbel: mean 0.5772, variance pi^2 / 6.
  noise = np.asarray(generative.gumbel_noise(uniform))
  assert noise.mean() == pytest.approx(0.5772, abs=0.02) and noise.var() == pytest.approx(np.pi**2 / 6, rel=0.05)


@pytest.mark.parametrize("straight_through", [False, True])
def test_relaxed_choices_have_finite_gradients_at_u_0_and_temperature_0(straight_through):
  uniform = jnp.array([[0.0, 0.5, 1 - 2.0**-24], [0.0, 0.0, 0.0]])
  weight = jnp.array([1.0, -2.0, 3.0])
  relaxed = lambda x, t: generative.relax_choice(x, uniform, t, straight_through)
  pull = jax.value_and_grad(lambda x, t: jnp.sum(relaxed(x, t) @ weight))
  for temperature in (0.0, 1e-30, 0.5):
    value, gradient = pull(jnp.zeros((2, 3)), temperature)
    assert bool(jnp.isfinite(value)) and bool(jnp.all(jnp.isfinite(gradient)))
    np.testing.assert_allclose(jnp.sum(relaxed(jnp.zeros((2, 3)), temperature), -1), 1, rtol=1e-5)


def test_a_straight_through_choice_is_one_hot_with_the_gradient_of_the_soft_one():
  logits, uniform = jax.random.normal(jax.random.key(0), (4, 3)), jax.random.uniform(jax.random.key(1), (4, 3))
  weight = jnp.array([1.0, -2.0, 3.0])
  pull = lambda hard: jax.grad(lambda x: jnp.sum(generative.relax_choice(x, uniform, 0.7, hard) @ weight))(logits)
  hard = generative.relax_choice(logits, uniform, 0.7, True)
  np.testing.assert_array_equal(jnp.sort(hard, -1), jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), (4, 3)))
  np.testing.assert_array_equal(jnp.argmax(hard, -1), jnp.argmax(generative.relax_choice(logits, uniform, 0.7), -1))
  np.testing.assert_allclose(pull(True), pull(False), rtol=1e-5)
  assert float(jnp.max(jnp.abs(pull(False)))) > 0.1


def test_hard_relaxed_sequences_are_samples_of_the_policy():
  policy = table_policy(3)
  draw = jax.jit(lambda u: generative.relax_sequences(policy, u, 0.5, True))
  weights = draw(jax.random.uniform(jax.random.key(0), (20_000, 2, V)))
  found = np.bincount(np.asarray(jnp.argmax(weights, -1)) @ [3, 1], minlength=9) / 20_000
  np.testing.assert_allclose(found, probabilities(policy, all_sequences(length=2)), atol=0.015)


def test_tables_are_smoothed_frequencies():
  tokens = np.array([[0, 1], [0, 1], [0, 0], [1, 0]])
  single, double = (np.exp(x) for x in generative.fit_tables(tokens, 3))
  np.testing.assert_allclose(single[0], np.array([5 + 1, 3 + 1, 1]) / 11, rtol=1e-6)
  np.testing.assert_allclose(double.sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(double[3, 0], (3 + 6 / 11) / 5, rtol=1e-6)  # three of four begin with 0
  np.testing.assert_allclose(double[0, 1], (2 + 4 / 11) / 4, rtol=1e-6)  # 0 is followed by 1 twice of three times
  np.testing.assert_allclose(double[2], single[0], rtol=1e-6)  # never seen before another
  with pytest.raises(ValueError, match="logits have 3 rows, expected 1 or 4"):
    generative.make_table_policy(jnp.zeros((3, 3)))


def test_the_oracles_parameters_are_standard_normal():
  _, params = generative.make_oracle(50, 16, jax.random.key(0))
  flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
  assert flat.mean() == pytest.approx(0, abs=0.05) and flat.std() == pytest.approx(1, abs=0.05)


def test_codes_lie_on_the_unit_sphere_and_a_scaled_gradient_is_scaled():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  np.testing.assert_allclose(generative.to_sphere(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
  assert bool(jnp.all(jnp.isfinite(jax.jacobian(generative.to_sphere)(x))))
  value, gradient = jax.value_and_grad(lambda x: jnp.sum(generative.scale_gradient(x, 0.05) ** 2))(x)
  assert float(value) == 25
  np.testing.assert_allclose(gradient, 0.05 * 2 * x, rtol=1e-6)
  tokens = jnp.array([[0, 1, 2], [2, 1, 0]])
  encoder = generative.SequenceEncoder(V, 4, 5)
  code = encoder.apply(encoder.init(jax.random.key(0), tokens), tokens)
  np.testing.assert_allclose(jnp.linalg.norm(code, axis=1), 1, rtol=1e-5)
  assert float(jnp.max(jnp.abs(code[0] - code[1]))) > 1e-3
