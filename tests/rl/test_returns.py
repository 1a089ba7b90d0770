"""Returns against their definitions, summed term by term in NumPy, and against what must hold between them."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mlnotes.engine.errors import InputError
from mlnotes.rl import returns

GAMMA = 0.9


def trajectory(seed, length=12, terminal=(3,), truncated=(7,)):
  """Random rewards and values: an episode that terminates, one that is cut off, one that is still going on."""
  rng = np.random.default_rng(seed)
  value, reset = rng.normal(size=(2, length))
  last, discount = np.zeros(length, bool), np.full(length, GAMMA)
  last[[*terminal, *truncated]] = True
  discount[list(terminal)] = 0
  # The value of the next observation is the next value, except where a reset came between.
  next_value = np.where(last, reset, np.append(value[1:], reset[-1]))
  return dict(reward=rng.normal(size=length), discount=discount, last=last, value=value, next_value=next_value)


def arrays(data):
  return {name: jnp.asarray(x, bool if name == "last" else jnp.float32) for name, x in data.items()}


def without_value(data):
  return {name: x for name, x in data.items() if name != "value"}


def n_step_by_definition(data, t, n):
  """G_{t:t+n}: rewards one by one, then the value of the observation where it stops."""
  total, weight = 0.0, 1.0
  for k in range(t, min(t + n, len(data["reward"]))):
    total += weight * data["reward"][k]
    weight *= data["discount"][k]
    if data["last"][k]:
      break
  return total + weight * data["next_value"][k]


def lambda_by_definition(data, t, lambda_):
  """Eq. 12.3: (1 - lambda) sum_n lambda^{n-1} G_{t:t+n} + lambda^{T-t-1} G_t."""
  end = next((k for k in range(t, len(data["reward"])) if data["last"][k]), len(data["reward"]) - 1) + 1
  terms = [(1 - lambda_) * lambda_ ** (n - 1) * n_step_by_definition(data, t, n) for n in range(1, end - t)]
  return sum(terms) + lambda_ ** (end - t - 1) * n_step_by_definition(data, t, end - t)


def every_step(function, data, *args):
  return np.array([function(data, t, *args) for t in range(len(data["reward"]))])


def close(actual, expected, tolerance=2e-5):
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_hand_table_with_a_termination_and_a_truncation_in_the_middle():
  data = dict(
    reward=jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]),
    discount=jnp.array([0.5, 0.0, 0.5, 0.5, 0.5]),
    last=jnp.array([False, True, False, True, False]),
  )
  bootstrap = jnp.array([10.0, 20.0, 30.0, 40.0, 60.0])
  # t=1 terminates: its 20 counts for nothing. t=3 is cut off: 4 + .5 * 40. t=4 is where the data end: 5 + .5 * 60.
  close(returns.discounted_returns(**data, bootstrap=bootstrap), [2.0, 2.0, 15.0, 24.0, 35.0])
  close(returns.n_step_returns(**data, next_value=bootstrap, n=1), [6.0, 2.0, 18.0, 24.0, 35.0])
  close(returns.lambda_returns(**data, next_value=bootstrap, lambda_=0.5), [4.0, 2.0, 16.5, 24.0, 35.0])
  value = jnp.array([1.0, 10.0, 2.0, 30.0, 3.0])
  close(returns.compute_gae(**data, value=value, next_value=bootstrap, lambda_=0.5), [3.0, -8.0, 14.5, -6.0, 32.0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [1, 2, 3, 5, 12, 40])
def test_n_step_returns_are_the_sums_of_the_definition(seed, n):
  data = trajectory(seed)
  actual = jax.jit(returns.n_step_returns, static_argnames="n")(**without_value(arrays(data)), n=n)
  close(actual, every_step(n_step_by_definition, data, n))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95, 1.0])
def test_lambda_returns_and_gae_are_the_weighted_sums_of_the_definition(seed, lambda_):
  data = trajectory(seed)
  expected = every_step(lambda_by_definition, data, lambda_)
  close(jax.jit(returns.lambda_returns)(**without_value(arrays(data)), lambda_=jnp.float32(lambda_)), expected)
  close(jax.jit(returns.compute_gae)(**arrays(data), lambda_=jnp.float32(lambda_)), expected - data["value"])


def test_the_whole_length_is_lambda_one_is_the_discounted_return():
  data = without_value(arrays(trajectory(0)))
  full = returns.n_step_returns(**data, n=12)
  close(returns.lambda_returns(**data, lambda_=1.0), full)
  bootstrap = data.pop("next_value")
  close(returns.discounted_returns(**data, bootstrap=bootstrap), full)


def test_fewer_than_one_step_is_refused():
  with pytest.raises(ValueError, match="n = 0"):
    returns.n_step_returns(**without_value(arrays(trajectory(0))), n=0)


RETURNS = {
  "discounted_returns": ("bootstrap",),
  "n_step_returns": ("next_value", "n"),
  "lambda_returns": ("next_value", "lambda_"),
  "compute_gae": ("value", "next_value", "lambda_"),
  "vtrace": ("value", "next_value", "ratio", "lambda_"),
  "retrace": ("q", "expected_next_q", "ratio", "lambda_"),
}


@pytest.mark.parametrize("name", RETURNS)
def test_what_is_no_trajectory_is_refused_in_one_sentence(name):
  """By the function itself: the annotations are checked here alone, not where it is used."""
  function = inspect.unwrap(getattr(returns, name))
  numbers = {"n": 3, "lambda_": 0.9}
  good = {argument: numbers.get(argument, jnp.ones(5)) for argument in ("reward", "discount", *RETURNS[name])}
  good["last"] = jnp.zeros(5, bool)
  function(**good)
  arrays = [argument for argument in good if argument not in numbers]
  spread = lambda shape: {argument: jnp.ones(shape, good[argument].dtype) for argument in arrays}
  bad = [
    (spread(0), r"last of shape \(0,\): expected \(T,\) with T >= 1"),
    (spread((5, 2)), r"last of shape \(5, 2\): expected \(T,\) .* jax.vmap"),
    (dict(reward=jnp.ones((5, 1))), r"reward of shape \(5, 1\): expected \(5,\)"),
    (dict(discount=0.99), r"discount of shape \(\): expected \(5,\), as last has, gamma times 1 - terminated"),
    (dict(last=jnp.zeros(5)), "last of dtype float32: expected bool, true where the action at t ended the episode"),
    *((({argument: jnp.ones(4)}), rf"{argument} of shape \(4,\): expected \(5,\)") for argument in arrays[:-1]),
    *([({"lambda_": value}, f"lambda_={value}: expected a number in") for value in (1.5, -0.1) if "lambda_" in good]),
  ]
  for change, message in bad:
    with pytest.raises(InputError, match=f"{name} got {message}"):
      function(**{**good, **change})


def changed_after(data, t):
  """The same trajectory with everything after step t replaced."""
  other = trajectory(99)
  return {name: np.where(np.arange(len(x)) > t, other[name], x) for name, x in data.items()}


@pytest.mark.parametrize("end", [3, 7])
def test_nothing_leaks_from_the_next_episode(end):
  """Neither past a termination (3) nor past a truncation (7)."""
  data = trajectory(0)
  both = [arrays(data), arrays(changed_after(data, end))]
  ratio = jnp.linspace(0.2, 2.0, 12)
  functions = {
    "gae": lambda d: returns.compute_gae(**d, lambda_=0.9),
    "lambda": lambda d: returns.lambda_returns(**without_value(d), lambda_=0.9),
    "n_step": lambda d: returns.n_step_returns(**without_value(d), n=4),
    "target": lambda d: returns.vtrace(**d, ratio=ratio).target,
    "advantage": lambda d: returns.vtrace(**d, ratio=ratio).advantage,
  }
  for name, function in functions.items():
    a, b = map(function, both)
    np.testing.assert_array_equal(a[: end + 1], b[: end + 1], err_msg=name)
    assert not np.allclose(a[end + 1 :], b[end + 1 :]), name


def test_a_truncation_counts_the_value_of_its_own_next_observation():
  data = arrays(trajectory(0))
  more = {**data, "next_value": data["next_value"].at[7].add(1.0)}
  gain = returns.lambda_returns(**without_value(more), lambda_=1.0) - returns.lambda_returns(
    **without_value(data), lambda_=1.0
  )
  close(gain, [0, 0, 0, 0, GAMMA**4, GAMMA**3, GAMMA**2, GAMMA, 0, 0, 0, 0])
  # At a termination the same change has no effect at all.
  dead = {**data, "next_value": data["next_value"].at[3].add(1.0)}
  np.testing.assert_array_equal(returns.compute_gae(**data, lambda_=0.9), returns.compute_gae(**dead, lambda_=0.9))


def fixed_point(discount, last):
  """The constant value that its own returns confirm, by iteration: V <- mean return under V."""
  length = len(last)

  @jax.jit
  def iterate(value):
    constant = jnp.full(length, value)
    target = returns.lambda_returns(jnp.ones(length), discount, last, constant, 0.8)
    return jnp.mean(target)

  value = jnp.float32(0)
  for _ in range(200):
    value = iterate(value)
  return float(value)


def test_reward_one_for_ever_under_a_time_limit_is_worth_one_over_one_minus_gamma():
  last = jnp.arange(20) % 5 == 4
  assert fixed_point(jnp.full(20, GAMMA), last) == pytest.approx(1 / (1 - GAMMA), rel=1e-4)


def test_reward_one_up_to_a_true_end_is_worth_the_finite_sum():
  last = jnp.arange(20) % 5 == 4
  data = (jnp.ones(20), jnp.where(last, 0.0, GAMMA), last)
  expected = np.tile([sum(GAMMA**k for k in range(5 - t)) for t in range(5)], 4)
  close(returns.discounted_returns(*data, jnp.full(20, 7.0)), expected)
  close(returns.lambda_returns(*data, jnp.append(jnp.asarray(expected[1:], jnp.float32), 3.0), 0.5), expected)


def vtrace_by_definition(data, ratio, lambda_, rho_clip, c_clip):
  """Espeholt et al. 2018, eq. 1: v_s = V(x_s) + sum_t gamma^{t-s} (prod_{i<t} c_i) rho_t delta_t."""
  length = len(ratio)
  rho, c = np.minimum(ratio, rho_clip), lambda_ * np.minimum(ratio, c_clip)
  delta = rho * (data["reward"] + data["discount"] * data["next_value"] - data["value"])
  target = data["value"].copy()
  for s in range(length):
    weight = 1.0
    for t in range(s, length):
      target[s] += weight * delta[t]
      if data["last"][t]:
        break
      weight *= data["discount"][t] * c[t]
  ends = data["last"] | (np.arange(length) == length - 1)
  next_target = np.where(ends, data["next_value"], np.append(target[1:], 0.0))
  return target, data["reward"] + data["discount"] * next_target - data["value"]


@pytest.mark.parametrize("lambda_, rho_clip, c_clip", [(1.0, 1.0, 1.0), (0.9, 1.5, 0.7), (0.5, np.inf, 1.0)])
def test_vtrace_is_the_double_sum_of_the_paper(lambda_, rho_clip, c_clip):
  data = trajectory(1)
  ratio = np.exp(np.random.default_rng(5).normal(size=12))
  settings = dict(lambda_=lambda_, rho_clip=rho_clip, c_clip=c_clip)
  actual = returns.vtrace(**arrays(data), ratio=jnp.asarray(ratio, jnp.float32), **settings)
  target, advantage = vtrace_by_definition(data, ratio, **settings)
  close(actual.target, target)
  close(actual.advantage, advantage)


def test_vtrace_on_policy_gives_lambda_returns_and_their_advantages():
  data = arrays(trajectory(2))
  actual = returns.vtrace(**data, ratio=jnp.ones(12), lambda_=0.9)
  close(actual.target, returns.lambda_returns(**without_value(data), lambda_=0.9))
  on_policy = returns.vtrace(**data, ratio=jnp.ones(12))
  close(on_policy.target, returns.n_step_returns(**without_value(data), n=12))
  close(on_policy.advantage, returns.compute_gae(**data, lambda_=1.0))


def test_vtrace_without_clips_is_the_per_decision_return_with_control_variates():
  """Sutton & Barto, eq. 7.13: G_t = rho_t (R_{t+1} + gamma G_{t+1}) + (1 - rho_t) V(S_t)."""
  data = trajectory(3)
  ratio = np.exp(np.random.default_rng(6).normal(size=12))
  expected = np.zeros(12)
  for t in reversed(range(12)):
    future = data["next_value"][t] if data["last"][t] or t == 11 else expected[t + 1]
    expected[t] = ratio[t] * (data["reward"][t] + data["discount"][t] * future) + (1 - ratio[t]) * data["value"][t]
  actual = returns.vtrace(**arrays(data), ratio=jnp.asarray(ratio, jnp.float32), rho_clip=jnp.inf, c_clip=jnp.inf)
  close(actual.target, expected)


def test_vtrace_evaluates_the_target_policy_not_the_behaviour():
  """One-step episodes, two actions paid 0 and 1: unclipped ratios make the mean target the target policy's value."""
  target_policy, behaviour = np.array([0.2, 0.8]), np.array([0.6, 0.4])
  action = jax.random.choice(jax.random.key(0), 2, (20000,), p=jnp.asarray(behaviour, jnp.float32))
  ones, zeros = jnp.ones(20000), jnp.zeros(20000)
  ratio = jnp.asarray(target_policy / behaviour, jnp.float32)[action]
  reward = action.astype(jnp.float32)
  target = returns.vtrace(reward, zeros, ones > 0, zeros, zeros, ratio, rho_clip=jnp.inf).target
  assert float(jnp.mean(target)) == pytest.approx(0.8, abs=0.02)


