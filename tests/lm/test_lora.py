"""LoRA with r = 4 and alpha = 32, which differ: the start, the merge, the gradients, layers that add it unmerged."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import Mask, TokenModel, Transformer
from mlnotes.lm.lora import apply_lora, init_lora, lora_layers, merge, unmerge
from mlnotes.lm.trainable import count_parameters, flatten

RANK, ALPHA = 4, 32.0
MODEL = TokenModel(9, 6, Transformer(1, 2, 8, hidden=6))
TOKENS = jnp.array([[0, 3, 1, 6, 2, 8], [5, 5, 4, 0, 1, 7]])


@pytest.fixture(scope="module")
def params():
  return jax.jit(lambda: MODEL.init(jax.random.key(0), TOKENS)["params"])()


@pytest.fixture(scope="module")
def lora(params):
  return init_lora(jax.random.key(1), params, RANK)


@pytest.fixture(scope="module")
def moved(lora):
  """With B no longer zero."""
  leaves, structure = jax.tree.flatten(lora)
  noise = jax.random.split(jax.random.key(2), len(leaves))
  return structure.unflatten([x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, noise)])


@jax.jit
def run(params):
  return MODEL.apply({"params": params}, TOKENS, Mask(causal=True))


def test_targets_are_queries_and_values(params, lora):
  places = {path.rsplit("/", 1)[0] for path in flatten(lora)}
  assert places == {f"transformer/block{i}/attention/{name}/kernel" for i in range(1) for name in ("query", "value")}
  assert count_parameters(lora) == 2 * RANK * (8 + 8)
  factors = lora["transformer"]["block0"]["attention"]["query"]["kernel"]
  assert not np.any(factors["lora_b"]) and np.std(factors["lora_a"]) > 0.1
  assert np.max(np.abs(factors["lora_a"])) <= 8**-0.5
  other = lora["transformer"]["block0"]["attention"]["value"]["kernel"]
  assert np.any(other["lora_a"] != factors["lora_a"])


def test_at_the_start_nothing_is_changed(params, lora):
  for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(apply_lora(params, lora, ALPHA))):
    np.testing.assert_array_equal(before, after)


def test_the_update_is_scaled_by_alpha_over_r(params, moved):
  """Against NumPy; nothing but the targets has changed."""
  merged, before, factors = flatten(apply_lora(params, moved, ALPHA)), flatten(params), flatten(moved)
  for path, kernel in merged.items():
    expected = np.asarray(before[path], np.float64)
    if f"{path}/lora_a" in factors:
      a, b = (np.asarray(factors[f"{path}/lora_{side}"], np.float64) for side in "ab")
      expected = expected + 8.0 * a @ b
      assert np.max(np.abs(expected - before[path])) > 0.1
    np.testing.assert_allclose(kernel, expected, atol=1e-6)


def test_merged_and_unmerged_and_back(params, moved):
  merged = merge(params, moved, ALPHA)
  assert np.max(np.abs(run(merged) - run(params))) > 1e-2
  with lora_layers(moved, ALPHA):
    apart = MODEL.apply({"params": params}, TOKENS, Mask(causal=True))
  np.testing.assert_allclose(run(merged), apart, atol=1e-6, rtol=1e-5)
  for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(unmerge(merged, moved, ALPHA))):
    np.testing.assert_allclose(before, after, atol=1e-6)


def test_a_has_a_gradient_only_after_b_has_moved(params, lora, moved):
  loss = jax.jit(jax.grad(lambda lora: jnp.sum(run(apply_lora(params, lora, ALPHA)) ** 2)))
  for path, grad in flatten(loss(lora)).items():
    assert np.any(grad != 0) == path.endswith("lora_b"), path
  assert all(np.any(grad != 0) for grad in jax.tree.leaves(loss(moved)))


def test_gradients_are_those_of_the_unmerged_layers(params, moved):
  def unmerged(lora):
    with lora_layers(lora, ALPHA):
      return jnp.sum(MODEL.apply({"params": params}, TOKENS, Mask(causal=True)) ** 2)

  expected = jax.jit(jax.grad(unmerged))(moved)
  found = jax.jit(jax.grad(lambda lora: jnp.sum(run(apply_lora(params, lora, ALPHA)) ** 2)))(moved)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), found, expected)


def test_dropout_is_on_the_input_of_a():
  """One layer: the mean over keys is what there is without, and W's part is never dropped."""
  layer = nn.Dense(3)
  x = jax.random.normal(jax.random.key(0), (1, 5))
  params = layer.init(jax.random.key(1), x)["params"]
  lora = init_lora(jax.random.key(2), params, 2, "kernel")
  lora = jax.tree.map(lambda x: x + 0.5, lora)

  def run(key, dropout=0.4):
    with lora_layers(lora, 1.0, dropout, key):
      return layer.apply({"params": params}, x)

  found = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(3), 20000)))
  plain = np.asarray(layer.apply({"params": params}, x))
  without = np.asarray(run(None, 0.0))
  assert np.all(np.abs(found.mean(0) - without) < 4 * found.std(0) / np.sqrt(20000))
  assert np.max(np.abs(without - plain)) > 0.1
  # All five features dropped, one of 0.4^-5 = 98 draws: then W alone is left.
  alone = np.mean(np.all(np.abs(found - plain) < 1e-6, (1, 2)))
  assert abs(alone - 0.4**5) < 4 * np.sqrt(0.4**5 / 20000)


