"""The rules against loops written from the book's pseudo-code, at episode ends of both kinds, and on known optima."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rl._tabular import TabularConfig, anneal_epsilon, make_exact_evaluation, make_tabular_experiment
from mlnotes.rl.dynamic_programming import policy_iteration
from mlnotes.rl.interaction import Actor, Noise, interact, learn_episodes
from mlnotes.rl.table import TABLE_ENVS, Dynamics, Table, TableState, read_table
from mlnotes.rl.tabular import RULES, Learner, Settings, Transition, epsilon_greedy, epsilon_greedy_value, init_learner

S, A, T = 5, 3, 120
ALPHA, GAMMA, EPSILON, LAMBDA = 0.3, 0.9, 0.2, 0.7
SETTINGS = Settings(ALPHA, 0.0, GAMMA, EPSILON, LAMBDA)


@functools.cache
def experience():
  """Random transitions in which a third of the episodes' ends are truncations."""
  rng = np.random.default_rng(0)
  last = rng.random(T) < 0.15
  discount = np.where(last & (rng.random(T) < 0.6), 0.0, 1.0)
  assert (last & (discount == 0)).sum() > 3 and (last & (discount == 1)).sum() > 3
  state = rng.integers(S, size=T + 1)
  after = np.where(last, rng.integers(S, size=T), state[1:])
  action = rng.integers(A, size=T + 1)
  # The next action is the one taken next, except where the episode ended.
  next_action = np.where(last, rng.integers(A, size=T), action[1:])
  reward = rng.normal(size=T)
  return Transition(
    *map(jnp.int32, (state[:T], action[:T])),
    *map(jnp.float32, (reward, discount)),
    jnp.asarray(last),
    *map(jnp.int32, (after, next_action)),
  )


def learn(rule, settings=SETTINGS, noise=None):
  noise = jnp.zeros((T, rule.noise_size)) if noise is None else noise
  start = init_learner(rule, S, A)._replace(table=jnp.stack([jnp.asarray(first_q()), *jnp.zeros((2, S, A))], -1))
  step = lambda learner, x: (rule.update(learner, x[0], settings, x[1]), None)
  return jax.jit(lambda start: jax.lax.scan(step, start, (experience(), noise))[0])(start)


def first_q():
  return np.random.default_rng(1).normal(size=(S, A)).astype(np.float32)


def rows():
  return zip(*(np.asarray(x).tolist() for x in experience()))


def check(learner, expected):
  np.testing.assert_allclose(learner.q, expected, rtol=2e-5, atol=2e-5)


def policy_of(q):
  p = np.full(A, EPSILON / A)
  best = np.flatnonzero(q == q.max())
  p[best] += (1 - EPSILON) / len(best)
  return p


@pytest.mark.parametrize("name", ["sarsa", "expected_sarsa", "q_learning"])
def test_one_step_rules(name):
  q = first_q().astype(np.float64)
  for s, a, r, d, _, s2, a2 in rows():
    following = {"sarsa": q[s2, a2], "expected_sarsa": policy_of(q[s2]) @ q[s2], "q_learning": q[s2].max()}[name]
    q[s, a] += ALPHA * (r + GAMMA * d * following - q[s, a])
  learner = learn(RULES[name]())
  check(learner, q)
  assert learner.visits.sum() == T


def test_step_sizes_fall_with_the_visits_of_the_pair():
  """With learning rate 1 and power 1, and no future, the value is the mean reward of the pair."""
  learner = learn(RULES["q_learning"](), Settings(1.0, 1.0, 0.0, EPSILON, 0.0))
  rewards = {}
  for s, a, r, *_ in rows():
    rewards.setdefault((s, a), []).append(r)
  assert min(map(len, rewards.values())) > 1
  for (s, a), values in rewards.items():
    np.testing.assert_allclose(learner.q[s, a], np.mean(values), rtol=1e-4, atol=1e-5)
    assert learner.visits[s, a] == len(values)


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize("name", ["sarsa_lambda", "watkins_q"])
def test_traces(name, replacing):
  """Sutton & Barto, first edition, figures 7.11 and 7.14, with a dictionary of traces that an episode's end empties."""
  q, traces = first_q().astype(np.float64), {}
  for s, a, r, d, last, s2, a2 in rows():
    best = int(np.argmax(q[s2]))
    following = q[s2, a2] if name == "sarsa_lambda" else q[s2, best]
    delta = r + GAMMA * d * following - q[s, a]
    traces[s, a] = 1.0 if replacing else traces.get((s, a), 0.0) + 1.0
    for pair in traces:
      q[pair] += ALPHA * delta * traces[pair]
      traces[pair] *= GAMMA * LAMBDA
    if last or (name == "watkins_q" and a2 != best):
      traces = {}
  check(learn(RULES[name](replacing=replacing)), q)


