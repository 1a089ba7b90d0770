"""Running mean and variance, to bring observations and rewards to a common scale.

They change between two updates, never within one, and they are fed what the environment gave, never their own output.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mlnotes.engine.errors import InputError


class Moments(NamedTuple):
  """Mean and variance (population) of all samples so far, per component, and how many there were."""

  mean: Float[Array, "*D"]
  variance: Float[Array, "*D"]
  count: Float[Array, ""]


def init_moments(shape: tuple[int, ...] = ()) -> Moments:
  """Of no sample: mean 0 and variance 1, so that nothing is scaled yet."""
  return Moments(jnp.zeros(shape), jnp.ones(shape), jnp.zeros([]))


def update_moments(moments: Moments, samples: Float[Array, "B *D"]) -> Moments:
  """The moments with a batch of samples added (Chan et al. 1979, pairwise update).

  A sample with an entry that is not finite is left out, or the moments would never be finite again.
  """
  axes = tuple(range(1, samples.ndim))
  finite = jnp.all(jnp.isfinite(samples), axis=axes, keepdims=True)
  added = jnp.sum(finite, dtype=jnp.float32)
  clean = jnp.where(finite, samples, 0.0)
  mean = jnp.sum(clean, axis=0) / jnp.maximum(added, 1)
  variance = jnp.sum(jnp.where(finite, clean - mean[None], 0.0) ** 2, axis=0) / jnp.maximum(added, 1)
  count = moments.count + added
  share = added / jnp.maximum(count, 1)
  delta = mean - moments.mean
  # At the first batch the share is 1, and what the start held is forgotten.
  new_variance = (1 - share) * moments.variance + share * variance + share * (1 - share) * delta**2
  return Moments(moments.mean + share * delta, new_variance, count)


def compute_scale(moments: Moments) -> Float[Array, "*D"]:
  """The standard deviation of each component, and 1 where it has not varied yet.

  What was always the same has no scale: divided by its standard deviation, the first other value would be anything.
  In float32 a spread below a millionth of the mean is rounding.
  """
  varies = moments.variance > jnp.maximum(1e-12 * moments.mean**2, jnp.finfo(jnp.float32).tiny)
  return jnp.where(varies, jnp.sqrt(jnp.where(varies, moments.variance, 1.0) + 1e-8), 1.0)


def normalize(moments: Moments, x: Float[Array, "*B"], limit: float = 10.0) -> Float[Array, "*B"]:
  """(x - mean) / scale, cut off at +-`limit`. The last axes of `x` are those of the moments; see `compute_scale`."""
  mean = jnp.broadcast_to(moments.mean, x.shape)
  scale = jnp.broadcast_to(compute_scale(moments), x.shape)
  return jnp.clip((x - mean) / scale, -limit, limit)


def discounted_sums(
  start: Float[Array, " N"], reward: Float[Array, "T N"], last: Bool[Array, "T N"], gamma: Float[Array, ""] | float
) -> tuple[Float[Array, " N"], Float[Array, "T N"]]:
  """(the sum after the last step, the sums) of past rewards, discounted by age, from zero in each episode.

  Their standard deviation is the scale by which rewards are divided (Engstrom et al. 2020, reward scaling). Raises
  InputError where the N environments are not the last axis of all three.
  """
  shapes = {"start": jnp.shape(start), "reward": jnp.shape(reward), "last": jnp.shape(last)}
  if len(shapes["reward"]) != 2 or shapes["start"] != shapes["reward"][1:] or shapes["last"] != shapes["reward"]:
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise InputError(f"discounted_sums got {found}: expected start (N,), reward and last (T, N).")

  def one(carry, step):
    reward, last = step
    total = gamma * carry + reward
    return jnp.where(last, 0.0, total), total

  return jax.lax.scan(one, start, (reward, last))
