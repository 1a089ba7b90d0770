"""DQN, DDPG and SAC whole, on probes whose values are known in closed form."""

import functools
import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.experiment import Mean
from mlnotes.flags import InputError
from mlnotes.rl import ddpg, dqn, sac
from mlnotes.rl.env import Box, Discrete, Environment, TimeStep
from mlnotes.rl.off_policy import learn

LENGTH = 4  # steps of an episode
GAMMA = 0.8
LOW, HIGH = -1.0, 5.0
METHODS = ("dqn", "ddpg", "sac")
each_method = pytest.mark.parametrize("method", METHODS)
# What runs once is compiled quickly.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Clock(NamedTuple):
  time: jax.Array
  terminates: jax.Array
  action: jax.Array


def make_clock(discrete, reward, action_size=0):
  """LENGTH steps to the end of an episode: by termination in one half of the episodes, by a time limit in the other.

  Observed are the time, which end it will be, and the action that was given last: (2 + action_size,). The time limit
  is not: without it all those states are the same. With `action_size` 0 actions have one component and stay unseen.
  """
  size = max(action_size, 1)

  def observe(state):
    return jnp.concatenate(
      [jnp.stack([state.terminates * state.time / LENGTH, state.terminates]), state.action[:action_size]]
    )

  def reset(key):
    terminates = jax.random.bernoulli(key).astype(jnp.float32)
    state = Clock(jnp.zeros([]), terminates, jnp.zeros(size))
    return state, observe(state)

  def step(key, state, action):
    action = jnp.broadcast_to(action, (size,)).astype(jnp.float32)
    state = Clock(state.time + 1, state.terminates, action)
    ended = state.time >= LENGTH
    return state, TimeStep(observe(state), reward(action), 1.0 - ended * state.terminates, ended, observe(state))

  actions = Discrete(2) if discrete else Box((size,), LOW, HIGH)
  return Environment("clock", reset, step, Box((2 + action_size,), -jnp.inf, jnp.inf), actions, LENGTH)


def build(method, env, **settings):
  module = importlib.import_module(f"experiments.rl.{method}")
  small = dict(
    steps=400, num_envs=2, train_every=4, gradient_steps=8, batch_size=32, replay_capacity=400, learning_starts=16,
    hidden=(32,), learning_rate=1e-2, tau=0.05, discount=GAMMA, eval_episodes=2,
  )  # fmt: skip
  small |= {"dqn": dict(target_period=1), "ddpg": {}, "sac": dict(initial_temperature=1e-4)}[method]
  config = module.Config(**{**small, **settings})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(module, "make_env", lambda name: env)
    return module.make(config), config


def value(method, config, state, observation):
  """The greedy value of `observation` by the trained networks."""
  if method == "dqn":
    return jnp.max(dqn.QNetwork(config.hidden, 2).apply(state.params, observation))
  if method == "ddpg":
    action = ddpg.Actor(config.hidden, 1).apply(state.params["actor"], observation)
    return ddpg.Critic(config.hidden).apply(state.params["critic"], observation, action)
  policy = sac.GaussianActor(config.hidden, 1).apply(state.params["actor"], observation)
  return jnp.mean(sac.make_critics(ddpg.Critic(config.hidden))(state.params["critics"], observation, policy.mode()))


@each_method
def test_a_time_limit_bootstraps_and_a_termination_does_not(method, key):
  """Reward 1: for ever worth 1 / (1 - gamma), though the time limit cuts episodes; with an end, a finite sum."""
  experiment, config = build(method, make_clock(method == "dqn", lambda action: jnp.float32(1.0)))
  init = quick_jit(experiment.init)
  run = jax.jit(
    lambda state: jax.lax.fori_loop(0, config.steps, lambda _, s: experiment.step(s, ())[0], state), donate_argnums=0
  )
  state = run(init(key, ()))
  found = quick_jit(lambda state, at: jax.vmap(lambda x: value(method, config, state, x))(at))
  at = jnp.array([[0.0, 0.0], [0.0, 1.0], [(LENGTH - 1) / LENGTH, 1.0]])
  forever, finite = 1 / (1 - GAMMA), sum(GAMMA**t for t in range(LENGTH))
  np.testing.assert_allclose(found(state, at), [forever, finite, 1.0], atol=0.2)


