"""A2C, TRPO and PPO: what they learn from, beside NumPy on the same transitions, and one update beside its formulas."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.rl import _on_policy, a2c, ppo, trpo
from experiments.rl._agent import make_feeds
from mlnotes.engine.experiment import stream_key
from mlnotes.engine.program import Program, make_mesh, window_means
from mlnotes.rl import on_policy
from mlnotes.rl.env import Discrete, Environment, TimeStep

GAMMA, LAMBDA, ENVS = 0.9, 0.7, 3


def learn_nothing(networks, optimizer, state, batch, key):
  """The batch itself as a metric."""
  return state.params, state.opt_state, {"batch": batch}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(_on_policy.OnPolicyConfig):
  num_envs: int = ENVS
  rollout_length: int = 5
  hidden: tuple[int, ...] = (4,)
  discount: float = GAMMA
  gae_lambda: float = LAMBDA
  steps: int = 4


def walk(chance=0.4, size=6):
  """A walk over `size` numbered states, 4 steps an episode, by termination at odd starts and by a limit at even ones.

  The reward is 2 with that chance at every step, else 0.
  """

  def reset(key):
    place = jax.random.randint(key, (), 0, size)
    return (place, jnp.zeros([], jnp.int32), place % 2), place

  def step(key, state, action):
    place, time, ends = state
    place, time = (place + 1 + action) % size, time + 1
    last = time >= 4
    reward = 2.0 * jax.random.bernoulli(key, chance)
    return (place, time, ends), TimeStep(place, reward, 1.0 - last * (ends == 1), last, place)

  return Environment("walk", reset, step, Discrete(size), Discrete(2), 4)


def run_updates(env, count, **settings):
  """(experiment, [(state before, metrics with the batch that was learned from, trajectory)])."""
  return record_updates(env, count, lambda: _on_policy.make_on_policy_experiment(Config(**settings), learn_nothing, {}))


def record_updates(env, count, make):
  """(experiment, [(state before, metrics, trajectory, state after)]) of `count` updates of `make()` in `env`."""
  rollouts = []
  rollout = _on_policy.rollout
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(_on_policy, "make_env", lambda name: env)
    experiment = make()

  def step(state):
    seen = []

    def spy(*args):
      seen.append(rollout(*args))
      return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(_on_policy, "rollout", spy)
      state, metrics = experiment.step(state, ())
    return state, metrics, seen[-1][1]

  state, step = jax.jit(experiment.init)(jax.random.key(0), ()), jax.jit(step)
  for _ in range(count):
    before = state
    state, metrics, trajectory = step(state)
    rollouts.append((before, metrics, jax.tree.map(np.asarray, trajectory), state))
  return experiment, rollouts


def test_numbered_states_are_normalised_as_one_hot_vectors():
  env = walk()
  experiment, rollouts = run_updates(env, 3, normalize_observations=True)
  one_hot = lambda states: np.eye(6, dtype=np.float32)[states]
  so_far = np.zeros((0, 6), np.float32)
  for i, (_, metrics, trajectory, _) in enumerate(rollouts):
    seen = one_hot(trajectory.observation)
    if i:
      seen = np.clip((seen - so_far.mean(0)) / so_far.std(0), -10, 10)
    np.testing.assert_allclose(metrics["batch"].observation, seen, rtol=1e-3, atol=1e-4)
    so_far = np.concatenate([so_far, one_hot(trajectory.observation).reshape(-1, 6)])
  # The greedy policy is given states by their numbers, here and in Gymnasium, and sees them normalised as well.
  state = rollouts[-1][0]
  returned = jax.jit(experiment.evaluate)(state, ())
  assert np.isfinite(float(returned["episode_return"].total))
  shifted = state._replace(observation_moments=state.observation_moments._replace(mean=jnp.arange(6.0)))
  greedy = jax.jit(jax.vmap(experiment.model(shifted)))(jnp.arange(6))
  moments = jax.tree.map(np.asarray, shifted.observation_moments)
  with jax.numpy_rank_promotion("allow"):
    seen = np.clip((np.eye(6) - moments.mean) / np.sqrt(moments.variance), -10, 10)
    expected = np.argmax(network(state.params["actor"], jnp.asarray(seen, jnp.float32)), axis=1)
    assert np.any(expected != np.argmax(network(state.params["actor"], jnp.eye(6)), axis=1))
  np.testing.assert_array_equal(greedy, expected)


def test_states_stay_apart_after_normalisation():
  """All of FrozenLake's states had the same values, as their numbers were normalised."""
  config = Config(env="FrozenLake-v1", normalize_observations=True, normalize_rewards=True)
  experiment = _on_policy.make_on_policy_experiment(config, learn_nothing, {})
  state = jax.jit(experiment.init)(jax.random.key(0), ())
  _, metrics = jax.jit(experiment.step)(jax.jit(experiment.step)(state, ())[0], ())
  observation = np.asarray(metrics["batch"].observation).reshape(15, -1)
  assert observation.shape[1] == 16 and np.ptp(np.asarray(metrics["batch"].value)) > 1e-3
  assert len(np.unique(observation, axis=0)) > 2


