"""Environments on the device beside the same ones of Gymnasium, state by state; ends of episodes told apart."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.engine.errors import InputError
from mlnotes.rl.env import Box, Discrete, clip_actions, init_actors, rollout, step_with_reset
from mlnotes.rl.episodes import require_box
from mlnotes.rl.gymnasium_bridge import make_gymnasium_env
from mlnotes.rl.gymnax_env import make_gymnax_env
from mlnotes.rl.probe import constant_reward_env
from mlnotes.rl.registry import make_env

STATES = 2000
EDGE = {
  "CartPole-v1": (-2.4, 2.4, -12 * np.pi / 180, 12 * np.pi / 180),
  "MountainCar-v0": (-1.2, 0.5, 0.6, -0.07, 0.07),
  "MountainCarContinuous-v0": (-1.2, 0.45, 0.6, -0.07, 0.07),
  "Pendulum-v1": (-8, 8),
  "Acrobot-v1": (-4 * np.pi, 4 * np.pi, -9 * np.pi, 9 * np.pi),
}
# Per environment: the parts of gymnax's state that are Gymnasium's, and the box that states are drawn from.
TWINS = {
  "CartPole-v1": (("x", "x_dot", "theta", "theta_dot"), (2.4, 3, 0.2095, 3)),
  "MountainCar-v0": (("position", "velocity"), ((-1.2, 0.6), 0.07)),
  "MountainCarContinuous-v0": (("position", "velocity"), ((-1.2, 0.6), 0.07)),
  "Pendulum-v1": (("theta", "theta_dot"), (20, 8)),
  "Acrobot-v1": (("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"), (np.pi, np.pi, 4 * np.pi, 9 * np.pi)),
}
# Those of gymnax that nothing published was compared with here.
NOT_COMPARED = (
  "Catch-bsuite", "DeepSea-bsuite", "MemoryChain-bsuite", "UmbrellaChain-bsuite", "DiscountingChain-bsuite",
  "MNISTBandit-bsuite", "SimpleBandit-bsuite", "FourRooms-misc", "MetaMaze-misc", "PointRobot-misc",
  "BernoulliBandit-misc", "GaussianBandit-misc", "Reacher-misc", "Swimmer-misc", "Pong-misc", "FrozenLake-misc",
)  # fmt: skip


def distance_to_end(name, o):
  """How far observations are from where an episode terminates: nearer than rounding, either answer is right."""
  if name == "CartPole-v1":
    return np.minimum(np.abs(2.4 - np.abs(o[:, 0])), np.abs(12 * np.pi / 180 - np.abs(o[:, 2])))
  if name == "Acrobot-v1":
    return np.abs(-o[:, 0] - (o[:, 0] * o[:, 2] - o[:, 1] * o[:, 3]) - 1)
  if name == "Pendulum-v1":
    return np.full(len(o), np.inf)
  return np.abs(o[:, 0] - (0.5 if name == "MountainCar-v0" else 0.45))


def random_states(name, rng):
  """(STATES, parts) of float32 within the box, near its sides and on its edges more often than elsewhere."""
  columns = []
  for bound in TWINS[name][1]:
    low, high = bound if isinstance(bound, tuple) else (-bound, bound)
    unit = rng.random(STATES)
    unit = np.where(rng.random(STATES) < 0.4, unit * 0.1 + 0.9 * rng.integers(2, size=STATES), unit)
    column = low + (high - low) * unit
    edges = np.array([0.0, *(edge for edge in EDGE[name] if low <= edge <= high)])
    columns.append(np.where(rng.random(STATES) < 0.1, rng.choice(edges, STATES), column))
  states = np.stack(columns, axis=1).astype(np.float32)
  if name == "CartPole-v1":  # a pole that has fallen starts no step: Gymnasium warns, gymnax pays nothing
    states[:, [0, 2]] = np.clip(states[:, [0, 2]], [-2.4, -0.20943], [2.4, 0.20943])
  return states


@pytest.mark.parametrize("name", TWINS)
def test_every_step_agrees_with_gymnasium(name):
  """From 2,000 states each, walls, goals and the last steps before the time limit among them.

  One step of both gives the same observation, reward, termination and truncation, up to float32's rounding.
  """
  env, real = clip_actions(make_env(name)), make_gymnasium_env(name, disable_env_checker=True)
  rng = np.random.default_rng(0)
  columns = random_states(name, rng)
  time = np.where(rng.random(STATES) < 0.2, env.time_limit - rng.integers(1, 4, STATES), 5).astype(np.int32)
  first, _ = jax.jit(env.reset)(jax.random.key(0))
  put = lambda column, t: first.replace(time=t, **dict(zip(TWINS[name][0], column)))
  if isinstance(env.actions, Discrete):
    action = rng.integers(env.actions.n, size=STATES)
  else:
    low, high = env.actions.low, env.actions.high
    action = rng.uniform(1.5 * low, 1.5 * high, (STATES, *env.actions.shape)).astype(np.float32)
  step = jax.jit(jax.vmap(lambda c, t, a: env.step(jax.random.key(0), put(c, t), a)[1]))
  ours = jax.device_get(step(jnp.asarray(columns), jnp.asarray(time), jnp.asarray(action)))

  real.reset(seed=0)
  theirs = []
  discrete = isinstance(env.actions, Discrete)
  # `clip_actions` does for ours what is done here for Gymnasium's.
  chosen = [int(a) for a in action] if discrete else np.clip(action, env.actions.low, env.actions.high)
  for i in range(STATES):
    real.unwrapped.state = columns[i].astype(np.float64)
    real.unwrapped.steps_beyond_terminated = None
    real._elapsed_steps = int(time[i])
    theirs.append(real.step(chosen[i])[:4])
  observation, reward, terminated, truncated = (np.array(x, np.float64) for x in zip(*theirs))
  scale = np.maximum(1, np.abs(observation).max(0))
  np.testing.assert_allclose(ours.next_observation / scale, observation / scale, atol=1e-4)
  np.testing.assert_allclose(ours.reward, reward.reshape(STATES), atol=1e-4)
  clear = distance_to_end(name, observation) > 1e-5
  assert clear.mean() > 0.95
  np.testing.assert_array_equal((ours.discount == 0)[clear], terminated[clear])
  np.testing.assert_array_equal(ours.last[clear], ((terminated + truncated) > 0)[clear])
  assert truncated.sum() > 50 and (name == "Pendulum-v1" or 50 < terminated.sum() < STATES - 50)


def test_every_name_is_compared_or_listed_as_not_compared():
  import gymnax

  minatar = [name for name in gymnax.registered_envs if name.endswith("-MinAtar")]
  assert sorted([*TWINS, *minatar, *NOT_COMPARED]) == sorted(gymnax.registered_envs)


@pytest.mark.parametrize("name", TWINS)
def test_spaces_and_time_limit_are_gymnasiums(name):
  env, real = make_env(name), make_gymnasium_env(name)
  assert env.time_limit == real.spec.max_episode_steps
  assert env.observations.shape == real.observation_space.shape
  if isinstance(env.actions, Discrete):
    assert env.actions.n == real.action_space.n
  else:
    assert env.actions.shape == real.action_space.shape
    assert (env.actions.low, env.actions.high) == (real.action_space.low.min(), real.action_space.high.max())


def test_first_states_have_gymnasiums_distribution():
  env, real = make_env("CartPole-v1"), make_gymnasium_env("CartPole-v1")
  ours = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2000))[1]
  theirs = np.array([real.reset(seed=i)[0] for i in range(2000)])
  np.testing.assert_allclose(np.mean(ours, 0), theirs.mean(0), atol=4e-3)
  np.testing.assert_allclose(np.std(ours, 0), theirs.std(0), atol=2e-3)


def test_an_unknown_name_is_one_sentence():
  with pytest.raises(InputError, match=r"--env=Cartpole-v1 is not an environment: did you mean CartPole-v1\?"):
    make_env("Cartpole-v1")
  with pytest.raises(InputError, match=r"did you mean FrozenLake8x8-v1\?"):
    make_env("frozenlake8x8")
  with pytest.raises(InputError, match=r"--env=xyz is not an environment: expected one of FrozenLake-v1, .*Pong-misc"):
    make_env("xyz")


def test_continuous_actions_need_bounds():
  env = make_env("Pendulum-v1")
  assert require_box(env) == Box((1,), -2.0, 2.0)
  for bounds in ((-np.inf, np.inf), (-1.0, np.inf), (1.0, 1.0)):
    with pytest.raises(InputError, match=r"--env=Pendulum-v1 has actions from .*: this method expects finite bounds"):
      require_box(env._replace(actions=Box((1,), *bounds)))


def test_every_public_function_says_what_it_does():
  library = "env registry gymnax_env host_env gymnasium_bridge episodes table tabular interaction dynamic_programming"
  library = f"{library} linear tiles corridor traces dqn on_policy off_policy"
  shared = "_agent _animation _gridworld_report _off_policy _on_policy _tabular"
  for name in (*(f"mlnotes.rl.{m}" for m in library.split()), *(f"experiments.rl.{m}" for m in shared.split())):
    module = importlib.import_module(name)
    for key, value in vars(module).items():
      if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_"):
        assert value.__doc__, f"{name}.{key}"


def test_time_limit_truncates_at_the_same_step_as_gymnasium():
  env, real = make_env("Pendulum-v1"), make_gymnasium_env("Pendulum-v1")
  real.reset(seed=0)
  step = jax.jit(env.step)
  key = jax.random.key(0)
  state, _ = jax.jit(env.reset)(key)
  for t in range(200):
    state, timestep = step(jax.random.fold_in(key, t), state, jnp.zeros(1))
    _, _, terminated, truncated, _ = real.step(np.zeros(1, np.float32))
    assert bool(timestep.last) == (terminated or truncated) == (t == 199)
    assert timestep.discount == 1 and not terminated


def test_a_terminal_on_the_last_allowed_step_terminates():
  """Both at once: the future is worth nothing, whatever the clock says."""
  env = make_gymnax_env("CartPole-v1", max_steps_in_episode=1)
  state, _ = env.reset(jax.random.key(0))
  falling = state.replace(theta=jnp.float32(0.209), theta_dot=jnp.float32(5.0))
  _, timestep = env.step(jax.random.key(1), falling, jnp.int32(1))
  assert timestep.last and timestep.discount == 0
  _, timestep = env.step(jax.random.key(1), state, jnp.int32(1))
  assert timestep.last and timestep.discount == 1


def test_reset_keeps_the_final_observation():
  """A value is bootstrapped from the state that the limit cut, not from the next episode's first (cleanrl#198)."""
  env = constant_reward_env(time_limit=3, terminates=False)
  state, _ = env.reset(jax.random.key(0))
  for t in range(7):
    fresh = env.reset(jax.random.key(0))
    state, timestep = step_with_reset(env, jax.random.key(0), state, jnp.int32(0), fresh)
    ended = t % 3 == 2
    assert bool(timestep.last) == ended and timestep.discount == 1
    assert float(timestep.next_observation[0]) == t % 3 + 1
    assert float(timestep.observation[0]) == (0 if ended else t % 3 + 1)


