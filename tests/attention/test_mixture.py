"""Mixtures of experts against loops over tokens, and what their losses promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlnotes.attention import (
  MixtureOfExperts,
  apply_dropless,
  apply_with_capacity,
  balance_loss,
  expert_loads,
  route,
  router_z_loss,
)

TOKENS, EXPERTS, WIDTH, HIDDEN = 16, 8, 4, 6
X, LOGITS, WIDEN, NARROW = (
  jax.random.normal(jax.random.key(i), shape)
  for i, shape in enumerate(((TOKENS, WIDTH), (TOKENS, EXPERTS), (EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH)))
)


def gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def reference(routing, capacity=TOKENS * EXPERTS, real=None):
  """Tokens in order of arrival, all first choices before any second one."""
  x, widen, narrow, weight = (np.asarray(a, np.float64) for a in (X, WIDEN, NARROW, routing.weight))
  out, taken = np.zeros(x.shape), [0] * EXPERTS
  for rank in range(weight.shape[1]):
    for t in range(TOKENS):
      e = int(routing.expert[t, rank])
      if (real is None or real[t]) and taken[e] < capacity:
        taken[e] += 1
        out[t] += weight[t, rank] * gelu(x[t] @ widen[e]) @ narrow[e]
  return out


def softmax(x):
  powers = np.exp(x - np.max(x, -1, keepdims=True))
  return powers / np.sum(powers, -1, keepdims=True)


@pytest.mark.parametrize("k", [1, 2, EXPERTS])
def test_tokens_go_to_their_likeliest_experts(k):
  order = np.argsort(-np.asarray(LOGITS), 1)[:, :k]
  chosen = np.take_along_axis(np.asarray(LOGITS, np.float64), order, 1)
  of_all = np.take_along_axis(softmax(np.asarray(LOGITS, np.float64)), order, 1)
  for form, weight in (("mixtral", softmax(chosen)), ("switch", of_all)):
    routing = route(LOGITS, k, form)
    np.testing.assert_array_equal(routing.expert, order)
    np.testing.assert_allclose(routing.weight, weight, rtol=1e-5)
  if k == EXPERTS:  # all experts, weighted: both forms are one
    np.testing.assert_allclose(np.sum(routing.weight, 1), 1, rtol=1e-6)
  with pytest.raises(ValueError, match="expected 1 to 8"):
    route(LOGITS, 9)


def test_dropless_is_a_capacity_that_is_never_reached():
  routing = route(LOGITS, 2)
  expected = reference(routing)
  np.testing.assert_allclose(apply_dropless(X, routing, WIDEN, NARROW), expected, atol=1e-5)
  np.testing.assert_allclose(apply_with_capacity(X, routing, WIDEN, NARROW, TOKENS), expected, atol=1e-5)
  loss = lambda f: jax.jit(jax.grad(lambda a: jnp.sum(jnp.sin(f(*a))), allow_int=True))((X, routing, WIDEN, NARROW))
  first = loss(apply_dropless)
  second = loss(lambda *a: apply_with_capacity(*a, TOKENS))
  for i in (0, 2, 3):
    np.testing.assert_allclose(first[i], second[i], atol=2e-5)
  np.testing.assert_allclose(first[1].weight, second[1].weight, atol=2e-5)


def test_capacity_drops_second_choices_and_late_tokens_first():
  routing = route(LOGITS, 2)
  real = np.arange(TOKENS) != 2
  for capacity in (1, 3):
    out = apply_with_capacity(X, routing, WIDEN, NARROW, capacity)
    np.testing.assert_allclose(out, reference(routing, capacity), atol=1e-5)
  assert np.any(np.abs(reference(routing, 3) - reference(routing)) > 1e-3)
  out = apply_with_capacity(X, routing, WIDEN, NARROW, 1, jnp.asarray(real))
  np.testing.assert_allclose(out, reference(routing, 1, real), atol=1e-5)
  with pytest.raises(ValueError, match="capacity is 0"):
    apply_with_capacity(X, routing, WIDEN, NARROW, 0)


def test_one_expert_is_a_network():
  routing = route(jnp.zeros((TOKENS, 1)), 1)
  out = apply_dropless(X, routing, WIDEN[:1], NARROW[:1])
  np.testing.assert_allclose(out, gelu(np.asarray(X) @ np.asarray(WIDEN[0])) @ np.asarray(NARROW[0]), atol=1e-5)
  assert balance_loss(routing) == 1


def test_the_balance_loss_is_one_where_all_are_even_and_of_each_layer_by_itself():
  even = 20 * jnp.eye(EXPERTS)[jnp.arange(TOKENS) % EXPERTS]
  for logits in (even, jnp.zeros((TOKENS, EXPERTS))):
    np.testing.assert_allclose(balance_loss(route(logits, 1)), 1, rtol=1e-6)
  np.testing.assert_allclose(expert_loads(route(even, 1)), 1 / EXPERTS)
  # Two layers that are skewed to opposite sides: their loads together are even.
  left, right = (route(sign * jnp.tile(jnp.linspace(3, -3, 2), (TOKENS, 1)), 1) for sign in (1, -1))
  np.testing.assert_allclose(expert_loads(left) + expert_loads(right), 1)
  assert balance_loss(left) > 1.9 and balance_loss(right) > 1.9


def test_padding_changes_neither_losses_nor_loads():
  real = jnp.arange(TOKENS + 4) < TOKENS
  more = jnp.concatenate([LOGITS, jnp.tile(50.0 * jnp.arange(EXPERTS), (4, 1))])
  for f in (balance_loss, expert_loads):
    np.testing.assert_allclose(f(route(LOGITS, 2)), f(route(more, 2), real), rtol=1e-6)
    assert not np.allclose(f(route(LOGITS, 2)), f(route(more, 2)))
  np.testing.assert_allclose(router_z_loss(LOGITS), router_z_loss(more, real), rtol=1e-6)
  np.testing.assert_allclose(router_z_loss(LOGITS), np.mean(np.log(np.sum(np.exp(LOGITS), 1)) ** 2), rtol=1e-6)


def test_the_loads_have_no_gradient():
  """By the logits, E sum f_i P_i has that of P alone, f a constant."""
  loads = np.asarray(expert_loads(route(LOGITS, 2)), np.float64)
  p = softmax(np.asarray(LOGITS, np.float64))
  expected = EXPERTS / TOKENS * p * (loads - np.sum(p * loads, 1, keepdims=True))
  np.testing.assert_allclose(jax.grad(lambda x: balance_loss(route(x, 2)))(LOGITS), expected, atol=1e-7)


def test_experts_on_eight_devices_compute_what_one_does():
  module = MixtureOfExperts(EXPERTS, 2, HIDDEN, capacity_factor=1.5)
  x = X.reshape(2, 8, WIDTH)
  variables = module.init(jax.random.key(0), x)
  mesh = Mesh(np.array(jax.devices()), ("experts",))
  put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
  params = variables["params"]
  split = {name: put(params[name], "experts") for name in ("widen", "narrow")}
  split["router"] = jax.tree.map(put, params["router"])

  def loss(params, x):
    out, sown = module.apply({"params": params}, x, mutable="intermediates")
    return jnp.sum(jnp.sin(out)) + sown["intermediates"]["balance_loss"][0]

  run = jax.jit(jax.value_and_grad(loss))
  one, grads_one = run(params, x)
  eight, grads_eight = run(split, put(x))
  assert grads_eight["widen"].sharding.spec[0] == "experts"
  np.testing.assert_allclose(one, eight, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads_one, grads_eight)
  with pytest.raises(ValueError, match="leaves no room"):
    MixtureOfExperts(EXPERTS, 1, HIDDEN, capacity_factor=0.1).init(jax.random.key(0), x)
