"""Policies of the device in the real environment, and their animations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.rl import _agent
from experiments.rl._agent import RLConfig, make_report
from experiments.rl._animation import animate_policy, write_gif
from mlnotes.rl import gymnasium_bridge as bridge
from mlnotes.rl.env import Discrete
from mlnotes.rl.episodes import run_episodes
from mlnotes.rl.registry import make_env


def always(action):
  return lambda observations: np.full(len(observations), action, np.int32)


def test_episodes_are_those_of_a_plain_loop():
  returns = bridge.run_gymnasium_episodes("CartPole-v1", always(1), 5, seed=7)
  expected = []
  for i in range(5):
    env = bridge.make_gymnasium_env("CartPole-v1")
    env.reset(seed=7 + i)
    total, ended = 0.0, False
    while not ended:
      _, reward, terminated, truncated, _ = env.step(1)
      total, ended = total + reward, terminated or truncated
    expected.append(total)
  np.testing.assert_array_equal(returns, expected)


def test_time_limits_end_episodes():
  np.testing.assert_array_equal(bridge.run_gymnasium_episodes("MountainCar-v0", always(1), 2), [-200, -200])


def test_an_episode_without_a_limit_is_cut():
  # Up and down again for ever: -1 a step.
  turn = iter([0, 2] * 100)
  policy = lambda observations: np.full(len(observations), next(turn), np.int32)
  np.testing.assert_array_equal(bridge.run_gymnasium_episodes("CliffWalking-v1", policy, 1, longest=30), [-30])


def test_a_policy_earns_the_same_on_the_device_and_in_gymnasium():
  """Leaning with the pole: a policy that is neither perfect nor hopeless."""
  env = make_env("CartPole-v1")
  act = lambda observation: (observation[2] + 0.3 * observation[3] > 0).astype(jnp.int32)
  ours, lengths = jax.jit(lambda key: run_episodes(env, act, key, 200))(jax.random.key(0))
  np.testing.assert_array_equal(ours, lengths)
  theirs = bridge.run_gymnasium_episodes("CartPole-v1", jax.jit(jax.vmap(act)), 100)
  error = np.hypot(np.std(ours) / np.sqrt(200), np.std(theirs) / np.sqrt(100))
  assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error + 1e-6
  assert 50 < np.mean(ours) <= 500


def test_thresholds_are_gymnasiums():
  assert bridge.solved_at("CartPole-v1") == 475
  assert bridge.solved_at("Pendulum-v1") is None
  assert bridge.has_gymnasium("Taxi-v4") and not bridge.has_gymnasium("Breakout-MinAtar")


def test_an_animation_says_whose_episode_it_is_and_what_it_earned(tmp_path):
  """Gymnasium's own episode of that seed in which the cart is pushed to the right; the agent's seed from its key."""
  real, earned, ended = bridge.make_gymnasium_env("CartPole-v1"), 0.0, False
  real.reset(seed=0)
  while not ended:
    _, reward, *ends, _ = real.step(1)
    earned, ended = earned + reward, any(ends)
  state = type("State", (), {"key": jax.random.key(12)})
  config = RLConfig(gym_episodes=0)
  make_report(make_env("CartPole-v1"), lambda state, observation: jnp.int32(1), config)(state, tmp_path)
  with Image.open(tmp_path / "policy.gif") as gif:
    said = gif.info["comment"].decode()
    assert said == f"CartPole-v1, agent of --seed=12, episode seed 0, return {earned:g}"
    bar = np.asarray(gif.convert("L"))[213:]  # 320 wide: the drawing is 213 high
  assert bar.shape[0] >= 18 and (bar < 100).any() and (bar > 200).mean() > 0.5


@pytest.mark.parametrize("name", ["CartPole-v1", "FrozenLake-v1", "Breakout-MinAtar"])
def test_animations_show_the_episode(name, tmp_path):
  env = make_env(name)
  assert isinstance(env.actions, Discrete)
  assert animate_policy(env, always(0), tmp_path / "policy.gif")
  with Image.open(tmp_path / "policy.gif") as gif:
    assert gif.n_frames > 2 and gif.width <= 320
    first = np.asarray(gif.convert("RGB"))
    gif.seek(gif.n_frames - 1)
    assert np.any(first != np.asarray(gif.convert("RGB")))


def test_what_cannot_be_drawn_is_left_out(tmp_path):
  env = make_env("DeepSea-bsuite")
  assert not animate_policy(env, always(0), tmp_path / "policy.gif")
  assert not list(tmp_path.iterdir())


def test_long_animations_keep_their_last_frame(tmp_path):
  frames = [np.full((4, 4, 3), i % 256, np.uint8) for i in range(450)]
  write_gif(frames, 100.0, tmp_path / "long.gif")
  with Image.open(tmp_path / "long.gif") as gif:
    assert gif.n_frames <= 201
    gif.seek(gif.n_frames - 1)
    assert abs(int(np.asarray(gif.convert("RGB"))[0, 0, 0]) - 449 % 256) <= 2


@pytest.mark.parametrize("returns, solved", [([500.0, 500.0, 440.0], 1.0), ([500.0, 500.0, 400.0], 0.0)])
def test_a_report_is_of_the_mean_over_the_episodes_that_were_asked_for(returns, solved, monkeypatch, tmp_path):
  """The mean beside CartPole's 475, neither the best episode nor as many as an evaluation has."""
  asked = []
  monkeypatch.setattr(
    _agent, "run_gymnasium_episodes", lambda *args: asked.append((args[0], args[2])) or np.array(returns)
  )
  config = RLConfig(gym_episodes=3, eval_episodes=7, gif=False)
  act = lambda state, observation: jnp.int32(1)
  found = make_report(make_env("CartPole-v1"), act, config)(None, tmp_path)
  assert asked == [("CartPole-v1", 3)] and not list(tmp_path.iterdir())
  assert found == {"gymnasium_return": np.mean(returns), "gymnasium_solved": solved}
  assert make_report(make_env("CartPole-v1"), act, RLConfig(gym_episodes=0, gif=False))(None, tmp_path) == {}
