"""Environments that run in Python, seen as pure functions: against themselves stepped by hand."""

import inspect
import os
import subprocess
import sys
import types
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rl import _animation, dqn, ppo, reinforce, sac
from mlnotes.engine.errors import InputError
from mlnotes.engine.program import Program, seed_state
from mlnotes.engine.sharding import make_mesh
from mlnotes.rl import host_env
from mlnotes.rl.env import Box, Discrete, init_actors, rollout
from mlnotes.rl.episodes import run_episodes
from mlnotes.rl.gymnasium_bridge import run_gymnasium_episodes
from mlnotes.rl.registry import make_env


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


class Rooms(gymnasium.Env):
  """Five numbered rooms in a row; going right pays at the end, which the first door may lead to. No time limit."""

  observation_space = gymnasium.spaces.Discrete(5)
  action_space = gymnasium.spaces.Discrete(2)
  resets = 0

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    Rooms.resets += 1
    self.room = int(self.np_random.integers(4))
    return self.room, {}

  def step(self, action):
    self.room = max(0, self.room + (1 if action else -1))
    return self.room, float(self.room == 4), self.room == 4, False, {}


class Push(gymnasium.Env):
  """Two forces move a point, which should stay at 0; six steps."""

  observation_space = gymnasium.spaces.Box(-9, 9, (2,))
  action_space = gymnasium.spaces.Box(-2, 2, (2,))

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self.place, self.time = np.float32(self.np_random.uniform(-1, 1, 2)), 0
    return self.place, {}

  def step(self, action):
    assert action.dtype == np.float32 and action.shape == (2,) and np.all(np.abs(action) <= 2)
    self.place, self.time = np.clip(self.place + action, -9, 9), self.time + 1
    return self.place, -float(np.abs(self.place).sum()), False, self.time >= 6, {}


@pytest.fixture(scope="module", autouse=True)
def module():
  sys.modules["own_worlds"] = types.SimpleNamespace(
    Walk=Walk, Unseeded=Unseeded, Rooms=Rooms, Push=Push, number=lambda: 3
  )
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


@pytest.mark.parametrize("lag", [0, 3])
def test_episodes_of_one_seed_are_stepped_side_by_side(lag, monkeypatch):
  """Two that go alike, one behind the other by some steps, and one that goes another way: none is taken twice."""
  host = inspect.unwrap(host_env._make_host)("own_worlds:Walk")
  taken = []
  take = host.take
  monkeypatch.setattr(host, "take", lambda env, action: taken.append(action) or take(env, action))
  ways = [np.array([1, 0] * 3), np.array([0, 1] * 3), np.array([1, 0] * 3)]
  rows = [play_by_hand("own_worlds:Walk", 5, actions)[1:] for actions in ways]
  assert not any(terminated for way in rows for _, _, terminated, _ in way)
  for now in range(1, 7 + lag):
    for actions, way, time in zip(ways, rows, (now, now, now - lag)):
      if 1 <= time <= 6:
        np.testing.assert_allclose(host.step(5, actions, time)[0], way[time - 1][0], rtol=1e-6)
  assert len(taken) == 3 * 6


_LARGE_ARRAYS = """
import jax, jax.numpy as jnp, numpy as np
from experiments.rl._agent import RLConfig
from mlnotes.engine.layout import apply_layout
from mlnotes.engine.sharding import make_mesh
layout = RLConfig(env="own:World", seeds={seeds}).cpu_layout(2)
apply_layout(layout)
shape = (layout.devices, 400_000)
def step(x):
  host = lambda x: np.asarray(x) + 1
  return jax.lax.fori_loop(0, 5, lambda i, x: jax.pure_callback(host, jax.typeof(x), x) * 1, x)
shard = jax.P("data")
step = jax.jit(jax.shard_map(step, mesh=make_mesh(), in_specs=shard, out_specs=shard, check_vma=False))
late = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda i, x: jnp.sin(x), x))
x = jax.device_put(late(jnp.zeros(shape)), jax.NamedSharding(make_mesh(), shard))
np.testing.assert_array_equal(step(x), np.full(shape, 5))
"""