def test_rollout_is_a_plain_loop_over_steps():
  """Against a Python loop with the same actions: transitions, returns, lengths, and where it goes on from."""
  env = constant_reward_env(time_limit=3, terminates=True)
  actors = init_actors(env, jax.random.key(0), 2)
  act = lambda noise, observation: (noise > 0.5).astype(jnp.int32)
  noise = jax.random.uniform(jax.random.key(1), (8, 2))
  run = jax.jit(lambda key, actors: rollout(env, act, noise, key, actors))
  after, trajectory = run(jax.random.key(2), actors)
  position, earned = 0, 0.0
  for t in range(8):
    np.testing.assert_array_equal(trajectory.observation[t], [[position]] * 2)
    np.testing.assert_array_equal(trajectory.action[t], noise[t] > 0.5)
    position, earned = position + 1, earned + 1
    np.testing.assert_array_equal(trajectory.next_observation[t], [[position]] * 2)
    ended = position == 3
    np.testing.assert_array_equal(trajectory.last[t], [ended] * 2)
    np.testing.assert_array_equal(trajectory.discount[t], [0.0 if ended else 1.0] * 2)
    np.testing.assert_array_equal(trajectory.episode_return[t], [earned] * 2)
    np.testing.assert_array_equal(trajectory.episode_length[t], [int(earned)] * 2)
    if ended:
      position, earned = 0, 0.0
  np.testing.assert_array_equal(after.observation, [[position]] * 2)
  np.testing.assert_array_equal(after.episode_return, [earned] * 2)


