"""The entrypoints that are one computation: their pictures, their result cards, settings per environment."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags as absl_flags

from experiments.rl import (
  cliff_figure,
  corridor_figure,
  dyna_maze_figure,
  linear_sarsa,
  mountain_car_figures,
  ppo,
  value_iteration,
)
from mlnotes.engine.errors import InputError
from mlnotes.engine.flags import define, parse
from mlnotes.rl.linear import Agent, NStepMemory, StepRecord
from mlnotes.rl.table import Dynamics, Table, read_table
from mlnotes.rl.tabular import update_expected_sarsa, update_q_learning, update_sarsa


def test_value_iteration_leaves_its_figures_and_a_map(tmp_path, capsys):
  assert value_iteration.main(value_iteration.Config(env="CliffWalking-v1", workdir=str(tmp_path))) == 0
  card = json.loads((tmp_path / "result.json").read_text())
  assert card["finished"] and card["metrics"]["episode_return"]["mean"] == -13
  assert (tmp_path / "values.png").stat().st_size > 1000
  assert "episode_return -13" in capsys.readouterr().out


@pytest.mark.parametrize(("env", "value"), [("DynaMaze", 1.0), ("FrozenLake8x8-v1", 1.0), ("CliffWalking-v1", -13.0)])
def test_value_iteration_without_a_discount_follows_a_policy_that_arrives(env, value):
  panel, figures = value_iteration.solve(read_table(env), value_iteration.Config(env=env, discount=1.0))
  for name in ("start_value", "start_value_policy_iteration", "start_value_of_greedy_policy"):
    assert figures[name] == pytest.approx(value, rel=1e-3)
  if env != "FrozenLake8x8-v1":
    assert figures["episode_return"] == value
  else:  # the largest chance of arriving at all takes more than its 200 steps now and then
    assert 0.65 < figures["episode_return"] < 0.75
  assert panel.actions.shape == panel.values.shape[:1]


def test_a_figure_summarises_its_runs(tmp_path):
  assert cliff_figure.main(cliff_figure.Config(runs=3, episodes=200, workdir=str(tmp_path))) == 0
  metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
  assert all(len(value["seeds"]) == 3 for value in metrics.values())
  assert metrics["reward_sarsa"]["mean"] > metrics["reward_q_learning"]["mean"]
  assert (tmp_path / "cliff.png").stat().st_size > 1000


def make_two_rooms():
  """From room 0 one leaves with 1 or goes on to room 1; there one leaves with 4 or stays for a half."""
  column = lambda values, kind: np.array(values, kind)[..., None]
  dynamics = Dynamics(
    column([[0, 1], [1, 1]], np.int32),
    np.ones((2, 2, 1), np.float32),
    column([[1, 0], [4, 0.5]], np.float32),
    column([[True, False], [True, False]], bool),
    np.float32([0.25, 0.75]),
  )
  return Table("two rooms", dynamics, 1, ("leave", "go on"))


def test_value_iterations_figures_are_those_worked_out_by_hand():
  """With half of the future's worth, room 1 is worth 4 and room 0 half of that; one step of time earns 0 in room 0."""
  panel, figures = value_iteration.solve(make_two_rooms(), value_iteration.Config(discount=0.5))
  for name in ("start_value", "start_value_policy_iteration", "start_value_of_greedy_policy"):
    assert figures[name] == pytest.approx(0.25 * 2 + 0.75 * 4)
  assert figures["episode_return"] == pytest.approx(0.75 * 4)
  longer = value_iteration.solve(make_two_rooms()._replace(time_limit=2), value_iteration.Config(discount=0.5))
  assert longer[1]["episode_return"] == pytest.approx(4)
  np.testing.assert_allclose(panel.values, [[1, 2], [4, 2.5]], rtol=1e-5)
  np.testing.assert_array_equal(panel.actions, [1, 0])
  _, figures = value_iteration.solve(make_two_rooms(), value_iteration.Config(discount=0.5, threshold=100.0))
  assert figures["value_iteration_sweeps"] == 1 and figures["start_value"] == pytest.approx(0.25 * 1 + 0.75 * 4)
  assert figures["start_value_policy_iteration"] == pytest.approx(3.5)


# -- figures over many runs --------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
  """{file name: {label: values of the line}} of every picture that is saved."""
  found = {}

  def keep(figure, path):
    lines = [line for axis in figure.axes for line in axis.get_lines()]
    found[path.name] = {line.get_label(): np.asarray(line.get_ydata()) for line in lines}

  monkeypatch.setattr("mlnotes.engine.plot.save_figure", keep)
  return found


