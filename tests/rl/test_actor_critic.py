"""The actor-critic with traces against the book's box in NumPy, exact gradients on a bandit, and CartPole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rl import actor_critic
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import stream_key
from mlnotes.rl import traces
from mlnotes.rl.env import step_with_reset
from mlnotes.rl.registry import make_env

GAMMA, ACTOR_DECAY, CRITIC_DECAY = 0.9, 0.6, 0.8
ACTOR_STEP, CRITIC_STEP = 0.2, 0.1


def make_episodes(seed, lengths, truncated):
  """(actor features, critic features, actions, rewards, truncated) of each episode; a critic with more features."""
  rng = np.random.default_rng(seed)
  draw = lambda n, size: rng.normal(size=(n + 1, size)).astype(np.float32)
  return [
    (draw(n, 3), draw(n, 5), rng.integers(0, 4, n), rng.normal(size=n), i in truncated) for i, n in enumerate(lengths)
  ]


def actor_critic_box(episodes):
  """The box in section 13.5 with I = 1 throughout, in float64."""
  theta, w = np.zeros((3, 4)), np.zeros(5)
  for x, y, action, reward, truncated in episodes:
    z_theta, z_w = np.zeros_like(theta), np.zeros_like(w)
    for t in range(len(reward)):
      ends = t + 1 == len(reward) and not truncated
      delta = reward[t] + (0 if ends else GAMMA * (w @ y[t + 1])) - w @ y[t]
      preferences = x[t] @ theta
      pi = np.exp(preferences) / np.exp(preferences).sum()
      z_w = GAMMA * CRITIC_DECAY * z_w + y[t]
      score = np.zeros_like(theta)
      for b in range(4):
        score[:, b] = x[t] * ((b == action[t]) - pi[b])
      z_theta = GAMMA * ACTOR_DECAY * z_theta + score
      w, theta = w + CRITIC_STEP * delta * z_w, theta + ACTOR_STEP * delta * z_theta
  return theta, w


def test_the_updates_are_the_box_of_the_book():
  """Over five episodes, two of them truncated: those bootstrap, and no trace survives into the next."""
  episodes = make_episodes(0, (7, 3, 1, 6, 4), truncated=(1, 3))
  example = traces.Features(jnp.zeros(3), jnp.zeros(5))
  params = traces.init_parameters(example, 4)
  trace = traces.Traces(*jax.tree.map(jnp.zeros_like, params))
  update = jax.jit(lambda p, z, transition: traces.update_traces(p, z, transition, ACTOR_DECAY, CRITIC_DECAY))
  for x, y, action, reward, truncated in episodes:
    for t in range(len(reward)):
      last = t + 1 == len(reward)
      transition = traces.Transition(
        features=traces.Features(jnp.asarray(x[t]), jnp.asarray(y[t])),
        action=jnp.int32(action[t]),
        reward=jnp.float32(reward[t]),
        discount=jnp.float32(0 if last and not truncated else GAMMA),
        last=jnp.asarray(last),
        next_features=traces.Features(jnp.asarray(x[t + 1]), jnp.asarray(y[t + 1])),
      )
      direction, trace, _ = update(params, trace, transition)
      params = traces.Parameters(
        params.actor + ACTOR_STEP * direction.actor, params.critic + CRITIC_STEP * direction.critic
      )
  theta, w = actor_critic_box(episodes)
  np.testing.assert_allclose(params.actor, theta, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(params.critic, w, rtol=1e-3, atol=1e-5)


def test_the_score_is_the_gradient_of_the_log_probability():
  key_actor, key_x = jax.random.split(jax.random.key(0))
  actor, x = jax.random.normal(key_actor, (3, 4)), jax.random.normal(key_x, (3,))
  log_probability = lambda actor, a: jax.nn.log_softmax(traces.compute_logits(actor, x))[a]
  actions = jnp.arange(4)
  expected = jax.vmap(jax.jit(jax.grad(log_probability)), (None, 0))(actor, actions)
  actual = jax.jit(jax.vmap(traces.compute_score, (None, None, 0)))(actor, x, actions)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_on_a_bandit_the_mean_direction_is_the_gradient_of_the_mean_reward():
  """Summed over all actions exactly, whatever the critic believes: the baseline does not bias the policy gradient."""
  rewards = jnp.array([1.0, -2.0, 0.5, 3.0])
  features = traces.Features(jnp.array([1.0, -0.5, 2.0]), jnp.ones(1))
  actor = jax.random.normal(jax.random.key(1), (3, 4))
  no_trace = traces.Traces(jnp.zeros((3, 4)), jnp.zeros(1))

  @jax.jit
  def mean_direction(actor, belief):
    def direction(action):
      transition = traces.Transition(features, action, rewards[action], jnp.float32(0), jnp.asarray(True), features)
      return traces.update_traces(traces.Parameters(actor, belief[None]), no_trace, transition, 0.9, 0.9)[0].actor

    policy = jax.nn.softmax(features.actor @ actor)
    return jnp.tensordot(policy, jax.vmap(direction)(jnp.arange(4)), axes=1)

  expected = jax.jit(jax.grad(lambda actor: jax.nn.softmax(features.actor @ actor) @ rewards))(actor)
  for belief in (0.0, 5.0):
    np.testing.assert_allclose(mean_direction(actor, jnp.float32(belief)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_cartpole_is_balanced_within_40_000_steps():
  config = actor_critic.Config(steps=40, eval_episodes=5)
  experiment = actor_critic.make(config)

  @jax.jit
  def train(key):
    state = experiment.init(key, ())
    state = jax.lax.fori_loop(0, config.steps, lambda _, state: experiment.step(state, ())[0], state)
    return experiment.evaluate(state, ())["episode_return"].total / config.eval_episodes

  # 500 is the most there is; before the first update it is below 10.
  assert np.asarray(jax.vmap(train)(jax.random.split(jax.random.key(0), 2))).min() >= 475


@pytest.mark.parametrize("schedule, actor_features", [("linear", "linear"), ("constant", "fourier")])
def test_updates_of_the_experiment_are_the_box_averaged_over_environments(schedule, actor_features, monkeypatch):
  """Two updates of 15 steps in three environments, stepped one by one: traces, falling step sizes, ends, counts.

  The reward is 0.5 or 0.75, by the action, so that returns are not lengths.
  """
  config = actor_critic.Config(
    num_envs=3, steps_per_update=15, steps=2, learning_rate=0.2, critic_learning_rate=0.1, actor_decay=ACTOR_DECAY,
    critic_decay=CRITIC_DECAY, discount=GAMMA, order=1, schedule=schedule, actor_features=actor_features,
  )  # fmt: skip
  base = make_env("CartPole-v1")

  def by_action(key, state, action):
    state, timestep = base.step(key, state, action)
    return state, timestep._replace(reward=0.5 + 0.25 * action.astype(jnp.float32))

  env = base._replace(step=by_action)
  monkeypatch.setattr(actor_critic, "make_env", lambda name: env)
  experiment = actor_critic.make(config)
  features, actor_scale, scale = actor_critic.make_features(config)
  look = jax.jit(features)
  take = jax.jit(jax.vmap(lambda *args: step_with_reset(env, *args)))
  state, step = jax.jit(experiment.init)(jax.random.key(0), ()), jax.jit(experiment.step)
  size = 5 if actor_features == "linear" else 16
  theta, w, actor_scale, scale = np.zeros((size, 2)), np.zeros(16), np.asarray(actor_scale), np.asarray(scale)
  z_theta, z_w = np.zeros((3, size, 2)), np.zeros((3, 16))
  returned = np.zeros(3)
  for number in range(2):
    stream = lambda name, number=number, state=state: stream_key(state.key, name, number)
    noise = np.asarray(jax.random.gumbel(stream("act"), (15, 3, 2)))
    fresh = jax.jit(jax.vmap(jax.vmap(env.reset)))(jax.random.split(stream("fresh"), (15, 3)))
    keys = jax.random.split(stream("step"), (15, 3))
    place, observation = state.actors.state, state.actors.observation
    length = np.asarray(state.actors.episode_length)
    state, metrics = step(state, ())
    ended, earned, squares = [], [], []
    for t in range(15):
      x, y = zip(*(map(np.asarray, look(o)) for o in observation))
      pi = [np.exp(a @ theta) / np.exp(a @ theta).sum() for a in x]
      action = [int(np.argmax(a @ theta + noise[t, n])) for n, a in enumerate(x)]
      place, timestep = take(keys[t], place, jnp.array(action), jax.tree.map(lambda z, t=t: z[t], fresh))
      moves = []
      for n in range(3):
        following = np.asarray(look(timestep.next_observation[n]).critic)
        delta = float(timestep.reward[n]) + GAMMA * float(timestep.discount[n]) * (w @ following) - w @ y[n]
        score = x[n][:, None] * (np.eye(2)[action[n]] - pi[n])[None]
        z_theta[n], z_w[n] = GAMMA * ACTOR_DECAY * z_theta[n] + score, GAMMA * CRITIC_DECAY * z_w[n] + y[n]
        moves.append((delta * z_theta[n], delta * z_w[n]))
        squares.append(delta**2)
      length, returned = length + 1, returned + np.asarray(timestep.reward)
      for n in range(3):
        if timestep.last[n]:
          z_theta[n], z_w[n] = 0, 0
          ended.append(length[n])
          earned.append(returned[n])
          length[n], returned[n] = 0, 0
      left = 1 - number / 2 if schedule == "linear" else 1
      theta = theta + 0.2 * left * actor_scale * np.mean([m[0] for m in moves], axis=0)
      w = w + 0.1 * left * scale * np.mean([m[1] for m in moves], axis=0)
      observation = timestep.observation
    np.testing.assert_allclose(state.params.actor, theta, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(state.params.critic, w, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["squared_td_error"], np.mean(squares), rtol=1e-3)
    lengths = metrics["episode_length"]
    assert float(lengths.count) == len(ended) and float(lengths.total) == sum(ended)
    returns = metrics["episode_return"]
    assert float(returns.count) == len(ended) and float(returns.total) == pytest.approx(sum(earned))
  assert ended


def test_the_greedy_policy_is_evaluated():
  """A policy by hand that pushes against the pole's lean; its opposite drops the pole at once."""
  config = actor_critic.Config(eval_episodes=3)
  experiment = actor_critic.make(config)
  state, evaluate = jax.jit(experiment.init)(jax.random.key(0), ()), jax.jit(experiment.evaluate)
  lean = jnp.zeros((5, 2)).at[2:4].set(jnp.array([[-1.0, 1.0], [-6.0, 6.0]]))
  returned = [
    float(evaluate(state._replace(params=state.params._replace(actor=sign * lean)), ())["episode_return"].total) / 3
    for sign in (1, -1)
  ]
  assert returned[0] > 150 and returned[1] < 15


def test_the_actor_sees_the_observation_or_what_the_critic_sees():
  observation = jnp.array([2.4, 0.0, -0.2095, 6.0])
  linear, scale, _ = actor_critic.make_features(actor_critic.Config(order=1))
  np.testing.assert_allclose(linear(observation).actor, [1, 0, -1, 2, 1], atol=1e-6)
  assert scale == 1 and linear(observation).critic.shape == (16,)
  same, actor_scale, critic_scale = actor_critic.make_features(actor_critic.Config(order=1, actor_features="fourier"))
  np.testing.assert_array_equal(same(observation).actor, linear(observation).critic)
  np.testing.assert_array_equal(actor_scale[:, 0], critic_scale)


def test_flags_are_checked():
  with pytest.raises(InputError, match="actor_decay"):
    actor_critic.Config(actor_decay=1.5)
  with pytest.raises(InputError, match="env"):
    actor_critic.make(actor_critic.Config(env="Pendulum-v1"))
  with pytest.raises(InputError, match="no bounds"):
    actor_critic.make(actor_critic.Config(env="Catch-bsuite"))