def test_environments_of_one_rollout_differ():
  env = make_env("CartPole-v1")
  actors = init_actors(env, jax.random.key(0), 4)
  act = lambda noise, observation: (noise > 0.5).astype(jnp.int32)
  noise = jax.random.uniform(jax.random.key(1), (60, 4))
  after, trajectory = jax.jit(lambda key, actors: rollout(env, act, noise, key, actors))(jax.random.key(2), actors)
  assert len(np.unique(after.observation[:, 0])) == 4
  starts = trajectory.observation[1:][trajectory.last[:-1]]
  assert len(starts) > 4 and len(np.unique(starts[:, 0])) == len(starts)
  # An episode's return in CartPole is its length.
  np.testing.assert_array_equal(trajectory.episode_return, trajectory.episode_length)


@pytest.mark.parametrize("name", ["Breakout-MinAtar", "SpaceInvaders-MinAtar"])
def test_minatar_steps_and_resets(name):
  env = make_env(name)
  assert len(env.observations.shape) == 3
  actors = jax.jit(lambda key: init_actors(env, key, 2))(jax.random.key(0))
  act = lambda noise, observation: (noise * env.actions.n).astype(jnp.int32)
  noise = jax.random.uniform(jax.random.key(1), (50, 2))
  _, trajectory = jax.jit(lambda key, actors: rollout(env, act, noise, key, actors))(jax.random.key(2), actors)
  assert trajectory.observation.shape == (50, 2, *env.observations.shape)
  assert np.all(np.isfinite(trajectory.reward)) and np.any(trajectory.last)
