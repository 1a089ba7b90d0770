"""Preferences and rewards over all answers that there are: three tokens, END among them, at most three of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes.lm.preference import (
  answer_advantages,
  answer_log_probability,
  answer_rewards,
  answer_weights,
  bradley_terry_loss,
  dpo_loss,
  group_advantages,
  grpo_loss,
  ranking_loss,
  shift_reward,
  token_log_probability,
  whiten,
)
from mlnotes.rl.ppo import clipped_surrogate_loss

END, LENGTH = 2, 3
STATES = {prefix: i for i, prefix in enumerate(p for n in range(LENGTH) for p in itertools.product((0, 1), repeat=n))}


def enumerate_answers():
  """(tokens, lengths, the state before each token) of the 14 answers; padded with a token that is a word."""
  rows = []
  for n in range(LENGTH):
    rows += [(*words, END) for words in itertools.product((0, 1), repeat=n)]
  rows += list(itertools.product((0, 1), repeat=LENGTH))  # cut before END
  tokens = np.zeros((len(rows), LENGTH), int)
  states = np.zeros((len(rows), LENGTH), int)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
    states[i, : len(row)] = [STATES[row[:t]] for t in range(len(row))]
  return tokens, np.array([len(row) for row in rows]), states


TOKENS, LENGTHS, BEFORE = enumerate_answers()
ANSWERS = len(TOKENS)
WEIGHTS = jnp.asarray(np.arange(LENGTH)[None] < LENGTHS[:, None], jnp.float32)
ENDED = TOKENS[np.arange(ANSWERS), LENGTHS - 1] == END
DRAW = np.random.default_rng(0)
REFERENCE = jnp.asarray(DRAW.normal(size=(len(STATES), 3)), jnp.float32)
POLICY = jnp.asarray(DRAW.normal(size=(len(STATES), 3)), jnp.float32)
REWARD = jnp.asarray(DRAW.normal(size=ANSWERS), jnp.float32)


def tokens_of(table):
  return token_log_probability(table[BEFORE], jnp.asarray(TOKENS))


def answers_of(table):
  return answer_log_probability(table[BEFORE], jnp.asarray(TOKENS), WEIGHTS)


def optimum(reward, beta):
  return jax.nn.log_softmax(answers_of(REFERENCE) + reward / beta)


def kl(log_p, log_q):
  return float(jnp.sum(jnp.exp(log_p) * (log_p - log_q)))


def minimize(loss, steps=600, rate=0.1):
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

  def step(carry, _):
    table, state = carry
    updates, state = optimizer.update(jax.grad(loss)(table), state)
    return (optax.apply_updates(table, updates), state), None

  run = jax.jit(lambda: jax.lax.scan(step, (REFERENCE, optimizer.init(REFERENCE)), None, length=steps)[0][0])
  return run()


def test_answers_are_all_there_are():
  assert ANSWERS == 1 + 2 + 4 + 8
  assert jnp.sum(jnp.exp(answers_of(POLICY))) == pytest.approx(1, abs=1e-5)


# -- DPO ---------------------------------------------------------------------------------------------------------------


def test_dpo_starts_at_log_two_and_equal_answers_have_no_gradient():
  found = dpo_loss(*(answers_of(REFERENCE)[i : i + 4] for i in (0, 4, 0, 4)))
  np.testing.assert_allclose(found.loss, np.log(2), rtol=1e-6)
  assert not np.any(found.chosen_reward)
  same = jax.grad(lambda t: jnp.sum(dpo_loss(*(answers_of(x) for x in (t, t, REFERENCE, REFERENCE))).loss))(POLICY)
  np.testing.assert_allclose(same, 0, atol=1e-6)
  to_reference = jax.grad(lambda r: jnp.sum(dpo_loss(*(answers_of(x)[:2] for x in (POLICY, POLICY, r, r))).loss))
  assert not np.any(to_reference(REFERENCE))


def test_dpo_moves_the_chosen_up_and_the_rejected_down_more_for_a_small_margin():
  """Its gradient weighs a pair by the sigmoid of how wrong the implicit reward is."""
  loss = lambda w, l: dpo_loss(w[None], l[None], jnp.zeros(1), jnp.zeros(1), 0.5).loss[0]  # noqa: E741
  for w, l in ((0.0, 0.0), (3.0, -1.0), (-2.0, 5.0)):  # noqa: E741
    up, down = jax.grad(loss, (0, 1))(jnp.float32(w), jnp.float32(l))
    expected = 0.5 / (1 + np.exp(0.5 * (w - l)))
    np.testing.assert_allclose((up, down), (-expected, expected), rtol=1e-5)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_dpo_of_all_pairs_reaches_the_closed_form(beta):
  better = jax.nn.sigmoid(REWARD[:, None] - REWARD[None, :])

  def loss(table):
    logs, reference = answers_of(table), answers_of(REFERENCE)
    wide = lambda x: (jnp.repeat(x, ANSWERS), jnp.tile(x, ANSWERS))
    (w, l), (of_w, of_l) = wide(logs), wide(reference)  # noqa: E741
    return jnp.mean(better.reshape(-1) * dpo_loss(w, l, of_w, of_l, beta).loss)

  assert kl(optimum(REWARD, beta), answers_of(REFERENCE)) > 0.04
  assert kl(answers_of(minimize(loss)), optimum(REWARD, beta)) < 1e-3


def test_prompts_and_padding_have_no_part_in_an_answer():
  """Of rows of a prompt, an answer with END and padding, whatever the padding is, and wherever it stands."""
  logits = jnp.asarray(DRAW.normal(size=(2, 6, 5)), jnp.float32)
  rows = jnp.asarray(DRAW.integers(0, 5, (2, 7)))
  prompts, lengths = jnp.array([2, 3]), jnp.array([5, 7])
  weights = answer_weights(prompts, lengths, 6)
  np.testing.assert_array_equal(weights, [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
  total = lambda logits, rows: answer_log_probability(logits, rows[:, 1:], weights)
  logs = np.asarray(jax.nn.log_softmax(logits))
  by_hand = [sum(logs[b, t, rows[b, t + 1]] for t in places) for b, places in enumerate(([1, 2, 3], [2, 3, 4, 5]))]
  np.testing.assert_allclose(total(logits, rows), by_hand, rtol=1e-5)
  other = rows.at[0, 5:].set(4)  # as if END stood there again: not by its id, by its place
  np.testing.assert_array_equal(total(logits, other), total(logits, rows))
  grad = np.asarray(jax.grad(lambda x: jnp.sum(total(x, rows)))(logits))
  np.testing.assert_array_equal(np.any(grad != 0, -1), np.asarray(weights) == 1)
  infinite = logits.at[0, 5].set(-jnp.inf)  # what stands in padding may be anything
  np.testing.assert_array_equal(total(infinite, rows), total(logits, rows))


# -- reward models -----------------------------------------------------------------------------------------------------


def test_rewards_are_learned_from_comparisons():
  """The minimum over all pairs answered by Bradley and Terry is the reward, but for a number."""
  better = jax.nn.sigmoid(REWARD[:, None] - REWARD[None, :])
  loss = lambda r: jnp.mean(better * bradley_terry_loss(r[:, None], r[None, :]))
  np.testing.assert_allclose(jax.grad(loss)(REWARD), 0, atol=1e-7)
  np.testing.assert_allclose(jax.grad(loss)(REWARD + 3), 0, atol=1e-7)
  assert np.max(np.abs(jax.grad(loss)(2 * REWARD))) > 1e-3
  np.testing.assert_allclose(bradley_terry_loss(jnp.zeros(2), jnp.zeros(2)), np.log(2), rtol=1e-6)
  assert jnp.mean(shift_reward(REWARD, REWARD[:4])[:4]) == pytest.approx(0, abs=1e-6)


def test_all_pairs_of_a_prompt_are_one_example():
  rewards = DRAW.normal(size=(2, 4)).astype(np.float32)
  found = ranking_loss(jnp.asarray(rewards), jnp.array([4, 3]))
  for row, count, loss in zip(rewards, (4, 3), found):
    pairs = [np.log1p(np.exp(row[j] - row[i])) for i, j in itertools.combinations(range(count), 2)]
    np.testing.assert_allclose(loss, np.mean(pairs), rtol=1e-5)


# -- PPO and GRPO ------------------------------------------------------------------------------------------------------


def test_the_score_stands_at_the_last_token_and_nothing_behind_it():
  logs, reference = tokens_of(POLICY), tokens_of(REFERENCE)
  rewards = np.asarray(answer_rewards(REWARD, logs, reference, jnp.asarray(LENGTHS), jnp.asarray(ENDED), 0.3, -7.0))
  for i in range(ANSWERS):
    n = LENGTHS[i]
    expected = -0.3 * (np.asarray(logs) - np.asarray(reference))[i, :n]
    expected[n - 1] += REWARD[i] if ENDED[i] else -7.0
    np.testing.assert_allclose(rewards[i, :n], expected, rtol=1e-5)
    assert not rewards[i, n:].any()
  same = answer_rewards(REWARD, reference, reference, jnp.asarray(LENGTHS), jnp.asarray(ENDED), unended=None)
  np.testing.assert_allclose(jnp.sum(same, 1), REWARD, rtol=1e-6)  # no KL at the start


def advantages(table, reward, beta, lambda_=1.0):
  logs = jax.lax.stop_gradient(tokens_of(table))
  rewards = answer_rewards(
    reward, logs, tokens_of(REFERENCE), jnp.asarray(LENGTHS), jnp.asarray(ENDED), beta, unended=None
  )
  value = jnp.asarray(np.random.default_rng(5).normal(size=len(STATES)), jnp.float32)[BEFORE]
  return answer_advantages(rewards, value, jnp.asarray(LENGTHS), 1.0, lambda_)


def objective(table, reward, beta):
  """The mean reward less beta times the KL, over all answers."""
  logs = answers_of(table)
  return jnp.sum(jnp.exp(logs) * (reward - beta * (logs - answers_of(REFERENCE))))


def surrogate(table, reward, beta, lambda_=1.0):
  """The mean over all answers of PPO's loss of their tokens, before the first step."""
  probability = jax.lax.stop_gradient(jnp.exp(answers_of(table)))
  logs = tokens_of(table)
  losses = clipped_surrogate_loss(logs, jax.lax.stop_gradient(logs), advantages(table, reward, beta, lambda_), 0.2)
  return jnp.sum(probability * jnp.sum(losses * WEIGHTS, 1))