def retrace_by_definition(data, ratio, lambda_):
  """Munos et al. 2016, eq. 3: Q + sum_s gamma^s (c_1 ... c_s) delta_s."""
  target = data["value"].copy()
  for t in range(len(ratio)):
    weight = 1.0
    for s in range(t, len(ratio)):
      if s > t:
        weight *= lambda_ * min(1.0, ratio[s])
      delta = data["reward"][s] + data["discount"][s] * data["next_value"][s] - data["value"][s]
      target[t] += weight * delta
      if data["last"][s]:
        break
      weight *= data["discount"][s]
  return target


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_retrace_is_the_sum_of_the_paper(lambda_):
  data = trajectory(4)
  ratio = np.exp(np.random.default_rng(7).normal(size=12))
  inputs = arrays(data)
  inputs["q"], inputs["expected_next_q"] = inputs.pop("value"), inputs.pop("next_value")
  actual = returns.retrace(**inputs, ratio=jnp.asarray(ratio, jnp.float32), lambda_=lambda_)
  close(actual, retrace_by_definition(data, ratio, lambda_))


def test_retrace_iterated_on_off_policy_data_finds_the_target_policys_action_values():
  """A two-state chain under a random behaviour: the fixed point is the solution of the Bellman equation."""
  rng = np.random.default_rng(0)
  length, policy = 4000, np.array([[0.9, 0.1], [0.3, 0.7]])  # pi(a|s); action a leads to state a, paid s + 2a
  actions = rng.integers(0, 2, length + 1)
  states = np.append(0, actions[:-1])
  reward = (states + 2.0 * actions)[:-1]
  exact = np.zeros((2, 2))
  for _ in range(300):
    exact = np.array([[s + 2 * a + GAMMA * policy[a] @ exact[a] for a in range(2)] for s in range(2)])
  ratio = jnp.asarray(policy[states, actions][:-1] / 0.5, jnp.float32)
  s, a, s2 = (jnp.asarray(x) for x in (states[:-1], actions[:-1], states[1:]))
  cell = s * 2 + a

  @jax.jit
  def sweep(q):
    expected = jnp.sum(jnp.asarray(policy, jnp.float32) * q, axis=1)[s2]
    target = returns.retrace(
      jnp.asarray(reward, jnp.float32), jnp.full(length, GAMMA), jnp.zeros(length, bool), q[s, a], expected, ratio
    )
    return (jnp.zeros(4).at[cell].add(target) / jnp.zeros(4).at[cell].add(1.0)).reshape(2, 2)

  q = jnp.zeros((2, 2))
  for _ in range(60):
    q = sweep(q)
  close(q, exact, tolerance=5e-3)


def test_gradients():
  data = arrays(trajectory(0))
  last = data.pop("last")
  ratio = jnp.linspace(0.3, 1.7, 12)
  gae = lambda d: returns.compute_gae(**d, last=last, lambda_=0.9)
  values = lambda d: returns.vtrace(**d, last=last, ratio=ratio).target
  steps = lambda d: returns.n_step_returns(**without_value(d), last=last, n=3)
  for function in (gae, values, steps):
    check_grads(jax.jit(function), (data,), order=1, modes=["rev"], rtol=1e-2, atol=1e-2)


def test_vmap_over_environments_is_each_one_by_itself():
  many = [arrays(trajectory(seed)) for seed in range(4)]
  stacked = {name: jnp.stack([d[name] for d in many], axis=1) for name in many[0]}
  together = jax.vmap(lambda d: returns.compute_gae(**d, lambda_=0.9), in_axes=1, out_axes=1)(stacked)
  for i, data in enumerate(many):
    close(together[:, i], returns.compute_gae(**data, lambda_=0.9))