@pytest.mark.parametrize("first_visit", [False, True])
def test_monte_carlo_is_the_mean_of_all_returns(first_visit):
  q, returns, episode = first_q().astype(np.float64), {}, []
  for s, a, r, d, last, s2, _ in rows():
    episode.append((s, a, r))
    if not last:
      continue
    g = d * policy_of(q[s2]) @ q[s2]
    for t in reversed(range(len(episode))):
      s, a, r = episode[t]
      g = r + GAMMA * g
      if not first_visit or (s, a) not in [step[:2] for step in episode[:t]]:
        returns.setdefault((s, a), []).append(g)
    for pair in {step[:2] for step in episode}:
      q[pair] = np.mean(returns[pair])
    episode = []
  check(learn(RULES["monte_carlo"](first_visit=first_visit), Settings(1.0, 1.0, GAMMA, EPSILON, 0.0)), q)


def test_monte_carlo_with_many_visits_never_overshoots():
  """A pair met a hundred times in one episode moves to its mean return and not beyond."""
  rule = RULES["monte_carlo"]()
  one = Transition(*map(jnp.int32, (0, 0)), *map(jnp.float32, (1.0, 0.0)), jnp.array(False), *map(jnp.int32, (0, 0)))
  update = jax.jit(rule.update)
  learner = init_learner(rule, 1, 1)
  for i in range(100):
    learner = update(learner, one._replace(last=jnp.array(i == 99)), Settings(0.1, 0.0, 0.0, 0.1, 0.0), jnp.zeros(0))
  np.testing.assert_allclose(learner.q, 1.0, rtol=1e-5)


def test_dyna_q_plans_with_the_last_outcome_of_pairs_seen_before():
  steps = 4
  noise = np.random.default_rng(2).random((T, steps)).astype(np.float32)
  q, model = first_q().astype(np.float64), {}

  def improve(s, a, r, d, s2):
    q[s, a] += ALPHA * (r + GAMMA * d * q[s2].max() - q[s, a])

  for (s, a, r, d, _, s2, _), numbers in zip(rows(), noise):
    improve(s, a, r, d, s2)
    model.setdefault(s, {})[a] = (r, d, s2)
    for u in numbers.astype(np.float64):
      position = u * len(model)
      seen = list(model)[int(position)]
      taken = sorted(model[seen])
      chosen = taken[int((position - int(position)) * len(taken))]
      improve(seen, chosen, *model[seen][chosen])
  learner = learn(RULES["dyna_q"](steps), noise=jnp.asarray(noise))
  check(learner, q)
  assert learner.visits.sum() == T * (1 + steps)


def test_epsilon_greedy_has_its_probabilities_and_breaks_ties_evenly():
  uniform = (jnp.arange(3000) + 0.5) / 3000
  choose = jax.jit(jax.vmap(epsilon_greedy, (None, None, 0)))
  share = lambda q, epsilon: np.bincount(choose(jnp.array(q), epsilon, uniform), minlength=4) / 3000
  np.testing.assert_allclose(share([0.0, 5.0, 5.0, 1.0], 0.2), [0.05, 0.45, 0.45, 0.05], atol=2 / 3000)
  np.testing.assert_allclose(share([1.0, 1.0, 1.0, 1.0], 0.0), [0.25] * 4, atol=2 / 3000)
  np.testing.assert_allclose(share([0.0, 5.0, 5.0, 1.0], 1.0), [0.25] * 4, atol=2 / 3000)
  np.testing.assert_allclose(share([0.0, 0.0, 0.0, 1.0], 0.0), [0, 0, 0, 1])
  value = epsilon_greedy_value(jnp.array([0.0, 5.0, 5.0, 1.0]), 0.2)
  assert float(value) == pytest.approx(0.9 * 5 + 0.05, rel=1e-5)


# -- episodes ----------------------------------------------------------------------------------------------------------


def make_table(next_state, reward, terminated, time_limit):
  """A deterministic world from (S, A) lists, beginning in state 0."""
  next_state = np.array(next_state, np.int32)[..., None]
  initial = np.zeros(len(next_state), np.float32)
  initial[0] = 1
  ones = np.ones(next_state.shape, np.float32)
  dynamics = Dynamics(
    next_state, ones, np.float32(reward)[..., None] * ones, np.array(terminated)[..., None] & (ones > 0), initial
  )
  return Table("test", dynamics, time_limit, ("a", "b"))


