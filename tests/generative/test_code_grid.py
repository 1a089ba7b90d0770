"""Grids of codes: sizes, and a prior that never writes what is no code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.generative import code_grid as grids

PRIOR = grids.make_code_prior(num_codes=5, num_classes=3, length=4, depth=1, heads=2, width=8)
CODES = jnp.array([[0, 4, 2, 1], [3, 3, 0, 2]])
LABEL = jnp.array([2, 0])


@pytest.fixture(scope="module")
def variables():
  found = PRIOR.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  # Weights of some size: at first all logits are alike.
  return jax.tree.map(lambda x: 20 * x if x.ndim > 1 else x, found)


def test_an_image_comes_back_in_its_size():
  for shape, grid in (((28, 28, 1), (7, 7)), ((9, 6, 3), (3, 2))):
    channels = {"channels": (2, 3), "depth": 1}
    encode, decode = grids.GridEncoder(4, **channels), grids.GridDecoder(shape, **channels)
    made = lambda module, x: jax.eval_shape(lambda key, x: module.init_with_output(key, x)[0], jax.random.key(0), x)
    z = made(encode, jnp.zeros((2, *shape)))
    assert z.shape == (2, *grid, 4)
    assert made(decode, jnp.zeros(z.shape)).shape == (2, *shape)


def test_the_chance_of_a_code_goes_by_the_class_and_the_codes_before_it(variables):
  nats = jax.jit(lambda codes, label: grids.code_nats(PRIOR, variables, codes, label))
  base = nats(CODES, LABEL)
  assert base.shape == (2, 4)
  # A later code changes nothing before it, the class everything.
  later = nats(CODES.at[:, 2].set(1), LABEL)
  np.testing.assert_allclose(later[:, :2], base[:, :2], rtol=1e-5)
  assert np.all(np.abs(later[:, 3] - base[:, 3]) > 1e-4)
  assert np.all(np.abs(nats(CODES, jnp.array([1, 1])) - base) > 1e-5)
  # Chances of all grids of two places sum to 1: classes have none.
  pairs = jnp.stack(jnp.meshgrid(jnp.arange(5), jnp.arange(5)), -1).reshape(-1, 2)
  short = jnp.concatenate([pairs, jnp.zeros_like(pairs)], 1)
  total = jnp.sum(jnp.exp(-jnp.sum(nats(short, jnp.full(25, 1))[:, :2], 1)))
  assert total == pytest.approx(1, rel=1e-4)


def test_samples_have_the_chances_of_the_prior(variables):
  draw = jax.jit(lambda keys, label: grids.sample_codes(PRIOR, variables, keys, label))
  count = 4000
  found = np.asarray(draw(jax.random.split(jax.random.key(1), count), jnp.full(count, 2)))
  assert found.shape == (count, 4) and found.max() < 5
  one_of_each = jnp.arange(5)[:, None] * jnp.array([[1, 0, 0, 0]])
  chance = np.exp(-np.asarray(grids.code_nats(PRIOR, variables, one_of_each, jnp.full(5, 2)))[:, 0])
  np.testing.assert_allclose(np.bincount(found[:, 0], minlength=5) / count, chance, atol=0.03)
  assert chance.max() - chance.min() > 0.05


def test_gradients_are_finite_though_some_logits_are_not(variables):
  slope = jax.grad(lambda variables: jnp.mean(grids.code_nats(PRIOR, variables, CODES, LABEL)))(variables)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))
