"""The inner loop against closed forms on quadratics and finite differences, its options against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from mlnotes.meta import (
  Quadratic,
  Task,
  adapt,
  learned_rates,
  meta_loss,
  multi_step_weights,
  partition,
  quadratic_loss,
  reptile_gradient,
  sample_quadratic,
  select,
)

RATE, SIZE = 0.02, 4


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def quadratic_task(seed=0):
  support, query = (sample_quadratic(jax.random.key(seed + i), SIZE) for i in range(2))
  return Task(support, query), jax.random.normal(jax.random.key(seed + 2), (SIZE,))


def closed_form(task, start, steps):
  """(adapted parameters, query loss, meta-gradient) by linear algebra: x_n = c + (I - a H)^n (x_0 - c)."""
  matrix, target = map(np.asarray, task.support)
  contraction = np.linalg.matrix_power(np.eye(SIZE) - RATE * 2 * matrix.T @ matrix, steps)
  centre = np.linalg.solve(matrix, target)
  adapted = centre + contraction @ (np.asarray(start) - centre)
  matrix, target = map(np.asarray, task.query)
  residual = matrix @ adapted - target
  return adapted, residual @ residual, contraction.T @ (2 * matrix.T @ residual)


def outer(task, steps, inner=None, loss_fn=quadratic_loss, **options):
  """params -> query loss after adaptation."""
  inner = inner or optax.sgd(RATE)
  return lambda params: meta_loss(loss_fn, params, task, inner, steps, **options)[0]


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("remat", [False, True])
def test_adapted_parameters_loss_and_gradient_have_the_closed_form(steps, remat):
  task, start = quadratic_task()
  adapted, loss, gradient = closed_form(task, start, steps)
  result = adapt(quadratic_loss, start, task.support, optax.sgd(RATE), steps, remat=remat)
  np.testing.assert_allclose(result.params, adapted, rtol=1e-10)
  value, grad = jax.jit(jax.value_and_grad(outer(task, steps, remat=remat)))(start)
  np.testing.assert_allclose(value, loss, rtol=1e-10)
  np.testing.assert_allclose(grad, gradient, rtol=1e-10)


def test_first_order_is_the_query_gradient_at_the_adapted_parameters():
  task, start = quadratic_task()
  adapted, loss, second = closed_form(task, start, 3)
  matrix, target = map(np.asarray, task.query)
  value, first = jax.value_and_grad(outer(task, 3, first_order=True))(start)
  np.testing.assert_allclose(value, loss, rtol=1e-10)
  np.testing.assert_allclose(first, 2 * matrix.T @ (matrix @ adapted - target), rtol=1e-10)
  assert np.linalg.norm(first - second) > 0.1 * np.linalg.norm(second)


def test_orders_agree_where_the_support_loss_has_no_curvature():
  """A linear support loss: the Hessian is zero, and so is all that first order leaves out."""
  task, start = quadratic_task()
  task = task._replace(support=jnp.arange(1.0, SIZE + 1))
  loss = lambda params, data: data @ params if not isinstance(data, Quadratic) else quadratic_loss(params, data)
  first, second = (jax.grad(outer(task, 3, loss_fn=loss, first_order=flag))(start) for flag in (True, False))
  np.testing.assert_allclose(first, second, rtol=1e-12)


def network_task():
  key = jax.random.key(5)
  data = lambda i: {"x": jax.random.normal(jax.random.fold_in(key, i), (6, 2)), "y": jnp.linspace(-1, 1, 6)}
  params = {
    "body": 0.7 * jax.random.normal(jax.random.fold_in(key, 2), (2, 3)),
    "head": 0.7 * jax.random.normal(jax.random.fold_in(key, 3), (3,)),
  }
  return Task(data(0), data(1)), params


def network_loss(params, data):
  return jnp.mean(jnp.square(jnp.tanh(data["x"] @ params["body"]) @ params["head"] - data["y"]))


INNER = {
  "sgd": lambda: optax.sgd(0.2),
  "momentum": lambda: optax.sgd(0.1, momentum=0.9),
  "adam": lambda: optax.adam(0.05, eps_root=1e-8),
}


@pytest.mark.parametrize("inner, remat", [("sgd", False), ("momentum", True), ("adam", False)])
def test_gradients_through_any_inner_optimizer_equal_finite_differences(inner, remat):
  task, params = network_task()
  loss = jax.jit(outer(task, 3, INNER[inner](), network_loss, remat=remat))
  check_grads(loss, (params,), order=1, modes=["rev"], rtol=1e-6)


@pytest.mark.parametrize("per_step", [False, True])
def test_gradients_of_learned_rates_equal_finite_differences(per_step):
  task, params = network_task()
  rates = jax.tree.map(lambda p: jnp.linspace(0.05, 0.3, 3) if per_step else 0.1 + 0.02 * p, params)
  loss = jax.jit(lambda params, rates: outer(task, 3, learned_rates(rates, per_step), network_loss)(params))
  check_grads(loss, (params, rates), order=1, modes=["rev"], rtol=1e-6)


def test_equal_rates_are_gradient_descent_and_later_steps_take_the_last():
  task, params = network_task()
  run = lambda inner, steps: adapt(network_loss, params, task.support, inner, steps).params
  same = jax.tree.map(lambda p: jnp.full_like(p, 0.2), params)
  per_step = jax.tree.map(lambda p: jnp.full(2, 0.2), params)
  expected = run(optax.sgd(0.2), 5)
  for inner in (learned_rates(same), learned_rates(per_step, per_step=True)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), run(inner, 5), expected)


def test_a_mask_leaves_the_rest_alone_and_is_a_rate_of_zero():
  """Adapting the head alone equals adapting everything with learned rates of 0 for the body, gradients included."""
  task, params = network_task()
  mask = select(params, lambda path: path == "head")
  assert mask == {"body": False, "head": True}
  masked = lambda p: meta_loss(network_loss, p, task, optax.sgd(0.2), 3, mask=mask)[0]
  rates = {"body": jnp.zeros((2, 3)), "head": jnp.full(3, 0.2)}
  frozen = lambda p: meta_loss(network_loss, p, task, learned_rates(rates), 3)[0]
  for a, b in zip(jax.tree.leaves(jax.grad(masked)(params)), jax.tree.leaves(jax.grad(frozen)(params))):
    np.testing.assert_allclose(a, b, rtol=1e-12)
  adapted = adapt(network_loss, params, task.support, optax.sgd(0.2), 3, mask=mask).params
  np.testing.assert_array_equal(adapted["body"], params["body"])
  assert not np.allclose(adapted["head"], params["head"])
  selected, rest = partition(params, mask)
  assert selected["body"] is None and rest["head"] is None


def test_multi_step_loss_weighs_the_loss_after_every_step():
  task, start = quadratic_task()
  weights = jnp.array([0.2, 0.3, 0.5])
  losses = [closed_form(task, start, n)[1] for n in (1, 2, 3)]
  np.testing.assert_allclose(outer(task, 3, step_weights=weights)(start), np.dot(weights, losses), rtol=1e-10)


def test_weights_of_steps_go_from_equal_to_the_last():
  np.testing.assert_allclose(multi_step_weights(jnp.array(0), 4, 10), [0.25] * 4)
  np.testing.assert_allclose(multi_step_weights(jnp.array(10), 4, 10), [0, 0, 0, 1])
  np.testing.assert_allclose(multi_step_weights(jnp.array(999), 4, 10), [0, 0, 0, 1])
  np.testing.assert_allclose(jnp.sum(multi_step_weights(jnp.array(3), 4, 10)), 1)


def test_the_trace_begins_before_the_first_step():
  task, start = quadratic_task()
  result = adapt(quadratic_loss, start, task.support, optax.sgd(RATE), 2, trace=lambda p: p)
  expected = [closed_form(task, start, n)[0] for n in range(3)]
  np.testing.assert_allclose(result.trace, np.stack(expected), rtol=1e-10)
  np.testing.assert_allclose(result.losses, [quadratic_loss(p, task.support) for p in result.trace[:2]], rtol=1e-12)


def test_mini_batches_are_taken_one_a_step():
  """On f(x) = |x - y|^2 a step of 1/2 goes to y: the last mini-batch decides."""
  batches = Quadratic(jnp.broadcast_to(jnp.eye(SIZE), (3, SIZE, SIZE)), jnp.arange(3.0 * SIZE).reshape(3, SIZE))
  result = adapt(quadratic_loss, jnp.zeros(SIZE), batches, optax.sgd(0.5), 3, stacked=True)
  np.testing.assert_allclose(result.params, batches.target[-1])
  np.testing.assert_allclose(result.losses[0], jnp.sum(batches.target[0] ** 2))


def test_reptile_moves_to_the_mean_of_the_adapted_parameters():
  _, start = quadratic_task()
  adapted = jnp.stack([start + 1, start - 3])
  gradient = jax.tree.map(lambda a: jnp.mean(a, 0), jax.vmap(reptile_gradient, (None, 0))(start, adapted))
  np.testing.assert_allclose(start - gradient, jnp.mean(adapted, 0))


def test_the_outer_loop_finds_the_optimum_that_is_known():
  """Tasks a (x - c)^2 / 2, one step of rate r: the best start is the mean of c weighted by a (1 - r a)^2.

  First order weighs by a (1 - r a), and training on all tasks at once by a: three different starts.
  """
  a, c, r = np.array([0.5, 1.0, 3.0]), np.array([0.0, 1.0, 5.0]), 0.25
  loss = lambda x, data: data[0] * (x - data[1]) ** 2 / 2
  tasks = (jnp.asarray(a), jnp.asarray(c))

  def train(first_order, rate=r):
    one = lambda x, data: meta_loss(loss, x, Task(data, data), optax.sgd(rate), 1, first_order=first_order)[0]
    grad = jax.grad(lambda x: jnp.sum(jax.vmap(one, (None, 0))(x, tasks)))
    return jax.lax.fori_loop(0, 300, lambda _, x: x - 0.2 * grad(x), jnp.array(0.0))

  best = {2: np.average(c, weights=a * (1 - r * a) ** 2), 1: np.average(c, weights=a * (1 - r * a))}
  assert abs(best[1] - best[2]) > 0.2
  np.testing.assert_allclose(train(first_order=False), best[2], rtol=1e-6)
  np.testing.assert_allclose(train(first_order=True), best[1], rtol=1e-6)
  np.testing.assert_allclose(train(first_order=False, rate=0.0), np.average(c, weights=a), rtol=1e-6)


def test_rematerialised_inner_steps_take_less_memory():
  task, params = network_task()
  big = jax.tree.map(lambda x: jnp.repeat(x, 200, axis=0), task)

  def temporaries(remat):
    compiled = jax.jit(jax.grad(outer(big, 10, optax.sgd(0.2), network_loss, remat=remat))).lower(params).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporaries(remat=True) < 0.5 * temporaries(remat=False)
