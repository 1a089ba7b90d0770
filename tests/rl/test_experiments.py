"""What the agents' experiments have in common: the checkpoint that they keep, and flags that change nothing."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.rl import _agent as shared
from mlnotes.engine.errors import InputError
from mlnotes.optim import LookaheadState
from mlnotes.rl.registry import make_env

AGENTS = ("a2c", "actor_critic", "ddpg", "dqn", "ppo", "reinforce", "sac", "trpo")


TABLE = {"eval_episodes", "precision"}


def load(name):
  return importlib.import_module(f"experiments.rl.{name}")


@pytest.mark.parametrize("name", AGENTS)
def test_the_best_checkpoint_is_that_of_the_highest_return(name, monkeypatch):
  given = {}
  monkeypatch.setattr(shared, "train", lambda *args, **settings: given.update(settings) or 0)
  assert load(name).main(load(name).Config(steps=400)) == 0
  assert (given["best_metric"], given["best_mode"]) == ("episode_return", "max")


@pytest.mark.parametrize(
  "name, flags, idle",
  [
    ("ppo", {}, {"initial_std"}),
    ("ppo", dict(env="Pendulum-v1"), set()),
    ("ppo", dict(env="Pendulum-v1", epochs=1, minibatches=1), {"clip", "clip_value_loss"}),
    ("a2c", {}, {"initial_std"}),
    ("trpo", {}, {"initial_std", "value_weight"}),
    ("reinforce", dict(baseline=False), {"initial_std", "value_weight"}),
    ("reinforce", dict(env="Pendulum-v1"), set()),
    ("dqn", {}, set()),
    ("dqn", dict(target_period=1, first_epsilon=0.1, final_epsilon=0.1), {"double", "exploration"}),
    ("dqn", dict(target_period=1, tau=0.1), set()),
    ("sac", dict(steps=10), {"learning_rate", "schedule", "gradient_steps", "batch_size", "tau", "optimizer", "steps"}),
    ("ddpg", {}, set()),
    ("actor_critic", {}, {"precision"}),
    ("ppo", dict(env="Breakout-MinAtar"), {"initial_std", "gym_episodes"}),
    ("dqn", dict(env="Catch-bsuite"), {"gym_episodes", "gif"}),
    ("q_learning", {}, TABLE | {"exploration_fraction"}),
    ("q_learning", dict(epsilon=0.5), TABLE),
    ("sarsa", dict(env="DynaMaze", epsilon=0.5), TABLE | {"gym_episodes", "gif"}),
    ("sarsa_lambda", dict(epsilon=0.5), TABLE),
    ("watkins_q", dict(epsilon=0.5, trace_decay=0.0), TABLE | {"traces"}),
    ("linear_sarsa", {}, {"precision", "n", "max_features"}),
    ("linear_sarsa", dict(traces="none", tiles_per_dim=100), {"precision", "trace_decay"}),
    ("linear_sarsa", dict(trace_decay=0.0, max_features=1000), {"precision", "n", "traces"}),
  ],
)
def test_flags_that_change_nothing_beside_the_others_are_named(name, flags, idle):
  config = load(name).Config(**flags)
  optimizers = {"final_learning_rate", "beta2", "adam_eps", "momentum", "warmup_steps"}
  assert set(config.idle_flags()) - optimizers == idle


@pytest.mark.parametrize(
  "name, flags, message",
  [
    ("ppo", dict(rollout_length=1, num_envs=4, minibatches=4), "--rollout_length=1 .* 2 or more steps in each loss"),
    ("trpo", dict(rollout_length=1, num_envs=1, minibatches=1, curvature_stride=1), "--rollout_length=1 is out of"),
    ("a2c", dict(value_weight=-1.0), "--value_weight=-1.0 is out of range: expected 0 or more"),
    ("dqn", dict(steps=20, warmup_steps=5), "--warmup_steps=5 .* at most 2, half of the 5 updates that take"),
  ],
)
def test_settings_that_cannot_learn_are_refused(name, flags, message):
  with pytest.raises(InputError, match=message):
    load(name).Config(**flags)


def test_a_loss_of_one_step_needs_no_standard_deviation():
  load("ppo").Config(rollout_length=1, num_envs=4, minibatches=4, normalize_advantages=False)
  load("a2c").Config(rollout_length=1, num_envs=1)


@pytest.mark.parametrize(
  "name, flags, unit, count",
  [
    ("ppo", dict(num_envs=6, rollout_length=10, minibatches=4), "env_steps", 60),
    ("a2c", dict(num_envs=6, rollout_length=10), "env_steps", 60),
    ("trpo", dict(num_envs=6, rollout_length=10, minibatches=4), "env_steps", 60),
    ("dqn", dict(num_envs=6, train_every=10, gradient_steps=3), "env_steps", 60),
    ("sac", dict(num_envs=6, train_every=10, gradient_steps=3), "env_steps", 60),
    ("actor_critic", dict(num_envs=6, steps_per_update=10), "env_steps", 60),
    ("reinforce", dict(num_envs=6), "episodes", 6),
  ],
)
def test_curves_count_what_an_update_takes_from_the_environment(name, flags, unit, count):
  config = load(name).Config(**flags)
  assert (config.UNIT, config.units_per_update) == (unit, count)


@pytest.mark.parametrize("name", AGENTS)
def test_environments_with_settings_of_their_own_are_there_and_get_them(name):
  """Under a name that nothing has, the settings would never be used."""
  config = load(name).Config
  for env, settings in getattr(config, "TUNED", {}).items():
    assert make_env(env).name == env
    tuned = config.tuned(env=env)
    assert {key: getattr(tuned, key) for key in settings} == settings
    assert any(getattr(config(env=env), key) != value for key, value in settings.items())


@pytest.mark.parametrize("name", ["a2c", "dqn", "reinforce", "sac"])
def test_what_lookahead_returns_is_judged(name):
  """The slow weights, in evaluations, in reports and in what a run gives."""
  module = load(name)
  agent = module.make(module.Config(lookahead=5, hidden=(4,), steps=400))
  state = jax.jit(agent.init)(jax.random.key(0), ())
  flat, restore = ravel_pytree(state.params)
  slow = restore(jnp.linspace(-1.0, 1.0, flat.size))
  is_lookahead = lambda node: isinstance(node, LookaheadState)
  swap = lambda node: node._replace(slow=slow) if is_lookahead(node) else node
  trained = state._replace(opt_state=jax.tree.map(swap, state.opt_state, is_leaf=is_lookahead))
  jax.tree.map(np.testing.assert_array_equal, shared.trained_policy(trained).params, slow)
  plain = module.make(module.Config(hidden=(4,), steps=400))
  expected = jax.jit(plain.evaluate)(jax.jit(plain.init)(jax.random.key(0), ())._replace(params=slow), ())
  found = jax.jit(agent.evaluate)(trained, ())
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert found != jax.jit(plain.evaluate)(jax.jit(plain.init)(jax.random.key(0), ()), ())
