"""The flags' optimizers against torch-free references: optax's own composites and closed forms."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import set_hparams
from mlnotes.engine.flags import field
from mlnotes.optim import (
  adabound,
  add_l1,
  amsgrad,
  inverse_square_root,
  lookahead,
  make_schedule,
  newton,
  sgdw,
  swats,
  triangular,
  update_ema,
  warm_restarts,
)
from mlnotes.optim.flags import OptimConfig, OptimizerName, make_optimizer


def quadratic(params):
  loss = 0.5 * jnp.sum(jnp.array([1.0, 10.0]) * params["w"] ** 2)
  return loss + jnp.sum(jnp.array([[3.0], [1.0]]) * params["matrix"] ** 4)


def start():
  return {"w": jnp.array([1.0, -2.0]), "matrix": jnp.array([[0.5], [1.0]])}


def train(optimizer, steps=20):
  params = start()
  state = optimizer.init(params)

  def body(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(quadratic)(params), state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), jnp.concatenate([params["w"], params["matrix"][:, 0]])

  return jax.lax.scan(body, (params, state), length=steps)[1]


def _matrix(params):
  return jax.tree.map(lambda p: p.ndim > 1, params)


@pytest.mark.parametrize(
  "flags, reference",
  [
    ({"optimizer": "adam"}, optax.adam(1e-2)),
    ({"optimizer": "sgd", "momentum": 0.8}, optax.sgd(1e-2, momentum=0.8)),
    (
      {"optimizer": "adamw", "clip_norm": 0.5},
      optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, weight_decay=0)),
    ),
    (
      {"optimizer": "lars", "momentum": 0.8, "weight_decay": 0.1},
      optax.lars(1e-2, 0.1, _matrix, trust_ratio_mask=_matrix, momentum=0.8),
    ),
    ({"optimizer": "sgdw", "weight_decay": 0.1}, sgdw(1e-2, 0.9, 0.1, _matrix)),
    ({"optimizer": "adabound", "final_learning_rate": 0.05}, adabound(1e-2, 0.05)),
    ({"optimizer": "swats"}, swats(1e-2)),
    ({"optimizer": "amsgrad"}, amsgrad(1e-2)),
    (
      {"optimizer": "adam", "l1": 0.1, "clip_value": 0.5},
      optax.chain(optax.clip(0.5), optax.masked(add_l1(0.1), _matrix), optax.adam(1e-2)),
    ),
    (
      {"schedule": "warmup_cosine", "warmup_steps": 5},
      optax.adam(optax.warmup_cosine_decay_schedule(0, 1e-2, 5, 20)),
    ),
    (
      {"schedule": "step"},
      optax.adam(optax.piecewise_constant_schedule(1e-2, {10: 0.1, 15: 0.1})),
    ),
  ],
)
def test_agrees_with_optax(flags, reference):
  built = make_optimizer(OptimConfig(learning_rate=1e-2, **flags), total_steps=20)
  np.testing.assert_allclose(train(built), train(reference), rtol=1e-6)


def test_adamw_decays_kernels_decoupled_and_leaves_vectors():
  config = OptimConfig(optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
  params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
  optimizer = make_optimizer(config, total_steps=10)
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
  np.testing.assert_allclose(updates["bias"], 0.0)


def test_learning_rate_is_state_and_recompiles_nothing():
  optimizer = make_optimizer(OptimConfig(learning_rate=1e-2), total_steps=10)
  params = {"w": jnp.ones(2)}
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)
  first, _ = update(params, state, params)
  second, _ = update(params, set_hparams(state, learning_rate=3e-2), params)
  np.testing.assert_allclose(second["w"], 3 * first["w"], rtol=1e-6)
  assert update._cache_size() == 1
  with pytest.raises(KeyError, match="temperature"):
    set_hparams(state, temperature=1.0)


@pytest.mark.parametrize("steps", [1, 4, 5, 12])
def test_lookahead_agrees_with_optax(steps):
  inner = optax.adam(1e-1)
  mine = train(lookahead(inner, 5, 0.5), steps)
  reference = optax.lookahead(inner, 5, 0.5)
  params = optax.LookaheadParams.init_synced(start())
  state = reference.init(params)
  for _ in range(steps):
    updates, state = reference.update(jax.grad(quadratic)(params.fast), state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(mine[-1][:2], params.fast["w"], rtol=1e-5)


@pytest.mark.parametrize("count", [1, 10, 10_000])
def test_ema_closed_form(count):
  """From 0 towards 1 the average is 1 - prod(d_i); constant parameters are a fixed point."""
  ones = {"w": jnp.ones(3)}
  body = lambda step, average: update_ema(average, ones, step, 0.999)
  average = jax.lax.fori_loop(0, count, body, {"w": jnp.zeros(3)})
  decays = np.minimum(0.999, (1 + np.arange(count)) / (10 + np.arange(count)))
  np.testing.assert_allclose(average["w"], 1 - np.prod(decays), rtol=1e-4)
  fixed = jax.lax.fori_loop(0, count, body, ones)
  np.testing.assert_array_equal(fixed["w"], 1.0)


def test_schedule_peaks_at_one_and_rejects_endless_warmup():
  schedule = make_schedule("warmup_cosine", 100, 10)
  assert float(schedule(0)) == 0.0 and float(schedule(10)) == 1.0 and float(schedule(100)) < 1e-6
  with pytest.raises(ValueError, match="warmup_steps"):
    make_schedule("constant", 10, 10)


@pytest.mark.parametrize("name", ["amsgrad", "adam"])
def test_eps_is_added_to_the_corrected_root(name):
  """The first update of a gradient g is -rate g / (|g| + eps), as in torch: half the rate where g = eps."""
  config = OptimConfig(optimizer=name, adam_eps=1e-3, learning_rate=1.0)
  params = {"w": jnp.array([0.0, 0.0])}
  grads = {"w": jnp.array([1e-3, -3e-3])}
  optimizer = make_optimizer(config, 10)
  updates, state = optimizer.update(grads, optimizer.init(params), params)
  np.testing.assert_allclose(updates["w"], [-0.5, 0.75], rtol=1e-4)
  # Then a zero gradient: the largest second moment stays where Adam's falls, and both are corrected.
  updates, _ = optimizer.update({"w": jnp.zeros(2)}, state, params)
  nu = 0.001 if name == "amsgrad" else 0.001 * 0.999
  mean, root = 0.09 / 0.19, np.sqrt(nu / (1 - 0.999**2))
  np.testing.assert_allclose(updates["w"], [-mean / (root + 1), 3 * mean / (3 * root + 1)], rtol=1e-4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(OptimConfig):
  steps: int = field(1000, "updates")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmConfig(RunConfig):
  warmup_steps: int = 100


@pytest.mark.parametrize(
  "build, most",
  [
    (lambda: RunConfig(warmup_steps=1000), 500),
    (lambda: RunConfig(warmup_steps=501), 500),
    (lambda: WarmConfig(steps=100, warmup_steps=80), 50),
    (lambda: WarmConfig(steps=100, warmup_steps=120), 50),
    (lambda: make_optimizer(OptimConfig(warmup_steps=6), 10), 5),
  ],
)
def test_more_warm_up_than_half_the_run_is_refused(build, most):
  with pytest.raises(InputError, match=rf"--warmup_steps=.* at most {most}, half of --steps="):
    build()


def rates_of(config, steps):
  """The learning rate of each update: what a gradient of 1 moves under plain SGD."""
  optimizer = make_optimizer(config, steps)
  state, rates = optimizer.init(jnp.zeros(1)), []
  for _ in range(steps):
    updates, state = optimizer.update(jnp.ones(1), state, jnp.zeros(1))
    rates.append(-float(updates[0]))
  return rates


def test_a_default_warm_up_gives_way_to_a_short_run_and_says_so():
  plain = dict(optimizer="sgd", momentum=0.0, learning_rate=2.0)
  config = WarmConfig(steps=4, **plain)
  np.testing.assert_allclose(rates_of(config, 4), [0, 1, 2, 2])
  assert "half of --steps=4" in config.idle_flags()["warmup_steps"]
  assert "warmup_steps" not in WarmConfig(steps=200).idle_flags()
  np.testing.assert_allclose(rates_of(RunConfig(steps=4, warmup_steps=1, **plain), 4), [0, 2, 2, 2])


@pytest.mark.parametrize("steps, expected", [(1, [1]), (2, [1, 0.1]), (3, [1, 1, 0.1]), (4, [1, 1, 0.1, 0.01])])
def test_a_step_schedule_holds_the_peak_for_the_first_half(steps, expected):
  schedule = make_schedule("step", steps)
  np.testing.assert_allclose([schedule(count) for count in range(steps)], expected, rtol=1e-6)


OTHER = dict(momentum=0.5, beta2=0.9, adam_eps=0.1, final_learning_rate=1e-4)


@pytest.mark.parametrize("name", typing.get_args(OptimizerName))
def test_flags_that_change_nothing_are_named_and_no_others(name):
  """Eight updates, as RAdam's first five know no second moment; small gradients, which AdaBound's bounds hold."""
  grads = {"kernel": jnp.array([[1e-4, 2.0]])}

  def total(**flags):
    config = OptimConfig(optimizer=name, learning_rate=1e-2, **flags)
    optimizer = make_optimizer(config, 10)
    update = jax.jit(optimizer.update)
    params, state = {"kernel": jnp.ones((1, 2))}, optimizer.init(grads)
    for i in range(8):
      updates, state = update(optax.tree.scale(1.0 + i, grads), state, params)
      params = optax.apply_updates(params, updates)
    return np.asarray(params["kernel"])

  before = total()
  idle = {flag for flag, value in OTHER.items() if (total(**{flag: value}) == before).all()}
  assert idle == set(OptimConfig(optimizer=name).idle_flags())


@pytest.fixture
def untyped():
  """As outside the tests, where annotations are not checked."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