@pytest.mark.parametrize("chance", [0.4, 0.02])
def test_rewards_are_divided_by_the_spread_of_the_sums_before(chance):
  """In NumPy: the first rollout by its own, later ones by all before; 1 as long as there was no reward; at most 10."""
  _, rollouts = run_updates(walk(chance), 6, normalize_rewards=True)
  rewarded = [bool(np.any(trajectory.reward)) for _, _, trajectory, _ in rollouts]
  assert rewarded[0] is (chance == 0.4) and sum(rewarded) >= 2
  running, sums = np.zeros(ENVS), np.zeros((0, ENVS))
  for i, (_, metrics, trajectory, _) in enumerate(rollouts):
    own = []
    for reward, last in zip(trajectory.reward, trajectory.last):
      running = GAMMA * running + reward
      own.append(running)
      running = np.where(last, 0, running)
    known = np.array(own) if i == 0 else sums
    sums = np.concatenate([sums, own])
    scale = known.std() if np.ptp(known) else 1.0
    batch = metrics["batch"]
    expected, _ = gae(np.clip(trajectory.reward / scale, -10, 10), trajectory, rollouts[i][0], LAMBDA)
    np.testing.assert_allclose(batch.advantage, expected, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(batch.target, expected + batch.value, rtol=1e-4, atol=1e-5)


def network(params, x):
  """Two layers and a tanh, the output last."""
  first, second = params["params"]["Dense_0"], params["params"]["Dense_1"]
  return jnp.tanh(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]


def values(params, observation):
  """Of numbered states, as the written-out network has them."""
  with jax.numpy_rank_promotion("allow"):
    return np.asarray(network(params["critic"], jax.nn.one_hot(observation, 6))[..., 0], np.float64)


def gae(reward, trajectory, state, lambda_):
  """(advantage, value), backwards through each environment.

  At every end, and where the rollout stops, what counts is the value of the observation that the action led to.
  """
  value, next_value = (values(state.params, x) for x in (trajectory.observation, trajectory.next_observation))
  steps, envs = reward.shape
  advantage = np.zeros((steps, envs))
  for n in range(envs):
    for t in reversed(range(steps)):
      discount = GAMMA * trajectory.discount[t, n]
      advantage[t, n] = reward[t, n] + discount * next_value[t, n] - value[t, n]
      if t + 1 < steps and not trajectory.last[t, n]:
        advantage[t, n] += discount * lambda_ * advantage[t + 1, n]
  return advantage, value


def test_explained_variance_is_pooled_and_leaves_out_constant_targets():
  rng = np.random.default_rng(0)
  targets = [rng.normal(size=50), rng.normal(size=50) * 3, np.full(50, 0.1)]
  values = [t + 0.5 * rng.normal(size=50) for t in targets]
  found = [on_policy.explained_variance(jnp.float32(v), jnp.float32(t)) for v, t in zip(values, targets)]
  for one, v, t in zip(found[:2], values, targets):
    assert float(one.total / one.count) == pytest.approx(1 - np.var(t - v) / np.var(t), rel=1e-4)
  assert float(found[2].count) == float(found[2].total) == 0
  pooled = 1 - sum(np.var(t - v) for t, v in zip(targets[:2], values)) / sum(map(np.var, targets[:2]))
  assert float(sum(m.total for m in found) / sum(m.count for m in found)) == pytest.approx(pooled, rel=1e-4)


def test_a_run_without_rewards_logs_no_explained_variance(monkeypatch):
  env = walk(chance=0.0)
  monkeypatch.setattr(_on_policy, "make_env", lambda name: env)
  silent = lambda networks, optimizer, state, batch, key: (state.params, state.opt_state, {})
  monkeypatch.setattr(_on_policy, "make_on_policy_batch", lambda networks, params, trajectory, gamma, lambda_: (
    on_policy.OnPolicyBatch(trajectory.observation, trajectory.action, *(0.1 + 0 * trajectory.reward for _ in range(3)))
  ))  # fmt: skip
  config = Config()
  program = Program(_on_policy.make_on_policy_experiment(config, silent, {}), make_feeds(config), (0,), make_mesh(1))
  _, window = program.update(program.init(), program.empty_window(), 2)
  assert "explained_variance" not in window_means(window)


def test_minibatches_are_a_permutation_of_all_rows_in_every_epoch():
  rows = np.asarray(on_policy.minibatch_rows(jax.random.key(1), 3, 4, 20))
  assert rows.shape == (12, 5)
  epochs = rows.reshape(3, 20)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(20), (3, 1)))
  assert len({tuple(epoch) for epoch in [np.arange(20), *epochs]}) == 4
  with pytest.raises(ValueError, match="minibatches=3 does not divide the 20 rows"):
    on_policy.minibatch_rows(jax.random.key(1), 1, 3, 20)


