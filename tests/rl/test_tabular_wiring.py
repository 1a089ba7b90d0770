"""What stands between flags, steps and reports of the tabular experiments: each flag has its effect and no other."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.experiment import stream_key
from mlnotes.rl import tabular_experiment as te
from mlnotes.rl.table import TableState, advance_table, read_table
from mlnotes.rl.tabular import RULES, epsilon_greedy

STEPS = 40
METHODS = ("q_learning", "sarsa", "expected_sarsa", "dyna_q", "monte_carlo", "sarsa_lambda", "watkins_q")
SHARED = dict(
  env="FrozenLake-v1", steps=4, steps_per_update=STEPS, learning_rate=0.5, step_size_power=0.3, discount=0.8,
  epsilon=0.9, final_epsilon=0.3, exploration_fraction=0.5, initial_value=0.25,
)  # fmt: skip


def config_of(name, **given):
  return importlib.import_module(f"experiments.rl.{name}").Config(**{**SHARED, **given})


def run_experiment(name, config, seed=3):
  """(first state, state after two updates, metrics of either)."""
  experiment = importlib.import_module(f"experiments.rl.{name}").make(config)
  start = jax.jit(lambda: experiment.init(jax.random.key(seed), ()))()
  step = jax.jit(lambda state: experiment.step(state, ()))
  first, metrics = step(start)
  second, later = step(first)
  return start, second, metrics, later


class Loop:
  """The method written out in Python, fed with the outcomes that the table gives for the same numbers."""

  def __init__(self, name, config):
    self.name, self.config, self.table = name, config, read_table(config.env)
    shape = (self.table.num_states, self.table.num_actions)
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


CASES = [(name, {}) for name in METHODS] + [
  ("dyna_q", dict(planning_steps=2)),
  ("monte_carlo", dict(visits="every")),
  ("sarsa_lambda", dict(traces="accumulating", trace_decay=0.6)),
  ("watkins_q", dict(traces="accumulating", trace_decay=0.6)),
]


@pytest.mark.parametrize(("name", "given"), CASES, ids=str)
def test_two_updates_are_the_loop_of_the_book_with_the_flags_as_given(name, given):
  """Action values, visits and every metric of each update, from the same random numbers."""
  config = config_of(name, **given)
  start, second, *metrics = jax.device_get(run_experiment(name, config))
  loop, table = Loop(name, config), read_table(config.env)
  rule = RULES[name](*([config.planning_steps] if name == "dyna_q" else []))
  choose = jax.jit(epsilon_greedy)
  advance = jax.jit(lambda u, state, a: advance_table(table, u, state, a))
  env, action = start.actor.env, int(start.actor.action)
  earned = 0.0
  for update in range(2):
    key = stream_key(jax.random.key(3), "interact", update)
    noise = jax.device_get(te.draw_noise(table, rule, key, STEPS))
    rewards, returns, lengths = 0.0, [], []
    for t in range(STEPS):
      # The first half of the run takes epsilon from .9 to .3.
      done = (update * STEPS + t) / (config.steps * STEPS)
      epsilon = max(0.3, 0.9 - 0.6 * done / 0.5)
      row = lambda s: jnp.asarray(loop.q[int(s)], jnp.float32)
      if not rule.looks_ahead:
        action = int(choose(row(env.index), epsilon, noise.explore[t]))
      after, step = jax.device_get(advance(noise.outcome[t], env, jnp.int32(action)))
      following = int(choose(row(after.index), epsilon, noise.explore[t])) if rule.looks_ahead else 0
      loop.learn(
        int(env.index), action, float(step.reward), float(step.discount), bool(step.last), int(after.index), following,
        epsilon, noise.update[t],
      )  # fmt: skip
      rewards, earned = rewards + float(step.reward), earned + float(step.reward)
      env, action = after, following
      if step.last:
        returns.append(earned)
        lengths.append(int(after.time))
        earned = 0.0
        env = TableState(noise.first_state[t], np.int32(0))
        if rule.looks_ahead:
          action = int(choose(row(env.index), epsilon, noise.first_action[t]))
    found = metrics[update]
    assert float(found["reward"]) == pytest.approx(rewards / STEPS)
    assert float(found["epsilon"]) == pytest.approx(epsilon, rel=1e-5)
    assert float(found["episode_return"].total) == pytest.approx(sum(returns))
    assert float(found["episode_return"].count) == len(returns) == float(found["episode_length"].count)
    assert float(found["episode_length"].total) == sum(lengths)
  learned = second.actor.learner.table
  np.testing.assert_allclose(learned[..., 0], loop.q, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(learned[..., 1], loop.count)
  assert loop.count.sum() > 20 and np.ptp(loop.q) > 0.05
