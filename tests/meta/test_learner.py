"""Networks and learners of few-shot learning, and what a query's prediction may depend on."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.meta import Conv4, FullyConnected, Regressor, Task, is_head, make_classifier, select
from mlnotes.meta.networks import max_pool
from mlnotes.meta.sinusoid import sample_sinusoid, sample_sinusoid_task

WAYS = 3


def count(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def init_shapes(network, size):
  """The shapes of the parameters for grey images of `size` pixels a side."""
  init = lambda key: network.init(key, jnp.zeros((1, size, size, 1)), True)
  return jax.eval_shape(init, jax.random.key(0))["params"]


@pytest.mark.parametrize("ways, expected", [(5, 112_261), (20, 112_261 + 15 * 65)])
def test_conv4_has_the_published_size(ways, expected):
  assert count(init_shapes(Conv4(ways), 28)) == expected


@pytest.mark.parametrize("network", [Conv4(WAYS, width=8), FullyConnected(WAYS, widths=(16, 8))])
@pytest.mark.parametrize("size", [8, 28])
def test_networks_take_small_images(network, size, key):
  apply = lambda key: network.init_with_output(key, jnp.zeros((2, size, size, 1)), True)[0]
  assert jax.eval_shape(apply, key).shape == (2, WAYS)


def test_only_the_last_layer_is_the_head(key):
  mask = select(init_shapes(Conv4(WAYS), 28), is_head)
  assert {name for name, layer in mask.items() if any(jax.tree.leaves(layer))} == {"head"}
  assert count(Regressor().init(key, jnp.zeros((1, 1)))["params"]) == 80 + 1640 + 41


@pytest.mark.parametrize("shape", [(2, 6, 6, 3), (2, 7, 5, 3), (1, 3, 3, 2)])
def test_max_pool_equals_flax_with_its_gradient(shape, key):
  x = jax.random.normal(key, shape)
  window = lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))
  np.testing.assert_array_equal(max_pool(x), window(x))
  weights = jax.random.normal(jax.random.key(1), max_pool(x).shape)
  gradient = lambda pool: jax.grad(lambda x: jnp.sum(weights * pool(x)))(x)
  np.testing.assert_allclose(gradient(max_pool), gradient(window), rtol=1e-6)


def test_one_pixel_is_not_pooled_away():
  assert max_pool(jnp.ones((1, 1, 1, 2))).shape == (1, 1, 1, 2)


def classifier(normalization):
  learner = make_classifier(Conv4(WAYS, width=8), normalization)
  image = jax.random.uniform(jax.random.key(1), (2, 9, 12, 12, 1))
  label = jnp.repeat(jnp.arange(WAYS), 3)
  task = Task({"image": image[0], "label": label}, {"image": image[1], "label": label})
  return learner, learner.init(jax.random.key(2), task), task


@pytest.mark.thorough
def test_without_transduction_companions_do_not_matter():
  learner, params, task = classifier("support")
  query = task.query["image"]
  predict = jax.jit(learner.predict)
  together = predict(params, task.support, query)
  np.testing.assert_allclose(together[:1], predict(params, task.support, query[:1]), atol=1e-5)
  changed = predict(params, task.support, query.at[1:].set(0.0))
  np.testing.assert_allclose(together[0], changed[0], atol=1e-5)


def test_with_transduction_they_do():
  """The predicate of the test above can fail: transductive predictions leak the query set."""
  learner, params, task = classifier("transductive")
  query = task.query["image"]
  changed = learner.predict(params, task.support, query.at[1:].set(0.0))
  assert np.abs(learner.predict(params, task.support, query)[0] - changed[0]).max() > 1e-2


@pytest.mark.parametrize("normalization", ["transductive", "support"])
def test_support_images_are_normalised_by_themselves(normalization):
  """Of one batch used as support and query both modes say the same."""
  learner, params, task = classifier(normalization)
  loss, figures = learner.query_loss(params, Task(task.support, task.support))
  np.testing.assert_allclose(loss, learner.support_loss(params, task.support), rtol=1e-5)
  assert 0 <= float(figures["accuracy"]) <= 1


def test_stored_images_go_to_the_unit_interval():
  learner, params, task = classifier("support")
  learner17 = make_classifier(Conv4(WAYS, width=8), "support", levels=17)
  stored = jnp.round(task.support["image"] * 16).astype(jnp.uint8)
  unit = stored.astype(jnp.float32) / 16
  np.testing.assert_allclose(
    learner17.predict(params, {"image": stored}, stored), learner.predict(params, {"image": unit}, unit), rtol=1e-6
  )


def test_sinusoids_are_drawn_from_the_published_ranges(key):
  curves = jax.vmap(sample_sinusoid)(jax.random.split(key, 4000))
  for values, low, high in ((curves.amplitude, 0.1, 5.0), (curves.phase, 0.0, np.pi)):
    assert low <= values.min() and values.max() <= high
    np.testing.assert_allclose([values.mean(), values.std()], [(low + high) / 2, (high - low) / 12**0.5], rtol=0.05)


def test_points_of_a_task_lie_on_one_sinusoid(key):
  """A sin(x - p) is linear in sin x and cos x: two unknowns explain every point."""
  task = sample_sinusoid_task(key, shots=6, queries=9)
  assert task.support["x"].shape == (6, 1) and task.query["y"].shape == (9, 1)
  points = {name: np.concatenate([task.support[name], task.query[name]])[:, 0] for name in "xy"}
  basis = np.stack([np.sin(points["x"]), np.cos(points["x"])], axis=1)
  (a, b), residual, *_ = np.linalg.lstsq(basis, points["y"], rcond=None)
  assert residual[0] < 1e-9 and 0.1 <= np.hypot(a, b) <= 5
  assert np.abs(points["x"]).max() <= 5
