"""Deep Q-networks: the loss of Mnih et al. 2015, with double Q-learning and the dueling head.

The losses take one transition and `jax.vmap` makes them a batch's.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from mlnotes.rl.networks import MLP
from mlnotes.rl.replay import Transition

Scalar = Float[Array, ""] | float


def combine_dueling(value: Float[Array, "*B 1"], advantage: Float[Array, "*B A"]) -> Float[Array, "*B A"]:
  """Q = V + (A - mean over actions of A): Wang et al. 2016, eq. 9, where V and A are told apart by that mean."""
  return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)


class QNetwork(nn.Module):
  """One value per action.

  Attributes:
    features: widths of the hidden layers.
    num_actions: A.
    dueling: separate linear heads for the state's value and the advantages, as in `combine_dueling`.
  """

  features: Sequence[int]
  num_actions: int
  activation: str = "relu"
  dueling: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, observation: Float[Array, "*B D"]) -> Float[Array, "*B A"]:
    if not self.dueling:
      return MLP(self.features, self.num_actions, self.activation, dtype=self.dtype)(observation)
    torso = MLP(self.features, 0, self.activation, dtype=self.dtype)(observation)
    value = MLP((), 1, self.activation, dtype=self.dtype, name="value")(torso)
    return combine_dueling(value, MLP((), self.num_actions, dtype=self.dtype, name="advantage")(torso))


def compute_q_target(
  reward: Scalar, discount: Scalar, next_q: Float[Array, " A"], selector: Float[Array, " A"]
) -> Float[Array, ""]:
  """reward + discount next_q[argmax selector].

  Args:
    discount: gamma, or 0 where the episode terminated. A time limit is no termination.
    next_q: the target network's values of the next observation.
    selector: whose greedy action is valued. `next_q` itself gives Q-learning (Mnih et al. 2015); the online network's
      values give double Q-learning, which removes the maximum's upward bias (van Hasselt et al. 2016, eq. 4).
  """
  return reward + discount * next_q[jnp.argmax(selector)]


def compute_td_error(q: Float[Array, " A"], action: Int[Array, ""], target: Float[Array, ""]) -> Float[Array, ""]:
  """target - q[action], with no gradient through the target."""
  return jax.lax.stop_gradient(target) - q[action]


def compute_dqn_loss(
  apply: Callable[[PyTree, Float[Array, "..."]], Float[Array, " A"]],
  params: PyTree,
  target_params: PyTree,
  transition: Transition,
  gamma: Scalar,
  *,
  double: bool = True,
  huber_delta: Scalar = 1.0,
) -> Float[Array, ""]:
  """Huber loss of the TD error on one transition: quadratic up to `huber_delta`, then linear.

  The gradient is Mnih et al.'s, whose "error clipping to [-1, 1]" is this loss with `huber_delta` 1.
  """
  next_q = apply(target_params, transition.next_observation)
  selector = apply(params, transition.next_observation) if double else next_q
  target = compute_q_target(transition.reward, gamma * transition.discount, next_q, selector)
  error = compute_td_error(apply(params, transition.observation), transition.action, target)
  return optax.losses.huber_loss(error, delta=huber_delta)


def compute_epsilon(progress: Float[Array, ""], first: Scalar, last: Scalar, fraction: Scalar) -> Float[Array, ""]:
  """Probability of a random action: linear from `first` to `last` over the first `fraction` of the run, then constant.

  `progress` is the part of the run that is done, in [0, 1].
  """
  share = jnp.clip(progress / jnp.maximum(fraction, 1e-6), 0.0, 1.0)
  return first + share * (last - first)


class Exploration(NamedTuple):
  """Which actions are random, and what they are then; any leading axes."""

  active: Bool[Array, "*B"]
  action: Int[Array, "*B"]


def sample_exploration(key: Key[Array, ""], shape: tuple[int, int], num_actions: int, epsilon: Scalar) -> Exploration:
  """The random part of epsilon-greedy behaviour for T steps of N environments, `shape` = (T, N)."""
  start_key, action_key = jax.random.split(key)
  active = jax.random.uniform(start_key, shape) < epsilon
  return Exploration(active, jax.random.randint(action_key, shape, 0, num_actions, jnp.int32))


class Repeats(NamedTuple):
  """Random numbers of one step for `hold_actions`; any leading axes.

  Attributes:
    starts: whether a stretch of one repeated random action starts here, should none be under way.
    length: its steps.
    action: the repeated action.
    left: steps of a stretch that is under way where everything starts anew; 0: none is.
    anew: whether it does so here in any case.
  """

  starts: Bool[Array, "*B"]
  length: Int[Array, "*B"]
  action: Int[Array, "*B"]
  left: Int[Array, "*B"]
  anew: Bool[Array, "*B"]


class Held(NamedTuple):
  """The random action that is being repeated, and for how many steps more; (N,) each."""

  left: Int[Array, " N"]
  action: Int[Array, " N"]


def sample_repeats(key: Key[Array, ""], shape: tuple[int, int], num_actions: int, epsilon: Scalar) -> Repeats:
  """epsilon-z-greedy behaviour for T steps of N environments, `shape` = (T, N): random actions that are repeated.

  A random action is held for n or more steps with probability 1 / n, n <= T, which reaches states that independent
  random actions do not (Dabney et al. 2021, "Temporally-extended epsilon-greedy exploration").

  Differences from the paper: epsilon is the share of steps with a random action, as without repetition, not the
  probability to start repeating one. A stretch lasts m = 1 + 1/2 + ... + 1/T steps on average, so one starts with
  probability epsilon / (epsilon + (1 - epsilon) m); where an episode or the T steps begin, one is under way with
  probability epsilon, its remaining steps being r with probability 1 / (r m). Their zeta distribution has P(n)
  proportional to 1 / n^2, the same tail.
  """
  start_key, length_key, action_key, anew_key, left_key = jax.random.split(key, 5)
  at_least = 1 / np.arange(1, shape[0] + 1)
  mean = at_least.sum()
  starts = jax.random.uniform(start_key, shape) < epsilon / (epsilon + (1 - epsilon) * mean)
  # 1 / u is at least n with probability 1 / n.
  uniform = jax.random.uniform(length_key, shape, minval=1e-6)
  length = jnp.minimum(jnp.floor(1 / uniform), shape[0]).astype(jnp.int32)
  action = jax.random.randint(action_key, shape, 0, num_actions, jnp.int32)
  bounds = jnp.asarray(np.cumsum(at_least)[:-1] / mean, jnp.float32)
  left = 1 + jnp.searchsorted(bounds, jax.random.uniform(left_key, shape), side="right").astype(jnp.int32)
  left = jnp.where(jax.random.uniform(anew_key, shape) < epsilon, left, 0)
  anew = jnp.broadcast_to(jnp.arange(shape[0])[:, None] == 0, shape)
  return Repeats(starts, length, action, left, anew)


def init_held(num_envs: int) -> Held:
  """Nothing is held."""
  return Held(jnp.zeros(num_envs, jnp.int32), jnp.zeros(num_envs, jnp.int32))


def hold_actions(noise: Repeats, first: Bool[Array, " N"], held: Held) -> tuple[Exploration, Held]:
  """One step of `sample_repeats`; nothing is held beyond the end of an episode, after which `first` is true."""
  anew = noise.anew | first
  left = jnp.where(anew, noise.left, held.left)
  starts = ~anew & (left == 0) & noise.starts
  left = jnp.where(starts, noise.length, left)
  action = jnp.where(anew | starts, noise.action, held.action)
  return Exploration(left > 0, action), Held(jnp.maximum(left - 1, 0), action)


def act_greedily(q: Float[Array, "*B A"]) -> Int[Array, "*B"]:
  """The action of the largest value, the first of equals."""
  return jnp.argmax(q, axis=-1).astype(jnp.int32)


def explore(exploration: Exploration, q: Float[Array, "*B A"]) -> Int[Array, "*B"]:
  """The random action where there is one, otherwise the greedy one."""
  return jnp.where(exploration.active, exploration.action, act_greedily(q))
