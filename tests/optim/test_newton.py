"""Second-order steps against scipy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from mlnotes.optim import conjugate_gradients, gauss_newton, newton
from mlnotes.optim.surfaces import beale, rosenbrock, saddle

rng = np.random.default_rng(0)
FACTOR = rng.normal(size=(12, 6)).astype(np.float32)
MATRIX, TARGET = FACTOR.T @ FACTOR, rng.normal(size=6).astype(np.float32)


def descend(optimizer, value_fn, start, steps, **extra):
  def body(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn, **extra)
    params = optax.apply_updates(params, updates)
    return (params, state), value_fn(params)

  params = jnp.asarray(start, jnp.float32)
  (params, state), values = jax.jit(lambda p: jax.lax.scan(body, (p, optimizer.init(p)), length=steps))(params)
  return params, state, values


def test_conjugate_gradients_solve_the_system():
  solve = jax.jit(lambda b: conjugate_gradients(lambda v: MATRIX @ v, b, 1e-7))
  np.testing.assert_allclose(solve(TARGET), np.linalg.solve(MATRIX, TARGET), rtol=1e-3)
  np.testing.assert_array_equal(solve(jnp.zeros(6)), 0)


def test_conjugate_gradients_descend_at_negative_curvature():
  b = jnp.array([1.0, 2.0])
  np.testing.assert_array_equal(conjugate_gradients(lambda v: -v, b), b)


def test_newton_minimises_a_quadratic_in_one_step():
  value = lambda p: 0.5 * p @ MATRIX @ p - TARGET @ p
  params, _, _ = descend(newton(), value, rng.normal(size=6), 1)
  np.testing.assert_allclose(params, np.linalg.solve(MATRIX, TARGET), rtol=1e-3)


def test_damping_blends_with_gradient_descent():
  value = lambda p: 0.5 * p @ MATRIX @ p - TARGET @ p
  start = rng.normal(size=6).astype(np.float32)
  params, _, _ = descend(newton(damping=3.0), value, start, 1)
  step = np.linalg.solve(MATRIX + 3 * np.eye(6), MATRIX @ start - TARGET)
  np.testing.assert_allclose(params, start - step, rtol=1e-3, atol=1e-5)


def test_newton_converges_quadratically_where_gradient_descent_crawls():
  params, _, values = descend(newton(damping=1.0, adapt=True), rosenbrock, (-1.5, 2.0), 60)
  np.testing.assert_allclose(params, [1, 1], atol=1e-4)
  assert (jnp.diff(values) <= 1e-6).all()


def test_levenberg_marquardt_reaches_the_end_of_beales_plateau():
  def residuals(p):
    return jnp.sqrt(2.0) * (jnp.array([1.5, 2.25, 2.625]) - p[0] + p[0] * jnp.stack([p[1], p[1] ** 2, p[1] ** 3]))

  optimizer = gauss_newton(damping=1.0, adapt=True)
  params, state, values = descend(optimizer, beale, (1.0, 1.5), 60, residual_fn=residuals)
  np.testing.assert_allclose(params, [3, 0.5], atol=1e-3)
  assert state.damping < 1e-3 and values[-1] < 1e-8


def test_levenberg_marquardt_fits_a_curve_as_scipy_does():
  x = np.linspace(0, 4, 30)
  y = 2.5 * np.exp(-1.3 * x) + 0.5 + 0.05 * rng.normal(size=30)
  expected, _ = scipy.optimize.curve_fit(lambda x, a, b, c: a * np.exp(-b * x) + c, x, y, (1, 1, 0))
  residuals = lambda p: p[0] * jnp.exp(-p[1] * jnp.float32(x)) + p[2] - jnp.float32(y)
  half_squares = lambda p: 0.5 * jnp.sum(residuals(p) ** 2)
  optimizer = gauss_newton(damping=1.0, adapt=True)
  params, _, _ = descend(optimizer, half_squares, (1.0, 1.0, 0.0), 40, residual_fn=residuals)
  np.testing.assert_allclose(params, expected, rtol=1e-3)


def test_newton_leaves_a_saddle_that_attracts_the_undamped_step():
  """Near 0 the exact Newton step leads to the saddle; stopping at negative curvature leads down instead."""
  start = np.array([0.0, 0.1], np.float32)
  hessian, gradient = jax.hessian(saddle)(jnp.asarray(start)), jax.grad(saddle)(jnp.asarray(start))
  assert abs((start - np.linalg.solve(hessian, gradient))[1]) < 0.01
  params, _, _ = descend(newton(damping=0.1, adapt=True), saddle, start, 40)
  np.testing.assert_allclose(params, [0, 1], atol=1e-3)