# -- one update of each method beside its formulas ---------------------------------------------------------------------

RATE = 0.3
COMMON = dict(
  env="walk", num_envs=ENVS, rollout_length=5, hidden=(4,), discount=GAMMA, gae_lambda=LAMBDA, steps=4, optimizer="sgd",
  momentum=0.0, learning_rate=RATE, entropy_weight=0.1, value_weight=0.7, schedule="linear", clip_norm=0.0,
)  # fmt: skip
VARIANTS = {
  "ppo": (ppo, dict(epochs=2, minibatches=3, clip=0.02)),
  "ppo, plain": (ppo, dict(epochs=3, minibatches=1, clip=0.3, clip_value_loss=False, normalize_advantages=False)),
  "a2c": (a2c, dict(normalize_advantages=False)),
  "a2c, normalised": (a2c, dict(normalize_advantages=True)),
  "trpo": (
    trpo,
    dict(value_epochs=2, minibatches=3, curvature_stride=ENVS, cg_iterations=60, damping=0.3, max_kl=0.02),
  ),
}


@functools.cache
def recorded(variant):
  module, settings = VARIANTS[variant]
  config = module.Config(**{**COMMON, **settings})
  return config, record_updates(walk(), 2, lambda: module.make(config))[1]


def learn_data(config, state, trajectory):
  """Rows (observation, action, old log-probability, advantage, old value, target) in the order of time, then env."""
  advantage, value = gae(trajectory.reward, trajectory, state, config.gae_lambda)
  x = jax.nn.one_hot(trajectory.observation.reshape(-1), 6)
  action = jnp.asarray(trajectory.action.reshape(-1))
  old = log_policy(state.params["actor"], x)[jnp.arange(len(x)), action]
  as_row = lambda x: jnp.asarray(x.reshape(-1), jnp.float32)
  return x, action, old, as_row(advantage), as_row(value), as_row(advantage + value)


def log_policy(actor, x):
  logits = network(actor, x)
  return logits - jnp.log(jnp.sum(jnp.exp(logits), axis=1, keepdims=True))


def to_unit(x):
  return (x - jnp.mean(x)) / jnp.std(x)


def policy_gradient_loss(config, params, rows, surrogate):
  x, action, old, advantage, old_value, target = rows
  log_p = log_policy(params["actor"], x)
  chosen, value = log_p[jnp.arange(len(x)), action], network(params["critic"], x)[:, 0]
  if config.normalize_advantages:
    advantage = to_unit(advantage)
  error = (value - target) ** 2
  if getattr(config, "clip_value_loss", False):
    kept = old_value + jnp.clip(value - old_value, -config.clip, config.clip)
    error = jnp.maximum(error, (kept - target) ** 2)
  entropy = jnp.mean(-jnp.sum(jnp.exp(log_p) * log_p, axis=1))
  return -jnp.mean(surrogate(chosen, old, advantage)) + 0.7 * jnp.mean(error) / 2 - 0.1 * entropy