@pytest.mark.parametrize("name", RULES)
def test_truncation_bootstraps_and_termination_does_not(name):
  """Reward 1 for ever, seen in episodes of 5 steps, is worth 1 / (1 - gamma); reward 1 and the end is worth 1."""
  rule = RULES[name]()
  settings = Settings(0.1, 0.0, GAMMA, EPSILON, 0.5)

  def learned(terminated):
    table = make_table([[0, 0]], [[1, 1]], [[terminated, terminated]], time_limit=5)
    noise = jax.random.uniform(jax.random.key(1), (1500, 3))
    fixed = lambda u, v, w: Noise(u, v, jnp.int32(0), w, jnp.full(rule.noise_size, w))

    def one(actor, u):
      return interact(table, rule, actor, fixed(*u), settings)[0], None

    zero = jnp.int32(0)
    actor = Actor(init_learner(rule, 1, 2), TableState(zero, zero), zero, jnp.zeros([]))
    return jax.jit(lambda actor: jax.lax.scan(one, actor, noise)[0])(actor).learner.q

  np.testing.assert_allclose(learned(False), 1 / (1 - GAMMA), rtol=0.02)
  np.testing.assert_allclose(learned(True), 1.0, rtol=1e-3)


def test_sarsas_action_at_a_truncation_is_chosen_from_the_final_observation():
  """Time limit 1: from state 0 always to state 1, where action 1 is best; state 0's best action is 0."""
  table = make_table([[1, 1], [1, 1]], [[1, 1], [0, 0]], [[False] * 2] * 2, time_limit=1)
  rule = RULES["sarsa"]()
  q = jnp.array([[4.0, -4.0], [5.0, 7.0]])
  zero, half = jnp.int32(0), jnp.float32(0.5)
  learner = Learner(jnp.stack([q, *jnp.zeros((2, 2, 2))], -1), ())
  actor = Actor(learner, TableState(zero, zero), zero, jnp.zeros([]))
  noise = Noise(half, half, zero, half, jnp.zeros(0))
  step = jax.jit(lambda actor: interact(table, rule, actor, noise, Settings(1.0, 0.0, GAMMA, 0.0, 0.0)))
  after, outcome = step(actor)
  assert float(after.learner.q[0, 0]) == pytest.approx(1 + GAMMA * 7)
  assert bool(outcome.last) and int(after.env.index) == 0 and int(after.env.time) == 0
  assert int(after.action) == 0 and float(after.episode_return) == 0 and float(outcome.episode_return) == 1


