"""Deep deterministic policy gradient (Lillicrap et al. 2016): Q-learning where the actor takes the maximum.

Here actions are in [-1, 1]: `normalize_actions` scales them to the environment's bounds, in that one place. The losses
take one transition and `jax.vmap` makes them a batch's.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from mlnotes.rl.env import Box, Environment
from mlnotes.rl.networks import MLP
from mlnotes.rl.replay import Transition

Scalar = Float[Array, ""] | float


def scale_action(action: Float[Array, "*B A"], low: Scalar, high: Scalar) -> Float[Array, "*B A"]:
  """From [-1, 1] to [low, high]. The clip keeps rounding from leaving the bounds."""
  return jnp.clip(low + (action + 1) * 0.5 * (high - low), low, high)


def normalize_actions(env: Environment) -> Environment:
  """`env` as seen by an agent whose actions are in [-1, 1]. Raises ValueError unless they are a bounded Box."""
  bounds = env.actions
  if not isinstance(bounds, Box) or not -jnp.inf < bounds.low < bounds.high < jnp.inf:
    raise ValueError(f"{env.name} has the actions {bounds}: expected vectors between two finite bounds.")

  def step(key, state, action):
    return env.step(key, state, scale_action(action, bounds.low, bounds.high))

  return env._replace(step=step, actions=bounds._replace(low=-1.0, high=1.0))


class Actor(nn.Module):
  """mu(s) = tanh(MLP(s)): the greedy action in (-1, 1)."""

  features: Sequence[int]
  action_size: int
  activation: str = "relu"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, observation: Float[Array, "*B D"]) -> Float[Array, "*B A"]:
    # A small last layer: far out on the tanh its gradient would vanish (Lillicrap et al. 2016, section 7).
    mlp = MLP(self.features, self.action_size, self.activation, output_scale=0.01, dtype=self.dtype)
    return jnp.tanh(mlp(observation))


class Critic(nn.Module):
  """Q(s, a) = MLP([s, a]).

  Differences from the paper: the action enters at the first layer, not the second.
  """

  features: Sequence[int]
  activation: str = "relu"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, observation: Float[Array, "*B D"], action: Float[Array, "*B A"]) -> Float[Array, "*B"]:
    inputs = jnp.concatenate([observation, action], axis=-1)
    return MLP(self.features, 1, self.activation, dtype=self.dtype)(inputs)[..., 0]


ActorFn = Callable[[PyTree, Float[Array, "..."]], Float[Array, " A"]]
CriticFn = Callable[[PyTree, Float[Array, "..."], Float[Array, " A"]], Float[Array, "..."]]


def compute_critic_loss(
  actor: ActorFn, critic: CriticFn, params: PyTree, target_params: PyTree, transition: Transition, gamma: Scalar
) -> Float[Array, ""]:
  """(y - Q(s, a))^2 / 2 with y = r + gamma discount Q'(s', mu'(s')): Lillicrap et al. 2016, eqs. 4-5.

  `params` and `target_params` hold "actor" and "critic"; only `params["critic"]` gets a gradient.
  """
  next_action = actor(target_params["actor"], transition.next_observation)
  next_q = critic(target_params["critic"], transition.next_observation, next_action)
  target = jax.lax.stop_gradient(transition.reward + gamma * transition.discount * next_q)
  return 0.5 * (target - critic(params["critic"], transition.observation, transition.action)) ** 2


def compute_actor_loss(
  actor: ActorFn, critic: CriticFn, params: PyTree, observation: Float[Array, "..."]
) -> Float[Array, ""]:
  """-Q(s, mu(s)): its gradient is the deterministic policy gradient (Lillicrap et al. 2016, eq. 6).

  Only `params["actor"]` gets a gradient.
  """
  fixed = jax.lax.stop_gradient(params["critic"])
  return -critic(fixed, observation, actor(params["actor"], observation))


class ActionNoise(NamedTuple):
  """What exploring actions are drawn from; any leading axes."""

  normal: Float[Array, "*B A"]
  uniform: Float[Array, "*B A"]


def sample_action_noise(key: Key[Array, ""], shape: tuple[int, ...]) -> ActionNoise:
  """Standard normal noise, and actions uniform in [-1, 1] for the time before anything is learned."""
  normal_key, uniform_key = jax.random.split(key)
  return ActionNoise(jax.random.normal(normal_key, shape), jax.random.uniform(uniform_key, shape, minval=-1.0))


def add_exploration_noise(
  action: Float[Array, "*B A"], normal: Float[Array, "*B A"], std: Scalar
) -> Float[Array, "*B A"]:
  """action + std normal, clipped to [-1, 1]; `normal` is standard, one draw per environment and component.

  Differences from the paper: Gaussian noise instead of the Ornstein-Uhlenbeck process (Fujimoto et al. 2018 found no
  gain from the latter).
  """
  return jnp.clip(action + std * normal, -1.0, 1.0)