def assert_close(found, expected):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=5e-6), found, expected)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "trpo"])
def test_an_update_is_descent_on_the_formulas(variant):
  """Both updates, each from the state before it: the ratio's old policy is that of the rollout in every epoch."""
  config, updates = recorded(variant)
  for number, (before, metrics, trajectory, after) in enumerate(updates):
    with jax.numpy_rank_promotion("allow"):
      rows, params = learn_data(config, before, trajectory), before.params
      if "ppo" in variant:

        def surrogate(new, old, advantage):
          ratio = jnp.exp(new - old)
          return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - config.clip, 1 + config.clip) * advantage)

        key = stream_key(before.key, "learn", before.step)
        batches = on_policy.minibatch_rows(key, config.epochs, config.minibatches, 15)
      else:
        surrogate = lambda new, old, advantage: new * advantage
        batches = jnp.arange(15)[None]
      gradient = jax.jit(jax.grad(lambda params, rows, f=surrogate: policy_gradient_loss(config, params, rows, f)))
      for batch in batches:
        grads = gradient(params, tuple(x[batch] for x in rows))
        params = jax.tree.map(lambda p, g, rate=RATE * (1 - number / 4): p - rate * g, params, grads)
    assert_close(after.params, params)
    if variant == "ppo":
      assert float(metrics["clip_fraction"]) > 0.1  # so that clipping has a part in it
    assert float(metrics["entropy"]) > 0 and np.any(trajectory.last) and np.any(trajectory.reward)


@pytest.mark.thorough
@pytest.mark.parametrize("number", [0, 1])
def test_trpo_takes_the_natural_gradient_step_that_keeps_the_bound(number):
  """The Fisher matrix in full, of every third state in the order that was drawn, and a dense solve."""
  config, updates = recorded("trpo")
  before, metrics, trajectory, after = updates[number]
  curvature_key, value_key = jax.random.split(stream_key(before.key, "learn", before.step))
  with jax.numpy_rank_promotion("allow"):
    x, action, old, advantage, _, target = learn_data(config, before, trajectory)
    vector, restore = ravel_pytree(before.params["actor"])
    old_log_p = log_policy(before.params["actor"], x)
    advantage = to_unit(advantage)

    def surrogate(vector):
      log_p = log_policy(restore(vector), x)
      ratio = jnp.exp(log_p[jnp.arange(15), action] - old)
      return jnp.mean(ratio * advantage) - 0.1 * jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=1))

    def kl(vector, rows=slice(None)):
      log_p = log_policy(restore(vector), x[rows])
      return jnp.mean(jnp.sum(jnp.exp(old_log_p[rows]) * (old_log_p[rows] - log_p), axis=1))

    rows = on_policy.minibatch_rows(curvature_key, 1, 1, 15)[0, ::ENVS]
    gradient = jax.jit(jax.grad(surrogate))(vector)
    fisher = np.asarray(jax.jit(jax.hessian(lambda v: kl(v, rows)))(vector), np.float64) + 0.3 * np.eye(len(vector))
    direction = np.linalg.solve(fisher, np.asarray(gradient, np.float64))
    full = np.sqrt(2 * 0.02 / (direction @ fisher @ direction)) * direction
    moved = np.asarray(ravel_pytree(after.params["actor"])[0] - vector)
    assert float(metrics["step_accepted"]) == 1
    np.testing.assert_allclose(moved, 0.8 ** int(metrics["backtracks"]) * full, rtol=2e-2, atol=2e-4)
    reached = ravel_pytree(after.params["actor"])[0]
    np.testing.assert_allclose(metrics["kl"], kl(reached), rtol=2e-2, atol=1e-6)
    assert 0 < float(kl(reached)) <= 0.02 * (1 + 1e-4) and surrogate(reached) > surrogate(vector)
    improvement = float(surrogate(reached) - surrogate(vector))
    np.testing.assert_allclose(metrics["surrogate_improvement"], improvement, rtol=2e-2)
    entropy = -np.mean(np.sum(np.exp(old_log_p) * old_log_p, axis=1))
    np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-4)
    critic, losses = before.params["critic"], []
    loss = lambda critic, batch: jnp.mean((network(critic, x[batch])[:, 0] - target[batch]) ** 2) / 2
    fit = jax.jit(jax.value_and_grad(loss))
    for batch in on_policy.minibatch_rows(value_key, 2, 3, 15):
      value, gradient = fit(critic, batch)
      losses.append(value)
      critic = jax.tree.map(lambda p, g: p - RATE * (1 - number / 4) * g, critic, gradient)
  assert_close(after.params["critic"], critic)
  np.testing.assert_allclose(metrics["value_loss"], np.mean(losses), rtol=1e-3)