def test_a_schedule_takes_python_integers():
  """As closed form: 0, half-way up, the peak, sqrt(10 / 40)."""
  schedule = make_schedule("inverse_sqrt", 100, 10)
  np.testing.assert_allclose([schedule(count) for count in (0, 5, 10, 40)], [0, 0.5, 1, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
  "build, message",
  [
    (lambda: warm_restarts(1.0, 0, 2, 100), "first_period=0"),
    (lambda: warm_restarts(1.0, 10, 0, 100), "factor=0"),
    (lambda: triangular(0.0, 1.0, 0), "half_period=0"),
    (lambda: inverse_square_root(1.0, 0), "timescale=0"),
    (lambda: make_schedule("foo", 100), "schedule 'foo', expected one of constant"),
    (lambda: OptimConfig(optimizer="foo"), "--optimizer=foo .*expected one of sgd"),
    (lambda: OptimConfig(schedule="foo"), "--schedule=foo .*expected one of constant"),
    (lambda: newton(damping=-5.0), "damping=-5"),
    (lambda: newton(adapt=True), "damping=0.0"),
    (lambda: adabound(-1.0), "learning_rate=-1.0"),
    (lambda: lookahead(optax.sgd(0.1), 0), "sync_period=0"),
    (lambda: lookahead(optax.sgd(0.1), 5, 1.5), "slow_step_size=1.5"),
  ],
)
def test_arguments_out_of_range_are_named(build, message, untyped):
  with pytest.raises(ValueError, match=message):
    build()


def test_adabound_says_where_a_schedule_goes(untyped):
  with pytest.raises(TypeError, match="scale_by_schedule"):
    adabound(optax.cosine_decay_schedule(1e-3, 10))


def test_decoupled_decay_is_not_l2():
  """With Adam's scaling L2 hardly shrinks what has large gradients; decoupled decay shrinks all alike."""
  params = {"kernel": jnp.array([[1.0, 1.0]])}
  grads = {"kernel": jnp.array([[100.0, 0.01]])}
  after = {}
  for name in ("adam", "adamw"):
    changes = []
    for decay in (0.0, 0.1):
      optimizer = make_optimizer(OptimConfig(optimizer=name, weight_decay=decay, learning_rate=0.1), 10)
      changes.append(optimizer.update(grads, optimizer.init(params), params)[0]["kernel"][0])
    after[name] = changes[1] - changes[0]
  np.testing.assert_allclose(after["adamw"], -0.01, rtol=1e-4)
  np.testing.assert_allclose(after["adam"], 0, atol=1e-6)  # Adam's first update is the gradient's sign


@pytest.mark.parametrize(
  "flag", ["learning_rate", "final_learning_rate", "beta2", "l1", "gradient_noise", "clip_value"]
)
def test_out_of_range_flags_are_named(flag):
  with pytest.raises(InputError, match=f"--{flag}=-1.0"):
    OptimConfig(**{flag: -1.0})
