"""Semi-gradient SARSA against the boxes of Sutton & Barto written out in NumPy, and on chains with known values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rl import linear_sarsa
from mlnotes.rl import linear
from mlnotes.rl.env import Box, Discrete, Environment, TimeStep
from mlnotes.rl.registry import make_env
from mlnotes.rl.tiles import OBSERVATION_BOUNDS, compute_linear_value, make_tiling, tile_indices

GAMMA, ALPHA = 0.9, 0.1
FEATURES, TILINGS, ACTIONS = 12, 3, 2


def make_episodes(seed, lengths, truncated=()):
  """Episodes of random pairs and rewards; each visited pair is TILINGS active features and an action."""
  rng = np.random.default_rng(seed)
  episodes = []
  for i, length in enumerate(lengths):
    per_tiling = FEATURES // TILINGS
    active = rng.integers(0, per_tiling, (length + 1, TILINGS)) + per_tiling * np.arange(TILINGS)
    action = rng.integers(0, ACTIONS, length + 1)
    episodes.append((active, action, rng.normal(size=length), i in truncated))
  return episodes


def run_learner(learner, episodes, trace_decay=0.0):
  """The weights after every episode, as the learner under test sees them one transition at a time."""
  update = jax.jit(learner.update)
  memory, found = learner.init(), []
  for active, action, reward, truncated in episodes:
    for t in range(len(reward)):
      last = t == len(reward) - 1
      transition = linear.Transition(
        active=jnp.asarray(active[t], jnp.int32),
        action=jnp.int32(action[t]),
        reward=jnp.float32(reward[t]),
        discount=jnp.float32(0.0 if last and not truncated else GAMMA),
        last=jnp.asarray(last),
        next_active=jnp.asarray(active[t + 1], jnp.int32),
        next_action=jnp.int32(action[t + 1]),
      )
      memory = update(memory, transition, jnp.float32(ALPHA), jnp.float32(trace_decay))
    found.append(np.asarray(memory.weights))
  return found


def tiling_of_test():
  return make_tiling((0.0,), (1.0,), TILINGS, FEATURES // TILINGS - 1)


def n_step_sarsa_box(episodes, n):
  """The box in section 10.2, with its times t, T and tau; after a truncation S_T has a value, its own."""
  w, found = np.zeros((FEATURES, ACTIONS)), []
  q = lambda active, action: w[active, action].sum()
  for active, action, reward, truncated in episodes:
    length, t = np.inf, 0
    while True:
      if t < length and t + 1 == len(reward):
        length = t + 1
        end_value = q(active[t + 1], action[t + 1]) if truncated else 0.0
      tau = t - n + 1
      if tau >= 0:
        target = sum(GAMMA ** (i - tau - 1) * reward[i - 1] for i in range(tau + 1, int(min(tau + n, length)) + 1))
        if tau + n < length:
          target += GAMMA**n * q(active[tau + n], action[tau + n])
        else:
          target += GAMMA ** (length - tau) * end_value
        w[active[tau], action[tau]] += ALPHA * (target - q(active[tau], action[tau]))
      if tau == length - 1:
        break
      t += 1
    found.append(w.copy())
  return found


@pytest.mark.parametrize("n", [1, 2, 5])
def test_n_step_sarsa_is_the_box_of_the_book(n):
  """Episodes longer than n, as long, and shorter; two that end by truncation."""
  episodes = make_episodes(n, (9, 3, 1, 5, 12, 7, 2), truncated=(3, 5))
  found = run_learner(linear.make_n_step_sarsa(tiling_of_test(), ACTIONS, n), episodes)
  np.testing.assert_allclose(found, n_step_sarsa_box(episodes, n), rtol=1e-4, atol=1e-6)


def sarsa_lambda_box(episodes, trace_decay, replacing):
  """The box in section 12.7, feature by feature."""
  w, found = np.zeros((FEATURES, ACTIONS)), []
  for active, action, reward, truncated in episodes:
    z = np.zeros_like(w)
    for t in range(len(reward)):
      error = reward[t]
      for i in active[t]:
        error -= w[i, action[t]]
        z[i, action[t]] = 1 if replacing else z[i, action[t]] + 1
      if t + 1 < len(reward) or truncated:
        for i in active[t + 1]:
          error += GAMMA * w[i, action[t + 1]]
      w += ALPHA * error * z
      z *= GAMMA * trace_decay
    found.append(w.copy())
  return found


@pytest.mark.parametrize("traces", ["accumulating", "replacing"])
def test_sarsa_lambda_is_the_box_of_the_book(traces):
  episodes = make_episodes(0, (15, 4, 1, 20, 6), truncated=(1, 3))
  found = run_learner(linear.make_sarsa_lambda(tiling_of_test(), ACTIONS, traces), episodes, 0.8)
  np.testing.assert_allclose(found, sarsa_lambda_box(episodes, 0.8, traces == "replacing"), rtol=1e-4, atol=1e-6)
  other = sarsa_lambda_box(episodes, 0.8, traces != "replacing")
  assert np.abs(np.array(found) - other).max() > 1e-3


def online_lambda_return_algorithm(episode, trace_decay):
  """Section 12.4: at every horizon h all updates are made anew, towards the lambda-returns that h allows."""
  active, action, reward, _ = episode
  q = lambda w, t: w[active[t], action[t]].sum() if t < len(reward) else 0.0
  best = [np.zeros((FEATURES, ACTIONS))]  # best[k] is w_k^k, which values S_{k+1} in the returns

  def n_step(t, n):
    rewards = sum(GAMMA**k * reward[t + k] for k in range(n))
    return rewards + GAMMA**n * q(best[t + n - 1], t + n)

  for horizon in range(1, len(reward) + 1):
    w = np.zeros((FEATURES, ACTIONS))
    for t in range(horizon):
      span = horizon - t
      target = trace_decay ** (span - 1) * n_step(t, span)
      target += sum((1 - trace_decay) * trace_decay ** (n - 1) * n_step(t, n) for n in range(1, span))
      w[active[t], action[t]] += ALPHA * (target - q(w, t))
    best.append(w)
  return best[-1]


@pytest.mark.parametrize("trace_decay", [0.5, 0.9])
def test_dutch_traces_are_exactly_the_online_lambda_return_algorithm(trace_decay):
  """van Seijen & Sutton 2014: what true online means. Both kinds of plain traces only come near."""
  episodes = make_episodes(2, (12,))
  run = lambda traces: run_learner(linear.make_sarsa_lambda(tiling_of_test(), ACTIONS, traces), episodes, trace_decay)
  expected = online_lambda_return_algorithm(episodes[0], trace_decay)
  np.testing.assert_allclose(run("dutch")[0], expected, rtol=1e-4, atol=1e-6)
  assert np.abs(run("accumulating")[0] - expected).max() > 1e-3


def test_without_decay_every_kind_of_trace_is_one_step_sarsa():
  episodes = make_episodes(3, (8, 5, 3), truncated=(1,))
  expected = n_step_sarsa_box(episodes, 1)
  for traces in ("accumulating", "replacing", "dutch"):
    found = run_learner(linear.make_sarsa_lambda(tiling_of_test(), ACTIONS, traces), episodes, 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=traces)


def test_fewer_than_one_step_is_refused():
  with pytest.raises(ValueError, match="n = 0"):
    linear.make_n_step_sarsa(tiling_of_test(), ACTIONS, 0)


def test_epsilon_greedy_explores_at_its_rate_and_breaks_ties_evenly():
  noise = jax.random.uniform(jax.random.key(0), (40_000, 5))
  q = jnp.array([1.0, 3.0, 3.0, -1.0])
  frequencies = jax.jit(
    lambda noise, epsilon: jnp.bincount(jax.vmap(linear.epsilon_greedy, (None, 0, None))(q, noise, epsilon), length=4)
  )
  for epsilon in (0.0, 0.4, 1.0):
    share = np.asarray(frequencies(noise, jnp.float32(epsilon))) / 40_000
    explore, best = epsilon / 4, epsilon / 4 + (1 - epsilon) / 2
    np.testing.assert_allclose(share, [explore, best, best, explore], atol=0.012)


# -- in an environment -----------------------------------------------------------------------------------------------

CHAIN = 10


def make_chain(time_limit, goal_terminates=True):
  """Ten places in [0, 1); right leads to the goal and left back, -1 per step. Starts anywhere."""
  place = lambda state: ((state[0] + 0.5) / CHAIN)[None]

  def reset(key):
    state = (jax.random.randint(key, (), 0, CHAIN).astype(jnp.float32), jnp.zeros([], jnp.int32))
    return state, place(state)

  def step(key, state, action):
    position = jnp.maximum(state[0] + jnp.where(action == 1, 1.0, -1.0), 0.0)
    time = state[1] + 1
    arrived = (position >= CHAIN) & goal_terminates
    position = jnp.minimum(position, CHAIN - 1.0)
    discount = 1.0 - arrived.astype(jnp.float32)
    state = (position, time)
    return state, TimeStep(place(state), jnp.float32(-1), discount, arrived | (time >= time_limit), place(state))

  return Environment("Chain", reset, step, Box((1,), 0.0, 1.0), Discrete(2), time_limit)


TILING = make_tiling((0.0,), (1.0,), 4, CHAIN)
LEARNERS = {
  "three_steps": linear.make_n_step_sarsa(TILING, 2, 3),
  "dutch": linear.make_sarsa_lambda(TILING, 2, "dutch"),
}


def train_on(env, learner, num_steps, discount):
  settings = dict(step_size=0.3 / 4, trace_decay=0.7, epsilon=0.1, discount=discount)

  @jax.jit
  def learn(key):
    init_key, key = jax.random.split(key)
    agent = linear.init_agent(env, TILING, learner, init_key, 0.1)
    agent, episodes = linear.learn(env, TILING, learner, agent, key, num_steps, **settings)
    places = (jnp.arange(CHAIN) + 0.5)[:, None] / CHAIN
    return jax.vmap(lambda x: compute_linear_value(agent.memory.weights, tile_indices(TILING, x)))(places), episodes

  return jax.tree.map(np.asarray, learn(jax.random.key(1)))


@pytest.mark.parametrize("name", LEARNERS)
def test_every_method_finds_the_way_to_the_goal_and_how_far_it_is(name):
  """Optimum: always right, 10 - i steps from place i; a tenth of the actions are random, which costs a little."""
  q, episodes = train_on(make_chain(1000), LEARNERS[name], 20_000, 1.0)
  assert (q.argmax(1) == 1).all()
  np.testing.assert_allclose(q[:, 1], -1.1 * (CHAIN - np.arange(CHAIN)), atol=1.5)
  ended = episodes.last
  assert episodes.episode_length[ended][-200:].mean() < 7
  # Episodes follow one another without a gap: their lengths are the distances between their ends.
  np.testing.assert_array_equal(episodes.episode_length[ended][1:], np.diff(np.flatnonzero(ended)))
  np.testing.assert_array_equal(episodes.episode_return, -episodes.episode_length)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_time_limit_does_not_shorten_what_is_expected(name):
  """-1 for ever, cut every 4 steps: everything is worth -1 / (1 - gamma) = -5, not the -2.95 of four steps."""
  q, episodes = train_on(make_chain(4, goal_terminates=False), LEARNERS[name], 20_000, 0.8)
  np.testing.assert_allclose(q, -5.0, atol=0.05)
  np.testing.assert_array_equal(np.flatnonzero(episodes.last)[:5], [3, 7, 11, 15, 19])


def test_mountain_car_is_climbed():
  config = linear_sarsa.Config(steps=60, eval_episodes=20)
  experiment = linear_sarsa.make(config)

  @functools.partial(jax.jit, static_argnums=1)
  def train(key, steps):
    state = jax.lax.fori_loop(0, steps, lambda _, state: experiment.step(state, ())[0], experiment.init(key, ()))
    return experiment.evaluate(state, ())["episode_return"]

  result = train(jax.random.key(0), config.steps)
  assert float(result.total / result.count) > -125  # -200: never arrived


@pytest.mark.parametrize("env", OBSERVATION_BOUNDS)
def test_no_offered_environment_makes_more_weights_than_a_step_can_afford(env):
  """Every step with traces goes through all weights: half a million of them take about a millisecond."""
  config = linear_sarsa.Config.tuned(env=env)
  state = jax.eval_shape(linear_sarsa.make(config).init, jax.random.key(0), ())
  assert state.params.size <= 2**18
  assert state.params.shape[1] == make_env(env).actions.n
