"""A policy and a value function over one environment's observations and actions, each a network of its own."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mlnotes.nn import Conv
from mlnotes.rl.distributions import Categorical, DiagonalGaussian
from mlnotes.rl.env import Box, Discrete, Environment
from mlnotes.rl.networks import MLP
from mlnotes.rl.registry import make_env


class ActorCritic(NamedTuple):
  """The four functions that a policy-gradient method needs; leading axes of observations are batch axes.

  init: key -> {"actor": .., "critic": ..}.
  policy: (params, observations) -> Categorical or DiagonalGaussian.
  value: (params, observations) -> state values.
  sample_noise: (key, batch shape) -> the noise that `policy(..).sample` takes.
  """

  init: Callable[[Any], Any]
  policy: Callable[[Any, Any], Any]
  value: Callable[[Any, Any], Any]
  sample_noise: Callable[[Any, tuple[int, ...]], Any]


class PictureTorso(nn.Module):
  """16 filters of 3x3 and a dense layer, as usual for MinAtar (Young & Tian 2019), then an MLP."""

  head: MLP

  @nn.compact
  def __call__(self, x):
    x = jax.nn.relu(Conv(16, (3, 3), padding="VALID", dtype=self.head.dtype)(x))
    return self.head(x.reshape(*x.shape[:-3], -1))


def make_network(env: Environment, head: MLP) -> tuple[nn.Module, Callable[[Any], Any]]:
  """`head` for this environment's observations, behind a convolution where they are pictures, and what feeds it."""
  if isinstance(env.observations, Discrete):
    return head, lambda observation: jax.nn.one_hot(observation, env.observations.n)
  if len(env.observations.shape) == 3:
    return PictureTorso(head), lambda observation: observation
  ndim = len(env.observations.shape)
  flatten = lambda x: x if ndim == 1 else x.reshape(*x.shape[: x.ndim - ndim], -1)
  return head, flatten


def make_actor_critic(
  env: Environment, hidden: Sequence[int], activation: str = "tanh", initial_std: float = 1.0, dtype: Any = jnp.float32
) -> ActorCritic:
  """Softmax policy for discrete actions, Gaussian with a state-independent spread for continuous ones.

  The spread starts at `initial_std` (of the action's own unit) and is learned as a logarithm.
  """
  continuous = isinstance(env.actions, Box)
  num_outputs = math.prod(env.actions.shape) if continuous else env.actions.n
  actor, as_input = make_network(env, MLP(hidden, num_outputs, activation, output_scale=0.01, dtype=dtype))
  critic, _ = make_network(env, MLP(hidden, 1, activation, output_scale=1.0, dtype=dtype))

  def init(key):
    actor_key, critic_key, env_key = jax.random.split(key, 3)
    example = as_input(env.reset(env_key)[1])
    params = {"actor": actor.init(actor_key, example), "critic": critic.init(critic_key, example)}
    if continuous:
      params["actor"]["log_std"] = jnp.full(num_outputs, math.log(initial_std))
    return params

  def policy(params, observation):
    outputs = actor.apply({"params": params["actor"]["params"]}, as_input(observation))
    if not continuous:
      return Categorical(outputs)
    return DiagonalGaussian(outputs, jnp.broadcast_to(params["actor"]["log_std"], outputs.shape))

  def value(params, observation):
    return critic.apply(params["critic"], as_input(observation))[..., 0]

  def sample_noise(key, shape):
    draw = jax.random.normal if continuous else jax.random.gumbel
    return draw(key, (*shape, num_outputs))

  return ActorCritic(init, policy, value, sample_noise)


def idle_for_discrete_actions(name: str) -> dict[str, str]:
  """What `idle_flags` says of the Gaussian policy's flag where the environment of that name has discrete actions."""
  if isinstance(make_env(name).actions, Box):
    return {}
  return {"initial_std": f"the actions of {name} are discrete, and their policy has no standard deviation"}


def make_greedy(
  env: Environment, networks: ActorCritic, prepare: Callable[[Any, Any], Any] = lambda state, observation: observation
) -> Callable[[Any, Any], Any]:
  """The policy without its noise: (state, observation) -> the most probable action, or the mean within its bounds.

  `state.params` are those of `networks`; `prepare(state, observation)` comes before the network, as in training.
  """

  def act(state, observation):
    action = networks.policy(state.params, prepare(state, observation)).mode()
    return jnp.clip(action, env.actions.low, env.actions.high) if isinstance(env.actions, Box) else action

  return act