def test_the_policy_gradient_is_that_of_the_objective():
  """With lambda = 1, whatever the values of the states are; with another one values that are wrong count."""
  expected = jax.grad(objective)(POLICY, REWARD, 0.3)
  np.testing.assert_allclose(jax.grad(surrogate)(POLICY, REWARD, 0.3), -expected, atol=1e-5)
  assert np.max(np.abs(jax.grad(surrogate)(POLICY, REWARD, 0.3, 0.5) + expected)) > 1e-2
  assert not np.any(np.asarray(advantages(POLICY, REWARD, 0.3, 0.95))[np.asarray(WEIGHTS) == 0])


def test_ppo_reaches_the_closed_form():
  table = minimize(lambda table: surrogate(table, REWARD, 0.5))
  assert kl(answers_of(table), optimum(REWARD, 0.5)) < 1e-3


def test_whitening_is_of_what_counts():
  x = jnp.asarray(DRAW.normal(3, 2, size=(ANSWERS, LENGTH)), jnp.float32)
  found = np.asarray(whiten(x, WEIGHTS))
  real = np.asarray(WEIGHTS) == 1
  assert abs(found[real].mean()) < 1e-5 and found[real].std() == pytest.approx(1, rel=1e-4)
  assert not found[~real].any()


def test_advantages_of_a_group_compare_within_it():
  scores = jnp.array([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]])
  found = np.asarray(group_advantages(scores))
  np.testing.assert_allclose(found[0], (np.array([1, 2, 3, 6]) - 3) / np.sqrt(3.5), rtol=1e-5)
  assert not found[1].any()