def figures_of(module, config):
  assert module.main(config) == 0
  metrics = json.loads((Path(config.workdir) / "result.json").read_text())["metrics"]
  return {name: value.get("seeds", value["mean"]) for name, value in metrics.items()}


def numbered(*shape):
  """No two values the same, and no two means over any part."""
  return np.random.default_rng(0).normal(size=shape)


def test_the_cliffs_figures_are_means_over_the_last_episodes_of_each_run(monkeypatch, tmp_path, drawn):
  rewards = {name: numbered(2, 6) + i for i, name in enumerate(cliff_figure.METHODS)}
  monkeypatch.setattr(cliff_figure, "measure", lambda config: rewards)
  found = figures_of(cliff_figure, cliff_figure.Config(episodes=6, last=2, workdir=str(tmp_path)))
  for name, values in rewards.items():
    np.testing.assert_allclose(found[f"reward_{name}"], (values[:, 4] + values[:, 5]) / 2)
    np.testing.assert_allclose(drawn["cliff.png"][cliff_figure.METHODS[name]], (values[0] + values[1]) / 2)


def learn_nothing(table, rule, settings, key, num_episodes):
  """What `learn_episodes` was asked for, in place of rewards and of steps."""
  asked = jnp.array([settings.learning_rate, settings.step_size_power, settings.discount, settings.epsilon])
  rules = (update_sarsa, update_expected_sarsa, update_q_learning)
  number = [rule.update is update for update in rules].index(True) if rule.update in rules else 0
  asked = jnp.append(asked, jnp.array([number, rule.noise_size, table.num_states, num_episodes], float))
  return asked, jnp.append(asked, jax.random.uniform(key))


def test_the_cliffs_curves_are_of_their_own_methods_with_the_flags_as_given(monkeypatch):
  monkeypatch.setattr(cliff_figure, "learn_episodes", learn_nothing)
  found = cliff_figure.measure(cliff_figure.Config(runs=2, episodes=7, last=1, learning_rate=0.25, epsilon=0.125))
  for i, name in enumerate(("sarsa", "expected_sarsa", "q_learning")):
    np.testing.assert_allclose(found[name], [[0.25, 0, 1, 0.125, i, 0, 48, 7]] * 2)


def test_the_mazes_figures_leave_out_the_first_episode(monkeypatch, tmp_path, drawn):
  steps = {0: numbered(2, 3), 7: numbered(2, 3) + 1}
  monkeypatch.setattr(dyna_maze_figure, "measure", lambda config: steps)
  found = figures_of(dyna_maze_figure, dyna_maze_figure.Config(workdir=str(tmp_path)))
  for n, label in ((0, "0 planning steps (Q-learning)"), (7, "7 planning steps")):
    np.testing.assert_allclose(found[f"steps_per_episode_n{n}"], (steps[n][:, 1] + steps[n][:, 2]) / 2)
    np.testing.assert_allclose(drawn["dyna_maze.png"][label], (steps[n][0, 1:] + steps[n][1, 1:]) / 2)


def test_the_mazes_curves_are_of_their_own_planning_steps_with_the_flags_as_given(monkeypatch):
  monkeypatch.setattr(dyna_maze_figure, "learn_episodes", learn_nothing)
  config = dyna_maze_figure.Config(
    runs=2, episodes=7, planning_steps=(3, 0), learning_rate=0.25, epsilon=0.125, discount=0.5
  )
  found = dyna_maze_figure.measure(config)
  assert list(found) == [3, 0]
  for n, values in found.items():
    np.testing.assert_allclose(values[:, :-1], [[0.25, 0, 0.5, 0.125, 0, n, 54, 7]] * 2)
  np.testing.assert_array_equal(found[0][:, -1], found[3][:, -1])
  assert found[0][0, -1] != found[0][1, -1]


