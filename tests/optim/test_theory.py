"""What each method was made for, on the small construction where it shows, against closed forms."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from mlnotes.optim import (
  ScheduleName,
  add_gradient_noise,
  compute_rate_bounds,
  lookahead,
  make_schedule,
  scale_by_adabound,
  scale_by_centred_rms,
  triangular,
  warm_restarts,
  warm_up,
)
from mlnotes.optim.flags import OptimConfig, make_optimizer


def follow(optimizer, gradient, start, steps, low=-jnp.inf, high=jnp.inf):
  """The final parameter after updates with gradient(step, x), each followed by projection onto [low, high]."""
  x = jnp.asarray(start, jnp.float32)

  def body(step, carry):
    x, state = carry
    updates, state = optimizer.update(gradient(step, x), state, x)
    return jnp.clip(optax.apply_updates(x, updates), low, high), state

  return jax.jit(lambda x: jax.lax.fori_loop(0, steps, body, (x, optimizer.init(x))))(x)


@pytest.mark.parametrize("name, end", [("adam", 1.0), ("amsgrad", -1.0), ("adabound", -1.0), ("amsbound", -1.0)])
def test_counter_example_to_adam(name, end):
  """Reddi et al. 2018, section 3 and figure 1: 1010 x once in 101 steps and -10 x else, on [-1, 1]; the best x is -1.

  Adam divides the rare large gradient by a root that it has just made large, and goes the wrong way.
  """
  config = OptimConfig(optimizer=name, beta2=0.99, learning_rate=0.5, schedule="inverse_sqrt", final_learning_rate=0.03)
  gradient = lambda step, x: jnp.where(step % 101 == 0, 1010.0, -10.0)
  x, _ = follow(make_optimizer(config, 10), gradient, 0.0, 101 * 20_000, -1, 1)
  np.testing.assert_allclose(x, end, atol=0.05)


def test_adabound_holds_rates_that_are_extreme_under_adam():
  """Gradients over ten orders of magnitude: Adam's rates spread as far, AdaBound's are between the bounds and meet."""
  scales = jnp.logspace(-5, 5, 11)
  rate, final, gamma = 1e-3, 0.1, 1e-2
  optimizer = scale_by_adabound(rate, final, gamma=gamma)

  def body(state, t):
    updates, state = optimizer.update(scales * (-1.0) ** t, state)
    lower, upper = compute_rate_bounds(t, final, gamma)
    rates = updates / state.mu
    within = (rates >= lower * (1 - 1e-5)) & (rates <= upper * (1 + 1e-5))
    return state, (within.all(), rates.max() / rates.min())

  steps = jnp.arange(1, 2001)
  state, (within, spread) = jax.jit(lambda: jax.lax.scan(body, optimizer.init(scales), steps))()
  adam = rate / (jnp.sqrt(state.nu / (1 - 0.999**2000)) + 1e-8)
  assert within.all() and adam.max() / adam.min() > 1e9
  assert spread[1] > 1e3 and spread[-1] < 1.2


def inverse_root_variance(dof):
  """Variance of sqrt(dof / chi^2_dof): that of Adam's rate where `dof` gradients from N(0, 1) count in its root."""
  mean = np.sqrt(dof / 2) * np.exp(scipy.special.gammaln((dof - 1) / 2) - scipy.special.gammaln(dof / 2))
  return dof / (dof - 2) - mean**2


def test_radam_holds_the_variance_of_the_rate_that_is_large_early():
  """Liu et al. 2020, section 3: gradients from N(0, 1), 200,000 of them, and the rate = update / gradient at b1 = 0."""

  def variances(name):
    optimizer = make_optimizer(OptimConfig(optimizer=name, momentum=0.0, learning_rate=1.0), 1)

    def body(state, key):
      g = jax.random.normal(key, (200_000,))
      updates, state = optimizer.update(g, state, g)
      return state, jnp.var(-updates / g)

    return jax.lax.scan(body, optimizer.init(jnp.zeros(200_000)), jax.random.split(jax.random.key(0), 300))[1]

  adam, radam = jax.jit(variances, static_argnums=0)("adam"), jax.jit(variances, static_argnums=0)("radam")
  late = 2 / (1 - 0.999) - 1
  t = np.arange(1, 301)
  dof = late - 2 * t * 0.999**t / (1 - 0.999**t)
  # The closed form takes weighted squares for equally many unweighted ones.
  np.testing.assert_allclose(adam[9:], inverse_root_variance(dof[9:]), rtol=0.1)
  assert adam[5] > 100 * inverse_root_variance(late)
  np.testing.assert_allclose(radam[:4], 0, atol=1e-6)  # momentum alone
  settled = inverse_root_variance(late)
  assert (radam[5:] < 3 * settled).all() and (radam[20:] > 0.8 * settled).all()


