"""Soft actor-critic with twin critics and a learned temperature (Haarnoja et al. 2018b, arXiv 1812.05905).

Here actions are in (-1, 1), and so are the densities of the policy; `mlnotes.rl.ddpg.normalize_actions` scales to the
environment's bounds. The losses take one transition and `jax.vmap` makes them a batch's. `params` hold "actor",
"critics" (each leaf with a leading axis of two) and "log_alpha", the logarithm of the temperature.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from mlnotes.rl.ddpg import Critic
from mlnotes.rl.distributions import TanhGaussian
from mlnotes.rl.networks import MLP
from mlnotes.rl.replay import Transition

Scalar = Float[Array, ""] | float
# Standard deviations before the tanh stay between these (the range of the authors' code).
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


class GaussianActor(nn.Module):
  """pi(. | s): a tanh-squashed Gaussian whose mean and standard deviation depend on the observation."""

  features: Sequence[int]
  action_size: int
  activation: str = "relu"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, observation: Float[Array, "*B D"]) -> TanhGaussian:
    mlp = MLP(self.features, 2 * self.action_size, self.activation, output_scale=0.01, dtype=self.dtype)
    mean, log_std = jnp.split(mlp(observation), 2, axis=-1)
    return TanhGaussian(mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))


ActorFn = Callable[[PyTree, Float[Array, "..."]], TanhGaussian]
CriticsFn = Callable[[PyTree, Float[Array, "..."], Float[Array, " A"]], Float[Array, "2 ..."]]


def init_critics(critic: Critic, key: Key[Array, ""], observation: Float[Array, " D"], action: Float[Array, " A"]):
  """Two independent sets of the critic's parameters, stacked."""
  return jax.vmap(critic.init, (0, None, None))(jax.random.split(key, 2), observation, action)


def make_critics(critic: Critic) -> CriticsFn:
  """The function of stacked parameters that gives both values, (2, ...)."""
  return jax.vmap(critic.apply, (0, None, None))


def compute_soft_value(
  q: Float[Array, "2"], log_prob: Float[Array, ""], temperature: Float[Array, ""]
) -> Float[Array, ""]:
  """min(Q1, Q2) - alpha log pi: eq. 3, with the lower of two critics against the maximum's upward bias (section 6)."""
  return jnp.min(q) - temperature * log_prob


def compute_critic_loss(
  actor: ActorFn,
  critics: CriticsFn,
  params: PyTree,
  target_critics: PyTree,
  transition: Transition,
  normal: Float[Array, " A"],
  gamma: Scalar,
) -> Float[Array, ""]:
  """Sum over both critics of (y - Q(s, a))^2 / 2, y = r + gamma discount (min Q'(s', a') - alpha log pi(a' | s')).

  Eqs. 5-6. a' is drawn from the current policy with the standard normal noise `normal`; only `params["critics"]` gets
  a gradient.
  """
  policy = actor(params["actor"], transition.next_observation)
  next_action, pre_tanh = policy.sample(normal)
  next_q = critics(target_critics, transition.next_observation, next_action)
  value = compute_soft_value(next_q, policy.log_prob(pre_tanh), jnp.exp(params["log_alpha"]))
  target = jax.lax.stop_gradient(transition.reward + gamma * transition.discount * value)
  q = critics(params["critics"], transition.observation, transition.action)
  return 0.5 * jnp.sum((target - q) ** 2)


def compute_actor_loss(
  actor: ActorFn, critics: CriticsFn, params: PyTree, observation: Float[Array, "..."], normal: Float[Array, " A"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """(alpha log pi(a | s) - min Q(s, a), log pi(a | s)) with the reparameterised action a of the noise: eq. 9.

  Only `params["actor"]` gets a gradient.
  """
  policy = actor(params["actor"], observation)
  action, pre_tanh = policy.sample(normal)
  log_prob = policy.log_prob(pre_tanh)
  fixed = jax.lax.stop_gradient((params["critics"], params["log_alpha"]))
  return -compute_soft_value(critics(fixed[0], observation, action), log_prob, jnp.exp(fixed[1])), log_prob


def compute_temperature_loss(
  log_alpha: Float[Array, ""], log_prob: Float[Array, ""], target_entropy: Scalar
) -> Float[Array, ""]:
  """-log alpha (log pi + target entropy): descending it raises alpha where the entropy is below its target.

  Differences from the paper: log alpha stands where eq. 18 has alpha, as in the authors' code; the sign of the
  gradient is the same, and alpha stays positive.
  """
  return -log_alpha * jax.lax.stop_gradient(log_prob + target_entropy)