def test_curvature_is_of_states_from_every_environment():
  """With as many environments as the stride, every stride-th row in the order of time would be one environment's."""
  seen = set()
  for seed in range(3):
    rows = on_policy.minibatch_rows(jax.random.key(seed), 1, 1, 60)[0, ::ENVS]
    seen |= set(np.asarray(rows % ENVS).tolist())
  assert seen == set(range(ENVS))


@pytest.mark.parametrize("variant", ["ppo", "a2c"])
def test_the_greedy_policy_is_evaluated(variant):
  """In a walk where the reward is the action: the evaluated return is that of the most probable actions."""
  base = walk()

  def step(key, state, action):
    state, timestep = base.step(key, state, action)
    return state, timestep._replace(reward=action.astype(jnp.float32))

  config, updates = recorded(variant)
  state = updates[-1][3]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(_on_policy, "make_env", lambda name: base._replace(step=step))
    experiment = VARIANTS[variant][0].make(config)
  found = jax.jit(experiment.evaluate)(state, ())
  with jax.numpy_rank_promotion("allow"):
    best = np.argmax(network(state.params["actor"], jnp.eye(6)), axis=1)
  starts = [int(jax.jit(base.reset)(key)[1]) for key in evaluation_resets(state, config.eval_episodes)]
  total = 0
  for place in starts:
    for _ in range(4):
      total += best[place]
      place = (place + 1 + best[place]) % 6
  assert float(found["episode_return"].total) == total


def evaluation_resets(state, episodes):
  return jax.random.split(jax.random.split(stream_key(state.key, "evaluate"))[0], episodes)


# -- what an update says of itself, and where its flags go -------------------------------------------------------------


@pytest.mark.parametrize("variant", ["ppo", "a2c", "trpo"])
def test_figures_of_a_rollout_are_of_its_own_episodes(variant):
  """Of both updates together, so that episodes which the first began and the second ended are among them."""
  config, updates = recorded(variant)
  running, lengths = np.zeros(ENVS), np.zeros(ENVS)
  ends = set()
  for before, metrics, trajectory, _ in updates:
    returned, length = [], []
    for t in range(5):
      running, lengths = running + trajectory.reward[t], lengths + 1
      for n in np.flatnonzero(trajectory.last[t]):
        returned.append(running[n])
        length.append(lengths[n])
        running[n], lengths[n] = 0, 0
        ends.add(float(trajectory.discount[t, n]))
    assert float(metrics["episode_return"].count) == float(metrics["episode_length"].count) == len(length)
    assert float(metrics["episode_return"].total) == pytest.approx(sum(returned))
    assert float(metrics["episode_length"].total) == sum(length)
    advantage, value = gae(trajectory.reward, trajectory, before, config.gae_lambda)
    explained = metrics["explained_variance"]
    expected = 1 - np.var(advantage) / np.var(advantage + value)
    assert float(explained.total / explained.count) == pytest.approx(expected, rel=1e-3)
  assert ends == {0.0, 1.0}


