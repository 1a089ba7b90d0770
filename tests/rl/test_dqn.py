"""The parts of DQN: targets and losses on tables, the dueling head, exploration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from mlnotes.rl import dqn
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


def test_repeated_exploration_holds_actions_for_heavy_tailed_times(key):
  """P(a run of exploration lasts n or more steps) = 1 / n, as far as the end of the stretch does not cut it."""
  steps, envs = 64, 4000
  noise = dqn.sample_exploration(key, (steps, envs), 1_000_000, 0.02, True)
  active, action = np.asarray(noise.active), np.asarray(noise.action)
  lengths = []
  for env in range(envs):
    t = 0
    while t < steps // 2:
      if not active[t, env]:
        t += 1
        continue
      end = t
      while end < steps and active[end, env] and action[end, env] == action[t, env]:
        end += 1
      lengths.append(min(end - t, steps // 2))
      t = end
  lengths = np.array(lengths)
  for n in (2, 4, 8, 16):
    # The shortest uniform is 1 / 65, not 0.
    expected = (1 / n - 1 / 65) / (1 - 1 / 65)
    assert stats.binomtest(int((lengths >= n).sum()), lengths.size, expected).pvalue > 1e-3


@pytest.mark.parametrize("repeat", [False, True])
def test_nothing_is_random_at_epsilon_zero_and_everything_at_one(repeat, key):
  never, always = jax.random.split(key)
  assert not np.any(dqn.sample_exploration(never, (8, 3), 2, 0.0, repeat).active)
  assert np.all(dqn.sample_exploration(always, (8, 3), 2, 1.0, repeat).active)
