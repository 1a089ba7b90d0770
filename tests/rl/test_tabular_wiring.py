"""What stands between flags, steps and reports of the tabular experiments: each flag has its effect and no other."""

import importlib

import jax
import numpy as np
import pytest

from experiments.rl import _agent as rl_experiment, _tabular as te
from mlnotes.engine.experiment import stream_key
from mlnotes.rl.table import Dynamics, Table
from mlnotes.rl.tabular import RULES

STEPS = 40
METHODS = ("q_learning", "sarsa", "expected_sarsa", "dyna_q", "monte_carlo", "sarsa_lambda", "watkins_q")
SHARED = dict(
  steps=4, steps_per_update=STEPS, learning_rate=0.5, step_size_power=0.3, discount=0.8, epsilon=0.9, final_epsilon=0.3,
  exploration_fraction=0.5, initial_value=0.25,
)  # fmt: skip
CASES = {name: (name, {}) for name in METHODS} | {
  "two planning steps": ("dyna_q", dict(planning_steps=2)),
  "every visit": ("monte_carlo", dict(visits="every")),
  "accumulating": ("sarsa_lambda", dict(traces="accumulating", trace_decay=0.6)),
  "accumulating, cut": ("watkins_q", dict(traces="accumulating", trace_decay=0.6)),
}


def make_walk():
  """Five places in a row: ends pay and end the episode, as does the fifth step; no two rewards are the same.

  Actions go left, stay, and go right, from a first place that is one of three.
  """
  places, moves = 5, (-1, 0, 1)
  after = np.clip(np.arange(places)[:, None] + moves, 0, places - 1).astype(np.int32)
  ends = (after != np.arange(places)[:, None]) & np.isin(after, [0, places - 1])
  reward = np.where(ends, np.where(after == 0, -0.7, 1.3), 0.1 * (7 * np.arange(15) % 15).reshape(places, 3) - 0.6)
  initial = np.float32([0, 0.25, 0.5, 0.25, 0])
  ones = np.ones((places, 3, 1), np.float32)
  dynamics = Dynamics(after[..., None], ones, np.float32(reward)[..., None], ends[..., None], initial)
  return Table("walk", dynamics, 5, ("left", "stay", "right"))


WALK = make_walk()


def load(name):
  return importlib.import_module(f"experiments.rl.{name}")


def config_of(case):
  name, given = CASES[case]
  return load(name).Config(**{**SHARED, **given})