def test_mountain_cars_figures_are_of_the_episodes_and_settings_that_they_name(monkeypatch, tmp_path, drawn):
  alphas, decays, rates = (getattr(mountain_car_figures, x) for x in ("ALPHAS", "TRACE_DECAYS", "TRACE_ALPHAS"))
  curves, points = numbered(len(alphas), 2, 500), numbered(len(decays), len(rates), 3)
  best = 1 + np.arange(len(decays)) % 5
  points[np.arange(len(decays)), best] -= 10
  points[:, 0, 0] = np.inf
  monkeypatch.setattr(mountain_car_figures, "measure_curves", lambda config: curves)
  monkeypatch.setattr(mountain_car_figures, "measure_trace_decays", lambda config: points)
  found = figures_of(mountain_car_figures, mountain_car_figures.Config(workdir=str(tmp_path)))
  for alpha, values in zip(alphas, curves):
    np.testing.assert_allclose(found[f"alpha_{alpha}/episodes_401_to_500"], [sum(run[400:]) / 100 for run in values])
    np.testing.assert_allclose(drawn["learning_curves.png"][rf"$\alpha={alpha}/8$"], (values[0] + values[1]) / 2)
  for decay, values, i in zip(decays, points, best):
    np.testing.assert_allclose(found[f"lambda_{decay:g}/best_alpha"], rates[i])
    np.testing.assert_allclose(found[f"lambda_{decay:g}/first_50_episodes"], values[i])
    np.testing.assert_allclose(drawn["trace_decay.png"][rf"$\lambda={decay:g}$"], values[1:].mean(1))


def test_mountain_cars_settings_are_measured_each_by_its_own_runs(monkeypatch):
  config = mountain_car_figures.Config(runs=2, trace_runs=3)

  def measure_episodes(config, learner, alpha, trace_decay, num_episodes, most_steps):
    assert (num_episodes, most_steps) in [(500, 500 * config.longest), (50, 50 * 400)]
    one_step = isinstance(learner.init(), NStepMemory) and len(learner.init().action) == 1
    assert one_step == (num_episodes == 500)
    return (np.arange(len(alpha)) + 100 * alpha + 10_000 * trace_decay)[:, None] + np.array([-1.0, 1.0])

  monkeypatch.setattr(mountain_car_figures, "measure_episodes", measure_episodes)
  curves = mountain_car_figures.measure_curves(config)
  np.testing.assert_allclose(curves[1, 1], [3 + 100 * 0.2 - 1, 3 + 100 * 0.2 + 1], rtol=1e-5)
  points = mountain_car_figures.measure_trace_decays(config)
  assert points.shape == (7, 8, 3)
  np.testing.assert_allclose(points[2, 1], np.arange(3, 6) + 100 * 0.5 + 10_000 * 0.84, rtol=1e-5)


def test_mountain_cars_episodes_are_the_first_of_each_run_in_their_order(monkeypatch):
  """Run i ends an episode every i + 2 steps, whose length tells its number and its settings; chunks of 4 steps."""
  monkeypatch.setattr(mountain_car_figures, "CHUNK", 4)
  monkeypatch.setattr(mountain_car_figures, "init_agent", lambda env, tiling, learner, key, epsilon: jnp.zeros([]))

  def learn(env, tiling, learner, agent, key, num_steps, *, step_size, trace_decay, epsilon, discount):
    assert (num_steps, epsilon, discount, env.time_limit) == (4, 0.0, 1.0, 77)
    time = agent + jnp.arange(1, 5)
    every = 2 + trace_decay
    length = jnp.int32(time / every) * 1000 + jnp.int32(step_size * 80)
    return agent + 4, StepRecord(time, time % every == 0, time, length)

  monkeypatch.setattr(mountain_car_figures, "learn", learn)
  config = mountain_car_figures.Config(num_tilings=4, longest=77)
  alpha, decay = np.float32([0.1, 0.2, 0.3]), np.float32([0, 1, 2])
  found = mountain_car_figures.measure_episodes(config, None, alpha, decay, 4, 12)
  np.testing.assert_array_equal(found, [[1002, 2002, 3002, 4002], [1004, 2004, 3004, 4004], [1006, 2006, 3006, np.inf]])


def test_the_corridors_figures_are_of_the_windows_and_methods_that_they_name(monkeypatch, tmp_path, drawn):
  rewards = numbered(4, 2, 300)
  monkeypatch.setattr(corridor_figure, "measure", lambda config: rewards)
  found = figures_of(corridor_figure, corridor_figure.Config(workdir=str(tmp_path)))
  names = ("theta_2^-12", "theta_2^-13", "theta_2^-14", "theta_2^-9_w_2^-6")
  for name, values, (theta, w) in zip(names, rewards, corridor_figure.METHODS):
    np.testing.assert_allclose(found[f"{name}/episodes_151_to_200"], [sum(run[150:200]) / 50 for run in values])
    np.testing.assert_allclose(found[f"{name}/last_100"], [sum(run[200:]) / 100 for run in values])
    line = drawn["corridor.png"][corridor_figure.label(theta, w)]
    np.testing.assert_allclose(line, (values[0] + values[1]) / 2)
  assert found["best"] == pytest.approx([-11.66], abs=0.01)


