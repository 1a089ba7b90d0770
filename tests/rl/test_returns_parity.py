"""Returns against rlax and Stable-Baselines3, on trajectories with terminations and truncations.

rlax knows no truncation within a trajectory, so it gets each episode by itself, with the value of its last observation;
Stable-Baselines3's buffer gets truncations as its rollouts store them, with that value added to the reward.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.rl import returns

pytestmark = pytest.mark.parity

GAMMA = 0.97
LENGTH = 40


def trajectory(seed):
  rng = np.random.default_rng(seed)
  terminated = rng.random(LENGTH) < 0.1
  last = terminated | (rng.random(LENGTH) < 0.1)
  value, final = rng.normal(size=(2, LENGTH))
  data = dict(
    reward=rng.normal(size=LENGTH),
    discount=GAMMA * (1 - terminated),
    value=value,
    next_value=np.where(last, final, np.append(value[1:], final[-1])),
    ratio=np.exp(rng.normal(size=LENGTH)),
  )
  return {**{k: jnp.asarray(v, jnp.float32) for k, v in data.items()}, "last": jnp.asarray(last)}


def pick(data, *names):
  return {name: data[name] for name in ("reward", "discount", "last", *names)}


def by_episode(data, function):
  """`function` of each episode's arrays, end to end."""
  ends = [*(np.flatnonzero(data["last"]) + 1), LENGTH]
  starts = [0, *ends[:-1]]
  pieces = [{name: x[a:b] for name, x in data.items()} for a, b in zip(starts, ends) if b > a]
  return np.concatenate([np.asarray(function(piece)) for piece in pieces])


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def rlax():
  return pytest.importorskip("rlax")


@pytest.mark.parametrize("seed", range(3))
def test_gae_is_that_of_rlax(rlax, seed):
  data = trajectory(seed)

  def reference(d):
    values = jnp.append(d["value"], d["next_value"][-1])
    return rlax.truncated_generalized_advantage_estimation(d["reward"], d["discount"], 0.9, values)

  close(returns.compute_gae(**pick(data, "value", "next_value"), lambda_=0.9), by_episode(data, reference))


@pytest.mark.parametrize("seed", range(3))
def test_lambda_and_n_step_returns_are_those_of_rlax(rlax, seed):
  data = trajectory(seed)
  reference = lambda d: rlax.lambda_returns(d["reward"], d["discount"], d["next_value"], 0.8)
  close(returns.lambda_returns(**pick(data, "next_value"), lambda_=0.8), by_episode(data, reference))
  reference = lambda d: rlax.n_step_bootstrapped_returns(d["reward"], d["discount"], d["next_value"], 3)
  close(returns.n_step_returns(**pick(data, "next_value"), n=3), by_episode(data, reference))


@pytest.mark.parametrize("seed", range(3))
def test_vtrace_is_that_of_rlax(rlax, seed):
  data = trajectory(seed)
  actual = returns.vtrace(**pick(data, "value", "next_value", "ratio"))

  def reference(d):
    return rlax.vtrace_td_error_and_advantage(d["value"], d["next_value"], d["reward"], d["discount"], d["ratio"])

  close(actual.target - data["value"], by_episode(data, lambda d: reference(d).errors))
  close(jnp.minimum(1, data["ratio"]) * actual.advantage, by_episode(data, lambda d: reference(d).pg_advantage))
  blend = returns.vtrace(**pick(data, "value", "next_value", "ratio"), lambda_=0.7)
  errors = lambda d: rlax.vtrace(d["value"], d["next_value"], d["reward"], d["discount"], d["ratio"], 0.7)
  close(blend.target - data["value"], by_episode(data, errors))


@pytest.mark.parametrize("seed", range(3))
def test_retrace_is_that_of_rlax(rlax, seed):
  data = trajectory(seed)
  q = jax.random.normal(jax.random.key(seed), (LENGTH,))
  actual = returns.retrace(**pick(data), q=q, expected_next_q=data["next_value"], ratio=data["ratio"], lambda_=0.9)

  def reference(d):
    c = 0.9 * jnp.minimum(1.0, d["ratio"][1:])
    return rlax.general_off_policy_returns_from_q_and_v(d["q"][1:], d["next_value"], d["reward"], d["discount"], c)

  close(actual, by_episode({**data, "q": q}, reference))


def test_gae_is_that_of_stable_baselines3():
  buffers = pytest.importorskip("stable_baselines3.common.buffers")
  from gymnasium import spaces

  num_envs = 4
  many = [trajectory(seed) for seed in range(10, 10 + num_envs)]
  stacked = {name: np.stack([d[name] for d in many], axis=1) for name in many[0]}
  box = spaces.Box(-1, 1, (1,))
  buffer = buffers.RolloutBuffer(LENGTH, box, box, gae_lambda=0.9, gamma=GAMMA, n_envs=num_envs)
  truncated = stacked["last"] & (stacked["discount"] > 0)
  buffer.rewards[:] = stacked["reward"] + GAMMA * truncated * stacked["next_value"]
  buffer.values[:] = stacked["value"]
  buffer.episode_starts[1:] = stacked["last"][:-1]
  # Where the data end within an episode, its value comes from the caller.
  import torch

  buffer.compute_returns_and_advantage(torch.as_tensor(stacked["next_value"][-1]), stacked["last"][-1])
  gae = jax.vmap(lambda d: returns.compute_gae(**pick(d, "value", "next_value"), lambda_=0.9), 1, 1)
  actual = gae({name: jnp.asarray(x) for name, x in stacked.items()})
  close(actual, buffer.advantages)
  close(actual + stacked["value"], buffer.returns)
