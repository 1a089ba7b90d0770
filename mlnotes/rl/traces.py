"""Actor-critic with eligibility traces, linear in features: one transition at a time, learnt from as it happens.

    pi(.|s, theta) = softmax(theta^T x(s))        v(s, w) = w . y(s)

The actor's features x and the critic's y may be the same or not. `jax.vmap` over the traces makes it many environments
with common parameters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Parameters(NamedTuple):
  """theta: preferences of the actions; w: the critic's weights."""

  actor: Float[Array, "F A"]
  critic: Float[Array, " C"]


class Traces(NamedTuple):
  """Of one environment; they have already decayed by gamma lambda since the last transition."""

  actor: Float[Array, "F A"]
  critic: Float[Array, " C"]


class Features(NamedTuple):
  """Of one observation: x for the actor, y for the critic."""

  actor: Float[Array, " F"]
  critic: Float[Array, " C"]


class Transition(NamedTuple):
  """One transition in features. `discount` is gamma, 0 at a termination; `last` also at a truncation.

  `next_features` belong to where the action led to before any reset.
  """

  features: Features
  action: Int[Array, ""]
  reward: Float[Array, ""]
  discount: Float[Array, ""]
  last: Bool[Array, ""]
  next_features: Features


def init_parameters(features: Features, num_actions: int) -> Parameters:
  """Zeros: the uniform policy, and no expectations. `features` are an example."""
  return Parameters(jnp.zeros((len(features.actor), num_actions)), jnp.zeros_like(features.critic))


def compute_logits(actor: Float[Array, "F A"], features: Float[Array, " F"]) -> Float[Array, " A"]:
  """The preferences theta^T x(s), of which the policy is the softmax."""
  return features @ actor


def compute_score(
  actor: Float[Array, "F A"], features: Float[Array, " F"], action: Int[Array, ""]
) -> Float[Array, "F A"]:
  """grad ln pi(a|s, theta) = x(s) (onehot(a) - pi(.|s, theta))^T. Sutton & Barto, eq. 13.9."""
  policy = jax.nn.softmax(compute_logits(actor, features))
  return features[:, None] * (jax.nn.one_hot(action, policy.shape[0]) - policy)[None, :]


def update_traces(
  params: Parameters,
  traces: Traces,
  transition: Transition,
  actor_decay: Float[Array, ""] | float,
  critic_decay: Float[Array, ""] | float,
) -> tuple[Parameters, Traces, Float[Array, ""]]:
  """(direction, traces, TD error) of one transition; the parameters then move by step size times direction.

      delta = R + gamma v(S', w) - v(S, w)
      z_w <- gamma lambda_w z_w + grad v(S, w)
      z_theta <- gamma lambda_theta z_theta + grad ln pi(A|S, theta)
      direction = delta z_w for w, delta z_theta for theta

  Sutton & Barto, the box "Actor-Critic with Eligibility Traces (episodic)" in section 13.5. Traces start at zero in
  every episode; with decays of 0 it is the one-step actor-critic.

  Differences from the book: the factor I = gamma^t of the actor's gradient is left out, as is usual, so that late steps
  of an episode count as much as early ones.
  """
  value = jnp.dot(params.critic, transition.features.critic)
  next_value = jnp.dot(params.critic, transition.next_features.critic)
  error = transition.reward + transition.discount * next_value - value
  actor = traces.actor + compute_score(params.actor, transition.features.actor, transition.action)
  critic = traces.critic + transition.features.critic
  decay = jnp.where(transition.last, 0.0, transition.discount)
  direction = Parameters(error * actor, error * critic)
  return direction, Traces(decay * actor_decay * actor, decay * critic_decay * critic), error
