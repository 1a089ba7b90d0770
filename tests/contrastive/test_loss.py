"""Losses against NumPy programs written from the papers' pseudo-code, in loops, and against what is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mlnotes.contrastive.barlow_twins import cross_correlation, redundancy_reduction
from mlnotes.contrastive.loss import (
  estimate_normalizer,
  in_batch_info_nce,
  info_nce,
  mutual_information_bound,
  nce,
  negative_cosine,
  nonparametric_softmax,
  normalize,
  nt_xent,
  proximal_penalty,
)


def unit_rows(seed, *shape):
  x = np.random.default_rng(seed).normal(size=shape)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax_loss(scores, right):
  """-log of entry `right` of the softmax."""
  return -(scores[right] - np.log(np.sum(np.exp(scores - scores.max()))) - scores.max())


def test_normalize_gives_unit_rows_and_leaves_zero_alone(key):
  x = jax.random.normal(key, (5, 7)) * jnp.array([1e-6, 1.0, 1e6, 3.0, 0.0])[:, None]
  np.testing.assert_allclose(jnp.linalg.norm(normalize(x), axis=1), [1, 1, 1, 1, 0], rtol=1e-5)
  gradient = jax.grad(lambda x: jnp.sum(normalize(x)))(x)
  assert np.all(np.isfinite(gradient)) and np.all(gradient[-1] == 0)


def test_info_nce_is_moco_pseudocode():
  query, key, queue = unit_rows(0, 4, 6), unit_rows(1, 4, 6), unit_rows(2, 9, 6)
  expected = []
  for q, k in zip(query, key):
    logits = np.array([q @ k, *(q @ n for n in queue)]) / 0.07
    expected.append(softmax_loss(logits, 0))
  np.testing.assert_allclose(info_nce(*map(jnp.float32, (query, key, queue)), 0.07), expected, rtol=1e-4)


def test_nt_xent_is_simclr_algorithm_1():
  z_a, z_b = unit_rows(0, 5, 6), unit_rows(1, 5, 6)
  views = [row for pair in zip(z_a, z_b) for row in pair]  # the paper's order: 2k-1, 2k are one image's
  expected = {}
  for i in range(10):
    j = i + 1 if i % 2 == 0 else i - 1
    scores = np.array([views[i] @ views[k] / 0.5 for k in range(10) if k != i])
    expected[i] = softmax_loss(scores, j if j < i else j - 1)
  found = nt_xent(jnp.float32(z_a), jnp.float32(z_b), 0.5)
  np.testing.assert_allclose(found[:5], [expected[2 * k] for k in range(5)], rtol=1e-5)
  np.testing.assert_allclose(found[5:], [expected[2 * k + 1] for k in range(5)], rtol=1e-5)


def test_in_batch_info_nce_classifies_the_diagonal():
  query, key = unit_rows(0, 5, 3), unit_rows(1, 5, 3)
  scores = query @ key.T / 0.2
  expected = [softmax_loss(row, i) for i, row in enumerate(scores)]
  np.testing.assert_allclose(in_batch_info_nce(jnp.float32(query), jnp.float32(key), 0.2), expected, rtol=1e-5)


def test_chance_levels():
  """Where all vectors are the same, each loss is the log of the number of its candidates."""
  same = lambda n: jnp.broadcast_to(normalize(jnp.ones(4)), (n, 4))
  np.testing.assert_allclose(info_nce(same(3), same(3), same(10), 0.1), np.log(11), rtol=1e-6)
  np.testing.assert_allclose(nt_xent(same(6), same(6), 0.5), np.log(11), rtol=1e-6)
  np.testing.assert_allclose(in_batch_info_nce(same(6), same(6), 0.5), np.log(6), rtol=1e-6)
  np.testing.assert_allclose(nonparametric_softmax(same(2), jnp.arange(2), same(7), 0.1), np.log(7), rtol=1e-6)
  np.testing.assert_allclose(mutual_information_bound(jnp.log(11.0), 11), 0, atol=1e-6)


def test_negative_cosine_is_simsiam_equation_1():
  p, z = np.random.default_rng(0).normal(size=(2, 5, 3))
  expected = [-(a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)) for a, b in zip(p, z)]
  np.testing.assert_allclose(negative_cosine(jnp.float32(p), jnp.float32(z)), expected, rtol=1e-5)


def test_nonparametric_softmax_and_proximal_penalty():
  feature, bank, index = unit_rows(0, 3, 4), unit_rows(1, 8, 4), np.array([5, 0, 7])
  expected = [softmax_loss(bank @ f / 0.07, i) for f, i in zip(feature, index)]
  found = nonparametric_softmax(jnp.float32(feature), jnp.asarray(index), jnp.float32(bank), 0.07)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  previous = jnp.float32(bank[index])
  np.testing.assert_allclose(
    proximal_penalty(jnp.float32(feature), previous), [2 - 2 * f @ b for f, b in zip(feature, bank[index])], rtol=1e-4
  )


def test_nce_is_the_log_posterior_of_being_data():
  """Equations 4 and 7 of Wu et al. 2018, literally."""
  feature, positive, noise = unit_rows(0, 3, 4), unit_rows(1, 3, 4), unit_rows(2, 3, 6, 4)
  size, normalizer, temperature = 100, 40.0, 0.5
  expected = []
  for f, p, drawn in zip(feature, positive, noise):
    posterior = lambda v, f=f: (q := np.exp(v @ f / temperature) / normalizer) / (q + 6 / size)
    expected.append(-np.log(posterior(p)) - sum(np.log(1 - posterior(v)) for v in drawn))
  found = nce(*map(jnp.float32, (feature, positive, noise)), size, normalizer, temperature)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  far = nce(*(50 * jnp.float32(x) for x in (feature, positive, noise)), size, normalizer, 0.07)
  assert np.all(np.isfinite(far))


def test_the_normalizer_is_the_sum_over_the_bank():
  """With every example of the bank as noise once, the estimate is exact."""
  feature, bank = unit_rows(0, 3, 4), unit_rows(1, 8, 4)
  noise = np.broadcast_to(bank, (3, 8, 4))
  exact = np.mean([sum(np.exp(v @ f / 0.3) for v in bank) for f in feature])
  found = estimate_normalizer(jnp.float32(feature), jnp.float32(noise), 8, 0.3)
  np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_nce_with_many_samples_has_the_gradient_of_the_softmax():
  """Gutmann & Hyvarinen 2010: with the true Z and more and more noise, the gradients agree."""
  bank, feature, index = jnp.float32(unit_rows(1, 8, 4)), jnp.float32(unit_rows(0, 1, 4)), jnp.array([3])
  temperature = 0.5
  normalizer = jnp.sum(jnp.exp(bank @ feature[0] / temperature))
  exact = jax.grad(lambda f: nonparametric_softmax(f, index, bank, temperature)[0])(feature)
  # The expectation over uniform noise, as a sample that holds each of the eight equally often.
  noise = jnp.tile(bank, (4000, 1))[None]
  found = jax.grad(lambda f: nce(f, bank[index], noise, 8, normalizer, temperature)[0])(feature)
  np.testing.assert_allclose(found, exact, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("loss", [nt_xent, in_batch_info_nce])
def test_gradients_are_those_of_finite_differences(loss):
  z_a, z_b = jnp.float32(unit_rows(0, 3, 4)), jnp.float32(unit_rows(1, 3, 4))
  check_grads(
    lambda a, b: jnp.sum(loss(jnp.asarray(a), jnp.asarray(b), 0.5)), (z_a, z_b), order=1, modes=["rev"], rtol=2e-2
  )


def test_cross_correlation_is_numpys_and_its_loss_is_a_sum_over_pairs(key):
  a, b = (3 + 2 * jax.random.normal(k, (40, 5)) for k in jax.random.split(key))
  b = b.at[:, 0].set(a[:, 0]).at[:, 1].set(7.0)  # one feature the same in both, one constant
  found = cross_correlation(a, b)
  constant = np.asarray(b).copy()
  constant[:, 1] = np.random.default_rng(0).normal(size=40)
  expected = np.corrcoef(np.asarray(a).T, constant.T)[:5, 5:]
  expected[:, 1] = 0
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert found[0, 0] > 0.999
  total = sum((1 - c) ** 2 if i == j else 0.3 * c**2 for (i, j), c in np.ndenumerate(expected))
  np.testing.assert_allclose(redundancy_reduction(found, 0.3), total, rtol=1e-3)
  assert redundancy_reduction(jnp.eye(3), 1.0) == 0
