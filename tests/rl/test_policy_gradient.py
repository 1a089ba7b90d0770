"""REINFORCE and A2C: whole episodes with their ends, gradients beside exact ones, values where they are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rl import _on_policy, a2c, reinforce
from mlnotes.engine.program import Program, make_mesh, window_means
from mlnotes.nn.initializers import orthogonal
from mlnotes.rl.actor_critic import make_actor_critic
from mlnotes.rl.env import Box, Discrete, Environment, TimeStep
from mlnotes.rl.policy_gradient import masked_mean, masked_standardize, run_whole_episodes
from mlnotes.rl.probe import constant_reward_env
from mlnotes.rl.registry import make_env


@pytest.mark.parametrize("terminates", [True, False])
def test_whole_episodes_end_where_the_environment_says(terminates):
  env = constant_reward_env(time_limit=3, terminates=terminates)
  noise = jnp.zeros((6, 2))
  act = lambda noise, observation: jnp.zeros(2, jnp.int32)
  episodes = jax.jit(lambda key: run_whole_episodes(env, act, noise, key))(jax.random.key(0))
  np.testing.assert_array_equal(episodes.real[:, 0], [True, True, True, False, False, False])
  np.testing.assert_array_equal(episodes.last[:3, 0], [False, False, True])
  assert float(episodes.discount[2, 0]) == (0.0 if terminates else 1.0)
  np.testing.assert_array_equal(episodes.next_observation[:3, 0, 0], [1, 2, 3])


def test_masked_statistics_ignore_the_padding():
  x = np.array([[1.0, 5.0], [2.0, 1e9], [6.0, -1e9]], np.float32)
  real = np.array([[True, True], [True, False], [True, False]])
  kept = x[real]
  np.testing.assert_allclose(masked_mean(jnp.asarray(x), jnp.asarray(real)), kept.mean(), rtol=1e-6)
  scaled = np.asarray(masked_standardize(jnp.asarray(x), jnp.asarray(real)))
  np.testing.assert_allclose(scaled[real], (kept - kept.mean()) / kept.std(), rtol=1e-5)
  np.testing.assert_array_equal(scaled[~real], 0)


def test_padding_that_is_not_finite_reaches_neither_values_nor_gradients():
  x = jnp.array([[1.0, 5.0], [2.0, jnp.nan], [6.0, jnp.inf]])
  real = jnp.array([[True, True], [True, False], [True, False]])
  kept = np.array([1.0, 5.0, 2.0, 6.0])
  assert masked_mean(x, real) == kept.mean()
  np.testing.assert_array_equal(jax.grad(masked_mean)(x, real), real / 4)
  weights = jnp.arange(6.0).reshape(3, 2)
  found = jax.grad(lambda x: jnp.sum(weights * masked_standardize(x, real)))(x)
  scaled = lambda x: (x - jnp.mean(x)) / (jnp.std(x) + 1e-8)
  exact = jax.grad(lambda x: jnp.sum(weights[real] * scaled(x)))(jnp.asarray(kept, jnp.float32))
  np.testing.assert_allclose(np.asarray(found)[real], exact, rtol=1e-4, atol=1e-6)
  assert not np.any(np.asarray(found)[~real])
  # Nothing to divide by: 0, with a gradient.
  same = jnp.full((3, 2), 2.0)
  assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(weights * masked_standardize(x, real)))(same)))


def test_after_its_end_an_episode_holds_nothing_new():
  """An environment whose numbers overflow when it is acted on beyond its end."""
  base = constant_reward_env(time_limit=3, terminates=True)

  def step(key, time, action):
    time, timestep = base.step(key, time, action)
    poison = jnp.where(time > 3, jnp.nan, 0.0)
    seen = timestep.next_observation + poison
    return time, timestep._replace(reward=timestep.reward + poison, observation=seen, next_observation=seen)

  act = lambda noise, observation: jnp.zeros(2, jnp.int32)
  run = jax.jit(lambda key: run_whole_episodes(base._replace(step=step), act, jnp.zeros((6, 2)), key))
  episodes = run(jax.random.key(0))
  assert np.all(np.isfinite(episodes.observation)) and np.all(np.isfinite(episodes.next_observation))
  np.testing.assert_array_equal(episodes.reward, 1)
  np.testing.assert_array_equal(np.sum(episodes.real, 0), 3)


def test_orthogonal_initialisation():
  for shape in ((7, 7), (3, 20), (20, 3), (1, 5)):
    kernel = np.asarray(orthogonal(2.0)(jax.random.key(0), shape), np.float64)
    gram = kernel @ kernel.T if shape[0] <= shape[1] else kernel.T @ kernel
    np.testing.assert_allclose(gram, 4 * np.eye(min(shape)), atol=1e-5)
  several = jax.vmap(lambda key: orthogonal(1.0)(key, (2, 2)))(jax.random.split(jax.random.key(1), 4000))
  # Uniform: every entry has mean 0 and variance 1/2, and half of the determinants are negative.
  np.testing.assert_allclose(np.mean(several, 0), 0, atol=0.05)
  np.testing.assert_allclose(np.var(several, 0), 0.5, atol=0.03)
  np.testing.assert_allclose(np.mean(np.linalg.det(several) > 0), 0.5, atol=0.04)


@pytest.mark.thorough
def test_actor_critic_shapes_and_first_policy():
  for name, kind in (("CartPole-v1", Discrete), ("Pendulum-v1", Box), ("Breakout-MinAtar", Discrete)):
    env = make_env(name)
    assert isinstance(env.actions, kind)
    networks = make_actor_critic(env, (8,))
    params = jax.jit(networks.init)(jax.random.key(0))
    observation = jnp.ones((3, 2, *env.observations.shape))
    policy = jax.jit(networks.policy)(params, observation)
    assert networks.value(params, observation).shape == (3, 2)
    assert policy.log_prob(policy.mode()).shape == (3, 2)
    if kind is Discrete:
      # Nearly uniform at the start.
      np.testing.assert_allclose(policy.entropy(), np.log(env.actions.n), rtol=1e-3)
    noise = networks.sample_noise(jax.random.key(1), (3, 2))
    assert policy.sample(noise).shape == policy.mode().shape


def test_reinforce_points_along_the_exact_gradient(monkeypatch):
  """One step, two actions, rewards 0 and 1: dJ/dlogit_1 = p (1 - p); averaged over seeds the estimate is that."""
  base = constant_reward_env(time_limit=1, terminates=True)

  def step(key, state, action):
    state, timestep = base.step(key, state, action)
    return state, timestep._replace(reward=action.astype(jnp.float32))

  monkeypatch.setattr(reinforce, "make_env", lambda name: base._replace(step=step))
  config = reinforce.Config(
    num_envs=2048, optimizer="sgd", momentum=0.0, learning_rate=1.0, schedule="constant", baseline=False, hidden=(4,),
    steps=10,
  )  # fmt: skip
  experiment = reinforce.make(config)
  state = jax.jit(experiment.init)(jax.random.key(0), ())
  after, metrics = jax.jit(experiment.step)(state, ())
  bias = lambda state: np.asarray(state.params["actor"]["params"]["Dense_1"]["bias"], np.float64)
  moved = bias(after) - bias(state)
  # Sampling error of the mean of 2048: about .011.
  np.testing.assert_allclose(moved, [-0.25, 0.25], atol=0.035)
  np.testing.assert_allclose(metrics["episode_return"], 0.5, atol=0.05)


@pytest.mark.parametrize("terminates", [True, False])
def test_a2c_values_of_a_constant_reward(terminates, monkeypatch):
  env = constant_reward_env(time_limit=4, terminates=terminates, clock=terminates)
  monkeypatch.setattr(_on_policy, "make_env", lambda name: env)
  config = a2c.Config(num_envs=4, rollout_length=6, discount=0.9, learning_rate=1e-2, hidden=(32,), steps=2000)
  experiment = a2c.make(config)
  state = jax.jit(experiment.init)(jax.random.key(0), ())
  state = jax.jit(lambda state: jax.lax.fori_loop(0, 2000, lambda _, s: experiment.step(s, ())[0], state))(state)
  values = make_actor_critic(env, config.hidden).value(state.params, jnp.arange(4.0)[:, None] * terminates)
  exact = [sum(0.9**k for k in range(4 - t)) for t in range(4)] if terminates else [10.0] * 4
  np.testing.assert_allclose(values, exact, rtol=0.06)


@pytest.mark.thorough
def test_reinforce_learns_cartpole_and_counts_real_steps():
  config = reinforce.Config(steps=60)
  program = Program(reinforce.make(config), reinforce.make_feeds(config), (0, 1), make_mesh(1))
  state = program.init()
  lengths = 0.0
  for _ in range(5):
    state, window = program.update(state, program.empty_window(), 1)
    lengths = lengths + 4 * window_means(window)["episode_length"]
  np.testing.assert_array_equal(state.env_steps, lengths)
  state, _ = program.update(state, program.empty_window(), 55)
  assert np.all(program.evaluate(state)["episode_return"] > 150)


# -- one update of REINFORCE beside its formulas ----------------------------------------------------------------------


def steps_env(size=7, limit=3):
  """A walk over numbered states that ends by falling off (termination) or at the limit (truncation); rewards vary."""

  def reset(key):
    place = jax.random.randint(key, (), 0, size)
    return (place, jnp.zeros([], jnp.int32)), place

  def step(key, state, action):
    place, time = state[0] + 1 + action, state[1] + 1
    fell, late = place >= size, time >= limit
    seen = jnp.minimum(place, size - 1)
    reward = 1.0 + 0.5 * action - 0.2 * state[0]
    return (place, time), TimeStep(seen, reward, 1.0 - fell, fell | late, seen)

  return Environment("steps", reset, step, Discrete(size), Discrete(2), limit)


REINFORCE = {
  "baseline": dict(normalize_returns=True, baseline=True),
  "plain": dict(normalize_returns=False, baseline=False),
  "both": dict(normalize_returns=False, baseline=True),
}


@pytest.mark.parametrize("variant", REINFORCE)
def test_a_reinforce_update_is_descent_on_the_formulas(variant, monkeypatch):
  """Returns by loops over each episode; a truncated one goes on with the baseline, an ended one with nothing."""
  env, flags = steps_env(), REINFORCE[variant]
  config = reinforce.Config(
    num_envs=12, discount=0.8, hidden=(4,), steps=4, optimizer="sgd", momentum=0.0, learning_rate=0.3,
    entropy_weight=0.1, value_weight=0.7, **flags,
  )  # fmt: skip
  monkeypatch.setattr(reinforce, "make_env", lambda name: env)
  run_episodes, recorded = reinforce.run_whole_episodes, []

  def spy(*args):
    recorded.append(run_episodes(*args))
    return recorded[-1]

  monkeypatch.setattr(reinforce, "run_whole_episodes", spy)
  experiment = reinforce.make(config)

  @jax.jit
  def step(state):
    state, metrics = experiment.step(state, ())
    return state, metrics, recorded[-1]

  before = jax.jit(experiment.init)(jax.random.key(0), ())
  steps_so_far, starts = 0, []
  for number in range(2):
    after, metrics, episodes = step(before)
    starts.append(np.asarray(episodes.observation[0]))
    with jax.numpy_rank_promotion("allow"):
      expected, lengths = reinforce_update(
        config, before.params, jax.tree.map(np.asarray, episodes), 0.3 - 0.075 * number
      )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=5e-6), after.params, expected)
    assert float(metrics["episode_length"]) == pytest.approx(np.mean(lengths)) and max(lengths) == 3
    earned = [np.sum(episodes.reward[:length, n]) for n, length in enumerate(lengths)]
    assert float(metrics["episode_return"]) == pytest.approx(np.mean(earned), rel=1e-5)
    # Steps so far are a count: they stand with the evaluation, and nowhere among what is averaged over updates.
    steps_so_far += sum(lengths)
    counted = jax.jit(experiment.evaluate)(after, ())["env_steps"]
    assert float(counted.total / counted.count) == steps_so_far and "env_steps" not in metrics
    before = after
  assert np.any(starts[0] != starts[1])


def test_reinforce_acts_within_bounds_and_by_the_networks_of_its_flags(monkeypatch):
  """The reward is the size of the action that the environment was given, whose bound the policy exceeds by far."""
  base = constant_reward_env(time_limit=3, terminates=True, actions=Box((1,), -1.0, 1.0))

  def step(key, state, action):
    state, timestep = base.step(key, state, action)
    return state, timestep._replace(reward=jnp.abs(action[0]))

  asked, make = [], reinforce.make_actor_critic
  monkeypatch.setattr(reinforce, "make_env", lambda name: base._replace(step=step))
  monkeypatch.setattr(reinforce, "make_actor_critic", lambda env, *rest: asked.append(rest) or make(env, *rest))
  flags = dict(hidden=(4, 3), activation="relu", initial_std=50.0, precision="bfloat16")
  experiment = reinforce.make(reinforce.Config(steps=10, **flags))
  assert asked == [((4, 3), "relu", 50.0, jnp.bfloat16)]
  _, metrics = jax.jit(experiment.step)(jax.jit(experiment.init)(jax.random.key(0), ()), ())
  assert 2 < float(metrics["episode_return"]) <= 3


def reinforce_update(config, params, episodes, rate):
  """(parameters, lengths): one step on every (observation, action, weight) of the real steps."""

  def network(which, params, x):
    layers = params[which]["params"]
    hidden = jnp.tanh(x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
    return hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]

  value = lambda params, x: network("critic", params, jax.nn.one_hot(x, 7))[..., 0]
  rows, lengths, ends = [], [], set()
  for n in range(config.num_envs):
    length = int(np.argmax(episodes.last[:, n])) + 1
    lengths.append(length)
    terminated = episodes.discount[length - 1, n] == 0
    ends.add(bool(terminated))
    future = 0.0
    if config.baseline and not terminated:
      future = float(value(params, episodes.next_observation[length - 1, n]))
    for t in reversed(range(length)):
      future = episodes.reward[t, n] + config.discount * future
      rows.append((episodes.observation[t, n], episodes.action[t, n], future))
  assert ends == {True, False}
  x, action, returns = (jnp.asarray(column) for column in zip(*rows))
  weight = returns - value(params, x) if config.baseline else returns
  if config.normalize_returns:
    weight = (weight - jnp.mean(weight)) / jnp.std(weight)

  def loss(params):
    log_p = jax.nn.log_softmax(network("actor", params, jax.nn.one_hot(x, 7)))
    total = -jnp.mean(log_p[jnp.arange(len(x)), action] * weight)
    total += 0.1 * jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=1))
    return total + (0.7 * jnp.mean((value(params, x) - returns) ** 2) / 2 if config.baseline else 0)

  return jax.tree.map(lambda p, g: p - rate * g, params, jax.jit(jax.grad(loss))(params)), lengths
