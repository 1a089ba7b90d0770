"""Quick-thought's classification against a loop; ELMo's mix against its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.lm.contrast import quick_thought
from mlnotes.lm.layer_mix import LayerMix


@pytest.mark.parametrize("context", [1, 2])
def test_quick_thought_finds_neighbours_of_one_document(context):
  draw = np.random.default_rng(0)
  f, g = draw.normal(size=(2, 7, 3))
  document = np.array([0, 0, 0, 1, 2, 2, 2])
  found = quick_thought(jnp.asarray(f), jnp.asarray(g), jnp.asarray(document), context)
  for i in range(7):
    others = [j for j in range(7) if j != i]
    scores = {j: f[i] @ g[j] for j in others}
    total = np.log(sum(np.exp(list(scores.values()))))
    near = [j for j in others if document[j] == document[i] and abs(i - j) <= context]
    assert found.weights[i] == len(near)
    expected = np.mean([total - scores[j] for j in near]) if near else 0
    np.testing.assert_allclose(found.loss[i], expected, rtol=1e-5)
    assert found.correct[i] == (max(scores, key=scores.get) in near)
  assert found.weights[3] == 0  # alone in its document


def test_quick_thought_at_chance_and_by_itself():
  none = quick_thought(jnp.zeros((5, 2)), jnp.ones((5, 2)), jnp.zeros(5, int))
  np.testing.assert_allclose(none.loss, np.log(4), rtol=1e-6)
  # That a sentence scores highest with itself does not help: it is no candidate.
  same = 3 * jnp.eye(5)
  np.testing.assert_allclose(quick_thought(same, same, jnp.zeros(5, int)).loss, np.log(4), rtol=1e-6)
  with pytest.raises(ValueError, match="got 1 sentences"):
    quick_thought(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.zeros(1, int))


@pytest.mark.parametrize("norm", [False, True])
def test_layers_are_mixed_by_a_softmax(norm):
  draw = np.random.default_rng(0)
  layers, scores, gamma = draw.normal(2, 3, (3, 2, 4, 5)), draw.normal(size=3), 1.7
  module = LayerMix(norm)
  as_jax = [jnp.asarray(x, jnp.float32) for x in layers]
  start = module.init(jax.random.key(0), as_jax)
  assert jax.tree.map(jnp.shape, start) == {"params": {"scores": (3,), "gamma": ()}}
  params = {"params": {"scores": jnp.asarray(scores, jnp.float32), "gamma": jnp.float32(gamma)}}
  weights = np.exp(scores) / np.exp(scores).sum()
  if norm:
    layers = (layers - layers.mean(-1, keepdims=True)) / layers.std(-1, keepdims=True)
  expected = gamma * np.tensordot(weights, layers, 1)
  real = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
  found = module.apply(params, as_jax, jnp.asarray(real))
  np.testing.assert_allclose(found, np.where(real[..., None], expected, 0), rtol=1e-4, atol=1e-5)
  if not norm:
    np.testing.assert_allclose(module.apply(start, as_jax), layers.mean(0), rtol=1e-4, atol=1e-5)
  frozen = jax.grad(lambda x: jnp.sum(module.apply(params, x) ** 2))(as_jax)
  assert all(np.all(x == 0) for x in frozen)
  learned = jax.grad(lambda p: jnp.sum(module.apply(p, as_jax) ** 2))(params)["params"]
  assert np.all(np.abs(learned["scores"]) > 1e-6) or norm
  assert abs(learned["gamma"]) > 1e-3
  with pytest.raises(ValueError, match="layers is empty"):
    module.init(jax.random.key(0), [])
