"""All answers listed: how many there are, the best policy over them, its frontier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.lm.tasks import enumerate_answers, find_answers, measure_policy, optimal_policy, reward_frontier


def test_every_answer_is_there_once():
  found = enumerate_answers(2, 3, 2)
  assert len(found.tokens) == 1 + 2 + 4 + 8 == len({tuple(row) for row in found.tokens.tolist()})
  for tokens, length, ended in zip(*found):
    words = tokens[tokens != 2]
    assert (len(words), (tokens == 2).any()) == (length - ended, ended) and (tokens[len(words) :] == 2).all()
  order = np.random.default_rng(0).permutation(15)
  np.testing.assert_array_equal(find_answers(found, jnp.asarray(found.tokens[order])), order)
  for bad in ((0, 1, 1), (2, 0, 2), (2, 3, 1), (9, 9, 9)):
    with pytest.raises(ValueError, match=r"expected"):
      enumerate_answers(*bad)


def test_no_policy_is_better_than_the_optimum():
  """Its objective is beta log Z; that of any other is less by beta KL(pi || pi*)."""
  draw = np.random.default_rng(0)
  reference, policies = (
    jax.nn.log_softmax(jnp.asarray(draw.normal(size=shape), jnp.float32)) for shape in ((9,), (50, 9))
  )
  reward, beta = jnp.asarray(draw.normal(size=9), jnp.float32), 0.3
  best = measure_policy(optimal_policy(reference, reward, beta), reference, reward, beta)
  log_z = np.log(np.sum(np.exp(np.asarray(reference) + np.asarray(reward) / beta)))
  np.testing.assert_allclose(best.objective, beta * log_z, rtol=1e-5)
  assert abs(best.kl_to_optimum) < 1e-5
  wide = lambda x: jnp.broadcast_to(x, policies.shape)
  found = measure_policy(policies, wide(reference), wide(reward), beta)
  np.testing.assert_allclose(best.objective - found.objective, beta * found.kl_to_optimum, rtol=1e-4, atol=1e-5)
  assert np.all(np.asarray(found.kl) > 0)


def test_the_frontier_ends_at_the_reference_and_at_the_best_answer():
  draw = np.random.default_rng(1)
  reference, reward = (
    jax.nn.log_softmax(jnp.asarray(draw.normal(size=(2, 7)), jnp.float32)),
    jnp.asarray(draw.normal(size=(2, 7)), jnp.float32),
  )
  kl, best = (np.asarray(x) for x in reward_frontier(reference, reward, jnp.float32([0.001, 0.1, 0.5, 2, 1e4])))
  assert (
    kl.shape == best.shape == (2, 5) and np.all(np.diff(kl, axis=1) < 1e-6) and np.all(np.diff(best, axis=1) < 1e-6)
  )
  np.testing.assert_allclose(best[:, 0], np.max(reward, 1), rtol=1e-4)
  np.testing.assert_allclose(best[:, -1], np.sum(np.exp(reference) * np.asarray(reward), 1), atol=1e-3)
  np.testing.assert_allclose(kl[:, -1], 0, atol=1e-5)
