"""Environments that run in Python, seen as pure functions: against themselves stepped by hand."""

import sys
import types

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rl import ppo
from mlnotes.errors import InputError
from mlnotes.rl import host_env
from mlnotes.rl.env import Box, Discrete, init_actors, make_env, rollout
from mlnotes.rl.experiment import run_episodes
from mlnotes.rl.gymnasium_bridge import run_gymnasium_episodes


class Walk(gymnasium.Env):
  """A random walk that one pushes; ends at +-3 with the position as reward. Observations are a dictionary."""

  observation_space = gymnasium.spaces.Dict(
    {"place": gymnasium.spaces.Box(-4, 4, (1,)), "even": gymnasium.spaces.Discrete(2)}
  )
  action_space = gymnasium.spaces.Discrete(2)
  seeded = True

  def observe(self):
    return {"place": np.float32([self.place]), "even": int(self.place * 10) % 2}

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed if self.seeded else None)
    self.place, self.time = self.np_random.uniform(-1, 1), 0
    return self.observe(), {}

  def step(self, action):
    self.time += 1
    self.place += self.np_random.normal() * 0.3 + (0.5 if action else -0.5)
    self.place = float(np.clip(self.place, -4, 4))
    return self.observe(), self.place, abs(self.place) >= 3, self.time >= 20, {}


class Unseeded(Walk):
  seeded = False


@pytest.fixture(scope="module", autouse=True)
def module():
  sys.modules["own_worlds"] = types.SimpleNamespace(Walk=Walk, Unseeded=Unseeded, number=lambda: 3)
  yield
  del sys.modules["own_worlds"]


def play_by_hand(name, seed, actions):
  env = host_env.make_python_env(name)
  rows = [env.reset(seed=int(seed))[0]]
  for action in actions:
    rows.append(env.step(int(action))[:4])
  return rows


@pytest.mark.parametrize("name", ["own_worlds:Walk", "gymnasium:Blackjack-v1", "gymnasium:CartPole-v0"])
def test_a_rollout_is_the_environment_stepped_by_hand(name):
  """Three environments side by side, with resets; every episode again by its seed and its actions."""
  env = make_env(name)
  actors = init_actors(env, jax.random.key(0), 3)
  noise = jax.random.uniform(jax.random.key(1), (30, 3))
  act = lambda noise, observation: (noise > 0.4).astype(jnp.int32)
  run = jax.jit(lambda actors: rollout(env, act, noise, jax.random.key(2), actors))
  t = jax.device_get(run(actors)[1])
  again = jax.device_get(run(actors)[1])
  jax.tree.map(np.testing.assert_array_equal, t, again)
  assert t.last.sum() > 1
  for i in range(3):
    seed, start = actors.state.seed[i], 0
    ends = [*np.flatnonzero(t.last[:, i]), 29]
    stop = ends[0] + 1
    first, *rows = play_by_hand(name, seed, t.action[start:stop, i])
    np.testing.assert_allclose(t.observation[0, i], first, rtol=1e-6)
    for k, (observation, reward, terminated, truncated) in enumerate(rows):
      np.testing.assert_allclose(t.next_observation[k, i], observation, rtol=1e-6)
      np.testing.assert_allclose(t.reward[k, i], reward, rtol=1e-6)
      assert (t.discount[k, i] == 0) == terminated and t.last[k, i] == (terminated or truncated)


def test_an_episode_goes_on_in_a_process_that_has_never_seen_it():
  """What is under way is forgotten between two steps: the state alone says where the episode is."""
  env = make_env("own_worlds:Walk")
  step = jax.jit(env.step)
  state, _ = jax.jit(env.reset)(jax.random.key(3))
  kept = [state]
  for action in (1, 0, 1):
    state, _ = step(jax.random.key(0), state, jnp.int32(action))
    kept.append(state)
  _, expected = step(jax.random.key(0), state, jnp.int32(1))
  host_env._make_host("own_worlds:Walk").running.clear()
  _, found = step(jax.random.key(0), state, jnp.int32(1))
  np.testing.assert_array_equal(found.observation, expected.observation)
  # And from an earlier state, which another path has left since.
  _, other = step(jax.random.key(0), kept[1], jnp.int32(1))
  rows = play_by_hand("own_worlds:Walk", kept[1].seed, [1, 1])
  np.testing.assert_allclose(other.observation, rows[-1][0], rtol=1e-6)


def test_nothing_is_stepped_beyond_the_end_of_its_episode():
  """Episodes of an evaluation end one after the other: those that are over wait, and are not taken from the start."""
  env, host = make_env("own_worlds:Walk"), host_env._make_host("own_worlds:Walk")
  act = lambda observation: jnp.int32(1)
  steps = []
  original = Walk.step

  def step(self, action):
    steps.append(self)
    assert not getattr(self, "over", False)
    result = original(self, action)
    self.over = result[2] or result[3]
    return result

  def reset(self, **options):
    self.over = False
    return Walk_reset(self, **options)

  Walk_reset, Walk.step, Walk.reset = Walk.reset, step, reset
  try:
    host.running.clear()
    host.idle.clear()
    returns, lengths = jax.jit(lambda key: run_episodes(env, act, key, 6))(jax.random.key(1))
  finally:
    Walk.step, Walk.reset = original, Walk_reset
  assert len(set(lengths.tolist())) > 1 and np.all(np.asarray(returns) > 0)
  assert len(steps) == lengths.sum()


def test_spaces_are_read_and_what_has_no_fixed_size_is_refused():
  walk, cards = make_env("own_worlds:Walk"), make_env("gymnasium:Blackjack-v1")
  assert walk.observations.shape == (3,) and walk.actions == Discrete(2)
  assert cards.observations == Box((32 + 11 + 2,), 0.0, 1.0) and cards.time_limit == 1000
  for name, said in [
    ("own_worlds:Unseeded", "gave two different episodes for one seed"),
    ("own_worlds:number", "gives int: expected a gymnasium.Env"),
    ("own_worlds:nothing", "cannot be made"),
    ("no_such_module:nothing", "cannot be made"),
    ("gymnasium:CartPole-v77", "cannot be made"),
  ]:
    with pytest.raises(InputError, match=f"--env={name} {said}"):
      make_env(name)


def test_an_agent_learns_in_ones_own_environment(tmp_path):
  """Two seeds at once; reward is the place, so to the right."""
  config = ppo.Config(
    env="own_worlds:Walk", num_envs=4, rollout_length=32, steps=6, minibatches=2, epochs=4, eval_episodes=4,
    learning_rate=0.01, hidden=(16,), gym_episodes=3,
  )  # fmt: skip
  experiment = ppo.make(config)

  def train(key):
    state = experiment.init(key, ())
    state = jax.lax.fori_loop(0, config.steps, lambda _, s: experiment.step(s, ())[0], state)
    return state, experiment.evaluate(state, ())["episode_return"].total / config.eval_episodes

  states, returns = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 2))
  assert np.all(np.isfinite(returns)) and returns.mean() > 0
  figures = experiment.report(jax.tree.map(lambda x: x[0], states), tmp_path)
  assert np.isfinite(figures["gymnasium_return"]) and not list(tmp_path.iterdir())
  right = run_gymnasium_episodes("own_worlds:Walk", lambda o: np.ones(len(o), np.int32), 3)
  assert right.min() > 3