def test_the_kl_of_grpo_is_unbiased_and_its_gradient_that_of_the_advantage():
  logs, reference = tokens_of(POLICY), tokens_of(REFERENCE)
  probability = jnp.exp(answers_of(POLICY))
  loss = grpo_loss(logs, logs, reference, jnp.zeros(ANSWERS), beta=1.0)
  assert np.all(np.asarray(loss) >= -1e-6)  # each estimate, not only their mean
  found = float(jnp.sum(probability * jnp.sum(loss * WEIGHTS, 1)))
  assert found == pytest.approx(kl(answers_of(POLICY), answers_of(REFERENCE)), rel=1e-4)

  def surrogate(table):
    losses = grpo_loss(tokens_of(table), logs, reference, REWARD, beta=0.0)
    return jnp.sum(probability * jnp.sum(losses * WEIGHTS, 1))

  expected = jax.grad(lambda table: jnp.sum(jnp.exp(answers_of(table)) * REWARD))(POLICY)
  np.testing.assert_allclose(jax.grad(surrogate)(POLICY), -expected, atol=1e-5)


def test_the_gradient_of_grpos_kl_is_that_of_the_reference_from_the_policy():
  """Estimated from the policy's own tokens, it is not the gradient of KL(pi || ref), whose value it has."""
  draw = np.random.default_rng(3)
  policy, reference = (jnp.asarray(draw.normal(size=5), jnp.float32) for _ in range(2))
  drawn, log_reference = jax.nn.softmax(policy), jax.nn.log_softmax(reference)

  def estimated(logits):
    logs = jax.nn.log_softmax(logits)
    loss = grpo_loss(logs[:, None], logs[:, None], log_reference[:, None], jnp.zeros(5), beta=1.0)
    return jnp.sum(drawn * loss[:, 0])

  forward = lambda logits: jnp.sum(jnp.exp(log_reference) * (log_reference - jax.nn.log_softmax(logits)))
  backward = lambda logits: jnp.sum(jax.nn.softmax(logits) * (jax.nn.log_softmax(logits) - log_reference))
  found = jax.grad(estimated)(policy)
  np.testing.assert_allclose(found, jax.grad(forward)(policy), atol=1e-5)
  assert np.max(np.abs(found - jax.grad(backward)(policy))) > 0.05
