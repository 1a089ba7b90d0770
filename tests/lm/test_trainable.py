"""Which parameters train: found by path, alone in the gradient and in the optimizer's state, the others untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes.attention import Mask, TokenModel, Transformer
from mlnotes.lm.trainable import (
  ALL,
  BIASES,
  HEAD,
  NORMS,
  any_of,
  combine,
  count_bytes,
  count_parameters,
  find_paths,
  flatten,
  last_layers,
  partition,
  paths_read,
)
from mlnotes.optim.decay import is_decayed

MODEL = TokenModel(7, 5, Transformer(1, 1, 4, hidden=4), "learned")
TOKENS = jnp.array([[0, 3, 1, 6, 2], [5, 5, 4, 0, 1]])


@pytest.fixture(scope="module")
def params():
  return jax.jit(lambda: MODEL.init(jax.random.key(0), TOKENS)["params"])()


def loss(params):
  logits = MODEL.apply({"params": params}, TOKENS[:, :-1], Mask(causal=True))
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:]))


def test_patterns_find_what_they_are_called(params):
  everything = set(flatten(params))
  assert set(find_paths(params, ALL)) == everything
  biases = set(find_paths(params, BIASES))
  assert biases == {path for path in everything if path.split("/")[-1] == "bias"} and biases
  norms = set(find_paths(params, NORMS))
  assert len(norms) == 2 * (2 * 1 + 1) and {path.split("/")[-1] for path in norms} == {"scale", "bias"}
  assert find_paths(params, HEAD) == ["head/kernel"]
  assert set(find_paths(params, any_of(NORMS, HEAD))) == norms | {"head/kernel"}


def test_the_last_layers_are_by_number_not_by_name():
  """Of twelve, block9 comes before block10 and block11; block1 is not block10."""
  blocks = {f"block{i}": {"attention": {"kernel": jnp.ones((1, 1))}} for i in range(12)}
  params = {"transformer": {**blocks, "last_norm": {"scale": jnp.ones(1)}}, "head": {"kernel": jnp.ones((1, 1))}}
  found = find_paths(params, last_layers(params, 2))
  assert {path.split("/")[1] for path in found} == {"block10", "block11", "last_norm"}
  with_head = find_paths(params, any_of(last_layers(params, 1), HEAD))
  assert {path.split("/")[-2] if path.startswith("head") else path.split("/")[1] for path in with_head} == {
    "block11", "last_norm", "head"
  }  # fmt: skip
  with pytest.raises(ValueError, match="count is 13, expected 1 to 12"):
    last_layers(params, 13)
  with pytest.raises(ValueError, match="count is 1, expected 1 to 0"):
    last_layers({"kernel": jnp.ones(2)}, 1)


def test_parts_are_the_whole(params):
  trained, frozen = partition(params, any_of(BIASES, HEAD))
  whole = combine(trained, frozen)
  jax.tree.map(np.testing.assert_array_equal, whole, params)
  assert jax.tree.structure(whole) == jax.tree.structure(dict(params))
  assert count_parameters(trained) + count_parameters(frozen) == count_parameters(params)
  with pytest.raises(ValueError, match="both parts have head/kernel"):
    combine(trained, params)
  with pytest.raises(ValueError, match="the pattern 'adapter' finds none of"):
    partition(params, "adapter")


@pytest.mark.parametrize("pattern", [BIASES, HEAD, ALL])
def test_the_optimizer_keeps_state_of_what_trains_alone(params, pattern):
  """Adam: two numbers for each, and one count."""
  trained, _ = partition(params, pattern)
  state = optax.adam(1e-3).init(trained)
  assert count_bytes(state) == 2 * count_bytes(trained) + 4
  if pattern != ALL:
    assert count_bytes(state) < 0.5 * count_bytes(optax.adam(1e-3).init(params))


def test_what_is_frozen_does_not_move_under_decay_and_clipping(params):
  """Against the whole gradient, of which the trained part is a part; decay is strong enough to be seen."""
  pattern = any_of(BIASES, HEAD)
  trained, frozen = partition(params, pattern)
  optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.adamw(0.1, weight_decay=0.5, mask=is_decayed))

  @jax.jit
  def update(trained, frozen):
    grads = jax.grad(lambda trained: loss(combine(trained, frozen)))(trained)
    updates, _ = optimizer.update(grads, optimizer.init(trained), trained)
    return optax.apply_updates(trained, updates), grads

  after, grads = update(trained, frozen)
  whole = flatten(jax.jit(jax.grad(loss))(params))
  for path, grad in flatten(grads).items():
    np.testing.assert_allclose(grad, whole[path], atol=1e-6)
  moved = {path for path, x in flatten(combine(after, frozen)).items() if np.any(x != flatten(params)[path])}
  # Keys' biases have no gradient: a softmax does not see them.
  still = {path for path in find_paths(params, pattern) if "key" in path}
  assert moved <= set(find_paths(params, pattern)) and set(find_paths(params, pattern)) - moved <= still
  np.testing.assert_allclose(after["head"]["kernel"], 0.95 * params["head"]["kernel"], atol=0.11)


def test_what_a_function_reads_is_found_without_computing_it():
  """Through a loop and a compiled part; what is only beside it is not."""
  params = {"a": {"w": jnp.ones(2), "b": jnp.ones(2)}, "head": {"w": jnp.ones(2)}, "c": jnp.ones(3), "d": jnp.ones(())}

  def f(params):
    inner = jax.jit(lambda x, y: jnp.sum(x))(params["a"]["w"], params["a"]["b"])
    total, _ = jax.lax.scan(lambda carry, x: (carry + x, None), inner, params["c"])
    return total, params["d"]

  assert set(paths_read(f, params)) - {"a/b"} == {"a/w", "c", "d"}
  assert "head/w" in paths_read(lambda params: params["head"]["w"], params)
