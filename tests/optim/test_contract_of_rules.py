"""What every optimizer promises, checked on each rule of the flags, Lookahead, noise, and second-order steps."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes.engine.checkpoint import Checkpoints
from mlnotes.engine.experiment import set_hparams
from mlnotes.optim import gauss_newton, newton
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer
from mlnotes.optim.surfaces import rosenbrock

# A learning rate for each, good for both functions below.
RATES = {
  **dict(sgd=1e-3, nesterov=1e-3, sgdw=1e-3, adagrad=1.0, adadelta=1.0, rmsprop=1e-2, rmsprop_centred=1e-2, adam=0.1),
  **dict(nadam=0.1, amsgrad=0.1, adamw=0.1, radam=0.03, adabound=1e-2, amsbound=1e-2, swats=0.1, lars=3.0),
}
VARIANTS = {
  "lookahead(sgd)": dict(optimizer="sgd", learning_rate=1e-3, lookahead=5),
  "lookahead(adam)": dict(optimizer="adam", learning_rate=0.1, lookahead=5),
  "noise, clipping, L1 and L2": dict(
    optimizer="adam", learning_rate=0.1, gradient_noise=1e-4, clip_norm=1e3, clip_value=1e3, l1=1e-6, weight_decay=1e-6
  ),
}
FLAGS = {**{name: dict(optimizer=name, learning_rate=rate) for name, rate in RATES.items()}, **VARIANTS}
# Its first updates are those of momentum with Adam's learning rate, which Rosenbrock's gradients of 400 send away.
FLAGS["radam"]["warmup_steps"] = 100
SECOND_ORDER = {"newton": newton(damping=1.0, adapt=True), "gauss_newton": gauss_newton(damping=1.0, adapt=True)}
each_rule = pytest.mark.parametrize("name", FLAGS)
each_optimizer = pytest.mark.parametrize("name", [*FLAGS, *SECOND_ORDER])
STEPS = 4000


def test_every_rule_is_here():
  assert set(RATES) == set(typing.get_args(OptimizerName))


@functools.cache
def build(name, **changes):
  if name in SECOND_ORDER:
    return SECOND_ORDER[name]
  return make_optimizer(OptimConfig(**{**FLAGS[name], **changes}), STEPS)


def quadratic(p):
  return 0.5 * (p[0] ** 2 + 10 * p[1] ** 2)


RESIDUALS = {
  quadratic: lambda params: params["matrix"][0] * jnp.sqrt(jnp.array([1.0, 10.0])),
  rosenbrock: lambda params: jnp.sqrt(2.0) * jnp.stack(
    [1 - params["matrix"][0, 0], 10 * (params["matrix"][0, 1] - params["matrix"][0, 0] ** 2)]
  ),
}  # fmt: skip


def train(optimizer, function, start, steps, rate=None):
  """The loss after `steps` updates from `start`, as one scan."""
  value_fn = lambda params: function(params["matrix"][0])
  params = {"matrix": jnp.array([start])}
  state = optimizer.init(params)
  if rate is not None:
    state = set_hparams(state, learning_rate=rate)
  extra = {"value_fn": value_fn, "residual_fn": RESIDUALS[function]}

  def body(carry, _):
    params, state = carry
    updates, state = optax.with_extra_args_support(optimizer).update(jax.grad(value_fn)(params), state, params, **extra)
    return (optax.apply_updates(params, updates), state), None

  (params, _), _ = jax.lax.scan(body, (params, state), length=steps)
  return value_fn(params)


@each_optimizer
def test_converges_on_a_quadratic_and_on_rosenbrock(name):
  optimizer = build(name, schedule="cosine")
  steps = 100 if name in SECOND_ORDER else STEPS
  both = lambda: (
    train(optimizer, quadratic, (3.0, -2.0), steps), train(optimizer, rosenbrock, (-1.5, 2.0), steps)
  )  # fmt: skip
  bowl, valley = jax.jit(both)()
  assert bowl < 1e-3 and valley < 0.1, (bowl, valley)


@each_rule
def test_vmapped_learning_rates_equal_single_runs(name):
  optimizer = build(name)
  run = lambda rate: train(optimizer, quadratic, (3.0, -2.0), 30, rate)
  rates = jnp.array([0.3, 1.0]) * FLAGS[name]["learning_rate"]
  run_one = jax.jit(run)
  np.testing.assert_allclose(jax.jit(jax.vmap(run))(rates), [run_one(rate) for rate in rates], rtol=1e-5)


def some_params(dtype=jnp.float32):
  return {"kernel": jnp.array([[0.5, -1.0], [2.0, 0.1]], dtype), "bias": jnp.array([0.3, 0.0], dtype)}


@each_rule
def test_one_program_and_finite_updates_on_zero_and_huge_gradients(name):
  optimizer = build(name)
  params = some_params()
  update = jax.jit(optimizer.update)
  state = optimizer.init(params)
  for size in (0.0, 1.0, 1e18, 1e30, 0.0):
    updates, state = update(optax.tree.scale(size, params), state, params)
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates)), size
    state = set_hparams(state, learning_rate=0.5 * FLAGS[name]["learning_rate"])
  assert update._cache_size() == 1


@each_rule
def test_state_is_float32_under_bfloat16(name):
  """Gradients that bfloat16 holds exactly: the same updates as in float32, rounded once."""
  optimizer = build(name)
  params = some_params(jnp.bfloat16)
  wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  update = jax.jit(optimizer.update)
  narrow_state, wide_state = optimizer.init(params), optimizer.init(wide)
  assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(narrow_state))
  for i in range(3):
    grads = optax.tree.scale(i + 1, params)
    updates, narrow_state = update(grads, narrow_state, params)
    expected, wide_state = update(jax.tree.map(lambda g: g.astype(jnp.float32), grads), wide_state, wide)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), updates, expected)
  assert optax.apply_updates(params, updates)["bias"].dtype == jnp.bfloat16


def test_states_survive_a_checkpoint(tmp_path):
  params = some_params()
  after_one = lambda optimizer: optimizer.update(params, optimizer.init(params), params)[1]
  states = jax.jit(lambda: {name: after_one(build(name)) for name in FLAGS})()
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, states, {}, None)
  checkpoints.wait()
  restored, _ = checkpoints.restore(1, jax.eval_shape(lambda: states))
  checkpoints.close()
  assert jax.tree.structure(restored) == jax.tree.structure(states)
  data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(data(a), data(b)), restored, states)


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_order_steps_say_what_they_need(name):
  params = some_params()
  optimizer = SECOND_ORDER[name]
  with pytest.raises(ValueError, match="_fn="):
    optimizer.update(params, optimizer.init(params), params)