def test_ppos_figures_are_means_over_all_its_gradient_steps():
  config, updates = recorded("ppo")
  before, metrics, trajectory, _ = updates[0]
  batches = on_policy.minibatch_rows(stream_key(before.key, "learn", before.step), 2, 3, 15)

  @jax.jit
  def figures(params, rows):
    x, action, old, advantage, old_value, target = rows
    log_p = log_policy(params["actor"], x)
    ratio = jnp.exp(log_p[jnp.arange(len(x)), action] - old)
    cut = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    value, advantage = network(params["critic"], x)[:, 0], to_unit(advantage)
    kept = old_value + jnp.clip(value - old_value, -config.clip, config.clip)
    return {
      "policy_loss": -jnp.mean(jnp.minimum(ratio * advantage, cut * advantage)),
      "value_loss": jnp.mean(jnp.maximum((value - target) ** 2, (kept - target) ** 2)) / 2,
      "entropy": -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=1)),
      "approximate_kl": jnp.mean(ratio - 1 - jnp.log(ratio)),
      "clip_fraction": jnp.mean(cut != ratio),
    }

  with jax.numpy_rank_promotion("allow"):
    rows, params = learn_data(config, before, trajectory), before.params
    surrogate = lambda new, old, advantage: jnp.minimum(
      jnp.exp(new - old) * advantage, jnp.clip(jnp.exp(new - old), 1 - config.clip, 1 + config.clip) * advantage
    )
    gradient = jax.jit(jax.grad(lambda params, rows: policy_gradient_loss(config, params, rows, surrogate)))
    found = []
    for batch in batches:
      some = tuple(x[batch] for x in rows)
      found.append(figures(params, some))
      params = jax.tree.map(lambda p, g: p - RATE * g, params, gradient(params, some))
  for name in found[0]:
    np.testing.assert_allclose(metrics[name], np.mean([f[name] for f in found]), rtol=2e-3, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("module", [a2c, ppo, trpo])
def test_networks_are_those_of_the_flags(module, monkeypatch):
  asked, make = [], _on_policy.make_actor_critic
  monkeypatch.setattr(_on_policy, "make_actor_critic", lambda env, *rest: asked.append(rest) or make(env, *rest))
  module.make(module.Config(hidden=(5, 3), activation="relu", initial_std=0.3, precision="bfloat16"))
  assert asked == [((5, 3), "relu", 0.3, jnp.bfloat16)]


def test_trpos_flags_reach_its_step(monkeypatch):
  """And its states: one in three for the curvature, all for the bound."""
  asked, sizes, make = {}, [], trpo.trust_region_step

  def spy(surrogate, kl, params, max_kl, **given):
    asked.update(given)
    return make(surrogate, kl, params, max_kl, **given)

  rows = trpo.minibatch_rows
  monkeypatch.setattr(trpo, "trust_region_step", spy)
  monkeypatch.setattr(trpo, "minibatch_rows", lambda key, *sized: sizes.append(sized) or rows(key, *sized))
  config = trpo.Config(
    num_envs=2, rollout_length=6, minibatches=4, value_epochs=3, cg_iterations=7, max_backtracks=4, curvature_stride=3
  )
  experiment = trpo.make(config)
  state = jax.eval_shape(experiment.init, jax.random.key(0), ())
  jax.eval_shape(experiment.step, state, ())
  assert (asked["cg_iterations"], asked["max_backtracks"]) == (7, 4)
  assert sizes == [(1, 1, 12), (3, 4, 12)]


def test_defaults_are_the_published_recipes():
  """PPO on CartPole: Huang et al. 2022, of which one thing left out would still train, worse. A2C: Mnih et al. 2016
  normalise no advantages."""
  config = ppo.Config()
  recipe = dict(
    learning_rate=2.5e-4, schedule="linear", adam_eps=1e-5, clip_norm=0.5, gae_lambda=0.95, discount=0.99, epochs=4,
    minibatches=4, clip=0.2, clip_value_loss=True, normalize_advantages=True, entropy_weight=0.01, value_weight=0.5,
    num_envs=4, rollout_length=128, optimizer="adam", hidden=(64, 64), activation="tanh",
  )  # fmt: skip
  assert {name: getattr(config, name) for name in recipe} == recipe
  assert not a2c.Config().normalize_advantages and a2c.Config().clip_norm == 0.5
  assert (trpo.Config().max_kl, trpo.Config().damping, trpo.Config().cg_iterations) == (0.01, 0.1, 10)
