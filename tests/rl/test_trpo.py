"""TRPO's parts beside NumPy and SciPy; the bound holds in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from experiments.rl import trpo
from mlnotes.engine.program import Program, make_mesh, window_means
from mlnotes.rl.trpo import conjugate_gradient, trust_region_step


def spd(size, seed, condition=50.0):
  rng = np.random.default_rng(seed)
  q, _ = np.linalg.qr(rng.normal(size=(size, size)))
  return q @ np.diag(np.geomspace(1, condition, size)) @ q.T, rng.normal(size=size)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_conjugate_gradients_solve_in_as_many_steps_as_dimensions(size):
  a, b = spd(size, size)
  matrix = jnp.asarray(a, jnp.float32)
  x, squared = jax.jit(lambda b: conjugate_gradient(lambda v: matrix @ v, b, size + 3))(jnp.asarray(b, jnp.float32))
  np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=2e-3, atol=1e-4)
  assert squared < 1e-5


def test_conjugate_gradients_stop_at_the_solution_without_nan():
  x, squared = conjugate_gradient(lambda v: 2 * v, jnp.array([2.0, -4.0]), 50)
  np.testing.assert_allclose(x, [1.0, -2.0], rtol=1e-6)
  assert squared == 0
  x, _ = conjugate_gradient(lambda v: v, jnp.zeros(3), 5)
  np.testing.assert_array_equal(x, np.zeros(3))


def test_on_a_linear_surrogate_and_a_quadratic_kl_the_step_is_scipys_optimum():
  """max g.x subject to x.A x / 2 <= d: the whole step is accepted and lies on the boundary."""
  a, g = spd(4, 0)
  matrix, gradient, bound = jnp.asarray(a, jnp.float32), jnp.asarray(g, jnp.float32), 0.01
  step = jax.jit(
    lambda x: trust_region_step(
      lambda x: gradient @ x, lambda x: 0.5 * x @ matrix @ x, x, bound * 1.0001, damping=0.0, cg_iterations=8
    )
  )(jnp.zeros(4))
  constraint = {"type": "ineq", "fun": lambda x: 100 * (bound - 0.5 * x @ a @ x), "jac": lambda x: -100 * a @ x}
  found = minimize(lambda x: -g @ x, np.zeros(4), jac=lambda x: -g, constraints=[constraint], method="SLSQP")
  assert step.accepted and step.backtracks <= 1
  np.testing.assert_allclose(step.params, found.x, rtol=0.21 if step.backtracks else 2e-3)


def test_line_search_shortens_until_the_bound_holds_and_gives_up_cleanly():
  # A KL that grows faster than its Hessian says.
  kl = lambda x: jnp.sum(0.5 * x**2 + 200 * x**4)
  step = trust_region_step(lambda x: jnp.sum(x), kl, jnp.zeros(3), 0.05, damping=0.0)
  assert step.accepted and step.backtracks > 0 and 0 < float(step.kl) <= 0.05
  np.testing.assert_allclose(step.kl, kl(step.params), rtol=1e-6)
  # A surrogate that falls wherever one goes.
  worse = trust_region_step(lambda x: jnp.sum(x - 1e6 * x**2), lambda x: 0.5 * jnp.sum(x**2), jnp.zeros(3), 0.05)
  assert not worse.accepted and worse.kl == 0
  np.testing.assert_array_equal(worse.params, np.zeros(3))


@pytest.mark.thorough
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_kl_stays_under_its_bound_in_training(env):
  config = trpo.Config(env=env, num_envs=4, rollout_length=64, steps=30, hidden=(16,), minibatches=2, value_epochs=2)
  program = Program(trpo.make(config), trpo.make_feeds(config), (0, 1), make_mesh(1))
  state = program.init()
  seen, accepted = [], []
  for _ in range(15):
    state, window = program.update(state, program.empty_window(), 1)
    means = window_means(window)
    seen.append(means["kl"])
    accepted.append(means["step_accepted"])
  seen = np.array(seen)
  assert np.all(seen <= config.max_kl) and np.mean(seen) > 0.3 * config.max_kl
  assert np.mean(accepted) > 0.8