def test_the_corridors_runs_have_the_step_sizes_of_their_method(monkeypatch):
  def run_reinforce(env, key, params, theta_step, w_step, num_episodes):
    right = jax.nn.softmax(params.theta)[0]
    return params, jnp.array([theta_step, w_step, right, env.time_limit, num_episodes])

  monkeypatch.setattr(corridor_figure, "run_reinforce", run_reinforce)
  found = corridor_figure.measure(corridor_figure.Config(runs=2, episodes=5, longest=9, first_right=0.25))
  expected = [[2**-12, 0], [2**-13, 0], [2**-14, 0], [2**-9, 2**-6]]
  np.testing.assert_allclose(found, [[[*steps, 0.25, 9, 5]] * 2 for steps in expected], rtol=1e-5)


# -- linear SARSA ------------------------------------------------------------------------------------------------------


def test_linear_sarsa_learns_with_the_flags_as_given_and_acts_greedily(monkeypatch):
  """What each update asks for, what it reports, and what the policy takes where action 2 is worth the most."""
  asked = []

  def learn(env, tiling, learner, agent, key, num_steps, **settings):
    asked.append((num_steps, {name: float(value) for name, value in settings.items()}))
    last = jnp.array([False, True, True])
    return agent, StepRecord(jnp.array([1.0, -3.0, 0.0]), last, jnp.array([9.0, -2.0, -4.0]), jnp.array([9, 2, 6]))

  zero = jnp.zeros([])
  init_agent = lambda env, tiling, learner, key, epsilon: Agent(learner.init(), None, None, zero, zero, zero)
  monkeypatch.setattr(linear_sarsa, "init_agent", init_agent)
  monkeypatch.setattr(linear_sarsa, "learn", learn)
  given = dict(
    steps=4, learning_rate=0.8, num_tilings=8, trace_decay=0.5, epsilon=0.25, discount=0.75, steps_per_update=3
  )
  experiment = linear_sarsa.make(linear_sarsa.Config(**given))
  state = experiment.init(jax.random.key(0), ())
  state, metrics = experiment.step(state, ())
  state, _ = experiment.step(state, ())
  settings = dict(trace_decay=0.5, epsilon=0.25, discount=0.75)
  for (steps, found), step_size in zip(asked, (0.1, 0.075), strict=True):
    assert steps == 3 and found == pytest.approx(settings | {"step_size": step_size})
  assert metrics["squared_td_error"] == pytest.approx(10 / 3)
  assert metrics["episode_return"] == (-6, 2) and metrics["episode_length"] == (8, 2)
  weights = jnp.zeros_like(state.params).at[:, 2].set(1.0).at[:, 0].set(-1.0)
  state = state._replace(agent=state.agent._replace(memory=state.agent.memory._replace(weights=weights)))
  assert int(experiment.model(state)(jnp.array([-0.5, 0.0]))) == 2

  experiment = linear_sarsa.make(linear_sarsa.Config(**given, schedule="constant", traces="none", n=3))
  state = experiment.init(jax.random.key(0), ())
  experiment.step(state._replace(step=state.step + 3), ())
  assert asked[-1][1]["step_size"] == pytest.approx(0.1)
  assert len(state.agent.memory.action) == 3


@pytest.mark.parametrize("traces", ["accumulating", "replacing", "dutch"])
def test_linear_sarsas_traces_are_those_of_the_flag(traces, monkeypatch):
  monkeypatch.setattr(linear_sarsa, "make_sarsa_lambda", lambda tiling, num_actions, kind: (num_actions, kind))
  assert linear_sarsa.make_learner(linear_sarsa.Config(traces=traces), None, 3) == (3, traces)


def parsed(*argv):
  values = absl_flags.FlagValues()
  define(ppo.Config, values)
  values(["program", *argv])
  return parse(ppo.Config, values)


def test_an_environments_settings_give_way_to_flags():
  tuned = ppo.Config.TUNED["Pendulum-v1"]
  config = parsed("--env=Pendulum-v1")
  assert all(getattr(config, name) == value for name, value in tuned.items())
  config = parsed("--env=Pendulum-v1", "--discount=0.99", "--epochs=4")
  assert (config.discount, config.epochs, config.minibatches) == (0.99, 4, tuned["minibatches"])
  assert parsed() == ppo.Config()


def test_what_does_not_fit_together_names_the_flag():
  with pytest.raises(InputError, match="--minibatches=3"):
    parsed("--minibatches=3")
