"""The parts of DQN: targets and losses on tables, the dueling head, exploration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from mlnotes.rl import dqn
from mlnotes.rl.env import init_actors, rollout
from mlnotes.rl.probe import constant_reward_env
from mlnotes.rl.replay import Transition

# Two states, two actions: Q-values of the online and of the target network, one row per state.
ONLINE = jnp.array([[1.0, 2.0], [5.0, 3.0]])
TARGET = jnp.array([[0.5, 0.25], [4.0, 10.0]])


def lookup(table, observation):
  return table[observation]


def transition(discount=1.0, reward=1.0):
  return Transition(jnp.int32(0), jnp.int32(1), jnp.float32(reward), jnp.float32(discount), jnp.int32(1))


@pytest.mark.parametrize(
  "double, discount, error",
  [
    (False, 1.0, 1 + 0.5 * 10 - 2),  # the target's own maximum
    (True, 1.0, 1 + 0.5 * 4 - 2),  # the target's value of the action that the online network prefers
    (False, 0.0, 1 - 2),
    (True, 0.0, 1 - 2),
  ],
)
def test_loss_on_a_table(double, discount, error):
  loss = lambda **kw: dqn.compute_dqn_loss(lookup, ONLINE, TARGET, transition(discount), 0.5, double=double, **kw)
  assert loss(huber_delta=100.0) == pytest.approx(error**2 / 2)
  assert loss(huber_delta=0.5) == pytest.approx(0.5 * (abs(error) - 0.25))


@pytest.mark.parametrize("double", [False, True])
def test_gradient_is_the_clipped_error_on_the_chosen_value_alone(double):
  loss = lambda online, target: dqn.compute_dqn_loss(lookup, online, target, transition(), 0.5, double=double)
  online, target = jax.grad(loss, argnums=(0, 1))(ONLINE, TARGET)
  # Both errors (4 and 1) are at least huber_delta = 1: a slope of -1, in one entry.
  np.testing.assert_array_equal(online, [[0, -1], [0, 0]])
  np.testing.assert_array_equal(target, np.zeros((2, 2)))


def test_loss_is_differentiable_in_the_chosen_value():
  def loss(q):
    return dqn.compute_dqn_loss(lookup, ONLINE.at[0, 1].set(q), TARGET, transition(), 0.5, huber_delta=10.0)

  check_grads(loss, (jnp.float32(2.3),), order=1, modes=("rev",), atol=1e-2, rtol=1e-2)


def test_double_targets_remove_the_maximum_of_noise():
  """All true values are 0. The maximum of A noisy estimates has a known positive mean; two estimates do not."""
  draws = np.random.default_rng(0).standard_normal((2, 20_000, 5)).astype(np.float32)
  target = jax.jit(jax.vmap(lambda q, selector: dqn.compute_q_target(0.0, 1.0, q, selector)))
  single, double = target(draws[0], draws[0]), target(draws[0], draws[1])
  expected = 1.16296  # mean of the largest of five standard normals
  assert float(jnp.mean(single)) == pytest.approx(expected, abs=0.03)
  assert float(jnp.mean(double)) == pytest.approx(0.0, abs=0.03)


def test_dueling_head_by_hand():
  q = dqn.combine_dueling(jnp.array([[3.0]]), jnp.array([[1.0, 2.0, 6.0]]))
  np.testing.assert_allclose(q, [[1.0, 2.0, 6.0]])  # 3 + (1, 2, 6) - 3


@pytest.mark.parametrize("dueling", [False, True])
def test_q_network(dueling, key):
  network = dqn.QNetwork((8,), 3, dueling=dueling)
  observation = jax.random.normal(key, (5, 4))
  params = jax.jit(network.init)(jax.random.key(1), observation[0])
  q = jax.jit(network.apply)(params, observation)
  one = jax.jit(network.apply)(params, observation[2])
  assert q.shape == (5, 3) and np.ptp(q) > 0
  np.testing.assert_allclose(q[2], one, rtol=1e-5, atol=1e-6)
  if dueling:
    shifted = jax.tree_util.tree_map_with_path(
      lambda path, p: p + 5.0 if "advantage" in str(path) and "bias" in str(path) else p, params
    )
    np.testing.assert_allclose(jax.jit(network.apply)(shifted, observation), q, atol=1e-5)


def test_epsilon_falls_linearly_and_stays():
  epsilon = jax.jit(lambda p: dqn.compute_epsilon(p, 1.0, 0.1, 0.2))
  found = [float(epsilon(jnp.float32(p))) for p in (0.0, 0.05, 0.1, 0.2, 0.6, 1.0)]
  np.testing.assert_allclose(found, [1.0, 0.775, 0.55, 0.1, 0.1, 0.1], rtol=1e-5)


def test_random_actions_have_the_right_share_and_are_uniform(key):
  noise = dqn.sample_exploration(key, (200, 50), 4, 0.3)
  active = np.asarray(noise.active)
  assert stats.binomtest(int(active.sum()), active.size, 0.3).pvalue > 1e-3
  assert stats.chisquare(np.bincount(np.asarray(noise.action)[active])).pvalue > 1e-3
  q = jnp.broadcast_to(jnp.array([0.0, 9.0, 1.0, 2.0]), (200, 50, 4))
  action = np.asarray(dqn.explore(noise, q))
  assert np.all(action[~active] == 1)
  np.testing.assert_array_equal(action[active], np.asarray(noise.action)[active])
  assert not np.array_equal(active[:, 0], active[:, 1])


def act_repeatedly(key, steps, envs, epsilon, ends=lambda t, active: np.zeros(len(active), bool)):
  """(active, action), (T, N) each, of `hold_actions` step by step; `ends(t, active)` says whose episode that ends."""
  noise = dqn.sample_repeats(key, (steps, envs), 1_000_000, epsilon)
  hold, held, first = jax.jit(dqn.hold_actions), dqn.init_held(envs), np.zeros(envs, bool)
  rows = []
  for t in range(steps):
    exploration, held = hold(jax.tree.map(lambda x, t=t: x[t], noise), first, held)
    rows.append(jax.device_get(exploration))
    first = ends(t, rows[-1].active)
  return tuple(np.stack(values) for values in zip(*rows))


def test_repeated_actions_are_held_for_heavy_tailed_times(key):
  """P(a stretch of one random action lasts n or more steps) = 1 / n, as far as the last step does not cut it."""
  steps, envs = 64, 8000
  active, action = act_repeatedly(key, steps, envs, 0.05)
  begins = active & np.concatenate([np.zeros((1, envs), bool), ~active[:-1] | (action[1:] != action[:-1])])
  lengths = []
  for t, env in zip(*np.nonzero(begins[: steps // 2])):
    same = active[t:, env] & (action[t:, env] == action[t, env])
    lengths.append(min(np.argmin(same) if not same.all() else len(same), steps // 2))
  lengths = np.array(lengths)
  for n in (2, 4, 8, 16):
    assert stats.binomtest(int((lengths >= n).sum()), lengths.size, 1 / n).pvalue > 1e-3


@pytest.mark.parametrize("steps", [1, 8, 32])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_repetition_leaves_the_share_of_random_actions_what_it_is(steps, epsilon, key):
  """At every single step, however many there are, and from the first step of an episode on wherever one ends."""
  envs = 6000
  # Episodes end as early as they can after a random action: what was held before would show in the next one.
  since = np.zeros(envs, int)
  ages = []

  def ends(t, active):
    ages.append(since.copy())
    over = active & (since >= 2)
    since[:] = np.where(over, 0, since + 1)
    return over

  active, action = act_repeatedly(key, steps, envs, epsilon, ends)
  undisturbed, _ = act_repeatedly(jax.random.key(1), steps, envs, epsilon)
  for share in undisturbed:
    assert stats.binomtest(int(share.sum()), envs, epsilon).pvalue > 1e-4
  ages = np.stack(ages)
  for age in range(3):
    at = (ages == age) & (np.arange(steps)[:, None] > age)
    if at.any():
      assert stats.binomtest(int(active[at].sum()), int(at.sum()), epsilon).pvalue > 1e-4
  begins = (ages[1:] == 0) & active[1:]
  assert not np.any(action[1:][begins] == action[:-1][begins])


def test_the_experiment_repeats_actions_within_episodes_alone():
  """`rollout` tells where an episode begins: every third step here, and the one action seen is never held across."""
  env = constant_reward_env(time_limit=3, terminates=True)
  noise = dqn.sample_repeats(jax.random.key(0), (32, 200), 1_000_000, 0.9)

  def act(noise, observation, first, held):
    exploration, held = dqn.hold_actions(noise, first, held)
    return jnp.where(exploration.active, exploration.action, -1), held

  run = jax.jit(lambda actors: rollout(env, act, noise, jax.random.key(1), actors, dqn.init_held(200)))
  action, last = (np.asarray(getattr(run(init_actors(env, jax.random.key(2), 200))[1], n)) for n in ("action", "last"))
  same = (action[1:] == action[:-1]) & (action[1:] >= 0)
  assert same[~last[:-1]].mean() > 0.4 and not same[last[:-1]].any()
  assert stats.binomtest(int((action >= 0)[0].sum()), 200, 0.9).pvalue > 1e-3


def test_nothing_is_random_at_epsilon_zero_and_everything_at_one(key):
  for epsilon in (0.0, 1.0):
    assert np.all(dqn.sample_exploration(jax.random.clone(key), (8, 3), 2, epsilon).active == epsilon)
    assert np.all(act_repeatedly(jax.random.clone(key), 8, 3, epsilon)[0] == epsilon)
