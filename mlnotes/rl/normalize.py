"""Running mean and variance, to bring observations and rewards to a common scale.

They change between two updates, never within one, and they are fed what the environment gave, never their own output.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Moments(NamedTuple):
  """Mean and variance (population) of all samples so far, per component, and how many there were."""

  mean: Float[Array, "*D"]
  variance: Float[Array, "*D"]
  count: Float[Array, ""]


def init_moments(shape: tuple[int, ...] = ()) -> Moments:
  """Of no sample: mean 0 and variance 1, so that nothing is scaled yet."""
  return Moments(jnp.zeros(shape), jnp.ones(shape), jnp.zeros([]))


def update_moments(moments: Moments, samples: Float[Array, "B *D"]) -> Moments:
  """The moments with a batch of samples added (Chan et al. 1979, pairwise update)."""
  added = samples.shape[0]
  mean, variance = jnp.mean(samples, axis=0), jnp.var(samples, axis=0)
  count = moments.count + added
  share = added / count
  delta = mean - moments.mean
  # Before the first batch the share is 1, and what the start held is forgotten.
  new_variance = (1 - share) * moments.variance + share * variance + share * (1 - share) * delta**2
  return Moments(moments.mean + share * delta, new_variance, count)


def normalize(moments: Moments, x: Float[Array, "*B"], limit: float = 10.0) -> Float[Array, "*B"]:
  """(x - mean) / std, cut off at +-`limit` standard deviations. The last axes of `x` are those of the moments."""
  mean = jnp.broadcast_to(moments.mean, x.shape)
  std = jnp.broadcast_to(jnp.sqrt(moments.variance + 1e-8), x.shape)
  return jnp.clip((x - mean) / std, -limit, limit)


def discounted_sums(
  start: Float[Array, " N"], reward: Float[Array, "T N"], last: Bool[Array, "T N"], gamma: Float[Array, ""] | float
) -> tuple[Float[Array, " N"], Float[Array, "T N"]]:
  """(the sum after the last step, the sums) of past rewards, discounted by age, from zero in each episode.

  Their standard deviation is the scale by which rewards are divided (Engstrom et al. 2020, reward scaling).
  """

  def one(carry, step):
    reward, last = step
    total = gamma * carry + reward
    return jnp.where(last, 0.0, total), total

  return jax.lax.scan(one, start, (reward, last))
