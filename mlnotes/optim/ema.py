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


def update_ema(
  average: chex.ArrayTree, params: chex.ArrayTree, step: Int[Array, ""], decay: Float[Array, ""] | float
) -> chex.ArrayTree:
  """average <- d average + (1 - d) params with d = `ema_decay(step, decay)`; accumulates in the average's dtype.

  Average parameters only: buffers such as noise schedules or BatchNorm statistics do not belong here.
  """
  d = ema_decay(step, decay)
  # The difference form leaves constant parameters exactly where they are.
  return jax.tree.map(lambda a, p: (a - (1.0 - d) * (a - p.astype(a.dtype))).astype(a.dtype), average, params)
