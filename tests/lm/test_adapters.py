"""Adapters: where they stand, that they are nearly nothing at first, and that they are of any block."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import FeedForward, Mask, MultiHeadAttention, TokenModel, Transformer
from mlnotes.lm.adapters import adapt, init_adapters, insert_adapters
from mlnotes.lm.trainable import NORMS, any_of, combine, count_parameters, find_paths, flatten, partition
from mlnotes.nn.norm import LayerNorm

TOKENS = jnp.array([[0, 3, 1, 6, 2, 8], [5, 5, 4, 0, 1, 7]])
MODEL = TokenModel(9, 6, Transformer(1, 2, 8, hidden=6))
WIDTH = 3


@pytest.fixture(scope="module")
def params():
  return jax.jit(lambda: MODEL.init(jax.random.key(0), TOKENS)["params"])()


@pytest.fixture(scope="module")
def adapters(params):
  return init_adapters(jax.random.key(1), WIDTH, lambda: MODEL.apply({"params": params}, TOKENS))


def run(params, adapters=None):
  if adapters is None:
    return MODEL.apply({"params": params}, TOKENS, Mask(causal=True))
  with insert_adapters(adapters):
    return MODEL.apply({"params": params}, TOKENS, Mask(causal=True))


def test_there_is_one_behind_each_sublayer(adapters):
  places = {path.partition("/adapter/")[0] for path in flatten(adapters)}
  assert places == {f"transformer/block{i}/{part}" for i in range(1) for part in ("attention", "feed_forward")}
  assert count_parameters(adapters) == 2 * (2 * 8 * WIDTH + 8 + WIDTH)
  kernels = np.concatenate([np.ravel(x) for path, x in flatten(adapters).items() if path.endswith("kernel")])
  assert 0.007 < kernels.std() < 0.012 and np.abs(kernels).max() < 0.025


def test_what_goes_through_is_nearly_what_came_and_gradients_reach_all(params, adapters):
  base, found = jax.jit(run)(params), jax.jit(run)(params, adapters)
  assert 0 < np.max(np.abs(found - base)) < 1e-2 * np.max(np.abs(base))
  grads = jax.jit(jax.grad(lambda a: jnp.sum(run(params, a) ** 2)))(adapters)
  assert all(np.any(x != 0) for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("order", ["pre", "post"])
def test_adapters_stand_before_the_addition(order):
  """One block by hand: each sublayer called by itself, its output adapted, then added."""
  stack = Transformer(1, 2, 4, hidden=5, order=order)
  x = jax.random.normal(jax.random.key(0), (1, 3, 4))
  params = stack.init(jax.random.key(1), x)["params"]
  adapters = init_adapters(jax.random.key(2), 2, lambda: stack.apply({"params": params}, x), scale=1.0)
  with insert_adapters(adapters):
    found = stack.apply({"params": params}, x)

  own, given = adapters["block0"], params["block0"]
  modules = {"attention": MultiHeadAttention(2, use_bias=True), "feed_forward": FeedForward(5)}
  norm = lambda params, x: LayerNorm().apply({"params": params}, x)
  for part, module in modules.items():
    of_norm = given[f"{part}_norm"]
    y = module.apply({"params": given[part]}, norm(of_norm, x) if order == "pre" else x)
    y = adapt(y, own[part]["adapter"])
    x = x + y if order == "pre" else norm(of_norm, x + y)
  if order == "pre":
    x = norm(params["last_norm"], x)
  np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-5)


def test_a_cache_passes_by(params, adapters):
  """Token by token with caches gives what the whole gives, adapters in both."""
  strong = jax.tree.map(lambda x: 30 * x, adapters)
  whole, cache = jax.jit(run)(params, strong), MODEL.transformer.make_cache(2, 6)

  @jax.jit
  def read(tokens, cache):
    with insert_adapters(strong):
      return MODEL.apply({"params": params}, tokens, Mask(causal=True), False, cache)

  first, cache = read(TOKENS[:, :3], cache)
  rest, cache = read(TOKENS[:, 3:], cache)
  np.testing.assert_allclose(jnp.concatenate([first, rest], 1), whole, rtol=1e-4, atol=1e-5)
  assert np.max(np.abs(whole - jax.jit(run)(params))) > 0.1


def test_norms_train_beside_them(params, adapters):
  trained, frozen = partition(params, NORMS)
  loss = lambda tuned: jnp.sum(run(combine(tuned["norms"], frozen), tuned["adapters"]) ** 2)
  grads = jax.jit(jax.grad(loss))({"norms": trained, "adapters": adapters})
  assert set(flatten(grads["norms"])) == set(find_paths(params, any_of(NORMS)))
  assert all(np.any(x != 0) for path, x in flatten(grads["norms"]).items() if "last_norm" in path)


def test_any_network_takes_them():
  """A convolution in a network that knows nothing of them."""

  class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
      return x + nn.Conv(3, (2,), name="mix")(x)

  network, x = Network(), jnp.ones((1, 4, 3))
  params = network.init(jax.random.key(0), x)
  adapters = init_adapters(jax.random.key(1), 2, lambda: network.apply(params, x), where="^mix$")
  adapters["mix"]["adapter"]["up"]["bias"] += 1.0
  with insert_adapters(adapters):
    found = network.apply(params, x)
  assert np.all(np.abs(found - network.apply(params, x) - 1) < 0.01)


def test_what_cannot_be_is_refused(params, adapters):
  call = lambda: MODEL.apply({"params": params}, TOKENS)
  with pytest.raises(ValueError, match="width is 0"):
    init_adapters(jax.random.key(0), 0, call)
  with pytest.raises(ValueError, match="the pattern 'conv' finds no module"):
    init_adapters(jax.random.key(0), 2, call, where="conv")
  with pytest.raises(ValueError, match="has an adapter and was not called"), insert_adapters(adapters):
    nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
