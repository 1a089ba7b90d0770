"""What optax asks of optimizers that are contributed to it, of every rule of this project.

After `optax/contrib/_common_test.py` of optax's repository, with half precision and wrappers added.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes.optim import (
  accumulate_in_float32,
  adabound,
  add_gradient_noise,
  add_l1,
  amsgrad,
  lookahead,
  newton,
  scale_by_adabound,
  scale_by_amsgrad,
  scale_by_centred_rms,
  scale_by_swats,
  sgdw,
  swats,
)
from mlnotes.optim.flags import OptimConfig, make_optimizer

# Factories with arguments for `inject_hyperparams`.
FACTORIES = {
  "adabound": (adabound, dict(learning_rate=1e-2)),
  "amsbound": (adabound, dict(learning_rate=1e-2, amsbound=True)),
  "amsgrad": (amsgrad, dict(learning_rate=1e-2)),
  "sgdw": (sgdw, dict(learning_rate=1e-2)),
  "swats": (swats, dict(learning_rate=1e-2)),
  "lookahead(sgd)": (functools.partial(lookahead, optax.sgd(1e-2, 0.9)), dict(sync_period=2, slow_step_size=0.5)),
  "lookahead(adam)": (functools.partial(lookahead, optax.adam(1e-2)), dict(sync_period=2)),
  "scale_by_adabound": (scale_by_adabound, dict(learning_rate=1e-2)),
  "scale_by_amsgrad": (scale_by_amsgrad, {}),
  "scale_by_centred_rms": (scale_by_centred_rms, {}),
  "scale_by_swats": (scale_by_swats, {}),
  "add_l1": (add_l1, dict(strength=0.1)),
  "add_gradient_noise": (add_gradient_noise, dict(variance=0.1)),
  "newton": (newton, dict(damping=1.0)),
}
FLAGS = {
  f"--optimizer={name}": dict(optimizer=name)
  for name in ("sgd", "adam", "adamw", "adabound", "amsgrad", "swats", "lars")
} | {"everything": dict(optimizer="amsbound", lookahead=2, gradient_noise=0.1, l1=0.1, weight_decay=0.1, clip_norm=1.0)}
# What an optimizer is made of is checked with it.
WHOLE = {name: both for name, both in FACTORIES.items() if not name.startswith("scale_by") or "centred" in name}
RULES = {name: functools.partial(make, **arguments) for name, (make, arguments) in WHOLE.items()} | {
  name: functools.partial(make_optimizer, OptimConfig(**flags), 10) for name, flags in FLAGS.items()
}
each_rule = pytest.mark.parametrize("name", RULES)
# Narrow types differ in nothing but their names: the second is tried on a few.
HALF = [(name, "bfloat16") for name in RULES] + [(name, "float16") for name in ("adabound", "swats", "lookahead(adam)")]


def some_params(dtype=jnp.float32):
  return {"kernel": jnp.array([[0.5, -1.0], [2.0, 0.25]], dtype), "bias": jnp.array([0.375, 1.0], dtype)}


def extra_of(name):
  return {"value_fn": lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))} if name == "newton" else {}


def run_all(name, dtype):
  """Two updates, one under a cond, and in MultiSteps; at once, so that it is compiled once."""
  rule, extra = RULES[name](), extra_of(name)
  params = some_params(dtype)
  plain, state = [], rule.init(params)
  for i in range(2):
    updates, state = rule.update(optax.tree.scale(2.0**-i, params), state, params, **extra)
    plain.append(updates)

  def if_asked(asked):
    update = lambda: optax.with_extra_args_support(rule).update(params, rule.init(params), params, **extra)
    return jax.lax.cond(asked, update, lambda: (jax.tree.map(jnp.zeros_like, params), rule.init(params)))[0]

  several = optax.MultiSteps(optax.with_extra_args_support(rule), 2)
  held = several.init(params)
  gathered = []
  for factor in (0.5, 1.5):
    updates, held = several.update(optax.tree.scale(factor, params), held, params, **extra)
    gathered.append(updates)
  return plain, state, if_asked(True), if_asked(False), gathered


@functools.cache
def ran(name, dtype):
  # MultiSteps chooses between two states that hold one key, which is no second use of it.
  with jax.debug_key_reuse(False):
    return jax.jit(run_all, static_argnums=(0, 1))(name, dtype)


@pytest.mark.parametrize("name, dtype", HALF + [(name, "float32") for name in RULES])
def test_updates_have_the_parameters_dtype_and_state_does_not_narrow(name, dtype):
  plain, state, done, _, gathered = ran(name, dtype)
  for leaf in jax.tree.leaves((plain, done, gathered)):
    assert leaf.dtype == dtype
  for leaf in jax.tree.leaves(state):
    assert leaf.dtype not in (jnp.bfloat16, jnp.float16)


@pytest.mark.parametrize("name, dtype", HALF)
def test_half_precision_is_single_precision_rounded_once(name, dtype):
  """Gradients and parameters are numbers that all these types hold."""
  narrow, wide = ran(name, dtype)[0], ran(name, "float32")[0]
  if "noise" in name or name == "everything":
    pytest.skip("the noise comes from the parameters' bits")
  for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide)):
    tolerance = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float32(a), b, rtol=tolerance, atol=1e-6)


@each_rule
def test_wrappers_change_nothing(name):
  plain, _, done, not_done, (first, second) = ran(name, "float32")
  for leaf in jax.tree.leaves((not_done, first)):
    np.testing.assert_array_equal(leaf, 0)
  # The mean of two gradients is the gradient of the first plain update.
  for a, b, c in zip(*map(jax.tree.leaves, (done, second, plain[0]))):
    np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(b, c, rtol=1e-5, atol=1e-7)


@each_rule
def test_parameters_within_the_state_are_found(name):
  rule, params = RULES[name](), some_params()
  state = rule.init(params)
  assert jax.tree.structure(optax.tree.map_params(rule, lambda v: v, state)) == jax.tree.structure(state)
  marked = optax.tree.map_params(rule, lambda v: jnp.full(v.shape, 7), state, transform_non_params=lambda v: v)
  shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
  for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(marked)):
    if before.shape in shapes:
      np.testing.assert_array_equal(after, 7)
    else:
      assert after is before


@pytest.mark.parametrize("name", FACTORIES)
def test_arguments_may_be_traced(name):
  """`inject_hyperparams` hands each number over as an array; the updates and the state are those of plain numbers."""
  make, arguments = FACTORIES[name]
  rule, injected = make(**arguments), optax.inject_hyperparams(make)(**arguments)
  params, extra = some_params(), extra_of(name)

  @jax.jit
  def both():
    found = []
    for each in (rule, injected):
      state = each.init(params)
      for _ in range(2):
        updates, state = each.update(params, state, params, **extra)
      found.append((updates, getattr(state, "inner_state", state)))
    return found

  (updates, state), (updates_injected, state_injected) = both()
  data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  same = lambda a, b: np.testing.assert_allclose(data(a), data(b), rtol=1e-5, atol=1e-6)
  jax.tree.map(same, updates_injected, updates)
  jax.tree.map(same, state_injected, state)


@each_rule
def test_an_argument_that_it_does_not_know_is_let_through(name):
  rule, params = RULES[name](), some_params()
  update = lambda: rule.update(params, rule.init(params), params, **extra_of(name), stranger=1)
  assert jax.tree.structure(jax.eval_shape(update)[0]) == jax.tree.structure(params)


def test_wide_gradients_of_narrow_parameters_are_rounded_to_these():
  params = some_params(jnp.bfloat16)
  grads = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  rule = accumulate_in_float32(optax.sgd(0.5))
  updates, _ = rule.update(grads, rule.init(params), params)
  assert updates["bias"].dtype == jnp.bfloat16
  assert rule.update(grads, rule.init(params))[0]["bias"].dtype == jnp.float32