@pytest.mark.parametrize("alpha, period", [(0.5, 5), (0.8, 10)])
def test_lookahead_lowers_the_variance_on_the_noisy_quadratic_as_predicted(alpha, period):
  """Zhang et al. 2019, proposition 2: minima at random places c ~ N(0, s^2), curvature a, SGD with rate r inside."""
  a, s, r = jnp.array([0.5, 1.0, 2.0]), 1.5, 0.3
  chains = 20_000

  def gradient(step, x):
    return a[None] * (x - s * jax.random.normal(jax.random.fold_in(jax.random.key(0), step), x.shape))

  start = jnp.zeros((chains, 3))
  alone, _ = follow(optax.sgd(r), gradient, start, 60)
  _, state = follow(lookahead(optax.sgd(r), period, alpha), gradient, start, 60 * period)
  contraction = np.asarray((1 - r * a) ** period)
  inner = np.asarray((r * a * s) ** 2 / (1 - (1 - r * a) ** 2))
  gain = alpha**2 * (1 - contraction**2)
  predicted = gain / (gain + 2 * alpha * (1 - alpha) * (1 - contraction)) * inner
  np.testing.assert_allclose(alone.var(0), inner, rtol=0.04)
  np.testing.assert_allclose(state.slow.var(0), predicted, rtol=0.04)
  assert (predicted < 0.9 * inner).all()


def test_centred_rms_is_finite_where_gradients_hardly_change():
  """The difference of two moments is negative by rounding there, and optax's root of it NaN."""
  gradients = 1.0 + 1e-4 * jax.random.normal(jax.random.key(0), (5000, 64))

  def run(rule):
    body = lambda state, g: rule.update(g, state)[::-1]
    return jax.jit(lambda: jax.lax.scan(body, rule.init(jnp.zeros(64)), gradients)[1])()

  assert jnp.isnan(run(optax.scale_by_stddev(0.99, 1e-8, eps_in_sqrt=False))).any()
  assert jnp.isfinite(run(scale_by_centred_rms(0.99, 1e-8))).all()


def test_gradient_noise_fades_and_differs_between_runs_side_by_side():
  noise = add_gradient_noise(variance=0.25, decay=0.55)
  zeros = jnp.zeros(100_000)
  state, spread = noise.init(zeros), []
  update = jax.jit(noise.update)
  for _ in range(4):
    updates, state = update(zeros, state)
    spread.append(updates.std())
  np.testing.assert_allclose(spread, 0.5 * (1 + np.arange(4)) ** -0.275, rtol=0.01)
  params = jnp.array([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]])
  side_by_side = jax.vmap(lambda p: noise.update(jnp.zeros(2), noise.init(p))[0])(params)
  assert not np.allclose(side_by_side[0], side_by_side[1])
  np.testing.assert_array_equal(side_by_side[0], side_by_side[2])


def test_schedules_stay_between_0_and_their_peak():
  cases = [(name, warmup) for name in typing.get_args(ScheduleName) for warmup in (0, 10)]
  over_time = lambda schedule: jax.vmap(schedule)(jnp.arange(100))
  everything = jax.jit(lambda: [over_time(make_schedule(name, 100, warmup)) for name, warmup in cases])()
  for (name, warmup), values in zip(cases, np.asarray(everything)):
    assert (values >= 0).all() and (values <= 1 + 1e-6).all() and values.max() > 0.99, name
    assert not warmup or (values[0] == 0 and (np.diff(values[:11]) > 0).all()), name


def test_inverse_square_root_is_that_of_the_transformer():
  """Vaswani et al. 2017, eq. 3: min(t^-1/2, t w^-3/2) over its largest value, which is at t = w."""
  t, w = np.arange(1, 500), 50
  values = jax.vmap(make_schedule("inverse_sqrt", 500, w))(jnp.arange(1, 500))
  np.testing.assert_allclose(values, np.minimum(t**-0.5, t * w**-1.5) / w**-0.5, rtol=1e-5)


def test_restarts_and_cycles_are_where_they_should_be():
  restarts = jax.vmap(warm_restarts(1.0, 10, 2, 70, low=0.1))(jnp.arange(70))
  np.testing.assert_array_equal(np.flatnonzero(restarts == 1.0), [0, 10, 30])
  np.testing.assert_allclose(restarts[jnp.array([5, 20, 50])], 0.55, rtol=1e-6)
  cycle = jax.vmap(triangular(0.2, 1.0, 4))(jnp.arange(17))
  np.testing.assert_allclose(cycle[jnp.array([0, 4, 8, 12, 16])], [0.2, 1, 0.2, 1, 0.2], rtol=1e-6)
  np.testing.assert_allclose(cycle[2], 0.6, rtol=1e-6)
  np.testing.assert_allclose(warm_up(optax.constant_schedule(3.0), 4)(1), 0.75)
