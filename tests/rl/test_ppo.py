"""PPO's losses beside a plain loop; its ratio before the first update; what it learns where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rl import _on_policy, ppo
from mlnotes.engine.program import Program, make_mesh, window_means
from mlnotes.rl.env import Box
from mlnotes.rl.ppo import approximate_kl, clip_fraction, clipped_surrogate_loss, clipped_value_loss
from mlnotes.rl.probe import constant_reward_env
from mlnotes.rl.registry import make_env


def test_surrogate_by_cases():
  """One case per corner of figure 1 of the paper, by hand: clip 0.2."""
  log_prob = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5, 1.1]))
  advantage = jnp.array([2.0, -2.0, 2.0, -2.0, 3.0])
  # A > 0: r is cut from above only; A < 0: from below only.
  expected = [-2.4, 3.0, -1.0, 1.6, -3.3]
  loss = clipped_surrogate_loss(log_prob, jnp.zeros(5), advantage, 0.2)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  grads = jax.grad(lambda x: jnp.sum(clipped_surrogate_loss(x, jnp.zeros(5), advantage, 0.2)))(log_prob)
  # Where the cut is what counts there is nothing left to gain: no gradient.
  np.testing.assert_allclose(grads, [0.0, 3.0, -1.0, 0.0, -3.3], rtol=1e-6, atol=1e-7)


def test_value_loss_by_cases():
  value, old, target = jnp.array([3.0, 1.1, -2.0]), jnp.array([1.0, 1.0, 1.0]), jnp.array([3.0, 2.0, -5.0])
  # Moved by 2, kept at 1.2: the cut one is the larger error; moved by .1: equal; moved by -3, kept at .8.
  np.testing.assert_allclose(
    clipped_value_loss(value, old, target, 0.2), [0.5 * 1.8**2, 0.5 * 0.9**2, 0.5 * 5.8**2], rtol=1e-6
  )
  np.testing.assert_allclose(clipped_value_loss(value, old, target, jnp.inf), 0.5 * (value - target) ** 2, rtol=1e-6)


def test_kl_estimate_is_unbiased_and_the_clip_fraction_counts():
  old, new = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
  estimate = approximate_kl(jnp.log(new), jnp.log(old))
  # Its mean under the old policy is the exact KL.
  np.testing.assert_allclose(np.sum(old * estimate), np.sum(old * np.log(old / new)), rtol=1e-5)
  assert np.all(estimate >= 0)
  np.testing.assert_array_equal(clip_fraction(jnp.log(new), jnp.log(old), 0.35), [1, 0, 1])


SMALL = dict(num_envs=4, rollout_length=32, steps=20, minibatches=2, epochs=2, hidden=(16,))


@pytest.mark.thorough
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_before_the_first_update_the_ratio_is_one_everywhere(env, monkeypatch):
  """Log-probabilities of the rollout's own actions, at every step, episode boundaries and later rollouts included."""
  seen = []
  make = _on_policy.make_on_policy_experiment

  def make_spying(config, learn, hparams, gradient_steps):
    def spy(networks, optimizer, state, batch, key):
      # The actions that the same noise gives on the observations that learning sees are the ones that were taken.
      noise = networks.sample_noise(_on_policy.stream_key(state.key, "act", state.step), batch.value.shape)
      policy = networks.policy(state.params, batch.observation)
      ratio = jnp.exp(policy.log_prob(batch.action) - policy.log_prob(policy.sample(noise)))
      params, opt_state, metrics = learn(networks, optimizer, state, batch, key)
      return params, opt_state, {**metrics, "ratio_error": jnp.max(jnp.abs(ratio - 1))}

    return make(config, spy, hparams, gradient_steps)

  monkeypatch.setattr(ppo, "make_on_policy_experiment", make_spying)
  experiment = ppo.make(ppo.Config(env=env, normalize_observations=True, **SMALL))
  state = jax.jit(experiment.init)(jax.random.key(0), ())
  step = jax.jit(experiment.step)
  for _ in range(4):
    state, metrics = step(state, ())
    seen.append(float(metrics["ratio_error"]))
  assert max(seen) < 1e-4


@pytest.mark.thorough
def test_one_gradient_step_reports_no_divergence_and_several_do():
  one = ppo.make(ppo.Config(**{**SMALL, "epochs": 1, "minibatches": 1}))
  several = ppo.make(ppo.Config(**{**SMALL, "epochs": 8}, learning_rate=1e-2))
  for experiment, zero in ((one, True), (several, False)):
    state = jax.jit(experiment.init)(jax.random.key(0), ())
    _, metrics = jax.jit(experiment.step)(state, ())
    if zero:
      assert abs(float(metrics["approximate_kl"])) < 1e-9 and metrics["clip_fraction"] == 0
    else:
      assert float(metrics["approximate_kl"]) > 1e-4


@pytest.mark.thorough
@pytest.mark.parametrize(("terminates", "expected"), [(True, None), (False, 1 / (1 - 0.9))])
def test_values_of_a_constant_reward(terminates, expected, monkeypatch):
  """Truncated for ever: 1 / (1 - gamma) everywhere. Terminated after 5: the finite sums. Same episodes, other ends."""
  env = constant_reward_env(time_limit=5, terminates=terminates, clock=terminates)
  monkeypatch.setattr(_on_policy, "make_env", lambda name: env)
  config = ppo.Config(
    num_envs=4, rollout_length=20, steps=400, discount=0.9, learning_rate=1e-2, clip_value_loss=False, hidden=(32,),
    clip_norm=0.0,
  )  # fmt: skip
  experiment = ppo.make(config)
  state = jax.jit(experiment.init)(jax.random.key(0), ())
  state = jax.jit(lambda state: jax.lax.fori_loop(0, 400, lambda _, s: experiment.step(s, ())[0], state))(state)
  networks = _on_policy.make_actor_critic(env, config.hidden)
  values = networks.value(state.params, jnp.arange(5.0)[:, None] * terminates)
  exact = [expected] * 5 if expected else [sum(0.9**k for k in range(5 - t)) for t in range(5)]
  np.testing.assert_allclose(values, exact, rtol=0.06)


@pytest.mark.thorough
def test_learns_cartpole_and_reports_the_kl():
  config = ppo.Config(steps=160)
  program = Program(ppo.make(config), ppo.make_feeds(config), (0, 1), make_mesh(1))
  state = program.init()
  before = program.evaluate(state)["episode_return"]
  state, window = program.update(state, program.empty_window(), 160)
  means = window_means(window)
  assert np.all(before < 100)
  assert np.all(program.evaluate(state)["episode_return"] > 180)
  assert np.all((means["approximate_kl"] > 0) & (means["approximate_kl"] < 0.05))


@pytest.mark.thorough
def test_actions_reach_the_environment_within_bounds():
  env = make_env("Pendulum-v1")
  assert isinstance(env.actions, Box)
  experiment = ppo.make(ppo.Config(env="Pendulum-v1", initial_std=50.0, **SMALL))
  state = jax.jit(experiment.init)(jax.random.key(0), ())
  state, _ = jax.jit(experiment.step)(state, ())
  assert np.all(np.abs(state.actors.state.last_u) <= 2.0)


def test_minibatches_that_do_not_divide_are_one_sentence():
  with pytest.raises(ValueError, match="--minibatches=3 is out of range: expected a divisor of the 512 steps"):
    ppo.Config(minibatches=3)