STARTS = 24


@functools.cache
def first_updates(method):
  """(experiment, states before and after each of four updates, their metrics); learning starts with the third.

  Each update acts 4 times in 2 environments. The reward is the mean of the action.
  """
  env = make_clock(method == "dqn", jnp.mean, action_size=3)
  experiment, _ = build(method, env, learning_starts=STARTS, gradient_steps=2)
  init, step = quick_jit(experiment.init), quick_jit(experiment.step)
  states, metrics = [init(jax.random.key(0), ())], []
  for _ in range(4):
    state, measured = step(states[-1], ())
    states.append(state)
    metrics.append(measured)
  return experiment, states, metrics


@each_method
def test_nothing_is_learned_before_there_is_enough_data(method):
  _, states, metrics = first_updates(method)
  name = "loss" if method == "dqn" else "critic_loss"
  assert all(isinstance(m[name], Mean) for m in metrics)
  assert [float(m[name].count) for m in metrics] == [0, 0, 2, 2]
  same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
  for earlier, later, learned in zip(states, states[1:], (False, False, True, True)):
    for field in ("params", "target", "opt_state"):
      assert same(getattr(earlier, field), getattr(later, field)) is not learned
  assert [int(s.replay.size) for s in states] == [0, 8, 16, 24, 32]


@pytest.mark.parametrize("method", ["ddpg", "sac"])
def test_actions_are_scaled_once_and_explore_in_every_component(method):
  """The environment saw [-1, 1] stretched to its bounds; every environment, step and component drew its own noise."""
  replay = first_updates(method)[1][-1].replay.data
  for rows in (slice(0, STARTS), slice(STARTS, STARTS + 8)):  # at random, then by the policy
    action = np.asarray(replay.action[rows])
    assert np.all(np.abs(action) <= 1) and np.unique(action).size == action.size
    seen = np.asarray(replay.next_observation[rows, 2:])
    np.testing.assert_allclose(seen, LOW + (action + 1) / 2 * (HIGH - LOW), rtol=1e-5)


@pytest.mark.parametrize("method", ["ddpg", "sac"])
def test_evaluation_acts_within_the_bounds(method):
  """The untrained greedy action is about 0 in [-1, 1], so that the environment is given the middle of its bounds."""
  experiment, states, _ = first_updates(method)
  returned = quick_jit(experiment.evaluate)(states[0], ())["episode_return"]
  assert float(returned.total / returned.count) / LENGTH == pytest.approx((LOW + HIGH) / 2, abs=0.1)


def test_learn_counts_its_steps():
  """Two steps of a known recursion, or none; the metrics are sums over the steps taken."""
  double = lambda x, add: (2 * x + add, {"x": x})
  run = jax.jit(lambda ready: learn(double, jnp.float32(1.0), jnp.array([1.0, 10.0]), ready))
  value, metrics = run(jnp.array(True))
  assert (float(value), float(metrics["x"].total), float(metrics["x"].count)) == (16.0, 4.0, 2.0)
  value, metrics = run(jnp.array(False))
  assert (float(value), float(metrics["x"].total), float(metrics["x"].count)) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
  "flag, value, expected",
  [
    ("tau", 0.0, r"--tau=0.0 is out of range: expected a number in \(0, 1\]"),
    ("batch_size", 0, "--batch_size=0"),
    ("replay_capacity", 3, "--replay_capacity=3 is out of range: expected .* or more"),
    ("learning_starts", 10**7, "--learning_starts=10000000 is out of range: expected 0 to"),
    ("hidden", (), "--hidden"),
  ],
)
def test_errors(flag, value, expected):
  module = importlib.import_module("experiments.rl.dqn")
  with pytest.raises(InputError, match=expected):
    module.Config(**{flag: value})


@pytest.mark.parametrize("method, name", [("dqn", "Pendulum-v1"), ("ddpg", "CartPole-v1"), ("sac", "CartPole-v1")])
def test_the_wrong_kind_of_actions_is_refused(method, name):
  module = importlib.import_module(f"experiments.rl.{method}")
  with pytest.raises(InputError, match=f"--env={name} has (continuous|discrete) actions"):
    module.make(module.Config(env=name))