def test_epsilon_falls_on_a_line_and_stays():
  hparams = {"epsilon": jnp.float32(0.9), "final_epsilon": jnp.float32(0.1), "exploration_fraction": jnp.float32(0.5)}
  epsilon = anneal_epsilon(hparams, jnp.array([0.0, 0.25, 0.5, 0.99]))
  np.testing.assert_allclose(epsilon, [0.9, 0.5, 0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize("name", ["q_learning", "sarsa_lambda", "monte_carlo"])
def test_visits_are_counted_beyond_what_a_float32_and_an_int32_hold(name):
  """The step size of the 2^24 + 2nd update and of the 2^31st is that of so many updates, and the count goes on."""
  rule = RULES[name]()
  one = Transition(*map(jnp.int32, (0, 0)), *map(jnp.float32, (1.0, 0.0)), jnp.array(True), *map(jnp.int32, (0, 0)))
  update = jax.jit(rule.update)
  for low, high in [(2**20 - 1, 15), (0, 16), (1, 16), (2**20 - 1, 2047)]:
    learner = init_learner(rule, 1, 1)
    learner = learner._replace(table=jnp.array([[[0.0, low, high]]], jnp.float32))
    after = update(learner, one, Settings(1.0, 0.5, 0.9, 0.1, 0.0), jnp.zeros(0))
    count = np.asarray(after.table[0, 0], np.float64) @ [0, 1, 2**20]
    assert count == low + 2**20 * high + 1
    assert float(after.q[0, 0]) == pytest.approx(count**-0.5, rel=1e-6)


def test_a_run_may_be_longer_than_an_int32_counts():
  """Three billion steps: epsilon is half way down in the middle, and nothing overflows."""
  config = TabularConfig(steps=3_000_000, steps_per_update=1000, epsilon=0.8, final_epsilon=0.2)
  experiment = make_tabular_experiment(RULES["q_learning"](), config)

  def late(key):
    state = experiment.init(key, ())
    return experiment.step(state._replace(step=jnp.int32(1_500_000)), ())[1]["epsilon"]

  assert float(jax.jit(late)(jax.random.key(0))) == pytest.approx(0.5, abs=1e-5)


def test_rewards_and_steps_of_each_episode_are_kept_apart(key):
  """In the maze an episode's reward is 1 and no way is shorter than 14 steps; learning shortens it."""
  learn = lambda key: learn_episodes(
    read_table("DynaMaze"), RULES["dyna_q"](20), Settings(0.1, 0.0, 0.95, 0.1, 0.0), key, 20, chunk=100
  )
  rewards, steps = jax.jit(learn)(key)
  np.testing.assert_array_equal(rewards, np.ones(20))
  assert steps.min() >= 14 and steps[0] > 100 and steps[-10:].mean() < 25


def test_episodes_that_a_policy_never_ends_are_cut():
  """Staying is worth more than leaving, and nothing is explored: episodes of 7 steps, cut and so worth a future."""
  table = make_table([[0, 0]], [[1, -1]], [[False, True]], time_limit=0)
  learn = lambda key: learn_episodes(
    table, RULES["q_learning"](), Settings(0.5, 0.0, 0.9, 0.0, 0.0), key, 3, chunk=10, longest=7
  )
  rewards, steps = jax.jit(learn)(jax.random.key(1))
  np.testing.assert_array_equal(steps[-2:], [7, 7])
  np.testing.assert_array_equal(rewards[-2:], [7, 7])


# -- the optimum -------------------------------------------------------------------------------------------------------


def test_exact_evaluation_agrees_with_the_optimum_and_with_a_policy_that_goes_nowhere():
  table = read_table("CliffWalking-v1")
  config = TabularConfig(env="CliffWalking-v1")
  evaluate = jax.jit(make_exact_evaluation(table, config))
  stay = jnp.zeros((48, 4)).at[:, 3].set(1.0)  # always left, into the wall
  found = evaluate(stay)
  assert float(found["start_value"]) == pytest.approx(-100, rel=1e-3)
  assert float(found["episode_return"]) == -1000 and float(found["solved"]) == 0
  way = jnp.zeros((48, 4)).at[36, 0].set(1.0).at[24:35, 1].set(1.0).at[35, 2].set(1.0)
  found = evaluate(way)
  assert float(found["episode_return"]) == -13 and float(found["solved"]) == 1
  assert float(found["start_value"]) == pytest.approx(-(1 - 0.99**13) / 0.01, rel=1e-4)


@pytest.mark.parametrize("name", [*TABLE_ENVS, "DynaMaze"])
def test_without_a_discount_what_never_arrives_is_not_solved_and_the_best_policy_is(name):
  table = read_table(name)
  evaluate = jax.jit(make_exact_evaluation(table, TabularConfig(env=name, discount=1.0, tolerance=0.001)))
  untrained = evaluate(jnp.zeros((table.num_states, table.num_actions)))
  assert float(untrained["solved"]) == 0 and float(untrained["optimal_gap"]) > 0.5
  best = evaluate(jax.jit(policy_iteration)(table.dynamics, 1.0).policy)
  assert float(best["solved"]) == 1 and 0 <= float(best["optimal_gap"]) < 1e-3
  # The value is that of no other policy: no gap is negative, so none of these may be worth more.
  random = jax.vmap(evaluate)(jax.random.normal(jax.random.key(0), (20, table.num_states, table.num_actions)))
  assert np.all(random["start_value"] <= best["start_value"] * (1 + 1e-5 * np.sign(best["start_value"])))
  assert np.all(random["optimal_gap"] >= 0)


@pytest.mark.parametrize(
  ("name", "env", "settings"),
  [
    ("q_learning", "CliffWalking-v1", dict(steps=20, learning_rate=0.5)),
    ("dyna_q", "CliffWalking-v1", dict(steps=10, learning_rate=0.5)),
    (
      "q_learning",
      "FrozenLake-v1",
      dict(steps=300, learning_rate=1.0, step_size_power=0.6, epsilon=0.5, tolerance=0.1),
    ),
  ],
)
def test_the_optimum_is_found(name, env, settings, key):
  config = TabularConfig(env=env, **settings)
  experiment = make_tabular_experiment(RULES[name](), config)

  def train(key):
    step = lambda state, _: experiment.step(state, ())
    state, metrics = jax.lax.scan(step, experiment.init(key, ()), length=config.steps)
    return experiment.evaluate(state, ()), metrics, state

  evaluation, metrics, state = jax.jit(jax.vmap(train))(jax.random.split(key, 4))
  np.testing.assert_array_equal(evaluation["solved"].total, np.ones(4))
  np.testing.assert_array_equal(state.step, np.full(4, config.steps))
  early, late = (metrics["episode_return"].total[:, part].sum() for part in (slice(2), slice(-2, None)))
  count = metrics["episode_return"].count
  assert late / count[:, -2:].sum() > early / count[:, :2].sum()