@pytest.fixture(scope="module")
def runs():
  """{case: (first state, learners after each update, metrics of each)}, all as one program."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(te, "read_table", lambda name: WALK)
    patch.setattr(te, "make_exact_evaluation", lambda table, config: None)  # tested by itself, and slow to make
    experiments = {case: load(name).make(config_of(case)) for case, (name, _) in CASES.items()}

  def run(experiment, key):
    start = experiment.init(key, ())

    def advance(state, _):
      state, metrics = experiment.step(state, ())
      return state, (state.actor.learner, metrics)

    _, (learners, metrics) = jax.lax.scan(advance, start, length=2)
    return start, learners, metrics

  key = jax.random.key(3)
  return jax.device_get(jax.jit(lambda: {c: run(e, jax.random.clone(key)) for c, e in experiments.items()})())


def choose(q, epsilon, uniform):
  """Below epsilon any action, else one of the best: which, by where the number lies in its part."""
  if uniform < epsilon:
    among, position = np.arange(len(q)), uniform / epsilon
  else:
    among, position = np.flatnonzero(q == q.max()), (uniform - epsilon) / (1 - epsilon)
  return int(among[int(position * len(among))])


class Loop:
  """The method written out in Python, fed with the outcomes that the table gives for the same numbers."""

  def __init__(self, name, config):
    self.name, self.config = name, config
    shape = (WALK.num_states, WALK.num_actions)
    self.q, self.count = np.full(shape, config.initial_value), np.zeros(shape)
    self.traces, self.episode, self.model = np.zeros(shape), [], {}

  def policy(self, s, epsilon):
    best = self.q[s] == self.q[s].max()
    return epsilon / len(best) + (1 - epsilon) * best / best.sum()

  def move(self, s, a, target):
    self.count[s, a] += 1
    rate = self.config.learning_rate / self.count[s, a] ** self.config.step_size_power
    self.q[s, a] += rate * (target - self.q[s, a])

  def learn(self, s, a, r, continues, last, after, next_action, epsilon, numbers):
    gamma, q = self.config.discount * continues, self.q
    if self.name == "sarsa":
      self.move(s, a, r + gamma * q[after, next_action])
    elif self.name == "expected_sarsa":
      self.move(s, a, r + gamma * self.policy(after, epsilon) @ q[after])
    elif self.name in ("q_learning", "dyna_q"):
      self.move(s, a, r + gamma * q[after].max())
    if self.name == "dyna_q":
      self.model.setdefault(s, {})[a] = (r, continues, after)
      for u in numbers:
        position = float(u) * len(self.model)
        seen = list(self.model)[int(position)]
        taken = sorted(self.model[seen])
        chosen = taken[int((position - int(position)) * len(taken))]
        r, continues, after = self.model[seen][chosen]
        self.move(seen, chosen, r + self.config.discount * continues * q[after].max())
    elif self.name in ("sarsa_lambda", "watkins_q"):
      greedy = q[after].max()
      error = r + gamma * (greedy if self.name == "watkins_q" else q[after, next_action]) - q[s, a]
      self.traces[s, a] = 1 if self.config.traces == "replacing" else self.traces[s, a] + 1
      self.count[s, a] += 1
      cut = last or (self.name == "watkins_q" and q[after, next_action] != greedy)
      q += self.config.learning_rate / self.count[s, a] ** self.config.step_size_power * error * self.traces
      self.traces *= 0 if cut else self.config.discount * self.config.trace_decay
    elif self.name == "monte_carlo":
      self.episode.append((s, a, r))
      if last:
        g = continues * (self.policy(after, epsilon) @ q[after])
        found = {}
        for t in reversed(range(len(self.episode))):
          s, a, r = self.episode[t]
          g = r + self.config.discount * g
          first = (s, a) not in [step[:2] for step in self.episode[:t]]
          if first or self.config.visits == "every":
            found.setdefault((s, a), []).append(g)
        for pair, returns in found.items():
          self.count[pair] += len(returns)
          rate = self.config.learning_rate / self.count[pair] ** self.config.step_size_power
          q[pair] += min(1, len(returns) * rate) * (np.mean(returns) - q[pair])
        self.episode = []


@pytest.mark.parametrize("case", CASES)
def test_two_updates_are_the_loop_of_the_book_with_the_flags_as_given(case, runs):
  """Action values, visits and every metric of each update, from the same random numbers."""
  config, name = config_of(case), CASES[case][0]
  start, learners, metrics = runs[case]
  loop, dynamics = Loop(name, config), jax.tree.map(np.asarray, WALK.dynamics)
  rule = RULES[name](*([config.planning_steps] if name == "dyna_q" else []))
  place, time, action = int(start.actor.env.index), 0, int(start.actor.action)
  earned, ends = 0.0, []
  for update in range(2):
    noise = jax.device_get(te.draw_noise(WALK, rule, stream_key(jax.random.key(3), "interact", update), STEPS))
    rewards, returns, lengths = 0.0, [], []
    for t in range(STEPS):
      # The first half of the run takes epsilon from .9 to .3.
      done = (update * STEPS + t) / (config.steps * STEPS)
      epsilon = max(0.3, 0.9 - 0.6 * done / 0.5)
      if not rule.looks_ahead:
        action = choose(loop.q[place], epsilon, noise.explore[t])
      at = (place, action, 0)
      after, reward, terminated = (
        int(dynamics.next_state[at]),
        float(dynamics.reward[at]),
        bool(dynamics.terminated[at]),
      )
      time += 1
      last = terminated or time == WALK.time_limit
      following = choose(loop.q[after], epsilon, noise.explore[t]) if rule.looks_ahead else 0
      loop.learn(place, action, reward, not terminated, last, after, following, epsilon, noise.update[t])
      rewards, earned = rewards + reward, earned + reward
      place, action = after, following
      if last:
        returns.append(earned)
        lengths.append(time)
        earned, time, place = 0.0, 0, int(noise.first_state[t])
        if rule.looks_ahead:
          action = choose(loop.q[place], epsilon, noise.first_action[t])
    found = jax.tree.map(lambda x, i=update: float(x[i]), metrics)
    assert found["reward"] == pytest.approx(rewards / STEPS, rel=1e-4)
    assert found["epsilon"] == pytest.approx(epsilon, rel=1e-5)
    assert found["episode_return"].total == pytest.approx(sum(returns), rel=1e-4)
    assert found["episode_return"].count == len(returns) == found["episode_length"].count
    assert found["episode_length"].total == sum(lengths)
    table = learners.table[update]
    np.testing.assert_allclose(table[..., 0], loop.q, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(table[..., 1], loop.count)
    ends += lengths
  assert len(ends) > 15 and {1, WALK.time_limit} <= set(ends) and np.ptp(loop.q) > 0.5


@pytest.mark.parametrize("name", METHODS)
def test_the_best_checkpoint_is_that_of_the_highest_start_value(name, monkeypatch):
  given = {}
  monkeypatch.setattr(rl_experiment, "train", lambda *args, **settings: given.update(settings) or 0)
  assert load(name).main(load(name).Config()) == 0
  assert (given["best_metric"], given["best_mode"]) == ("start_value", "max")