class Tied(nn.Module):
  """One matrix for tokens in and out."""

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(7, 4, name="embed")
    return embed.attend(jnp.tanh(nn.Dense(4, name="query")(embed(tokens))))


def test_tied_weights_are_changed_for_both_uses():
  """Where the tied matrix is a target, merged and in the step are one: both see the change."""
  model, tokens = Tied(), jnp.arange(7)
  params = model.init(jax.random.key(0), tokens)["params"]
  lora = init_lora(jax.random.key(1), params, 2, "embedding$|kernel$")
  lora = jax.tree.map(lambda x: x + 0.3, lora)
  merged = merge(params, lora, 8.0)
  expected = np.asarray(params["embed"]["embedding"]) + 4.0 * np.asarray(
    lora["embed"]["embedding"]["lora_a"] @ lora["embed"]["embedding"]["lora_b"]
  )
  np.testing.assert_allclose(merged["embed"]["embedding"], expected, atol=1e-5)
  hidden = np.tanh(expected @ np.asarray(merged["query"]["kernel"]) + np.asarray(merged["query"]["bias"]))
  np.testing.assert_allclose(model.apply({"params": merged}, tokens), hidden @ expected.T, rtol=1e-4, atol=1e-4)
  # Tuning the layer alone leaves the tied matrix alone.
  of_layer = merge(params, {"query": lora["query"]}, 8.0)
  np.testing.assert_array_equal(of_layer["embed"]["embedding"], params["embed"]["embedding"])
  with pytest.raises(ValueError, match="embed/embedding is of no Dense layer"), lora_layers(lora, 8.0):
    model.apply({"params": params}, tokens)


def test_kernels_of_more_axes_are_matrices():
  params = {"query": {"kernel": jnp.ones((6, 2, 3))}, "out": {"kernel": jnp.ones((2, 3, 6))}}
  first = init_lora(jax.random.key(0), params, 2, "query/kernel")["query"]["kernel"]
  assert (first["lora_a"].shape, first["lora_b"].shape) == ((6, 2), (2, 6))
  last = init_lora(jax.random.key(0), params, 2, "out/kernel", input_axes=2)
  last = jax.tree.map(lambda x: x + 1.0, last)
  merged = merge(params, last, 2.0)["out"]["kernel"]
  factors = last["out"]["kernel"]
  expected = 1 + np.asarray(factors["lora_a"] @ factors["lora_b"]).reshape(2, 3, 6)
  np.testing.assert_allclose(merged, expected, rtol=1e-5)


def test_half_precision_weights_stay_half_and_are_summed_wide():
  params = {"query": {"kernel": jnp.full((4, 4), 256, jnp.bfloat16)}}
  lora = init_lora(jax.random.key(0), params, 1)
  lora = jax.tree.map(lambda x: jnp.full(x.shape, 1.5, x.dtype), lora)
  merged = merge(params, lora, 1.0)["query"]["kernel"]
  assert merged.dtype == jnp.bfloat16 and np.all(np.asarray(merged, np.float32) == 258)  # 258.25, rounded once


@pytest.mark.parametrize("options, words", [
  (dict(rank=0), "rank is 0, expected 1 or more"),
  (dict(rank=9), "rank is 9, expected at most 8 for"),
  (dict(rank=1, targets="bias$"), "expected more than 1 axes: targets are matrices"),
  (dict(rank=1, targets="nothing"), "the pattern 'nothing' finds none of"),
])  # fmt: skip
def test_what_cannot_be_is_refused(params, options, words):
  with pytest.raises(ValueError, match=words):
    init_lora(jax.random.key(0), params, **options)


def test_factors_of_another_network_are_refused(params, lora):
  with pytest.raises(ValueError, match="query/kernel is missing, expected a matrix of 8 x 8"):
    merge({"transformer": {}, "head": params["head"]}, lora, ALPHA)
  with pytest.raises(ValueError, match="expected lora_a and lora_b"):
    merge(params, params, ALPHA)
  with pytest.raises(ValueError, match="expected a key"), lora_layers(lora, ALPHA, 0.1):
    pass
