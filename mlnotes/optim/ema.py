"""Exponential moving averages of parameters."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def ema_decay(step: Int[Array, ""], decay: Float[Array, ""] | float) -> Float[Array, ""]:
  """The decay of update number `step` (from 0) with warm-up: min(decay, (1 + step) / (10 + step)).

  Early averages follow the parameters closely, so that samples drawn early are not those of the initialisation.
  Source: TensorFlow's `ExponentialMovingAverage(num_updates=...)`, which Ho et al. 2020 trained with.
  """
  step = step.astype(jnp.float32)
  return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update_average(average: chex.ArrayTree, params: chex.ArrayTree, decay: Float[Array, ""] | float) -> chex.ArrayTree:
  """average <- decay average + (1 - decay) params, without warm-up; accumulates in the average's dtype."""
  # The difference form leaves constant parameters exactly where they are.
  return jax.tree.map(lambda a, p: (a - (1.0 - decay) * (a - p.astype(a.dtype))).astype(a.dtype), average, params)


def update_ema(
  average: chex.ArrayTree, params: chex.ArrayTree, step: Int[Array, ""], decay: Float[Array, ""] | float
) -> chex.ArrayTree:
  """`update_average` with the decay `ema_decay(step, decay)`.

  For parameters. Constants such as noise schedules do not belong here; BatchNorm's running statistics are averages
  already, and go with the average of the parameters where that is what is evaluated.
  """
  return update_average(average, params, ema_decay(step, decay))