@pytest.mark.parametrize("seeds", [1, 2])
def test_large_arrays_reach_python_in_the_layout_of_an_agent(seeds):
  """XLA copies them in its threads; where each device keeps one, none is left, and the program waits for ever."""
  environ = {name: os.environ[name] for name in os.environ.keys() - {"XLA_FLAGS", "NPROC"}}
  code, environ["PYTHONPATH"] = _LARGE_ARRAYS.format(seeds=seeds), str(Path(__file__).parents[2])
  done = subprocess.run([sys.executable, "-c", code], env=environ, timeout=60, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


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


def changed(base, **attributes):
  return type("Changed", (base,), attributes)


@pytest.mark.parametrize(
  ("world", "said"),
  [
    (
      changed(Push, action_space=gymnasium.spaces.Box(-np.inf, np.inf, (2,))),
      "has actions Box.*expected finite bounds",
    ),
    (changed(Push, action_space=gymnasium.spaces.Box(0, np.inf, (2,))), "has actions Box.*expected finite bounds"),
    (
      changed(Push, action_space=gymnasium.spaces.Box(np.float32([0, 0]), np.float32([1, 2]))),
      "has other bounds for each action",
    ),
    (
      changed(Push, step=lambda self, action: (self.place, float("nan"), False, False, {})),
      "gives the reward nan after 1 steps",
    ),
    (
      changed(Push, step=lambda self, action: (self.place * np.nan, 1.0, False, False, {})),
      r"gives the observation \[nan nan\] after 1 steps",
    ),
    (
      changed(Push, reset=lambda self: (np.zeros(2), {})),
      r"its reset takes no seed: expected reset\(self, \*, seed=None",
    ),
    (changed(Push, reset=lambda self, **_: np.zeros(2)), r"its reset gives ndarray: expected \(observation, info\)"),
    (changed(Push, step=lambda self, action: (np.zeros(2), 1.0, False, {})), "its step gives 4 values: expected"),
    (
      changed(Push, reset=lambda self, **_: (np.zeros(3), {})),
      r"gives an observation of shape \(3,\): expected one of",
    ),
    (
      changed(Push, step=lambda self, action: (np.zeros((1, 2)), 1.0, False, False, {})),
      r"gives an observation of shape \(1, 2\)",
    ),
    (changed(Push, reset=lambda self, **_: ({"a": 1}, {})), "gives an observation of type dict"),
    (changed(Rooms, reset=lambda self, **_: (5, {})), r"gives an observation of the value 5: .* Discrete\(5\)"),
    (changed(Rooms, reset=lambda self, **_: (0.5, {})), "gives an observation of the value 0.5"),
    (changed(Rooms, reset=lambda self, **_: (np.zeros(5), {})), r"gives an observation of shape \(5,\)"),
  ],
)
def test_what_an_environment_does_unlike_its_spaces_is_said_at_the_door(world, said, monkeypatch):
  """In one sentence and before anything is compiled, where a callback could only fail with a traceback."""
  monkeypatch.setattr(sys.modules["own_worlds"], "changed", world, raising=False)
  monkeypatch.setattr(host_env, "_make_host", inspect.unwrap(host_env._make_host))  # other tests keep theirs
  with pytest.raises(InputError, match=f"^--env=own_worlds:changed:? {said}"):
    make_env("own_worlds:changed")


def test_spaces_are_read_and_what_has_no_fixed_size_is_refused():
  walk, cards = make_env("own_worlds:Walk"), make_env("gymnasium:Blackjack-v1")
  assert walk.observations.shape == (3,) and walk.actions == Discrete(2)
  assert cards.observations == Box((32 + 11 + 2,), 0.0, 1.0) and cards.time_limit == 1000
  for name, said in [
    ("own_worlds:Unseeded", "gave two different episodes for one seed"),
    ("own_worlds:number", "gives int: expected a gymnasium.Env"),
    ("own_worlds:nothing", "cannot be made"),
    ("no_such_module:nothing", "cannot be made"),
    (":Walk", "lacks the module: expected module:function"),
    ("own_worlds:", "lacks the function: expected module:function"),
    ("gymnasium:CartPole-v77", "cannot be made"),
  ]:
    with pytest.raises(InputError, match=f"--env={name} {said}"):
      make_env(name)


# -- pictures ----------------------------------------------------------------------------------------------------------


class Shown(Push):
  """Draws the time: a grey picture that grows lighter."""

  render_mode = "rgb_array"

  def render(self):
    return np.full((40, 60, 3), 40 * self.time, np.uint8)


def frames_of(name, monkeypatch, tmp_path):
  """What `animate_policy` writes."""
  written = []
  monkeypatch.setattr(_animation, "write_gif", lambda frames, *rest: written.append(frames))
  monkeypatch.setattr(host_env, "_make_host", inspect.unwrap(host_env._make_host))
  env = make_env(name)
  drawn = _animation.animate_policy(env, lambda o: np.zeros((1, 2), np.float32), tmp_path / "policy.gif")
  assert drawn == bool(written)
  return env, written and written[0]


def test_what_a_function_makes_is_drawn_where_it_renders(monkeypatch, tmp_path):
  worlds = sys.modules["own_worlds"]
  monkeypatch.setattr(worlds, "shown", lambda: Shown(), raising=False)
  _, frames = frames_of("own_worlds:shown", monkeypatch, tmp_path)
  assert [frame[0, 0, 0] for frame in frames] == [0, 40, 80, 120, 160, 200, 240]
  env, frames = frames_of("own_worlds:Push", monkeypatch, tmp_path)
  assert not frames
  assert _animation.why_not_drawn(env) == "what own_worlds:Push makes has the render_mode None, expected 'rgb_array'"
  monkeypatch.setattr(worlds, "shown", lambda: changed(Shown, render=lambda self: None)(), raising=False)
  with pytest.raises(InputError, match=r"own_worlds:shown: its render gives NoneType, expected an array"):
    frames_of("own_worlds:shown", monkeypatch, tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_observations_of_pixels_are_drawn_as_they_are(channels, monkeypatch, tmp_path):
  """Planes of MinAtar have a colour each; those of an RGB image are its colours."""
  picture = np.random.default_rng(0).integers(0, 256, (5, 4, channels), np.uint8)
  world = changed(
    Push, observation_space=gymnasium.spaces.Box(0, 255, picture.shape, np.uint8),
    reset=lambda self, **_: (picture, {}), step=lambda self, action: (picture, 0.0, True, False, {}),
  )  # fmt: skip
  monkeypatch.setattr(sys.modules["own_worlds"], "pixels", world, raising=False)
  _, frames = frames_of("own_worlds:pixels", monkeypatch, tmp_path)
  assert len(frames) == 2 and frames[0].shape == (400, 320, 3)
  np.testing.assert_array_equal(frames[1][40::80, 40::80], np.broadcast_to(picture, (5, 4, 3)))


# -- methods -----------------------------------------------------------------------------------------------------------


def host(state):
  return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def program_of(module, config, devices=1, seeds=(0,)):
  return Program(module.make(config), module.make_feeds(config), seeds, make_mesh(devices))


WALKING = ppo.Config(
  env="own_worlds:Walk", num_envs=4, rollout_length=32, steps=6, minibatches=2, epochs=4, eval_episodes=4,
  learning_rate=0.01, hidden=(16,), gym_episodes=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def walking():
  """(program of two seeds, their state after all updates)."""
  run = program_of(ppo, WALKING, seeds=(0, 1))
  return run, run.update(run.init(), run.empty_window(), WALKING.steps)[0]


@pytest.mark.thorough
def test_an_agent_learns_in_ones_own_environment(walking, tmp_path):
  """Reward is the place, so to the right."""
  run, state = walking
  returns = run.evaluate(state)["episode_return"]
  assert np.all(np.isfinite(returns)) and returns.mean() > 0
  figures = run.experiment.report(seed_state(state, 0, 2), tmp_path)
  assert np.isfinite(figures["gymnasium_return"]) and not list(tmp_path.iterdir())
  right = run_gymnasium_episodes("own_worlds:Walk", lambda o: np.ones(len(o), np.int32), 3)
  assert right.min() > 3


def test_a_run_goes_on_bit_for_bit_where_nothing_is_under_way(walking):
  """What the host kept is forgotten between two updates, as in a process that was killed."""
  run, straight = walking
  state, _ = run.update(run.init(), run.empty_window(), 2)
  assert (state.actors.state.time > 0).any()
  kept = host_env._make_host("own_worlds:Walk")
  for place in (kept.running, kept.idle, kept.ended):
    place.clear()
  state, _ = run.update(state, run.empty_window(), WALKING.steps - 2)
  jax.tree.map(np.testing.assert_array_equal, host(state), host(straight))


@pytest.mark.thorough
def test_two_devices_do_what_one_does(walking):
  run = program_of(ppo, WALKING, devices=2, seeds=(0, 1))
  state, _ = run.update(run.init(), run.empty_window(), WALKING.steps)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), host(state), host(walking[1]))
  assert len(state.step.sharding.device_set) == 2


def test_continuous_actions_reach_the_environment_in_its_bounds():
  config = sac.Config(
    env="own_worlds:Push", num_envs=2, train_every=4, learning_starts=8, batch_size=4, gradient_steps=1, steps=4,
    replay_capacity=64, hidden=(4,), eval_episodes=2,
  )  # fmt: skip
  run = program_of(sac, config)
  state, _ = run.update(run.init(), run.empty_window(), 3)
  kept = state.replay.data
  np.testing.assert_array_less(np.abs(kept.action[:24]), 1.0001)
  assert np.ptp(kept.action[:24]) > 0.5 and int(state.replay.size) == 24
  # The point goes where twice the action, which is kept between -1 and 1, takes it.
  moved = np.clip(kept.observation[:24] + 2 * kept.action[:24], -9, 9)
  np.testing.assert_allclose(kept.next_observation[:24], moved, atol=1e-5)
  np.testing.assert_allclose(kept.reward[:24], -np.abs(moved).sum(1), rtol=1e-4, atol=1e-5)
  assert np.all(kept.discount[:24] == 1) and np.isfinite(run.evaluate(state)["episode_return"])


def test_numbered_states_are_learned_from():
  config = dqn.Config(
    env="own_worlds:Rooms", num_envs=2, train_every=8, learning_starts=16, batch_size=16, gradient_steps=4, steps=40,
    learning_rate=0.02, final_epsilon=1.0, target_period=4,
    replay_capacity=256, hidden=(8,), eval_episodes=4, discount=0.9, gym_episodes=3,
  )  # fmt: skip
  run = program_of(dqn, config)
  state, _ = run.update(run.init(), run.empty_window(), 40)
  policy = jax.vmap(run.experiment.model(state))
  np.testing.assert_array_equal(policy(jnp.arange(4)), np.ones(4))
  np.testing.assert_array_equal(run_gymnasium_episodes("own_worlds:Rooms", policy, 3), np.ones(3))


def test_whole_episodes_without_a_time_limit_end_and_their_padding_costs_no_episode():
  """1,000 steps of two environments, most of them after the end: nothing is played again for these."""
  config = reinforce.Config(env="own_worlds:Rooms", num_envs=2, steps=2, hidden=(4,), eval_episodes=1)
  run = program_of(reinforce, config)
  state, _ = run.update(run.init(), run.empty_window(), 1)
  before = Rooms.resets
  state, _ = run.update(state, run.empty_window(), 1)
  assert int(state.env_steps) < 1000 and Rooms.resets - before <= 2 * 2
