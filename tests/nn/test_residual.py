"""Norm before or after the branch: torch's numbers, and what each form does to a deep stack."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.nn import PostNorm, PreNorm, RMSNorm
from mlnotes.nn.residual import LayerNorm

WIDTH = 6


def make(form, key, **fields):
  module = form(nn.Dense(WIDTH), **fields)
  x = jax.random.normal(key, (2, 5, WIDTH)) * 3 + 1
  params = module.init(jax.random.key(1), x)["params"]
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return module, jax.tree.unflatten(tree, [p + jax.random.normal(k, p.shape) for k, p in zip(keys, leaves)]), x


@pytest.mark.parity
@pytest.mark.parametrize("form", [PreNorm, PostNorm])
def test_torch_gives_the_same_values_and_gradients(form, key):
  torch = pytest.importorskip("torch")
  module, params, x = make(form, key)
  loss = lambda params, x: jnp.sum(jnp.sin(module.apply({"params": params}, x)))
  value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)
  p, theirs = jax.tree.map(lambda a: torch.tensor(np.asarray(a, np.float64), requires_grad=True), (params, x))
  normed = lambda v: torch.nn.functional.layer_norm(v, (WIDTH,), p["norm"]["scale"], p["norm"]["bias"], 1e-6)
  branch = lambda v: v @ p["sublayer"]["kernel"] + p["sublayer"]["bias"]
  y = theirs + branch(normed(theirs)) if form is PreNorm else normed(theirs + branch(theirs))
  expected = y.sin().sum()
  expected.backward()
  np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
  for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves((p, theirs)), strict=True):
    np.testing.assert_allclose(a, b.grad, rtol=1e-5, atol=1e-5)


def test_a_branch_of_zeros_is_the_identity_before_the_sum_and_a_norm_behind_it(key):
  x = jax.random.normal(key, (3, WIDTH)) + 2
  zeros = lambda: nn.Dense(WIDTH, kernel_init=nn.initializers.zeros)
  before, after = (form(zeros()).init_with_output(jax.random.key(1), x)[0] for form in (PreNorm, PostNorm))
  np.testing.assert_array_equal(before, x)
  np.testing.assert_allclose(after, LayerNorm().init_with_output(jax.random.key(1), x)[0], rtol=1e-6)


def test_only_the_queries_are_normed_in_cross_attention(key):
  """The branch is linear in its context; the norm of 2 x the query is that of the query."""
  query, context = jax.random.normal(key, (2, 4, WIDTH))
  module = PreNorm(lambda q, context, weight: q * 0 + weight * context)
  variables = module.init(jax.random.key(1), query, context, weight=1.0)
  np.testing.assert_allclose(module.apply(variables, query, context, weight=3.0), query + 3 * context, rtol=1e-6)
  branch = PreNorm(lambda q, context: q * context)
  twice = branch.apply(variables, 2 * query, context) - 2 * query
  np.testing.assert_allclose(twice, branch.apply(variables, query, context) - query, rtol=1e-4, atol=1e-5)


class Stack(nn.Module):
  form: type
  depth: int = 6

  @nn.compact
  def __call__(self, x):
    for i in range(self.depth):
      x = self.form(nn.Dense(x.shape[-1], name=f"dense{i}"), name=f"step{i}")(x)
    return x


@pytest.mark.parametrize("form, growth", [(PreNorm, 7), (PostNorm, 1)])
def test_the_variance_of_a_deep_stack(form, growth, key):
  """Of 1 + depth unit variances before a last norm, and of 1."""
  x = jax.random.normal(key, (16, 64))
  y = jax.jit(lambda key, x: Stack(form).init_with_output(key, x)[0])(jax.random.key(1), x)
  np.testing.assert_allclose(jnp.mean(jnp.square(y)), growth, rtol=0.3)


def test_any_norm_and_a_branch_of_another_width(key):
  module, params, _ = make(PreNorm, key, norm=RMSNorm)
  assert set(params["norm"]) == {"scale"} and isinstance(module.sublayer, nn.Dense)
  with pytest.raises(ValueError, match=r"turned shape \(3, 1\) into \(3, 6\)"):
    PostNorm(nn.Dense(WIDTH)).init(jax.random.key(1), jnp.ones((3, 1)))
