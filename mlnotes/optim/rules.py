"""Rules that are optax's under another convention, put together from its parts, or that it has in a form that fails."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mlnotes.optim.precision import init_moment, to_accumulator

Scalar = Float[Array, ""] | float


def scale_by_amsgrad(b1: Scalar = 0.9, b2: float = 0.999, eps: Scalar = 1e-8) -> optax.GradientTransformation:
  """Adam divided by the root of the largest second moment so far (Reddi et al. 2018, algorithm 2).

    u_t = mu_t / (1 - b1^t) sqrt(1 - b2^t) / (sqrt(max_s<=t nu_s) + eps)

  With Adam's bias corrections, which the paper leaves out, applied after the maximum as torch and Keras do;
  `optax.amsgrad` corrects before it, so that its first, noisiest estimates count in full and for ever.
  """
  return optax.chain(
    optax.scale_by_amsgrad(b1, b2, eps, bias_correction_nu=False),
    optax.scale_by_schedule(lambda count: jnp.sqrt(1 - b2 ** (count + 1.0))),
  )


def amsgrad(
  learning_rate: optax.ScalarOrSchedule, b1: Scalar = 0.9, b2: float = 0.999, eps: Scalar = 1e-8
) -> optax.GradientTransformation:
  """`scale_by_amsgrad` as an optimizer."""
  return optax.chain(scale_by_amsgrad(b1, b2, eps), optax.scale_by_learning_rate(learning_rate))


class ScaleByCentredRmsState(NamedTuple):
  """Running mean and variance of the gradient."""

  mean: chex.ArrayTree
  variance: chex.ArrayTree


def scale_by_centred_rms(decay: Scalar = 0.99, eps: Scalar = 1e-8) -> optax.GradientTransformation:
  """Divides by the running standard deviation of the gradient (Graves 2013, section 2.1 and equations 38 to 40).

    u_t = g_t / (sqrt(variance_t) + eps);  variance = E[g^2] - E[g]^2, both from 0 with the same decay > 0

  eps outside the root, as in torch; no bias correction. The variance is updated by deviations: as the difference of two
  moments it is negative by rounding where gradients hardly change, and `optax.rmsprop(centered=True)` gives NaN there.
  """

  def init(params):
    return ScaleByCentredRmsState(init_moment(params), init_moment(params))

  def update(updates, state, params=None):
    del params
    updates = jax.tree.map(to_accumulator, updates)
    mean = optax.tree.update_moment(updates, state.mean, decay, 1)
    # From the new mean, so that both moments are updated in place: (g - new mean) = decay (g - old mean).
    spread = lambda g, m, v: decay * v + (1 - decay) / decay * (g - m) ** 2
    variance = jax.tree.map(spread, updates, mean, state.variance)
    updates = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + eps), updates, variance)
    return updates, ScaleByCentredRmsState(mean, variance)

  return optax.GradientTransformation(init, update)


def sgdw(
  learning_rate: optax.ScalarOrSchedule,
  momentum: Scalar = 0.9,
  weight_decay: Scalar = 1e-2,
  mask: chex.ArrayTree = None,
) -> optax.GradientTransformation:
  """SGD with momentum and decoupled weight decay: p <- p - learning_rate (v + weight_decay p), v free of the decay.

  Loshchilov & Hutter 2019, algorithm 1, with the decay times the learning rate, as torch and optax have it for AdamW;
  in the paper the schedule alone scales it. `optax.add_decayed_weights` before `optax.sgd` is L2 in the gradient.
  """
  return optax.chain(
    optax.trace(momentum),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )
