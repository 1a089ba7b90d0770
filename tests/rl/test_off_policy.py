"""DQN, DDPG and SAC whole: on probes whose values are known in closed form, and update by update beside formulas."""

import functools
import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.engine.experiment import Mean, stream_key
from mlnotes.engine.flags import InputError
from mlnotes.rl import ddpg, dqn, sac
from mlnotes.rl.env import Box, Discrete, Environment, TimeStep
from mlnotes.rl.off_policy import can_learn, learn
from mlnotes.rl.replay import Replay, sample_batches

LENGTH = 4  # steps of an episode
GAMMA = 0.8
LOW, HIGH = -1.0, 5.0
METHODS = ("dqn", "ddpg", "sac")
each_method = pytest.mark.parametrize("method", METHODS)


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
  init = jax.jit(experiment.init)
  run = jax.jit(
    lambda state: jax.lax.fori_loop(0, config.steps, lambda _, s: experiment.step(s, ())[0], state), donate_argnums=0
  )
  state = run(init(key, ()))
  found = jax.jit(lambda state, at: jax.vmap(lambda x: value(method, config, state, x))(at))
  at = jnp.array([[0.0, 0.0], [0.0, 1.0], [(LENGTH - 1) / LENGTH, 1.0]])
  forever, finite = 1 / (1 - GAMMA), sum(GAMMA**t for t in range(LENGTH))
  np.testing.assert_allclose(found(state, at), [forever, finite, 1.0], atol=0.2)


STARTS = 24
RATE = 0.02
SETTINGS = {
  "dqn": dict(target_period=2, huber_delta=0.4, first_epsilon=1.0, final_epsilon=0.0, exploration=0.5),
  "single": dict(target_period=3, double=False, dueling=True, normalize_observations=True, huber_delta=50.0),
  "ddpg": dict(exploration_noise=0.3),
  "sac": dict(initial_temperature=0.3, target_entropy=-0.7),
}


@functools.cache
def first_updates(method):
  """(experiment, states before and after each of four updates, their metrics); learning starts with the third.

  Each update acts 4 times in 2 environments, then takes 2 steps of plain gradient descent. The reward is the mean of
  the action. "single" is DQN with its flags the other way round.
  """
  env = make_clock(method in ("dqn", "single"), jnp.mean, action_size=3)
  experiment, _ = build(
    method.replace("single", "dqn"), env, learning_starts=STARTS, gradient_steps=2, steps=4, optimizer="sgd",
    momentum=0.0, learning_rate=RATE, **SETTINGS[method],
  )  # fmt: skip
  init, step = jax.jit(experiment.init), jax.jit(experiment.step)
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
  returned = jax.jit(experiment.evaluate)(states[0], ())["episode_return"]
  assert float(returned.total / returned.count) / LENGTH == pytest.approx((LOW + HIGH) / 2, abs=0.1)


def policy_of(method, params):
  """The greedy action of an observation (2 + 3,), in [-1, 1] or as a number, by matrix products."""
  if method == "dqn":
    return lambda x: np.argmax(mlp(params["params"]["MLP_0"], x))
  hidden = lambda x: np.asarray(mlp(params["actor"]["params"]["MLP_0"], x))
  return lambda x: np.tanh(hidden(x)[:3])


@each_method
def test_evaluation_is_the_policy_without_noise(method):
  """The return of two episodes, each of one of the two kinds, walked through in NumPy."""
  experiment, states, _ = first_updates(method)
  policy = policy_of(method, states[-1].params)

  def walk(terminates):
    action, total = np.zeros(3), 0.0
    for time in range(LENGTH):
      chosen = policy(jnp.float32([terminates * time / LENGTH, terminates, *action]))
      action = np.full(3, chosen) if method == "dqn" else LOW + (chosen + 1) / 2 * (HIGH - LOW)
      total += action.mean()
    return total

  found = jax.jit(experiment.evaluate)(states[-1], ())["episode_return"].total
  possible = [n * walk(1.0) + (2 - n) * walk(0.0) for n in range(3)]
  assert min(abs(float(found) - value) for value in possible) < 1e-4


@pytest.mark.parametrize("method", ["dqn", "single"])
def test_dqn_acts_by_its_online_network_on_what_training_sees(method):
  """Neither by its target network, nor on observations as they come where training sees them normalised."""
  experiment, states, _ = first_updates(method)
  state = states[-1]
  state = state._replace(target=jax.tree.map(jnp.negative, state.params))
  x = jax.random.normal(jax.random.key(1), (64, 5))
  see = lambda x: x
  if method == "single":
    mean = jnp.linspace(-1.0, 2.0, 5)
    state = state._replace(moments=state.moments._replace(mean=mean, variance=jnp.full(5, 4.0)))
    see = lambda x: (x - mean) / 2
  network = dueling_values if method == "single" else q_values
  with jax.numpy_rank_promotion("allow"):
    expected, by_target = (np.argmax(network(p, see(x)), axis=1) for p in (state.params, state.target))
    as_they_come = np.argmax(network(state.params, x), axis=1)
  np.testing.assert_array_equal(jax.jit(jax.vmap(experiment.model(state)))(x), expected)
  assert np.any(expected != by_target) and (method == "dqn" or np.any(expected != as_they_come))


@pytest.mark.parametrize("method", [*METHODS, "single"])
def test_figures_of_episodes_are_those_that_ended(method):
  """Every update ends one episode in each of both environments, whether by termination or by the time limit."""
  _, states, metrics = first_updates(method)
  reward = np.asarray(states[-1].replay.data.reward)
  for k in range(4):
    returned, length = metrics[k]["episode_return"], metrics[k]["episode_length"]
    assert float(returned.count) == float(length.count) == 2 and float(length.total) == 2 * LENGTH
    assert float(returned.total) == pytest.approx(reward[8 * k : 8 * k + 8].sum(), rel=1e-4)
  ends = np.asarray(states[-1].replay.data.discount[:32])
  assert 0 < np.sum(ends == 0) < 8


@pytest.mark.parametrize("method", [*METHODS, "single"])
def test_the_learning_rate_reaches_its_end_with_the_run(method):
  """Two of the four updates learn: at the full rate, then at half of it; what would come next is at 0."""
  settings = dict(learning_starts=STARTS, gradient_steps=2, steps=4, optimizer="sgd", momentum=0.0, learning_rate=RATE)
  env = make_clock(method in ("dqn", "single"), jnp.mean, action_size=3)
  optimizer = build(method.replace("single", "dqn"), env, **settings)[1].make_optimizer()
  rates = []
  for state in first_updates(method)[1]:
    ones = jax.tree.map(jnp.ones_like, state.params)
    updates = jax.tree.leaves(optimizer.update(ones, state.opt_state, state.params)[0])
    rates.append(-float(updates[0].ravel()[0]) / RATE)
  np.testing.assert_allclose(rates, [1, 1, 1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize("steps", [1, 7, 300])
@pytest.mark.parametrize("starts", [0, 1, 8, 9, 100, 400])
def test_the_schedule_is_as_long_as_learning(steps, starts):
  """Counted update by update, also where the run ends before learning starts: then flags that do nothing say so."""
  _, config = build("dqn", make_clock(True, jnp.mean), steps=steps, learning_starts=starts)
  sizes = [min(8 * (k + 1), config.replay_capacity) for k in range(steps)]
  ready = [bool(can_learn(Replay((), jnp.int32(0), jnp.int32(size)), starts)) for size in sizes]
  assert sum(ready) == config.learning_updates
  assert ("learning_rate" in config.idle_flags()) is not any(ready)
  if not any(ready):
    assert f"--learning_starts={starts}" in config.idle_flags()["learning_rate"]


def mlp(params, x, activation=jax.nn.relu):
  for i in range(len(params)):
    layer = params[f"Dense_{i}"]
    x = x @ layer["kernel"] + layer["bias"]
    x = activation(x) if i + 1 < len(params) else x
  return x


def q_values(params, x):
  return mlp(params["params"]["MLP_0"], x)


def dueling_values(params, x):
  parts = params["params"]
  hidden = jax.nn.relu(mlp(parts["MLP_0"], x))
  value, advantage = mlp(parts["value"], hidden), mlp(parts["advantage"], hidden)
  return value + advantage - jnp.mean(advantage, axis=1, keepdims=True)


def dqn_loss(network, double, huber_delta, see=lambda x: x):
  def loss(params, target, t, normal):
    rows = jnp.arange(len(t.reward))
    following = network(target, see(t.next_observation))
    best = jnp.argmax(network(params, see(t.next_observation)) if double else following, axis=1)
    y = t.reward + GAMMA * t.discount * following[rows, best]
    error = jnp.abs(jax.lax.stop_gradient(y) - network(params, see(t.observation))[rows, t.action])
    return jnp.mean(jnp.where(error <= huber_delta, error**2 / 2, huber_delta * (error - huber_delta / 2)))

  return loss


def state_action(params, observation, action):
  return mlp(params["params"]["MLP_0"], jnp.concatenate([observation, action], axis=1))[:, 0]


def ddpg_loss(params, target, t, normal):
  act = lambda p, x: jnp.tanh(mlp(p["actor"]["params"]["MLP_0"], x))
  y = t.reward + GAMMA * t.discount * state_action(
    target["critic"], t.next_observation, act(target, t.next_observation)
  )
  critic = jnp.mean((jax.lax.stop_gradient(y) - state_action(params["critic"], t.observation, t.action)) ** 2) / 2
  fixed = jax.lax.stop_gradient(params["critic"])
  return critic - jnp.mean(state_action(fixed, t.observation, act(params, t.observation)))


def sac_loss(params, target, t, normal):
  figures = sac_figures(params, target, t, normal)
  return figures["critic_loss"] + figures["actor_loss"] + figures["temperature_loss"]


def sac_figures(params, target, t, normal):
  """The density of tanh(u) by the change of variables as it stands in the appendix; the temperature's own loss."""

  def sample(x, normal):
    mean, log_std = jnp.split(mlp(params["actor"]["params"]["MLP_0"], x), 2, axis=1)
    u = mean + jnp.exp(log_std) * normal
    density = -(normal**2) / 2 - log_std - jnp.log(2 * jnp.pi) / 2 - jnp.log(1 - jnp.tanh(u) ** 2)
    return jnp.tanh(u), jnp.sum(density, axis=1)

  one = lambda critics, i: jax.tree.map(lambda p: p[i], critics)
  lower = lambda critics, x, a: jnp.minimum(*(state_action(one(critics, i), x, a) for i in range(2)))
  alpha = jax.lax.stop_gradient(jnp.exp(params["log_alpha"]))
  action, log_prob = sample(t.next_observation, normal[:, 0])
  y = t.reward + GAMMA * t.discount * (lower(target, t.next_observation, action) - alpha * log_prob)
  y = jax.lax.stop_gradient(y)
  critics = sum(jnp.mean((y - state_action(one(params["critics"], i), t.observation, t.action)) ** 2) for i in range(2))
  action, log_prob = sample(t.observation, normal[:, 1])
  actor = jnp.mean(alpha * log_prob - lower(jax.lax.stop_gradient(params["critics"]), t.observation, action))
  entropy_gap = jax.lax.stop_gradient(-log_prob) - 3 * -0.7
  temperature = params["log_alpha"] * jnp.mean(entropy_gap)
  losses = {"critic_loss": critics / 2, "actor_loss": actor, "temperature_loss": temperature}
  return losses | {"entropy": -jnp.mean(log_prob)}


def descend(method, before, after, rate, measure=lambda *_: {}):
  """(params, target, figures) after two steps of gradient descent from `before`, on the batches that the update drew.

  `measure` gets what the loss gets, before each of the steps.
  """
  see = lambda x: x
  if method == "single":
    seen = np.asarray(after.replay.data.observation[: int(after.replay.size)])
    mean, std = seen.mean(0), np.where(np.ptp(seen, axis=0) > 0, seen.std(0), 1)
    see = lambda x: jnp.clip((x - mean) / std, -10, 10)
  loss = {
    "dqn": dqn_loss(q_values, True, 0.4),
    "single": dqn_loss(dueling_values, False, 50.0, see),
    "ddpg": ddpg_loss,
    "sac": sac_loss,
  }[method]
  batches = sample_batches(after.replay, stream_key(before.key, "replay", before.step), 2, 32)
  normal = jax.random.normal(stream_key(before.key, "actions", before.step), (2, 32, 2, 3))
  pick = lambda i: jax.tree.map(lambda x: x[i], batches)
  params, target = before.params, before.target
  gradient, figures = jax.jit(jax.grad(loss)), []
  for i in range(2):
    figures.append(measure(params, target, pick(i), normal[i]))
    grads = gradient(params, target, pick(i), normal[i])
    params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
    done = 2 * (int(before.step) - 2) + i + 1  # gradient steps, of which there were none before there was enough data
    if done % SETTINGS[method].get("target_period", 1) == 0:
      online = params["critics"] if method == "sac" else params
      target = jax.tree.map(lambda old, new: 0.95 * old + 0.05 * new, target, online)
  return params, target, figures


@pytest.mark.parametrize("method", [*METHODS, "single"])
def test_an_update_is_descent_on_the_formulas(method):
  """The third update and the fourth: two steps each on the written-out loss, at the rates of the schedule."""
  _, states, _ = first_updates(method)
  for before, after, rate in zip(states[2:], states[3:], (RATE, RATE / 2)):
    with jax.numpy_rank_promotion("allow"):
      params, target, _ = descend(method, before, after, rate)
    for found, expected in ((after.params, params), (after.target, target)):
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), found, expected)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before.params, after.params)
    assert min(jax.tree.leaves(moved)) > 1e-6


def test_sacs_figures_are_means_over_its_gradient_steps():
  """The temperature is that which each step leaves."""
  _, states, metrics = first_updates("sac")
  before, after = states[2:4]
  with jax.numpy_rank_promotion("allow"):
    _, _, figures = descend("sac", before, after, RATE, jax.jit(sac_figures))
  found = {name: float(metrics[2][name].total / metrics[2][name].count) for name in (*figures[0], "temperature")}
  for name in figures[0]:
    assert found[name] == pytest.approx(np.mean([f[name] for f in figures]), rel=1e-3, abs=1e-5), name
  # Each step moves its logarithm by the rate times what the entropy has above its target, three times -0.7.
  path = float(before.params["log_alpha"]) - RATE * np.cumsum([float(f["entropy"]) + 2.1 for f in figures])
  np.testing.assert_allclose(after.params["log_alpha"], path[-1], rtol=1e-4)
  assert found["temperature"] == pytest.approx(np.mean(np.exp(path)), rel=1e-4)


def test_sac_acts_at_random_until_it_learns_and_then_by_its_policy():
  _, states, _ = first_updates("sac")
  data = states[4].replay.data
  noise = [ddpg.sample_action_noise(stream_key(s.key, "explore", s.step), (4, 2, 3)) for s in states[:4]]
  for k in range(3):
    np.testing.assert_allclose(data.action[8 * k : 8 * k + 8], noise[k].uniform.reshape(8, 3), rtol=1e-6)
  with jax.numpy_rank_promotion("allow"):
    mean, log_std = np.split(mlp(states[3].params["actor"]["params"]["MLP_0"], data.observation[24:32]), 2, axis=1)
  expected = np.tanh(mean + np.exp(log_std) * np.asarray(noise[3].normal).reshape(8, 3))
  np.testing.assert_allclose(data.action[24:32], expected, rtol=1e-4, atol=1e-5)


def test_dqn_repeats_its_random_actions_within_an_episode():
  """Every action is random: those of `sample_repeats`, held step by step in NumPy and let go where an episode ends."""
  experiment, _ = build(
    "dqn", make_clock(True, jnp.mean), steps=4, train_every=16, num_envs=5, learning_starts=400,
    repeat_exploration=True, first_epsilon=1.0, final_epsilon=1.0,
  )  # fmt: skip
  state = jax.jit(experiment.init)(jax.random.key(0), ())
  after, _ = jax.jit(experiment.step)(state, ())
  noise = jax.tree.map(np.asarray, dqn.sample_repeats(stream_key(state.key, "explore", 0), (16, 5), 2, 1.0))
  expected, left, held = np.zeros((16, 5), int), np.zeros(5, int), np.zeros(5, int)
  for t in range(16):
    for n in range(5):
      if t % LENGTH == 0:
        left[n], held[n] = noise.left[t, n], noise.action[t, n]
      elif left[n] == 0 and noise.starts[t, n]:
        left[n], held[n] = noise.length[t, n], noise.action[t, n]
      assert left[n] > 0
      expected[t, n], left[n] = held[n], left[n] - 1
  np.testing.assert_array_equal(after.replay.data.action[:80].reshape(16, 5), expected)
  assert np.any(noise.action != expected)


@pytest.mark.parametrize("method", METHODS)
def test_every_network_has_the_flags_widths_and_precision(method, monkeypatch):
  module = importlib.import_module(f"experiments.rl.{method}")
  networks = {"dqn": [(dqn, "QNetwork")], "ddpg": [(ddpg, "Actor"), (ddpg, "Critic")]}
  networks["sac"] = [(sac, "GaussianActor"), (module, "Critic")]
  calls = []
  for holder, name in networks[method]:
    make = getattr(holder, name)
    record = lambda *given, make=make, **named: calls.append((given[0], named.get("dtype"))) or make(*given, **named)
    monkeypatch.setattr(holder, name, record)
    if getattr(module, name, None) is make:
      monkeypatch.setattr(module, name, record)
  build(method, make_clock(method == "dqn", jnp.mean), hidden=(6, 4), precision="bfloat16")
  assert calls == [((6, 4), jnp.bfloat16)] * len(networks[method])


@pytest.mark.parametrize("method", METHODS)
def test_numbers_that_a_sweep_varies_start_as_their_flags_say(method):
  given = {"discount": 0.7, "tau": 0.3}
  given |= {
    "dqn": dict(huber_delta=0.6, first_epsilon=0.9, final_epsilon=0.2, exploration=0.4),
    "ddpg": dict(exploration_noise=0.25),
    "sac": dict(target_entropy=-0.6),
  }[method]
  more = dict(initial_temperature=0.3) if method == "sac" else {}
  experiment, _ = build(method, make_clock(method == "dqn", jnp.mean), hidden=(2,), **given, **more)
  state = jax.jit(experiment.init)(jax.random.key(0), ())
  assert {name: round(float(value), 6) for name, value in state.hparams.items()} == given
  if method == "sac":
    assert float(state.params["log_alpha"]) == pytest.approx(np.log(0.3))


def test_dqn_explores_by_its_schedule():
  """All at random, half, none, none: --exploration is half of the run. Without chance it is the greedy action."""
  _, states, metrics = first_updates("dqn")
  np.testing.assert_allclose([float(m["epsilon"]) for m in metrics], [1, 0.5, 0, 0])
  data = states[-1].replay.data
  for k in (2, 3):
    rows = slice(8 * k, 8 * k + 8)
    greedy = [int(policy_of("dqn", states[k].params)(x)) for x in data.observation[rows]]
    np.testing.assert_array_equal(data.action[rows], greedy)
  assert len(set(np.asarray(data.action[:8]).tolist())) == 2


def test_ddpg_explores_around_its_action():
  _, states, _ = first_updates("ddpg")
  before, data = states[3], states[4].replay.data
  normal = ddpg.sample_action_noise(stream_key(before.key, "explore", before.step), (4, 2, 3)).normal.reshape(8, 3)
  policy = policy_of("ddpg", before.params)
  expected = np.stack([policy(x) for x in data.observation[24:32]]) + 0.3 * np.asarray(normal)
  np.testing.assert_allclose(data.action[24:32], np.clip(expected, -1, 1), rtol=1e-4, atol=1e-5)


def test_decay_is_of_kernels_also_where_two_critics_are_stacked():
  """Weight decay alone: with zero gradients kernels shrink, biases and the temperature stay."""
  _, config = build("sac", make_clock(False, jnp.mean, action_size=3), optimizer="sgdw", weight_decay=0.5)
  optimizer, params = config.make_optimizer(), first_updates("sac")[1][-1].params
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  for path, update in jax.tree_util.tree_leaves_with_path(updates):
    assert bool(np.any(update)) is ("kernel" in jax.tree_util.keystr(path)), jax.tree_util.keystr(path)


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


@pytest.mark.parametrize(("method", "env"), [("sac", "CartPole-v1"), ("ddpg", "CartPole-v1"), ("dqn", "Pendulum-v1")])
def test_an_environment_that_does_not_suit_is_refused_before_other_flags_are_spoken_of(method, env):
  with pytest.raises(InputError, match=f"--env={env} has"):
    importlib.import_module(f"experiments.rl.{method}").Config(env=env, steps=1).idle_flags()
